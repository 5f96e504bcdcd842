"""Metrics: calls, upstream requests and readiness on /metrics."""

from typing import Any

from weather_station.production import meter, readiness_check
from weather_station.production.sdk import ProductionServer
from weather_station.production.testing import Server

from .support import sample, tools


def test_calls_are_counted_and_timed_by_tool_and_outcome() -> None:
    with Server(tools) as server:
        assert sample(server, "mcp_tool_calls_total", tool_name="echo", status="success") == 0
        server.call("echo", {"text": "hello"})
        server.call("crash")
        server.call("no-such-tool")
        assert sample(server, "mcp_tool_calls_total", tool_name="echo", status="success") == 1
        assert sample(server, "mcp_tool_calls_total", tool_name="crash", status="error") == 1
        assert sample(server, "mcp_tool_errors_total", tool_name="crash", error_type="RuntimeError") == 1
        assert sample(server, "mcp_tool_calls_total", tool_name="unknown", status="client_error") == 1
        assert sample(server, "mcp_tool_latency_seconds_count", tool_name="echo") == 1
        assert sample(server, "mcp_active_requests") == 0
        assert "no-such-tool" not in server.get("/metrics").text


def test_upstream_requests_and_readiness_have_metrics(api: Any) -> None:
    async def fail() -> None:
        raise OSError("refused")

    def register(server: ProductionServer) -> None:
        tools(server)
        readiness_check(server, "database", fail)
        meter(server).counter("orders_total", "Orders.", ("kind",))("express").inc(3)

    api.on("GET", "/ok")
    with Server(register, upstream_base_url=api.url) as server:
        server.call("fetch", {"path": "/ok"})
        host = api.url.removeprefix("http://")
        assert sample(server, "mcp_upstream_requests_total", host=host, method="GET", outcome="2xx") == 1
        assert sample(server, "mcp_upstream_latency_seconds_count", host=host) == 1
        assert sample(server, "mcp_ready") == 0
        assert sample(server, "orders_total", kind="express") == 3
        assert sample(server, "process_open_fds") or sample(server, "python_gc_collections_total") is not None


def test_metrics_can_have_a_port_of_their_own() -> None:
    with Server(tools, metrics_port=0) as server:
        assert sample(server, "mcp_build_info") == 1
        assert server.client.get("/metrics").status_code == 404
    with Server(tools, enable_metrics=False) as server:
        assert server.get("/metrics").status_code == 404
    with Server(tools, metrics_port=None) as server:
        assert server.client.get("/metrics").headers["content-type"].startswith("text/plain")
