"""Every call's span reaches the collector with its parent and without secrets; a dead or hung one costs no call a wait.

Each server has its own provider and resource. OpenTelemetry's API knows one provider a process, and the SDK's spans go
there, so that one hands each span to the server which is at work.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import httpx2
import structlog
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link as SpanLink
from opentelemetry.trace import Status
from opentelemetry.util.types import Attributes

from .app import App
from .chain import Call, Next, Result
from .config import OTLP_ENDPOINTS, About, ConfigError, otel_environment
from .redaction import Redactor, configured_secrets, is_secret

FLUSH_SECONDS = 2.0
"""How long a stopping server waits for the collector to take the last spans."""

PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

EXPORTERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
)
"""The loggers of those that may be installed."""

MakeExporter = Callable[[str | None], SpanExporter]
"""Makes an exporter for an OTLP endpoint, or for that of the environment when it gets None."""

log = structlog.stdlib.get_logger(__name__)


def install(app: App, protocol: str, make_exporter: MakeExporter) -> None:
    """Traces the calls of `app`, over `protocol`.

    Raises:
        ConfigError: the exporter refuses the environment's `OTEL_*`.
    """
    environment = otel_environment()
    app.notices += _notices(environment, protocol)
    app.traced = True
    app.links["telemetry"] = _describe
    if not _become_global():
        app.notices.append("telemetry: this process has a tracer provider already; spans go there, by its settings")
        return
    # The standard variables win.
    endpoint = None if any(name in environment for name in OTLP_ENDPOINTS) else app.config.telemetry_endpoint
    traces = Traces(_resource(app.about), lambda: make_exporter(endpoint), Redactor(configured_secrets(app.config)))
    app.middleware.append(traces.middleware)
    app.client_hooks.append(_instrument)
    app.on_startup.append(traces.start)
    app.on_shutdown.append(traces.stop)


def _notices(environment: Mapping[str, str], protocol: str) -> list[str]:
    asked = next((environment[name] for name in PROTOCOLS if name in environment), protocol)
    if asked == protocol:
        return []
    return [
        f"telemetry: this project exports {protocol}, not {asked}; "
        f"change it with: uvx copier update --trust --data telemetry_protocol={asked}"
    ]


def _resource(about: About) -> Resource:
    ours = {
        "service.name": about.name,
        "service.version": about.version,
        "service.instance.id": str(uuid.uuid4()),
    }
    theirs = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in ours.items() if name not in theirs})


async def _describe(call: Call, following: Next) -> Result:
    """Says on the SDK's span who called and how it ended; its `error.type` is `tool_error` for every failed tool."""
    span = trace.get_current_span()
    try:
        return await following(call)
    finally:
        if span.is_recording():
            span.set_attribute("enduser.id", call.client_id)
            span.set_attribute("mcp.call.request_id", call.request_id)
            span.set_attribute("mcp.call.outcome", call.outcome)
            if call.error_type is not None:
                span.set_attribute("mcp.call.error_type", call.error_type)


def _instrument(client: httpx2.AsyncClient) -> None:
    HTTPX2ClientInstrumentor.instrument_client(client)


