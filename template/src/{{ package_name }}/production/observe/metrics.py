"""Every tools/call is counted and timed, and `/metrics` shows it, with every other feature's series, to Prometheus.

A server has a registry of its own, so several servers in one process do not collide. Labels are bounded: tool names
are those registered (else `unknown`), and a tool has at most `MAX_ERROR_TYPES` error types (else `other`).
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client import Counter as PrometheusCounter
from prometheus_client.exposition import choose_encoder, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..registry import Listener, Registry, Sample
from ..request import CallNext, MCPRequest, Middleware, Result, Status
from .health import failing_checks
from .meter import Counter

LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds."""

MAX_ERROR_TYPES = 20
"""How many error types one tool may have before the rest counts as `other`."""

STATUSES: tuple[Status, ...] = ("success", "error", "rejected")


Family = PrometheusCounter | Gauge | Histogram
FamilyType = TypeVar("FamilyType", bound=Family)


class PrometheusMeter:
    """A `Meter` whose metrics `/metrics` shows, beside those of the process, the platform and the garbage collector."""

    path = "/metrics"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._families: dict[str, Family] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., PrometheusCounter]:
        counter = self._family(PrometheusCounter, name, documentation, labels)
        return counter.labels if labels else lambda: counter

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Gauge]:
        gauge = self._family(Gauge, name, documentation, labels)
        return gauge.labels if labels else lambda: gauge

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]
    ) -> Callable[..., Histogram]:
        histogram = self._family(Histogram, name, documentation, labels, buckets=buckets)
        return histogram.labels if labels else lambda: histogram

    def _family(
        self, kind: type[FamilyType], name: str, documentation: str, labels: tuple[str, ...], **options: Any
    ) -> FamilyType:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = kind(name, documentation, labels, registry=self.registry, **options)
        if not isinstance(family, kind) or family._labelnames != labels:
            raise ValueError(f"the metric {name} is declared already, with another type or other labels")
        return family

    def collect(self) -> Iterator[Metric]:
        """Yield all families, without the creation times that the client library adds: they double the series."""
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def samples(self) -> Iterator[Sample]:
        for metric in self.collect():
            for sample in metric.samples:
                yield Sample(sample.name, sample.labels, sample.value)

    def text(self) -> str:
        return generate_latest(self).decode()


class _ToolSeries:
    """One tool's children, bound once."""

    def __init__(self, tool: str, calls: Callable[..., Counter], latency: Histogram, errors: Callable[..., Counter]):
        self.calls: dict[Status, Counter] = {status: calls(tool, status) for status in STATUSES}
        self.latency = latency
        self._tool = tool
        self._error_family = errors
        self._errors: dict[str, Counter] = {}

    def error(self, error_type: str) -> Counter:
        found = self._errors.get(error_type)
        if found is not None:
            return found
        if len(self._errors) >= MAX_ERROR_TYPES:
            return self._error_family(self._tool, "other")
        return self._errors.setdefault(error_type, self._error_family(self._tool, error_type))


def install(registry: Registry) -> None:
    """Collect metrics and expose them: at a route of the server, or on a port of their own.

    Under stdio there is no server port: only `METRICS_PORT` opens a listener.
    """
    meter = PrometheusMeter()
    registry.meter = registry.metrics = meter
    labels = ("server_name", "version", "python_version")
    info = meter.gauge("mcp_build_info", "What runs, as labels; the value is always 1.", labels)
    info(registry.about.name, registry.about.version, platform.python_version()).set(1)
    registry.middleware["metrics"] = _middleware(registry, meter)
    route = Route(meter.path, _endpoint(registry, meter))
    config = registry.config
    port = config.metrics_port
    if port is None or (port == config.port != 0 and config.transport == "http"):
        registry.http.routes.append(route)
        registry.http.addresses["metrics"] = meter.path
    else:
        registry.http.listeners.append(Listener("metrics", "METRICS_PORT", port, meter.path, (route,)))


def _middleware(registry: Registry, meter: PrometheusMeter) -> Middleware:
    calls = meter.counter("mcp_tool_calls_total", "Tool calls that ended, by outcome.", ("tool_name", "status"))
    errors = meter.counter("mcp_tool_errors_total", "Tool calls that failed, by cause.", ("tool_name", "error_type"))
    latency = meter.histogram(
        "mcp_tool_latency_seconds",
        "Duration of tool calls in seconds; calls that a limit refused are not in it.",
        ("tool_name",),
        buckets=LATENCY_BUCKETS,
    )
    tools: dict[str, _ToolSeries] = {}
    active = 0

    def bind_tool(name: str) -> _ToolSeries:
        return tools.setdefault(name, _ToolSeries(name, calls, latency(name), errors))

    bind_tool("unknown")
    registry.tools.on_added.append(bind_tool)
    gauge = meter.gauge("mcp_active_requests", "Tool calls that run now.")()
    gauge.set_function(lambda: active)

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        nonlocal active
        series = tools.get(request.target_label) or bind_tool(request.target_label)
        active += 1
        started = perf_counter()
        try:
            return await call_next(request)
        finally:
            active -= 1
            series.calls[request.status].inc()
            if request.status != "rejected":
                series.latency.observe(perf_counter() - started)
            if request.status == "error":
                series.error(request.error_type or "unknown").inc()

    return middleware


def _endpoint(registry: Registry, meter: PrometheusMeter) -> Callable[[Request], Awaitable[Response]]:
    ready = meter.gauge("mcp_ready", "1 while every readiness check passes, 0 while one fails or the server stops.")()

    async def metrics(request: Request) -> Response:
        # Asked here, for a server that no probe asks is not ready either. A check ends within two seconds.
        ready.set(0 if await failing_checks(registry) else 1)
        encode, content_type = choose_encoder(",".join(request.headers.getlist("accept")))
        return Response(encode(meter), headers={"content-type": content_type})

    return metrics
