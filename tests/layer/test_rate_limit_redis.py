"""Rate limits in Redis: replicas share exactly one limit, and an outage of Redis fails no call."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from pydantic import SecretStr
from structlog.testing import capture_logs

from harness import DEADLINE_SECONDS, Running, Serve, config, new_request, text_of, wait_for
from rate_limit_model import DAY, RATES, REJECTION, RecordingMeter, TokenBucket, limited
from store import Store, running_store
from weather_station.production.config import ConfigError, about
from weather_station.production.inbound import rate_limit_redis
from weather_station.production.inbound.rate_limit import MICROSECONDS, Rate
from weather_station.production.inbound.rate_limit_redis import (
    SCRIPT,
    TIMEOUT_SECONDS,
    SharedBuckets,
    StoreDownError,
)
from weather_station.production.policy import MAX_COST
from weather_station.production.registry import Registry
from weather_station.production.request import MCPRequest
from weather_station.production.serve import startup
from weather_station.production.serve.startup import ProbeResult
from weather_station.server import create_server

LONG = 3600.0
"""Seconds that no test waits."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PyPI has no Redis server for Windows")


@pytest.fixture(scope="module")
def shared_store() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(shared_store: Store) -> Store:
    """An empty store for tests that leave it running."""
    with shared_store.client() as client:
        client.flushall()
    return shared_store


@pytest.fixture
def frail_store() -> Iterator[Store]:
    """A store of its own, for tests that break it."""
    with running_store() as store:
        yield store


@contextlib.asynccontextmanager
async def buckets(store: Store, rate: Rate, *, patience: float = DEADLINE_SECONDS) -> AsyncIterator[SharedBuckets]:
    opened = SharedBuckets(rate, store.url, "server", timeout=patience)
    try:
        yield opened
    finally:
        await opened.close()


class Answer(NamedTuple):
    """What the script returned and stored, and when."""

    taken: bool
    debt: int
    now: int
    stored: str
    expires: int


@st.composite
def debts(draw: st.DrawFn) -> Callable[[Rate], int]:
    """Draw the ticks that a client owes: any number, about none, or about what leaves one permit."""
    share, near = draw(st.fractions(0, 1)), draw(st.sampled_from(["anything", "nothing", "all but one"]))
    off, scale = draw(st.integers(-3, 3)), draw(st.booleans())

    def of(rate: Rate) -> int:
        capacity = rate.limit * rate.window
        middle = {"anything": int(share * capacity), "nothing": 0, "all but one": capacity - rate.window}[near]
        return min(max(middle + off * (rate.limit if scale else 1), 0), capacity)

    return of


