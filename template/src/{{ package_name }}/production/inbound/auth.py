"""Bearer token authentication of the MCP endpoint (RFC 6750; RFC 9728 for the challenge).

Each method of authentication provides a verifier, which returns the user of a token or raises `AuthError`. A server can
have several at once: the first one that recognises a token decides.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

from mcp.server.auth.middleware.auth_context import auth_context_var
from starlette.types import ASGIApp, Receive, Scope, Send

from ..caller import User
from ..observe.rejections import Reason, Rejections
from ..registry import HealthPart, Registry
from .guard import resolves_to_loopback
from .http_limits import HEADERS, IS_VALID, http_error, is_repeated

MAX_TOKEN_BYTES = 16_384
"""Longest token that is verified; a large JWT has a few thousand bytes."""

ErrorStatus = Literal[401, 403, 429, 503]

REASONS: dict[ErrorStatus, Reason] = {401: "unauthenticated", 403: "forbidden", 429: "limited", 503: "unavailable"}
"""How `mcp_http_rejections_total` counts each status."""

Challenge = Callable[[Scope], str]
"""Returns the parameters of WWW-Authenticate that tell a client how to get a token (`name="value", ...`), or ""."""

_SCOPE_PARAMETER = re.compile(r'(?:^|, )scope="(?P<scopes>[^"]*)"')


class AuthError(Exception):
    """The request is not authenticated or not authorized."""

    def __init__(
        self, status: ErrorStatus, error: str, reason: str, retry_after: int | None = None, scopes: Collection[str] = ()
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.error = error
        """Error code of RFC 6750, section 3.1, or empty if no token was presented."""
        self.reason = reason
        """Text for the client, so without anything confidential."""
        self.retry_after = retry_after
        """Seconds until a retry may succeed."""
        self.scopes = scopes
        """Scopes that the operation needs, for the challenge; those that every token needs are added to them."""


class UnknownTokenError(AuthError):
    """This method does not recognise the token; another method may."""

    def __init__(self, reason: str = "The access token is not valid") -> None:
        super().__init__(401, "invalid_token", reason)


class Verifier(Protocol):
    async def __call__(self, token: bytes, scope: Scope) -> User:
        """Return the user of a valid token.

        Args:
            token: The bearer token of the request.
            scope: The request, without its user.

        Raises:
            UnknownTokenError: the token is not of this method.
            AuthError: the token is not valid, or lacks a required scope.
        """
        ...


class Methods:
    """The methods of authentication of one server by name, in the order in which they see a token."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._config = registry.config
        self._verifiers: dict[str, Verifier] = {}
        self._missing: dict[str, str] = {}
        """For each method that is not used, the variables to set."""
        self._states: dict[str, str] = {}
        """`configured` or `missing` by variable, for the health report."""
        self.challenge: Challenge = lambda scope: ""

    def __call__(self, app: ASGIApp) -> ASGIApp:
        """Return `app` behind the methods, or `app` itself where none is configured."""
        verifiers = [*self._verifiers.values()]
        return BearerAuthentication(self._registry, app, verifiers, self.challenge) if verifiers else app

    def add(self, name: str, hint: str, verify: Verifier | None) -> bool:
        """Add a method, and return whether it is used: whether it is configured, and AUTH_METHODS does not exclude it.

        Args:
            name: Its name in AUTH_METHODS.
            hint: The variables to set, for the message that it is not configured.
            verify: Its verifier, `None` while it is not configured.
        """
        used = verify is not None and (not self._config.auth_methods or name in self._config.auth_methods)
        if verify is not None and used:
            self._verifiers[name] = verify
        else:
            self._missing[name] = hint
        return used

    def report(self, **settings: object) -> None:
        """Show in the health report which settings have a value, by the name of their variable."""
        self._states |= {name: "configured" if value else "missing" for name, value in settings.items()}

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart(fields={"auth_config": self._states})

    def problems(self) -> list[str]:
        """Return why this server must not be served over HTTP, one line for each reason."""
        problems = [
            f"AUTH_METHODS: {name} is not configured: set {self._missing[name]}"
            if name in self._missing
            else f"AUTH_METHODS: this project has no method {name} "
            f"(accepted: {', '.join(sorted({**self._verifiers, **self._missing}))})"
            for name in self._config.auth_methods
            if name not in self._verifiers
        ]
        if problems or self._verifiers or resolves_to_loopback(self._config.host):
            return problems
        return [
            f"HOST: {self._config.host} is reachable from other machines, and no authentication is configured",
            f"set {', or '.join(self._missing.values())}, or serve this machine only with HOST=127.0.0.1",
        ]


