"""Distributed tracing: redacted spans, exported over OTLP by a thread, so that a slow collector delays no call.

The spans are those of each request, of each attempt of the upstream client, and of the owner's `tracer`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import httpx2
import structlog
from mcp.shared.exceptions import MCPError
from opentelemetry import propagate, trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link as SpanLink
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import Attributes
from starlette.requests import Request

from ..config import About, without_credentials
from ..json_values import valid_unicode
from ..registry import Probe, Registry
from ..request import PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, CallNext, MCPRequest, Result
from ..upstream.client import METHODS, Send
from .redaction import MAX_TEXT, Redactor, configured_secrets, is_secret
from .telemetry_settings import otel_environment, require, standard_endpoints, traces_endpoint

FLUSH_SECONDS = 2.0
"""How long a stopping server waits for the export of the last spans."""

PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

CHOICES = ("http/protobuf", "grpc")
"""The answers to `telemetry_protocol`."""

EXPORTERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.common._internal",
)
"""The loggers of the exporters."""

TRACE_FIELDS = ("traceparent", "tracestate")
"""Fields of a request's `_meta` (MCP specification 2026-07-28, basic#meta) and of HTTP. Nothing reads `baggage`."""

MAX_TRACE_FIELD = 8192
"""Characters of one of `TRACE_FIELDS`; a longer one is ignored."""

MAX_ID = 64
"""Characters of a JSON-RPC id, of a session id and of a protocol version in a span."""

MAX_URI = 256
"""Characters of the URI of a resource in a span."""

MAX_QUEUED = 2 * MAX_TEXT
"""Characters of a text in the queue: more than is exported, so that no secret at the end of a text is cut in half."""

MAX_BATCH = 256
"""Spans of one export, where the variable of OpenTelemetry does not say: 512, its default, take 2 MB more memory."""

MAX_INTEGER = 2**63
"""OTLP has no larger integers."""

MAX_TIME = 2**64 - 1
"""The last time of OTLP, in nanoseconds since 1970."""

Signal = Literal["traces", "metrics", "logs"]

MakeExporter = Callable[[str | None], SpanExporter]
"""Returns an exporter to an OTLP endpoint, or to that of the environment for `None`."""

_tracer = trace.get_tracer(__name__)

log = structlog.stdlib.get_logger(__name__)


def install(registry: Registry, protocol: str, make_exporter: MakeExporter) -> None:
    """Record a span for each request and export it over `protocol`.

    Raises:
        ConfigError: the exporter rejects an `OTEL_*` variable.
    """
    environment = otel_environment()
    registry.notices += _notices(environment, protocol)
    # The standard variables override the setting.
    has_standard = any(name in environment for name in standard_endpoints("traces"))
    endpoint = None if has_standard else registry.config.telemetry_endpoint

    def make() -> SpanExporter:
        return make_exporter(endpoint)

    def build() -> None:
        provider = TracerProvider(resource=resource_of(registry.about), shutdown_on_exit=False)
        # Without variables of its own an exporter has only its endpoint, which is checked already.
        has_variables = any("EXPORTER_OTLP" in name for name in os.environ)
        provider.add_span_processor(batches(make() if has_variables else DeferredExporter(make)))
        provider.shutdown()

    # A wrong variable is rejected now and not while the server starts.
    require(build)
    registry.middleware["telemetry"] = _trace
    provider = _process_provider(registry)
    if provider is None:
        registry.notices.append("telemetry: this process has a tracer provider already; spans go there")
        return
    queue = provider.queue
    redactor = Redactor(configured_secrets(registry), registry.secrets)
    collector = traces_endpoint(registry.config)
    registry.health.probes["traces"] = Probe(without_credentials(collector), "tcp" if protocol == "grpc" else "http")
    registry.upstream.traced = _traced

    async def start() -> None:
        exporter = DeferredExporter(make)
        queue.start(RedactingExporter(counting(registry, "traces", exporter), redactor), exporter.prepare)

    registry.on_startup.append(start)
    registry.on_shutdown.append(queue.stop)


