"""Further limits of each caller that all replicas share: one script in Redis decides on a request."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial

from ..registry import Registry
from . import caller_quota
from .caller_quota import DAY, Admit, Decision, Demand, LocalLimits
from .rate_limit import MICROSECONDS, Limiter
from .rate_limit_redis import SCRIPT as SPEND
from .rate_limit_redis import SharedBuckets, SharedLimiter, StoreDownError, bucket_name

ADMIT = f"""
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
"""Lua script that admits a request and counts it, or rejects it and counts nothing.

KEYS: the bucket, the day's count, and the slots of running requests: a sorted set of requests by the time at which
their slot is free even if their process has ended without releasing it. ARGV: limit, window and cost in ticks as in
`rate_limit_redis`, permits, requests per day, requests at the same time, the request, and its longest time in
microseconds. Returns 1 if the request is admitted, 0 and the debt if permits are missing, 2, the time until the next
day and this day's count if the quota is used up, and 3 if no slot is free.
"""

RELEASE = "redis.call('ZREM', KEYS[1], ARGV[1]) return {1}"
"""Lua script that releases a slot."""


def install(registry: Registry) -> None:
    """Limit requests per day and at the same time over all replicas, or in memory if no Redis is configured.

    Raises:
        ConfigError: the settings are not valid.
    """

    def admission_of(limiter: Limiter, local: LocalLimits) -> Admit:
        return SharedLimits(registry, limiter.store, local).admit if isinstance(limiter, SharedLimiter) else local.admit

    caller_quota.extend(registry, admission_of)


class SharedLimits:
    """All limits in Redis; while it does not answer, `RATE_LIMIT_ON_STORE_FAILURE` decides."""

    def __init__(self, registry: Registry, store: SharedBuckets, local: LocalLimits) -> None:
        self._store = store
        self._local = local
        self._policy = registry.config.rate_limit_on_store_failure
        self._failures = registry.meter.counter(
            "mcp_rate_limit_store_failures_total", "Requests whose rate limit could not be checked in Redis."
        )()
        self._releasing: set[asyncio.Task[None]] = set()

    async def admit(self, demand: Demand) -> Decision:
        """Admit a request and count it, or reject it and count nothing.

        Raises:
            StoreDownError: Redis does not answer, and requests are rejected then.
        """
        rate, slot = demand.rate, f"running:{demand.caller_id}"
        keys = [bucket_name(demand.key, rate), f"day:{demand.key}", slot]
        cost = min(demand.cost, rate.limit + 1)  # more is never admitted, and its ticks may be no exact number
        lease = round(demand.seconds * MICROSECONDS)
        arguments = (rate.limit, rate.window, cost * rate.window, demand.cost, demand.daily, demand.slots)
        try:
            state, first, second = await self._store.run(ADMIT, keys, (*arguments, demand.request_id, lease))
        except StoreDownError:
            self._failures.inc()
            if self._policy == "closed":
                raise
            return await self._local.admit(demand) if self._policy == "local" else Decision(None)
        if state == 1:
            release = partial(self._release, slot, demand.request_id) if demand.slots else None
            return Decision(None, release=release)
        if state == 0:
            return Decision("RateLimited", first * rate.limit + second)
        return Decision("QuotaExceeded", second, first) if state == 2 else Decision("TooManyAtOnce")

    def _release(self, slot: str, request_id: str) -> None:
        """Release a slot in a task of its own, with an empty context, since it belongs to no request's trace."""
        task = asyncio.get_running_loop().create_task(self._release_slot(slot, request_id), context=Context())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _release_slot(self, slot: str, request_id: str) -> None:
        try:
            await self._store.run(RELEASE, [slot], [request_id])
        except StoreDownError:
            self._failures.inc()  # the slot expires
