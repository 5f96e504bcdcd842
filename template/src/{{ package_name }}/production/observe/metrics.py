"""Prometheus metrics: counts and durations of MCP requests, and the endpoint that exposes them with all other metrics.

Labels are bounded: a tool name is that of a registered tool or `unknown`, and a tool, or a method and its target, has
at most `MAX_ERROR_TYPES` error types before `other`.
"""

from __future__ import annotations

import os
import platform
from abc import abstractmethod
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar, get_args

import prometheus_client as prometheus
from prometheus_client.exposition import generate_latest
from prometheus_client.samples import Sample
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..config import ConfigError
from ..json_values import valid_unicode
from ..registry import Listener, Registry
from ..request import (
    LISTEN,
    PROMPTS_GET,
    RESOURCES_READ,
    TOOLS_CALL,
    CallNext,
    MCPRequest,
    Middleware,
    Result,
    Status,
)
from ..upstream import attempts
from .exposition import PLACEHOLDER, Exposition, ZeroSeries, format_of, without_creation_times
from .health import failing_checks
from .meter import Counter, Histogram

LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds."""

OPERATION_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds, of the semantic conventions for MCP."""

PORTION = 64
"""Amounts that a metric adds up at once."""

FAILED = ("error", "client_error")
"""Statuses that `mcp_tool_errors_total` counts."""

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client writes all metrics to files in the directory that this variable names."""

MAX_ERROR_TYPES = 20
"""Error types of one tool, or of one method and target; further ones are counted as `other`."""

STATUSES: tuple[Status, ...] = get_args(Status)


class _Labelled(prometheus.metrics.MetricWrapperBase):
    """A metric whose labels have U+FFFD for lone surrogates, with which no scrape would succeed."""

    def labels(self, *values: object, **named: object) -> Any:
        return super().labels(
            *(valid_unicode(str(value)) for value in values),
            **{name: valid_unicode(str(value)) for name, value in named.items()},
        )


class _Portions(_Labelled):
    """A metric without exemplars that adds up its amounts in portions, which takes a fifth of the time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._pending: list[float] = []
        self._adding = Lock()
        super().__init__(*args, **options)

    def add_up(self) -> None:
        """Add the pending amounts to the values of the metric."""
        with self._adding:
            amounts = self._pending[:]
            del self._pending[: len(amounts)]  # not what other threads append meanwhile
        if amounts:
            self._add(amounts)

    @abstractmethod
    def _add(self, amounts: list[float]) -> None: ...

    def _child_samples(self) -> Iterable[Any]:
        self.add_up()
        return super()._child_samples()


class LeanCounter(_Portions, prometheus.Counter):
    def inc(self, amount: float = 1, exemplar: object = None) -> None:
        if amount < 0:
            raise ValueError("a counter cannot go down")
        self._pending.append(amount)
        if len(self._pending) >= PORTION:
            self.add_up()

    def _add(self, amounts: list[float]) -> None:
        self._value.inc(sum(amounts))


class LeanHistogram(_Portions, prometheus.Histogram):
    def observe(self, amount: float, exemplar: object = None) -> None:
        self._pending.append(amount)
        if len(self._pending) >= PORTION:
            self.add_up()

    def _add(self, amounts: list[float]) -> None:
        total = sum(amounts)
        self._sum.inc(total)
        if total != total:  # NaN is in no bucket
            amounts = [amount for amount in amounts if amount == amount]
        amounts.sort()
        counted = 0
        for bucket, bound in zip(self._buckets, self._upper_bounds, strict=True):
            if counted == len(amounts):
                break
            below = bisect_right(amounts, bound, counted)
            bucket.inc(below - counted)
            counted = below


class LabelledGauge(_Labelled, prometheus.Gauge): ...


Family = prometheus.Counter | prometheus.Gauge | prometheus.Histogram
FamilyType = TypeVar("FamilyType", bound=Family)


