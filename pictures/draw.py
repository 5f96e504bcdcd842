"""Drawings as SVG: panels of a dashboard with the results of their queries, a trace, and a terminal.

A panel is drawn with its place, title, unit, colours and thresholds of the dashboard's JSON. What it shows can be read
from the file: the title of a panel is its `<title>`, and its expressions are its `<desc>`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

WIDTH, COLUMN, ROW, GAP = 1200, 50, 34, 8
FONT = 'font-family="Inter, Helvetica, Arial, sans-serif"'
MONO = 'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace"'
PAGE, PANEL, EDGE, TEXT, FAINT, GRID = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#9a9ea5", "#2a2e33"
PALETTE = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0")
REPEATED = "get_weather"
"""The tool of a panel that Grafana repeats for each."""
NAMED = {
    "green": "#73bf69",
    "red": "#f2495c",
    "yellow": "#f2cc0c",
    "orange": "#ff9830",
    "blue": "#5794f2",
    "text": "#d8d9da",
}


@dataclass(frozen=True)
class Series:
    """One series of a query's result."""

    labels: Mapping[str, str]
    legend: str
    points: Sequence[tuple[float, float]]
    """Time in seconds since the epoch, and value; without those that are no number."""

    @property
    def last(self) -> float:
        return self.points[-1][1]


def svg(width: float, height: float, body: str, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="{PAGE}"/>{body}</svg>\n'
    )


def text(
    x: float, y: float, content: str, size: float = 12, fill: str = TEXT, anchor: str = "start", **more: str
) -> str:
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}" {FONT}{attributes}>'
        f"{escape(content)}</text>"
    )


def number(value: float, unit: str | None) -> str:
    """Return a value as Grafana prints it with this unit."""
    match unit:
        case "percentunit":
            return f"{value * 100:.3g}%"
        case "reqps":
            return f"{value:.3g} req/s"
        case "s" if value >= 60:
            return f"{value / 60:.3g} min"
        case "s" if value >= 1 or value == 0:
            return f"{value:.3g} s"
        case "s":
            return f"{value * 1000:.3g} ms"
        case "bytes":
            return f"{value / 2**20:.3g} MiB"
    return f"{value:.4g}"


def clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M")


# --- Panels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """The place of a graph in the picture, and the ranges of its axes."""

    left: float
    top: float
    width: float
    height: float
    start: float
    end: float
    low: float = 0
    high: float = 1

    def x(self, time: float) -> float:
        return self.left + (time - self.start) / (self.end - self.start) * self.width

    def y(self, value: float) -> float:
        return self.top + self.height - (value - self.low) / (self.high - self.low) * self.height


def dashboard(
    panels: Sequence[Mapping[str, Any]], results: Mapping[str, Sequence[Series]], start: float, end: float, title: str
) -> str:
    """Return the picture of panels.

    Args:
        panels: of the dashboard's JSON, rows included, in its order.
        results: the series of a panel's queries, by its title.
        start, end: the range of time in seconds since the epoch.
    """
    body, offset, lowest = [], None, 0
    previous = 0
    for panel in panels:
        place = panel["gridPos"]
        if offset is None or panel["type"] == "row":
            offset = place["y"] - previous
        top, width = (place["y"] - offset) * ROW + GAP, place["w"] * COLUMN - GAP
        left, height = place["x"] * COLUMN + GAP / 2, place["h"] * ROW - GAP
        previous = max(previous, place["y"] - offset + place["h"])
        lowest = max(lowest, previous)
        if panel["type"] == "row":
            body.append(text(left + 4, top + 18, f"⌄ {panel['title']}", 14, font_weight="600"))
            continue
        shown = panel["title"].replace("$tool", REPEATED)
        expressions = "\n".join(target["expr"] for target in panel["targets"])
        drawn = KINDS[panel["type"]](panel, results[panel["title"]], Frame(left, top, width, height, start, end))
        body.append(
            f'<g class="panel"><title>{escape(panel["title"])}</title><desc>{escape(expressions)}</desc>'
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="2" fill="{PANEL}" stroke="{EDGE}"/>'
            f"{text(left + 10, top + 18, shown, 12.5, font_weight='600')}{drawn}</g>"
        )
    return svg(WIDTH + GAP, lowest * ROW + GAP, "".join(body), title)


