"""Traces go out as OTLP over HTTP, in protobuf."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import exports_traces
from ..registry import Registry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PATH = "/v1/traces"


def install(registry: Registry) -> None:
    # Imported here: the SDK and its exporter are a third of the start, which a server without an endpoint saves.
    if exports_traces(registry.config):
        from . import telemetry

        telemetry.install(registry, "http/protobuf", exporter)


def exporter(endpoint: str | None) -> SpanExporter:
    """An exporter to `endpoint`, a base such as `http://jaeger:4318`; None: to that of the environment."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint and endpoint.removesuffix(PATH) + PATH)