class PrometheusMeter:
    """A `Meter` that collects its metrics and those of the process, the platform and the garbage collector."""

    path = "/metrics"

    def __init__(self) -> None:
        self._process = prometheus.CollectorRegistry()
        self._families: dict[str, Family] = {}
        prometheus.ProcessCollector(registry=self._process)
        prometheus.PlatformCollector(registry=self._process)
        prometheus.GCCollector(registry=self._process)
        self.zeros = ZeroSeries()

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., LeanCounter]:
        counter = self._family(LeanCounter, name, documentation, labels)
        return counter.labels if labels else lambda: counter

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., prometheus.Gauge]:
        gauge = self._family(LabelledGauge, name, documentation, labels)
        return gauge.labels if labels else lambda: gauge

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]
    ) -> Callable[..., prometheus.Histogram]:
        histogram = self._family(LeanHistogram, name, documentation, labels, buckets=buckets)
        return histogram.labels if labels else lambda: histogram

    def _family(
        self, kind: type[FamilyType], name: str, documentation: str, labels: tuple[str, ...], **options: Any
    ) -> FamilyType:
        key = name.removesuffix("_total")  # which the client library adds to the name of a counter
        family = self._families.get(key)
        if family is None:
            family = self._families[key] = kind(name, documentation, labels, registry=None, **options)
        if not isinstance(family, kind) or family._labelnames != labels:
            raise ValueError(f"the metric {name} is declared already, with another type or other labels")
        return family

    def collect(self) -> Iterator[prometheus.Metric]:
        """Yield all metrics."""
        yield from self._process.collect()
        for family in [*self._families.values()]:
            for metric in family.collect():
                self.zeros.add_to(metric)
                yield without_creation_times(metric)

    def exposition(self) -> Exposition:
        """Return what makes the text of /metrics."""
        return Exposition(self._process, self._families, self.zeros)

    def samples(self) -> Iterator[Sample]:
        for metric in self.collect():
            yield from metric.samples

    def text(self) -> str:
        return generate_latest(self).decode()


class _ToolMetrics:
    """The metrics of one tool, looked up by their labels once."""

    def __init__(self, tool: str, calls: Callable[..., Counter], latency: Histogram, errors: Callable[..., Counter]):
        self.calls: dict[Status, Counter] = {status: calls(tool, status) for status in STATUSES}
        self.latency = latency
        self._tool = tool
        self._error_metric = errors
        self._errors: dict[str, Counter] = {}

    def errors(self, error_type: str) -> Counter:
        """Return the counter of an error type, or the one of `other` beyond `MAX_ERROR_TYPES`."""
        counter = self._errors.get(error_type)
        if counter is not None:
            return counter
        if len(self._errors) >= MAX_ERROR_TYPES:
            return self._error_metric(self._tool, "other")
        return self._errors.setdefault(error_type, self._error_metric(self._tool, error_type))


def install(registry: Registry) -> None:
    """Collect metrics and expose them on the server's own port, or on `METRICS_PORT` where that is another one.

    Over stdio the server has no port, so that metrics are exposed on `METRICS_PORT` only.

    Raises:
        ConfigError: prometheus_client cannot write metrics to the directory that `PROMETHEUS_MULTIPROC_DIR` names.
    """
    for name in (MULTIPROCESS, MULTIPROCESS.lower()):
        directory = os.environ.get(name, "")
        if name in os.environ and not os.access(directory or "-", os.W_OK | os.X_OK):
            raise ConfigError([f"{name}: {directory!r} is not a directory that this process can write to"])
    meter = PrometheusMeter()
    registry.meter = meter
    labels = ("server_name", "version", "python_version")
    info = meter.gauge("mcp_build_info", "Names and versions as labels; the value is always 1.", labels)
    info(registry.about.name, registry.about.version, platform.python_version()).set(1)
    registry.middleware["metrics"] = _middleware(registry, meter)
    _observe_sessions(registry, meter)
    registry.upstream.middleware["metrics"] = attempts.recorder(meter)
    route = Route(meter.path, _endpoint(registry, meter))
    config = registry.config
    port = config.metrics_port
    if port is None or (port == config.port != 0 and config.transport == "http"):
        registry.http.routes.append(route)
        if config.transport == "http":
            registry.http.addresses["metrics"] = meter.path
    else:
        registry.http.listeners.append(Listener("metrics", "METRICS_PORT", port, meter.path, (route,)))


CALLS = ("mcp_tool_calls_total", "Finished tool calls by status.", ("tool_name", "status"))
LATENCY = ("mcp_tool_latency_seconds", "Duration of tool calls in seconds, without rejected calls.", ("tool_name",))


