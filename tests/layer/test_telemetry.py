"""Telemetry: the traces that an OTLP receiver on a real socket gets, over the protocol of this project.

A process has one tracer provider, whose resource and sampler the first server decides: tests of these are in processes
of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from typing import Any, NamedTuple

import httpx2
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver import Context
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import TraceState
from starlette.requests import Request

from harness import DEADLINE_SECONDS, HEADERS, Running, Serve, config, message, modern, result_of, run_python, wait_for
from stand_in import StandIn, refusing, silent
from weather_station.production import get_logger, tracer, upstream
from weather_station.production.config import ConfigError
from weather_station.production.observe import telemetry
from weather_station.production.observe.redaction import Redactor
from weather_station.production.observe.telemetry import CallerSampler, OncePerMinute, RedactingExporter
from weather_station.production.observe.throttle import MAX_LINES
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.connections import base_url, bind
from weather_station.server import create_app, create_server

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
    links: list[tuple[str, str]]


class Collector:
    """An OTLP receiver: its requests, and the spans in them."""

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
                [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            )
            for request in list(self.requests)
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Span:
        """Return the span of that name, as soon as it has arrived."""
        wait_for(lambda: self.named(name))
        (span,) = self.named(name)
        return span

    def has_text(self, text: str) -> bool:
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
            """Log nothing."""

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
    """A collector to which spans are exported soon after they end."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with receiver() as found:
        yield found


def fetch_things(server: ProductionServer) -> None:
    async def fetch(ctx: Context[Any, Any]) -> str:
        get_logger("fetch").info("fetching")
        with tracer.start_as_current_span("own work") as span:
            span.set_attribute("password", "hunter2-in-an-attribute")
            await upstream(ctx).get_json("/things", params={"api_key": "hunter2-in-a-query", "city": "Bern"})
        return trace.format_trace_id(trace.get_current_span().get_span_context().trace_id)

    server.tool()(fetch)


def test_a_call_is_one_server_span(serve: Serve, collector: Collector) -> None:
    with serve(telemetry_endpoint=collector.endpoint) as server:
        server.call("health_check")
        span = collector.one("tools/call health_check")

    assert span.kind == "SERVER"
    assert span.parent_id == ""
    assert span.attributes["gen_ai.tool.name"] == "health_check"
    assert span.attributes["enduser.id"] == "127.0.0.1"
    assert span.attributes["mcp_server.status"] == "success"
    assert len(span.attributes["mcp_server.request_id"]) == 16
    assert span.resource["service.name"] == server.registry.about.name
    assert span.resource["service.version"] == server.registry.about.version
    assert span.resource["service.instance.id"]


