"""One server's parts: what its features contribute, and what is read while it runs.

Nothing here is global, so several servers can live in one process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
import structlog
from mcp.server.context import ServerMiddleware
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from . import chain, tools
from .chain import Call, Link, Next, Result
from .client import Credentials, Upstream, UpstreamLink, UpstreamSeries
from .config import About, ConfigError, ProductionConfig, StartError
from .connections import Connection
from .identity import client_identifier
from .meter import Meter, NullMeter

if TYPE_CHECKING:
    from .lifecycle import Drain

SHUTDOWN_CALLBACK_SECONDS = 5.0
"""How long one shutdown callback may take."""

log = structlog.stdlib.get_logger(__name__)

Callback = Callable[[], Awaitable[None]]
Endpoint = Callable[[Request], Awaitable[Response]]
Check = Callable[[], Awaitable[None]]
"""A readiness check: returns when ready, raises with the reason when not."""


@dataclass(frozen=True, slots=True)
class HealthPart:
    """What a feature adds to the health report."""

    fields: dict[str, Any] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()
    """Why the server works, but not as it should; one short reason each."""


class App:
    """What the features of one server add up to. A feature's `install(app)` fills it; nothing else does."""

    def __init__(self, config: ProductionConfig, about: About) -> None:
        self.config = config
        self.about = about
        self.meter: Meter = NullMeter()
        self.links: dict[str, Link] = {"errors": chain.errors, "timeout": chain.timeout(self)}
        self.upstream_links: dict[str, UpstreamLink] = {}
        self.upstream_credentials: Credentials | None
        """The upstream's key and where it goes; set, as the next, by `client.install`."""
        self.upstream_series: UpstreamSeries
        self.client_hooks: list[Callable[[httpx2.AsyncClient], None]] = []
        self.endpoint_wrappers: list[Callable[[ASGIApp], ASGIApp]] = []
        """Around the MCP endpoint only, first one outermost; probes and /metrics are not behind them."""
        self.middleware: list[ServerMiddleware[Any]] = []
        """Around every message, outside the SDK's span; what can be a link is one instead."""
        self.routes: list[BaseRoute] = []
        self.readiness: dict[str, Check] = {}
        self.health: list[Callable[[str], Awaitable[HealthPart]]] = []
        """Each gets the id of the client that asks."""
        self.start_checks: list[Callable[[], list[str]]] = []
        """Each returns the problems that forbid serving over HTTP with this configuration, a line each."""
        self.connections: dict[str, Connection] = {}
        """What a feature talks to, by what it is for; `--check` asks whether it answers."""
        self.metrics_address: str | None = None
        """Where `/metrics` is: a path of the server's own address, or a URL."""
        self.notices: list[str] = []
        """What the operator should know at start and in `--check`, a line each."""
        self.on_startup: list[Callback] = []
        self.on_shutdown: list[Callback] = []
        self.features: tuple[str, ...] = ()
        """The features installed, by the name of their switch."""
        self.tools: list[Callable[[MCPServer[Any]], None]] = []
        """Each registers tools of its feature."""
        self.on_tool: list[Callable[[str], object]] = []
        """Each gets the name of every tool that is registered, when it is."""
        self.before_start: list[Callable[[], None]] = []
        """Each takes what serving needs, such as a port, or raises `ConfigError`; then the startup callbacks run."""
        self.traced = False
        """Whether the SDK's spans are recorded; without telemetry its middleware is taken out."""
        self.drain: Drain
        """Set by `lifecycle.install`."""
        self.draining = False
        self.failing: frozenset[str] = frozenset()
        """The readiness checks that failed when they ran last."""
        self.started_at = time.monotonic()
        try:
            self.identify: Callable[[Request | None], str] = client_identifier(config.trusted_proxies)
        except ValueError as error:
            raise ConfigError([f"TRUSTED_PROXIES: {error} (accepted: addresses and CIDR blocks)"]) from None


@dataclass(frozen=True, slots=True)
class Runtime:
    """What lives as long as the server runs: the SDK's lifespan state."""

    app: App
    upstream: Upstream


