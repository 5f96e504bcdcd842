"""Bearer token authentication of the MCP endpoint (RFC 6750; RFC 9728 for the challenge).

`auth_token` and `auth_jwt` each provide a verifier, which returns the user of a token or raises `AuthError`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Literal, Protocol

from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import ProductionConfig
from ..observe.rejections import Reason, Rejections
from ..registry import HealthPart, Registry
from .guard import resolves_to_loopback
from .http_limits import http_error

MAX_TOKEN_BYTES = 16_384
"""Longest token that is verified; a large JWT has a few thousand bytes."""

REASONS: dict[int, Reason] = {401: "unauthenticated", 403: "forbidden", 503: "unavailable"}
"""How `mcp_http_rejections_total` counts each status."""

User = AuthenticatedUser
Challenge = Callable[[Scope], str]
"""Returns the parameters of WWW-Authenticate that tell a client how to get a token (`name="value", ...`), or ""."""


class AuthError(Exception):
    """The request is not authenticated or not authorized."""

    def __init__(self, status: Literal[401, 403, 503], error: str, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.error = error
        """Error code of RFC 6750, section 3.1, or empty if no token was presented."""
        self.reason = reason
        """Text for the client, so without anything confidential."""
        self.retry_after = retry_after
        """Seconds until a retry may succeed."""


class Verifier(Protocol):
    async def __call__(self, token: bytes) -> User:
        """Return the user of a valid token.

        Raises:
            AuthError: the token is not valid, or lacks a required scope.
        """
        ...


class BearerAuthentication:
    """ASGI middleware that rejects requests without a valid token, before it reads their body.

    The user of the token goes into the SDK's context: `get_access_token()` returns the token, and a session can be
    used only by the user who opened it.
    """

    def __init__(self, registry: Registry, app: ASGIApp, verify: Verifier, challenge: Challenge) -> None:
        self._app = AuthContextMiddleware(app)
        self._verify = verify
        self._challenge = challenge
        self._rejected = Rejections(registry.meter)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["user"] = await self._verify(bearer_token(scope))
        except AuthError as error:
            peer = (scope.get("client") or ("unknown",))[0]
            self._rejected(REASONS[error.status], error.reason, http_status=error.status, peer=peer)
            await self._reject(error, scope, send)
            return
        await self._app(scope, receive, send)

    async def _reject(self, error: AuthError, scope: Scope, send: Send) -> None:
        headers = []
        if error.status != 503:
            details = f'error="{error.error}", error_description="{error.reason}"' if error.error else ""
            parameters = ", ".join(filter(None, (details, self._challenge(scope))))
            headers.append((b"www-authenticate", f"Bearer {parameters}".strip().encode()))
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        await http_error(send, error.status, f"{error.reason}.", *headers)


def bearer_token(scope: Scope) -> bytes:
    """Return the bearer token of a request.

    Raises:
        AuthError: there is no single bearer token, or it is empty or too long.
    """
    credentials = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = credentials[0].partition(b" ") if len(credentials) == 1 else (b"", b"", b"")
    if scheme.lower() != b"bearer":
        raise AuthError(401, "", "Authentication required: send a bearer token in the Authorization header")
    token = token.strip()
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise AuthError(401, "invalid_token", "The access token is empty or too long")
    return token


class Fingerprint:
    """Digest of a token with a random key, used as the key of token tables.

    The time of a lookup thus reveals nothing about the tokens in the table.
    """

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def __call__(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._key, digest_size=32).digest()


def require(registry: Registry, verify: Verifier, challenge: Challenge = lambda scope: "") -> None:
    """Require a token that `verify` accepts for the MCP endpoint."""
    registry.http.authentication = lambda endpoint: BearerAuthentication(registry, endpoint, verify, challenge)


def require_loopback(registry: Registry, settings: str) -> None:
    """Allow HTTP without authentication on a loopback address only; `settings` is what the operator can set instead."""
    registry.http.start_checks.append(lambda: _exposure_problems(registry.config, settings))


def _exposure_problems(config: ProductionConfig, settings: str) -> list[str]:
    if resolves_to_loopback(config.host):
        return []
    return [
        f"HOST: {config.host} is reachable from other machines, and no authentication is configured",
        f"set {settings}, or serve this machine only with HOST=127.0.0.1",
    ]


def report_settings(registry: Registry, **configured: object) -> None:
    """Show in the health report which settings have a value, by the name of their variable."""
    fields = {"auth_config": {name: "configured" if value else "missing" for name, value in configured.items()}}

    async def part(caller_id: str) -> HealthPart:
        return HealthPart(fields=fields)

    registry.health.parts.append(part)
