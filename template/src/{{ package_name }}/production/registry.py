"""What features and owners register for one server: data only.

Features add to the registry in their `install(registry)`, before the server is built.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic_settings import BaseSettings
from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from .caller import Caller, peer_caller
from .config import About, ProductionConfig
from .observe.meter import Meter, NullMeter
from .policy import Policy
from .request import MCPRequest, Middleware, ResultBudget
from .upstream.client import Upstream, UpstreamParts

Server = MCPServer[Any]
CallContext = Context[Any, Any]

Callback = Callable[[], Awaitable[None]]
"""A startup or shutdown callback."""

Check = Callable[[], Awaitable[None]]
"""A readiness check: returns if ready, else raises the reason."""


FirstUse = Callable[[str, str, float], Awaitable[bool]]
"""Gets a purpose, a key and its lifetime in seconds; remembers the key, and returns whether it is new for the purpose.
"""


@dataclass(frozen=True, slots=True)
class HealthPart:
    """A feature's contribution to the health report."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    """Why the server works with restrictions: a code for each reason, whose details are for the log only."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A reachability check that `--check` runs."""

    target: str
    """The dependency's URL without credentials."""
    check: Literal["http", "tcp"] | Check
    """How to check it: an HTTP request to `target`, a TCP connection to it, or a function that raises."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Routes on a port other than the server's."""

    name: str
    setting: str
    """The environment variable of the port, for error messages."""
    port: int
    path: str
    """The path of the address that is logged at start."""
    routes: tuple[BaseRoute, ...]


class Share(Protocol):
    """The part of a limited resource that each caller may use at the same time."""

    size: int

    async def acquire(self) -> Callable[[], None]:
        """Wait for one part of the current caller's share, take it, and return the function that gives it back."""


class Targets(Protocol):
    """The tools, resources and prompts of a server, see `sdk.ProductionServer`."""

    def labels(self, method: str) -> Iterable[str]: ...

    def function(self, method: str, label: str) -> Callable[..., Any] | None: ...

    def policy(self, method: str, label: str) -> Policy: ...

    def arguments(self, tool: str) -> Sequence[str]: ...

    def label(self, method: str, params: Mapping[str, Any]) -> str: ...


@dataclass(slots=True)
class HttpParts:
    """What features add to the HTTP server."""

    authentication: Callable[[ASGIApp], ASGIApp] | None = None
    """Wraps the MCP endpoint, but not the other routes."""
    direct: Callable[[Any, ASGIApp], ASGIApp] = lambda server, handler: handler
    """Gets the server and the SDK's handler of the MCP endpoint, and returns the one to use."""
    endpoint: list[Callable[[ASGIApp], ASGIApp]] = field(default_factory=list)
    """Each wraps the MCP endpoint inside the authentication and the limits on a request's body."""
    respond: Callable[[ASGIApp], ASGIApp] = lambda app: app
    """Wraps the handler of the MCP endpoint, inside the wrappers of `endpoint`."""
    limits: Callable[[ASGIApp, Callable[[str], bool] | None], ASGIApp] = lambda app, is_open: app
    """Wraps the MCP endpoint inside the authentication; also gets whether a session is open, if there are sessions."""
    route_limits: Callable[[ASGIApp], ASGIApp] = lambda app: app
    """Wraps the routes beside the MCP endpoint, except those for probes."""
    scopes_supported: set[str] = field(default_factory=set)
    """Scopes that an operation needs, for the metadata of the protected resource."""
    wrappers: list[Callable[[ASGIApp], ASGIApp]] = field(default_factory=list)
    """Each wraps the whole application."""
    routes: list[BaseRoute] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    """Addresses that are logged at start, by name: a path on the server's own port, or a URL."""
    start_checks: list[Callable[[], list[str]]] = field(default_factory=list)
    """Each returns why this configuration must not be served over HTTP, one line for each reason."""


@dataclass(slots=True)
class HealthParts:
    """What features and owners add to readiness, to the health report and to `--check`."""

    checks: dict[str, Check] = field(default_factory=dict)
    """Readiness checks by name."""
    degrading: set[str] = field(default_factory=set)
    """The checks whose failure makes the server degraded, but not unready."""
    parts: list[Callable[[str], Awaitable[HealthPart]]] = field(default_factory=list)
    """Each gets the id of the caller that requests the report."""
    probes: dict[str, Probe] = field(default_factory=dict)
    """By the purpose of the dependency, such as `traces`."""
    failing: frozenset[str] = frozenset()
    """The readiness checks that failed the last time."""
    latest: asyncio.Task[list[str]] | None = None
    """The latest run of the readiness checks, which returns the names of those that fail."""
    latest_until: float = 0.0
    """When that result is too old, on the event loop's clock."""


@dataclass(slots=True)
class ToolParts:
    """The production layer's own tools, and callbacks for all tools."""

    register: list[Callable[[MCPServer[Any]], None]] = field(default_factory=list)
    """Each registers a tool of the production layer."""
    is_hidden: Callable[[str, ToolAnnotations | None], bool] = lambda name, annotations: False
    """Returns whether a tool is left out: neither listed nor callable."""
    on_added: list[Callable[[str], object]] = field(default_factory=list)
    """Each gets the name of every tool that is registered."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The state of a running server: the SDK's lifespan context."""

    registry: Registry
    upstream: Upstream


