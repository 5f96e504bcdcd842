"""A `get_metrics` tool: the model reads how the tools did since the start, in a few typed numbers.

For dashboards and alerts there is `/metrics`; this summary leaves out what a conversation has no use for.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from .app import App
from .metrics import PrometheusMeter


class ToolSummary(BaseModel):
    """One tool since the server started. Quantiles are estimated from buckets; 10 means 10 seconds or more."""

    tool: str
    calls: dict[str, int] = Field(description="Ended calls by status: success, error or rejected")
    errors: dict[str, int] = Field(description="Failed calls by error type")
    mean_seconds: float | None
    p50_seconds: float | None
    p95_seconds: float | None


class MetricsSummary(BaseModel):
    """All tools that were called since the server started."""

    uptime_seconds: float
    active_requests: int = Field(description="Tool calls that run now, this one included")
    tools: list[ToolSummary]


def install(app: App) -> None:
    if not isinstance(app.meter, PrometheusMeter):
        app.notices.append("get_metrics is not registered: it reads the metrics, and ENABLE_METRICS is false")
        return
    meter = app.meter

    async def get_metrics() -> MetricsSummary:
        """How often each tool was called since the server started, how it ended, and how long it took."""
        return summary(meter, time.monotonic() - app.started_at)

    def register(server: MCPServer[Any]) -> None:
        server.tool(
            title="Metrics",
            annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
        )(get_metrics)

    app.tools.append(register)


def summary(meter: PrometheusMeter, uptime_seconds: float) -> MetricsSummary:
    """What `meter` counted of the tools."""
    values: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    for metric in meter.registry.collect():
        if metric.name.startswith(("mcp_tool_", "mcp_active_")):
            for sample in metric.samples:
                values[sample.name][tuple(sample.labels.values())] = sample.value
    calls = _by_tool(values["mcp_tool_calls_total"])
    errors = _by_tool(values["mcp_tool_errors_total"])
    buckets = _by_tool(values["mcp_tool_latency_seconds_bucket"])
    total = values["mcp_tool_latency_seconds_sum"]
    return MetricsSummary(
        uptime_seconds=round(uptime_seconds, 3),
        active_requests=int(values["mcp_active_requests"][()]),
        tools=[
            ToolSummary(
                tool=tool,
                calls=_counts(statuses),
                errors=_counts(errors.get(tool, {})),
                **_latency(buckets[tool], total[tool,]),
            )
            for tool, statuses in sorted(calls.items())
            if any(statuses.values())
        ],
    )


def _by_tool(samples: dict[tuple[str, ...], float]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (tool, label), value in samples.items():
        found[tool][label] = value
    return found


def _counts(samples: dict[str, float]) -> dict[str, int]:
    return {label: int(value) for label, value in samples.items() if value}


def _latency(buckets: dict[str, float], total: float) -> dict[str, float | None]:
    cumulative = [(float(bound), count) for bound, count in buckets.items()]
    calls = cumulative[-1][1]
    return {
        "mean_seconds": round(total / calls, 6) if calls else None,
        "p50_seconds": quantile(0.5, cumulative),
        "p95_seconds": quantile(0.95, cumulative),
    }


def quantile(share: float, buckets: list[tuple[float, float]]) -> float | None:
    """The value below which `share` of the observations lie, as Prometheus' `histogram_quantile` estimates it.

    `buckets` are upper bounds, the last one infinite, with the number of observations up to each. Within a bucket
    the estimate is linear; in the last one it is the highest finite bound. Without observations it is None.
    """
    rank = share * buckets[-1][1]
    if not rank:
        return None
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            break
        lower, below = bound, count
    return lower if math.isinf(bound) else round(lower + (bound - lower) * (rank - below) / (count - below), 6)
