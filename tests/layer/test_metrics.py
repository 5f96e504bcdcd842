"""Metrics: `/metrics` shows every tool call under the documented names, labels and buckets."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from math import inf, nan
from typing import Any, Literal

import httpx2
import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from harness import (
    HEADERS,
    INITIALIZE,
    NO_TOOLS,
    Metrics,
    Serve,
    command,
    config,
    http_process,
    message,
    new_request,
    started,
    stdio_process,
    wait_for,
)
from held import open_session
from weather_station.production import readiness_check
from weather_station.production.config import about
from weather_station.production.features import FEATURES
from weather_station.production.inbound import pipeline
from weather_station.production.observe import exposition
from weather_station.production.observe.metrics import (
    LATENCY_BUCKETS,
    MAX_ERROR_TYPES,
    PrometheusMeter,
    install,
)
from weather_station.production.registry import Registry
from weather_station.production.request import MCPRequest, Result, error_result, reject
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

OPERATION = {"mcp_method_name", "gen_ai_tool_name", "gen_ai_prompt_name", "mcp_resource_template", "error_type"}
DOCUMENTED: dict[str, set[str]] = {
    "mcp_tool_calls_total": {"tool_name", "status"},
    "mcp_tool_latency_seconds_bucket": {"tool_name", "le"},
    "mcp_tool_latency_seconds_count": {"tool_name"},
    "mcp_tool_latency_seconds_sum": {"tool_name"},
    "mcp_tool_errors_total": {"tool_name", "error_type"},
    "mcp_server_operation_duration_seconds_bucket": {*OPERATION, "le"},
    "mcp_server_operation_duration_seconds_count": OPERATION,
    "mcp_server_operation_duration_seconds_sum": OPERATION,
    "mcp_active_requests": set(),
    "mcp_ready": set(),
    "mcp_build_info": {"server_name", "version", "python_version"},
}
"""Every series of a tool call with its labels, which dashboards and alerts use."""

OF_THE_UPSTREAM = {"mcp_upstream_requests_total", "mcp_upstream_latency_seconds"}
OF_FEATURES = {
    "rate_limit": {"mcp_rate_limit_rejections_total"},
    "rate_limit_redis": {"mcp_rate_limit_rejections_total", "mcp_rate_limit_store_failures_total"},
    "retry": {"mcp_upstream_retries_total"},
    "circuit_breaker": {"mcp_circuit_state", "mcp_circuit_transitions_total"},
}
"""The series of other features by their module."""

STATUSES = ("success", "input_required", "client_error", "rejected", "error")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
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


def test_every_call_is_counted_by_tool_and_status(serve: Serve) -> None:
    with serve(tools) as server:
        for _ in range(3):
            server.call("works")
        server.call("breaks")
        server.call("complains")
        server.post(server.request("refuses_the_protocol"))
        server.call("counts", {"number": "many"})
        server.call("no such tool")
        server.call("another that does not exist")
        metrics = server.metrics()
    calls = {
        tool: [metrics.value("mcp_tool_calls_total", tool_name=tool, status=status) for status in STATUSES]
        for tool in ("works", "breaks", "complains", "refuses_the_protocol", "counts", "unknown")
    }
    assert calls == {
        "works": [3, 0, 0, 0, 0],
        "breaks": [0, 0, 0, 0, 1],
        "complains": [0, 0, 1, 0, 0],
        "refuses_the_protocol": [0, 0, 1, 0, 0],
        "counts": [0, 0, 1, 0, 0],
        "unknown": [0, 0, 2, 0, 0],
    }
    assert metrics.series("mcp_tool_errors_total").keys() == {
        frozenset({("tool_name", tool), ("error_type", error)})
        for tool, error in (
            ("breaks", "LookupError"),
            ("complains", "ToolError"),
            ("refuses_the_protocol", "MCPError"),
            ("counts", "InvalidArguments"),
            ("unknown", "UnknownTool"),
        )
    }


def test_the_names_labels_and_buckets_are_the_documented_ones(serve: Serve) -> None:
    with serve() as server:
        server.call("no such tool")
        metrics = server.metrics()
    labels: dict[str, set[str]] = {}
    for name, pairs in metrics.samples:
        labels.setdefault(name, set()).update(label for label, _ in pairs)
    assert {name: labels.get(name) for name in DOCUMENTED} == DOCUMENTED
    bounds = [dict(pairs)["le"] for name, pairs in metrics.samples if name.endswith("latency_seconds_bucket")]
    assert set(bounds) == {"0.01", "0.05", "0.1", "0.5", "1.0", "5.0", "10.0", "+Inf"}
    assert {"process_cpu_seconds_total", "python_info", "python_gc_objects_collected_total"} <= labels.keys() or (
        sys.platform != "linux"
    )
    assert not [name for name in labels if name.endswith("_created")]


def test_the_features_of_this_project_show_their_series(serve: Serve) -> None:
    modules = {feature.__module__.rpartition(".")[2] for feature in FEATURES.values()}
    expected = OF_THE_UPSTREAM.union(*(names for module, names in OF_FEATURES.items() if module in modules))
    with serve() as server:
        lines = server.metrics().text.splitlines()
    assert expected <= {line.split()[2] for line in lines if line.startswith("# TYPE ")}


def test_a_registered_tool_shows_with_zeros_before_its_first_call(serve: Serve) -> None:
    with serve(tools) as server:
        metrics = server.metrics()
    for status in STATUSES:
        assert metrics.value("mcp_tool_calls_total", tool_name="works", status=status) == 0
    assert metrics.value("mcp_tool_latency_seconds_count", tool_name="works") == 0
    assert metrics.value("mcp_active_requests") == 0


SESSIONS = "mcp_server_session_duration_seconds_count"


def test_the_duration_of_a_session_is_measured_when_it_ends(serve: Serve) -> None:
    with serve(session_mode="stateful") as server:
        assert server.metrics().value(SESSIONS) == 0
        session = open_session(server.url)
        assert server.post(INITIALIZE, **session).status_code == 200
        assert server.metrics().value(SESSIONS) == 0
        server.client.request("DELETE", server.url, headers=HEADERS | session)
        wait_for(lambda: server.metrics().value(SESSIONS) == 1)


def test_a_server_without_sessions_does_not_measure_them(serve: Serve) -> None:
    with serve() as server:
        assert server.post(INITIALIZE).status_code == 200
        assert server.metrics().value(SESSIONS) is None


def test_what_clients_write_is_no_label(serve: Serve) -> None:
    with serve(tools) as server:
        for number in range(3):
            name = f"chosen by a visitor {number}"
            for method, params in (
                ("tools/call", {"name": name}),
                ("prompts/get", {"name": name}),
                ("resources/read", {"uri": f"visitor://{number}"}),
                (f"visitor/{number}", {}),
            ):
                server.post(message(method, params))
        metrics = server.metrics()
    assert "visitor" not in metrics.text
    labels = [dict(pairs) for pairs in metrics.series("mcp_server_operation_duration_seconds_count")]
    assert {
        (each["mcp_method_name"], each["gen_ai_tool_name"] + each["gen_ai_prompt_name"] + each["mcp_resource_template"])
        for each in labels
    } == {("tools/call", "unknown"), ("prompts/get", "unknown"), ("resources/read", "unknown"), ("unknown", "")}


def test_a_scrape_checks_whether_the_server_is_ready(serve: Serve) -> None:
    broken = False

    async def database() -> None:
        if broken:
            raise ConnectionError("no route to the database")

    with serve(lambda server: readiness_check(server, "database", database)) as server:
        assert server.metrics().value("mcp_ready") == 1
        broken = True
        wait_for(lambda: server.metrics().value("mcp_ready") == 0)  # the result of a check holds for a second
        broken = False
        wait_for(lambda: server.metrics().value("mcp_ready") == 1)
        server.registry.draining = True
        assert server.metrics().value("mcp_ready") == 0
        server.registry.draining = False


async def test_running_calls_are_shown_and_their_duration_is_measured(serve: Serve, http: httpx2.AsyncClient) -> None:
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
        assert (await asyncio.to_thread(server.metrics)).value("mcp_active_requests") == 3
        await asyncio.to_thread(running.wait)
        await asyncio.gather(*calls)
        metrics = await asyncio.to_thread(server.metrics)
    assert metrics.value("mcp_active_requests") == 0
    assert metrics.value("mcp_tool_latency_seconds_count", tool_name="waits") == 3
    assert metrics.value("mcp_tool_latency_seconds_bucket", tool_name="waits", le="0.05") == 0
    assert metrics.value("mcp_tool_latency_seconds_bucket", tool_name="waits", le="+Inf") == 3


def test_a_tool_timeout_counts_as_an_error(serve: Serve) -> None:
    def register(server: ProductionServer) -> None:
        @server.tool()
        async def endless(ctx: Context[Any, Any]) -> str:
            await asyncio.Event().wait()
            return "never"

    with serve(register, tool_timeout_seconds=0.05) as server:
        server.call("endless")
        metrics = server.metrics()
    assert metrics.value("mcp_tool_errors_total", tool_name="endless", error_type="ToolTimeout") == 1


@pytest.fixture
def registry() -> Registry:
    """A registry with metrics only."""
    registry = Registry(config(), about())
    install(registry)
    return registry


def text_of_metrics(registry: Registry) -> str:
    meter = registry.meter
    assert isinstance(meter, PrometheusMeter)
    return meter.text()


def read(registry: Registry, name: str, **labels: str) -> float | None:
    return Metrics(text_of_metrics(registry)).value(name, **labels)


async def test_a_rejected_call_is_neither_an_error_nor_in_the_latency(registry: Registry) -> None:
    async def handler(request: MCPRequest) -> Result:
        return reject(request, "RateLimited", "not now")

    await registry.middleware["metrics"](new_request(), handler)
    assert read(registry, "mcp_tool_calls_total", tool_name="tool", status="rejected") == 1
    assert read(registry, "mcp_tool_errors_total", tool_name="tool", error_type="RateLimited") is None
    assert read(registry, "mcp_tool_latency_seconds_count", tool_name="tool") == 0


async def test_a_call_that_a_draining_server_rejects_is_counted_as_rejected() -> None:
    server = create_server(config())
    async with Client(server) as client:
        server.registry.draining = True
        await client.call_tool("health_check")
    assert read(server.registry, "mcp_tool_calls_total", tool_name="health_check", status="rejected") == 1
    assert read(server.registry, "mcp_active_requests") == 0


async def test_a_cancelled_call_counts_as_an_error_and_no_longer_as_running(registry: Registry) -> None:
    async def endless(request: MCPRequest) -> Any:
        await asyncio.Event().wait()

    async def inner(request: MCPRequest) -> Result:
        return await pipeline.errors(request, endless)

    async def outer() -> Result:
        return await registry.middleware["metrics"](new_request(), inner)

    task = asyncio.create_task(outer())
    await asyncio.sleep(0)
    assert read(registry, "mcp_active_requests") == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert read(registry, "mcp_active_requests") == 0
    assert read(registry, "mcp_tool_errors_total", tool_name="tool", error_type="Cancelled") == 1


async def test_a_tool_has_a_bounded_number_of_error_types(registry: Registry) -> None:
    numbers = iter(range(10 * MAX_ERROR_TYPES))

    async def handler(request: MCPRequest) -> Result:
        request.fail("error", f"Error{next(numbers)}")
        return error_result("failed")

    for _ in range(10 * MAX_ERROR_TYPES):
        await registry.middleware["metrics"](new_request(), handler)
    series = Metrics(text_of_metrics(registry)).series("mcp_tool_errors_total")
    types = {dict(labels)["error_type"]: value for labels, value in series.items()}
    assert len(types) == MAX_ERROR_TYPES + 1
    assert types["other"] == 9 * MAX_ERROR_TYPES


def test_declaring_a_metric_again_returns_the_same_one() -> None:
    meter = PrometheusMeter()
    for _ in range(2):
        meter.counter("jobs_total", "Jobs.", ("queue",))("mail").inc()
        meter.gauge("queue_length", "Jobs that wait.")().set(3)
        meter.histogram("job_seconds", "Duration of jobs.", buckets=(1.0,))().observe(0.5)
    meter.counter("jobs", "Jobs.", ("queue",))("mail").inc()  # the client library adds `_total`
    metrics = Metrics(meter.text())
    assert metrics.value("jobs_total", queue="mail") == 3
    assert metrics.value("queue_length") == 3
    assert metrics.value("job_seconds_count") == 2


amounts = st.lists(
    st.floats(-1e3, 1e3) | st.sampled_from((nan, inf)) | st.sampled_from((0.01, 0.1, 1.0, 10.0)), max_size=200
)


@given(amounts)
def test_amounts_that_are_added_up_in_portions_count_as_one_by_one(amounts: list[float]) -> None:
    own = PrometheusMeter()
    histogram = own.histogram("job_seconds", "Duration of jobs.", buckets=LATENCY_BUCKETS)()
    counter = own.counter("bytes_total", "Bytes.")()
    theirs = prometheus_client.CollectorRegistry()
    expected = prometheus_client.Histogram("job_seconds", "Duration of jobs.", buckets=LATENCY_BUCKETS, registry=theirs)
    total = prometheus_client.Counter("bytes_total", "Bytes.", registry=theirs)
    for amount in amounts:
        histogram.observe(amount)
        expected.observe(amount)
        if amount < 0:
            with pytest.raises(ValueError, match="cannot go down"):
                counter.inc(amount)
        else:
            counter.inc(amount)
            total.inc(amount)
    found = Metrics(own.text())
    wanted = Metrics(prometheus_client.generate_latest(theirs).decode())
    for name in ("job_seconds_bucket", "job_seconds_count"):
        assert found.series(name) == wanted.series(name)
    for name in ("job_seconds_sum", "bytes_total"):
        assert found.value(name) == pytest.approx(wanted.value(name), rel=1e-6, abs=1e-6, nan_ok=True)


async def test_a_scrape_shows_what_was_counted_since_one_without_changes() -> None:
    meter = PrometheusMeter()
    jobs = meter.counter("jobs_total", "Jobs.", ("queue",))("mail")
    seconds = meter.histogram("job_seconds", "Duration of jobs.", ("queue",), buckets=LATENCY_BUCKETS)("mail")
    exposition = meter.exposition()
    for count in (1, 2, 3):
        jobs.inc()
        seconds.observe(0.5)
        for _ in range(2):
            found = Metrics((await exposition.text(*choose_encoder(""))).decode())
            assert found.value("jobs_total", queue="mail") == count
            assert found.value("job_seconds_count", queue="mail") == count


async def test_calls_end_while_a_scrape_or_an_export_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SLICE_SECONDS", 0)
    pattern = prometheus_client.Counter("jobs_total", "Jobs.", ("queue",), registry=None)
    pattern.labels(exposition.PLACEHOLDER)
    meter = PrometheusMeter()
    meter.zeros = exposition.ZeroSeries(pattern)
    meter.zeros.tools = dict.fromkeys(map(str, range(200)))
    jobs = meter.counter("jobs_total", "Jobs.", ("queue",))

    def call() -> None:
        if meter.zeros.tools:
            queue, _ = meter.zeros.tools.popitem()
            jobs(queue).inc()

    async def calls() -> None:
        for _ in range(100):
            call()
            await asyncio.sleep(0)

    text, _ = await asyncio.gather(meter.exposition().text(*choose_encoder("")), calls())
    assert len(Metrics(text.decode()).series("jobs_total")) == 200

    class Called(prometheus_client.Metric):
        def add_sample(self, *args: Any, **options: Any) -> None:
            call()
            super().add_sample(*args, **options)

    metric = Called("jobs", "Jobs.", "counter")
    meter.zeros.add_to(metric)
    assert len(metric.samples) == 100


async def test_a_lone_surrogate_in_a_label_fails_no_scrape() -> None:
    meter = PrometheusMeter()
    for labels in (("mail\ud800",), ()):
        named = {} if labels else {"queue": "mail\ud801"}
        meter.counter("jobs_total", "Jobs.", ("queue",))(*labels, **named).inc()
        meter.gauge("queue_length", "Jobs that wait.", ("queue",))(*labels, **named).set(3)
        meter.histogram("job_seconds", "Duration.", ("queue",), buckets=(1.0,))(*labels, **named).observe(0.5)
    scraped = (await meter.exposition().text(*choose_encoder(""))).decode()
    for metrics in (Metrics(scraped), Metrics(meter.text())):
        assert metrics.value("jobs_total", queue="mail\ufffd") == 2
        assert metrics.value("queue_length", queue="mail\ufffd") == 3
        assert metrics.value("job_seconds_count", queue="mail\ufffd") == 2


def test_declaring_a_metric_with_another_type_or_other_labels_is_an_error() -> None:
    meter = PrometheusMeter()
    meter.counter("jobs_total", "Jobs.", ("queue",))
    with pytest.raises(ValueError, match="the metric jobs_total is declared already"):
        meter.gauge("jobs_total", "Jobs.", ("queue",))
    with pytest.raises(ValueError, match="the metric jobs_total is declared already"):
        meter.counter("jobs_total", "Jobs.", ("queue", "priority"))


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
def test_the_content_type_is_that_of_the_requested_format(serve: Serve, accept: str | None, content_type: str) -> None:
    with serve() as server:
        server.call("health_check")
        response = server.get("/metrics", **({"accept": accept} if accept else {}))
    assert response.headers.get_list("content-type") == [content_type]
    if "openmetrics" in content_type:
        parse: Any = parse_openmetrics
        assert "mcp_tool_calls" in {family.name for family in parse(response.text)}
    else:
        assert Metrics(response.text).value("mcp_active_requests") == 0


@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
@pytest.mark.parametrize("version", ["abc", "\u00b2", "1.x", "1.0.0.7", "99", "1.0.0=1", "1.0.0;version=2.0.0", ""])
def test_a_client_chooses_among_formats_that_there_are(serve: Serve, media_type: str, version: str) -> None:
    with serve() as server:
        accept = f"{media_type}; version={version}".encode()
        response = server.client.get(f"{server.base}/metrics", headers={b"accept": accept})
    assert response.status_code == 200
    known = ("text/plain; version=0.0.4; charset=utf-8", f"{media_type}; version=1.0.0; charset=utf-8; escaping=")
    assert response.headers["content-type"].startswith(known)


def test_metrics_need_no_credentials(serve: Serve) -> None:
    with serve() as server:
        assert server.get("/metrics").status_code == 200


def test_servers_made_one_after_the_other_count_apart(serve: Serve) -> None:
    counts = []
    for calls in (2, 1):
        with serve(tools) as server:
            for _ in range(calls):
                server.call("works")
            counts.append(server.metrics().value("mcp_tool_calls_total", tool_name="works", status="success"))
    assert counts == [2, 1]


def test_metrics_on_another_port_end_with_the_server(serve: Serve) -> None:
    port = free_port()
    with serve(tools, port=8000, metrics_port=port) as server:
        server.call("works")
        assert server.get("/metrics").status_code == 404
        own = f"http://127.0.0.1:{port}"
        metrics = Metrics(httpx2.get(f"{own}/metrics").text)
        assert metrics.value("mcp_tool_calls_total", tool_name="works", status="success") == 1
        assert httpx2.get(f"{own}/mcp").status_code == 404
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{own}/metrics")


def test_metrics_on_the_port_of_the_server_are_a_route(serve: Serve) -> None:
    with serve(port=8000, metrics_port=8000) as server:
        assert server.metrics().value("mcp_build_info") is None
        assert server.metrics().value("mcp_active_requests") == 0


def test_a_stdio_server_has_metrics_on_the_configured_port() -> None:
    port = free_port()

    def shows_metrics() -> bool:
        try:
            return "mcp_build_info" in httpx2.get(f"http://127.0.0.1:{port}/metrics").text
        except httpx2.TransportError:
            return False

    with stdio_process(METRICS_PORT=port) as server:
        wait_for(shows_metrics)
        server.close_stdin()
        assert server.status() == 0


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_an_address_of_metrics_is_announced_only_where_they_are_served(transport: Literal["http", "stdio"]) -> None:
    addresses = create_server(config(transport=transport, metrics_port=None)).registry.http.addresses
    assert addresses == ({"metrics": "/metrics"} if transport == "http" else {})


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_a_taken_port_stops_the_start_with_one_line_and_exit_status_2(transport: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(
            command(NO_TOOLS, "--transport", transport, "--port", "0"), None, {"METRICS_PORT": port}
        ) as server:
            assert server.status() == 2
            (line,) = server.log().splitlines()
    assert f"METRICS_PORT: cannot listen on 127.0.0.1:{port}" in line


def test_a_process_drains_with_its_metrics_listener() -> None:
    port = free_port()
    with http_process(METRICS_PORT=port) as server:
        assert httpx2.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        assert httpx2.get(f"{server.base}/metrics").status_code == 404
        if sys.platform != "win32":  # there a process can only be killed
            server.signal()
            assert server.status() == 0
