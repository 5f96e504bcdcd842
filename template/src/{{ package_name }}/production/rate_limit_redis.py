"""All replicas that share a Redis share one limit for each client, and none of them waits for a Redis that is gone.

The bucket is that of `rate_limit`, in one script on the Redis server and by its clock. When Redis fails, is out of
reach or hangs, `RATE_LIMIT_ON_STORE_FAILURE` decides: each process limits for itself (local), every call passes (open)
or none does (closed).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from .app import App, HealthPart
from .chain import Call, Next, Result, failure
from .config import ConfigError, variable
from .rate_limit import Buckets, Quota, install_in_memory, limiting, status

TIMEOUT_SECONDS = 0.05
"""The longest that a call waits for Redis, whatever state it is in."""

PAUSE_SECONDS = 1.0
"""How long after a failure Redis is left alone; then one call tries it again."""

LOG_SECONDS = 60.0
"""How often an outage is logged, at most."""

MAX_CONNECTIONS = 50

SCRIPT = """
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full, part = now, 0
local known = redis.call('GET', KEYS[1])
if known then
  local at, rest = string.match(known, '^(%d+) (%d+)$')
  full, part = tonumber(at), tonumber(rest)
  if full < now then
    full, part = now, 0
  elseif full >= now + window then
    full, part = now + window, 0
  end
end
local after, after_part = full + math.floor(cost / limit), part + cost % limit
if after_part >= limit then
  after, after_part = after + 1, after_part - limit
end
if cost == 0 or after > now + window or (after == now + window and after_part > 0) then
  return {0, full - now, part}
end
local value = string.format('%.0f %.0f', after, after_part)
redis.call('SET', KEYS[1], value, 'PXAT', math.floor(after / 1000) + 1)
return {1, after - now, after_part}
"""
"""KEYS: the client's bucket. ARGV: limit, window, and the cost in ticks (the window, or 0 to look only).

