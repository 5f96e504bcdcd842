"""The share of each caller in the connections to the upstream, so that slow calls of one leave some to the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..caller import STDIO, current_caller


@dataclass(slots=True)
class _Share:
    free: asyncio.Semaphore
    users: int = 0
    """Requests that have a connection or wait for one."""


class Shares:
    """Limits the requests of one caller that use a connection: the server itself and a caller over stdio have no limit.

    Args:
        size: Greatest number of a caller's requests at once.
        seconds: How long a further one waits.
    """

    def __init__(self, size: int, seconds: float) -> None:
        self.size = size
        self._seconds = seconds
        self._shares: dict[str, _Share] = {}

    @asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        """Use one connection of the current caller's share.

        Raises:
            ShareTimeoutError: none became free in time.
        """
        caller = current_caller.get()
        if caller is None or caller.id == STDIO:
            yield
            return
        share = self._shares.get(caller.id)
        if share is None:
            share = self._shares[caller.id] = _Share(asyncio.Semaphore(self.size))
        share.users += 1
        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await share.free.acquire()
            except TimeoutError:
                raise ShareTimeoutError from None
            try:
                yield
            finally:
                share.free.release()
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[caller.id]


class ShareTimeoutError(Exception):
    """All connections of the caller's share are in use."""
