"""Authentication with opaque access tokens, by introspection at the authorization server (RFC 7662).

A response is cached briefly, so that most calls need no request, and a revoked token is rejected soon. While the
authorization server does not answer, tokens without a cached response are rejected.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote_plus

import httpx2
import structlog
from starlette.requests import Request
from starlette.types import Scope

from ..caller import User
from ..config import ConfigError, without_credentials
from ..environment import tls_context
from ..observe.meter import Counter
from ..registry import HealthPart, Probe, Registry
from . import auth
from .auth import AuthError, Fingerprint, UnknownTokenError
from .issuer_keys import read_json
from .issuers import Issuer, trusted_issuers, warn_without_tls

UNKNOWN_SECONDS = 60.0
"""How long a token that is not active is rejected without asking again."""

MAX_CACHED_TOKENS = 4096
MAX_UNKNOWN_TOKENS = 20
"""Tokens that are not active, for each address within `UNKNOWN_SECONDS`. Further new tokens from there are rejected."""

MAX_ADDRESSES = 4096
MAX_RESPONSE_BYTES = 256 * 1024
MAX_TIME = 2**53
"""Greatest `exp` that is accepted, in seconds."""
TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 1.0
"""Time after a failed request in which no other is sent."""

log = structlog.stdlib.get_logger(__name__)


NOT_ACTIVE = "The access token is not active"

K = TypeVar("K")
V = TypeVar("V")


class Cached(NamedTuple):
    """The user of an active token."""

    user: User
    until: float
    """On the wall clock, like `exp`."""


def install(registry: Registry) -> None:
    """Accept the tokens that `INTROSPECTION_URL` says are active.

    Raises:
        ConfigError: the settings are incomplete.
    """
    config = registry.config
    url = config.introspection_url
    settings = "INTROSPECTION_URL, INTROSPECTION_CLIENT_ID and INTROSPECTION_CLIENT_SECRET"
    if config.transport == "stdio":
        return
    if url is None:
        auth.methods(registry).add("introspection", settings, None)
        return
    if not config.introspection_client_id or config.introspection_client_secret is None:
        raise ConfigError([f"INTROSPECTION_URL: needs {settings.partition(', ')[2]}"])
    if not config.jwt_issuer:
        raise ConfigError(["INTROSPECTION_URL: needs JWT_ISSUER, the issuer that it belongs to"])
    warn_without_tls(registry, "INTROSPECTION_URL", url, "tokens can be read on the network")
    secret = config.introspection_client_secret.get_secret_value()
    requests = registry.meter.counter(
        "mcp_token_introspections_total", "Requests to the introspection endpoint, by outcome.", ("outcome",)
    )
    introspection = Introspection(
        trusted_issuers(config)[0],
        url,
        httpx2.BasicAuth(quote_plus(config.introspection_client_id), quote_plus(secret)),  # RFC 6749, section 2.3.1
        cache_seconds=config.introspection_cache_seconds,
        address=lambda scope: registry.identify(Request(scope)).id,
        outcomes={outcome: requests(outcome) for outcome in ("active", "inactive", "failed", "limited")},
    )
    if auth.methods(registry).add("introspection", settings, introspection.verify):
        registry.on_startup.append(introspection.open)
        registry.on_shutdown.append(introspection.close)
        registry.health.parts.append(introspection.health)
        registry.health.probes["introspection"] = Probe(without_credentials(url), "tcp")


class Introspection:
    """Asks the authorization server about tokens, with a bounded cache of the responses.

    Args:
        issuer: The issuer of the tokens.
        url: The introspection endpoint.
        credentials: Those of this server at the endpoint.
        cache_seconds: Longest time for which a response counts, and thus until a revoked token is rejected.
        address: Returns the address that a request comes from.
        outcomes: Counters of the requests.
    """

    def __init__(
        self,
        issuer: Issuer,
        url: str,
        credentials: httpx2.BasicAuth,
        *,
        cache_seconds: float,
        address: Callable[[Scope], str],
        outcomes: dict[str, Counter],
    ) -> None:
        self._issuer = issuer
        self._url = url
        self._credentials = credentials
        self._cache_seconds = cache_seconds
        self._address = address
        self._outcomes = outcomes
        self._fingerprint = Fingerprint()
        self._active: dict[bytes, Cached] = {}
        self._inactive: dict[bytes, float] = {}
        """Until when a token is rejected without asking again."""
        self._running: dict[bytes, asyncio.Task[User | None]] = {}
        self._attempts: dict[str, list[float]] = {}
        """By address, when tokens were presented that are not active, or about which a request is running."""
        self._client: httpx2.AsyncClient | None = None
        self._failed_until = 0.0
        self._problem = ""

    async def open(self) -> None:
        self._client = httpx2.AsyncClient(verify=tls_context(), timeout=TIMEOUT_SECONDS)

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart(degraded=("introspection",) if self._problem else ())

    async def verify(self, token: bytes, scope: Scope) -> User:
        if not token.isascii():
            raise UnknownTokenError
        fingerprint = self._fingerprint(token)
        cached = self._active.get(fingerprint)
        if cached is not None and time.time() < cached.until:
            return cached.user
        if time.time() < self._inactive.get(fingerprint, 0.0):
            raise UnknownTokenError(NOT_ACTIVE)
        address = self._address(scope)
        attempt = self._admit(address)
        try:
            user = await self._ask_once(fingerprint, token)
        except AuthError as error:
            if error.status == 503:
                self._forget(address, attempt)
            raise
        if user is None:
            raise UnknownTokenError(NOT_ACTIVE)
        self._forget(address, attempt)
        return user

    async def _ask_once(self, fingerprint: bytes, token: bytes) -> User | None:
        """Ask about a token; concurrent requests with the same token share one response."""
        task = self._running.get(fingerprint)
        if task is None:
            task = self._running[fingerprint] = asyncio.create_task(self._ask(fingerprint, token))
            task.add_done_callback(lambda done: self._end(fingerprint, done))
        return await asyncio.shield(task)

    def _end(self, fingerprint: bytes, task: asyncio.Task[User | None]) -> None:
        del self._running[fingerprint]
        if not task.cancelled():
            task.exception()  # retrieved even if no request waits for it any more

    async def _ask(self, fingerprint: bytes, token: bytes) -> User | None:
        claims = await self._response(token)
        active = claims.get("active") is True and self._is_for_this_server(claims)
        self._outcomes["active" if active else "inactive"].inc()
        if not active:
            _remember(self._inactive, fingerprint, time.time() + UNKNOWN_SECONDS)
            return None
        user = self._issuer.user(claims, token)
        until = min(time.time() + self._cache_seconds, user.access_token.expires_at or math.inf)
        _remember(self._active, fingerprint, Cached(user, until))
        return user

    def _is_for_this_server(self, claims: dict[str, Any]) -> bool:
        """Return whether a token has our audience, is not expired, and has our issuer if the response names one."""
        audience = claims.get("aud")
        audiences = audience if isinstance(audience, list) else [audience]
        expires = claims.get("exp", MAX_TIME - 1)
        return (
            any(value in self._issuer.audience for value in audiences)
            and claims.get("iss", self._issuer.issuer) == self._issuer.issuer
            and isinstance(expires, (int, float))
            and time.time() < expires < MAX_TIME
        )

    async def _response(self, token: bytes) -> dict[str, Any]:
        """Return the response for a token.

        Raises:
            AuthError: there is no usable response.
        """
        if self._client is None or time.monotonic() < self._failed_until:
            raise self._unavailable()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return await self._post(self._client, token)
        except (httpx2.HTTPError, TimeoutError, ValueError) as error:
            self._outcomes["failed"].inc()
            self._failed_until = time.monotonic() + RETRY_SECONDS
            self._problem = str(error) or type(error).__name__
            log.warning("the introspection of a token failed", problem=self._problem)
            raise self._unavailable() from None

    async def _post(self, client: httpx2.AsyncClient, token: bytes) -> dict[str, Any]:
        form = {"token": token.decode("latin-1"), "token_type_hint": "access_token"}
        headers = {"accept": "application/json"}
        async with client.stream("POST", self._url, data=form, headers=headers, auth=self._credentials) as response:
            claims = await read_json(response, "the endpoint", MAX_RESPONSE_BYTES)
        self._problem = ""
        return claims

    def _unavailable(self) -> AuthError:
        reason = "The authorization server cannot be asked about the access token: try again soon"
        return AuthError(503, "", reason, retry_after=max(1, round(RETRY_SECONDS)))

    def _admit(self, address: str) -> float:
        """Record an attempt with a token that is not cached, and return its time; `_forget` removes it.

        Raises:
            AuthError: there were too many from this address.
        """
        now = time.monotonic()
        attempts = [at for at in self._attempts.pop(address, ()) if now - at < UNKNOWN_SECONDS]
        limited = len(attempts) >= MAX_UNKNOWN_TOKENS
        _remember(self._attempts, address, attempts if limited else [*attempts, now], MAX_ADDRESSES)
        if limited:
            self._outcomes["limited"].inc()
            wait = max(1, math.ceil(attempts[0] + UNKNOWN_SECONDS - now))
            raise AuthError(429, "", "Too many access tokens that are not active: try again later", retry_after=wait)
        return now

    def _forget(self, address: str, attempt: float) -> None:
        attempts = self._attempts.get(address, [])
        if attempt in attempts:
            attempts.remove(attempt)


def _remember(cache: dict[K, V], key: K, value: V, limit: int = MAX_CACHED_TOKENS) -> None:
    """Add an entry; beyond `limit` the oldest one is removed."""
    cache.pop(key, None)
    if len(cache) >= limit:
        del cache[next(iter(cache))]
    cache[key] = value
