"""Traces go out as OTLP over gRPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import exports_traces
from ..registry import Registry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


def install(registry: Registry) -> None:
    # Imported here: the SDK and its exporter are a third of the start, which a server without an endpoint saves.
    if exports_traces(registry.config):
        from . import telemetry

        telemetry.install(registry, "grpc", exporter)


def exporter(endpoint: str | None) -> SpanExporter:
    """An exporter to `endpoint`, such as `http://jaeger:4317`; `https://` takes TLS. None: that of the environment."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)
