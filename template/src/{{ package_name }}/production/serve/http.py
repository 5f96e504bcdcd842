"""The ASGI application: the MCP endpoint with its ASGI middleware, and all other routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from types import FunctionType, MethodType
from typing import Any

import structlog
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from ..inbound.guard import Guard, ReportGuard
from ..inbound.http_limits import BodyLimit, InputLimits, http_error
from ..sdk import ProductionServer
from ..upstream.errors import UpstreamError, Verdict
from .drain import Streams

ENDPOINT = "/mcp"

PROBES = frozenset(("/livez", "/readyz", "/health", "/metrics"))
"""Routes for probes and monitoring, which have no limits: they read no body."""

log = structlog.stdlib.get_logger(__name__)


def build(server: ProductionServer) -> ASGIApp:
    """Return the ASGI application of `server`.

    A request to the MCP endpoint passes, in this order: the Host and Origin guard, authentication, the limits of its
    caller and on its body, the count of running requests, and the SDK's handler. `/mcp` is not a Starlette route,
    because its router costs 12 µs a call. The SDK's own Host check is off: it runs after authentication and compares by
    prefix.
    """
    registry = server.registry
    config = registry.config
    is_stateless = config.session_mode == "stateless"
    sdk = server.streamable_http_app(
        streamable_http_path=ENDPOINT,
        json_response=config.response_mode == "json" or (config.response_mode == "auto" and is_stateless),
        stateless_http=is_stateless,
        max_request_body_size=config.max_request_bytes,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    endpoint: ASGIApp = registry.http.direct(server, server.session_manager.handle_request)
    wrappers: tuple[Callable[[ASGIApp], ASGIApp] | None, ...] = (
        lambda app: Streams(app, server.drain, registry),
        only_post if is_stateless else None,
        registry.http.respond,
        *registry.http.endpoint,
        lambda app: InputLimits(registry, app),
        lambda app: registry.http.limits(app, None if is_stateless else server.has_session),
        registry.http.authentication,
        lambda app: Guard(registry, app),
    )
    for wrap in filter(None, wrappers):
        endpoint = _as_function(wrap(endpoint))

    starlette = routing(registry.http.routes)
    starlette.add_exception_handler(UpstreamError, explain_failure)
    starlette.router.lifespan_context = sdk.router.lifespan_context
    routes = ReportGuard(registry, starlette)
    limited_routes = registry.http.route_limits(BodyLimit(registry, starlette))

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in (ENDPOINT, f"{ENDPOINT}/"):
            await endpoint(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] not in PROBES:
            await limited_routes(scope, receive, send)
        else:
            await routes(scope, receive, send)

    app: ASGIApp = application
    for wrap in registry.http.wrappers:
        app = wrap(app)
    return app


def _as_function(app: Any) -> ASGIApp:
    """Return the same application: of an instance its method, which takes a third of a microsecond less to call."""
    function: ASGIApp = app if isinstance(app, FunctionType | MethodType) else app.__call__
    return function


def routing(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application with these routes, without redirects, which would repeat the Host header."""
    starlette = Starlette(routes=routes)
    starlette.router.redirect_slashes = False
    return starlette


def only_post(app: ASGIApp) -> ASGIApp:
    """Return `app` for POST only: without sessions there is nothing to open with GET, or to end with DELETE."""

    def application(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["method"] == "POST":
            return app(scope, receive, send)
        return http_error(send, 405, "This server has no sessions: send a POST.", (b"allow", b"POST"))

    return application


async def explain_failure(request: Request, error: Any) -> Response:
    """Answer a request of an owner's route whose upstream or dependency failed: 503 if it may be sent again, else 502.

    The reason goes to the log only, since anyone may send such a request.

    Args:
        request: A request of such a route.
        error: The `UpstreamError` that its function raised.
    """
    route = getattr(request.scope.get("endpoint"), "__name__", "")
    log.warning("upstream of a route failed", route=route, reason=str(error))
    if error.verdict is not Verdict.FAILURE and error.retry_after is None:
        return PlainTextResponse("A service that this request needs rejects it.\n", 502)
    headers = {} if error.retry_after is None else {"retry-after": str(ceil(error.retry_after))}
    return PlainTextResponse("A service that this request needs does not work now. Try again later.\n", 503, headers)
