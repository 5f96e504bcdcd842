"""No client calls tools more often than its limit allows: `rate_limit_requests` at once, refilled over the window.

A token bucket as GCRA (the generic cell rate algorithm, ITU-T I.371), in integers: exact for every limit and window.
Own, because a hit has to cost the same whatever the limit and the number of clients, and exactly `rate_limit_requests`
calls have to pass: libraries scan their keys or admit one call less by rounding.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

from ..config import ConfigError, ProductionConfig
from ..registry import HealthPart, Registry
from ..request import CallNext, MCPRequest, Middleware, Result, reject

MAX_CLIENTS = 100_000
"""How many clients the memory remembers, some 35 MB. Beyond, the one nearest to a full bucket is forgotten."""

SWEEP = 8
"""How many remembered clients one unknown client looks at, at most, for some to forget."""

MICROSECONDS = 1_000_000

Spend = Callable[[str], Awaitable[int]]
"""Takes a permit of a client; returns 0, or the microseconds until there is one."""


@dataclass(frozen=True, slots=True)
class Quota:
    """`limit` calls per `window` microseconds.

    Time counts in ticks of 1/`limit` microsecond, so that nothing has to be rounded: a call costs `window` ticks,
    a microsecond pays `limit` ticks back, and a client may owe `limit` calls.
    """

    limit: int
    window: int

    @classmethod
    def of(cls, config: ProductionConfig) -> Quota:
        return cls(config.rate_limit_requests, config.rate_limit_window_seconds * MICROSECONDS)

    def wait(self, debt: int) -> int:
        """Microseconds until a client that owes `debt` ticks may call, rounded up; 0: now."""
        excess = debt + self.window - self.limit * self.window
        return -(-excess // self.limit) if excess > 0 else 0

    def remaining(self, debt: int) -> int:
        """How many calls a client that owes `debt` ticks may make now."""
        return self.limit - -(-debt // self.window)


class Buckets:
    """The buckets of one process: a client's is the time at which it is full again, and a full one is forgotten.

    Nothing here depends on the limit, and nothing on the number of clients but a heap of at most `max_clients`. An
    entry of the heap may be earlier than its client's bucket, never later, and is put right when it comes up.
    """

    def __init__(
        self,
        quota: Quota,
        *,
        max_clients: int = MAX_CLIENTS,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        """`clock` returns microseconds and never goes back."""
        self.quota = quota
        self._max_clients = max_clients
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []
        self._cost = quota.window
        self._capacity = quota.limit * quota.window

    def __len__(self) -> int:
        """How many clients are remembered."""
        return len(self._full_at)

    def spend(self, caller_id: str) -> int:
        """Takes a permit: returns 0, or the microseconds until there is one."""
        now = self._clock() * self.quota.limit
        full_at = self._full_at.get(caller_id)
        if full_at is None:
            self._make_room(now)
            full_at = now + self._cost
            heappush(self._order, (full_at, caller_id))
        else:
            full_at = max(full_at, now) + self._cost
            if full_at > now + self._capacity:
                return self.quota.wait(full_at - self._cost - now)
        self._full_at[caller_id] = full_at
        return 0

    def remaining(self, caller_id: str) -> int:
        """How many permits the client has; takes none."""
        now = self._clock() * self.quota.limit
        return self.quota.remaining(max(self._full_at.get(caller_id, now) - now, 0))

    def _make_room(self, now: int) -> None:
        """Forgets full buckets, up to `SWEEP` for each new one, so they never pile up; then what it must."""
        for _ in range(SWEEP):
            if not self._order:
                return
            noted, caller_id = self._order[0]
            full_at = self._full_at[caller_id]
            if full_at > now and full_at > noted:
                heapreplace(self._order, (full_at, caller_id))
            elif full_at <= now or len(self) >= self._max_clients:
                self._forget_first()
            else:
                return
        if len(self) >= self._max_clients:
            self._forget_first()

    def _forget_first(self) -> None:
        del self._full_at[heappop(self._order)[1]]


def install(registry: Registry) -> None:
    """Limits each client in this process's memory.

    Raises:
        ConfigError: Redis is asked for, and this project has no such backend.
    """
    if registry.config.rate_limit_backend == "redis":
        advice = "Add it with: uvx copier update --trust --data rate_limit_backend=redis"
        raise ConfigError([f"RATE_LIMIT_BACKEND: this project keeps its limits in memory only. {advice}"])
    install_in_memory(registry)


def install_in_memory(registry: Registry) -> None:
    """Limits each client in this process's memory."""
    buckets = Buckets(Quota.of(registry.config))

    async def spend(caller_id: str) -> int:
        return buckets.spend(caller_id)

    async def health(caller_id: str) -> HealthPart:
        return HealthPart(status(buckets.quota, buckets.remaining(caller_id)))

    registry.middleware["rate_limit"] = limiting(registry, buckets.quota, spend)
    registry.health.parts.append(health)


def status(quota: Quota, remaining: int) -> dict[str, dict[str, int]]:
    """The limit's part of the health report."""
    return {"rate_limit": {"remaining": remaining, "window_seconds": quota.window // MICROSECONDS}}


def limiting(registry: Registry, quota: Quota, spend: Spend) -> Middleware:
    """The link that takes a permit for every call, and refuses the call when there is none."""
    rejections = registry.meter.counter("mcp_rate_limit_rejections_total", "Tool calls that the rate limit refused.")()

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        wait = await spend(request.caller.id)
        if not wait:
            return await call_next(request)
        rejections.inc()
        seconds = -(-wait // MICROSECONDS)
        return reject(
            request,
            "RateLimited",
            f"Rate limit exceeded. 0 requests remaining. Try again in {seconds} seconds.",
            retry_after_seconds=seconds,
            remaining=0,
            limit=quota.limit,
            window_seconds=quota.window // MICROSECONDS,
        )

    return middleware
