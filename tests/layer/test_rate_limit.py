"""The limit is exact, whatever its numbers; it counts tool calls only, and each client for itself."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from weather_station.production import rate_limit
from weather_station.production.registry import App, ProductionServer
from weather_station.production.request import Call
from weather_station.production.config import ConfigError, about
from weather_station.production.observe.meter import NullMeter
from weather_station.production.inbound.rate_limit import (
    MICROSECONDS,
    SWEEP,
    Buckets,
    Quota,
)

from harness import Running, config, text_of

Serve = Callable[..., Any]

DAY = 86_400
LIMITS = st.one_of(st.integers(1, 12), st.integers(1, 10**9), st.sampled_from([7, 999_983, 999_999_937, 10**9]))
WINDOWS = st.one_of(st.integers(1, 3), st.integers(1, DAY), st.just(DAY)).map(lambda seconds: seconds * MICROSECONDS)
QUOTAS = st.builds(Quota, LIMITS, WINDOWS)
REFUSAL = re.compile(r"Rate limit exceeded\. 0 requests remaining\. Try again in (\d+) seconds\.")


class TokenBucket:
    """The plain model: a bucket of tokens that fills evenly, in exact fractions."""

    def __init__(self, quota: Quota, now: int, tokens: Fraction | None = None) -> None:
        self.quota = quota
        self.tokens = Fraction(quota.limit) if tokens is None else tokens
        self.seen_at = now

    def fill(self, now: int) -> None:
        gained = Fraction((now - self.seen_at) * self.quota.limit, self.quota.window)
        self.tokens = min(Fraction(self.quota.limit), self.tokens + gained)
        self.seen_at = now

    def spend(self, now: int) -> int:
        """Takes a token: returns 0, or the microseconds until there is one, rounded up."""
        self.fill(now)
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return math.ceil((1 - self.tokens) * self.quota.window / self.quota.limit)

    def remaining(self, now: int) -> int:
        self.fill(now)
        return math.floor(self.tokens)


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class LimiterAgainstModel(RuleBasedStateMachine):
    """Whatever calls come whenever, the limiter does what the plain model does, to the microsecond."""

    clients = st.sampled_from(["a", "b", "c"])

    @initialize(quota=QUOTAS, start=st.integers(0, 10**15))
    def begin(self, quota: Quota, start: int) -> None:
        self.clock = Clock()
        self.clock.now = start
        self.quota = quota
        self.buckets = Buckets(quota, clock=self.clock)
        self.models = {client: TokenBucket(quota, start) for client in "abc"}
        self.wait = 0

    @rule(client=clients)
    def spend(self, client: str) -> None:
        self.wait = self.buckets.spend(client)
        assert self.wait == self.models[client].spend(self.clock.now)

    @rule(client=clients, calls=st.integers(2, 30))
    def spend_many(self, client: str, calls: int) -> None:
        for _ in range(calls):
            self.spend(client)

    @rule(client=clients)
    def look(self, client: str) -> None:
        assert self.buckets.remaining(client) == self.models[client].remaining(self.clock.now)

    @rule(share=st.fractions(0, 2))
    def time_passes(self, share: Fraction) -> None:
        self.clock.now += int(share * self.quota.window)

    @rule(microseconds=st.integers(0, 3))
    def a_moment_passes(self, microseconds: int) -> None:
        self.clock.now += microseconds

    @precondition(lambda self: self.wait > 0)
    @rule(early=st.integers(0, 1))
    def the_told_wait_passes(self, early: int) -> None:
        self.clock.now += self.wait - early
        self.wait = 0


LimiterAgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLimiterAgainstModel = LimiterAgainstModel.TestCase


@settings(deadline=None)
@given(quota=QUOTAS, share=st.fractions(0, 1))
def test_every_debt_is_reckoned_exactly(quota: Quota, share: Fraction) -> None:
    debt = int(share * quota.limit * quota.window)
    tokens = quota.limit - Fraction(debt, quota.window)
    assert quota.remaining(debt) == math.floor(tokens)
    assert quota.wait(debt) == max(0, math.ceil((1 - tokens) * quota.window / quota.limit))


@settings(deadline=None, max_examples=50)
@given(limit=st.integers(1, 2000), window=WINDOWS)
def test_exactly_the_limit_passes_at_once_and_again_over_the_window(limit: int, window: int) -> None:
    clock = Clock()
    buckets = Buckets(Quota(limit, window), clock=clock)
    passed = 0
    while not (wait := buckets.spend("client")):
        passed += 1
    assert passed == limit
    while clock.now + wait <= window:
        clock.now += wait
        assert buckets.spend("client") == 0
        passed += 1
        wait = buckets.spend("client")
    assert passed == 2 * limit


def test_a_full_bucket_is_forgotten() -> None:
    clock = Clock()
    buckets = Buckets(Quota(10, MICROSECONDS), clock=clock)
    for number in range(10_000):
        clock.now += 50_000  # a call is paid back after 100 000 microseconds
        buckets.spend(f"client {number}")
    assert len(buckets) <= 3


def test_the_memory_is_bounded_and_forgets_whoever_is_nearest_to_a_full_bucket() -> None:
    clock = Clock()
    buckets = Buckets(Quota(10, DAY * MICROSECONDS), max_clients=100, clock=clock)
    while not buckets.spend("busy"):
        pass
    for number in range(100_000):
        clock.now += 1
        assert buckets.spend(f"passing {number}") == 0
        assert len(buckets) <= 100
    assert buckets.spend("busy") > 0
    assert buckets.remaining("passing 0") == 10
    assert buckets.remaining("passing 99999") == 9


def test_making_room_looks_at_few_clients_even_when_all_have_called_again() -> None:
    looks = 0

    class Watched(dict[str, int]):
        def __getitem__(self, key: str) -> int:
            nonlocal looks
            looks += 1
            return super().__getitem__(key)

    buckets = Buckets(Quota(1000, DAY * MICROSECONDS), max_clients=500, clock=lambda: 0)
    for _ in range(3):
        for number in range(500):
            buckets.spend(str(number))
    buckets._full_at = Watched(buckets._full_at)
    assert buckets.spend("new") == 0
    assert looks <= SWEEP
    assert len(buckets) == 500


def exhausted(limit: int = 2, window: int = DAY) -> dict[str, int]:
    return {"rate_limit_requests": limit, "rate_limit_window_seconds": window}


async def test_of_calls_at_once_exactly_the_limit_passes(serve: Serve, http: httpx2.AsyncClient) -> None:
    with serve(**exhausted(50)) as server:
        results = await asyncio.gather(*(server.acall(http, "health_check") for _ in range(200)))
    refused = [result for result in results if result["isError"]]
    assert len(refused) == 150
    assert all(REFUSAL.fullmatch(text_of(result)) for result in refused)


def test_a_refusal_tells_the_true_wait_in_words_and_in_numbers(serve: Serve) -> None:
    with serve(**exhausted(2, window=1000)) as server:
        for _ in range(2):
            assert not server.call("health_check")["isError"]
        refusal = server.call("health_check")
    told = REFUSAL.fullmatch(text_of(refusal))
    assert told
    meta = refusal["_meta"]
    assert int(told[1]) == meta["retry_after_seconds"]
    assert 490 <= meta["retry_after_seconds"] <= 500
    assert {name: meta[name] for name in ("remaining", "limit", "window_seconds")} == {
        "remaining": 0,
        "limit": 2,
        "window_seconds": 1000,
    }


def test_after_the_told_wait_a_call_passes(serve: Serve) -> None:
    with serve(**exhausted(1, window=3)) as server:
        server.call("health_check")
        wait = server.call("health_check")["_meta"]["retry_after_seconds"]
        assert 1 <= wait <= 3
        asyncio.run(asyncio.sleep(wait))
        assert not server.call("health_check")["isError"]


def test_only_tool_calls_count(serve: Serve) -> None:
    with serve(**exhausted(1)) as server:
        for method in ("tools/list", "ping", "tools/list"):
            answer = server.post({"jsonrpc": "2.0", "id": 1, "method": method})
            assert "result" in answer.json()
        for path in ("/livez", "/readyz", "/health", "/health"):
            assert server.client.get(f"{server.base}{path}").status_code == 200
        assert not server.call("health_check")["isError"]
        assert server.call("health_check")["isError"]


def test_an_unknown_tool_counts(serve: Serve) -> None:
    with serve(**exhausted(1)) as server:
        assert "Unknown tool" in text_of(server.call("no such tool"))
        assert REFUSAL.fullmatch(text_of(server.call("no such tool")))


def test_health_shows_what_is_left_and_spends_nothing(serve: Serve) -> None:
    def left(server: Running) -> object:
        return server.client.get(f"{server.base}/health").json()["rate_limit"]

    with serve(**exhausted(5)) as server:
        assert left(server) == {"remaining": 5, "window_seconds": DAY}
        assert left(server) == {"remaining": 5, "window_seconds": DAY}
        own = server.call("health_check")["structuredContent"]["rate_limit"]
        assert own == {"remaining": 4, "window_seconds": DAY}
        assert left(server) == {"remaining": 4, "window_seconds": DAY}


def test_each_client_has_its_own_limit(serve: Serve) -> None:
    with serve(**exhausted(1), trusted_proxies=("127.0.0.1",)) as server:
        assert not server.call("health_check", x_forwarded_for="192.0.2.1")["isError"]
        assert server.call("health_check", x_forwarded_for="192.0.2.1")["isError"]
        assert not server.call("health_check", x_forwarded_for="192.0.2.2")["isError"]


def test_a_refused_call_does_not_run(serve: Serve) -> None:
    ran = 0

    def register(server: ProductionServer) -> None:
        @server.tool()
        async def counted() -> str:
            nonlocal ran
            ran += 1
            return "done"

    with serve(register, **exhausted(3)) as server:
        for _ in range(10):
            server.call("counted")
    assert ran == 3


class RecordingMeter(NullMeter):
    """Counts in a dictionary, whether or not this project has the metrics feature."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Any]:
        meter = self

        class Recorded:
            def inc(self, amount: float = 1) -> None:
                meter.counts[name] = meter.counts.get(name, 0) + amount

        return lambda *values: Recorded()


async def test_refusals_are_counted() -> None:
    app = App(config(**exhausted(1)), about())
    meter = RecordingMeter()
    app.meter = meter
    rate_limit.install_in_memory(app)
    passed = 0

    async def tool(call: Any) -> Any:
        nonlocal passed
        passed += 1

    for _ in range(3):
        call = Call("tool", "tool", {}, cast(Any, None), "client", "id")
        await app.links["rate_limit"](call, tool)
    assert passed == 1
    assert meter.counts == {"mcp_rate_limit_rejections_total": 2}
    assert (request.status, request.error_type) == ("rejected", "RateLimited")


def test_a_project_without_redis_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r"RATE_LIMIT_BACKEND: .* --data rate_limit_backend=redis"):
        rate_limit.install(App(config(rate_limit_backend="redis"), about()))
