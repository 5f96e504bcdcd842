"""Rate limit: exact whatever its numbers, for each client, and for tool calls only."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from mcp.server.context import ServerRequestContext
from mcp_types import NotificationParams

from clocks import Clock, use_clock
from harness import HAS_METRICS, Running, Serve, config, message, new_request, text_of
from rate_limit_model import DAY, RATES, REJECTION, WINDOWS, RecordingMeter, TokenBucket, limited
from rounds import RESPONSES, ROUNDS, post, rounds
from weather_station.production.config import about
from weather_station.production.inbound import rate_limit
from weather_station.production.inbound.rate_limit import (
    MICROSECONDS,
    SWEEP_SIZE,
    Buckets,
    Rate,
)
from weather_station.production.policy import MAX_COST
from weather_station.production.registry import Registry
from weather_station.production.request import MCPRequest
from weather_station.production.sdk import ProductionServer


class LimiterAgainstModel(RuleBasedStateMachine):
    """Any calls at any time: the limiter does what the plain model does, to the microsecond."""

    clients = st.sampled_from(["a", "b", "c"])

    @initialize(rate=RATES, start=st.integers(0, 10**15))
    def begin(self, rate: Rate, start: int) -> None:
        self.clock = Clock(start)
        self.rate = rate
        self.buckets = Buckets(rate, clock=self.clock)
        self.models = {client: TokenBucket(rate, start) for client in "abc"}
        self.wait = 0

    @rule(client=clients)
    def spend(self, client: str) -> None:
        self.wait = self.buckets.spend(client)
        assert self.wait == self.models[client].spend(self.clock.now)

    @rule(client=clients, calls=st.integers(2, 30))
    def spend_many(self, client: str, calls: int) -> None:
        for _ in range(calls):
            self.spend(client)

    @rule(client=clients, cost=st.integers(2, MAX_COST), share=st.fractions(0, 1))
    def spend_several(self, client: str, cost: int, share: Fraction) -> None:
        cost = min(cost, max(1, int(share * self.rate.limit)))
        self.wait = self.buckets.spend(client, cost)
        assert self.wait == self.models[client].spend(self.clock.now, cost)

    @rule(client=clients)
    def look(self, client: str) -> None:
        assert self.buckets.remaining(client) == self.models[client].remaining(self.clock.now)

    @rule(share=st.fractions(0, 2))
    def time_passes(self, share: Fraction) -> None:
        self.clock.now += int(share * self.rate.window)

    @rule(microseconds=st.integers(0, 3))
    def a_moment_passes(self, microseconds: int) -> None:
        self.clock.now += microseconds

    @precondition(lambda self: self.wait > 0)
    @rule(early=st.integers(0, 1))
    def the_reported_wait_passes(self, early: int) -> None:
        self.clock.now += self.wait - early
        self.wait = 0


LimiterAgainstModel.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestLimiterAgainstModel = pytest.mark.pure(LimiterAgainstModel.TestCase)


@pytest.mark.pure
@given(rate=RATES, share=st.fractions(0, 1))
def test_waits_and_remaining_calls_follow_exactly_from_the_debt(rate: Rate, share: Fraction) -> None:
    debt = int(share * rate.limit * rate.window)
    tokens = rate.limit - Fraction(debt, rate.window)
    assert rate.remaining(debt) == math.floor(tokens)
    assert rate.wait(debt) == max(0, math.ceil((1 - tokens) * rate.window / rate.limit))


@pytest.mark.pure
@settings(max_examples=50)
@given(limit=st.integers(1, 2000), window=WINDOWS)
def test_exactly_the_limit_passes_at_once_and_once_more_over_the_window(limit: int, window: int) -> None:
    clock = Clock()
    buckets = Buckets(Rate(limit, window), clock=clock)
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
    buckets = Buckets(Rate(10, MICROSECONDS), clock=clock)
    for number in range(10_000):
        clock.now += 50_000  # a call is paid back after 100 000 microseconds
        buckets.spend(f"client {number}")
    assert len(buckets) <= 3


def test_the_memory_is_bounded_and_forgets_the_fullest_bucket_first() -> None:
    clock = Clock()
    buckets = Buckets(Rate(10, DAY * MICROSECONDS), max_callers=100, clock=clock)
    while not buckets.spend("busy"):
        pass
    for number in range(100_000):
        clock.now += 1
        assert buckets.spend(f"passing {number}") == 0
        assert len(buckets) <= 100
    assert buckets.spend("busy") > 0
    assert buckets.remaining("passing 0") == 10
    assert buckets.remaining("passing 99999") == 9


def test_making_room_examines_a_bounded_number_of_clients() -> None:
    looks = 0

    class Watched(dict[str, int]):
        def __getitem__(self, key: str) -> int:
            nonlocal looks
            looks += 1
            return super().__getitem__(key)

    buckets = Buckets(Rate(1000, DAY * MICROSECONDS), max_callers=500, clock=lambda: 0)
    for _ in range(3):
        for number in range(500):
            buckets.spend(str(number))
    buckets._full_at = Watched(buckets._full_at)
    assert buckets.spend("new") == 0
    assert looks <= SWEEP_SIZE
    assert len(buckets) == 500


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of a server's limits."""
    clock = Clock()
    use_clock(monkeypatch, Buckets, clock)
    return clock


