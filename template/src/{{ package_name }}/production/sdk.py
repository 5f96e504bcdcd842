"""The MCP server, and every use of names that the MCP SDK does not export.

Those names can change with any minor version of `mcp`: pyproject.toml allows 2.3 only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from mcp.server._otel import OpenTelemetryMiddleware
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.tools import Tool
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .config import ConfigError, StartError
from .inbound import pipeline
from .registry import Callback, Registry, Runtime
from .request import CallNext, MCPRequest, Result
from .serve import drain, tool_loader
from .upstream.client import Upstream

SHUTDOWN_CALLBACK_SECONDS = 5.0
"""Time limit of one shutdown callback."""

Endpoint = Callable[[Request], Awaitable[Response]]

log = structlog.stdlib.get_logger(__name__)


class ProductionServer(MCPServer[Runtime]):
    """An `MCPServer` that handles every tools/call in the pipeline.

    Raises:
        StartError: a middleware of `registry` has no place in the pipeline's order.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry  # first: extensions add their tools in the constructor
        about = registry.about
        super().__init__(
            about.name,
            title=about.title,
            description=about.description,
            version=about.version,
            log_level=registry.config.log_level,
            lifespan=lambda _: self.running(),
            **registry.presentation,
        )
        self.drain = drain.install(registry)
        self._pipeline: CallNext = pipeline.build(registry, self._run_tool)
        if not registry.traced:
            self.middleware[:] = [item for item in self.middleware if not isinstance(item, OpenTelemetryMiddleware)]

    def add_tool(self, fn: Callable[..., Any], name: str | None = None, *args: Any, **options: Any) -> None:
        """Register a tool.

        The start stops where the SDK only logs a warning, as for a second tool of the same name.

        Raises:
            StartError: the name is taken or not allowed, or the function cannot be a tool.
        """
        tool = name or str(getattr(fn, "__name__", ""))
        existing = self._tool_manager.get_tool(tool)
        if problem := tool_loader.problem_with(fn, tool, existing.fn if existing else None):
            raise StartError(problem)
        try:
            super().add_tool(fn, tool, *args, **options)
        except Exception as error:
            log.debug("cannot register a tool", exc_info=error)
            raise StartError(tool_loader.explain(fn, tool, error)) from error
        for on_added in self.registry.tools.on_added:
            on_added(tool)

    def custom_route(
        self, path: str, methods: list[str], name: str | None = None, include_in_schema: bool = True
    ) -> Callable[[Endpoint], Endpoint]:
        """Serve `path` over HTTP beside the MCP endpoint, without authentication and limits."""

        def add(endpoint: Endpoint) -> Endpoint:
            route = Route(path, endpoint, methods=methods, name=name, include_in_schema=include_in_schema)
            self.registry.http.routes.append(route)
            return endpoint

        return add

    def registered_tools(self) -> list[Tool]:
        """Return all tools in the order of their registration."""
        return self._tool_manager.list_tools()

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Runtime, Any] | None = None
    ) -> Result:
        if context is None:  # a direct call in Python, outside any request
            return await super().call_tool(name, arguments)
        return await self._pipeline(
            MCPRequest(
                method="tools/call",
                target=name,
                target_label=name if self._tool_manager.get_tool(name) else "unknown",
                arguments=arguments,
                context=context,
                caller=self.registry.identify(context.request_context.request),
                request_id=pipeline.new_request_id(),
            )
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Runtime]:
        """Open the upstream client and run the startup callbacks; at the end undo both in reverse order.

        The SDK enters this lifespan for each transport. Checks and tests enter it without one.

        Raises:
            ConfigError: a callback rejects the configuration.
            StartError: a startup callback failed.
        """
        registry = self.registry
        parts = registry.upstream
        async with Upstream.open(
            registry.config, registry.about, registry.meter, parts.middleware, parts.client_hooks
        ) as client:
            runtime = Runtime(registry, client)
            registry.running.append(runtime)
            started = False
            try:
                for startup in registry.on_startup:
                    await _run_startup(startup)
                started = True
                yield runtime
            finally:
                # After a failed start only its cause is worth a line.
                log_failure = log.error if started else log.debug
                for shutdown in reversed(registry.on_shutdown):
                    await _run_shutdown(shutdown, log_failure)
                registry.running.remove(runtime)

    async def serve_streams(
        self, incoming: ReadStream[SessionMessage | Exception], outgoing: WriteStream[SessionMessage]
    ) -> None:
        """Serve one client, lifespan included, until `incoming` ends."""
        server = self._lowlevel_server
        await server.run(incoming, outgoing, server.create_initialization_options())

    async def _run_tool(self, request: MCPRequest) -> Result:
        return await super().call_tool(request.target, request.arguments, request.context)


async def _run_startup(callback: Callback) -> None:
    try:
        await callback()
    except ConfigError:
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise StartError(f"cannot start: {tool_loader.dotted_name(callback)} failed with {cause}") from error


async def _run_shutdown(callback: Callback, log_failure: Callable[..., object]) -> None:
    """Run one callback. If it fails or takes too long, that is logged, and the next one can run."""
    try:
        async with asyncio.timeout(SHUTDOWN_CALLBACK_SECONDS):
            await callback()
    except Exception as error:
        log_failure("shutdown callback failed", callback=tool_loader.dotted_name(callback), exc_info=error)