def _zeros() -> ZeroSeries:
    """Return the series of a tool before its first call."""
    calls = prometheus.Counter(*CALLS, registry=None)
    for status in STATUSES:
        calls.labels(PLACEHOLDER, status)
    latency = prometheus.Histogram(*LATENCY, registry=None, buckets=LATENCY_BUCKETS)
    latency.labels(PLACEHOLDER)
    return ZeroSeries(calls, latency)


def _middleware(registry: Registry, meter: PrometheusMeter) -> Middleware:
    calls = meter.counter(*CALLS)
    errors = meter.counter("mcp_tool_errors_total", "Failed tool calls by error type.", ("tool_name", "error_type"))
    latency = meter.histogram(*LATENCY, buckets=LATENCY_BUCKETS)
    tools: dict[str, _ToolMetrics] = {}
    active = 0
    zeros = meter.zeros = _zeros()

    def first_call(name: str) -> _ToolMetrics:
        zeros.tools.pop(name, None)
        return tools.setdefault(name, _ToolMetrics(name, calls, latency(name), errors))

    def add_tool(name: str) -> None:
        if name not in tools:
            zeros.tools[name] = None

    add_tool("unknown")
    operations = _Operations(meter)
    registry.tools.on_added.append(add_tool)
    gauge = meter.gauge("mcp_active_requests", "Running requests, without open subscriptions.")()
    gauge.set_function(lambda: active)

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        nonlocal active
        counted = request.method != LISTEN
        active += counted
        started = perf_counter()
        try:
            return await call_next(request)
        finally:
            active -= counted
            seconds = perf_counter() - started
            operations.observe(request, seconds)
            if request.method == TOOLS_CALL:
                tool = tools.get(request.target_label) or first_call(request.target_label)
                tool.calls[request.status].inc()
                if request.status != "rejected":
                    tool.latency.observe(seconds)
                if request.status in FAILED:
                    tool.errors(request.error_type or "unknown").inc()

    return middleware


class _Operations:
    """Durations of all requests (OpenTelemetry semantic conventions for MCP, `mcp.server.operation.duration`)."""

    def __init__(self, meter: PrometheusMeter) -> None:
        self._metric = meter.histogram(
            "mcp_server_operation_duration_seconds",
            "Duration of requests in seconds.",
            ("mcp_method_name", "gen_ai_tool_name", "gen_ai_prompt_name", "mcp_resource_template", "error_type"),
            buckets=OPERATION_BUCKETS,
        )
        self._children: dict[tuple[str, str, str], Histogram] = {}
        self._error_types: defaultdict[tuple[str, str], int] = defaultdict(int)

    def observe(self, request: MCPRequest, seconds: float) -> None:
        key = (request.method, request.target_label, request.error_type or "")
        child = self._children.get(key) or self._child(*key)
        child.observe(seconds)

    def _child(self, method: str, target: str, error_type: str) -> Histogram:
        if error_type:
            if self._error_types[method, target] >= MAX_ERROR_TYPES:
                error_type = "other"
            else:
                self._error_types[method, target] += 1
        targets = [target if method == targeted else "" for targeted in (TOOLS_CALL, PROMPTS_GET, RESOURCES_READ)]
        child: Histogram = self._metric(method, *targets, error_type)
        return self._children.setdefault((method, target, error_type), child)


def _observe_sessions(registry: Registry, meter: PrometheusMeter) -> None:
    config = registry.config
    if config.transport == "http" and config.session_mode == "stateful":
        name, text = "mcp_server_session_duration_seconds", "Duration of ended sessions in seconds."
        registry.on_session_end.append(meter.histogram(name, text, buckets=OPERATION_BUCKETS)().observe)


def _endpoint(registry: Registry, meter: PrometheusMeter) -> Callable[[Request], Awaitable[Response]]:
    ready = meter.gauge("mcp_ready", "1 while every readiness check passes, 0 while one fails or the server stops.")()

    exposition = meter.exposition()

    async def metrics(request: Request) -> Response:
        # The checks run at each scrape, since nothing else may request /readyz. They end within two seconds.
        ready.set(0 if await failing_checks(registry) else 1)
        encode, content_type = format_of(",".join(request.headers.getlist("accept")))
        text = await exposition.text(encode, content_type)
        return Response(text, headers={"content-type": content_type, "cache-control": "no-store"})

    return metrics