async def test_exactly_the_limit_of_concurrent_calls_passes(serve: Serve, http: httpx2.AsyncClient) -> None:
    with serve(**limited(50)) as server:
        results = await asyncio.gather(*(server.acall(http, "health_check") for _ in range(200)))
    rejected = [result for result in results if result["isError"]]
    assert len(rejected) == 150
    assert all(REJECTION.fullmatch(text_of(result)) for result in rejected)


def test_a_rejection_has_the_wait_in_its_text_and_its_metadata(serve: Serve, clock: Clock) -> None:
    with serve(**limited(2, window=1000)) as server:
        for _ in range(2):
            assert not server.call("health_check")["isError"]
        clock.now += 10 * MICROSECONDS - 1
        rejection = server.call("health_check")
    text = REJECTION.fullmatch(text_of(rejection))
    assert text
    assert int(text[1]) == 491
    assert rejection["_meta"] == {"retry_after_seconds": 491, "remaining": 0, "limit": 2, "window_seconds": 1000}


def test_a_call_passes_after_the_reported_wait(serve: Serve, clock: Clock) -> None:
    with serve(**limited(1, window=3)) as server:
        server.call("health_check")
        wait = server.call("health_check")["_meta"]["retry_after_seconds"]
        clock.now += (wait - 1) * MICROSECONDS
        assert server.call("health_check")["isError"]
        clock.now += MICROSECONDS
        assert not server.call("health_check")["isError"]


def is_rejected(answer: dict[str, Any]) -> bool:
    return "Rate limit exceeded" in str(answer)


@pytest.mark.parametrize("name", ROUNDS)
def test_a_round_and_its_retry_take_one_permit_and_a_repeated_retry_another(serve: Serve, name: str) -> None:
    method, params = ROUNDS[name]
    with serve(rounds, **limited(2)) as server:
        question = post(server.url, method, params)["result"]
        assert question["resultType"] == "input_required"
        retry = params | RESPONSES | {"requestState": question["requestState"]}
        assert "done" in str(post(server.url, method, retry))
        assert "done" in str(post(server.url, method, retry)), "the second permit"
        assert is_rejected(post(server.url, method, retry))
        assert is_rejected(post(server.url, method, params))


@pytest.mark.parametrize("state", ["made up", 7, None, "v1.AAAA"])
def test_an_invalid_state_runs_nothing_and_no_state_takes_a_permit(serve: Serve, state: object) -> None:
    with serve(rounds, **limited(1)) as server:
        params = ROUNDS["a tool with a state"][1] | RESPONSES
        answer = post(server.url, "tools/call", params | {"requestState": state})
        assert "done" not in str(answer)
        assert is_rejected(post(server.url, "tools/call", params)) == (not isinstance(state, str))


