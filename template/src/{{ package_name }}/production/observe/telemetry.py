"""Exports a span for every request, with its parent and without secrets; a collector that is down delays no call.

The process has one tracer provider, to which the SDK's spans, the upstream client's and the owner's go.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import httpx2
import structlog
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link as SpanLink
from opentelemetry.trace import Status
from opentelemetry.util.types import Attributes

from ..config import (
    OTLP_ENDPOINTS,
    About,
    ConfigError,
    otel_environment,
    traces_endpoint,
    without_credentials,
)
from ..registry import Probe, Registry
from ..request import CallNext, MCPRequest, Result
from .redaction import Redactor, configured_secrets, is_secret

FLUSH_SECONDS = 2.0
"""How long a stopping server waits for the collector to take the last spans."""

PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

EXPORTERS = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
)
"""Loggers of the exporters that may be installed."""

MakeExporter = Callable[[str | None], SpanExporter]
"""Returns an exporter to an OTLP endpoint; `None` stands for the one in the environment."""

log = structlog.stdlib.get_logger(__name__)


def install(registry: Registry, protocol: str, make_exporter: MakeExporter) -> None:
    """Trace requests and export the spans over `protocol`.

    Raises:
        ConfigError: the exporter rejects the environment's `OTEL_*`.
    """
    environment = otel_environment()
    registry.notices += _notices(environment, protocol)
    registry.traced = True
    registry.middleware["telemetry"] = _describe
    if not _set_provider(registry.about):
        registry.notices.append("telemetry: this process has a tracer provider already; spans go there")
        return
    # The standard variables win.
    endpoint = None if any(name in environment for name in OTLP_ENDPOINTS) else registry.config.telemetry_endpoint
    try:
        make_exporter(endpoint).shutdown()  # report now what it rejects, not at the first span
    except Exception as error:
        raise ConfigError([f"OTEL_EXPORTER_OTLP_*: the exporter cannot be made: {error}"]) from error
    redactor = Redactor(configured_secrets(registry.config))
    collector = traces_endpoint(registry.config)
    registry.health.probes["traces"] = Probe(without_credentials(collector), "tcp" if protocol == "grpc" else "http")
    registry.upstream.client_hooks.append(_instrument)

    async def start() -> None:
        EXPORT.start(Redacting(make_exporter(endpoint), redactor))

    registry.on_startup.append(start)
    registry.on_shutdown.append(EXPORT.stop)


def _notices(environment: Mapping[str, str], protocol: str) -> list[str]:
    requested = next((environment[name] for name in PROTOCOLS if name in environment), protocol)
    if requested == protocol:
        return []
    return [
        f"telemetry: this project exports {protocol}, not {requested}; "
        f"change it with: uvx copier update --trust --data telemetry_protocol={requested}"
    ]


def _resource(about: About) -> Resource:
    defaults = {
        "service.name": about.name,
        "service.version": about.version,
        "service.instance.id": str(uuid.uuid4()),
    }
    configured = OTELResourceDetector().detect().attributes
    return Resource.create({name: value for name, value in defaults.items() if name not in configured})


async def _describe(request: MCPRequest, call_next: CallNext) -> Result:
    """Set who called and how it ended on the SDK's span, whose `error.type` is `tool_error` for every failure."""
    span = trace.get_current_span()
    try:
        return await call_next(request)
    finally:
        if span.is_recording():
            span.set_attribute("enduser.id", request.caller.id)
            span.set_attribute("mcp.call.request_id", request.request_id)
            span.set_attribute("mcp.call.outcome", request.status)
            if request.error_type is not None:
                span.set_attribute("mcp.call.error_type", request.error_type)


def _instrument(client: httpx2.AsyncClient) -> None:
    HTTPX2ClientInstrumentor.instrument_client(client)


class Export(SpanProcessor):
    """Queues finished spans for a thread that exports them, while the server runs."""

    def __init__(self) -> None:
        self._running = 0
        self._exporter: SpanExporter | None = None
        self._batch: BatchSpanProcessor | None = None

    def start(self, exporter: SpanExporter) -> None:
        self._running += 1
        if self._batch is None:
            self._exporter = exporter
            self._batch = BatchSpanProcessor(exporter)

    async def stop(self) -> None:
        """Export what is queued, for at most `FLUSH_SECONDS`."""
        batch, exporter = self._batch, self._exporter
        if batch is None or exporter is None:  # the start failed before it came here
            return
        self._running -= 1
        if self._running:
            return
        self._batch = self._exporter = None
        # A daemon: it must not keep the process alive when the collector hangs.
        flushing = threading.Thread(target=batch.shutdown, name="flush of spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_SECONDS)
        if flushing.is_alive():
            log.warning("the last spans are lost: the collector did not accept them", seconds=FLUSH_SECONDS)
            exporter.shutdown()

    def on_end(self, span: ReadableSpan) -> None:
        if self._batch is not None:
            self._batch.on_end(span)


EXPORT = Export()
"""Of this process, whose tracer provider can be set only once."""

_providers: list[TracerProvider] = []
"""The tracer provider of this module, once it is set."""


def _set_provider(about: About) -> bool:
    """Return whether spans of this process come to `EXPORT`: not where auto-instrumentation has set a provider."""
    current = trace.get_tracer_provider()
    if isinstance(current, trace.ProxyTracerProvider):
        _limit_exporter_logs()
        provider = TracerProvider(resource=_resource(about), shutdown_on_exit=False)
        provider.add_span_processor(EXPORT)
        _providers.append(provider)
        trace.set_tracer_provider(provider)
        return True
    return current in _providers


class Redacting(SpanExporter):
    """Takes secrets out of spans before they are exported, in the exporting thread: no call waits for it."""

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
        """Return whether nothing of `span` has to change: finding that out costs an eighth of making a copy."""
        attributes = span.attributes or {}
        if span.events or span.links or span.status.description or _any_is_secret(tuple(attributes)):
            return False
        texts = [span.name]
        for value in attributes.values():
            if isinstance(value, str):
                texts.append(value)
            elif not isinstance(value, (int, float)):
                return False
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
        redacted: dict[str, Any] = self._redactor.value(attributes or {})
        return redacted


@lru_cache(maxsize=256)
def _any_is_secret(keys: tuple[str, ...]) -> bool:
    """Cached, because most spans have the same keys."""
    return any(map(is_secret, keys))


class OnceAMinute(logging.Filter):
    """Lets one record a minute pass, without its traceback: an outage of the collector must not flood the log."""

    _next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 60
        record.exc_info = None
        return True


def _limit_exporter_logs() -> None:
    once_a_minute = OnceAMinute()
    for name in EXPORTERS:
        logging.getLogger(name).addFilter(once_a_minute)
    # During an outage it logs for every span that the queue is full, on the event loop.
    logging.getLogger("opentelemetry.sdk._shared_internal").setLevel(logging.ERROR)