def stat(panel: Mapping[str, Any], found: Sequence[Series], frame: Frame) -> str:
    """The last value with its course below it, or the name of the series."""
    series, defaults = found[0], panel["fieldConfig"]["defaults"]
    colour = "green"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or series.last >= step["value"]:
            colour = step["color"]
    colour = NAMED.get(colour, colour)
    named = panel["options"]["textMode"] == "name"
    content = series.legend if named else number(series.last, defaults.get("unit"))
    shown = text(
        frame.left + frame.width / 2,
        frame.top + 58,
        content,
        min(30, frame.width / len(content) / 0.64),
        colour,
        "middle",
        font_weight="600",
    )
    values = [value for _, value in series.points]
    low, high = min(*values, 0), max(values) or 1
    inner = Frame(frame.left, frame.top + 66, frame.width, frame.height - 69, frame.start, frame.end, low, high)
    line, base = path(series.points, inner), inner.top + inner.height
    area = f"{line} L{inner.x(series.points[-1][0]):.1f} {base:.1f} L{inner.x(series.points[0][0]):.1f} {base:.1f} Z"
    if panel["options"]["graphMode"] == "none":
        return shown.replace("<text", '<text class="data"')
    return (
        f'<path d="{area}" fill="{colour}" fill-opacity="0.18"/>'
        f'<path class="data" d="{line}" fill="none" stroke="{colour}" stroke-width="1"/>{shown}'
    )


def path(points: Sequence[tuple[float, float]], frame: Frame, step: float = 45) -> str:
    """Return the line through points; a gap of more than `step` seconds interrupts it."""
    parts, before = [], -math.inf
    for time, value in points:
        parts.append(f"{'M' if time - before > step else 'L'}{frame.x(time):.1f} {frame.y(value):.1f}")
        before = time
    return " ".join(parts)


def ticks(high: float, unit: str | None) -> list[float]:
    """Return about four round values from 0 up to and above `high`."""
    if unit == "bytes":
        return [value * 2**20 for value in ticks(high / 2**20, None)]
    size = 10 ** math.floor(math.log10(high / 3))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if high / (size * factor) <= 4)
    return [step * index for index in range(math.ceil(high / step - 1e-9) + 1)]


def axes(frame: Frame, values: Sequence[float], unit: str | None) -> str:
    drawn = []
    for value in values:
        y = frame.y(value)
        drawn.append(f'<path d="M{frame.left:.1f} {y:.1f} H{frame.left + frame.width:.1f}" stroke="{GRID}"/>')
        drawn.append(text(frame.left - 6, y + 4, number(value, unit), 11, FAINT, "end"))
    return "".join(drawn) + times(frame)


def times(frame: Frame) -> str:
    minutes = range(math.ceil(frame.start / 60), math.floor(frame.end / 60) + 1)
    every = max(1, round(len(minutes) / (frame.width / 90)))
    return "".join(
        text(frame.x(minute * 60), frame.top + frame.height + 16, clock(minute * 60), 11, FAINT, "middle")
        for minute in minutes
        if minute % every == 0
    )


def stacked(found: Sequence[Series]) -> list[list[tuple[float, float, float]]]:
    """Return for each series time, lower and upper bound, one upon the other."""
    total: dict[float, float] = {}
    result: list[list[tuple[float, float, float]]] = []
    for series in found:
        points = [(time, total.get(time, 0), total.get(time, 0) + value) for time, value in series.points]
        total.update({time: upper for time, _, upper in points})
        result.append(points)
    return result


