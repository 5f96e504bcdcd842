"""No request passes without a valid bearer token, and the token's owner is known to everything behind.

A verifier turns a token into its owner; everything that an answer to a bad token must contain is here
(RFC 6750 and RFC 9728, as the MCP specification asks).
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
from ..registry import HealthPart, Registry
from .guard import binds_loopback
from .http_limits import RejectionLog, http_error

MAX_TOKEN_BYTES = 16_384
"""A longer credential is refused unread; a large JWT has some thousand."""

User = AuthenticatedUser
Challenge = Callable[[Scope], str]
"""The parameters of WWW-Authenticate that say how to get a token: `name="value", ...`, or nothing."""


class AuthError(Exception):
    """The request gets no answer from a tool, for `reason`; the client reads it, so it holds nothing confidential."""

    def __init__(self, status: Literal[401, 403, 503], error: str, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.error = error
        """Error code of RFC 6750, section 3.1, or empty where no token was presented."""
        self.reason = reason
        self.retry_after = retry_after


class Verifier(Protocol):
    async def __call__(self, token: bytes) -> User:
        """The owner of a valid token.

        Raises:
            AuthError: the token is not valid, or not enough.
        """
        ...


class Bearer:
    """Lets requests with a valid token through, with their owner in the SDK's context: `get_access_token()` knows
    him, and a session belongs to the owner who opened it. Others are answered before their body is read."""

    def __init__(self, app: ASGIApp, verify: Verifier, challenge: Challenge) -> None:
        self._app = AuthContextMiddleware(app)
        self._verify = verify
        self._challenge = challenge
        self._log_rejection = RejectionLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope["user"] = await self._verify(bearer_token(scope))
        except AuthError as error:
            self._log_rejection(error.reason, http_status=error.status, peer=(scope.get("client") or ("unknown",))[0])
            await self._reject(error, scope, send)
            return
        await self._app(scope, receive, send)

    async def _reject(self, error: AuthError, scope: Scope, send: Send) -> None:
        headers = []
        if error.status != 503:
            parameters = [f'error="{error.error}", error_description="{error.reason}"'] if error.error else []
            parameters += [found] if (found := self._challenge(scope)) else []
            headers.append((b"www-authenticate", f"Bearer {', '.join(parameters)}".strip().encode()))
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        await http_error(send, error.status, f"{error.reason}.", *headers)


def bearer_token(scope: Scope) -> bytes:
    """The one bearer token of a request.

    Raises:
        AuthError: there is none, or its length is out of bounds.
    """
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
    if scheme.lower() != b"bearer":
        raise AuthError(401, "", "Authentication required: send a bearer token in the Authorization header")
    token = token.strip()
    if not 0 < len(token) <= MAX_TOKEN_BYTES:
        raise AuthError(401, "invalid_token", "The access token is empty or too long")
    return token


class Fingerprint:
    """A keyed digest of a token. Tables of tokens are looked up by it: the key is random and never leaves the process,
    so that the time a lookup takes tells nothing about the tokens in the table."""

    def __init__(self) -> None:
        self._key = os.urandom(32)

    def __call__(self, token: bytes) -> bytes:
        return hashlib.blake2b(token, key=self._key, digest_size=32).digest()


def require(registry: Registry, verify: Verifier, challenge: Challenge = lambda scope: "") -> None:
    """Require a token that `verify` accepts for the MCP endpoint."""
    registry.http.authentication = lambda endpoint: Bearer(endpoint, verify, challenge)


def require_loopback(registry: Registry, settings: str) -> None:
    """Lets a server without any credentials be tried on its own machine, and nowhere else."""
    registry.http.start_checks.append(lambda: _open_to_others(registry.config, settings))


def _open_to_others(config: ProductionConfig, settings: str) -> list[str]:
    if binds_loopback(config.host):
        return []
    return [
        f"HOST: {config.host} is reachable from other machines, and nobody would have to authenticate",
        f"set {settings}; or stay on this machine with HOST=127.0.0.1",
    ]


def report(registry: Registry, **configured: object) -> None:
    """Shows in the health report which variables are configured."""
    fields = {"auth_config": {name: "configured" if value else "missing" for name, value in configured.items()}}

    async def part(caller_id: str) -> HealthPart:
        return HealthPart(fields=fields)

    registry.health.parts.append(part)
