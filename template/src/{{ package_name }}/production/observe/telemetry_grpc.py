"""Export of traces as OTLP over gRPC."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..registry import Registry
from .telemetry_settings import exports, require

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


def install(registry: Registry) -> None:
    # Imported here: OpenTelemetry's SDK and exporter take a third of the start, which is saved without an endpoint.
    if exports(registry.config):
        require(lambda: import_module(".telemetry", __package__))
        from . import telemetry

        telemetry.install(registry, "grpc", exporter)


def exporter(endpoint: str | None) -> SpanExporter:
    """Return an exporter to `endpoint`, such as `http://jaeger:4317` (`https`: TLS), or to that of the environment."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint)