def batches(exporter: SpanExporter) -> BatchSpanProcessor:
    """Return a queue that exports its spans in batches."""
    given = os.environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    return BatchSpanProcessor(exporter, max_export_batch_size=None if given else MAX_BATCH)


def counting(registry: Registry, signal: Signal, exporter: Any) -> Any:
    """Make an exporter of a signal count the exports that fail, and return it."""
    exporter.export = counted(registry, signal, exporter.export)
    return exporter


def counted(registry: Registry, signal: Signal, export: Callable[..., Any]) -> Callable[..., Any]:
    """Return `export`, which counts the calls that raise an exception or do not return `SUCCESS`."""
    _limit_exporter_logs()
    documentation = "Exports over OTLP that the collector did not accept."
    failures = registry.meter.counter("mcp_telemetry_export_failures_total", documentation, ("signal",))(signal)

    def count_failure(*batch: Any, **options: Any) -> Any:
        result = None
        try:
            result = export(*batch, **options)
        finally:
            if getattr(result, "name", "") != "SUCCESS":
                failures.inc()
        return result

    return count_failure


def _notices(environment: Mapping[str, str], protocol: str) -> list[str]:
    requested = next((environment[name] for name in PROTOCOLS if name in environment), protocol)
    if requested == protocol:
        return []
    advice = f"unset the variable: the template has {' and '.join(CHOICES)}"
    if requested in CHOICES:
        advice = (
            "change it with: uvx copier update --trust --defaults --vcs-ref=:current: "
            f"--data telemetry_protocol={requested}"
        )
    return [f"telemetry: this project exports {protocol}, not {requested}; {advice}"]


def resource_of(about: About) -> Resource:
    """Return what describes this process in each signal; the standard variables replace its attributes."""
    defaults = {
        "service.name": about.name,
        "service.version": about.version,
        "service.instance.id": str(uuid.uuid4()),
    }
    configured = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in defaults.items() if name not in configured})


async def _trace(request: MCPRequest, call_next: CallNext) -> Result:
    """Record a span around the request, below the client's span (W3C Trace Context).

    The client's span is that of the request's `_meta`, with a link to that of the HTTP headers; without one in `_meta`,
    it is that of the HTTP headers. Names and attributes follow the semantic conventions for MCP. Text from the client
    is always bounded.
    """
    label = request.target_label
    parent, links = _parent(request)
    name = f"{request.method} {label}" if label else request.method
    span = _tracer.start_span(name, parent, SpanKind.SERVER, _attributes(request), links)
    outer = attach(trace.set_span_in_context(span))  # the SDK's context managers take a sixth of a span
    try:
        return await call_next(request)
    except MCPError as error:
        span.set_attribute("rpc.response.status_code", str(error.error.code))
        raise
    finally:
        detach(outer)
        if span.is_recording():
            span.set_attribute("mcp_server.status", request.status)
            if request.error_type is not None:
                span.set_attribute("error.type", request.error_type)
            if request.status == "error":
                span.set_status(StatusCode.ERROR)
        span.end()


def _parent(request: MCPRequest) -> tuple[Context | None, list[SpanLink]]:
    """Return the context of the client's span, `None` for that of the running code, and the links."""
    http = request.context.request
    of_http = _extracted(_trace_headers(http)) if http is not None and _has(http, b"traceparent") else None
    of_message = _extracted(request.context.meta or {})
    if of_message is None or of_http is None:
        return of_message or of_http, []
    return of_message, [SpanLink(trace.get_current_span(of_http).get_span_context())]


def _has(http: Request, name: bytes) -> bool:
    """Return whether a request has a header: the request's own mapping takes several times as long."""
    return any(key == name for key, _ in http.scope["headers"])