def test_a_state_of_another_request_does_not_run(serve: Serve) -> None:
    with serve(rounds, **limited(1)) as server:
        question = post(server.url, *ROUNDS["a tool with a state"])["result"]
        state = {"requestState": question["requestState"]} | RESPONSES
        answer = post(server.url, "tools/call", ROUNDS["a tool without a state"][1] | state)
        assert answer["error"]["code"] == -32602


def test_a_notification_beyond_the_limit_of_messages_is_dropped(serve: Serve) -> None:
    handled: list[str] = []

    def register(server: ProductionServer) -> None:
        async def changed(ctx: ServerRequestContext[Any, Any], params: NotificationParams) -> None:
            handled.append(ctx.method)

        server._lowlevel_server.add_notification_handler(
            "notifications/roots/list_changed", NotificationParams, changed
        )

    with serve(register, **limited(1), rate_limit_messages=3) as server:
        for _ in range(5):
            response = server.post({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"})
            assert response.status_code == 202
        rejected = server.post(message("ping")).json()
        assert rejected["error"]["code"] == -32000
        assert rejected["error"]["data"]["retry_after_seconds"] > 0
        if HAS_METRICS:
            assert server.metrics().value("mcp_rate_limit_rejections_total") == 3
    assert len(handled) == 3


def test_only_requests_that_run_the_owners_code_count(serve: Serve) -> None:
    with serve(**limited(1)) as server:
        for method in ("tools/list", "ping", "tools/list"):
            assert "result" in server.post(message(method)).json()
        for path in ("/livez", "/readyz", "/health", "/health"):
            assert server.get(path).status_code == 200
        assert not server.call("health_check")["isError"]
        assert server.call("health_check")["isError"]


def test_a_call_of_an_unknown_tool_counts(serve: Serve) -> None:
    with serve(**limited(1)) as server:
        assert "Unknown tool" in text_of(server.call("no such tool"))
        assert REJECTION.fullmatch(text_of(server.call("no such tool")))


def test_health_shows_the_remaining_calls_without_spending_one(serve: Serve) -> None:
    def left(server: Running) -> object:
        return server.get("/health").json()["rate_limit"]

    with serve(**limited(5)) as server:
        assert left(server) == {"remaining": 5, "window_seconds": DAY}
        assert left(server) == {"remaining": 5, "window_seconds": DAY}
        own = server.call("health_check")["structuredContent"]["rate_limit"]
        assert own == {"remaining": 4, "window_seconds": DAY}
        assert left(server) == {"remaining": 4, "window_seconds": DAY}


def test_each_client_has_its_own_limit(serve: Serve) -> None:
    with serve(**limited(1), trusted_proxies=("127.0.0.1",)) as server:
        assert not server.call("health_check", x_forwarded_for="192.0.2.1")["isError"]
        assert server.call("health_check", x_forwarded_for="192.0.2.1")["isError"]
        assert not server.call("health_check", x_forwarded_for="192.0.2.2")["isError"]


def test_a_rejected_call_does_not_run_the_tool(serve: Serve) -> None:
    ran = 0

    def register(server: ProductionServer) -> None:
        @server.tool()
        async def counted() -> str:
            nonlocal ran
            ran += 1
            return "done"

    with serve(register, **limited(3)) as server:
        for _ in range(10):
            server.call("counted")
    assert ran == 3


async def test_rejections_are_counted() -> None:
    registry = Registry(config(**limited(1)), about())
    meter = RecordingMeter()
    registry.meter = meter
    rate_limit.install(registry)
    passed = 0

    async def handler(request: MCPRequest) -> Any:
        nonlocal passed
        passed += 1

    for _ in range(3):
        request = new_request()
        await registry.middleware["rate_limit"](request, handler)
    assert passed == 1
    assert meter.counts == {"mcp_rate_limit_rejections_total": 2, "mcp_limit_rejections_total": 2}
    assert (request.status, request.error_type) == ("rejected", "RateLimited")
