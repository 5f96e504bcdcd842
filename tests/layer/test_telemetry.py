"""Traces, as a real OTLP receiver on a real socket gets them, over the protocol that this project has."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any, NamedTuple

import httpx2
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.server.mcpserver import Context
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from weather_station.production import get_logger, tracer, upstream
from weather_station.production.registry import ProductionServer
from weather_station.production.config import ConfigError
from weather_station.production.serve.lifecycle import bind
from weather_station.production.observe.redaction import Redactor
from weather_station.production.observe.telemetry import (
    FLUSH_SECONDS,
    OnceAMinute,
    Redacting,
    Traces,
)
from weather_station.server import create_app, create_server

from harness import HEADERS, Running, config, environment, wait_for

Serve = Callable[..., AbstractContextManager[Running]]
PROTOCOL = config().telemetry_protocol
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
KNOWN = "configured-hunter2-key"


class Span(NamedTuple):
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


class Collector:
    """What a collector got: `spans`, and the requests as they came."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Span]:
        return [
            Span(
                span.name,
                span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                _values(span.attributes),
                _values(of_resource.resource.attributes),
            )
            for request in list(self.requests)
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        """The span of that name, as soon as it has arrived."""
        wait_for(lambda: self.named(name))
        (span,) = self.named(name)
        return span

    def holds(self, text: str) -> bool:
        return any(text.encode() in request.SerializeToString() for request in self.requests)


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in attributes}


