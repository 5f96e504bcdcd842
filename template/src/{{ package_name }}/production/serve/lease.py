"""Leases in Redis: of the replicas that share a Redis, one holds the lease of a name."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from ..redis_connections import pool
from ..registry import Registry

TIMEOUT_SECONDS = 1.0
"""Longest time to wait for Redis."""

SCRIPT = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""Takes or prolongs a lease. KEYS: the lease. ARGV: who takes it, and for how many milliseconds."""


class Leases:
    """The leases of one process."""

    def __init__(self, url: str, server: str) -> None:
        self._url = url
        self._server = server
        self._holder = uuid.uuid4().hex
        self._client: Any = None

    async def take(self, name: str, seconds: float) -> bool | None:
        """Take the lease `name`, or prolong it where this process has it.

        Returns:
            Whether this process has it for `seconds` from now; `None` if Redis does not answer.
        """
        # Imported here because it takes half a second, which a server without jobs saves.
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        if self._client is None:
            self._client = Redis(connection_pool=pool(self._url, self._server, timeout=None))
        milliseconds = max(1, round(seconds * 1000))
        key = f"{{{self._server}}}:lease:{name}"
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                return bool(await self._client.eval(SCRIPT, 1, key, self._holder, milliseconds))
        except (RedisError, OSError):
            return None

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            await self._client.connection_pool.disconnect()
            self._client = None


def install(registry: Registry) -> None:
    if registry.config.enable_redis and registry.config.redis_url is not None:
        leases = Leases(registry.config.redis_url.get_secret_value(), registry.about.name)
        registry.lease = leases.take
        registry.on_shutdown.append(leases.close)  # before those of the jobs, so that it runs after them
