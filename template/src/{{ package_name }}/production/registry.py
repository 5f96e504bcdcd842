"""Everything that features and owners register for one server.

Data only: a feature's `install(registry)` adds to it before the server is built; `server.py` and the subpackages read.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import httpx2
from mcp.server.mcpserver import MCPServer
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from .caller import Caller, peer_caller
from .config import About, ProductionConfig
from .observe.meter import Meter, NullMeter
from .request import Middleware
from .upstream.client import Upstream, UpstreamMiddleware
from .upstream.errors import Verdict

Callback = Callable[[], Awaitable[None]]
"""A startup or shutdown callback."""

Check = Callable[[], Awaitable[None]]
"""A readiness check: returns when ready, raises with the reason when not."""


@dataclass(frozen=True, slots=True)
class HealthPart:
    """A feature's contribution to the health report."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    """Reasons why the server works with restrictions, one short text each."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A reachability check that `--check` runs."""

    target: str
    """Where the dependency is, without credentials."""
    check: Literal["http", "tcp"] | Check
    """Whether `target` answers over HTTP, accepts TCP connections, or passes a check of its own."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Routes on a port of their own."""

    name: str
    setting: str
    """The environment variable that chose the port, for error messages."""
    port: int
    path: str
    """The path to show as its address."""
    routes: tuple[BaseRoute, ...]


class Sample(NamedTuple):
    """One sample of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


class MetricsExport(Protocol):
    """The collected metrics."""

    path: str
    """The path that exposes them over HTTP."""

    def samples(self) -> Iterable[Sample]: ...

    def text(self) -> str:
        """Return the metrics in the Prometheus text format."""
        ...


class Circuit(Protocol):
    """One circuit of the circuit breaker."""

    def admit(self) -> int:
        """Admit a call and return the circuit's generation, or raise `CircuitOpenError`."""
        ...

    def record(self, generation: int, verdict: Verdict) -> None: ...


@dataclass(slots=True)
class HttpParts:
    """What is served over HTTP beside the MCP endpoint, and what protects it."""

    authentication: Callable[[ASGIApp], ASGIApp] | None = None
    """Wraps the MCP endpoint only; probes and /metrics are outside."""
    routes: list[BaseRoute] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    """Where else the server listens, by name: a path of its own address, or a URL."""
    start_checks: list[Callable[[], list[str]]] = field(default_factory=list)
    """Each returns the problems that forbid serving over HTTP with this configuration, one line each."""


@dataclass(slots=True)
class UpstreamParts:
    """What stands around the requests to the upstream."""

    middleware: dict[str, UpstreamMiddleware] = field(default_factory=dict)
    client_hooks: list[Callable[[httpx2.AsyncClient], None]] = field(default_factory=list)
    """Each gets the HTTP client when it is opened."""
    circuit: Callable[[str], Circuit] | None = None
    """Returns the circuit of a name."""


@dataclass(slots=True)
class HealthParts:
    """What readiness and health consist of."""

    checks: dict[str, Check] = field(default_factory=dict)
    """Readiness checks by name."""
    parts: list[Callable[[str], Awaitable[HealthPart]]] = field(default_factory=list)
    """Each gets the id of the caller that asks."""
    probes: dict[str, Probe] = field(default_factory=dict)
    """By what the dependency is used for."""
    failing: frozenset[str] = frozenset()
    """The readiness checks that failed in their last run."""


@dataclass(slots=True)
class ToolParts:
    """The production layer's own tools, and who wants to know of each tool."""

    register: list[Callable[[MCPServer[Any]], None]] = field(default_factory=list)
    on_added: list[Callable[[str], object]] = field(default_factory=list)
    """Each gets the name of every tool when it is registered."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What lives as long as the server runs: the SDK's lifespan state."""

    registry: Registry
    upstream: Upstream


@dataclass(slots=True)
class Registry:
    """One server's registrations."""

    config: ProductionConfig
    about: About
    features: tuple[str, ...] = ()
    """The installed features, by the name of their switch."""
    meter: Meter = field(default_factory=NullMeter)
    metrics: MetricsExport | None = None
    traced: bool = False
    """Whether the SDK's spans are recorded; without telemetry its tracing middleware is taken out."""
    identify: Callable[[Request | None], Caller] = peer_caller
    middleware: dict[str, Middleware] = field(default_factory=dict)
    """By the names in `inbound.pipeline.ORDER`."""
    http: HttpParts = field(default_factory=HttpParts)
    upstream: UpstreamParts = field(default_factory=UpstreamParts)
    health: HealthParts = field(default_factory=HealthParts)
    tools: ToolParts = field(default_factory=ToolParts)
    on_startup: list[Callback] = field(default_factory=list)
    on_shutdown: list[Callback] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    """What the operator should know at start and in `--check`, one line each."""
    draining: bool = False
    """Whether the server is stopping: it finishes what runs and rejects what is new."""
    running: list[Runtime] = field(default_factory=list)
    """One while the server runs; an in-process test client has one of its own."""
    started_at: float = field(default_factory=time.monotonic)