class ProductionServer(MCPServer[Runtime]):
    """An `MCPServer` whose every tools/call goes through the chain."""

    def __init__(self, app: App) -> None:
        about = app.about
        super().__init__(
            about.name,
            title=about.title,
            description=about.description,
            version=about.version,
            log_level=app.config.log_level,
            lifespan=_lifespan,
        )
        self.production = app
        self._chain: Next | None = None
        if not app.traced:
            self.middleware[:] = [link for link in self.middleware if type(link).__name__ != "OpenTelemetryMiddleware"]
        self.middleware[:0] = app.middleware

    def add_tool(self, fn: Callable[..., Any], name: str | None = None, *further: Any, **options: Any) -> None:
        """Registers a tool. What the SDK lets pass with a warning, such as a second tool of a name, stops the start.

        Raises:
            StartError: the name cannot be had, or the function cannot be a tool.
        """
        tool = name or str(getattr(fn, "__name__", ""))
        taken = self._tool_manager.get_tool(tool)
        if problem := tools.refusal(fn, tool, taken.fn if taken else None):
            raise StartError(problem)
        try:
            super().add_tool(fn, tool, *further, **options)
        except Exception as error:
            log.debug("a tool is refused", exc_info=error)
            raise StartError(tools.failure(fn, tool, error)) from error
        for hook in self.production.on_tool:
            hook(tool)

    def custom_route(
        self, path: str, methods: list[str], name: str | None = None, include_in_schema: bool = True
    ) -> Callable[[Endpoint], Endpoint]:
        """Serves `path` over HTTP beside the MCP endpoint, with neither authentication nor limits in front of it."""

        def add(endpoint: Endpoint) -> Endpoint:
            route = Route(path, endpoint, methods=methods, name=name, include_in_schema=include_in_schema)
            self.production.routes.append(route)
            return endpoint

        return add

    def registered_tools(self) -> list[Tool]:
        """All tools, in the order of their registration."""
        return self._tool_manager.list_tools()

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Runtime, Any] | None = None
    ) -> Result:
        if context is None:  # a direct call in Python, outside any request
            return await super().call_tool(name, arguments)
        if self._chain is None:
            self._chain = chain.compose(self.production.links, self._run_tool)
        request = context.request_context.request
        return await self._chain(
            Call(
                tool=name if self._tool_manager.get_tool(name) else "unknown",
                name=name,
                arguments=arguments,
                context=context,
                client_id=self.production.identify(request),
                request_id=chain.new_request_id(),
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runtime]:
        """The server's lifespan without a transport, for checks and tests."""
        async with _lifespan(self) as runtime:
            yield runtime

    async def converse(
        self, incoming: ReadStream[SessionMessage | Exception], outgoing: WriteStream[SessionMessage]
    ) -> None:
        """Serves one client, lifespan included, until `incoming` ends."""
        protocol = self._lowlevel_server
        await protocol.run(incoming, outgoing, protocol.create_initialization_options())

    async def _run_tool(self, call: Call) -> Result:
        return await super().call_tool(call.name, call.arguments, call.context)


@asynccontextmanager
async def _lifespan(server: MCPServer[Runtime]) -> AsyncIterator[Runtime]:
    """Opens the upstream's connection pool, runs the callbacks, and undoes it all in reverse."""
    app = production_of(server)
    async with Upstream.open(app) as client:
        started = False
        try:
            for startup in app.on_startup:
                await _start(startup)
            started = True
            yield Runtime(app, client)
        finally:
            for shutdown in reversed(app.on_shutdown):
                await _stop(shutdown, log.error if started else log.debug)


async def _start(callback: Callback) -> None:
    try:
        await callback()
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise StartError(f"cannot start: {tools.dotted(callback)} failed with {cause}") from error


async def _stop(callback: Callback, say: Callable[..., object]) -> None:
    """One callback that fails or hangs keeps neither the others from running nor the process from ending."""
    try:
        async with asyncio.timeout(SHUTDOWN_CALLBACK_SECONDS):
            await callback()
    except Exception as error:
        say("shutdown callback fails", callback=tools.dotted(callback), exc_info=error)


def production_of(where: MCPServer[Any] | Context[Any, Any]) -> App:
    """The production layer of a server, or of the server that a call's context belongs to.

    Raises:
        TypeError: the server was not made by `create_server`.
    """
    if isinstance(where, ProductionServer):
        return where.production
    return _runtime(where).app


def upstream(ctx: Context[Any, Any]) -> Upstream:
    """The upstream client of the running server, ready to use in a tool.

    Raises:
        TypeError: the server was not made by `create_server`.
    """
    return _runtime(ctx).upstream


def _runtime(where: object) -> Runtime:
    runtime = where.request_context.lifespan_context if isinstance(where, Context) else None
    if not isinstance(runtime, Runtime):
        raise TypeError("this server has no production layer: make it with create_server()")
    return runtime


def readiness_check(server: MCPServer[Any], name: str, check: Check) -> None:
    """`/readyz` answers 503 with `name` while `check()` raises or takes longer than two seconds."""
    checks = production_of(server).readiness
    if name in checks:
        raise ValueError(f"a readiness check named {name!r} is registered already")
    checks[name] = check


def on_startup(server: MCPServer[Any], callback: Callback) -> None:
    """Runs `await callback()` before the first request; an exception stops the start with status 1."""
    production_of(server).on_startup.append(callback)


def on_shutdown(server: MCPServer[Any], callback: Callback) -> None:
    """Runs `await callback()` after the last call has ended, in reverse order of registration.

    It may take five seconds; what it raises is logged.
    """
    production_of(server).on_shutdown.append(callback)
