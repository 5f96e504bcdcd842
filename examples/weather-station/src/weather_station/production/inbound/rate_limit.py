"""Rate limits of each caller, in memory: token buckets of `rate_limit_requests` and `rate_limit_messages` permits.

The first is for requests that run the owner's code, the second for every message.

The algorithm is GCRA (generic cell rate algorithm, ITU-T I.371) in integers, so it is exact for every limit and window.
The libraries that were measured scan all their keys or, through rounding, admit one call too few.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple

from mcp_types import CallToolResult
from mcp_types.methods import INPUT_REQUIRED_METHODS

from ..caller import Caller, current_caller
from ..config import ConfigError, ProductionConfig
from ..registry import HealthPart, Registry
from ..request import COMPLETE, PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, CallNext, MCPRequest, Result, reject
from .single_use import SingleUseError

LIMITED = frozenset((TOOLS_CALL, RESOURCES_READ, PROMPTS_GET, COMPLETE))
"""Methods that run the owner's code, and so share `rate_limit_requests`."""

MESSAGES_PER_REQUEST = 10
"""Messages for each request of a limit; RATE_LIMIT_MESSAGES overrides it for callers without a tier."""

STATE_SECONDS = 600.0
"""Lifetime of a request state (`RequestStateSecurity`)."""

MAX_CALLERS = 100_000
"""Greatest number of buckets, about 35 MB. Beyond that the bucket that is full again first is removed."""

SWEEP_SIZE = 8
"""Greatest number of buckets to examine for removal when one is added."""

MAX_LIMIT = 1_000_000_000
MAX_WINDOW_SECONDS = 86_400
"""Greatest values of a tier: the same as those of `rate_limit_requests` and `rate_limit_window_seconds`."""

NO_TIER = "default"
"""The label of callers without a tier that is configured."""

MICROSECONDS = 1_000_000
"""Microseconds per second."""

_TIER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._@-]{0,63})=([0-9]{1,10})/([0-9]{1,5})")


