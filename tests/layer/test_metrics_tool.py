"""The `get_metrics` tool: how often each tool was called, how the calls ended and how long they took."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context
from prometheus_client.samples import Sample

from harness import Metrics, Serve, message, result_of, text_of
from weather_station.production.observe.metrics_tool import ToolMetrics, summarize
from weather_station.production.sdk import ProductionServer


def tools(server: ProductionServer) -> None:
    @server.tool()
    async def works() -> str:
        return "done"

    @server.tool()
    async def breaks(ctx: Context[Any, Any]) -> str:
        raise LookupError("broken")


def test_the_tool_reports_calls_errors_and_mean_durations(serve: Serve) -> None:
    with serve(tools) as server:
        for tool in ("works", "works", "breaks", "works", "no such tool"):
            server.call(tool)
        result = server.call("get_metrics")
    metrics = result["structuredContent"]
    assert metrics["active_requests"] == 1
    assert metrics["uptime_seconds"] > 0
    by_tool = {tool.pop("tool"): tool for tool in metrics["tools"]}
    assert {name: (tool["calls"], tool["errors"]) for name, tool in by_tool.items()} == {
        "works": ({"success": 3}, {}),
        "breaks": ({"error": 1}, {"LookupError": 1}),
        "unknown": ({"client_error": 1}, {"UnknownTool": 1}),
    }
    assert by_tool["works"]["mean_seconds"] > 0
    assert by_tool["works"].keys() == {"calls", "errors", "mean_seconds"}
    assert metrics["prometheus"] is None


def test_the_tool_returns_the_prometheus_text_if_asked_for(serve: Serve) -> None:
    with serve(tools) as server:
        server.call("works")
        result = server.call("get_metrics", {"include_prometheus": True})
    metrics = Metrics(result["structuredContent"]["prometheus"])
    assert metrics.value("mcp_tool_calls_total", tool_name="works", status="success") == 1


def test_a_tool_whose_calls_were_all_rejected_has_no_mean_duration() -> None:
    tool = {"tool_name": "tool"}
    samples = [
        Sample("mcp_tool_calls_total", tool | {"status": "rejected"}, 1.0),
        Sample("mcp_tool_latency_seconds_count", tool, 0.0),
        Sample("mcp_tool_latency_seconds_sum", tool, 0.0),
    ]
    (metrics,) = summarize(samples, 1.0).tools
    assert metrics == ToolMetrics(tool="tool", calls={"rejected": 1}, errors={}, mean_seconds=None)


def test_the_mean_is_the_total_duration_divided_by_the_number_of_calls() -> None:
    tool = {"tool_name": "tool"}
    samples = [
        Sample("mcp_tool_calls_total", tool | {"status": "success"}, 3.0),
        Sample("mcp_tool_calls_total", tool | {"status": "error"}, 1.0),
        Sample("mcp_tool_errors_total", tool | {"error_type": "LookupError"}, 1.0),
        Sample("mcp_tool_latency_seconds_count", tool, 4.0),
        Sample("mcp_tool_latency_seconds_sum", tool, 2.0),
    ]
    (metrics,) = summarize(samples, 1.0).tools
    assert metrics == ToolMetrics(
        tool="tool", calls={"success": 3, "error": 1}, errors={"LookupError": 1}, mean_seconds=0.5
    )


def test_the_tool_is_announced_as_read_only_and_with_its_output_schema(serve: Serve) -> None:
    with serve() as server:
        response = server.post(message("tools/list"))
    (tool,) = [tool for tool in result_of(response)["tools"] if tool["name"] == "get_metrics"]
    assert tool["annotations"]["readOnlyHint"] is True
    assert "tools" in tool["outputSchema"]["properties"]


def test_without_metrics_the_tool_is_absent_with_a_notice(serve: Serve) -> None:
    with serve(enable_metrics=False) as server:
        assert any("get_metrics" in notice for notice in server.registry.notices)
        assert "Unknown tool" in text_of(server.call("get_metrics"))
