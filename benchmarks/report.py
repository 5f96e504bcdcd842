"""The figures as tables for people, and the plot that README shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from . import targets
from .targets import ALL, ALL_BUT_TELEMETRY, BARE, EVERYTHING_OFF, FASTMCP_ALL, FASTMCP_LAYER, SAMPLE, Cell, Target

Figures = Mapping[str, Any]
Results = Sequence[Mapping[str, Any]]


def write(figures: Figures, out: Path) -> None:
    """Write `table.md` and `throughput.svg` into `out`, from whatever parts have been measured."""
    sections = [_heading(figures)]
    if "load" in figures:
        sections += [_targets(figures), *_load(figures)]
    if "against" in figures:
        sections.append(_against(figures, figures["against"]))
    if "load" in figures:
        (out / "throughput.svg").write_text(_plot(figures["load"]), "utf-8")
    sections += [
        part(figures[name])
        for name, part in (
            ("micro_us", _micro),
            ("startup", _startup),
            ("growth", _growth),
            ("memory", _memory),
        )
        if name in figures
    ]
    (out / "table.md").write_text("\n\n".join(sections) + "\n", "utf-8")


def _heading(figures: Figures) -> str:
    machine, versions, options = figures["machine"], figures["versions"], figures["options"]
    project, peer = versions["project"], versions["fastmcp"]
    return (
        f"{machine['cpus']} x {machine['cpu']}, {machine['system']}, Python {project['python']}, mcp {project['mcp']}, "
        f"uvicorn {project['uvicorn']}, uvloop {project['uvloop']}, fastmcp {peer['fastmcp']}; {machine['date']}; "
        f"{options['rounds']} rounds of {options['seconds']:g} s; every server one process on one core.\n\n"
        f"Load average while it ran: up to {machine.get('busiest_load_average', math.nan)}. The benchmark alone makes "
        "about 2: with more, other work took part of the machine, and the figures say little."
    )


def of(
    load: Mapping[str, Results], target: Target, concurrency: int, version: str = "2026-07-28", response: str = "json"
) -> Results:
    return load.get(Cell(target, version, response, concurrency).key, [])


def middle(results: Results, name: str) -> float:
    return median(result[name] for result in results) if results else math.nan


def ratio(results: Results, base: Results, name: str = "per_second") -> float:
    """Median over the rounds of the ratio to `base` in the same round."""
    rounds = sorted({result["round"] for result in results} & {result["round"] for result in base})
    found = []
    for number in rounds:
        own, other = (middle([r for r in part if r["round"] == number], name) for part in (results, base))
        found.append(own / other)
    return median(found) if found else math.nan


def added(results: Results, base: Results, name: str) -> float:
    """Median over the rounds of the difference to `base` in the same round."""
    rounds = sorted({result["round"] for result in results} & {result["round"] for result in base})
    pairs = [[middle([r for r in part if r["round"] == number], name) for part in (results, base)] for number in rounds]
    return median(own - other for own, other in pairs) if pairs else math.nan


def _targets(figures: Figures) -> str:
    load = figures["load"]
    bare32, bare1 = of(load, BARE, 32), of(load, BARE, 1)
    every, most = of(load, ALL, 32), of(load, ALL_BUT_TELEMETRY, 32)
    rows = [
        ("all but telemetry: throughput against bare", "at least 0.85", f"{ratio(most, bare32):.2f}"),
        (
            "all but telemetry: added to p50 at concurrency 1",
            "at most 90 µs",
            f"{added(of(load, ALL_BUT_TELEMETRY, 1), bare1, 'p50_us'):.0f} µs",
        ),
        ("all, every call traced: throughput against bare", "at least 0.70", f"{ratio(every, bare32):.2f}"),
        (
            "all but telemetry against FastMCP 4 with the same",
            "at least 2",
            f"{ratio(most, of(load, FASTMCP_LAYER, 32)):.1f}",
        ),
        (
            "all, traced, against FastMCP 4 with the same",
            "at least 2",
            f"{ratio(every, of(load, FASTMCP_ALL, 32)):.1f}",
        ),
        (
            "all, traced, against the sample code, empty window",
            "at least 1.6",
            f"{ratio(every, of(load, SAMPLE, 32)):.2f}",
        ),
        (
            "the same, the sample served as documented",
            "",
            f"{ratio(every, of(load, targets.SAMPLE_DOCUMENTED, 32)):.1f}",
        ),
        (
            "all, traced, against the sample code, a million timestamps",
            "at least 20",
            f"{ratio(every, of(load, targets.SAMPLE_FULL, 32)):.0f}",
        ),
    ]
    if "startup" in figures:
        starts = {name: middle(results, "seconds") for name, results in figures["startup"].items()}
        rows.append(("start-up against bare, all on", "at most 1.3", f"{starts[ALL.name] / starts[BARE.name]:.2f}"))
    if "memory" in figures:
        samples = figures["memory"]
        settled = next((s for s in samples if s["calls"] >= samples[-1]["calls"] / 10), samples[-1])
        grown = samples[-1]["memory_mb"] - settled["memory_mb"]
        calls = samples[-1]["calls"] - settled["calls"]
        rows.append((f"memory over {calls:,} calls, all on", "flat", f"{grown:+.1f} MB"))
    if "growth" in figures:
        tools = figures["growth"]["tools"]
        name = ALL_BUT_TELEMETRY.name
        thousand = middle(tools[f"{name} | 1000"], "p50_us") / middle(tools[f"{name} | 1"], "p50_us")
        rows.append(("p50 with 1000 tools against 1 tool", "flat", f"{thousand:.2f}"))
        clients = figures["growth"]["clients"]
        many = middle(clients["each call a new client"], "per_second") / middle(clients["one client"], "per_second")
        rows.append(("throughput, each call a new client, against one client", "flat", f"{many:.2f}"))
    return _table(("at concurrency 32, 2026-07-28, JSON, if not said otherwise", "target", "measured"), rows)


def _load(figures: Figures) -> list[str]:
    load = figures["load"]
    header = (
        "server",
        "calls/s",
        "of bare",
        "p50 ms",
        "p99 ms",
        "CPU µs a call",
        "p50 µs at 1",
        "added µs",
        "p99 µs at 1",
    )
    sections = []
    for version in targets.VERSIONS:
        for response in targets.RESPONSES:
            main = version == "2026-07-28" and response == "json"
            rows = []
            for target in targets.JSON_TARGETS if main else targets.MAIN:
                many, one = (of(load, target, c, version, response) for c in (32, 1))
                bare_many, bare_one = (of(load, BARE, c, version, response) for c in (32, 1))
                if not many:
                    continue
                rows.append(
                    (
                        target.name,
                        f"{middle(many, 'per_second'):.0f}",
                        f"{ratio(many, bare_many):.2f}",
                        f"{middle(many, 'p50_us') / 1000:.1f}",
                        f"{middle(many, 'p99_us') / 1000:.1f}",
                        f"{middle(many, 'server_us'):.0f}",
                        f"{middle(one, 'p50_us'):.0f}",
                        f"{added(one, bare_one, 'p50_us'):+.0f}",
                        f"{middle(one, 'p99_us'):.0f}",
                    )
                )
            if rows:
                title = f"### Protocol {version}, {response.upper()} responses\n\n"
                sections.append(title + "Concurrency 32, then 1.\n\n" + _table(header, rows))
    nothing = of(load, targets.NOTHING, 32)
    if nothing:
        busiest = max(result["client_cpu"] for results in load.values() for result in results if results is not nothing)
        sections.append(
            f"The load generator alone, against a server that does nothing: {middle(nothing, 'per_second'):.0f} "
            f"calls/s. In the measurements it used at most {busiest:.0%} of its core. The receiver got "
            f"{figures.get('spans_received', 0):,} spans."
        )
    return sections


def _micro(figures: Mapping[str, float]) -> str:
    rows = [(name, f"{value:.1f}") for name, value in figures.items()]
    return "### In process\n\n" + _table(("middleware, or operation", "µs a call"), rows)


def _startup(figures: Mapping[str, Results]) -> str:
    bare = middle(figures[BARE.name], "seconds")
    rows = [
        (
            name,
            f"{middle(found, 'seconds'):.2f}",
            f"{middle(found, 'seconds') / bare:.2f}",
            f"{middle(found, 'memory_mb'):.0f}",
        )
        for name, found in figures.items()
    ]
    return "### From start to first answer\n\n" + _table(("server", "seconds", "of bare", "memory MB"), rows)


def _against(figures: Figures, commit: str) -> str:
    """Ratios to the servers of another commit, measured in the same round."""
    rows = []
    for target in targets.COMPARED:
        earlier = target.of_commit(commit)
        cells = [(version, calls) for version in targets.VERSIONS for calls in (32, 1)]
        for version, calls in cells if "load" in figures else ():
            now, then = (of(figures["load"], each, calls, version) for each in (target, earlier))
            if now and then:
                what = f"calls/s, {version}, concurrency {calls}"
                rows.append((target.name, what, f"{ratio(now, then):.2f}", f"{ratio(now, then, 'server_us'):.2f}"))
        if {target.name, earlier.name} <= figures.get("startup", {}).keys():
            now, then = (figures["startup"][each.name] for each in (target, earlier))
            pairs = list(zip(now, then, strict=True))
            ratios = [f"{median(a[part] / max(b[part], 0.01) for a, b in pairs):.2f}" for part in ("seconds", "cpu")]
            rows.append((target.name, "seconds to the first answer", *ratios))
    return f"### Of the figure at {commit}\n\n" + _table(("server", "figure", "ratio", "ratio of its CPU time"), rows)


def _growth(figures: Mapping[str, Mapping[str, Results]]) -> str:
    parts = ["### Growth"]
    for kind, title, name, unit in (
        ("tools", "tools registered, concurrency 1", "p50_us", "p50 µs"),
        ("clients", "clients of the rate limit, concurrency 32", "per_second", "calls/s"),
        ("concurrency", "calls at once", "per_second", "calls/s"),
    ):
        rows = [(*key.split(" | "), f"{middle(found, name):.0f}") for key, found in figures[kind].items()]
        header = ("server", title, unit) if rows and len(rows[0]) == 3 else (title, unit)
        parts.append(_table(header, rows))
    return "\n\n".join(parts)


def _memory(samples: Results) -> str:
    shown = samples[:: max(1, len(samples) // 10)]
    if shown[-1] is not samples[-1]:
        shown = [*shown, samples[-1]]
    rows = [(f"{sample['calls']:,}", f"{sample['memory_mb']:.1f}") for sample in shown]
    return f"### Memory\n\n{ALL.name}, concurrency 32.\n\n" + _table(("calls answered", "resident MB"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PLOTTED = (
    BARE,
    EVERYTHING_OFF,
    ALL_BUT_TELEMETRY,
    ALL,
    SAMPLE,
    targets.SAMPLE_DOCUMENTED,
    FASTMCP_LAYER,
    FASTMCP_ALL,
    targets.SAMPLE_FULL,
)


def _plot(load: Mapping[str, Results]) -> str:
    """Bars of the throughput, in colours that can be read on a light and on a dark page."""
    bars = [(t.name, middle(of(load, t, 32), "per_second")) for t in PLOTTED if of(load, t, 32)]
    longest = max(value for _, value in bars)
    left, width, step, top = 300, 360, 30, 34
    height = top + step * len(bars) + 10
    text = 'font-family="system-ui, sans-serif" font-size="13" fill="#888"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 80} {height}" role="img">',
        "<title>Tool calls a second, concurrency 32, protocol 2026-07-28, JSON</title>",
        f'<text x="0" y="18" {text}>Tool calls a second on one core, 32 at once, protocol 2026-07-28, JSON</text>',
    ]
    for number, (name, value) in enumerate(bars):
        y = top + number * step
        own = name.startswith("generated")
        lines += [
            f'<text x="{left - 8}" y="{y + 17}" text-anchor="end" {text}>{escape(name)}</text>',
            f'<rect x="{left}" y="{y + 3}" width="{max(1, value / longest * width):.0f}" height="20" rx="3" '
            f'fill="{"#2f81f7" if own else "#9a9a9a"}"/>',
            f'<text x="{left + value / longest * width + 6:.0f}" y="{y + 17}" {text}>{value:.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
