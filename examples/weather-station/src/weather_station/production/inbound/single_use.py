"""Single use: of all calls with the same key, `once` is true for exactly one, over all replicas that share a Redis.

Without Redis each process remembers its own keys.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from heapq import heappop, heappush

from ..registry import CallContext, Registry, Server, registry_of
from ..upstream.errors import RETRY_LATER, UpstreamError

DAY_SECONDS = 86_400.0

MAX_KEYS = 100_000
"""Greatest number of keys in the memory of one process for each purpose, about 25 MB."""


class SingleUseError(UpstreamError):
    """It is unknown whether a key was used before: Redis does not answer, or the memory for keys is full."""


async def once(where: Server | CallContext, key: str, *, seconds: float = DAY_SECONDS) -> bool:
    """Return whether this is the first call with `key`, over all replicas where Redis is configured, else per process.

    Call it before an action that must not be done twice, with a key that identifies the action, such as the id of an
    order with the name of the tool. It is not undone if the action fails afterwards.

    Args:
        where: The context of a call, or the running server.
        key: Any text; only its hash is stored.
        seconds: How long the key counts as used.

    Raises:
        UpstreamError: it is unknown whether the key was used, so the action must not be done.
        TypeError: the server was not made by `create_server`.
        ValueError: `seconds` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds must be positive, not {seconds}")
    return await registry_of(where).first_use("once", key, seconds)


class UsedKeys:
    """The used keys of one process, by purpose.

    Args:
        clock: Returns seconds and never goes back.
    """

    def __init__(self, *, max_keys: int = MAX_KEYS, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_keys = max_keys
        self._clock = clock
        self._used: dict[str, set[bytes]] = {}
        self._expiries: list[tuple[float, str, bytes]] = []

    async def first_use(self, purpose: str, key: str, seconds: float) -> bool:
        """Return whether `key` is new, and remember it for `seconds`.

        Raises:
            SingleUseError: there are too many keys that have not expired.
        """
        now = self._clock()
        while self._expiries and self._expiries[0][0] <= now:
            _, expired, digest = heappop(self._expiries)
            self._used[expired].remove(digest)
        used = self._used.setdefault(purpose, set())
        digest = digest_of(key)
        if digest in used:
            return False
        if len(used) >= self._max_keys:
            raise SingleUseError("Too many keys of earlier calls have not expired", RETRY_LATER, host="memory")
        used.add(digest)
        heappush(self._expiries, (now + seconds, purpose, digest))
        return True


def digest_of(key: str) -> bytes:
    """Return a hash of `key`, so that a key of any length takes the same memory, and none is readable in Redis."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def install(registry: Registry) -> None:
    """Remember used keys in the memory of this process."""
    registry.first_use = UsedKeys().first_use