class Rate(NamedTuple):
    """`limit` calls per `window` microseconds.

    Time is measured in ticks of 1/`limit` microseconds, so that no rounding is needed: a call adds `window` ticks to a
    caller's debt, each microsecond removes `limit` ticks, and the greatest debt is that of `limit` calls.
    """

    limit: int
    window: int

    @classmethod
    def of(cls, config: ProductionConfig) -> Rate:
        return cls(config.rate_limit_requests, config.rate_limit_window_seconds * MICROSECONDS)

    def wait(self, debt: int, cost: int = 1) -> int:
        """Return the microseconds, rounded up, until a caller with a debt of `debt` ticks may call; 0 means now.

        Args:
            cost: Permits of the call, at most `limit`.
        """
        excess = debt + (cost - self.limit) * self.window
        return -(-excess // self.limit) if excess > 0 else 0

    def remaining(self, debt: int) -> int:
        """Return how many calls a caller with a debt of `debt` ticks may make now."""
        return self.limit - -(-debt // self.window)


TakePermits = Callable[[str, int, Rate], Awaitable[tuple[bool, int]]]
"""Spends permits of a key: gets the key, their number and the rate; returns what `Buckets.take` does."""


class Tiers:
    """The rate and the key of each caller."""

    def __init__(self, config: ProductionConfig) -> None:
        """Read `rate_limit_tiers`.

        Raises:
            ConfigError: an entry is malformed or out of range, or a tier is there twice.
        """
        self.default = Rate.of(config)
        self._by_tenant = config.rate_limit_key == "tenant"
        self._rates: dict[str, Rate] = {}
        self.names = self._rates.keys()
        problems = []
        for entry in config.rate_limit_tiers:
            match = _TIER.fullmatch(entry)
            name, limit, seconds = (match[1], int(match[2]), int(match[3])) if match else ("", 0, 0)
            if not (1 <= limit <= MAX_LIMIT and 1 <= seconds <= MAX_WINDOW_SECONDS):
                problems.append(f"RATE_LIMIT_TIERS: {entry!r} is no tier (accepted: name=requests/seconds)")
            elif name in self._rates:
                problems.append(f"RATE_LIMIT_TIERS: {name} is there twice")
            else:
                self._rates[name] = Rate(limit, seconds * MICROSECONDS)
        if problems:
            raise ConfigError(problems)

    def rates(self) -> Iterator[Rate]:
        """Yield all rates."""
        yield self.default
        yield from self._rates.values()

    def of(self, caller: Caller) -> Rate:
        """Return the rate of the caller's tier; the default one without a tier, or with one that has no limit."""
        return self._rates.get(caller.tier, self.default) if caller.tier else self.default

    def key(self, caller: Caller) -> str:
        """Return the key of the caller's permits."""
        if not self._by_tenant:
            return caller.id
        return f"tenant:{caller.tenant}" if caller.tenant else f"caller:{caller.id}"

    def current(self, caller_id: str) -> tuple[Rate, str]:
        """Return rate and key of a caller id: of its tier and tenant where its request is being handled."""
        sender = current_caller.get()
        known = sender if sender is not None and sender.id == caller_id else Caller(caller_id)
        return self.of(known), self.key(known)


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
        rate: Rate,
        *,
        max_callers: int = MAX_CALLERS,
        clock: Callable[[], int] = lambda: time.monotonic_ns() // 1000,
    ) -> None:
        self.rate = rate
        self._max_callers = max_callers
        self._clock = clock
        self._full_at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []
        self._capacity = rate.limit * rate.window

    def __len__(self) -> int:
        return len(self._full_at)

    def spend(self, caller_id: str, cost: int = 1) -> int:
        """Spend `cost` permits and return 0, or spend none and return the microseconds until there are enough."""
        spent, debt = self.take(caller_id, cost)
        return 0 if spent else self.rate.wait(debt, cost)

    def take(self, caller_id: str, cost: int) -> tuple[bool, int]:
        """Spend `cost` permits if there are enough; return whether they were spent, and the debt in ticks."""
        now = self._clock() * self.rate.limit
        full_at = self._full_at.get(caller_id)
        debt = 0 if full_at is None or full_at <= now else full_at - now
        new_debt = debt + cost * self.rate.window
        if new_debt > self._capacity:
            return False, debt
        if full_at is None:
            self._make_room(now)
            heappush(self._heap, (now + new_debt, caller_id))
        self._full_at[caller_id] = now + new_debt
        return True, new_debt

    def remaining(self, caller_id: str) -> int:
        """Return how many permits the caller has, without spending one."""
        now = self._clock() * self.rate.limit
        return self.rate.remaining(max(self._full_at.get(caller_id, now) - now, 0))

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


class LocalBuckets:
    """The token buckets of one process for several rates."""

    def __init__(self) -> None:
        self._buckets: dict[Rate, Buckets] = {}

    def of(self, rate: Rate) -> Buckets:
        """Return the buckets of a rate."""
        buckets = self._buckets.get(rate)
        if buckets is None:
            buckets = self._buckets[rate] = Buckets(rate)
        return buckets


async def _continues_round(registry: Registry, request: MCPRequest) -> bool:
    """Return whether the request continues an `input_required` round, so that it takes no permit: once for each state.

    A state that is used for the first time may be forged: the SDK, which seals states, then rejects the request before
    it runs. Where it cannot be known whether the state was used, the request takes a permit.
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
    tiers = Tiers(registry.config)
    local = LocalBuckets()

    async def health(caller_id: str) -> HealthPart:
        rate, key = tiers.current(caller_id)
        return HealthPart(health_fields(rate, local.of(rate).remaining(key)))

    registry.middleware["rate_limit"] = Limiter(registry, tiers, local)
    registry.health.parts.append(health)
    limit_messages(registry, tiers)


def limit_messages(registry: Registry, tiers: Tiers) -> None:
    """Limit the messages of each caller in this process, whose work they cause."""
    rates = {rate: Rate(MESSAGES_PER_REQUEST * rate.limit, rate.window) for rate in tiers.rates()}
    if registry.config.rate_limit_messages is not None:
        rates[tiers.default] = Rate(registry.config.rate_limit_messages, tiers.default.window)
    buckets = {rate: Buckets(of_messages) for rate, of_messages in rates.items()}
    rejected = LimitRejections(registry, "MessageRateLimited")

    def middleware(request: MCPRequest, call_next: CallNext) -> Awaitable[Result]:
        own = buckets[tiers.of(request.caller)]
        wait = own.spend(request.caller.id)
        return reject_message(request, own.rate, wait) if wait else call_next(request)

    async def reject_message(request: MCPRequest, rate: Rate, wait: int) -> Result:
        return rejected(request, rate, wait)

    def admit_notification(caller_id: str) -> bool:
        wait = buckets[tiers.current(caller_id)[0]].spend(caller_id)
        if wait:
            rejected.count()
        return not wait

    registry.middleware["message_limit"] = middleware
    registry.admit_notification = admit_notification


def health_fields(rate: Rate, remaining: int) -> dict[str, dict[str, int]]:
    """Return the rate limit's fields of the health report."""
    return {"rate_limit": {"remaining": remaining, "window_seconds": rate.window // MICROSECONDS}}


class LimitRejections:
    """Rejects requests beyond a limit, and counts them."""

    def __init__(self, registry: Registry, reason: str) -> None:
        text = "Requests and notifications rejected by a rate limit."
        self.count = registry.meter.counter("mcp_rate_limit_rejections_total", text)().inc
        self._reason = reason

    def __call__(
        self, request: MCPRequest, rate: Rate, wait: int, *, remaining: int = 0, cost: int = 1
    ) -> CallToolResult:
        """Reject a request.

        Args:
            request: The request.
            rate: The limit that it exceeds.
            wait: Microseconds until the caller has enough permits.
            remaining: Permits that the caller has now.
            cost: Permits that the request takes.
        """
        self.count()
        seconds = -(-wait // MICROSECONDS)
        window = rate.window // MICROSECONDS
        text = f"Rate limit exceeded. {remaining} requests remaining. Try again in {seconds} seconds."
        counts = f" This request counts as {cost} of {rate.limit} in {window} seconds."
        if cost > rate.limit:
            text = f"Rate limit exceeded.{counts} It is never admitted."
        elif cost > 1:
            text += counts
        again = {"retry_after_seconds": seconds} if cost <= rate.limit else {}
        meta = {**again, "remaining": remaining, "limit": rate.limit, "window_seconds": window}
        return reject(request, self._reason, text, **meta)


class Limiter:
    """Middleware that spends the permits of every request that runs the owner's code, or rejects it.

    Args:
        registry: Metrics, and states that are used once.
        tiers: The rate of each caller.
        local: The permits in this process.
        take: Spends the permits that replicas share.
    """

    def __init__(self, registry: Registry, tiers: Tiers, local: LocalBuckets, take: TakePermits | None = None) -> None:
        registry.policy_fields.add("cost")
        self.tiers = tiers
        self.local = local
        self.handle_with_quotas: Callable[[MCPRequest, CallNext, int], Awaitable[Result]] | None = None
        """Middleware that checks this limit together with the quotas of callers, in its place.

        It also gets the cost of the request, which is 0 where the request continues an `input_required` round.
        """
        self._take = take
        self._rejected = LimitRejections(registry, "RateLimited")
        self._registry = registry
        self._by_reason = registry.meter.counter(
            "mcp_limit_rejections_total", "Requests rejected by a limit of their caller.", ("reason", "tier")
        )
        self.expect("RateLimited")

    async def __call__(self, request: MCPRequest, call_next: CallNext) -> Result:
        if request.method not in LIMITED:
            return await call_next(request)
        has_state = "requestState" in request.params
        cost = 0 if has_state and await _continues_round(self._registry, request) else request.policy.cost or 1
        if self.handle_with_quotas is not None:
            return await self.handle_with_quotas(request, call_next, cost)
        if not cost:
            return await call_next(request)
        caller, tiers = request.caller, self.tiers
        rate = tiers.of(caller)
        key = tiers.key(caller)
        spent, debt = await self._take(key, cost, rate) if self._take else self.local.of(rate).take(key, cost)
        return await call_next(request) if spent else self.reject(request, rate, cost, debt)

    def reject(self, request: MCPRequest, rate: Rate, cost: int, debt: int) -> CallToolResult:
        """Reject a request whose caller has a debt of `debt` ticks."""
        self.count("RateLimited", request.caller)
        return self._rejected(request, rate, rate.wait(debt, cost), remaining=rate.remaining(debt), cost=cost)

    def expect(self, reason: str, tiers: Iterable[str] = ()) -> None:
        """Create the counters of a reason, with the value 0, for all tiers that have a limit and for `tiers`."""
        for tier in {NO_TIER, *self.tiers.names, *tiers}:
            self._by_reason(reason, tier)

    def count(self, reason: str, caller: Caller, tiers: Container[str] = ()) -> None:
        """Count a rejection."""
        tier = caller.tier
        known = tier is not None and (tier in self.tiers.names or tier in tiers)
        self._by_reason(reason, tier if known else NO_TIER).inc()
