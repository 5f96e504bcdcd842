"""Requests per day and at the same time, in memory: exact, and together with the permits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

from clocks import Clock
from harness import HAS_METRICS, LEGACY, MODERN, Running, Serve, config, modern, text_of, wait_for
from quota_model import AgainstModel
from rate_limit_model import DAY
from rounds import ROUNDS, ask, post, rounds
from test_rate_limit_tiers import call, limits, register
from weather_station.production.config import ConfigError
from weather_station.production.inbound.caller_quota import LocalLimits
from weather_station.production.inbound.rate_limit import MICROSECONDS, LocalBuckets
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

Configure = Callable[..., None]
both_generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Configure:
    """`configure(RATE_LIMIT_DAILY=3)` sets these variables."""

    def configure(**variables: object) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return configure


class LocalAgainstModel(AgainstModel):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(DAY * MICROSECONDS)
        self.local = LocalLimits(LocalBuckets(), self.clock)
        self.admit = self.local.admit
        self.loop = asyncio.Runner()

    def day_passes(self) -> None:
        self.clock.now += DAY * MICROSECONDS

    def lose(self, caller: str, request_id: str) -> None:
        self.local._end(caller)

    def teardown(self) -> None:
        self.loop.close()


LocalAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestLocalAgainstModel = pytest.mark.pure(LocalAgainstModel.TestCase)


@both_generations
def test_a_day_has_its_quota(serve: Serve, configure: Configure, version: str) -> None:
    configure(RATE_LIMIT_DAILY=7, RATE_LIMIT_DAILY_TIERS="internal=11")
    with serve(register, **limits()) as server:
        assert not call(server, version, "a", "dear").get("isError")
        result = call(server, version, "a", "dear")
        wait = result["_meta"]["retry_after_seconds"]
        assert text_of(result) == (
            f"Daily quota exceeded. 2 of 7 requests remaining today (UTC). Try again in {wait} seconds."
        )
        assert 0 < wait <= DAY
        assert [bool(call(server, version, "a", "cheap").get("isError")) for _ in range(3)] == [False, False, True]
        assert sum(not call(server, version, "b,internal", "cheap").get("isError") for _ in range(13)) == 11
        if HAS_METRICS:
            found = server.metrics().series("mcp_limit_rejections_total")
            assert {tuple(sorted(dict(labels).values())): value for labels, value in found.items()} == {
                ("RateLimited", "default"): 0,
                ("QuotaExceeded", "default"): 2,
                ("TooManyAtOnce", "default"): 0,
                ("QuotaExceeded", "internal"): 2,
                ("TooManyAtOnce", "internal"): 0,
            }


def test_a_request_that_the_quota_rejects_takes_no_permits(serve: Serve, configure: Configure) -> None:
    configure(RATE_LIMIT_DAILY=3)
    with serve(register, **limits()) as server:
        text = text_of(call(server, LEGACY, "a", "dear"))
        assert text.endswith("This request counts as 5: it is never admitted.")
        health = call(server, LEGACY, "a", "health_check")["structuredContent"]
        assert health["rate_limit"]["remaining"] == 11  # of 12, without the one of this request


class Waiting:
    """A tool whose calls wait until `end` is set."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.running = 0

    def register(self, server: ProductionServer) -> None:
        register(server)

        @server.tool()
        async def waits() -> str:
            self.running += 1
            await asyncio.to_thread(self.end.wait, 60)
            self.running -= 1
            return "waited"


def in_background(server: Running, caller: str, results: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: results.append(call(server, LEGACY, caller, "waits")))
    thread.start()
    return thread


def test_a_caller_has_a_number_of_requests_at_the_same_time(serve: Serve, configure: Configure) -> None:
    configure(MAX_CONCURRENT_PER_CALLER=2)
    waiting, results = Waiting(), list[Any]()
    with serve(waiting.register, **limits()) as server:
        try:
            threads = [in_background(server, "a", results) for _ in range(2)]
            wait_for(lambda: waiting.running == 2)
            assert text_of(call(server, LEGACY, "a", "cheap")) == (
                "This caller has 2 requests running, which is the limit. Try again when one has ended."
            )
            assert not call(server, LEGACY, "b", "cheap").get("isError")
        finally:
            waiting.end.set()
            for thread in threads:
                thread.join()
        assert not any(result.get("isError") for result in results)
        assert not call(server, LEGACY, "a", "cheap").get("isError")


def test_a_request_that_fails_or_is_stopped_gives_its_place_back(serve: Serve, configure: Configure) -> None:
    configure(MAX_CONCURRENT_PER_CALLER=1)
    waiting = Waiting()
    with serve(waiting.register, tool_timeout_seconds=0.1, **limits()) as server:
        for _ in range(3):
            assert "did not finish" in text_of(call(server, LEGACY, "a", "waits"))
        waiting.end.set()
        assert "Invalid arguments" not in text_of(call(server, LEGACY, "a", "cheap"))


def test_the_rounds_of_a_request_take_one_permit_and_one_of_the_day(serve: Serve, configure: Configure) -> None:
    configure(RATE_LIMIT_DAILY=2, MAX_CONCURRENT_PER_CALLER=1)
    with serve(rounds, **limits()) as server:
        for name in [*ROUNDS][:2]:
            method, params = ask(server.url, name)
            assert "result" in post(server.url, method, params)
        content, headers = modern("tools/call", {"name": "with_state", "arguments": {}})
        answer = server.client.post(server.url, json=content, headers=headers).json()
        assert "Daily quota exceeded. 0 of 2" in text_of(answer["result"])


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RATE_LIMIT_DAILY": "0"}, "RATE_LIMIT_DAILY"),
        ({"RATE_LIMIT_DAILY_TIERS": "a"}, "RATE_LIMIT_DAILY_TIERS: 'a' is no tier"),
        ({"RATE_LIMIT_DAILY_TIERS": "a=0"}, "RATE_LIMIT_DAILY_TIERS: 'a=0' is no tier"),
        ({"MAX_CONCURRENT_PER_CALLER": "-1"}, "MAX_CONCURRENT_PER_CALLER"),
    ],
)
def test_a_mistake_in_the_settings_stops_the_start(
    configure: Configure, variables: dict[str, str], problem: str
) -> None:
    configure(**variables)
    with pytest.raises(ConfigError, match=problem):
        create_server(config())


def test_it_needs_the_rate_limit(configure: Configure) -> None:
    configure(RATE_LIMIT_DAILY=1)
    with pytest.raises(ConfigError, match="need ENABLE_RATE_LIMITING=true"):
        create_server(config(enable_rate_limiting=False))
