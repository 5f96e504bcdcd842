"""The answer to an access token without the scopes of an operation: HTTP 403 (RFC 6750, section 3.1; RFC 9728).

It names all scopes of the operation, and comes before a stream opens. `authorization` decides again in the pipeline,
where it also answers callers with a static token, which cannot get further scopes.
"""

from __future__ import annotations

from mcp.shared.exceptions import MCPError
from pydantic_core import from_json
from starlette.types import ASGIApp, Receive, Scope, Send

from ..caller import User
from ..observe.rejections import Rejections
from ..registry import Registry
from . import auth
from .auth import AuthError
from .authorization import Access, Need
from .http_limits import BODY

NOTHING = ("", Need("", frozenset()))
"""What a message wants that is no request."""


def install(registry: Registry) -> None:
    """Answer tokens without a scope with a challenge, where there is an authorization server."""
    access = registry.middleware.get("authorization")
    if isinstance(access, Access):
        registry.http.endpoint.append(lambda app: ScopeChallenge(registry, access, app))


class ScopeChallenge:
    """ASGI middleware that rejects a request whose access token lacks scopes."""

    def __init__(self, registry: Registry, access: Access, app: ASGIApp) -> None:
        self._app = app
        self._access = access
        self._methods = auth.methods(registry)
        self._rejected = Rejections(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get("user")
        # Only an authorization server, which has an issuer, can give a caller further scopes.
        if scope["method"] != "POST" or not isinstance(user, User) or user.caller.issuer is None:
            await self._app(scope, receive, send)
            return
        method, need = wanted(self._access, scope[BODY])
        needed = need.scopes or frozenset()
        if missing := self._access.missing(user.caller, needed):
            reason = "The access token lacks a scope of the operation"
            fields = {"method": method, "operation": need.subject, "missing_scopes": missing}
            self._rejected("forbidden", reason, scope, http_status=403, **fields)
            error = AuthError(403, "insufficient_scope", reason, scopes=needed)
            await auth.send_error(error, self._methods.challenge(scope), send)
            return
        await self._app(scope, receive, send)


def wanted(access: Access, body: bytes) -> tuple[str, Need]:
    """Return method and need of the request in a body; no scopes where it is no request, or one they do not open."""
    try:
        message = from_json(body)
    except ValueError:
        return NOTHING
    if not isinstance(message, dict) or "id" not in message:
        return NOTHING
    method, params = message.get("method"), message.get("params")
    if not isinstance(method, str):
        return NOTHING
    try:
        return method, access.need(method, params if isinstance(params, dict) else {})
    except MCPError:
        return NOTHING
