"""Functions of the public API that take the context of a call or the server."""

from __future__ import annotations

from typing import Any, Self

from mcp.server.mcpserver import Context, MCPServer

from .config import EnvironmentSettings
from .observe.meter import Meter
from .registry import Callback, Check, Registry, Runtime
from .upstream.client import Upstream

Server = MCPServer[Any]
CallContext = Context[Any, Any]


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


class Settings(EnvironmentSettings):
    """Base of the owner's own settings, which are the fields of a class `Settings` in `options.py`."""

    @classmethod
    def of(cls, where: Server | CallContext) -> Self:
        """Return the settings of a server.

        Args:
            where: The server, or the context of a call.

        Raises:
            TypeError: the server was not made by `create_server`, or with settings of another class.
        """
        settings = registry_of(where).settings
        if not isinstance(settings, cls):
            raise TypeError(f"this server was made without {cls.__qualname__}: it is not the Settings of options.py")
        return settings


def upstream(where: Server | CallContext) -> Upstream:
    """Return the upstream client.

    Args:
        where: The context of a call, or the running server, as for a background task.

    Raises:
        TypeError: the server was not made by `create_server`.
        RuntimeError: the server is not running.
    """
    if isinstance(where, Context) and isinstance(runtime := where.request_context.lifespan_context, Runtime):
        return runtime.upstream
    running = registry_of(where).running
    if not running:
        raise RuntimeError("the upstream client is available only while the server runs")
    return running[-1].upstream


def meter(where: Server | CallContext) -> Meter:
    """Return the meter of a server. Metrics declared with it appear at `/metrics`.

    It records nothing where metrics are absent or switched off.

    Raises:
        TypeError: the server was not made by `create_server`.
    """
    return registry_of(where).meter


def readiness_check(server: Server, name: str, check: Check) -> None:
    """Register a check: `/readyz` answers 503 with `name` if `await check()` raises or takes more than two seconds.

    Raises:
        ValueError: the name is registered already.
    """
    checks = registry_of(server).health.checks
    if name in checks:
        raise ValueError(f"a readiness check named {name!r} is registered already")
    checks[name] = check


def on_startup(server: Server, callback: Callback) -> None:
    """Run `await callback()` before the first request. An exception stops the start with exit status 1."""
    registry_of(server).on_startup.append(callback)


def on_shutdown(server: Server, callback: Callback) -> None:
    """Run `await callback()` after the last call, in reverse order of registration.

    It is cancelled after five seconds; an exception is logged.
    """
    registry_of(server).on_shutdown.append(callback)
