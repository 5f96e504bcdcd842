"""`get_metrics` tells a model how the tools did, in a few numbers that agree with what happened."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest

from weather_station.production import metrics
from weather_station.production.registry import App, ProductionServer
from weather_station.production.request import Call
from weather_station.production.config import about
from weather_station.production.observe.metrics_tool import (
    ToolSummary,
    quantile,
    summary,
)

from harness import config, result_of, text_of

Serve = Callable[..., Any]


def tools(server: ProductionServer) -> None:
    @server.tool()
    async def works() -> str:
        return "done"

    @server.tool()
    async def breaks() -> str:
        raise LookupError("broken")


def test_the_summary_says_what_happened(serve: Serve) -> None:
    with serve(tools) as server:
        for tool in ("works", "works", "breaks", "works", "no such tool"):
            server.call(tool)
        result = server.call("get_metrics")
    summary = result["structuredContent"]
    assert summary["active_requests"] == 1
    assert summary["uptime_seconds"] > 0
    by_tool = {tool.pop("tool"): tool for tool in summary["tools"]}
    assert {name: (tool["calls"], tool["errors"]) for name, tool in by_tool.items()} == {
        "works": ({"success": 3}, {}),
        "breaks": ({"error": 1}, {"LookupError": 1}),
        "unknown": ({"error": 1}, {"ToolError": 1}),
    }
    assert 0 < by_tool["works"]["mean_seconds"] < 1
    assert 0 < by_tool["works"]["p50_seconds"] <= by_tool["works"]["p95_seconds"] <= 0.5
    assert "# HELP" not in str(result)


async def test_a_tool_whose_calls_were_all_refused_has_no_latency() -> None:
    app = App(config(), about())
    metrics.install(app)
    assert isinstance(app.meter, metrics.PrometheusMeter)

    async def refuse(call: Call) -> Any:
        request.status = "rejected"

    await app.links["metrics"](Call("tool", "tool", {}, cast(Any, None), "client", "id"), refuse)
    (found,) = summary(app.meter, 1.0).tools
    assert found == ToolSummary(
        tool="tool", calls={"rejected": 1}, errors={}, mean_seconds=None, p50_seconds=None, p95_seconds=None
    )


def test_the_tool_is_announced_as_reading_only_and_with_its_types(serve: Serve) -> None:
    with serve() as server:
        answer = server.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    (tool,) = [tool for tool in result_of(answer)["tools"] if tool["name"] == "get_metrics"]
    assert tool["annotations"]["readOnlyHint"] is True
    assert "tools" in tool["outputSchema"]["properties"]


def test_without_metrics_the_tool_is_absent_and_that_is_said(serve: Serve) -> None:
    with serve(enable_metrics=False) as server:
        assert any("get_metrics" in notice for notice in server.registry.notices)
        assert "Unknown tool" in text_of(server.call("get_metrics"))


BOUNDS = (*metrics.LATENCY_BUCKETS, math.inf)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize(
    "seconds",
    [
        [0.001],
        [0.01, 0.05],
        [0.02, 0.02, 0.02, 7.5],
        [15.0, 20.0],
        [0.0001 * 1.3**n for n in range(47)],
        [9.0] * 19 + [0.2],
    ],
)
def test_an_estimated_quantile_lies_in_the_bucket_of_the_true_one(seconds: list[float], share: float) -> None:
    found = quantile(share, [(bound, sum(value <= bound for value in seconds)) for bound in BOUNDS])
    true = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    upper = next(bound for bound in BOUNDS if true <= bound)
    lower = max((bound for bound in BOUNDS if bound < upper), default=0.0)
    assert found is not None
    assert lower <= found <= upper
    assert found <= 10


def test_a_quantile_is_linear_within_its_bucket_and_none_without_observations() -> None:
    assert quantile(0.5, [(1.0, 0), (2.0, 4), (math.inf, 4)]) == 1.5
    assert quantile(0.95, [(1.0, 0), (2.0, 0), (math.inf, 4)]) == 2.0
    assert quantile(0.5, [(1.0, 0), (math.inf, 0)]) is None