Returns whether the permit was taken, and the debt in whole microseconds and ticks. The bucket is the time at which it
is full again, as whole microseconds and ticks apart: together they would exceed the 53 bits that Lua's numbers hold
exactly. It expires when it is full (PXAT: Redis 6.2). A bucket beyond the window means that the clock was set back:
it counts as empty.
"""

T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)


class StoreDownError(Exception):
    """Redis gave no answer, or is left alone after it gave none; the text says why, without credentials."""


class SharedBuckets:
    """The buckets in Redis. No question takes longer than `timeout`; after a failure there is a pause."""

    def __init__(self, quota: Quota, url: str, prefix: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Connects at the first question only. `timeout` is in seconds; keys begin with `prefix`.

        Raises:
            ValueError: `url` cannot be the URL of a Redis server. The text may repeat parts of it.
            TypeError: the same, for an unknown option in its query.
        """
        self.quota = quota
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout,
            socket_connect_timeout=timeout,
            socket_timeout=None,  # `_answer` has its own; this one is a wait_for, which in 3.11 may lose a cancellation
            retry=Retry(NoBackoff(), 0),  # a question that was not answered may have taken its permit
            protocol=2,  # with 3 the pool hands out connections that the server has closed
        )
        pool.connection_class(**pool.connection_kwargs)  # raises now what would fail every connection
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(SCRIPT)
        self._prefix = f"{prefix}:rate_limit:{quota.limit}/{quota.window}:"
        self._timeout = timeout
        self._outage: str | None = None
        self._retry_at = 0.0
        self._logged_at: float | None = None

    async def spend(self, client_id: str) -> int:
        """Takes a permit: returns 0, or the microseconds until there is one.

        Raises:
            StoreDownError
        """
        taken, debt = await self._debt(client_id, self.quota.window)
        return 0 if taken else self.quota.wait(debt)

    async def remaining(self, client_id: str) -> int:
        """How many permits the client has; takes none.

        Raises:
            StoreDownError
        """
        _, debt = await self._debt(client_id, 0)
        return self.quota.remaining(debt)

    async def ping(self) -> None:
        """Returns when Redis answers.

        Raises:
            StoreDownError
        """
        await self._answer(self._redis.ping)

    async def close(self) -> None:
        """Closes the connections. A question afterwards opens new ones."""
        await self._redis.aclose()

    async def _debt(self, client_id: str, cost: int) -> tuple[bool, int]:
        limit, window = self.quota.limit, self.quota.window

        async def ask() -> list[int]:
            return cast(list[int], await self._script(keys=[self._prefix + client_id], args=[limit, window, cost]))

        taken, whole, part = await self._answer(ask)
        return taken == 1, whole * limit + part

    async def _answer(self, ask: Callable[[], Awaitable[T]]) -> T:
        if self._outage is not None:
            now = time.monotonic()
            if now < self._retry_at:
                raise StoreDownError(self._outage)
            self._retry_at = now + PAUSE_SECONDS  # this call tries, the others do not wait for it
        try:
            async with asyncio.timeout(self._timeout):
                answer = await ask()
        except TimeoutError:
            raise self._failed(f"no answer within {self._timeout * 1000:g} ms") from None
        except (RedisError, OSError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from None
        if self._outage is not None:
            self._outage = None
            log.info("redis answers again: the rate limits are shared")
        return answer

    def _failed(self, reason: str) -> StoreDownError:
        now = time.monotonic()
        self._outage = reason
        self._retry_at = now + PAUSE_SECONDS
        if self._logged_at is None or now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            log.warning("redis does not answer: the rate limits are not shared", reason=reason)
        return StoreDownError(reason)


def install(app: App) -> None:
    """Limits each client in Redis, or in memory where no Redis is configured.

    Raises:
        ConfigError: `REDIS_URL` is no URL of a Redis server.
    """
    config = app.config
    failures = app.meter.counter(
        "mcp_rate_limit_store_failures_total", "Tool calls about which Redis could not be asked."
    )()
    if config.rate_limit_backend == "memory":
        install_in_memory(app)
        return
    if config.redis_url is None:
        app.notices.append(f"{variable('redis_url')} is not set: each process keeps its rate limits in its own memory")
        install_in_memory(app)
        return
    quota = Quota.of(config)
    try:
        shared = SharedBuckets(quota, config.redis_url.get_secret_value(), app.about.name)
    except (ValueError, TypeError):  # their texts may contain the password
        raise ConfigError(
            [f"{variable('redis_url')}: not the URL of a Redis server (accepted: redis://, rediss:// and unix:// URLs)"]
        ) from None
    app.on_shutdown.append(shared.close)
    policy = config.rate_limit_on_store_failure
    local = Buckets(quota)

    async def spend(client_id: str) -> int:
        try:
            return await shared.spend(client_id)
        except StoreDownError:
            failures.inc()
            if policy == "closed":
                raise
            return local.spend(client_id) if policy == "local" else 0

    limit = limiting(app, quota, spend)

    async def link(call: Call, following: Next) -> Result:
        try:
            return await limit(call, following)
        except StoreDownError:
            call.outcome, call.error_type = "error", "RateLimitStoreDown"
            seconds = math.ceil(PAUSE_SECONDS)
            return failure(
                f"The rate limit cannot be checked now, so the call was refused. Try again in {seconds} seconds.",
                retry_after_seconds=seconds,
            )

    async def health(client_id: str) -> HealthPart:
        try:
            return HealthPart(status(quota, await shared.remaining(client_id)))
        except StoreDownError as error:
            fields = status(quota, local.remaining(client_id)) if policy == "local" else {}
            return HealthPart(fields, (f"rate limit store: {error} (policy {policy})",))

    app.links["rate_limit"] = link
    app.health.append(health)
    if policy == "closed":
        app.readiness["redis"] = shared.ping
