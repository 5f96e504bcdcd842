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
    """Write `table.md`, `throughput.svg` and `growth.svg` into `out`, from whatever parts have been measured."""
    sections = [_heading(figures)]
    if "load" in figures:
        sections += [_targets(figures), *_load(figures)]
    if "against" in figures:
        sections.append(_against(figures, figures["against"]))
    if "load" in figures:
        (out / "throughput.svg").write_text(_plot(figures["load"], figures["against"]), "utf-8")
    if "growth" in figures:
        (out / "growth.svg").write_text(_curves(figures["growth"]), "utf-8")
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


def of(load: Mapping[str, Results], target: Target, concurrency: int, version: str = "2026-07-28") -> Results:
    return load.get(Cell(target, version, "json", concurrency).key, [])


def middle(results: Results, name: str) -> float:
    return median(result[name] for result in results) if results else math.nan


def ratio(results: Results, base: Results, name: str = "per_second") -> float:
    """Return the quotient of the two medians, which is that of the figures in a table."""
    return middle(results, name) / middle(base, name)


def spread(results: Results, base: Results, name: str) -> tuple[float, float]:
    """Return the least and the largest ratio to `base` in the same round."""
    rounds = sorted({result["round"] for result in results} & {result["round"] for result in base})
    pairs = [[middle([r for r in part if r["round"] == number], name) for part in (results, base)] for number in rounds]
    ratios = [own / other for own, other in pairs]
    return (min(ratios), max(ratios)) if ratios else (math.nan, math.nan)


def added(results: Results, base: Results, name: str) -> float:
    """Median over the rounds of the difference to `base` in the same round."""
    rounds = sorted({result["round"] for result in results} & {result["round"] for result in base})
    pairs = [[middle([r for r in part if r["round"] == number], name) for part in (results, base)] for number in rounds]
    return median(own - other for own, other in pairs) if pairs else math.nan


def _targets(figures: Figures) -> str:
    """Return the table of targets; each ratio is of CPU time, which other work on the machine changes least."""
    rows = []
    if "load" in figures:
        load = figures["load"]
        for target, wanted in (
            (ALL_BUT_TELEMETRY, {"2026-07-28": 1.5, "2025-11-25": 4.0}),
            (targets.WITH_PERMISSIONS, {"2026-07-28": 1.35}),
            (ALL, {"2026-07-28": 0.9, "2025-11-25": 2.0}),
        ):
            for version, least in wanted.items():
                own, bare = (of(load, each, 32, version) for each in (target, BARE))
                what = f"CPU of the bare server over that of: {target.name}; {version}"
                rows.append((what, f"at least {least:g}", f"{ratio(bare, own, 'server_us'):.2f}"))
        own, peer = (of(load, each, 32) for each in (ALL_BUT_TELEMETRY, FASTMCP_LAYER))
        what = f"CPU of {FASTMCP_LAYER.name}, over that of: {ALL_BUT_TELEMETRY.name}; 2026-07-28"
        rows.append((what, "at least 6", f"{ratio(peer, own, 'server_us'):.1f}"))
    if "startup" in figures:
        starts = {name: middle(results, "seconds") for name, results in figures["startup"].items()}
        for target, most in ((ALL_BUT_TELEMETRY, 1.1), (ALL, 1.2), (targets.EVERY_FEATURE, 1.3)):
            value = f"{starts[target.name] / starts[BARE.name]:.2f}"
            rows.append((f"seconds to the first answer against bare: {target.name}", f"at most {most:g}", value))
    if "memory" in figures:
        for target, most in ((ALL_BUT_TELEMETRY, 12), (ALL, 22)):
            own, bare = (figures["memory"][each.name][1] for each in (target, BARE))  # the first is before any call
            value = f"{own['memory_mb'] - bare['memory_mb']:.0f} MB"
            rows.append((f"memory above bare after 10,000 calls: {target.name}", f"at most {most} MB", value))
    if "growth" in figures:
        name = ALL_BUT_TELEMETRY.name

        def cpu(part: str, at: str) -> float:
            return middle(figures["growth"][part][at], "server_us")

        for part, what in (("tools", "1000 tools against 1"), ("connections", "1000 connections against 10")):
            few = "10" if part == "connections" else "1"
            value = f"{cpu(part, f'{name} | 1000') / cpu(part, f'{name} | {few}'):.2f}"
            rows.append((f"CPU of a call with {what}", "flat", value))
        value = f"{cpu('clients', 'each call a new client') / cpu('clients', 'one client'):.2f}"
        rows.append(("CPU of a call, each a new client, against one client", "flat", value))
        value = f"{(cpu('arguments', f'{name} | 1000000') - cpu('arguments', f'{name} | 10')) / 1000:.1f} ms"
        rows.append(("CPU for 1 MB of arguments", "under 4 ms", value))
    return _table(("at concurrency 32, JSON, if not said otherwise", "target", "measured"), rows)


