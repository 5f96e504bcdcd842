"""The `get_metrics` tool: calls, errors and mean duration of each tool, for the model."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations
from prometheus_client.samples import Sample
from pydantic import BaseModel, Field

from ..registry import Registry
from .metrics import STATUSES, PrometheusMeter


class ToolMetrics(BaseModel):
    """One tool since the server started."""

    tool: str
    calls: dict[str, int] = Field(description="Finished calls by status: " + ", ".join(STATUSES))
    errors: dict[str, int] = Field(description="Failed calls by error type")
    mean_seconds: float | None


class Metrics(BaseModel):
    """All tools that were called since the server started."""

    uptime_seconds: float
    active_requests: int = Field(description="Running requests of all methods, this one included")
    tools: list[ToolMetrics]
    prometheus: str | None = Field(default=None, description="All metrics in the Prometheus text format, if requested")


def install(registry: Registry) -> None:
    meter = registry.meter
    if not isinstance(meter, PrometheusMeter):
        registry.notices.append("get_metrics is not registered: it reads the metrics, and ENABLE_METRICS is false")
        return

    async def get_metrics(
        include_prometheus: Annotated[bool, Field(description="Also return all metrics as text")] = False,
    ) -> Metrics:
        """Calls by status, errors by type and mean duration of each tool since the server started."""
        metrics = summarize(meter.samples(), time.monotonic() - registry.started_at)
        metrics.prometheus = meter.text() if include_prometheus else None
        return metrics

    def register(server: MCPServer[Any]) -> None:
        server.tool(
            title="Metrics",
            annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
        )(get_metrics)

    registry.tools.register.append(register)


def summarize(samples: Iterable[Sample], uptime_seconds: float) -> Metrics:
    """Return the totals of the tools that were called."""
    calls: defaultdict[str, dict[str, int]] = defaultdict(dict)
    errors: defaultdict[str, dict[str, int]] = defaultdict(dict)
    count: dict[str, float] = {}
    total: dict[str, float] = {}
    active = 0
    for name, labels, value, *_ in samples:
        tool = labels.get("tool_name", "")
        if name == "mcp_active_requests":
            active = int(value)
        elif name == "mcp_tool_calls_total" and value:
            calls[tool][labels["status"]] = int(value)
        elif name == "mcp_tool_errors_total" and value:
            errors[tool][labels["error_type"]] = int(value)
        elif name == "mcp_tool_latency_seconds_count":
            count[tool] = value
        elif name == "mcp_tool_latency_seconds_sum":
            total[tool] = value
    return Metrics(
        uptime_seconds=round(uptime_seconds, 3),
        active_requests=active,
        tools=[
            ToolMetrics(
                tool=tool,
                calls=statuses,
                errors=errors[tool],
                mean_seconds=round(total[tool] / count[tool], 6) if count.get(tool) else None,
            )
            for tool, statuses in sorted(calls.items())
        ],
    )