class Traces(SpanProcessor):
    """The traces of one server: its provider, and while it runs a queue of spans and a thread that exports them."""

    def __init__(self, resource: Resource, make_exporter: Callable[[], SpanExporter], redactor: Redactor) -> None:
        self._make = make_exporter
        self._redactor = redactor
        self._users = 0
        self._batch: BatchSpanProcessor | None = None
        self._tracers: dict[tuple[str, str, str], trace.Tracer] = {}
        try:
            make_exporter().shutdown()  # what it cannot use of the environment is said now, not at the first span
        except Exception as error:
            raise ConfigError([f"OTEL_EXPORTER_OTLP_*: the exporter cannot be made: {error}"]) from error
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self)

    async def start(self) -> None:
        _at_work.set(self)  # for what the startup callbacks begin and leave running
        self._users += 1
        if self._batch is None:
            self._exporter = Redacting(self._make(), self._redactor)
            self._batch = BatchSpanProcessor(self._exporter)

    async def stop(self) -> None:
        """Exports what waits, for at most `FLUSH_SECONDS`."""
        batch = self._batch
        if batch is None:  # the start failed before it came here
            return
        self._users -= 1
        if self._users:
            return
        self._batch = None
        # A daemon: it must not keep the process alive when the collector hangs.
        flushing = threading.Thread(target=batch.shutdown, name="flush of spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)
        if flushing.is_alive():
            log.warning("the last spans are lost: the collector did not take them", seconds=FLUSH_SECONDS)
            self._exporter.shutdown()

    def on_end(self, span: ReadableSpan) -> None:
        if self._batch is not None:
            self._batch.on_end(span)

    async def middleware(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Makes this server the one at work, for every span that begins inside."""
        token = _at_work.set(self)
        try:
            return await call_next(ctx)
        finally:
            _at_work.reset(token)

    def tracer(self, scope: tuple[str, str, str]) -> trace.Tracer:
        found = self._tracers.get(scope)
        if found is None:
            found = self._tracers[scope] = self._provider.get_tracer(*scope)
        return found


_at_work: ContextVar[Traces | None] = ContextVar("at_work", default=None)


class _ByServer(trace.TracerProvider):
    """The process's provider: each span goes to the server that is at work when it begins, or nowhere."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        return _TracerByServer((instrumenting_module_name, instrumenting_library_version or "", schema_url or ""))


class _TracerByServer(trace.Tracer):
    def __init__(self, scope: tuple[str, str, str]) -> None:
        self._scope = scope

    def _current(self) -> trace.Tracer:
        traces = _at_work.get()
        return _NO_TRACER if traces is None else traces.tracer(self._scope)

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._current().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._current().start_as_current_span(*args, **kwargs)


_NO_TRACER = trace.NoOpTracer()
_BY_SERVER = _ByServer()


def _become_global() -> bool:
    """Whether the process's spans come here: not where another provider came first, as auto-instrumentation's does."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        _limit_the_exporters_own_lines()
        trace.set_tracer_provider(_BY_SERVER)
        return True
    return provider is _BY_SERVER


class Redacting(SpanExporter):
    """Takes secrets out of spans on their way out, in the exporting thread: no call waits for it."""

    def __init__(self, exporter: SpanExporter, redactor: Redactor) -> None:
        self._exporter = exporter
        self._redactor = redactor
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export([span if self._is_clean(span) else self._cleaned(span) for span in spans])

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def _is_clean(self, span: ReadableSpan) -> bool:
        """Whether nothing of `span` has to change, as with most: to find that out is an eighth of making another."""
        attributes = span.attributes or {}
        if span.events or span.links or span.status.description or _any_is_secret(tuple(attributes)):
            return False
        texts = [span.name]
        for value in attributes.values():
            if isinstance(value, str):
                texts.append(value)
            elif not isinstance(value, (int, float)):
                return False
        # Looked at together: what is a secret in one of them is one here too.
        text = "\n".join(texts)
        return self._redactor.shortened(text) == text

    def _cleaned(self, span: ReadableSpan) -> ReadableSpan:
        text = self._redactor.shortened
        return ReadableSpan(
            text(span.name),
            span.context,
            span.parent,
            span.resource,
            self._attributes(span.attributes),
            [Event(text(event.name), self._attributes(event.attributes), event.timestamp) for event in span.events],
            [SpanLink(link.context, self._attributes(link.attributes)) for link in span.links],
            span.kind,
            status=Status(span.status.status_code, text(span.status.description or "") or None),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _attributes(self, attributes: Attributes) -> dict[str, Any]:
        found: dict[str, Any] = self._redactor.value(attributes or {})
        return found


@lru_cache(maxsize=256)
def _any_is_secret(keys: tuple[str, ...]) -> bool:
    """Most spans have the keys of one before."""
    return any(map(is_secret, keys))


class OnceAMinute(logging.Filter):
    """Lets one record a minute through, without its traceback: an outage of the collector is one piece of news."""

    _next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 60
        record.exc_info = None
        return True


def _limit_the_exporters_own_lines() -> None:
    once_a_minute = OnceAMinute()
    for name in EXPORTERS:
        logging.getLogger(name).addFilter(once_a_minute)
    # It says for every span of an outage that the queue is full, on the event loop.
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)