def _trace_headers(http: Request) -> dict[str, str]:
    """Return `TRACE_FIELDS` of the headers; several lines of `tracestate` are one list (W3C Trace Context, 3.3.1)."""
    fields = {name: http.headers.getlist(name) for name in TRACE_FIELDS}
    return {name: ",".join(values) if name == "tracestate" else values[0] for name, values in fields.items() if values}


def _extracted(carrier: Mapping[str, Any]) -> Context | None:
    if "traceparent" not in carrier:
        return None
    values = ((name, carrier.get(name)) for name in TRACE_FIELDS)
    fields = {name: value for name, value in values if isinstance(value, str) and len(value) <= MAX_TRACE_FIELD}
    try:
        context = propagate.extract(valid_unicode(fields))
    except Exception:  # what a client writes must not fail its request
        return None
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def _attributes(request: MCPRequest) -> dict[str, str]:
    context = request.context
    http = context.request
    attributes = {
        "mcp.method.name": request.method,
        "mcp.protocol.version": context.protocol_version[:MAX_ID],
        "jsonrpc.request.id": str(context.request_id)[:MAX_ID],
        "network.transport": "pipe" if http is None else "tcp",
        "enduser.id": request.caller.id,
        "mcp_server.request_id": request.request_id,
    }
    if http is not None:
        attributes["network.protocol.name"] = "http"
        if _has(http, b"mcp-session-id"):
            attributes["mcp.session.id"] = http.headers["mcp-session-id"][:MAX_ID]
    if request.method == TOOLS_CALL:
        attributes |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": request.target_label}
    elif request.method == PROMPTS_GET:
        attributes["gen_ai.prompt.name"] = request.target_label
    elif request.method == RESOURCES_READ:
        attributes["mcp.resource.uri"] = request.target[:MAX_URI]
        attributes["mcp_server.resource_template"] = request.target_label
    return attributes


def _traced(send: Send) -> Send:
    """Record a span around each request to the upstream until the head of its response, and pass its context on.

    The attributes are those of the conventions for HTTP that instrumentations use by default.
    """

    async def traced(request: httpx2.Request) -> httpx2.Response:
        name, method = (request.method, request.method) if request.method in METHODS else ("HTTP", "_OTHER")
        attributes = {"http.method": method, "http.url": str(request.url)}
        span = _tracer.start_span(name, None, SpanKind.CLIENT, attributes)
        outer = attach(trace.set_span_in_context(span))
        try:
            propagate.inject(request.headers)
            response = await send(request)
        except Exception as error:
            span.record_exception(error)
            span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
            raise
        else:
            span.set_attribute("http.status_code", response.status_code)
            if response.status_code >= 400:
                span.set_status(StatusCode.ERROR)
            return response
        finally:
            detach(outer)
            span.end()

    return traced


class SpanQueue(SpanProcessor):
    """Queues finished spans for a thread that exports them; drops them while the server does not run."""

    def __init__(self) -> None:
        self._exporter: SpanExporter | None = None
        self._batch: BatchSpanProcessor | None = None
        self._prepare: Callable[[], object] = lambda: None
        self._has_spans = False

    def start(self, exporter: SpanExporter, prepare: Callable[[], object]) -> None:
        """Export to `exporter`, which `prepare` makes ready."""
        self._exporter, self._prepare = exporter, prepare
        self._batch = batches(exporter)

    async def stop(self) -> None:
        """Export what is queued, for at most `FLUSH_SECONDS`."""
        batch, exporter = self._batch, self._exporter
        if batch is None or exporter is None:  # the start failed before it began
            return
        self._batch = self._exporter = None
        if self._has_spans:
            await asyncio.to_thread(self._prepare)
        # A daemon thread, so that a collector that does not answer cannot keep the process alive.
        flush = threading.Thread(target=batch.shutdown, name="span flush", daemon=True)
        flush.start()
        await asyncio.to_thread(flush.join, FLUSH_SECONDS)
        if flush.is_alive():
            log.warning("the last spans are lost: the collector did not accept them", seconds=FLUSH_SECONDS)
            exporter.shutdown()

    def on_end(self, span: ReadableSpan) -> None:
        if self._batch is not None:
            self._has_spans = True
            self._batch.on_end(_bounded(span))


