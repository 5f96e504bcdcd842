"""Export of traces as OTLP over HTTP, encoded as protobuf."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..registry import Registry
from .telemetry_session import collector_session
from .telemetry_settings import exports, require

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

PATH = "/v1/traces"


def install(registry: Registry) -> None:
    # Imported here: OpenTelemetry's SDK and exporter take a third of the start, which is saved without an endpoint.
    if exports(registry.config):
        require(lambda: import_module(".telemetry", __package__))
        from . import telemetry

        telemetry.install(registry, "http/protobuf", exporter)


def exporter(endpoint: str | None) -> SpanExporter:
    """Return an exporter to `endpoint`, a base URL such as `http://jaeger:4318`, or to that of the environment."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=endpoint and endpoint.removesuffix(PATH) + PATH, session=collector_session())