def _load(figures: Figures) -> list[str]:
    load = figures["load"]
    header = (
        "server",
        "calls/s",
        "of bare",
        "CPU µs a call",
        "bare's CPU over it",
        "in a round",
        "p50 ms",
        "p99 ms",
        "p50 µs at 1",
        "added µs",
        "p99 µs at 1",
    )
    sections = []
    earlier = [target.of_version(figures["against"]) for target in targets.COMPARED]
    for version, compared in zip(targets.VERSIONS, (targets.JSON_TARGETS, targets.LEGACY), strict=True):
        rows = []
        for target in (*compared, *earlier):
            many, one = (of(load, target, c, version) for c in (32, 1))
            bare_many, bare_one = (of(load, BARE, c, version) for c in (32, 1))
            if not many:
                continue
            least, most = spread(bare_many, many, "server_us")
            rows.append(
                (
                    target.name,
                    f"{middle(many, 'per_second'):.0f}",
                    f"{ratio(many, bare_many):.2f}",
                    f"{middle(many, 'server_us'):.0f}",
                    f"{ratio(bare_many, many, 'server_us'):.2f}",
                    f"{least:.2f} to {most:.2f}",
                    f"{middle(many, 'p50_us') / 1000:.1f}",
                    f"{middle(many, 'p99_us') / 1000:.1f}",
                    f"{middle(one, 'p50_us'):.0f}",
                    f"{added(one, bare_one, 'p50_us'):+.0f}",
                    f"{middle(one, 'p99_us'):.0f}",
                )
            )
        title = f"### Protocol {version}, JSON responses\n\n"
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
        earlier = target.of_version(commit)
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
    parts = ["### Growth\n\nCPU time of the server for a call, in microseconds."]
    for kind, title in GROWTH.items():
        rows = [(*key.split(" | "), f"{middle(found, 'server_us'):.0f}") for key, found in figures[kind].items()]
        header = ("server", title, "µs") if rows and len(rows[0]) == 3 else (title, "µs")
        parts.append(_table(header, rows))
    return "\n\n".join(parts)


GROWTH = {
    "tools": "tools registered, concurrency 1",
    "connections": "connections, each with a call at a time",
    "arguments": "bytes of arguments, concurrency 1",
    "results": "bytes of the result, concurrency 1, no limit of results",
    "modes": "protocol and responses, concurrency 32",
    "clients": "callers of the rate limit, concurrency 32",
}


def _memory(figures: Mapping[str, Results]) -> str:
    rows = [
        (name, f"{sample['calls']:,.0f}", f"{sample['memory_mb']:.1f}")
        for name, found in figures.items()
        for sample in found
    ]
    return "### Memory\n\nConcurrency 32.\n\n" + _table(("server", "calls answered", "resident MB"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PLOTTED = (
    BARE,
    EVERYTHING_OFF,
    ALL_BUT_TELEMETRY,
    targets.WITH_PERMISSIONS,
    ALL,
    targets.TYPESCRIPT,
    targets.FASTMCP,
    FASTMCP_LAYER,
    FASTMCP_ALL,
    SAMPLE,
)


def _plot(load: Mapping[str, Results], against: str) -> str:
    """Bars of the throughput, in colours that can be read on a light and on a dark page."""
    plotted = (*PLOTTED, ALL_BUT_TELEMETRY.of_version(against), ALL.of_version(against))
    bars = [(t.name, middle(of(load, t, 32), "per_second")) for t in plotted if of(load, t, 32)]
    longest = max(value for _, value in bars)
    left, width, step, top = 380, 360, 30, 34
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


CURVES = {
    "tools": "tools",
    "connections": "connections",
    "arguments": "bytes of arguments",
    "results": "bytes of result",
}


def _curves(growth: Mapping[str, Mapping[str, Results]]) -> str:
    """Draw the CPU time of a call for each part of `CURVES`, both axes logarithmic."""
    width, height, gap, top = 170, 150, 62, 46
    text = 'font-family="system-ui, sans-serif" font-size="12" fill="#888"'
    colours = {BARE.name: "#9a9a9a", ALL_BUT_TELEMETRY.name: "#2f81f7", FASTMCP_LAYER.name: "#c98b4a"}
    points: dict[str, dict[str, list[tuple[float, float]]]] = {part: {} for part in CURVES}
    for part, lines in points.items():
        for key, found in growth[part].items():
            name, _, at = key.partition(" | ")
            lines.setdefault(name, []).append((float(at), middle(found, "server_us")))
    every = [y for lines in points.values() for line in lines.values() for _, y in line]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))

    def y_at(microseconds: float) -> float:
        return top + height * (high - math.log10(microseconds)) / (high - low)

    total = gap + len(CURVES) * (width + gap)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {top + height + 44}" role="img">',
        "<title>CPU time of a call by tools, connections, and bytes of arguments and results</title>",
        f'<text x="0" y="14" {text}>CPU time of a call in microseconds, protocol 2026-07-28, JSON</text>',
    ]
    for number, (name, colour) in enumerate(colours.items()):
        x = 400 + number * 190
        drawn.append(f'<rect x="{x}" y="5" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{x + 14}" y="14" {text}>{escape(name)}</text>')
    for number, (part, lines) in enumerate(points.items()):
        left = gap + number * (width + gap)
        places = sorted({x for line in lines.values() for x, _ in line})
        span = math.log10(places[-1]) - math.log10(places[0])
        for power in range(low, high + 1):
            y = y_at(10.0**power)
            drawn.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.0f}" y2="{y:.0f}" stroke="#8884"/>')
            drawn.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end" {text}>{10**power:,}</text>')
        for place in (places[0], places[-1]):
            x = left + width * (math.log10(place) - math.log10(places[0])) / span
            drawn.append(f'<text x="{x:.0f}" y="{top + height + 18}" text-anchor="middle" {text}>{place:,.0f}</text>')
        middle_x = left + width / 2
        drawn.append(f'<text x="{middle_x}" y="{top + height + 36}" text-anchor="middle" {text}>{CURVES[part]}</text>')
        for name, line in lines.items():
            path = " ".join(
                f"{left + width * (math.log10(x) - math.log10(places[0])) / span:.1f},{y_at(y):.1f}" for x, y in line
            )
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
    return "\n".join([*drawn, "</svg>"]) + "\n"