@contextmanager
def over_http(collector: Collector) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def over_grpc(collector: Collector) -> Iterator[str]:
    grpc = import_module("grpc")  # absent where the project exports over HTTP

    def export(request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        collector.requests.append(request)
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@contextmanager
def receiver() -> Iterator[Collector]:
    collector = Collector()
    listen = over_grpc if PROTOCOL == "grpc" else over_http
    with listen(collector) as collector.endpoint:
        yield collector


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that gets its spans at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with receiver() as found:
        yield found


@contextmanager
def api() -> Iterator[tuple[str, list[str]]]:
    """An upstream API; yields its URL and the traceparent headers that it gets."""
    parents: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parents.append(self.headers.get("traceparent", ""))
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", parents
        server.shutdown()


@contextmanager
def black_hole() -> Iterator[str]:
    """A collector that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def ask_upstream(server: ProductionServer) -> None:
    async def ask(ctx: Context[Any, Any]) -> str:
        get_logger("ask").info("asking")
        with tracer.start_as_current_span("own work") as span:
            span.set_attribute("password", "hunter2-in-an-attribute")
            await upstream(ctx).get_json("/things", params={"api_key": "hunter2-in-a-query", "city": "Bern"})
        return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)

    server.tool()(ask)


def test_a_call_is_one_server_span_of_this_service(serve: Serve, collector: Collector) -> None:
    with serve(telemetry_endpoint=collector.endpoint) as server:
        server.call("health_check")
        span = collector.one("tools/call health_check")

    assert span.kind == "SERVER"
    assert span.parent_id == ""
    assert span.attributes["gen_ai.tool.name"] == "health_check"
    assert span.attributes["enduser.id"] == "127.0.0.1"
    assert span.attributes["mcp.request.status"] == "success"
    assert len(span.attributes["mcp.call.request_id"]) == 16
    assert span.resource["service.name"] == server.registry.about.name
    assert span.resource["service.version"] == server.registry.about.version
    assert span.resource["service.instance.id"]


def test_the_callers_trace_goes_on_through_the_tool_to_the_upstream(
    serve: Serve, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        api() as (base, parents),
        serve(ask_upstream, telemetry_endpoint=collector.endpoint, upstream_base_url=base) as server,
    ):
        message = server.request("ask")
        message["params"]["_meta"] = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        assert TRACE_ID in server.post(message).text
        call, own, request = (collector.one(name) for name in ("tools/call ask", "own work", "GET"))

    assert {call.trace_id, own.trace_id, request.trace_id} == {TRACE_ID}
    assert call.parent_id == PARENT_ID
    assert own.parent_id == call.span_id
    assert request.parent_id == own.span_id
    assert request.kind == "CLIENT"
    assert parents == [f"00-{TRACE_ID}-{request.span_id}-01"]
    if "logging" in server.registry.features:
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        logged = {line["message"]: (line["trace_id"], line["span_id"]) for line in lines if line.get("tool") == "ask"}
        assert logged["asking"] == logged["tool call"] == (TRACE_ID, call.span_id)


def test_no_secret_leaves_in_a_span(serve: Serve, collector: Collector) -> None:
    with (
        api() as (base, _),
        serve(ask_upstream, telemetry_endpoint=collector.endpoint, upstream_base_url=base) as server,
    ):
        server.call("ask")
        request = collector.one("GET")
        wait_for(lambda: collector.named("tools/call ask"))

    assert not collector.holds("hunter2")
    url = request.attributes.get("http.url") or request.attributes["url.full"]
    assert url == f"{base}/things?api_key=[redacted]&city=Bern"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("http.url", "https://user:hunter2@api.example.com/v1?x=1"),
        ("url.full", "https://api.example.com/v1?appid=hunter2&x=1"),
        ("url.query", "?access_token=hunter2"),
        ("http.request.header.authorization", ("Bearer hunter2",)),
        ("http.response.header.set_cookie", ["session=hunter2"]),
        ("db.statement", "connect password='hunter2'"),
        ("note", f"the key is {KNOWN}"),
        ("notes", ("token=hunter2",)),
        ("app.api_key", "hunter2"),
    ],
)
def test_secrets_are_taken_out_whatever_the_attribute(key: str, value: Any) -> None:
    exported = sent(lambda span: span.set_attributes({key: value, "count": 3}))
    assert exported.attributes is not None
    assert exported.attributes["count"] == 3


@pytest.mark.parametrize(
    "act",
    [
        lambda span: span.update_name("GET /?token=hunter2"),
        lambda span: span.add_event("attempt", {"token": "hunter2"}),
        lambda span: span.record_exception(ValueError("api_key=hunter2")),
        lambda span: span.set_status(trace.StatusCode.ERROR, "token=hunter2"),
        lambda span: span.add_link(span.get_span_context(), {"token": "hunter2"}),
    ],
    ids=["name", "event", "exception", "status", "link"],
)
def test_secrets_are_taken_out_wherever_they_stand(act: Callable[[trace.Span], None]) -> None:
    assert "[redacted]" in sent(act).to_json()


PIECES = ("token", "=", "api_key", "?sig=", "Bearer ", "://", "u:p", "@", '"', "'", "\n", " ", "a0b1c2d3e4f5", KNOWN)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(("note", "url.full", "app.api_key", "db.statement", "count")),
        st.one_of(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.integers(0, 9), st.booleans()),
    )
)
def test_what_looks_clean_together_is_clean_by_itself(attributes: dict[str, Any]) -> None:
    kept = InMemorySpanExporter()
    redactor = Redactor([KNOWN])
    Redacting(kept, redactor).export([ReadableSpan("work", attributes=attributes)])
    (exported,) = kept.get_finished_spans()
    assert dict(exported.attributes or {}) == redactor.value(attributes)


def sent(act: Callable[[trace.Span], None]) -> ReadableSpan:
    """The span on which `act` was done, as the exporter gets it: without what it must not get, and otherwise whole."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(Redacting(kept, Redactor([KNOWN]))))
    with provider.get_tracer("test", "1").start_as_current_span("work", kind=trace.SpanKind.CLIENT) as span:
        act(span)
    assert isinstance(span, ReadableSpan)
    (exported,) = kept.get_finished_spans()
    assert "hunter2" not in exported.to_json()
    whole = json.loads(span.to_json())
    for name in ("context", "parent_id", "kind", "start_time", "end_time", "resource"):
        assert json.loads(exported.to_json())[name] == whole[name]
    assert [event.name for event in exported.events] == [event.name for event in span.events]
    assert exported.status.status_code is span.status.status_code
    assert exported.instrumentation_scope == span.instrumentation_scope
    return exported


def failing(server: ProductionServer) -> None:
    async def fail() -> str:
        raise LookupError("hunter2")

    server.tool()(fail)


def test_a_failed_call_bears_the_class_of_its_error_and_not_its_text(serve: Serve, collector: Collector) -> None:
    with serve(failing, telemetry_endpoint=collector.endpoint) as server:
        server.call("fail")
        span = collector.one("tools/call fail")

    assert span.attributes["error.type"] == "tool_error"
    assert span.attributes["mcp.request.status"] == "error"
    assert span.attributes["mcp.request.error_type"] == "LookupError"
    assert not collector.holds("hunter2")


def test_the_last_spans_are_flushed_when_the_server_stops(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with receiver() as collector:
        with serve(telemetry_endpoint=collector.endpoint) as server:
            server.call("health_check")
            assert collector.spans == []
        assert collector.named("tools/call health_check")


def test_a_dead_collector_costs_nothing(
    serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    slowest, stopping = _calls(serve, f"http://127.0.0.1:{port}")

    assert slowest < 2  # the exporter would wait for ten
    assert stopping < FLUSH_SECONDS + 4
    output = capfd.readouterr().err
    assert "Traceback" not in output
    about = [line for line in output.splitlines() if "xport" in line]
    assert len(about) <= 1, about


def test_a_hung_collector_costs_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    # A small queue: full after a few calls.
    for name, value in {"SCHEDULE_DELAY": "20", "MAX_QUEUE_SIZE": "8", "MAX_EXPORT_BATCH_SIZE": "4"}.items():
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    with black_hole() as endpoint:
        slowest, stopping = _calls(serve, endpoint)

    assert slowest < 2  # the exporter would wait for ten
    assert stopping < FLUSH_SECONDS + 4


def _calls(serve: Serve, endpoint: str) -> tuple[float, float]:
    """The slowest of many calls and the time to stop, in seconds."""
    with serve(telemetry_endpoint=endpoint) as server:
        server.call("health_check")
        durations = []
        for _ in range(100):
            started = time.monotonic()
            assert not server.call("health_check").get("isError")
            durations.append(time.monotonic() - started)
        stopped = time.monotonic()
    return max(durations), time.monotonic() - stopped


def test_two_servers_of_a_process_trace_apart(serve: Serve, collector: Collector) -> None:
    with (
        receiver() as other,
        serve(telemetry_endpoint=collector.endpoint) as first,
        serve(telemetry_endpoint=other.endpoint) as second,
    ):
        first.call("health_check")
        second.call("health_check")
        ours, theirs = collector.one("tools/call health_check"), other.one("tools/call health_check")

    assert ours.trace_id != theirs.trace_id
    assert ours.resource["service.instance.id"] != theirs.resource["service.instance.id"]


def test_a_server_is_traced_under_another_asgi_server_too(collector: Collector) -> None:
    """There the lifespan runs in a task of its own, and no context of its comes to the requests."""
    app = create_app(create_server(config(telemetry_endpoint=collector.endpoint)))
    listener = bind("127.0.0.1", 0)
    other = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
    thread = threading.Thread(target=other.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: other.started)
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "health_check"}}
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    assert httpx2.post(url, json=message, headers=HEADERS, trust_env=False).status_code == 200
    other.should_exit = True
    thread.join(10.0)
    assert collector.one("tools/call health_check")


def test_a_server_may_start_again(collector: Collector) -> None:
    server = create_server(config(telemetry_endpoint=collector.endpoint))

    async def once(name: str) -> None:
        async with server.running():
            with tracer.start_as_current_span(name):
                pass

    for name in ("first", "second"):
        asyncio.run(once(name))
    assert [span.name for span in collector.spans] == ["first", "second"]


def test_without_an_endpoint_nothing_is_recorded(serve: Serve, collector: Collector) -> None:
    found: list[bool] = []

    def register(server: ProductionServer) -> None:
        async def look() -> str:
            with tracer.start_as_current_span("own work") as span:
                found.append(span.is_recording())
            return ""

        server.tool()(look)

    # Another server of the process traces meanwhile.
    with serve(telemetry_endpoint=collector.endpoint) as traced, serve(register) as server:
        server.call("look")
        traced.call("health_check")
        collector.one("tools/call health_check")

    assert found == [False]
    assert not server.registry.traced
    assert "telemetry" not in server.registry.middleware
    assert {span.name for span in collector.spans} == {"tools/call health_check"}


def test_the_standard_variables_win(serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another name")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
    with black_hole() as endpoint, serve(telemetry_endpoint=endpoint) as server:
        server.call("health_check")
        resource = collector.one("tools/call health_check").resource

    assert resource["service.name"] == "another name"
    assert resource["service.version"] == "9"
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_SAMPLER", "always_off")],
)
def test_traces_can_be_switched_off_by_the_standard_variables(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with serve(telemetry_endpoint=collector.endpoint) as server:
        assert not server.call("health_check").get("isError")
    assert collector.spans == []
    assert server.registry.traced is (variable == "OTEL_TRACES_SAMPLER")  # a sampler decides call by call


def test_a_protocol_that_this_project_lacks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = "grpc" if PROTOCOL != "grpc" else "http/protobuf"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", other)
    (notice,) = [
        notice
        for notice in create_server(config(telemetry_endpoint="http://127.0.0.1:9")).production.notices
        if notice.startswith("telemetry")
    ]
    assert f"telemetry_protocol={other}" in notice


def test_an_exporter_that_cannot_be_made_stops_the_start() -> None:
    def refuse() -> Any:
        raise ValueError("could not convert string to float: 'soon'")

    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_.*soon"):
        Traces(TracerProvider().resource, refuse, Redactor())


def in_a_process(code: str) -> None:
    """Runs `code` in a process of its own: the provider can be set, and modules are imported, once in each."""
    done = subprocess.run(  # noqa: S603 (this file's own code)
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_another_provider_of_the_process_is_left_alone() -> None:
    in_a_process("""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
before = TracerProvider()
trace.set_tracer_provider(before)
from weather_station.production.config import ProductionConfig
from weather_station.server import create_app, create_server
app = create_server(ProductionConfig(telemetry_endpoint="http://127.0.0.1:9")).production
assert trace.get_tracer_provider() is before
assert app.traced and "telemetry" in app.links
assert any("tracer provider already" in notice for notice in app.notices), app.notices
""")


def test_without_an_endpoint_the_sdk_is_not_even_imported() -> None:
    in_a_process("""
import sys
from weather_station.production.config import ProductionConfig
from weather_station.server import create_app, create_server
app = create_server(ProductionConfig(telemetry_endpoint=None)).production
assert "telemetry" in app.features and not app.traced
heavy = ("opentelemetry.sdk.trace", "opentelemetry.exporter")  # redis imports the SDK's metrics where it finds them
loaded = [name for name in sys.modules if name.startswith(heavy)]
assert not loaded, loaded
""")


def test_an_outage_of_the_collector_is_one_line_a_minute() -> None:
    once_a_minute = OnceAMinute()
    records = [logging.makeLogRecord({"exc_info": (ValueError, ValueError(), None)}) for _ in range(100)]
    passed = [record for record in records if once_a_minute.filter(record)]
    assert len(passed) == 1
    assert passed[0].exc_info is None
