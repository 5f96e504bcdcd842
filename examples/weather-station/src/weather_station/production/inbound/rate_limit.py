"""Rate limits of each caller, in memory: token buckets of `rate_limit_requests` and `rate_limit_messages` permits.

The first is for requests that run the owner's code, the second for every message.

The algorithm is GCRA (generic cell rate algorithm, ITU-T I.371) in integers, so it is exact for every limit and window.
The libraries that were measured scan all their keys or, through rounding, admit one call too few.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

from mcp_types import CallToolResult
from mcp_types.methods import INPUT_REQUIRED_METHODS

from ..config import ProductionConfig
from ..registry import HealthPart, Registry
from ..request import (
    COMPLETE,
    PROMPTS_GET,
    RESOURCES_READ,
    TOOLS_CALL,
    CallNext,
    MCPRequest,
    Middleware,
    Result,
    reject,
)
from .single_use import SingleUseError

LIMITED = frozenset((TOOLS_CALL, RESOURCES_READ, PROMPTS_GET, COMPLETE))
"""Methods that run the owner's code, and so share `rate_limit_requests`."""

MESSAGES_PER_REQUEST = 10
"""Default of `rate_limit_messages`, as a multiple of `rate_limit_requests`."""

STATE_SECONDS = 600.0
"""Lifetime of a request state (`RequestStateSecurity`)."""

MAX_CALLERS = 100_000
"""Greatest number of buckets, about 35 MB. Beyond that the bucket that is full again first is removed."""

SWEEP_SIZE = 8
"""Greatest number of buckets to examine for removal when one is added."""

MICROSECONDS = 1_000_000
"""Microseconds per second."""

Spend = Callable[[str], Awaitable[int]]
"""Spends a permit of a caller id; returns 0, or the microseconds until there is a permit."""


