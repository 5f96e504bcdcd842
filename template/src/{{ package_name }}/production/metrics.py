"""Every tools/call is counted and timed, and `/metrics` shows it, with every other feature's series, to Prometheus.

A server has a registry of its own, so several servers in one process do not collide. Labels are bounded: tool names
are those registered (else `unknown`), and a tool has at most `MAX_ERROR_TYPES` error types (else `other`).
"""

from __future__ import annotations

import asyncio
import platform
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import structlog
import uvicorn
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
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .app import App
from .chain import Call, Link, Next, Outcome, Result
from .config import ConfigError
from .health import failing_checks
from .lifecycle import bind
from .meter import Counter

LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds."""

MAX_ERROR_TYPES = 20
"""How many error types one tool may have before the rest counts as `other`."""

STATUSES: tuple[Outcome, ...] = ("success", "error", "rejected")

log = structlog.stdlib.get_logger(__name__)


class PrometheusMeter:
    """A `Meter` whose series `/metrics` shows, beside those of the process, the platform and the collector."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., PrometheusCounter]:
        counter = PrometheusCounter(name, documentation, labels, registry=self.registry)
        return counter.labels if labels else lambda: counter

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Gauge]:
        gauge = Gauge(name, documentation, labels, registry=self.registry)
        return gauge.labels if labels else lambda: gauge

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]
    ) -> Callable[..., Histogram]:
        histogram = Histogram(name, documentation, labels, registry=self.registry, buckets=buckets)
        return histogram.labels if labels else lambda: histogram

    def collect(self) -> Iterator[Metric]:
        """All families, without the creation times that the client adds: they double the number of series."""
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _ToolSeries:
    """One tool's children, bound once."""

    def __init__(self, tool: str, calls: Callable[..., Counter], latency: Histogram, errors: Callable[..., Counter]):
        self.calls: dict[Outcome, Counter] = {status: calls(tool, status) for status in STATUSES}
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


def install(app: App) -> None:
    """Makes `app.meter` real, counts the calls, and adds `/metrics`: a route, or a listener with another port.

    Under stdio there is no server's port: only `METRICS_PORT` brings a listener.
    """
    meter = PrometheusMeter()
    app.meter = meter
    build = ("server_name", "version", "python_version")
    info = meter.gauge("mcp_build_info", "What runs, as labels; the value is always 1.", build)
    info(app.about.name, app.about.version, platform.python_version()).set(1)
    app.links["metrics"] = _link(app, meter)
    route = Route("/metrics", _exposition(app, meter))
    port = app.config.metrics_port
    if port is None or (port == app.config.port != 0 and app.config.transport == "http"):
        app.routes.append(route)
        app.metrics_address = route.path
        return
    listener = _Listener(app, port, route)
    app.before_start.append(listener.bind)
    app.on_startup.append(listener.start)
    app.on_shutdown.append(listener.stop)


def _link(app: App, meter: PrometheusMeter) -> Link:
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
    app.on_tool.append(bind_tool)
    gauge = meter.gauge("mcp_active_requests", "Tool calls that run now.")()
    gauge.set_function(lambda: active)

    async def link(call: Call, following: Next) -> Result:
        nonlocal active
        series = tools.get(call.tool) or bind_tool(call.tool)
        active += 1
        started = perf_counter()
        try:
            return await following(call)
        finally:
            active -= 1
            series.calls[call.outcome].inc()
            if call.outcome != "rejected":
                series.latency.observe(perf_counter() - started)
            if call.outcome == "error":
                series.error(call.error_type or "unknown").inc()

    return link


def _exposition(app: App, meter: PrometheusMeter) -> Callable[[Request], Awaitable[Response]]:
    ready = meter.gauge("mcp_ready", "1 while every readiness check passes, 0 while one fails or the server stops.")()

    async def metrics(request: Request) -> Response:
        # Asked here, for a server that no probe asks is not ready either. A check ends within two seconds.
        ready.set(0 if await failing_checks(app) else 1)
        encode, content_type = choose_encoder(",".join(request.headers.getlist("accept")))
        return Response(encode(meter), headers={"content-type": content_type})

    return metrics


class _Listener:
    """`/metrics` on a port of its own, while the server runs."""

    def __init__(self, app: App, port: int, route: Route) -> None:
        self._app = app
        self._host = app.config.host
        self._port = port
        self._route = route
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    def bind(self) -> None:
        """Takes the port.

        Raises:
            ConfigError: it cannot be listened on.
        """
        self._socket = self._bound()

    def _bound(self) -> socket.socket:
        try:
            return bind(self._host, self._port)
        except OSError as error:
            problem = f"cannot listen on {self._host}:{self._port}: {error.strerror}"
            raise ConfigError([f"METRICS_PORT: {problem}. Choose another port"]) from None

    async def start(self) -> None:
        listener = self._socket or self._bound()
        host, port = listener.getsockname()[:2]
        self._server = _Server(
            uvicorn.Config(
                Starlette(routes=[self._route]),
                lifespan="off",
                log_config=None,
                log_level=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        self._app.metrics_address = f"http://{f'[{host}]' if ':' in host else host}:{port}{self._route.path}"

    async def stop(self) -> None:
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._socket = self._server = self._serving = None


class _Server(uvicorn.Server):
    """Leaves the signals to the server whose metrics it shows."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
