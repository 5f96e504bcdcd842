"""`/metrics` shows every tool call with the promised names, labels and buckets, in what Prometheus reads."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx2
import pytest
from mcp import Client
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from weather_station.production import readiness_check
from weather_station.production.registry import App, ProductionServer
from weather_station.production.request import Call, Result
from weather_station.production.config import about
from weather_station.production.features import FEATURES
from weather_station.production.observe.metrics import (
    LATENCY_BUCKETS,
    MAX_ERROR_TYPES,
    PrometheusMeter,
    install,
)
from weather_station.server import create_server

from harness import Running, config, http_process, stdio_process, wait_for

Serve = Callable[..., Any]
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

PROMISED = {
    "mcp_tool_calls_total": {"tool_name", "status"},
    "mcp_tool_latency_seconds_bucket": {"tool_name", "le"},
    "mcp_tool_latency_seconds_count": {"tool_name"},
    "mcp_tool_latency_seconds_sum": {"tool_name"},
    "mcp_tool_errors_total": {"tool_name", "error_type"},
    "mcp_active_requests": set(),
    "mcp_ready": set(),
    "mcp_build_info": {"server_name", "version", "python_version"},
}
"""Every series of a tool call, with its labels; dashboards and alerts count on them."""

OF_THE_CLIENT = {"mcp_upstream_requests_total", "mcp_upstream_latency_seconds"}
OF_FEATURES = {
    "rate_limit": {"mcp_rate_limit_rejections_total"},
    "rate_limit_redis": {"mcp_rate_limit_rejections_total", "mcp_rate_limit_store_failures_total"},
    "retry": {"mcp_upstream_retries_total"},
    "circuit_breaker": {"mcp_circuit_state", "mcp_circuit_transitions_total"},
}
"""What other features add, by their module, where the project has them."""


def samples(text: str) -> Samples:
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse_text(text) for s in family.samples}


def scrape(server: Running) -> Samples:
    answer = server.client.get(f"{server.base}/metrics")
    assert answer.status_code == 200
    return samples(answer.text)


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tools(server: ProductionServer) -> None:
    @server.tool()
    async def works() -> str:
        return "done"

    @server.tool()
    async def breaks() -> str:
        raise LookupError("broken")

    @server.tool()
    async def complains() -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text="no")], is_error=True)

    @server.tool()
    async def refuses_the_protocol() -> str:
        raise MCPError(code=-32000, message="no")

    @server.tool()
    async def counts(number: int) -> int:
        return number


def test_every_outcome_is_counted_under_its_tool(serve: Serve) -> None:
    with serve(tools) as server:
        for _ in range(3):
            server.call("works")
        server.call("breaks")
        server.call("complains")
        server.post(server.request("refuses_the_protocol"))
        server.call("counts", {"number": "many"})
        server.call("no such tool")
        server.call("another that does not exist")
        found = scrape(server)
    calls = {
        tool: [value(found, "mcp_tool_calls_total", tool_name=tool, status=s) for s in ("success", "error", "rejected")]
        for tool in ("works", "breaks", "complains", "refuses_the_protocol", "counts", "unknown")
    }
    assert calls == {
        "works": [3, 0, 0],
        "breaks": [0, 1, 0],
        "complains": [0, 1, 0],
        "refuses_the_protocol": [0, 1, 0],
        "counts": [0, 1, 0],
        "unknown": [0, 2, 0],
    }
    errors = {labels for name, labels in found if name == "mcp_tool_errors_total"}
    assert errors == {
        frozenset({("tool_name", tool), ("error_type", error)})
        for tool, error in (
            ("breaks", "LookupError"),
            ("complains", "ToolError"),
            ("refuses_the_protocol", "MCPError"),
            ("counts", "ValidationError"),
            ("unknown", "ToolError"),
        )
    }


def test_the_names_labels_and_buckets_are_the_promised_ones(serve: Serve) -> None:
    with serve() as server:
        server.call("no such tool")
        found = scrape(server)
    labels: dict[str, set[str]] = {}
    for name, pairs in found:
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    assert {name: labels.get(name) for name in PROMISED} == PROMISED
    bounds = [dict(pairs)["le"] for name, pairs in found if name.endswith("latency_seconds_bucket")]
    assert set(bounds) == {"0.01", "0.05", "0.1", "0.5", "1.0", "5.0", "10.0", "+Inf"}
    assert LATENCY_BUCKETS == (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
    assert {"process_cpu_seconds_total", "python_info", "python_gc_objects_collected_total"} <= labels.keys() or (
        sys.platform != "linux"
    )
    assert not [name for name in labels if name.endswith("_created")]


def test_the_features_of_this_project_show_their_series(serve: Serve) -> None:
    modules = {feature.__module__.rpartition(".")[2] for feature in FEATURES.values()}
    expected = OF_THE_CLIENT.union(*(names for module, names in OF_FEATURES.items() if module in modules))
    with serve() as server:
        text = server.client.get(f"{server.base}/metrics").text
    declared = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert expected <= declared


def test_a_registered_tool_shows_with_zeros_before_its_first_call(serve: Serve) -> None:
    with serve(tools) as server:
        found = scrape(server)
    for status in ("success", "error", "rejected"):
        assert value(found, "mcp_tool_calls_total", tool_name="works", status=status) == 0
    assert value(found, "mcp_tool_latency_seconds_count", tool_name="works") == 0
    assert value(found, "mcp_active_requests") == 0


def test_a_scrape_sees_whether_the_server_is_ready(serve: Serve) -> None:
    broken = False

    async def database() -> None:
        if broken:
            raise ConnectionError("no route to the database")

    with serve(lambda server: readiness_check(server, "database", database)) as server:
        assert value(scrape(server), "mcp_ready") == 1
        broken = True
        assert value(scrape(server), "mcp_ready") == 0, "no probe has asked"
        broken = False
        assert value(scrape(server), "mcp_ready") == 1
        server.registry.draining = True
        assert value(scrape(server), "mcp_ready") == 0
        server.registry.draining = False


async def test_running_calls_show_and_their_duration_is_measured(serve: Serve, http: httpx2.AsyncClient) -> None:
    running = threading.Barrier(4)

    def register(server: ProductionServer) -> None:
        @server.tool()
        async def waits() -> str:
            await asyncio.to_thread(running.wait)
            await asyncio.sleep(0.06)
            return "done"

    with serve(register) as server:
        calls = [asyncio.create_task(server.acall(http, "waits")) for _ in range(3)]
        await asyncio.to_thread(wait_for, lambda: running.n_waiting == 3)
        assert value(await asyncio.to_thread(scrape, server), "mcp_active_requests") == 3
        await asyncio.to_thread(running.wait)
        await asyncio.gather(*calls)
        found = await asyncio.to_thread(scrape, server)
    assert value(found, "mcp_active_requests") == 0
    assert value(found, "mcp_tool_latency_seconds_count", tool_name="waits") == 3
    assert value(found, "mcp_tool_latency_seconds_bucket", tool_name="waits", le="0.05") == 0
    assert value(found, "mcp_tool_latency_seconds_bucket", tool_name="waits", le="10.0") == 3


def test_a_tool_that_takes_too_long_counts_as_an_error(serve: Serve) -> None:
    def register(server: ProductionServer) -> None:
        @server.tool()
        async def endless(ctx: Context[Any, Any]) -> str:
            await asyncio.Event().wait()
            return "never"

    with serve(register, tool_timeout_seconds=0.05) as server:
        server.call("endless")
        found = scrape(server)
    assert value(found, "mcp_tool_errors_total", tool_name="endless", error_type="ToolTimeout") == 1


def through_the_link() -> tuple[App, PrometheusMeter]:
    app = App(config(), about())
    install(app)
    assert isinstance(app.meter, PrometheusMeter)
    return app, app.meter


def new_call() -> Call:
    return Call("tool", "tool", {}, cast(Context[Any, Any], None), "client", "id")


async def test_a_refused_call_is_neither_an_error_nor_in_the_latency() -> None:
    app, meter = through_the_link()

    async def refuse(call: Call) -> Any:
        request.status, request.error_type = "rejected", "RateLimited"

    await app.links["metrics"](new_call(), refuse)
    read = meter.registry.get_sample_value
    assert read("mcp_tool_calls_total", {"tool_name": "tool", "status": "rejected"}) == 1
    assert read("mcp_tool_errors_total", {"tool_name": "tool", "error_type": "RateLimited"}) is None
    assert read("mcp_tool_latency_seconds_count", {"tool_name": "tool"}) == 0


async def test_a_call_that_a_stopping_server_refuses_is_counted_so() -> None:
    server = create_server(config())
    server.registry.draining = True
    async with Client(server) as client:
        await client.call_tool("health_check")
    assert isinstance(server.registry.meter, PrometheusMeter)
    read = server.registry.meter.registry.get_sample_value
    assert read("mcp_tool_calls_total", {"tool_name": "health_check", "status": "rejected"}) == 1
    assert read("mcp_active_requests") == 0


async def test_a_cancelled_call_is_counted_and_runs_no_longer() -> None:
    app, meter = through_the_link()

    async def endless(call: Call) -> Any:
        await asyncio.Event().wait()

    async def inner(call: Call) -> Result:
        return await app.links["errors"](call, endless)

    async def outer() -> Result:
        return await app.links["metrics"](new_call(), inner)

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    assert meter.registry.get_sample_value("mcp_active_requests") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    read = meter.registry.get_sample_value
    assert read("mcp_active_requests") == 0
    assert read("mcp_tool_errors_total", {"tool_name": "tool", "error_type": "Cancelled"}) == 1


async def test_a_tool_has_a_bounded_number_of_error_types() -> None:
    app, meter = through_the_link()

    numbers = iter(range(10 * MAX_ERROR_TYPES))

    async def fail(call: Call) -> Any:
        request.status, request.error_type = "error", f"Error{next(numbers)}"

    for _ in range(10 * MAX_ERROR_TYPES):
        await app.links["metrics"](new_call(), fail)
    types = {
        sample.labels["error_type"]: sample.value
        for family in meter.collect()
        for sample in family.samples
        if sample.name == "mcp_tool_errors_total"
    }
    assert len(types) == MAX_ERROR_TYPES + 1
    assert types["other"] == 9 * MAX_ERROR_TYPES


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
    ],
)
def test_the_content_type_is_that_of_the_format_asked_for(serve: Serve, accept: str | None, content_type: str) -> None:
    with serve() as server:
        server.call("health_check")
        answer = server.client.get(f"{server.base}/metrics", headers={"accept": accept} if accept else {})
    assert answer.headers.get_list("content-type") == [content_type]
    if "openmetrics" in content_type:
        families = cast(Iterator[Metric], parse_openmetrics(answer.text))  # type: ignore[no-untyped-call]  # library's
        assert "mcp_tool_calls" in {family.name for family in families}
    else:
        assert samples(answer.text)


def test_metrics_need_no_credentials_and_no_particular_host(serve: Serve) -> None:
    with serve() as server:
        assert server.client.get(f"{server.base}/metrics", headers={"host": "10.1.2.3:8000"}).status_code == 200


def test_two_servers_in_one_process_count_apart(serve: Serve) -> None:
    with serve(tools) as one, serve(tools) as other:
        one.call("works")
        counts = [value(scrape(s), "mcp_tool_calls_total", tool_name="works", status="success") for s in (one, other)]
    assert counts == [1, 0]


def test_another_port_gets_a_listener_that_ends_with_the_server(serve: Serve) -> None:
    port = free_port()
    with serve(tools, port=8000, metrics_port=port) as server:
        server.call("works")
        assert server.client.get(f"{server.base}/metrics").status_code == 404
        own = f"http://127.0.0.1:{port}"
        found = samples(httpx2.get(f"{own}/metrics").text)
        assert value(found, "mcp_tool_calls_total", tool_name="works", status="success") == 1
        assert httpx2.get(f"{own}/mcp").status_code == 404
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{own}/metrics")


def test_the_servers_own_port_gets_a_route(serve: Serve) -> None:
    with serve(port=8000, metrics_port=8000) as server:
        assert value(scrape(server), "mcp_build_info") is None
        assert value(scrape(server), "mcp_active_requests") == 0


def test_stdio_has_metrics_on_a_port_that_is_asked_for() -> None:
    port = free_port()

    def answers() -> bool:
        try:
            return "mcp_build_info" in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        except httpx2.TransportError:
            return False

    with stdio_process(METRICS_PORT=port) as server:
        wait_for(answers, 60)
        server.close_stdin()
        assert server.status() == 0


def test_a_port_in_use_stops_the_start_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with stdio_process(METRICS_PORT=port) as server:
            assert server.status(60) == 2
            (complaint,) = server.log().splitlines()
    assert f"METRICS_PORT: cannot listen on 127.0.0.1:{port}" in complaint


def test_a_process_drains_with_its_metrics_listener() -> None:
    port = free_port()
    with http_process(METRICS_PORT=port) as server:
        assert httpx2.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        assert httpx2.get(f"{server.base}/metrics").status_code == 404
        if sys.platform != "win32":  # there a process can only be killed
            server.signal()
            assert server.status() == 0
