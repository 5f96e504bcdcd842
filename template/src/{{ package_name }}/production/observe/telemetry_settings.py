"""Settings of the export: OpenTelemetry's own `OTEL_*` variables, and `OTEL_EXPORTER_ENDPOINT`.

In a module of its own, because it is used before OpenTelemetry's SDK is imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from ..config import ConfigError, ProductionConfig
from ..environment import rejected

OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


def standard_endpoints(signal: str) -> tuple[str, str]:
    """Return OpenTelemetry's variables for the address of the collector of a signal, in order of precedence."""
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", OTLP_ENDPOINT


def exports(config: ProductionConfig, signal: str = "traces") -> bool:
    """Return whether a signal is exported: by the standard `OTEL_*` variables, else by `OTEL_EXPORTER_ENDPOINT`."""
    environment = otel_environment()
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = environment.get(f"OTEL_{signal.upper()}_EXPORTER", "").lower()
    if exporters:
        return "otlp" in exporters
    return config.telemetry_endpoint is not None or any(name in environment for name in standard_endpoints(signal))


def traces_endpoint(config: ProductionConfig) -> str:
    """Return the URL of the trace collector; without any setting, the default of the OTLP specification."""
    environment = otel_environment()
    names = standard_endpoints("traces")
    endpoint = next((environment[name] for name in names if name in environment), config.telemetry_endpoint)
    return endpoint or ("http://localhost:4317" if config.telemetry_protocol == "grpc" else "http://localhost:4318")


def otel_environment() -> Mapping[str, str]:
    """Return the `OTEL_*` variables that are set and not empty: OpenTelemetry treats an empty variable as unset."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_") and value}


def require(build: Callable[[], object]) -> None:
    """Call `build` once, and report which of the `OTEL_*` variables make it fail.

    Raises:
        ConfigError: `build` fails because of a variable.
    """
    if failing := rejected(build, sorted(otel_environment())):
        raise ConfigError(
            [f"{name}: OpenTelemetry rejects the value ({type(error).__name__})" for name, error in failing]
        )
