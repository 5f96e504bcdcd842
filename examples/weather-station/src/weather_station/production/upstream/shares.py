"""The share of each caller in connections or threads, so that slow calls of one caller do not use up all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ..caller import STDIO, current_caller

SHARE_DIVISOR = 4
"""Divisor of a limit: one caller uses at most a quarter."""


@dataclass(slots=True)
class _Share:
    free: asyncio.Semaphore
    users: int = 0
    """Calls that use a part of the share or wait for one."""


class Shares:
    """Limits what one caller uses of connections or threads. The server itself and a caller over stdio have no limit.

    Args:
        limit: Number of connections or threads, of which a caller's share is a quarter, and at least one.
        seconds: How long a further call waits, `None` for any time.
    """

    def __init__(self, limit: int, seconds: float | None = None) -> None:
        self.size = max(1, limit // SHARE_DIVISOR)
        self._seconds = seconds
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        """Use one part of the current caller's share.

        Raises:
            ShareTimeoutError: none became free in time.
        """
        release = await self.acquire()
        try:
            yield
        finally:
            release()

    async def acquire(self) -> Callable[[], None]:
        """Take one part of the current caller's share, and return the function that gives it back.

        Raises:
            ShareTimeoutError: none became free in time.
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
            async with asyncio.timeout(self._seconds):
                await share.free.acquire()
        except BaseException as error:
            leave()
            if isinstance(error, TimeoutError):
                raise ShareTimeoutError from None
            raise

        def release() -> None:
            share.free.release()
            leave()

        return release

    def _leave(self, caller_id: str, share: _Share) -> None:
        share.users -= 1
        if not share.users:
            del self._shares[caller_id]


class ShareTimeoutError(Exception):
    """The caller's whole share is in use."""