def test_the_trace_of_the_caller_continues_through_the_tool_to_the_upstream(
    serve: Serve, collector: Collector, api: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(fetch_things, telemetry_endpoint=collector.endpoint, upstream_base_url=api.url) as server:
        content = server.request("fetch")
        content["params"]["_meta"] = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        assert TRACE_ID in server.post(content).text
        call, own, request = (collector.one(name) for name in ("tools/call fetch", "own work", "GET"))

    assert {call.trace_id, own.trace_id, request.trace_id} == {TRACE_ID}
    assert call.parent_id == PARENT_ID
    assert own.parent_id == call.span_id
    assert request.parent_id == own.span_id
    assert request.kind == "CLIENT"
    assert [received.headers["traceparent"] for received in api.requests] == [f"00-{TRACE_ID}-{request.span_id}-01"]
    if "logging" in server.registry.features:
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        logged = {line["message"]: (line["trace_id"], line["span_id"]) for line in lines if line.get("tool") == "fetch"}
        assert logged["fetching"] == logged["tool call"] == (TRACE_ID, call.span_id)


URL = "https://api.example.com/things?city=Bern"


@pytest.mark.parametrize(
    ("method", "outcome", "name", "code", "description", "events"),
    [
        ("GET", 200, "GET", trace.StatusCode.UNSET, None, []),
        ("QUERY", 307, "QUERY", trace.StatusCode.UNSET, None, []),
        ("POST", 404, "POST", trace.StatusCode.ERROR, None, []),
        ("BREW", 500, "HTTP", trace.StatusCode.ERROR, None, []),
        ("PUT", httpx2.ConnectError("refused"), "PUT", trace.StatusCode.ERROR, "ConnectError: refused", ["exception"]),
        ("PUT", asyncio.CancelledError(), "PUT", trace.StatusCode.UNSET, None, []),
    ],
)
async def test_a_request_to_the_upstream_is_one_client_span(
    method: str,
    outcome: int | BaseException,
    name: str,
    code: trace.StatusCode,
    description: str | None,
    events: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    sent: list[trace.SpanContext] = []

    async def send(request: httpx2.Request) -> httpx2.Response:
        sent.append(trace.get_current_span().get_span_context())
        assert request.headers["traceparent"].split("-")[2] == trace.format_span_id(sent[0].span_id)
        if isinstance(outcome, BaseException):
            raise outcome
        return httpx2.Response(outcome)

    with contextlib.suppress(httpx2.ConnectError, asyncio.CancelledError):
        await telemetry._traced(send)(httpx2.Request(method, URL))
    assert not trace.get_current_span().get_span_context().is_valid
    (span,) = exporter.get_finished_spans()
    expected: dict[str, Any] = {"http.method": "_OTHER" if name == "HTTP" else method, "http.url": URL}
    if isinstance(outcome, int):
        expected["http.status_code"] = outcome
    assert (span.name, span.kind, dict(span.attributes or {})) == (name, trace.SpanKind.CLIENT, expected)
    assert (span.status.status_code, span.status.description) == (code, description)
    assert [event.name for event in span.events] == events


def test_no_secret_is_exported_in_a_span(serve: Serve, collector: Collector, api: StandIn) -> None:
    with serve(fetch_things, telemetry_endpoint=collector.endpoint, upstream_base_url=api.url) as server:
        server.call("fetch")
        request = collector.one("GET")
        wait_for(lambda: collector.named("tools/call fetch"))

    assert not collector.has_text("hunter2")
    url = request.attributes.get("http.url") or request.attributes["url.full"]
    assert url == f"{api.url}/things?api_key=[redacted]&city=Bern"


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
def test_secrets_are_redacted_in_every_attribute(key: str, value: Any) -> None:
    exported = export(lambda span: span.set_attributes({key: value, "count": 3}))
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
def test_secrets_are_redacted_in_every_part_of_a_span(act: Callable[[trace.Span], None]) -> None:
    assert "[redacted]" in export(act).to_json()


def test_a_key_is_exported_in_valid_unicode() -> None:
    assert export(lambda span: span.set_attribute("k\ud800", "x")).attributes == {"k\ufffd": "x"}


PIECES = ("token", "=", "api_key", "?sig=", "Bearer ", "://", "u:p", "@", '"', "'", "\n", " ", "a0b1c2d3e4f5", KNOWN)


@pytest.mark.pure
@given(
    st.dictionaries(
        st.sampled_from(("note", "url.full", "app.api_key", "db.statement", "count")),
        st.one_of(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.integers(0, 9), st.booleans()),
    )
)
def test_a_span_without_secrets_is_exported_as_it_is_and_any_other_redacted(attributes: dict[str, Any]) -> None:
    kept = InMemorySpanExporter()
    redactor = Redactor([KNOWN])
    RedactingExporter(kept, redactor).export([ReadableSpan("work", attributes=attributes, start_time=1, end_time=2)])
    (exported,) = kept.get_finished_spans()
    assert dict(exported.attributes or {}) == redactor.value(attributes)


def export(act: Callable[[trace.Span], None]) -> ReadableSpan:
    """Return a span on which `act` was done as the exporter gets it: without secrets and otherwise complete."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(RedactingExporter(kept, Redactor([KNOWN]))))
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


def test_the_span_of_a_failed_call_has_the_class_of_the_error_and_not_its_text(
    serve: Serve, collector: Collector
) -> None:
    def register(server: ProductionServer) -> None:
        async def crash() -> str:
            raise LookupError("hunter2")

        server.tool()(crash)

    with serve(register, telemetry_endpoint=collector.endpoint) as server:
        server.call("crash")
        span = collector.one("tools/call crash")

    assert span.attributes["error.type"] == "LookupError"
    assert span.attributes["mcp_server.status"] == "error"
    assert not collector.has_text("hunter2")


# --- What callers send ----------------------------------------------------------------------------------------------


HTTP_TRACE_ID, HTTP_PARENT_ID = "1af7651916cd43dd8448eb211c80319d", "c7ad6b7169203332"


def test_the_parent_is_that_of_the_message_with_a_link_to_that_of_the_http_request(
    serve: Serve, collector: Collector
) -> None:
    header = {"traceparent": f"00-{HTTP_TRACE_ID}-{HTTP_PARENT_ID}-01"}
    with serve(telemetry_endpoint=collector.endpoint) as server:
        server.call("health_check", None, **header)
        span = collector.one("tools/call health_check")
        assert (span.trace_id, span.parent_id, span.links) == (HTTP_TRACE_ID, HTTP_PARENT_ID, [])
        collector.requests.clear()
        content = server.request("health_check")
        content["params"]["_meta"] = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        server.post(content, **header)
        span = collector.one("tools/call health_check")
    assert (span.trace_id, span.parent_id) == (TRACE_ID, PARENT_ID)
    assert span.links == [(HTTP_TRACE_ID, HTTP_PARENT_ID)]


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "baggage"])
def test_a_field_of_the_client_does_not_fail_its_request(serve: Serve, collector: Collector, name: str) -> None:
    with serve(telemetry_endpoint=collector.endpoint) as server:
        content, headers = modern("tools/call", {"name": "health_check", "arguments": {}})
        fields = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "tracestate": "a=b", "baggage": "a=b"}
        content["params"]["_meta"] |= fields | {name: fields[name] + "\ud800"}
        headers |= {"content-type": "application/json"}
        response = server.client.post(server.url, content=json.dumps(content), headers=headers)
        assert not result_of(response)["isError"]
        assert collector.one("tools/call health_check").trace_id == TRACE_ID or name == "traceparent"


@pytest.mark.parametrize("name", ["tracestate", "baggage"])
def test_wrong_fields_of_clients_are_a_few_lines(
    serve: Serve, collector: Collector, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    fields = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", name: "x," * 4000}
    with serve(telemetry_endpoint=collector.endpoint) as server:
        capfd.readouterr()
        for _ in range(30):
            content = server.request("health_check")
            content["params"]["_meta"] = fields
            server.post(content)
        lines = [line for line in capfd.readouterr().err.splitlines() if "opentelemetry" in line]
    assert len(lines) <= 2 * MAX_LINES  # an interval may end in between


def test_several_headers_of_the_state_of_a_trace_are_one_list() -> None:
    parent = f"00-{TRACE_ID}-{PARENT_ID}-01".encode()
    headers = [(b"traceparent", parent), (b"tracestate", b"a=1,b=2"), (b"tracestate", b"c=3")]
    http = Request({"type": "http", "headers": headers})
    context = telemetry._extracted(telemetry._trace_headers(http))
    state = trace.get_current_span(context).get_span_context().trace_state
    assert list(state.items()) == [("a", "1"), ("b", "2"), ("c", "3")]
    longer = Request({"type": "http", "headers": [*headers, (b"tracestate", b"d=" + b"x" * telemetry.MAX_TRACE_FIELD)]})
    context = telemetry._extracted(telemetry._trace_headers(longer))
    assert trace.get_current_span(context).get_span_context().trace_state == {}


@pytest.mark.parametrize("wrong", ["x", "00-0-0-01", f"00-{'0' * 32}-{PARENT_ID}-01", "0" * 100_000, 7, None])
def test_a_parent_that_is_none_is_ignored(serve: Serve, collector: Collector, wrong: Any) -> None:
    with serve(telemetry_endpoint=collector.endpoint) as server:
        content = server.request("health_check")
        content["params"]["_meta"] = {"traceparent": wrong, "tracestate": "a=b," * 10_000}
        server.post(content, traceparent=f"00-{HTTP_TRACE_ID}-{HTTP_PARENT_ID}-01")
        span = collector.one("tools/call health_check")
    assert (span.parent_id, span.links) == (HTTP_PARENT_ID, [])


def test_a_caller_that_does_not_record_is_traced(serve: Serve, collector: Collector) -> None:
    with serve(telemetry_endpoint=collector.endpoint) as server:
        server.call("health_check", traceparent=f"00-{HTTP_TRACE_ID}-{HTTP_PARENT_ID}-00")
        assert collector.one("tools/call health_check").trace_id == HTTP_TRACE_ID


def test_a_caller_decides_about_recording_by_setting(collector: Collector) -> None:
    parent = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"}
    in_a_process(
        f"call(telemetry_endpoint={collector.endpoint!r}, meta={parent!r}, telemetry_caller_sampling=True)\n"
        f"call(telemetry_endpoint={collector.endpoint!r})",
        OTEL_BSP_SCHEDULE_DELAY=20,
    )
    assert [span.trace_id for span in collector.named("tools/call health_check")] != [TRACE_ID]
    assert len(collector.spans) == 1


@pytest.mark.pure
@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("root", [ALWAYS_ON, ALWAYS_OFF, TraceIdRatioBased(0.5)])
def test_a_remote_parent_is_sampled_like_a_root_and_keeps_its_state(flag: int, root: Sampler) -> None:
    state = TraceState([("vendor", "1")])
    ids = int(TRACE_ID, 16), int(PARENT_ID, 16)
    for is_remote in (True, False):
        parent = trace.SpanContext(*ids, is_remote, trace.TraceFlags(flag), state)
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
        result = CallerSampler(ParentBased(root)).should_sample(context, ids[0], "name")
        own = root.should_sample(None, ids[0], "name").decision is Decision.RECORD_AND_SAMPLE
        assert (result.decision is Decision.RECORD_AND_SAMPLE) is (own if is_remote else bool(flag))
        assert result.trace_state == state


@pytest.mark.parametrize("id", ["x" * 100_000, 2**80, -(2**63) - 1, "\0"])
def test_no_id_of_a_request_fails_an_export(serve: Serve, collector: Collector, id: Any) -> None:  # noqa: A002
    with serve(telemetry_endpoint=collector.endpoint) as server:
        content = server.request("health_check") | {"id": id}
        server.client.post(
            server.url, content=json.dumps(content), headers=HEADERS | {"content-type": "application/json"}
        )
        span = collector.one("tools/call health_check")
    assert span.attributes["jsonrpc.request.id"] == str(id)[:64]


@pytest.mark.parametrize(
    ("key", "value", "exported"),
    [
        ("number", 2**70, str(2**70)),
        ("numbers", [1, 2**70], ["1", str(2**70)]),
        ("text", "a\ud800", "a\ufffd"),
        ("k\ud800", "x", None),
        ("texts", ["\udfff"], ["\ufffd"]),
    ],
)
def test_no_value_of_an_owner_fails_an_export(
    serve: Serve, collector: Collector, key: str, value: Any, exported: Any
) -> None:
    def register(server: ProductionServer) -> None:
        async def work() -> str:
            with tracer.start_as_current_span("own\ud800") as span:
                span.set_attribute(key, value)
                span.add_event("event", {key: value})
            return "done"

        server.tool()(work)

    with serve(register, telemetry_endpoint=collector.endpoint) as server:
        server.call("work")
        span = collector.one("own\ufffd")
    if exported is not None:
        found = span.attributes[key]
        assert (found if isinstance(found, str) else [item.string_value for item in found.values]) == exported


@pytest.mark.parametrize(
    ("scope", "act"),
    [
        (("sc\ud800",), lambda span: None),
        (("own", "v\ud800", None, "u\ud800", {"k\ud800": "\ud800", "n": 2**70}), lambda span: None),
        (("own",), lambda span: span.end(end_time=-5)),
        (("own",), lambda span: span.end(end_time=2**80)),
        (("own",), lambda span: span.end(end_time=1.5e9)),
        (("own",), lambda span: span.end(end_time="now")),
        (("own",), lambda span: span.add_event("event", timestamp=-5)),
        (("own",), lambda span: span.add_event("event", timestamp=2**64)),
    ],
)
def test_no_tracer_or_time_of_an_owner_fails_an_export(
    serve: Serve, collector: Collector, scope: tuple[Any, ...], act: Callable[[Any], object]
) -> None:
    def register(server: ProductionServer) -> None:
        async def work() -> str:
            span = trace.get_tracer(*scope).start_span("own work")
            act(span)
            if span.is_recording():
                span.end()
            return "done"

        server.tool()(work)

    with serve(register, telemetry_endpoint=collector.endpoint) as server:
        server.call("work")
        collector.one("own work")


def test_large_texts_take_little_memory_in_the_queue(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    large = "x" * 300_000

    def register(server: ProductionServer) -> None:
        @server.tool()
        async def work(number: int) -> str:
            with tracer.start_as_current_span(f"{large}{number}") as span:
                span.set_attribute(f"{number}{large}", f"{number}{large}")
                span.set_attributes({f"key {key}": key for key in range(1000)})
                span.add_event(f"{number}{large}", {f"{number}{large}": f"{number}{large}"})
                span.set_status(trace.StatusCode.ERROR, f"{number}{large}")
            return ""

    with receiver() as collector, serve(register, telemetry_endpoint=collector.endpoint) as server:
        server.call("work", {"number": 0})
        tracemalloc.start()
        try:
            for number in range(3):
                server.post(message(f"{large}{number}"))
                server.call("work", {"number": number})
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert held < 2_000_000


def test_failed_exports_are_counted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")

    def failures(server: Running) -> float | None:
        return server.metrics().value("mcp_telemetry_export_failures_total", signal="traces")

    with serve(telemetry_endpoint="http://127.0.0.1:9") as server:
        assert failures(server) == 0
        server.call("health_check")
        wait_for(lambda: failures(server) == 1, "a failed export")


# --- The convention -------------------------------------------------------------------------------------------------

CONVENTION = {
    "mcp.method.name",
    "error.type",
    "gen_ai.prompt.name",
    "gen_ai.tool.name",
    "jsonrpc.request.id",
    "mcp.resource.uri",
    "rpc.response.status_code",
    "client.address",
    "client.port",
    "gen_ai.operation.name",
    "jsonrpc.protocol.version",
    "mcp.protocol.version",
    "mcp.session.id",
    "network.protocol.name",
    "network.protocol.version",
    "network.transport",
}
"""Attributes of the span of an MCP server (OpenTelemetry semantic conventions, docs/gen-ai/mcp.md, "Server")."""

REQUIRED = {"mcp.method.name", "jsonrpc.request.id", "mcp.protocol.version", "network.transport"}


def test_attributes_are_those_of_the_convention(serve: Serve, collector: Collector) -> None:
    def register(server: ProductionServer) -> None:
        @server.resource("test://x/{name}")
        async def read(name: str) -> str:
            return name

        @server.prompt()
        async def ask() -> str:
            return "ask"

    with serve(register, telemetry_endpoint=collector.endpoint) as server:
        server.call("health_check")
        server.post(message("resources/read", {"uri": "test://x/1"}))
        server.post(message("resources/read", {"uri": "none://x/1"}))
        server.post(message("prompts/get", {"name": "ask"}))
        server.post(message("tools/list"))
        wait_for(lambda: len(collector.spans) >= 5)
        spans = collector.spans
    for span in spans:
        own = {name for name in span.attributes if name.startswith("mcp_server.")}
        assert span.attributes.keys() - own - {"enduser.id"} <= CONVENTION
        assert span.attributes.keys() >= REQUIRED
        assert span.attributes["network.transport"] == "tcp"
    found = {span.name: span.attributes for span in spans}
    assert found["tools/call health_check"]["gen_ai.operation.name"] == "execute_tool"
    assert found["prompts/get ask"]["gen_ai.prompt.name"] == "ask"
    assert found["resources/read test://x/{name}"]["mcp.resource.uri"] == "test://x/1"
    assert found["resources/read unknown"]["rpc.response.status_code"] == "-32602"
    assert set(found) == {
        "tools/call health_check",
        "resources/read test://x/{name}",
        "resources/read unknown",
        "prompts/get ask",
        "tools/list",
    }


# --- Collectors that are down ---------------------------------------------------------------------------------------


def test_the_last_spans_are_exported_when_the_server_stops(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with receiver() as collector:
        with serve(telemetry_endpoint=collector.endpoint) as server:
            server.call("health_check")
            assert collector.spans == []
        assert collector.named("tools/call health_check")


def make_calls(serve: Serve, endpoint: str) -> None:
    with serve(telemetry_endpoint=endpoint) as server:
        for _ in range(100):
            assert not server.call("health_check").get("isError")


def test_an_unreachable_collector_fails_no_call_and_is_logged_once_without_a_traceback(
    serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    with refusing() as endpoint:
        make_calls(serve, endpoint)
    output = capfd.readouterr().err
    assert "Traceback" not in output
    about_export = [line for line in output.splitlines() if "xport" in line]
    assert len(about_export) <= 1, about_export


def test_a_hanging_collector_delays_neither_calls_nor_the_stop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exporter waits for an hour: what waited for the exporter would exceed every deadline of the test."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    # A small queue: full after a few calls.
    for name, value in {"SCHEDULE_DELAY": "20", "MAX_QUEUE_SIZE": "8", "MAX_EXPORT_BATCH_SIZE": "4"}.items():
        monkeypatch.setenv(f"OTEL_BSP_{name}", value)
    monkeypatch.setattr(telemetry, "FLUSH_SECONDS", 0.2)
    with silent() as endpoint:
        make_calls(serve, endpoint)


@pytest.mark.parametrize(("given", "largest"), [(None, telemetry.MAX_BATCH), ("100", 100)])
def test_an_export_has_at_most_as_many_spans_as_a_batch(
    monkeypatch: pytest.MonkeyPatch, given: str | None, largest: int
) -> None:
    if given:
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", given)
    sizes: list[int] = []

    class Sizes(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            sizes.append(len(spans))
            return super().export(spans)

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(telemetry.batches(Sizes()))
    for number in range(700):
        provider.get_tracer("test").start_span(str(number)).end()
    provider.shutdown()
    assert max(sizes) == largest
    assert sum(sizes) == 700


def test_an_outage_of_the_collector_is_one_line_a_minute() -> None:
    once_per_minute = OncePerMinute()
    records = [logging.makeLogRecord({"exc_info": (ValueError, ValueError(), None)}) for _ in range(100)]
    passed = [record for record in records if once_per_minute.filter(record)]
    assert len(passed) == 1
    assert passed[0].exc_info is None


# --- Servers of one process -----------------------------------------------------------------------------------------


def test_servers_one_after_the_other_export_to_their_own_collectors(serve: Serve, collector: Collector) -> None:
    with receiver() as other:
        for endpoint in (collector.endpoint, other.endpoint):
            with serve(telemetry_endpoint=endpoint) as server:
                server.call("health_check")
        first, second = collector.one("tools/call health_check"), other.one("tools/call health_check")
    assert first.trace_id != second.trace_id


def test_a_server_is_traced_under_another_asgi_server(collector: Collector) -> None:
    """There the lifespan runs in a task of its own, whose context variables the requests do not see."""
    app = create_app(create_server(config(telemetry_endpoint=collector.endpoint)))
    listener = bind("127.0.0.1", 0)
    other = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
    thread = threading.Thread(target=other.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: other.started)
    content = message("tools/call", {"name": "health_check"})
    response = httpx2.post(f"{base_url(listener)}/mcp", json=content, headers=HEADERS, trust_env=False)
    assert response.status_code == 200
    other.should_exit = True
    thread.join(DEADLINE_SECONDS)
    assert collector.one("tools/call health_check")


def test_a_server_that_starts_again_exports_again(collector: Collector) -> None:
    server = create_server(config(telemetry_endpoint=collector.endpoint))

    async def once(name: str) -> None:
        async with server.running():
            with tracer.start_as_current_span(name):
                pass

    for name in ("first", "second"):
        asyncio.run(once(name))
    assert [span.name for span in collector.spans] == ["first", "second"]


def test_a_server_without_an_endpoint_has_no_telemetry(serve: Serve) -> None:
    with serve() as server:
        server.call("health_check")
    assert "telemetry" not in server.registry.middleware


# --- Settings -------------------------------------------------------------------------------------------------------


def in_a_process(code: str, **settings: object) -> None:
    """Run `code` in a process of its own."""
    done = run_python(f"{CALL}\n{code}", **settings)
    assert done.returncode == 0, done.stderr


CALL = """
def call(tools=None, meta=None, **settings):
    with harness.running(harness.config(**settings), tools) as server:
        content = server.request("work" if tools else "health_check")
        if meta:
            content["params"]["_meta"] = meta
        assert server.post(content).status_code == 200
        return server
"""


def test_the_standard_variables_win(collector: Collector) -> None:
    with silent() as endpoint:
        in_a_process(
            f"call(telemetry_endpoint={endpoint!r})",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_SERVICE_NAME="another name",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test,service.version=9",
        )
    resource = collector.one("tools/call health_check").resource
    assert resource["service.name"] == "another name"
    assert resource["service.version"] == "9"
    assert resource["deployment.environment.name"] == "test"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        pytest.param("OTEL_TRACES_EXPORTER", "none", marks=pytest.mark.release),
        pytest.param("OTEL_TRACES_SAMPLER", "always_off", marks=pytest.mark.release),
    ],
)
def test_the_standard_variables_switch_traces_off(collector: Collector, variable: str, value: str) -> None:
    traced = variable == "OTEL_TRACES_SAMPLER"  # a sampler decides call by call
    in_a_process(
        f"middleware = call(telemetry_endpoint={collector.endpoint!r}).registry.middleware\n"
        f"assert ('telemetry' in middleware) is {traced}",
        **{variable: value},
    )
    assert collector.spans == []


@pytest.mark.parametrize("other", ["grpc" if PROTOCOL != "grpc" else "http/protobuf", "http/json"])
def test_a_protocol_that_this_project_lacks_causes_a_notice(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", other)
    server = create_server(config(telemetry_endpoint="http://127.0.0.1:9"))
    (notice,) = [notice for notice in server.registry.notices if notice.startswith("telemetry")]
    assert f"not {other}" in notice
    assert (f"telemetry_protocol={other}" in notice) is (other != "http/json")


def test_another_tracer_provider_of_the_process_stays() -> None:
    in_a_process("""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
before = TracerProvider()
trace.set_tracer_provider(before)
registry = harness.create_server(harness.config(telemetry_endpoint="http://127.0.0.1:9")).registry
assert trace.get_tracer_provider() is before
assert "telemetry" in registry.middleware
assert any("tracer provider already" in notice for notice in registry.notices), registry.notices
""")


def test_without_an_endpoint_the_sdk_is_not_imported_and_spans_are_not_recorded() -> None:
    in_a_process("""
import sys
from weather_station.production import tracer

def tools(server):
    async def work() -> str:
        with tracer.start_as_current_span("own work") as span:
            assert not span.is_recording()
        return "done"
    server.tool()(work)

server = call(tools)
assert "telemetry" in server.registry.features and "telemetry" not in server.registry.middleware
heavy = ("opentelemetry.sdk.trace", "opentelemetry.exporter")  # redis imports the SDK's metrics where it finds them
loaded = [name for name in sys.modules if name.startswith(heavy)]
assert not loaded, loaded
""")


def test_the_exporter_is_imported_when_it_exports(collector: Collector) -> None:
    code = f"""
import sys

def exporter():
    return [name for name in sys.modules if name.startswith("opentelemetry.exporter.otlp.proto")]

loaded = []

def tools(server):
    async def work() -> str:
        loaded.extend(exporter())
        return "done"
    server.tool()(work)

call(tools, telemetry_endpoint={collector.endpoint!r})
assert not loaded, loaded
assert exporter()
"""
    in_a_process(code, OTEL_METRICS_EXPORTER="none", OTEL_LOGS_EXPORTER="none")
    assert collector.one("tools/call work")


def test_an_exporter_that_variables_configure_is_made_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "COMPRESSION" if PROTOCOL == "grpc" else "HTTP_CREDENTIAL_PROVIDER"
    variable = f"OTEL_{'' if PROTOCOL == 'grpc' else 'PYTHON_'}EXPORTER_OTLP_{name}"
    monkeypatch.setenv(variable, "unknown")
    with pytest.raises(ConfigError, match=f"{variable}: OpenTelemetry rejects the value"):
        create_server(config(telemetry_endpoint="http://127.0.0.1:9"))
