"""Builders for the kinds of panels and queries that the dashboards use, all with the same look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import common as common_builder
from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog import builder as cogbuilder
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models import prometheus as prometheus_model

PROMETHEUS = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
JAEGER = common.DataSourceRef(type_val="jaeger", uid="jaeger")
WIDTH = 24
HEIGHT = 8

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | statetimeline.Panel | table.Panel
AnyPanel = TypeVar("AnyPanel", timeseries.Panel, stat.Panel, heatmap.Panel, statetimeline.Panel, table.Panel)


@dataclass(frozen=True)
class Query:
    """A PromQL expression and the legend of its series."""

    expression: str
    legend: str = ""


def series(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    warn_above: float | None = None,
    width: int = WIDTH // 2,
) -> timeseries.Panel:
    """Return a panel with lines over time; `warn_above` adds the threshold of an alert."""
    panel = _described(timeseries.Panel(), title, description, width).unit(unit).min(0).datasource(PROMETHEUS)
    panel.legend(
        common_builder.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "max", "lastNotNull"])
    )
    panel.tooltip(
        common_builder.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)
    )
    panel.fill_opacity(25 if stacked else 8).line_width(1).show_points(common.VisibilityMode.NEVER)
    if stacked:
        panel.stacking(common_builder.StackingConfig().mode(common.StackingMode.NORMAL))
    if warn_above is not None:
        panel.thresholds(_thresholds(warn_above))
        panel.thresholds_style(common_builder.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED))
    return _with_queries(panel, queries)


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    warn_above: float | None = None,
    bad_below: float | None = None,
) -> stat.Panel:
    """Return a panel with the current value, red where an alert would fire."""
    panel = _described(stat.Panel(), title, description, WIDTH // 6).unit(unit).height(4).datasource(PROMETHEUS)
    panel.reduce_options(common_builder.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(common.BigValueGraphMode.AREA).color_mode(common.BigValueColorMode.VALUE)
    if warn_above is not None:
        panel.thresholds(_thresholds(warn_above))
    elif bad_below is not None:
        panel.thresholds(_steps((None, "red"), (bad_below, "green")))
    else:
        panel.thresholds(_steps((None, "blue")))
    return _with_queries(panel, (query,))


def label(title: str, description: str, query: Query) -> stat.Panel:
    """Return a panel with the value of a label, such as a version."""
    panel = number(title, description, "none", query)
    return panel.text_mode(common.BigValueTextMode.NAME).graph_mode(common.BigValueGraphMode.NONE)


def heat(title: str, description: str, unit: str, query: Query, *, repeat: str | None = None) -> heatmap.Panel:
    """Return a heat map of the buckets of a histogram over time."""
    panel = _described(heatmap.Panel(), title, description, WIDTH // 2).datasource(PROMETHEUS)
    panel.calculate(False).show_value(common.VisibilityMode.NEVER).cell_gap(1)
    panel.y_axis(heatmap.YAxisConfig().unit(unit))
    if repeat:
        panel.repeat(repeat).max_per_row(3)
    return panel.with_target(_target(query, "A").format(prometheus_model.PromQueryFormat.HEATMAP))


def states(title: str, description: str, query: Query, names: dict[str, tuple[str, str]]) -> statetimeline.Panel:
    """Return a timeline of states; `names` has a text and a colour for each value."""
    options = {value: dashboard.ValueMappingResult(text=text, color=color) for value, (text, color) in names.items()}
    panel = _described(statetimeline.Panel(), title, description, WIDTH).datasource(PROMETHEUS)
    panel.mappings([dashboard.ValueMap(options=options)])
    return _with_queries(panel.merge_values(True), (query,))


@dataclass
class TraceSearch(variants.Dataquery):
    """A search with the Jaeger data source, for which the SDK has no model."""

    service: str
    options: dict[str, str | int]

    def to_json(self) -> dict[str, object]:
        return {
            "datasource": JAEGER,
            "queryType": "search",
            "refId": "A",
            "service": self.service,
            **self.options,
        }


class _TraceSearchBuilder(cogbuilder.Builder[variants.Dataquery]):
    def __init__(self, search: TraceSearch) -> None:
        self._search = search

    def build(self) -> variants.Dataquery:
        return self._search


def traces(title: str, description: str, **options: str | int) -> table.Panel:
    """Return a table of traces of the selected job, with links to Jaeger."""
    panel = _described(table.Panel(), title, description, WIDTH).datasource(JAEGER)
    return panel.with_target(_TraceSearchBuilder(TraceSearch("$job", options)))


def _described(panel: AnyPanel, title: str, description: str, width: int) -> AnyPanel:
    panel.title(title).description(description).span(width).height(HEIGHT)
    return panel


def _with_queries(panel: AnyPanel, queries: tuple[Query, ...]) -> AnyPanel:
    for name, query in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(_target(query, name))
    return panel


def _target(query: Query, name: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expression)
        .legend_format(query.legend or "__auto")
        .ref_id(name)
        .datasource(PROMETHEUS)
        .editor_mode(prometheus_model.QueryEditorMode.CODE)
        .range()
    )


def _thresholds(warn_above: float) -> dashboard_builder.ThresholdsConfig:
    return _steps((None, "green"), (warn_above, "red"))


def _steps(*steps: tuple[float | None, str]) -> dashboard_builder.ThresholdsConfig:
    return (
        dashboard_builder.ThresholdsConfig()
        .mode(dashboard.ThresholdsMode.ABSOLUTE)
        .steps([dashboard.Threshold(value=value, color=color) for value, color in steps])
    )


def variable(
    name: str, title: str, query: str, description: str, *, multiple: bool = True
) -> dashboard_builder.QueryVariable:
    """Return a choice among the values of a label: all of them at first, or exactly one unless `multiple`."""
    choice = (
        dashboard_builder.QueryVariable(name)
        .label(title)
        .description(description)
        .query(query)
        .datasource(PROMETHEUS)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(multiple)
        .include_all(multiple)
    )
    if multiple:
        everything: Any = ["$__all"]
        choice.all_value(".+").current(dashboard.VariableOption(selected=True, text=["All"], value=everything))
    return choice
