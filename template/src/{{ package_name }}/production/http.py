"""The way in over HTTP: the MCP endpoint behind its guard, probes and other routes beside it."""

from __future__ import annotations

from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from .app import ProductionServer
from .guard import Guard, InputLimits
from .lifecycle import Streams

ENDPOINT = "/mcp"


def build(server: ProductionServer) -> ASGIApp:
    """The ASGI application of `server`: guard, then the features' wrappers, then the limits on input
    and the SDK's handler.

    `/mcp` is dispatched here, not through Starlette's router, which costs a call 12 µs; everything else is a
    route. The SDK's own Host check stays off: it runs behind authentication and matches prefixes.
    """
    app = server.production
    config = app.config
    sdk = server.streamable_http_app(
        streamable_http_path=ENDPOINT,
        json_response=config.response_mode == "json",
        stateless_http=config.session_mode == "stateless",
        max_request_body_size=config.max_request_bytes,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    sessions = server.session_manager
    endpoint: ASGIApp = InputLimits(config, Streams(app, sessions.handle_request))
    for wrap in reversed(app.endpoint_wrappers):
        endpoint = wrap(endpoint)
    endpoint = Guard(config, endpoint)
    others = Starlette(routes=app.routes)
    others.router.lifespan_context = sdk.router.lifespan_context

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in (ENDPOINT, f"{ENDPOINT}/"):
            await endpoint(scope, receive, send)
        else:
            await others(scope, receive, send)

    return application