class ScriptAgainstModel(RuleBasedStateMachine):
    """The script does what the plain model does, to the microsecond.

    A test cannot set the server's clock. So it reads the time in one script with the request (time stands still in a
    script), sets debts there too, and lets time pass by moving the stored bucket back.
    """

    script = """
local function run()
  SCRIPT
end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
if ARGV[4] then
  redis.call('SET', KEYS[1], string.format('%.0f %.0f', now + ARGV[4], ARGV[5]))
end
local answer = run()
local expires = redis.call('PEXPIRETIME', KEYS[1])
return {answer[1], answer[2], answer[3], now, redis.call('GET', KEYS[1]) or '', expires}
""".replace("SCRIPT", SCRIPT)

    redis: Any
    clients = st.sampled_from(["a", "b"])

    @initialize(rate=RATES)
    def begin(self, rate: Rate) -> None:
        self.redis.flushall()
        self.rate = rate
        self.models: dict[str, TokenBucket] = {}
        self.owed: dict[str, int] = {}

    def evaluate(self, client: str, cost: int) -> Answer:
        owed = self.owed.pop(client, None)
        setting = divmod(owed, self.rate.limit) if owed is not None else ()
        taken, whole, part, now, stored, expires = self.redis.eval(
            self.script, 1, client, self.rate.limit, self.rate.window, cost, *setting
        )
        if owed is not None:
            tokens = self.rate.limit - Fraction(owed, self.rate.window)
            self.models[client] = TokenBucket(self.rate, now, tokens)
        self.models.setdefault(client, TokenBucket(self.rate, now))
        return Answer(bool(taken), whole * self.rate.limit + part, now, stored, expires)

    @rule(client=clients)
    def spend(self, client: str) -> None:
        answer = self.evaluate(client, self.rate.window)
        wait = 0 if answer.taken else self.rate.wait(answer.debt)
        assert wait == self.models[client].spend(answer.now)
        if answer.taken:
            at, part = map(int, answer.stored.split())
            assert (at - answer.now) * self.rate.limit + part == answer.debt
            assert part < self.rate.limit
            assert 0 <= answer.expires * 1000 - at - (part > 0) <= 1000

    @rule(client=clients, calls=st.integers(2, 15))
    def spend_many(self, client: str, calls: int) -> None:
        for _ in range(calls):
            self.spend(client)

    @rule(client=clients, cost=st.integers(2, MAX_COST), share=st.fractions(0, 1))
    def spend_several(self, client: str, cost: int, share: Fraction) -> None:
        cost = min(cost, max(1, int(share * self.rate.limit)))
        answer = self.evaluate(client, cost * self.rate.window)
        wait = 0 if answer.taken else self.rate.wait(answer.debt, cost)
        assert wait == self.models[client].spend(answer.now, cost)

    @rule(client=clients)
    def look(self, client: str) -> None:
        answer = self.evaluate(client, 0)
        assert not answer.taken
        assert self.rate.remaining(answer.debt) == self.models[client].remaining(answer.now)

    @rule(client=clients, debt=debts())
    def a_debt_is_set(self, client: str, debt: Callable[[Rate], int]) -> None:
        self.owed[client] = debt(self.rate)

    @rule(client=clients, share=st.fractions(0, 2))
    def time_passes(self, client: str, share: Fraction) -> None:
        microseconds = int(share * self.rate.window)
        stored = self.redis.get(client)
        if stored and client in self.models:
            at, part = map(int, stored.split())
            self.redis.set(client, f"{at - microseconds} {part}", keepttl=True)
            self.models[client].seen_at -= microseconds


def test_the_script_agrees_with_the_model(store: Store) -> None:
    with store.client() as client:

        class Here(ScriptAgainstModel):
            redis = client

        run_state_machine_as_test(Here, settings=settings(max_examples=60, stateful_step_count=25))


async def test_replicas_share_the_permits_of_each_tier_and_cost(store: Store) -> None:
    """32 callers at two replicas, each with calls of several costs: exactly the permitted number is admitted."""
    tiers = [Rate(60, DAY * MICROSECONDS), Rate(101, DAY * MICROSECONDS), Rate(7, 60 * 60 * MICROSECONDS)]
    async with buckets(store, tiers[0]) as one, buckets(store, tiers[0]) as other:

        async def spent(caller: int) -> int:
            rate, costs = tiers[caller % len(tiers)], [1, 5, 2, 3] * 10
            calls = [each.take(f"caller {caller}", cost, rate) for cost in costs for each in (one, other)]
            taken = await asyncio.gather(*calls)
            each_cost = [cost for cost in costs for _ in range(2)]
            return sum(cost for cost, (admitted, _) in zip(each_cost, taken, strict=True) if admitted)

        totals = [
            total for group in range(0, 32, 8) for total in await asyncio.gather(*map(spent, range(group, group + 8)))
        ]
        assert totals == [tiers[caller % len(tiers)].limit for caller in range(32)]


async def test_two_pools_admit_exactly_the_limit(store: Store) -> None:
    rate = Rate(70, DAY * MICROSECONDS)
    async with buckets(store, rate) as one, buckets(store, rate) as other:
        waits = await asyncio.gather(*(each.spend("client") for _ in range(100) for each in (one, other)))
    assert sum(not wait for wait in waits) == 70


async def test_an_id_that_is_no_text_fails_no_other_call(store: Store) -> None:
    """A subject in JSON can have half of a surrogate pair."""
    ids = ("a", "\ud800", "b", "\udfff", "\ud800")
    async with buckets(store, Rate(2, DAY * MICROSECONDS)) as pool:
        assert await asyncio.gather(*map(pool.spend, ids)) == [0] * len(ids)
        assert [await pool.remaining(caller_id) for caller_id in ("a", "\ud800", "\udfff")] == [1, 0, 1]