def _bounded(span: ReadableSpan) -> ReadableSpan:
    """Return a span whose names, keys and description are as short as its values, which the SDK limits."""
    names = [span.name, span.status.description or "", *(span.attributes or ())]
    for event in span.events:
        names += [event.name, *(event.attributes or ())]
    for link in span.links:
        names += link.attributes or ()
    if max(map(len, names)) <= MAX_QUEUED:
        return span

    def short(attributes: Attributes) -> dict[str, Any]:
        return {key[:MAX_QUEUED]: value for key, value in (attributes or {}).items()}

    return _copied(
        span,
        span.name[:MAX_QUEUED],
        Status(span.status.status_code, (span.status.description or "")[:MAX_QUEUED] or None),
        short(span.attributes),
        [Event(event.name[:MAX_QUEUED], short(event.attributes), _time(event.timestamp)) for event in span.events],
        [SpanLink(link.context, short(link.attributes)) for link in span.links],
    )


def _copied(
    span: ReadableSpan,
    name: str,
    status: Status,
    attributes: Attributes,
    events: Sequence[Event],
    links: Sequence[SpanLink],
) -> ReadableSpan:
    return ReadableSpan(
        name,
        span.context,
        span.parent,
        span.resource,
        attributes,
        events,
        links,
        span.kind,
        status=status,
        start_time=_time(span.start_time),
        end_time=_time(span.end_time),
        instrumentation_scope=_scope(span.instrumentation_scope),
    )


def _time(value: Any) -> int:
    """Return the time of a span that OTLP can have; 0 for what is no number."""
    try:
        return min(max(int(value), 0), MAX_TIME)
    except (TypeError, ValueError, OverflowError):
        return 0


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_TIME


@lru_cache(maxsize=256)
def _scope(scope: InstrumentationScope | None) -> InstrumentationScope | None:
    """Return the scope of a tracer in valid Unicode: `scope` itself where it is."""
    if scope is None:
        return None
    texts = [str(text or "") for text in (scope.name, scope.version, scope.schema_url)]
    name, version, schema_url = valid_unicode(texts)
    cleaned = InstrumentationScope(name, version, schema_url, encodable(scope.attributes or {}))
    return scope if cleaned == scope else cleaned


class CallerSampler(Sampler):
    """Samples traces that callers began like those that begin here, and ignores the caller's sampled flag."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def should_sample(
        self, parent_context: Context | None, trace_id: int, *arguments: Any, **options: Any
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if not parent.is_remote:
            return self._sampler.should_sample(parent_context, trace_id, *arguments, **options)
        result = self._sampler.should_sample(Context(), trace_id, *arguments, **options)
        return SamplingResult(result.decision, result.attributes, parent.trace_state)

    def get_description(self) -> str:
        return f"CallerSampler({self._sampler.get_description()})"


class ServerTracerProvider(TracerProvider):
    """The provider of this process, which OpenTelemetry accepts once: servers that run one after the other share it."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(
            resource=resource_of(registry.about), shutdown_on_exit=False, span_limits=_limits(otel_environment())
        )
        if not registry.config.telemetry_caller_sampling:
            self.sampler = CallerSampler(self.sampler)
        self.queue = SpanQueue()
        self.add_span_processor(self.queue)


def _limits(environment: Mapping[str, str]) -> SpanLimits:
    """Return the limits of a span: the standard variables, and one for attributes that have none by default."""
    configured = "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in environment
    return SpanLimits() if configured else SpanLimits(max_attribute_length=MAX_QUEUED)


