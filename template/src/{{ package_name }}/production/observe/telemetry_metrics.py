"""Export of metrics over OTLP: those of `/metrics`, once a minute (OTEL_METRIC_EXPORT_INTERVAL), from a thread.

The metrics of the OpenTelemetry convention for MCP have its names and attributes; all others have the names of
`/metrics`, without `_total`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from typing import Any, cast

import prometheus_client as prometheus
import structlog

from ..config import ConfigError
from ..registry import Registry
from .health import failing_checks
from .metrics import PrometheusMeter
from .telemetry_settings import exports, otel_environment

NAMES = {
    "mcp_server_operation_duration_seconds": "mcp.server.operation.duration",
    "mcp_server_session_duration_seconds": "mcp.server.session.duration",
}
ATTRIBUTES = {
    "mcp_method_name": "mcp.method.name",
    "gen_ai_tool_name": "gen_ai.tool.name",
    "gen_ai_prompt_name": "gen_ai.prompt.name",
    "error_type": "error.type",
    "mcp_resource_template": "mcp_server.resource_template",
}
UNITS = {"_seconds": "s", "_bytes": "By"}

INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
MAX_DIGITS = 20
"""Digits of an interval: Python does not read a number of thousands."""

READY_SECONDS = 5.0
"""How long an export waits for the readiness checks, which end within two seconds."""

log = structlog.stdlib.get_logger(__name__)


def install(registry: Registry) -> None:
    """Export the metrics while the server runs, and once more when it stops.

    Raises:
        ConfigError: an `OTEL_*` variable is not valid.
    """
    meter = registry.meter
    if not exports(registry.config, "metrics") or not isinstance(meter, PrometheusMeter):
        return
    from . import telemetry_signals
    from .telemetry import counted, resource_of

    text = otel_environment().get(INTERVAL, "60000")
    if len(text) > MAX_DIGITS or not text.isdecimal() or not 0 < int(text) <= 86_400_000:
        raise ConfigError([f"{INTERVAL}: must be a number of milliseconds (accepted: from 1 to 86400000)"])
    exporters = [telemetry_signals.exporter_of(registry.config, "metrics")]
    resource = resource_of(registry.about)
    ready = meter.gauge("mcp_ready", "")()
    started = time.time_ns()
    stopped = threading.Event()

    def send() -> Any:
        return exporters[-1].export(converted(meter.collect(), resource, started, time.time_ns()))

    send_and_count = counted(registry, "metrics", send)

    def export(is_last: bool = False) -> None:
        try:
            send_and_count()
        except Exception:
            if is_last or not stopped.is_set():  # else its exporter was closed
                log.warning("the metrics could not be exported", exc_info=True)

    async def update_ready() -> None:
        ready.set(0 if await failing_checks(registry) else 1)

    def run(loop: asyncio.AbstractEventLoop) -> None:
        while not stopped.wait(int(text) / 1000):
            with suppress(RuntimeError, TimeoutError, CancelledError):  # the loop ends, or is busy
                asyncio.run_coroutine_threadsafe(update_ready(), loop).result(READY_SECONDS)
            export()

    async def start() -> None:
        stopped.clear()
        exporters.append(telemetry_signals.exporter_of(registry.config, "metrics"))
        # A daemon thread, so that a collector that does not answer cannot keep the process alive.
        threading.Thread(target=run, args=(asyncio.get_running_loop(),), name="metrics export", daemon=True).start()

    async def stop() -> None:
        if not stopped.is_set():
            stopped.set()
            await telemetry_signals.finish(partial(export, is_last=True), exporters[-1].shutdown, "metrics")

    registry.on_startup.append(start)
    registry.on_shutdown.append(stop)


def converted(families: Iterable[prometheus.Metric], resource: Any, started: int, now: int) -> Any:
    """Return metrics of the Prometheus client as OpenTelemetry's, with times in nanoseconds."""
    from opentelemetry.sdk.metrics import export as otlp
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    cumulative = otlp.AggregationTemporality.CUMULATIVE
    metrics = []
    for family in families:
        if not family.samples:
            continue
        data: otlp.Sum | otlp.Gauge | otlp.Histogram
        if family.type == "histogram":
            data = otlp.Histogram([_histogram(*series, started, now) for series in _series(family)], cumulative)
        else:
            points = [
                otlp.NumberDataPoint(_attributes(sample.labels), started, now, sample.value)
                for sample in family.samples
            ]
            data = otlp.Sum(points, cumulative, True) if family.type == "counter" else otlp.Gauge(points)
        unit = next((unit for suffix, unit in UNITS.items() if family.name.endswith(suffix)), "")
        metrics.append(otlp.Metric(NAMES.get(family.name, family.name), family.documentation, unit, data))
    scope = otlp.ScopeMetrics(InstrumentationScope(__name__), metrics, "")
    return otlp.MetricsData([otlp.ResourceMetrics(resource, [scope], "")])


def _attributes(labels: Mapping[str, str]) -> dict[str, str]:
    return {ATTRIBUTES.get(name, name): value for name, value in labels.items() if value}


def _series(family: prometheus.Metric) -> Iterable[tuple[dict[str, str], dict[str, float]]]:
    """Yield the labels of each histogram, and its sum and its cumulative buckets by upper bound."""
    found: defaultdict[frozenset[tuple[str, str]], dict[str, float]] = defaultdict(dict)
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        part = sample.labels.get("le") or sample.name.removeprefix(f"{family.name}_")
        found[frozenset(labels.items())][part] = sample.value
    return ((dict(labels), parts) for labels, parts in found.items())


def _histogram(labels: Mapping[str, str], parts: Mapping[str, float], started: int, now: int) -> Any:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    bounds = sorted((float(bound), count) for bound, count in parts.items() if bound not in ("sum", "count"))
    counts = [int(count - below) for (_, count), (_, below) in zip(bounds, [(0, 0), *bounds], strict=False)]
    unknown = cast("float", None)  # OTLP's minimum and maximum are optional
    limits = [bound for bound, _ in bounds[:-1]]
    return HistogramDataPoint(
        _attributes(labels), started, now, sum(counts), parts["sum"], counts, limits, unknown, unknown
    )