def timeseries(panel: Mapping[str, Any], found: Sequence[Series], frame: Frame) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    unit, custom = defaults.get("unit"), defaults.get("custom", {})
    stack = custom.get("stacking", {}).get("mode") == "normal"
    shown = sorted(found, key=lambda series: -max(value for _, value in series.points))[: len(PALETTE)]
    shown.sort(key=lambda series: series.legend)
    bounds = stacked(shown) if stack else [[(time, 0.0, value) for time, value in series.points] for series in shown]
    values = ticks(max([upper for points in bounds for _, _, upper in points], default=0) or 1, unit)
    legends = [f"{series.legend} (last {number(series.last, unit)})" for series in shown]
    columns = 2 if max(map(len, legends)) * 6 < frame.width / 2 - 40 else 1
    rows = math.ceil(len(shown) / columns)
    margin = max(len(number(value, unit)) for value in values) * 6.2 + 18
    inner = Frame(
        frame.left + margin, frame.top + 32, frame.width - margin - 16, frame.height - 62 - 16 * rows,
        frame.start, frame.end, 0, values[-1],
    )  # fmt: skip
    drawn = [axes(inner, values, unit)]
    for points, colour in zip(bounds, PALETTE, strict=False):
        line = path([(time, upper) for time, _, upper in points], inner)
        if stack:
            back = " ".join(f"L{inner.x(time):.1f} {inner.y(lower):.1f}" for time, lower, _ in reversed(points))
            flat = " ".join(f"L{inner.x(time):.1f} {inner.y(upper):.1f}" for time, _, upper in points)
            drawn.append(f'<path d="M{flat[1:]} {back} Z" fill="{colour}" fill-opacity="0.25"/>')
        drawn.append(f'<path class="data" d="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    for index, (legend, colour) in enumerate(zip(legends, PALETTE, strict=False)):
        x = frame.left + 14 + (index % columns) * frame.width / 2
        y = frame.top + frame.height - 16 * rows + 16 * (index // columns) + 4
        drawn.append(f'<rect x="{x:.1f}" y="{y - 6:.1f}" width="12" height="3" fill="{colour}"/>')
        drawn.append(text(x + 18, y, legend, 11))
    return "".join(drawn)


def state_timeline(panel: Mapping[str, Any], found: Sequence[Series], frame: Frame) -> str:
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    options = mapping["options"]
    inner = Frame(frame.left + 150, frame.top + 30, frame.width - 166, frame.height - 58, frame.start, frame.end)
    drawn, height = [times(inner)], inner.height / max(len(found), 1)
    for index, series in enumerate(found):
        top = inner.top + index * height
        drawn.append(text(inner.left - 8, top + height / 2 + 4, series.legend, 11, TEXT, "end"))
        for begin, end, value in intervals(series.points, frame.end):
            state = options[f"{value:g}"]
            x, width = inner.x(begin), inner.x(end) - inner.x(begin)
            drawn.append(
                f'<rect class="data" x="{x:.1f}" y="{top + 2:.1f}" width="{width:.1f}" height="{height - 4:.1f}" '
                f'fill="{NAMED.get(state["color"], state["color"])}" fill-opacity="0.7"/>'
            )
            if width > 7 * len(state["text"]):
                drawn.append(text(x + 5, top + height / 2 + 4, state["text"], 11, "#ffffff"))
    return "".join(drawn)


def intervals(points: Sequence[tuple[float, float]], end: float) -> Iterator[tuple[float, float, float]]:
    """Return begin, end and value of each time in which a series had the same value."""
    begin, current = points[0]
    for time, value in points[1:]:
        if value != current:
            yield begin, time, current
            begin, current = time, value
    yield begin, end, current


def heatmap(panel: Mapping[str, Any], found: Sequence[Series], frame: Frame) -> str:
    """The buckets of a histogram, which Prometheus counts cumulatively."""
    unit = panel["options"]["yAxis"]["unit"]
    buckets = sorted(found, key=lambda series: float(series.labels["le"]))
    inner = Frame(frame.left + 70, frame.top + 32, frame.width - 86, frame.height - 62, frame.start, frame.end)
    height, drawn = inner.height / len(buckets), [times(inner)]
    below: dict[float, float] = {}
    cells = []
    for index, series in enumerate(buckets):
        values = dict(series.points)
        cells += [(time, index, value - below.get(time, 0)) for time, value in values.items()]
        below = values
        bound = series.labels["le"]
        label = "∞" if bound == "+Inf" else number(float(bound), unit)
        middle = inner.top + inner.height - (index + 0.5) * height
        drawn.append(text(inner.left - 6, middle + 4, label, 11, FAINT, "end"))
    most = max(value for _, _, value in cells) or 1
    moments = sorted({time for time, _, _ in cells})
    step = min((after - before for before, after in itertools.pairwise(moments)), default=frame.end - frame.start)
    width = step / (frame.end - frame.start) * inner.width
    for time, index, value in cells:
        if value > 1e-9:
            y = inner.top + inner.height - (index + 1) * height
            drawn.append(
                f'<rect class="data" x="{inner.x(time) - width:.1f}" y="{y + 0.5:.1f}" width="{max(width - 1, 1):.1f}" '
                f'height="{height - 1:.1f}" fill="#ff9830" fill-opacity="{0.12 + 0.88 * math.sqrt(value / most):.2f}"/>'
            )
    return "".join(drawn)


KINDS = {"stat": stat, "timeseries": timeseries, "state-timeline": state_timeline, "heatmap": heatmap}


# --- A trace -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A span as it was exported."""

    id: str
    parent: str
    trace: str
    name: str
    start: int
    """Nanoseconds since the epoch."""
    end: int
    attributes: Mapping[str, str]
    failed: bool


def waterfall(spans: Sequence[Span], shown: Sequence[str]) -> str:
    """Return the spans of a trace as bars, in the order of their start, with these attributes."""
    ordered = sorted(spans, key=lambda span: span.start)
    depth = {"": -1}
    for span in ordered:
        depth[span.id] = depth.get(span.parent, -1) + 1
    start, end = min(span.start for span in spans), max(span.end for span in spans)
    left, top, width, height = 330.0, 64.0, 840.0, 58.0
    body = [text(16, 24, f"Trace {ordered[0].trace}: {(end - start) / 1e6:.1f} ms", 14, font_weight="600")]
    for part in range(5):
        x = left + width * part / 4
        body.append(f'<path d="M{x} {top - 8} V{top + height * len(ordered)}" stroke="{GRID}"/>')
        body.append(
            text(x, top - 12, f"{(end - start) / 1e6 * part / 4:.1f} ms", 11, FAINT, "middle" if part else "start")
        )
    for index, span in enumerate(ordered):
        y = top + index * height
        x = left + (span.start - start) / (end - start) * width
        long = max((span.end - span.start) / (end - start) * width, 2)
        colour = "#f2495c" if span.failed else PALETTE[2] if depth[span.id] else PALETTE[0]
        took = f"{(span.end - span.start) / 1e6:.1f} ms"
        listed = "  ".join(f"{name}={span.attributes[name]}" for name in shown if name in span.attributes)
        body.append(
            f'<g class="span"><title>{escape(span.name)}</title><desc>{escape(listed)}</desc>'
            f'<rect class="data" x="{x:.1f}" y="{y + 6:.1f}" width="{long:.1f}" height="20" rx="2" fill="{colour}"/>'
            + text(16 + 18 * depth[span.id], y + 21, span.name, 13)
            + (text(x + 8, y + 21, took, 12, PAGE) if long > 80 else text(x - 6, y + 21, took, 12, TEXT, "end"))
            + text(16 + 18 * depth[span.id], y + 42, listed, 11, FAINT)
            + "</g>"
        )
    return svg(WIDTH, top + height * len(ordered) + 12, "".join(body), f"Trace of {ordered[0].name}")


# --- A terminal ------------------------------------------------------------------------------------------------------

STYLE = re.compile(r"\x1b\[([\d;]*)m")
OTHER = re.compile(r"\x1b\[[\d;?]*[A-Za-ln-z]|\x1b[()][A-Z0-9]|\x1b\][^\x07]*\x07|\x1b[=>]")
COLOURS = {"31": "#f2495c", "32": "#73bf69", "33": "#f2cc0c", "34": "#5794f2", "35": "#b877d9", "36": "#6ed0e0"}
COLOURS |= {f"9{code[1]}": colour for code, colour in COLOURS.items()} | {"2": FAINT, "90": FAINT}


def screen(raw: str, columns: int) -> list[list[tuple[str, str]]]:
    """Return the lines that a terminal shows after this output, each as texts with their colours."""
    lines: list[list[tuple[str, str]]] = []
    for line in OTHER.sub("", raw).replace("\r\n", "\n").split("\n"):
        colour, cells = TEXT, list[tuple[str, str]]()
        for index, part in enumerate(STYLE.split(line.rsplit("\r", 1)[-1])):
            if index % 2:
                codes = [code for code in part.split(";") if code in COLOURS]
                colour = COLOURS[codes[-1]] if codes else TEXT
            else:
                cells += [(letter, colour) for letter in part]
        lines += [cells[at : at + columns] for at in range(0, max(len(cells), 1), columns)]
    return [[*merged(line)] for line in lines]


def merged(cells: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Join neighbours of the same colour."""
    run, colour = "", ""
    for letter, its in cells:
        if its != colour and run:
            yield run, colour
            run = ""
        run, colour = run + letter, its
    if run:
        yield run, colour


def terminal(raw: str, columns: int, title: str) -> str:
    """Return the picture of a terminal's output."""
    lines = screen(raw.rstrip(), columns)
    height, top = 17.5, 44.0
    lights = enumerate(("#f2495c", "#f2cc0c", "#73bf69"))
    body = [f'<circle cx="{22 + 20 * at}" cy="20" r="6" fill="{fill}"/>' for at, fill in lights]
    for index, line in enumerate(lines):
        spans = "".join(f'<tspan fill="{fill}">{escape(run)}</tspan>' for run, fill in line)
        body.append(
            f'<text x="16" y="{top + index * height:.1f}" font-size="13" xml:space="preserve" {MONO}>{spans}</text>'
        )
    return svg(columns * 7.85 + 32, top + len(lines) * height + 6, "".join(body), title)
