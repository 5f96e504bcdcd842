"""Settings of the trace export: OpenTelemetry's own `OTEL_*` variables, and `OTEL_EXPORTER_ENDPOINT`.

In a module of its own, because it is used before OpenTelemetry's SDK is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..config import ProductionConfig

OTLP_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""OpenTelemetry's variables for the address of the trace collector, in order of precedence."""


def exports_traces(config: ProductionConfig) -> bool:
    """Return whether traces are exported: by the standard `OTEL_*` variables, else by `OTEL_EXPORTER_ENDPOINT`."""
    environment = otel_environment()
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environment.get("OTEL_TRACES_EXPORTER", "").lower()
    if exporters:
        return "otlp" in exporters
    return config.telemetry_endpoint is not None or any(name in environment for name in OTLP_ENDPOINTS)


def traces_endpoint(config: ProductionConfig) -> str:
    """Return the URL of the trace collector; without any setting, the default of the OTLP specification."""
    environment = otel_environment()
    endpoint = next((environment[name] for name in OTLP_ENDPOINTS if name in environment), config.telemetry_endpoint)
    return endpoint or ("http://localhost:4317" if config.telemetry_protocol == "grpc" else "http://localhost:4318")


def otel_environment() -> Mapping[str, str]:
    """Return the `OTEL_*` variables that are set and not empty: OpenTelemetry treats an empty variable as unset."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_") and value}