class Audit(Protocol):
    """The audit trail, for decisions that are made outside of MCP requests."""

    def record(self, event: str, outcome: str, request: Request | None, **fields: Any) -> None:
        """Record what was decided of an `event`: `http`, `sign_in`, `token` or `registration`."""

    def rejects(self) -> bool:
        """Return whether requests must be rejected at the moment, because they could not be recorded."""


MAX_LEARNED = 16_384
"""Greatest number of secrets that are learned; the oldest are forgotten."""


class LearnedSecrets:
    """Secrets that are found at run time, such as the tokens in a file and those obtained for the upstream."""

    def __init__(self) -> None:
        self.latest: deque[str] = deque(maxlen=MAX_LEARNED)
        self.count = 0
        """How many were added, the forgotten ones too."""

    def add(self, *secrets: str) -> None:
        """Redact `secrets` from now on."""
        for secret in secrets:
            self.latest.append(secret)
            self.count += 1


@dataclass(slots=True)
class Registry:
    """One server's registrations."""

    config: ProductionConfig
    about: About
    settings: BaseSettings | None = None
    """The owner's own settings (`options.py`)."""
    server_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for `MCPServer`: the owner's presentation (`options.py`), and those of features."""
    features: tuple[str, ...] = ()
    """The installed features by the names of their switches."""
    meter: Meter = field(default_factory=NullMeter)
    identify: Callable[[Request | None], Caller] = peer_caller
    middleware: dict[str, Middleware] = field(default_factory=dict)
    """Middleware by the names in `inbound.pipeline.ORDER`."""
    budget: ResultBudget | None = None
    """Limits the results."""
    prepare_channel: Callable[[MCPRequest], None] = lambda request: None
    """Prepares the channel from a request to its client, where the SDK made it."""
    first_use: FirstUse = field(init=False)
    """Checks that a key is used once; set in projects with `once` or rate limits."""
    calls: dict[asyncio.Task[object], MCPRequest] = field(default_factory=dict)
    """The requests that are being handled, by their task, without open subscriptions."""
    policy_fields: set[str] = field(default_factory=lambda: {"timeout"})
    """The fields of a policy that the server supports."""
    targets: Targets = field(init=False)
    """The tools, resources and prompts, once the server is built."""
    on_registered: list[Callable[[], None]] = field(default_factory=list)
    """Each is called before the first request, when all tools, resources and prompts are registered."""
    audit: Audit | None = None
    visibility_key: Callable[[Caller], Hashable] = lambda caller: None
    """Returns a key of what a caller may see: callers with equal keys see the same items of every list."""
    admit_notification: Callable[[str], bool] = lambda caller_id: True
    """Returns whether a notification of the caller is handled."""
    cancel_call: Callable[[str, object], None] = lambda caller_id, request_id: None
    """Cancels a running call: gets the caller and the JSON-RPC id of a `notifications/cancelled`."""
    http: HttpParts = field(default_factory=HttpParts)
    upstream: UpstreamParts = field(default_factory=UpstreamParts)
    health: HealthParts = field(default_factory=HealthParts)
    tools: ToolParts = field(default_factory=ToolParts)
    on_session_end: list[Callable[[float], None]] = field(default_factory=list)
    """Each gets the duration in seconds of every session that has ended."""
    on_startup: list[Callback] = field(default_factory=list)
    on_shutdown: list[Callback] = field(default_factory=list)
    lease: Callable[[str, float], Awaitable[bool | None]] | None = None
    """Takes the lease of a name for some seconds; `None` where replicas share no Redis."""
    thread_share: Share | None = None
    """A caller's share of the threads for plain functions; `None` where any caller may use all."""
    jobs: set[str] = field(default_factory=set)
    """The names of the owner's jobs."""
    notices: list[str] = field(default_factory=list)
    """Messages for the operator, one line each, which are logged at start and shown by `--check`."""
    check_rows: list[Callable[[Sequence[Tool]], Iterable[tuple[str, str]]]] = field(default_factory=list)
    """Each gets all tools, and returns rows that `--check` shows: `setting` or `advice`, and a text."""
    log_sinks: list[Callable[[int, Mapping[str, Any]], None]] = field(default_factory=list)
    """Each gets the level and the redacted fields of every line of the log."""
    secrets: LearnedSecrets = field(default_factory=LearnedSecrets)
    draining: bool = False
    """Whether the server is stopping: running requests are finished and new ones are rejected."""
    running: list[Runtime] = field(default_factory=list)
    """The state of the running server; each in-process test client adds another one."""
    started_at: float = field(default_factory=time.monotonic)


def registry_of(where: Server | CallContext) -> Registry:
    """Return the registry of a server, given as itself or by the context of one of its calls.

    Raises:
        TypeError: the server was not made by `create_server`.
    """
    server = where.mcp_server if isinstance(where, Context) else where
    registry = getattr(server, "registry", None)
    if not isinstance(registry, Registry):
        raise TypeError("this server has no production layer: make it with create_server()")
    return registry
