"""The public API of the production layer: the names in `__all__`.

An update that changes one of them migrates the code that uses it.
"""

from __future__ import annotations

from mcp.server.mcpserver import Context
from opentelemetry import trace
from pydantic import Secret
from structlog.stdlib import get_logger

from .caller import Caller, caller
from .config import ProductionConfig
from .inbound.pages import Page, page, resource_link
from .inbound.single_use import once
from .observe.meter import Meter
from .policy import policy
from .registry import Callback, CallContext, Check, Runtime, Server, registry_of
from .serve.background import every
from .serve.options import Settings
from .serve.tool_loader import register_modules
from .upstream.circuit_breaker import CircuitOpenError, circuit_breaker
from .upstream.client import Upstream
from .upstream.dependency import Dependency, dependency
from .upstream.errors import (
    UpstreamConnectError,
    UpstreamError,
    UpstreamInterruptedError,
    UpstreamResponseError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from .upstream.retry import retry

tracer = trace.get_tracer(__name__)
"""OpenTelemetry tracer: its spans are children of the running call's span. Without telemetry it records nothing."""

__all__ = [
    "Caller",
    "CircuitOpenError",
    "Dependency",
    "Page",
    "ProductionConfig",
    "Secret",
    "Settings",
    "UpstreamConnectError",
    "UpstreamError",
    "UpstreamInterruptedError",
    "UpstreamResponseError",
    "UpstreamStatusError",
    "UpstreamTimeoutError",
    "caller",
    "circuit_breaker",
    "dependency",
    "every",
    "get_logger",
    "meter",
    "on_shutdown",
    "on_startup",
    "once",
    "page",
    "policy",
    "readiness_check",
    "register_modules",
    "resource_link",
    "retry",
    "tracer",
    "upstream",
]


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
