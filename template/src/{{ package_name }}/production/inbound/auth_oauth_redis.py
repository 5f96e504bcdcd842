"""Records of the sign-in in Redis, where all replicas find them, also after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ..redis_connections import pool
from .auth_oauth_store import StoreUnavailableError

TIMEOUT_SECONDS = 2.0
MAX_CONNECTIONS = 32


class RedisStore:
    """Records in Redis 6.2 or later (GETDEL)."""

    def __init__(self, url: str, prefix: str) -> None:
        """Prepare the connections, which are made when they are needed.

        Args:
            url: The URL of the Redis server.
            prefix: What the keys begin with; its braces keep all keys of a server in one slot of a cluster.

        Raises:
            ConfigError: `url` is not the URL of a Redis server.
        """
        # Imported here because it takes half a second, which a process without REDIS_URL saves.
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        connections = pool(url, prefix, max_connections=MAX_CONNECTIONS, timeout=None)  # `_explained` has a timeout
        self._redis: Any = Redis(connection_pool=connections)  # redis-py's types say that a reply may be awaited or not
        self._errors = (RedisError, OSError)
        self._prefix = f"{{{prefix}}}:oauth:"

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def ping(self) -> None:
        async with self._explained():
            await self._redis.ping()

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        async with self._explained():
            await self._redis.set(self._prefix + key, value, px=_milliseconds(seconds))

    async def add(self, key: str, value: bytes, seconds: float) -> bool:
        async with self._explained():
            return bool(await self._redis.set(self._prefix + key, value, px=_milliseconds(seconds), nx=True))

    async def replace(self, key: str, value: bytes, seconds: float) -> bool:
        async with self._explained():
            return bool(await self._redis.set(self._prefix + key, value, px=_milliseconds(seconds), xx=True))

    async def get(self, key: str) -> bytes | None:
        async with self._explained():
            value: bytes | None = await self._redis.get(self._prefix + key)
            return value

    async def take(self, key: str) -> bytes | None:
        async with self._explained():
            value: bytes | None = await self._redis.getdel(self._prefix + key)
            return value

    async def delete(self, key: str) -> None:
        async with self._explained():
            await self._redis.delete(self._prefix + key)

    async def count(self, key: str, seconds: float) -> int:
        async with self._explained(), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.set(self._prefix + key, 0, px=_milliseconds(seconds), nx=True)
            pipeline.incr(self._prefix + key)
            return int((await pipeline.execute())[1])

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                yield
        except TimeoutError:
            raise StoreUnavailableError(f"no answer within {TIMEOUT_SECONDS:g} s") from None
        except self._errors as error:
            raise StoreUnavailableError(f"{type(error).__name__}: {error}") from None


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
