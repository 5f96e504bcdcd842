"""What the export of metrics and that of logs over OTLP have in common."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

import structlog

from ..config import ProductionConfig
from .telemetry import FLUSH_SECONDS
from .telemetry_session import collector_session
from .telemetry_settings import exports, otel_environment, require, standard_endpoints

MODULES = {"metrics": ("metric_exporter", "OTLPMetricExporter"), "logs": ("_log_exporter", "OTLPLogExporter")}
"""Module and class of the exporter of a signal, in the package of each protocol."""

log = structlog.stdlib.get_logger(__name__)


def exporter_of(config: ProductionConfig, signal: Literal["metrics", "logs"]) -> Any:
    """Return the exporter of a signal; `None` where it is not exported.

    Raises:
        ConfigError: the exporter rejects an `OTEL_*` variable.
    """
    if not exports(config, signal):
        return None
    protocol = "grpc" if config.telemetry_protocol == "grpc" else "http"
    module, name = MODULES[signal]
    exporter = getattr(import_module(f"opentelemetry.exporter.otlp.proto.{protocol}.{module}"), name)
    environment = otel_environment()
    endpoint = config.telemetry_endpoint
    if any(variable in environment for variable in standard_endpoints(signal)):
        endpoint = None
    elif endpoint and protocol == "http":
        endpoint = f"{endpoint.removesuffix('/v1/traces')}/v1/{signal}"

    def make() -> Any:
        options = {} if protocol == "grpc" else {"session": collector_session()}
        return exporter(endpoint=endpoint, **options)

    require(lambda: make().shutdown())
    return make()


async def finish(export: Callable[[], object], shutdown: Callable[[], object], signal: str) -> None:
    """Run the last export of a stopping server in a thread, for at most `FLUSH_SECONDS`, and close the exporter."""
    thread = threading.Thread(target=export, name=f"{signal} flush", daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, FLUSH_SECONDS)
    if thread.is_alive():
        log.warning(f"the last {signal} are lost: the collector did not accept them", seconds=FLUSH_SECONDS)
    threading.Thread(target=shutdown, name=f"{signal} shutdown", daemon=True).start()
