"""The share of each caller in connections or threads, so that slow calls of one caller do not use up all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import httpx2

from ..caller import STDIO, current_caller
from ..registry import Registry
from .client import UpstreamCallNext, UpstreamMiddleware, UpstreamRequest, connect_seconds
from .errors import UpstreamConnectError

SHARE_DIVISOR = 4
"""Divisor of a limit: one caller uses at most a quarter."""


def install(registry: Registry) -> None:
    """Give each caller a share of the connections to the upstream, and of the threads for plain functions."""
    config = registry.config
    registry.thread_share = Shares(config.max_tool_threads)
    registry.upstream.middleware["share"] = _middleware(Shares(config.max_connections), connect_seconds(config))


def _middleware(shares: Shares, seconds: float) -> UpstreamMiddleware:
    """Return upstream middleware that makes an attempt with a connection of the caller's share.

    Args:
        shares: The shares.
        seconds: How long an attempt waits for a connection.
    """

    async def middleware(request: UpstreamRequest, call_next: UpstreamCallNext) -> httpx2.Response:
        ends = asyncio.get_running_loop().time() + seconds
        try:
            release = await shares.acquire(min(ends, request.deadline))
        except TimeoutError:
            raise UpstreamConnectError(
                f"{shares.size} requests of this caller are running, a quarter of the connections (MAX_CONNECTIONS),"
                f" so no request was sent to {request.host}",
                "Try again in a few seconds.",
                host=request.host,
                may_retry=True,
            ) from None
        try:
            return await call_next(request)
        finally:
            release()

    return middleware


@dataclass(slots=True)
class _Share:
    free: asyncio.Semaphore
    users: int = 0
    """Calls that use a part of the share or wait for one."""


class Shares:
    """Limits what one caller uses of connections or threads. The server itself and a caller over stdio have no limit.

    Args:
        limit: Number of connections or threads, of which a caller's share is a quarter, and at least one.
    """

    def __init__(self, limit: int) -> None:
        self.size = max(1, limit // SHARE_DIVISOR)
        self._shares: dict[str, _Share] = {}

    async def acquire(self, until: float | None = None) -> Callable[[], None]:
        """Wait for one part of the current caller's share, take it, and return the function that gives it back.

        Raises:
            TimeoutError: none is free until that time on the event loop's clock.
        """
        caller = current_caller.get()
        if caller is None or caller.id == STDIO:
            return lambda: None
        share = self._shares.get(caller.id)
        if share is None:
            share = self._shares[caller.id] = _Share(asyncio.Semaphore(self.size))
        share.users += 1
        leave = partial(self._leave, caller.id, share)
        try:
            async with asyncio.timeout_at(until) if share.free.locked() else nullcontext():
                await share.free.acquire()
        except BaseException:
            leave()
            raise

        def release() -> None:
            share.free.release()
            leave()

        return release

    def _leave(self, caller_id: str, share: _Share) -> None:
        share.users -= 1
        if not share.users:
            del self._shares[caller_id]
