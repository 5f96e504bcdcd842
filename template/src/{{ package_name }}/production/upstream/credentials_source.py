"""Credentials of requests to the upstream that are obtained while the server runs, in place of the server's own key.

They are kept for each caller until they expire, and obtained once for any number of concurrent requests. Where they
cannot be obtained the request is rejected; the server's key and the caller's own token are never sent instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import httpx2
from mcp.server.auth.middleware.auth_context import auth_context_var

from ..caller import Caller, User, current_caller
from ..registry import Registry
from .client import UpstreamCallNext, UpstreamRequest
from .credentials import Credentials
from .errors import RETRY_LATER, UpstreamError, UpstreamStatusError, UpstreamTimeoutError, Verdict

MAX_CACHED = 4096
"""Greatest number of callers whose credentials are kept."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """Credentials, and how long to keep them."""

    credentials: Credentials
    seconds: float = 0.0


class Source(Protocol):
    """Obtains credentials for callers."""

    def key(self, caller: Caller | None) -> Hashable:
        """Return what the credentials depend on: requests with the same key share them.

        Raises:
            UpstreamError: this caller cannot have any.
        """
        ...

    async def obtain(self, caller: Caller | None) -> Obtained | None:
        """Return new credentials, or `None` if this caller has none.

        Raises:
            UpstreamError: they cannot be obtained.
        """
        ...


def install_source(registry: Registry, source: Source) -> None:
    """Send requests to the upstream with the credentials of `source`."""
    credentials = SourcedCredentials(registry, source)
    registry.upstream.middleware["credentials"] = credentials.middleware
    registry.on_shutdown.append(credentials.close)


class NoSource:
    """Rejects every request, because settings or a function, which the error names, are missing."""

    def __init__(self, registry: Registry, needed: str) -> None:
        self._needed = needed
        self._host = urlsplit(registry.config.upstream_base_url).netloc
        registry.notices.append(f"requests to {self._host} are rejected: there are no credentials without {needed}")

    def key(self, caller: Caller | None) -> Hashable:
        raise UpstreamError(f"The credentials for {self._host} are not configured: {self._needed}", host=self._host)

    async def obtain(self, caller: Caller | None) -> None:
        return None


class SourcedCredentials:
    """Adds the credentials of a source to requests, and keeps them until they expire."""

    def __init__(self, registry: Registry, source: Source) -> None:
        self._source = source
        self._secrets = registry.secrets
        self._kept: dict[Hashable, tuple[Credentials, float]] = {}
        """Credentials and, on the monotonic clock, until when they are kept."""
        self._running: dict[Hashable, asyncio.Task[Credentials | None]] = {}
        counter = registry.meter.counter(
            "mcp_upstream_credentials_total",
            "Credentials obtained for requests to the upstream, by outcome.",
            ("outcome",),
        )
        self._outcomes = {outcome: counter(outcome) for outcome in ("obtained", "rejected", "failed")}

    async def close(self) -> None:
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def middleware(self, request: UpstreamRequest, call_next: UpstreamCallNext) -> httpx2.Response:
        _reject_own_token(request)
        if not request.at_base:
            return await call_next(request)
        caller = current_caller.get()
        key = self._source.key(caller)
        cached = self._find(key)
        credentials = cached or await self._obtain(key, caller, request)
        url, headers = request.http.url, request.http.headers.copy()
        credentials.add_to(request.http)
        try:
            return await call_next(request)
        except UpstreamStatusError as error:
            if error.status != 401 or self._find(key) is not credentials:
                raise
            del self._kept[key]  # revoked before they expired
            if cached is None:
                raise
        request.http.url, request.http.headers = url, headers
        (await self._obtain(key, caller, request)).add_to(request.http)
        return await call_next(request)

    def _find(self, key: Hashable) -> Credentials | None:
        credentials, until = self._kept.get(key, (None, 0.0))
        return credentials if time.monotonic() < until else None

    async def _obtain(self, key: Hashable, caller: Caller | None, request: UpstreamRequest) -> Credentials:
        """Return new credentials, by the deadline of `request`.

        Raises:
            UpstreamError: there are no credentials for this caller.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._obtain_new(key, caller))
            task.add_done_callback(lambda done: self._end(key, done))
        try:
            async with asyncio.timeout_at(request.deadline):
                credentials = await asyncio.shield(task)  # other requests wait for it too
        except TimeoutError:
            raise UpstreamTimeoutError(
                f"Credentials for {request.host} were not obtained in time",
                RETRY_LATER,
                host=request.host,
                verdict=Verdict.FAILURE,
            ) from None
        if credentials is None:
            raise UpstreamError(f"This caller has no credentials for {request.host}", host=request.host)
        return credentials

    async def _obtain_new(self, key: Hashable, caller: Caller | None) -> Credentials | None:
        try:
            obtained = await self._source.obtain(caller)
        except BaseException as error:
            rejected = isinstance(error, UpstreamError) and error.verdict is not Verdict.FAILURE
            self._outcomes["rejected" if rejected else "failed"].inc()
            if isinstance(error, GeneratorExit):  # from a task it closes the coroutines that wait for it
                raise RuntimeError("the credentials cannot be obtained") from error
            raise
        self._outcomes["rejected" if obtained is None else "obtained"].inc()
        if obtained is None:
            return None
        self._secrets.add(obtained.credentials.value.rpartition(" ")[2])
        if obtained.seconds > 0:
            self._kept.pop(key, None)
            if len(self._kept) >= MAX_CACHED:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = (obtained.credentials, time.monotonic() + obtained.seconds)
        return obtained.credentials

    def _end(self, key: Hashable, task: asyncio.Task[Credentials | None]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # retrieved even if no request waits for it any more


def _reject_own_token(request: UpstreamRequest) -> None:
    """Reject a request that carries the access token of its caller.

    It was issued for this server. The upstream could use it here in the caller's name (MCP, security best practices:
    token passthrough).

    Raises:
        UpstreamError: the request carries that token.
    """
    user = auth_context_var.get()
    tokens = {user.access_token.token, user.subject_token} - {""} if isinstance(user, User) else set()
    sent = (str(request.http.url), *request.http.headers.values())
    if any(token in text for token in tokens for text in sent):
        raise UpstreamError("The caller's own token must not be sent to another service", host=request.host)