async def test_two_processes_admit_exactly_the_limit(store: Store) -> None:
    program = """
import asyncio, sys
from weather_station.production.inbound.rate_limit import Rate
from weather_station.production.inbound.rate_limit_redis import SharedBuckets

async def main():
    buckets = SharedBuckets(Rate(100, 86_400_000_000), sys.argv[1], "server", timeout=60)
    waits = await asyncio.gather(*(buckets.spend("client") for _ in range(150)))
    print(sum(not wait for wait in waits))
    await buckets.close()

asyncio.run(main())
"""
    command = (sys.executable, "-c", program, store.url)
    processes = [await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE) for _ in range(2)]
    admitted = [int((await process.communicate())[0]) for process in processes]
    assert sum(admitted) == 100


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for Redis however busy the machine is, in tests of successes."""
    monkeypatch.setattr(SharedBuckets.__init__, "__kwdefaults__", {"timeout": DEADLINE_SECONDS})


@pytest.mark.usefixtures("patient")
def test_a_limit_survives_the_server(serve: Serve, store: Store) -> None:
    settings: dict[str, Any] = limited(6) | {"redis_url": store.url, "rate_limit_on_store_failure": "closed"}
    rejected = []
    for _ in range(2):
        with serve(**settings) as server:
            results = [server.call("health_check") for _ in range(4)]
            rejected += [result["isError"] for result in results]
            left = server.get("/health").json()["rate_limit"]
    assert rejected == [False] * 6 + [True] * 2
    assert left == {"remaining": 0, "window_seconds": DAY}
    wait = REJECTION.fullmatch(text_of(results[-1]))
    assert wait
    assert DAY / 12 < int(wait[1]) <= DAY / 6


@pytest.mark.usefixtures("patient")
def test_keys_have_the_name_of_the_server_and_expire(serve: Serve, store: Store) -> None:
    with store.client() as client, serve(redis_url=store.url, **limited(10)) as server:
        server.call("health_check")
        (key,) = client.keys()
        assert key == f"{{{server.registry.about.name}}}:rate_limit:10/{DAY * MICROSECONDS}:127.0.0.1"
        assert DAY / 20 < client.ttl(key) <= DAY / 10 + 1


async def test_reading_the_remaining_calls_spends_none(store: Store) -> None:
    async with buckets(store, Rate(5, DAY * MICROSECONDS)) as shared:
        assert [await shared.remaining("client") for _ in range(3)] == [5, 5, 5]
        await shared.spend("client")
        assert [await shared.remaining("client") for _ in range(3)] == [4, 4, 4]


async def test_a_clock_that_was_set_back_blocks_a_client_no_longer_than_the_limit_does(store: Store) -> None:
    rate = Rate(4, 8 * MICROSECONDS)
    async with buckets(store, rate) as shared:
        await shared.spend("client")
        with store.client() as client:
            (key,) = client.keys()
            client.set(key, f"{(int(time.time()) + 10 * DAY) * MICROSECONDS} 3")
        assert await shared.spend("client") == 2 * MICROSECONDS


async def test_a_redis_that_has_lost_the_script_gets_it_again(store: Store) -> None:
    async with buckets(store, Rate(2, DAY * MICROSECONDS)) as shared:
        assert await shared.spend("client") == 0
        with store.client() as client:
            client.script_flush()
        assert await shared.spend("client") == 0
        assert await shared.spend("client") > 0


async def test_a_connection_that_redis_has_closed_is_replaced(frail_store: Store) -> None:
    async with buckets(frail_store, Rate(20, DAY * MICROSECONDS)) as shared:
        await asyncio.gather(*(shared.spend("client") for _ in range(5)))
        await asyncio.to_thread(frail_store.kill)
        await asyncio.to_thread(frail_store.start)
        assert await asyncio.gather(*(shared.spend("client") for _ in range(5))) == [0] * 5


async def test_a_request_that_redis_did_not_answer_is_not_sent_again() -> None:
    received = 0

    async def take_the_permit_and_disconnect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        while command := await reader.read(4096):
            if b"EVALSHA" in command:
                received += 1
                break
            writer.write(b"+OK\r\n" * command.count(b"SETINFO"))
        writer.close()

    async with await asyncio.start_server(take_the_permit_and_disconnect, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        shared = SharedBuckets(Rate(1, DAY), f"redis://127.0.0.1:{port}", "server", timeout=DEADLINE_SECONDS)
        with pytest.raises(StoreDownError):
            await shared.spend("client")
        await shared.close()
    assert received == 1


async def test_a_hanging_redis_delays_one_call_and_none_during_the_pause(
    frail_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit_redis, "RETRY_INTERVAL_SECONDS", LONG)
    async with buckets(frail_store, Rate(5, DAY * MICROSECONDS)) as shared:
        await shared.spend("client")
        frail_store.hang()
        shared._timeout = 0.5
        started = time.monotonic()
        with pytest.raises(StoreDownError, match="no answer within 500 ms"):
            await shared.spend("client")
        assert time.monotonic() - started >= 0.45
        shared._timeout = LONG  # a call that waited for Redis would wait for an hour
        async with asyncio.timeout(DEADLINE_SECONDS):
            for _ in range(40):
                with pytest.raises(StoreDownError):
                    await shared.spend("client")


@pytest.mark.parametrize("milliseconds", [10, 20, 40, 60, 80])
async def test_calls_that_wait_for_a_hanging_redis_together_all_give_up(
    frail_store: Store, monkeypatch: pytest.MonkeyPatch, milliseconds: int
) -> None:
    """The end of the wait meets connecting, sending and reading."""
    monkeypatch.setattr(rate_limit_redis, "CONNECTION_TIMEOUT_SECONDS", LONG)
    frail_store.hang()
    async with buckets(frail_store, Rate(5, DAY * MICROSECONDS), patience=milliseconds / 1000) as shared:
        results = await asyncio.gather(*(shared.spend("client") for _ in range(200)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreDownError}
    assert {str(result) for result in results} == {f"no answer within {milliseconds} ms"}


async def test_calls_that_came_later_give_up_with_the_first_one(frail_store: Store) -> None:
    async with buckets(frail_store, Rate(5, DAY * MICROSECONDS)) as shared:
        await shared.spend("client")
        frail_store.hang()
        shared._timeout = 0.5
        first = asyncio.create_task(shared.spend("client"))
        await asyncio.sleep(0.1)
        shared._timeout = LONG
        async with asyncio.timeout(DEADLINE_SECONDS):
            results = await asyncio.gather(first, *(shared.spend("client") for _ in range(200)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreDownError}


async def test_a_busy_event_loop_is_no_outage(store: Store) -> None:
    busy = True

    def work() -> None:
        time.sleep(1.5 * TIMEOUT_SECONDS)
        if busy:
            loop.call_soon(work)

    loop = asyncio.get_running_loop()
    shared = SharedBuckets(Rate(1000, DAY * MICROSECONDS), store.url, "server")
    await shared.open()
    first = asyncio.gather(*(shared.spend("client") for _ in range(50)))
    await asyncio.sleep(0)  # these are under way now, and the others behind them
    loop.call_soon(work)
    waits = await first + await asyncio.gather(*(shared.spend("client") for _ in range(50)))
    busy = False
    assert waits == [0] * 100
    await shared.close()


async def test_during_an_outage_one_call_tries_again_and_the_others_do_not_wait(
    frail_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit_redis, "RETRY_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(rate_limit_redis, "CONNECTION_TIMEOUT_SECONDS", LONG)
    async with buckets(frail_store, Rate(5, DAY * MICROSECONDS), patience=0.3) as shared:
        frail_store.hang()
        with pytest.raises(StoreDownError):
            await shared.spend("client")
        monkeypatch.setattr(rate_limit_redis, "RETRY_INTERVAL_SECONDS", LONG)
        shared._timeout = LONG
        trying = asyncio.create_task(shared.spend("client"))
        await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_SECONDS):
            with pytest.raises(StoreDownError):
                await shared.spend("client")
        assert not trying.done()
        frail_store.resume()
        assert await trying == 0


async def test_an_answer_that_comes_too_late_reaches_no_other_call(frail_store: Store) -> None:
    async with buckets(frail_store, Rate(5, DAY * MICROSECONDS)) as shared:
        await shared.spend("first")
        frail_store.hang()
        waiting = asyncio.create_task(shared.spend("first"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        frail_store.resume()
        assert await shared.remaining("second") == 5


def keep_calling(server: Running, stop: threading.Event, rejected: list[bool]) -> None:
    while not stop.is_set():
        rejected.append(server.call("health_check")["isError"])


def grown(results: list[bool], length: int) -> bool:
    return len(results) >= length


def degraded(server: Running) -> list[str]:
    report = server.get("/health").json()
    problems: list[str] = report["problems"]
    assert report["status"] == ("degraded" if problems else "healthy")
    return problems


def test_with_the_policy_local_no_call_fails_while_redis_is_killed_hangs_and_is_restored(
    serve: Serve, frail_store: Store
) -> None:
    stop = threading.Event()
    rejected: list[bool] = []
    with serve(redis_url=frail_store.url) as server:
        callers = [threading.Thread(target=keep_calling, args=(server, stop, rejected)) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            wait_for(partial(grown, rejected, 20))
            for lose, restore in ((frail_store.kill, frail_store.start), (frail_store.hang, frail_store.resume)):
                lose()
                wait_for(lambda: degraded(server))
                wait_for(partial(grown, rejected, len(rejected) + 20))
                restore()
                wait_for(lambda: not degraded(server))
        finally:
            stop.set()
            for caller in callers:
                caller.join()
    assert not any(rejected)


@pytest.mark.usefixtures("patient")
def test_with_the_policy_local_each_process_keeps_the_limit_while_redis_is_down(
    serve: Serve, frail_store: Store
) -> None:
    with serve(redis_url=frail_store.url, **limited(5)) as server:
        server.call("health_check")
        frail_store.kill()
        rejected = [server.call("health_check")["isError"] for _ in range(7)]
        assert rejected == [False] * 5 + [True] * 2
        health = server.get("/health").json()
        assert health["rate_limit"] == {"remaining": 0, "window_seconds": DAY}
        assert server.get("/readyz").status_code == 200


@pytest.mark.usefixtures("patient")
def test_with_the_policy_open_every_call_passes_while_redis_is_down(serve: Serve, frail_store: Store) -> None:
    with serve(redis_url=frail_store.url, rate_limit_on_store_failure="open", **limited(1)) as server:
        server.call("health_check")
        assert server.call("health_check")["isError"]
        frail_store.kill()
        assert not any(server.call("health_check")["isError"] for _ in range(5))
        assert degraded(server)
        assert server.get("/health").json()["rate_limit"] is None
        assert server.get("/readyz").status_code == 200


@pytest.mark.usefixtures("patient")
def test_with_the_policy_closed_no_call_passes_and_the_server_is_not_ready_until_redis_is_back(
    serve: Serve, frail_store: Store
) -> None:
    def ready(server: Running) -> tuple[int, dict[str, Any]]:
        response = server.get("/readyz")
        return response.status_code, response.json()

    with serve(redis_url=frail_store.url, rate_limit_on_store_failure="closed") as server:
        assert ready(server)[0] == 200
        frail_store.kill()
        rejection = server.call("health_check")
        assert rejection["isError"]
        assert text_of(rejection) == (
            "The rate limit cannot be checked now, so the call was rejected. Try again in 1 seconds."
        )
        assert rejection["_meta"] == {"retry_after_seconds": 1}
        wait_for(lambda: ready(server) == (503, {"status": "not ready", "failing": ["redis"]}))
        frail_store.start()
        wait_for(lambda: ready(server)[0] == 200)
        assert not server.call("health_check")["isError"]


def installed(policy: str, store: Store) -> tuple[Registry, RecordingMeter]:
    """Return a registry with the feature installed, and its meter."""
    registry = Registry(config(redis_url=store.url, rate_limit_on_store_failure=policy), about())
    meter = RecordingMeter()
    registry.meter = meter
    rate_limit_redis.install(registry)
    return registry, meter


async def call_tool(registry: Registry) -> MCPRequest:
    async def handler(request: MCPRequest) -> Any:
        return None

    request = new_request()
    await registry.middleware["rate_limit"](request, handler)
    return request


@pytest.mark.usefixtures("patient")
async def test_an_outage_is_counted_for_each_call_and_logged_once_a_minute(
    frail_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit_redis, "LOG_INTERVAL_SECONDS", LONG)
    registry, meter = installed("local", frail_store)
    with capture_logs() as log:
        await call_tool(registry)
        assert (meter.counts, log) == ({}, [])
        frail_store.kill()
        monkeypatch.setattr(rate_limit_redis, "RETRY_INTERVAL_SECONDS", 0.0)
        for _ in range(5):
            await call_tool(registry)
        assert meter.counts == {"mcp_rate_limit_store_failures_total": 5}
        (entry,) = log
        assert entry["event"] == "redis does not answer: the rate limits are not shared"
        assert "Connection" in entry["reason"]
        frail_store.start()
        await call_tool(registry)
        monkeypatch.setattr(rate_limit_redis, "RETRY_INTERVAL_SECONDS", LONG)
        for _ in range(5):
            await call_tool(registry)
        assert meter.counts == {"mcp_rate_limit_store_failures_total": 5}
        assert [entry["event"] for entry in log[1:]] == ["redis answers again: the rate limits are shared"]
        monkeypatch.setattr(rate_limit_redis, "LOG_INTERVAL_SECONDS", 0.0)
        frail_store.kill()
        await call_tool(registry)
        assert len(log) == 3
    for close in registry.on_shutdown:
        await close()


async def test_a_call_that_fails_for_lack_of_redis_is_an_error_of_the_server() -> None:
    registry, meter = installed("closed", Store())
    request = await call_tool(registry)
    assert (request.status, request.error_type) == ("error", "RateLimitStoreDown")
    assert meter.counts == {"mcp_rate_limit_store_failures_total": 1}


async def test_the_password_is_used_and_is_in_no_log_entry_and_no_error(frail_store: Store) -> None:
    def shared(password: str) -> SharedBuckets:
        url = f"redis://:{password}@127.0.0.1:{frail_store.port}"
        return SharedBuckets(Rate(1, DAY), url, "server", timeout=DEADLINE_SECONDS)

    frail_store.require("pa/ss")
    right, wrong = shared("pa%2Fss"), shared("wro%2Fng")
    with capture_logs() as log:
        assert await right.spend("client") == 0
        with pytest.raises(StoreDownError, match="invalid username-password") as rejected:
            await wrong.spend("client")
        frail_store.kill()
        with pytest.raises(StoreDownError) as down:
            await right.spend("client")
    texts = f"{log} {rejected.value} {down.value}"
    assert "does not answer" in texts
    assert not re.search("pa(/|%2F)ss|wro(/|%2F)ng", texts)
    await right.close()
    await wrong.close()


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://:secret@host", "redis://:secret@host:x", "redis://:secret@host?secret=1"]
)
def test_an_invalid_url_stops_the_start_with_a_message_that_does_not_show_it(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL: not the URL of a Redis server") as problem:
        rate_limit_redis.install(Registry(config(redis_url=url), about()))
    assert "secret" not in str(problem.value)


def test_without_a_url_the_limits_are_kept_in_memory_with_a_notice(serve: Serve) -> None:
    with serve(**limited(1)) as server:
        assert any("REDIS_URL is not set" in notice for notice in server.registry.notices)
        assert not server.call("health_check")["isError"]
        assert server.call("health_check")["isError"]


def test_memory_can_be_chosen_at_run_time(serve: Serve, store: Store) -> None:
    with serve(rate_limit_backend="memory", redis_url=store.url, **limited(1)) as server:
        server.call("health_check")
        assert server.call("health_check")["isError"]
        with store.client() as client:
            assert client.keys() == []


def test_a_stopped_server_has_no_connection_left(serve: Serve, store: Store) -> None:
    with store.client() as client:
        before = client.info("clients")["connected_clients"]
        with serve(redis_url=store.url) as server:
            server.call("health_check")
            assert client.info("clients")["connected_clients"] > before
        wait_for(lambda: client.info("clients")["connected_clients"] == before)


@pytest.mark.usefixtures("patient")
async def test_check_probes_redis_without_showing_its_password(frail_store: Store) -> None:
    frail_store.require("hunter2hunter2")
    url = frail_store.url.replace("//", "//:hunter2hunter2@")
    result = await probe(url)
    assert (result.target, result.problem) == (frail_store.url, None)
    assert (await probe(frail_store.url)).problem  # without the password
    frail_store.kill()
    assert (await probe(url)).problem


async def probe(url: str) -> ProbeResult:
    server = create_server(config(redis_url=SecretStr(url), rate_limit_backend="redis"))
    async with server.running():
        return (await startup.run_probes(server.registry))["redis"]