def _process_provider(registry: Registry) -> ServerTracerProvider | None:
    """Set and return the provider of this process; `None` where another one is set, as by auto-instrumentation."""
    current = trace.get_tracer_provider()
    if isinstance(current, trace.ProxyTracerProvider):
        provider = ServerTracerProvider(registry)
        trace.set_tracer_provider(provider)
        return provider
    return current if isinstance(current, ServerTracerProvider) else None


class DeferredExporter(SpanExporter):
    """Exporter that is made at the first export, in the exporting thread: its imports take a tenth of the start."""

    def __init__(self, make: Callable[[], SpanExporter]) -> None:
        self._make = make
        self._made: SpanExporter | None = None
        self._making = threading.Lock()

    def prepare(self) -> SpanExporter:
        """Make the exporter, unless it is made."""
        with self._making:
            self._made = self._made or self._make()
            return self._made

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self.prepare().export(spans)

    def shutdown(self) -> None:
        if self._made is not None:
            self._made.shutdown()


class RedactingExporter(SpanExporter):
    """Removes secrets from spans and passes them to another exporter, in the exporting thread."""

    def __init__(self, exporter: SpanExporter, redactor: Redactor) -> None:
        self._exporter = exporter
        self._redactor = redactor
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([span if self._is_clean(span) else self._redacted(span) for span in spans])

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def _is_clean(self, span: ReadableSpan) -> bool:
        """Return whether `span` can be exported as it is: a check that costs an eighth of a redacted copy."""
        attributes = span.attributes or {}
        if span.events or span.links or span.status.description or not _are_clean(tuple(attributes)):
            return False
        if not (_is_time(span.start_time) and _is_time(span.end_time)):
            return False
        if _scope(span.instrumentation_scope) is not span.instrumentation_scope:
            return False
        texts = [span.name]
        for value in attributes.values():
            if isinstance(value, str):
                texts.append(value)
            elif not isinstance(value, (int, float)) or not -MAX_INTEGER <= value < MAX_INTEGER:
                return False
        text = "\n".join(texts)
        return self._text(text) == text

    def _redacted(self, span: ReadableSpan) -> ReadableSpan:
        return _copied(
            span,
            self._text(span.name),
            Status(span.status.status_code, self._text(span.status.description or "") or None),
            self._attributes(span.attributes),
            [
                Event(self._text(event.name), self._attributes(event.attributes), _time(event.timestamp))
                for event in span.events
            ],
            [SpanLink(link.context, self._attributes(link.attributes)) for link in span.links],
        )

    def _text(self, text: str) -> str:
        valid: str = valid_unicode(self._redactor.shortened(text))
        return valid

    def _attributes(self, attributes: Attributes) -> dict[str, Any]:
        return encodable(self._redactor.value(attributes or {}))


def encodable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes that OTLP can have: texts in valid Unicode, and integers of 64 bits."""
    return {key: _encodable(value) for key, value in valid_unicode(dict(attributes)).items()}


def _encodable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        encoded = [_encodable(item) for item in value]
        return encoded if len({*map(type, encoded)}) < 2 else [str(item) for item in encoded]
    return str(value) if isinstance(value, int) and not -MAX_INTEGER <= value < MAX_INTEGER else value


@lru_cache(maxsize=256)
def _are_clean(keys: tuple[str, ...]) -> bool:
    # Cached, because most spans have the same keys.
    return valid_unicode(keys) == keys and not any(map(is_secret, keys))


class OncePerMinute(logging.Filter):
    """Passes one record a minute, without its traceback, so that an outage of the collector does not flood the log."""

    _next_time = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next_time:
            return False
        self._next_time = now + 60
        record.exc_info = None
        return True


once_per_minute = OncePerMinute()


def _limit_exporter_logs() -> None:
    for name in EXPORTERS:
        logging.getLogger(name).addFilter(once_per_minute)  # which a logger has only once
    # These have a warning for each span while the queue is full, and for each attribute beyond a limit.
    for name in ("opentelemetry.sdk._shared_internal", "opentelemetry.attributes"):
        logging.getLogger(name).setLevel(logging.ERROR)
