"""Further limits of each caller that all replicas share: one script in Redis takes all that a request wants."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial

from ..registry import Registry
from . import caller_quota
from .caller_quota import DAY, LocalLimits, Take, Taken, Wanted
from .rate_limit import MICROSECONDS, Limiter, Store, StoreDownError
from .rate_limit_redis import SCRIPT as SPEND
from .rate_limit_redis import bucket_name

TAKE = f"""
local function spend()
{SPEND}
end
local units, daily, slots = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
if slots > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)
  if redis.call('ZCARD', KEYS[3]) >= slots then
    return {{3, 0, 0}}
  end
end
local today, used = math.floor(now / {DAY}), 0
if daily > 0 then
  local day, number = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+) (%d+)$')
  if tonumber(day) == today then
    used = tonumber(number)
  end
  if used + units > daily then
    return {{2, (today + 1) * {DAY} - now, used}}
  end
end
local taken = {{1, 0, 0}}
if units > 0 then
  taken = spend()
end
if taken[1] == 1 then
  if daily > 0 and units > 0 then
    redis.call('SET', KEYS[2], string.format('%d %d', today, used + units), 'PXAT', (today + 1) * {DAY // 1000})
  end
  if slots > 0 then
    redis.call('ZADD', KEYS[3], string.format('%.0f', now + ARGV[8]), ARGV[7])
    if redis.call('PTTL', KEYS[3]) < ARGV[8] / 1000 then
      redis.call('PEXPIRE', KEYS[3], math.floor(ARGV[8] / 1000) + 1)
    end
  end
end
return taken
"""
"""Lua script that takes all that a request wants, or nothing.

KEYS: the bucket, the day's count, and the places of running requests: a sorted set of requests by the time at which
they are forgotten, in case that their process ends without giving them back. ARGV: limit, window and cost in ticks as
in `rate_limit_redis`, permits, requests per day, requests at the same time, the request, and its longest time in
microseconds. Returns 1 if all was taken, 0 and the debt if permits are missing, 2, the time until the next day and this
day's count if the quota is used up, and 3 if there is no place.
"""

RELEASE = "redis.call('ZREM', KEYS[1], ARGV[1]) return {1}"
"""Lua script that gives a place back."""


def install(registry: Registry) -> None:
    """Limit requests per day and at the same time over all replicas, or in memory if no Redis is configured.

    Raises:
        ConfigError: the settings are not valid.
    """

    def take_of(limiter: Limiter, local: LocalLimits) -> Take:
        return local.take if limiter.store is None else SharedLimits(registry, limiter.store, local).take

    caller_quota.extend(registry, take_of)


class SharedLimits:
    """All limits in Redis; while it does not answer, `RATE_LIMIT_ON_STORE_FAILURE` decides."""

    def __init__(self, registry: Registry, store: Store, local: LocalLimits) -> None:
        self._store = store
        self._local = local
        self._policy = registry.config.rate_limit_on_store_failure
        self._failures = registry.meter.counter(
            "mcp_rate_limit_store_failures_total", "Requests whose rate limit could not be checked in Redis."
        )()
        self._releasing: set[asyncio.Task[None]] = set()

    async def take(self, wanted: Wanted) -> Taken:
        """Take what a request wants, or nothing.

        Raises:
            StoreDownError: Redis does not answer, and requests are rejected then.
        """
        quota, place = wanted.quota, f"running:{wanted.caller_id}"
        keys = [bucket_name(wanted.key, quota), f"day:{wanted.key}", place]
        cost = min(wanted.cost, quota.limit + 1)  # more is never admitted, and its ticks may be no exact number
        lease = round(wanted.seconds * MICROSECONDS)
        arguments = (quota.limit, quota.window, cost * quota.window, wanted.cost, wanted.daily, wanted.slots)
        try:
            state, first, second = await self._store.run(TAKE, keys, (*arguments, wanted.request_id, lease))
        except StoreDownError:
            self._failures.inc()
            if self._policy == "closed":
                raise
            return await self._local.take(wanted) if self._policy == "local" else Taken(None)
        if state == 1:
            release = partial(self._release, place, wanted.request_id) if wanted.slots else None
            return Taken(None, release=release)
        if state == 0:
            return Taken("RateLimited", first * quota.limit + second)
        return Taken("QuotaExceeded", second, first) if state == 2 else Taken("TooManyAtOnce")

    def _release(self, place: str, request_id: str) -> None:
        """Give a place back; nobody waits for it. In an empty context: it belongs to no request's trace."""
        task = asyncio.get_running_loop().create_task(self._give_back(place, request_id), context=Context())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _give_back(self, place: str, request_id: str) -> None:
        try:
            await self._store.run(RELEASE, [place], [request_id])
        except StoreDownError:
            self._failures.inc()  # it is forgotten at its time