@dataclass(frozen=True, slots=True)
class Quota:
    """`limit` calls per `window` microseconds.

    Time is measured in ticks of 1/`limit` microseconds, so that no rounding is needed: a call adds `window` ticks to a
    caller's debt, each microsecond removes `limit` ticks, and the greatest debt is that of `limit` calls.
    """

    limit: int
    window: int

    @classmethod
    def of(cls, config: ProductionConfig) -> Quota:
        return cls(config.rate_limit_requests, config.rate_limit_window_seconds * MICROSECONDS)

    @classmethod
    def of_messages(cls, config: ProductionConfig) -> Quota:
        limit = config.rate_limit_messages or MESSAGES_PER_REQUEST * config.rate_limit_requests
        return cls(limit, config.rate_limit_window_seconds * MICROSECONDS)

    def wait(self, debt: int) -> int:
        """Return the microseconds, rounded up, until a caller with a debt of `debt` ticks may call; 0 means now."""
        excess = debt + self.window - self.limit * self.window
        return -(-excess // self.limit) if excess > 0 else 0

    def remaining(self, debt: int) -> int:
        """Return how many calls a caller with a debt of `debt` ticks may make now."""
        return self.limit - -(-debt // self.window)


class Buckets:
    """The token buckets of one process, each stored as the time in ticks at which it is full again.

    A heap orders them by that time, so that full buckets, which carry no information, are removed first. Spending a
    permit leaves the heap as it is: a heap entry may be earlier than its bucket's time, and is corrected when it is
    the first. The cost of a call is independent of the limit, and logarithmic in the number of callers.

    Args:
        clock: Returns microseconds and never goes back.
    """

    def __init__(
        self,
        quota: Quota,
        *,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        self.quota = quota
        self._max_callers = max_callers
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._cost = quota.window
        self._capacity = quota.limit * quota.window

    def __len__(self) -> int:
        return len(self._full_at)

    def spend(self, caller_id: str) -> int:
        """Spend a permit: return 0, or the microseconds until there is a permit."""
        now = self._clock() * self.quota.limit
        full_at = self._full_at.get(caller_id)
        if full_at is None:
            self._make_room(now)
            full_at = now + self._cost
            heappush(self._heap, (full_at, caller_id))
        else:
            full_at = max(full_at, now) + self._cost
            if full_at > now + self._capacity:
                return self.quota.wait(full_at - self._cost - now)
        self._full_at[caller_id] = full_at
        return 0

    def remaining(self, caller_id: str) -> int:
        """Return how many permits the caller has, without spending one."""
        now = self._clock() * self.quota.limit
        return self.quota.remaining(max(self._full_at.get(caller_id, now) - now, 0))

    def _make_room(self, now: int) -> None:
        """Remove full buckets among the first of the heap; at the greatest number, remove at least one bucket."""
        for _ in range(SWEEP_SIZE):
            if not self._heap:
                return
            heap_time, caller_id = self._heap[0]
            full_at = self._full_at[caller_id]
            if full_at > now and full_at > heap_time:
                heapreplace(self._heap, (full_at, caller_id))
            elif full_at <= now or len(self) >= self._max_callers:
                self._remove_first()
            else:
                return
        if len(self) >= self._max_callers:
            self._remove_first()

    def _remove_first(self) -> None:
        del self._full_at[heappop(self._heap)[1]]


async def _continues_round(registry: Registry, request: MCPRequest) -> bool:
    """Return whether the request continues an `input_required` round: its retry takes no permit, but once only.

    A state that was not used may be forged. The SDK, which seals states, rejects such a request before it runs. Where
    it cannot be known whether the state was used, the retry takes a permit.
    """
    state = request.params.get("requestState")
    if not isinstance(state, str) or request.method not in INPUT_REQUIRED_METHODS:
        return False
    try:
        return await registry.first_use("request_state", state, STATE_SECONDS)
    except SingleUseError:
        return False


def install(registry: Registry) -> None:
    """Limit the requests and messages of each caller, in memory."""
    buckets = Buckets(Quota.of(registry.config))

    async def spend(caller_id: str) -> int:
        return buckets.spend(caller_id)

    async def health(caller_id: str) -> HealthPart:
        return HealthPart(health_fields(buckets.quota, buckets.remaining(caller_id)))

    registry.middleware["rate_limit"] = limiter(registry, buckets.quota, spend)
    registry.health.parts.append(health)
    limit_messages(registry)


def limit_messages(registry: Registry) -> None:
    """Limit the messages of each caller in the memory of this process, whose work they bound."""
    buckets = Buckets(Quota.of_messages(registry.config))
    rejected = Rejections(registry, "MessageRateLimited", buckets.quota)

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        wait = buckets.spend(request.caller.id)
        return rejected(request, wait) if wait else await call_next(request)

    def admit_notification(caller_id: str) -> bool:
        wait = buckets.spend(caller_id)
        if wait:
            rejected.count()
        return not wait

    registry.middleware["message_limit"] = middleware
    registry.admit_notification = admit_notification


def health_fields(quota: Quota, remaining: int) -> dict[str, dict[str, int]]:
    """Return the rate limit's fields of the health report."""
    return {"rate_limit": {"remaining": remaining, "window_seconds": quota.window // MICROSECONDS}}


class Rejections:
    """Rejects requests beyond a limit, and counts them."""

    def __init__(self, registry: Registry, reason: str, quota: Quota) -> None:
        text = "Requests and notifications rejected by a rate limit."
        self.count = registry.meter.counter("mcp_rate_limit_rejections_total", text)().inc
        self._reason = reason
        self._quota = quota

    def __call__(self, request: MCPRequest, wait: int) -> CallToolResult:
        """Reject `request`, whose caller has a permit again after `wait` microseconds."""
        self.count()
        seconds = -(-wait // MICROSECONDS)
        return reject(
            request,
            self._reason,
            f"Rate limit exceeded. 0 requests remaining. Try again in {seconds} seconds.",
            retry_after_seconds=seconds,
            remaining=0,
            limit=self._quota.limit,
            window_seconds=self._quota.window // MICROSECONDS,
        )


def limiter(registry: Registry, quota: Quota, spend: Spend) -> Middleware:
    """Return middleware that spends a permit for every request that runs the owner's code, and rejects it without."""
    rejected = Rejections(registry, "RateLimited", quota)

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        if request.method not in LIMITED or await _continues_round(registry, request):
            return await call_next(request)
        wait = await spend(request.caller.id)
        return rejected(request, wait) if wait else await call_next(request)

    return middleware