class BearerAuthentication:
    """ASGI middleware that rejects requests without a valid token, before it reads their body.

    The user of the token goes into the SDK's context: `get_access_token()` returns the token, and a session can be
    used only by the user who opened it.
    """

    def __init__(self, registry: Registry, app: ASGIApp, verifiers: Sequence[Verifier], challenge: Challenge) -> None:
        self._app = app
        self._verifiers = verifiers
        self._verified = verifiers[0] if len(verifiers) == 1 else self._verified_by_first
        self._challenge = challenge
        self._rejected = Rejections(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            user = scope["user"] = await self._verified(bearer_token(scope), scope)
        except AuthError as error:
            self._rejected(REASONS[error.status], error.reason, scope, http_status=error.status)
            await send_error(error, self._challenge(scope), send)
            return

        scope[IS_VALID] = self._is_valid
        outer = auth_context_var.set(user)  # as the SDK's `AuthContextMiddleware`
        try:
            await self._app(scope, receive, send)
        finally:
            auth_context_var.reset(outer)

    async def _is_valid(self, scope: Scope) -> bool:
        """Return whether the token of an open stream is still valid, or cannot be checked at the moment."""
        user: User = scope["user"]
        try:
            return (await self._verified(bearer_token(scope), scope)).caller.id == user.caller.id
        except AuthError as error:
            if error.status not in (401, 403):
                return True
            self._rejected(REASONS[error.status], f"open stream ended: {error.reason}", scope)
            return False

    async def _verified_by_first(self, token: bytes, scope: Scope) -> User:
        """Return the user of a token that one of several methods recognises."""
        for verify in self._verifiers[:-1]:
            try:
                return await verify(token, scope)
            except UnknownTokenError:
                continue
        return await self._verifiers[-1](token, scope)


async def send_error(error: AuthError, challenge: str, send: Send) -> None:
    """Send the HTTP error of a request, with the parameters `challenge` in WWW-Authenticate."""
    headers = []
    if error.status in (401, 403):
        details = f'error="{error.error}", error_description="{error.reason}"' if error.error else ""
        parameters = ", ".join(filter(None, (details, with_scopes(challenge, error.scopes))))
        headers.append((b"www-authenticate", f"Bearer {parameters}".strip().encode()))
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    await http_error(send, error.status, f"{error.reason}.", *headers)


def with_scopes(challenge: str, scopes: Collection[str]) -> str:
    """Return the parameters `challenge` with `scopes` added to its scopes (RFC 6750, section 3)."""
    if not scopes:
        return challenge
    found = _SCOPE_PARAMETER.search(challenge)
    others = [challenge] if found is None else [challenge[: found.start()], challenge[found.end() :]]
    named = found["scopes"].split() if found else []
    scope = " ".join([*named, *sorted({*scopes} - {*named})])
    return ", ".join([*filter(None, (part.strip(", ") for part in others)), f'scope="{scope}"'])


def bearer_token(scope: Scope) -> bytes:
    """Return the bearer token of a request.

    Raises:
        AuthError: there is no single bearer token, or it is empty or too long.
    """
    credentials: bytes = scope[HEADERS].get(b"authorization", b"")
    scheme, _, token = credentials.partition(b" ")
    if scheme.lower() != b"bearer" or is_repeated(scope, b"authorization"):
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
        self._keyed = hashlib.blake2b(key=os.urandom(32), digest_size=32)

    def __call__(self, token: bytes) -> bytes:
        digest = self._keyed.copy()
        digest.update(token)
        return digest.digest()


def methods(registry: Registry) -> Methods:
    """Return the methods of authentication of a server; the first use creates them."""
    configured = registry.http.authentication
    if not isinstance(configured, Methods):
        registry.http.authentication = configured = Methods(registry)
        registry.http.start_checks.append(configured.problems)
        registry.health.parts.append(configured.health)
    return configured
