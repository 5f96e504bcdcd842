"""Further limits of each caller, in memory: requests per day, and requests at the same time.

They are checked together with the permits of `rate_limit`: a request that one of them rejects takes nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from pydantic import Field

from ..caller import Caller
from ..config import CommaSeparated, ConfigError, EnvironmentSettings
from ..registry import Registry
from ..request import CallNext, MCPRequest, Result, reject
from .rate_limit import MICROSECONDS, Limiter, LocalBuckets, Rate

DAY = 86_400 * MICROSECONDS
"""Microseconds of a day. Days begin at midnight in UTC."""

MAX_DAILY = 1_000_000_000
MAX_CALLERS = 100_000
"""Greatest number of callers of a day whose requests are counted, about 10 MB."""

_TIER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]{0,63})=([0-9]{1,10})")


class QuotaSettings(EnvironmentSettings):
    """Settings of the further limits; their environment variables are their names in capitals."""

    rate_limit_daily: int | None = Field(default=None, ge=1, le=MAX_DAILY)
    rate_limit_daily_tiers: CommaSeparated = ()
    max_concurrent_per_caller: int | None = Field(default=None, ge=1, le=65_536)

    def daily_by_tier(self) -> dict[str, int]:
        """Return the requests per day of each tier that has a number of its own.

        Raises:
            ConfigError: an entry is malformed or out of range.
        """
        found = {}
        for entry in self.rate_limit_daily_tiers:
            match = _TIER.fullmatch(entry)
            if match is None or not 1 <= int(match[2]) <= MAX_DAILY:
                raise ConfigError([f"RATE_LIMIT_DAILY_TIERS: {entry!r} is no tier (accepted: name=requests)"])
            found[match[1]] = int(match[2])
        return found


class Demand(NamedTuple):
    """What one request needs of the limits of its caller."""

    key: str
    """The key of its permits and of its day."""
    caller_id: str
    cost: int
    """Permits; 0 in a further round of a request, which takes none."""
    rate: Rate
    daily: int
    """Requests per day; 0 for any number."""
    slots: int
    """Requests at the same time; 0 for any number."""
    request_id: str
    seconds: float
    """The longest time that it runs."""


class Decision(NamedTuple):
    """The decision on a request."""

    reason: str | None
    """Why it was rejected; `None` if it was admitted."""
    number: int = 0
    """The debt in ticks for `RateLimited`, the requests of this day for `QuotaExceeded`."""
    wait: int = 0
    """Microseconds until the next day, for `QuotaExceeded`."""
    release: Callable[[], None] | None = None
    """Has to be called when the request has ended."""


ADMITTED = Decision(None)

Admit = Callable[[Demand], Awaitable[Decision]]


def install(registry: Registry) -> None:
    """Limit requests per day and at the same time, where that is set.

    Raises:
        ConfigError: the settings are not valid.
    """
    extend(registry, lambda limiter, local: local.admit)


def extend(registry: Registry, admission_of: Callable[[Limiter, LocalLimits], Admit]) -> None:
    """Extend the rate limit.

    Args:
        admission_of: Returns the function that decides on requests.

    Raises:
        ConfigError: the settings are not valid.
    """
    settings = QuotaSettings.load()
    daily = settings.daily_by_tier()
    limiter = registry.middleware.get("rate_limit")
    if not (daily or settings.rate_limit_daily or settings.max_concurrent_per_caller):
        return
    if not isinstance(limiter, Limiter):
        names = "RATE_LIMIT_DAILY, RATE_LIMIT_DAILY_TIERS and MAX_CONCURRENT_PER_CALLER"
        raise ConfigError([f"{names} need ENABLE_RATE_LIMITING=true"])
    admit = admission_of(limiter, LocalLimits(limiter.local))
    limiter.handle_with_quotas = CallerQuota(registry, limiter, settings, daily, admit)


class CallerQuota:
    """The rate limit together with the quotas of callers, as `Limiter.handle_with_quotas`."""

    def __init__(
        self, registry: Registry, limiter: Limiter, settings: QuotaSettings, daily: dict[str, int], admit: Admit
    ) -> None:
        self._limiter = limiter
        self._daily = daily
        self._default = settings.rate_limit_daily or 0
        self._slots = settings.max_concurrent_per_caller or 0
        self._admit = admit
        self._seconds = registry.config.tool_timeout_seconds
        self._grace = registry.config.shutdown_grace_seconds
        for reason in ("QuotaExceeded", "TooManyAtOnce"):
            limiter.expect(reason, daily)

    async def __call__(self, request: MCPRequest, call_next: CallNext, cost: int) -> Result:
        caller, tiers = request.caller, self._limiter.tiers
        rate = tiers.of(caller)
        daily = self._daily_of(caller)
        seconds = (request.policy.timeout or self._seconds) + self._grace
        demand = Demand(tiers.key(caller), caller.id, cost, rate, daily, self._slots, request.request_id, seconds)
        decision = await self._admit(demand)
        if decision.reason is not None:
            return self._reject(request, demand, decision)
        try:
            return await call_next(request)
        finally:
            if decision.release is not None:
                decision.release()

    def _daily_of(self, caller: Caller) -> int:
        return self._daily.get(caller.tier, self._default) if caller.tier else self._default

    def _reject(self, request: MCPRequest, demand: Demand, decision: Decision) -> Result:
        rate, cost = demand.rate, demand.cost
        if decision.reason == "RateLimited":
            return self._limiter.reject(request, rate, cost, decision.number)
        reason = str(decision.reason)
        self._limiter.count(reason, request.caller, self._daily)
        if reason == "TooManyAtOnce":
            text = f"This caller has {demand.slots} requests running, which is the limit. Try again when one has ended."
            return reject(request, reason, text, limit=demand.slots)
        remaining, seconds = demand.daily - decision.number, -(-decision.wait // MICROSECONDS)
        text = f"Daily quota exceeded. {remaining} of {demand.daily} requests remaining today (UTC)."
        meta = {"remaining": remaining, "limit": demand.daily}
        if cost > demand.daily:
            return reject(request, reason, f"{text} This request counts as {cost}: it is never admitted.", **meta)
        return reject(request, reason, f"{text} Try again in {seconds} seconds.", retry_after_seconds=seconds, **meta)


class LocalLimits:
    """All limits in the memory of one process.

    Args:
        buckets: The permits.
        clock: Returns microseconds since the epoch.
    """

    def __init__(self, buckets: LocalBuckets, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._buckets = buckets
        self._clock = clock
        self._day = 0
        self._used: dict[str, int] = {}
        self._running: dict[str, int] = {}

    async def admit(self, demand: Demand) -> Decision:
        """Admit a request and count it, or reject it and count nothing."""
        key, caller_id, cost, rate, daily, slots, _, _ = demand
        if slots and self._running.get(caller_id, 0) >= slots:
            return Decision("TooManyAtOnce")
        used = 0
        if daily:
            now = self._clock()
            used = self._used_today(now, key)
            if used + cost > daily:
                return Decision("QuotaExceeded", used, DAY - now % DAY)
        if cost:
            spent, debt = self._buckets.of(rate).take(key, cost)
            if not spent:
                return Decision("RateLimited", debt)
            if daily:
                self._used[key] = used + cost
                if len(self._used) > MAX_CALLERS:
                    del self._used[next(iter(self._used))]
        if not slots:
            return ADMITTED
        self._running[caller_id] = self._running.get(caller_id, 0) + 1
        return Decision(None, release=partial(self._end, caller_id))

    def _used_today(self, now: int, key: str) -> int:
        if now // DAY != self._day:
            self._day = now // DAY
            self._used.clear()
        return self._used.get(key, 0)

    def _end(self, caller_id: str) -> None:
        left = self._running.pop(caller_id) - 1
        if left:
            self._running[caller_id] = left
