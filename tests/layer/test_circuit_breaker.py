"""Circuit breaker: its rules against a plain model, and its effect on a running server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mcp.server.mcpserver import Context
from structlog.testing import capture_logs

from clocks import Clock, use_clock
from harness import HAS_METRICS, HEADERS, Running, Serve, add_fetch, config, opened, text_of, wait_for
from stand_in import Behavior, StandIn, hang, hold, reset, respond, stand_in
from weather_station.production import upstream
from weather_station.production.upstream import client
from weather_station.production.upstream.circuit_breaker import (
    CircuitBreaker,
    CircuitGuard,
    CircuitOpenError,
    State,
    circuit_breaker,
)
from weather_station.production.upstream.errors import (
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
    Verdict,
)
from weather_station.server import create_server

RECOVERY_SECONDS = 60.0
SETTINGS: dict[str, Any] = {
    "enable_retries": False,
    "circuit_failure_threshold": 3,
    "circuit_recovery_timeout": RECOVERY_SECONDS,
    "circuit_half_open_requests": 1,
}
"""Each request is one attempt, so that failures are easily counted."""

ALLOWED = {
    ("closed", "open"),
    ("open", "open"),  # for one caller, then for all
    ("open", "half_open"),
    ("half_open", "open"),
    ("half_open", "closed"),
}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of every circuit that a test opens."""
    clock = Clock()
    use_clock(monkeypatch, CircuitBreaker, clock)
    return clock


# --- The rules, against a plain model -------------------------------------------------------------------------------


CALLERS = ("", "a", "b")


class Machine(RuleBasedStateMachine):
    """Calls begin and end in any order while time passes; the model knows each call by the visit in which it began.

    A visit is the time from one transition to the next. The model keeps plain lists where the breaker keeps counts.
    """

    @initialize(threshold=st.integers(1, 4), timeout=st.integers(1, 5), test_requests=st.integers(1, 4))
    def start(self, threshold: int, timeout: int, test_requests: int) -> None:
        self.threshold, self.timeout, self.test_requests = threshold, timeout, test_requests
        self.now = 1000.0
        self.seen: list[State] = []
        self.breaker = CircuitBreaker(
            "api",
            failure_threshold=threshold,
            recovery_timeout=timeout,
            half_open_requests=test_requests,
            clock=lambda: self.now,
            on_transition=self.seen.append,
        )
        self.state: State = "closed"
        self.rejected: set[str] = set()
        """The callers that a circuit rejects which is not closed."""
        self.visits = 0
        self.expected: list[State] = []
        self.successes = 0
        """Successes of this visit."""
        self.failures: list[tuple[int, str]] = []
        """Call and caller of the failures since the last success of this visit."""
        self.opened_at = 0.0
        self.running: list[tuple[int, int, str, int, bool]] = []
        """Generation of the breaker, and visit, caller, call and whether it was a test request, of each attempt."""

    def move(self, state: State, rejected: set[str] | None = None) -> None:
        self.state = state
        self.visits += 1
        self.successes = 0
        self.failures = []
        self.expected.append(state)
        if state == "open":
            self.opened_at = self.now
            self.rejected = set(CALLERS) if rejected is None else rejected

    def test_requests_in_flight(self) -> int:
        return sum(visit == self.visits and is_test for _, visit, _, _, is_test in self.running)

    @rule(caller=st.sampled_from(CALLERS), call=st.integers(1, 4))
    def begin(self, caller: str, call: int) -> None:
        is_test = False
        if self.state == "closed" or caller not in self.rejected:
            admitted = True
        else:
            if self.state == "open" and self.now >= self.opened_at + self.timeout:
                self.move("half_open")
            admitted = is_test = (
                self.state == "half_open" and self.test_requests_in_flight() + self.successes < self.test_requests
            )
        if admitted:
            self.running.append((self.breaker.admit(caller), self.visits, caller, call, is_test))
            return
        with pytest.raises(CircuitOpenError, match="Service temporarily unavailable") as caught:
            self.breaker.admit(caller)
        if self.state == "open":
            assert caught.value.retry_after == self.opened_at + self.timeout - self.now

    @rule(calls=st.integers(2, 5), caller=st.sampled_from(CALLERS))
    def begin_at_once(self, calls: int, caller: str) -> None:
        for call in range(calls):
            self.begin(caller, call)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), verdict=st.sampled_from(Verdict))
    def end_one(self, data: st.DataObject, verdict: Verdict) -> None:
        self.end(data.draw(st.integers(0, len(self.running) - 1)), verdict)

    @precondition(lambda self: self.running)
    @rule(verdict=st.sampled_from(Verdict))
    def end_all(self, verdict: Verdict) -> None:
        while self.running:
            self.end(0, verdict)

    def end(self, position: int, verdict: Verdict) -> None:
        """End an attempt."""
        generation, visit, caller, call, is_test = self.running.pop(position)
        self.breaker.record(generation, verdict, caller, (caller, call))
        if visit != self.visits or verdict is Verdict.NEUTRAL:
            return
        succeeded = verdict is Verdict.SUCCESS
        if self.state != "closed" and not is_test:  # of a caller that is not rejected
            if not succeeded:
                self.move("open")
        elif self.state == "half_open":
            self.successes += succeeded
            if not succeeded:
                self.move("open", self.rejected if caller in self.rejected else None)
            elif self.successes == self.test_requests:
                self.move("closed")
        elif succeeded:
            self.failures = []
        else:
            self.failures.append((call, caller))
            if len(set(self.failures)) == self.threshold:
                callers = {caller for _, caller in self.failures}
                self.move("open", callers if len(callers) == 1 else None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_for_the_test_request(self) -> None:
        if self.state == "open":
            self.now = max(self.now, self.opened_at + self.timeout)

    @invariant()
    def the_state_is_that_of_the_model(self) -> None:
        assert self.breaker.state == self.state

    @invariant()
    def the_limit_of_test_requests_is_kept(self) -> None:
        if self.state == "half_open":
            assert self.test_requests_in_flight() + self.successes <= self.test_requests

    @invariant()
    def one_caller_alone_is_never_rejected_for_others(self) -> None:
        if self.state != "closed":
            assert len(self.rejected) in (1, len(CALLERS))

    @invariant()
    def each_transition_is_allowed_and_reported_once(self) -> None:
        assert self.seen == self.expected
        assert set(zip(["closed", *self.seen], self.seen, strict=False)) <= ALLOWED


Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=40)
TestAgainstModel = pytest.mark.pure(Machine.TestCase)


# --- On a running server --------------------------------------------------------------------------------------------


def test_an_open_circuit_rejects_calls_and_sends_nothing_to_the_upstream(api: StandIn, serve: Serve) -> None:
    api.behave(respond(500))
    with serve(add_fetch, upstream_base_url=api.url, **SETTINGS) as server, capture_logs() as log:
        assert server.get("/health").json()["status"] == "healthy"
        for _ in range(3):
            assert "answered 500" in text_of(server.call("fetch", {"path": "/"}))
        result = server.call("fetch", {"path": "/"})
        assert result["isError"]
        assert text_of(result) == (
            f"Service temporarily unavailable: {api.host} has failed repeatedly. Try again in 60 seconds."
        )
        assert len(api.requests) == 3
        health = server.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["problems"] == ["circuit_open"]
        assert server.get("/readyz").status_code == 200
        if HAS_METRICS:
            metrics = server.metrics()
            assert metrics.value("mcp_circuit_state", host=api.host) == 2
            assert {
                state: metrics.value("mcp_circuit_transitions_total", host=api.host, state=state)
                for state in ("closed", "half_open", "open")
            } == {"closed": 0, "half_open": 0, "open": 1}
    changes = [(entry["host"], entry["state"]) for entry in log if entry["event"] == "circuit changed"]
    assert changes == [(api.host, "open")]


def test_a_successful_test_request_closes_the_circuit(api: StandIn, serve: Serve, clock: Clock) -> None:
    api.behave(reset(), reset(), reset(), respond())
    with serve(add_fetch, upstream_base_url=api.url, **SETTINGS) as server:
        for _ in range(4):
            assert server.call("fetch", {"path": "/"})["isError"]
        clock.now += RECOVERY_SECONDS
        assert not server.call("fetch", {"path": "/"})["isError"]
        assert len(api.requests) == 4
        assert server.get("/health").json()["status"] == "healthy"
        if HAS_METRICS:
            assert server.metrics().value("mcp_circuit_state", host=api.host) == 0


@pytest.fixture
def many_connections() -> Iterator[None]:
    """Room for both ends of a thousand connections in one process."""
    if sys.platform == "win32":  # has no such limit
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def raw_call(server: Running) -> bytes:
    """Return the raw response to a tools/call on a connection of its own; a pool of a thousand would be slow."""
    host, _, port = server.base.removeprefix("http://").partition(":")
    body = json.dumps(server.request("fetch", {"path": "/"})).encode()
    fields = {"host": f"{host}:{port}", "content-type": "application/json", "content-length": str(len(body))}
    fields |= HEADERS | {"connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + body)
    response = await reader.read()
    writer.close()
    return response


@pytest.mark.usefixtures("many_connections")
async def test_only_the_test_requests_of_a_thousand_calls_to_a_half_open_circuit_reach_the_upstream(
    api: StandIn, serve: Serve, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, test_requests, patience = 1000, 3, 600
    monkeypatch.setattr(client, "MAX_CONNECT_SECONDS", patience)
    release = threading.Event()
    settings = {
        "circuit_half_open_requests": test_requests,
        "attempt_timeout_seconds": patience,
        "request_timeout_seconds": patience,
        "tool_timeout_seconds": patience,
        "log_level": "ERROR",
        "max_connections": calls,
    }
    with serve(add_fetch, upstream_base_url=api.url, **SETTINGS | settings) as server:
        api.behave(respond(500))
        for _ in range(3):
            server.call("fetch", {"path": "/"})
        clock.now += RECOVERY_SECONDS
        api.behave(hold(release))
        running = [asyncio.create_task(raw_call(server)) for _ in range(calls)]
        rejected = 0
        for ended in asyncio.as_completed(running):
            rejected += b"Service temporarily unavailable" in await ended
            if rejected == calls - test_requests:
                break
        # They may still be on their way when the others have been rejected.
        await asyncio.to_thread(wait_for, lambda: len(api.requests) >= test_requests)
        assert len(api.requests) == test_requests
        release.set()
        responses = await asyncio.gather(*running)
        assert len(api.requests) == test_requests
        assert sum(b'"ok":true' in response for response in responses) == test_requests
        assert not server.call("fetch", {"path": "/"})["isError"]


# --- Callers --------------------------------------------------------------------------------------------------------


async def fetch_often(path: str, times: int, ctx: Context[Any, Any]) -> int:
    """Send a request several times, whether it fails or not."""
    for _ in range(times):
        with contextlib.suppress(UpstreamError):
            await upstream(ctx).get_json(path)
    return times


def add_fetches(server: Any) -> None:
    server.add_tool(fetch_often)
    add_fetch(server)


@pytest.mark.needs("inbound.identity")
def test_one_caller_opens_the_circuit_for_itself_only(api: StandIn, serve: Serve, clock: Clock) -> None:
    def fetch(caller: str) -> str:
        return text_of(server.call("fetch", {"path": "/"}, x_forwarded_for=caller))

    api.behave(respond(500))
    with serve(add_fetch, upstream_base_url=api.url, trusted_proxies="127.0.0.1", **SETTINGS) as server:
        for _ in range(3):
            assert "answered 500" in fetch("192.0.2.1")
        assert "temporarily unavailable" in fetch("192.0.2.1")
        api.behave(respond())
        assert "ok" in fetch("192.0.2.2")
        assert "temporarily unavailable" in fetch("192.0.2.1")
        api.behave(respond(500))
        assert "answered 500" in fetch("192.0.2.3")  # a second caller: it is the upstream
        for caller in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            assert "temporarily unavailable" in fetch(caller)
        api.behave(respond())
        clock.now += RECOVERY_SECONDS
        for caller in ("192.0.2.1", "192.0.2.2", "192.0.2.3"):
            assert "ok" in fetch(caller)


@pytest.mark.needs("inbound.identity")
def test_failures_of_several_callers_open_the_circuit_for_all(api: StandIn, serve: Serve) -> None:
    api.behave(respond(500))
    with serve(add_fetch, upstream_base_url=api.url, trusted_proxies="127.0.0.1", **SETTINGS) as server:
        for caller in range(3):
            server.call("fetch", {"path": "/"}, x_forwarded_for=f"192.0.2.{caller}")
        result = server.call("fetch", {"path": "/"}, x_forwarded_for="192.0.2.9")
        assert "temporarily unavailable" in text_of(result)
        assert len(api.requests) == 3


def test_the_requests_of_one_call_are_one_failure(api: StandIn, serve: Serve) -> None:
    api.behave(respond(500))
    with serve(add_fetches, upstream_base_url=api.url, **SETTINGS) as server:
        for calls in (1, 2):
            server.call("fetch_often", {"path": "/", "times": 9})
            assert len(api.requests) == 9 * calls
        assert "answered 500" in text_of(server.call("fetch", {"path": "/"}))
        assert "temporarily unavailable" in text_of(server.call("fetch", {"path": "/"}))


# --- What counts ----------------------------------------------------------------------------------------------------


async def fail(upstream: Any, times: int, error: type[Exception] = UpstreamStatusError) -> None:
    for _ in range(times):
        with pytest.raises(error):
            await upstream.get_json("/")


@pytest.mark.parametrize(
    "behavior", [respond(404), respond(429), respond(body=b"not JSON")], ids=["404", "429", "not JSON"]
)
async def test_an_upstream_that_responds_keeps_the_circuit_closed(behavior: Behavior, api: StandIn) -> None:
    api.behave(behavior)
    async with opened(api.url, **SETTINGS) as runtime:
        await fail(runtime.upstream, 5, UpstreamError)
    assert len(api.requests) == 5


async def test_each_host_has_a_circuit_of_its_own(api: StandIn) -> None:
    api.behave(respond(500))
    with stand_in() as other:
        async with opened(api.url, **SETTINGS) as runtime:
            await fail(runtime.upstream, 3)
            await fail(runtime.upstream, 1, CircuitOpenError)
            assert await runtime.upstream.get_json(f"{other.url}/") == {"ok": True}


async def test_a_cancelled_test_request_makes_room_for_another(api: StandIn, clock: Clock) -> None:
    api.behave(respond(500), respond(500), respond(500), hang())
    async with opened(api.url, **SETTINGS) as runtime:
        await fail(runtime.upstream, 3)
        clock.now += RECOVERY_SECONDS
        test_request = asyncio.create_task(runtime.upstream.get_json("/"))
        await asyncio.to_thread(wait_for, lambda: len(api.requests) == 4)
        with pytest.raises(CircuitOpenError, match="Try again in 1 second"):
            await runtime.upstream.get_json("/")
        test_request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await test_request
        api.behave(respond())
        assert await runtime.upstream.get_json("/") == {"ok": True}


async def test_a_hanging_upstream_opens_the_circuit(api: StandIn) -> None:
    api.behave(hang())
    async with opened(api.url, attempt_timeout_seconds=0.5, **SETTINGS) as runtime:
        await fail(runtime.upstream, 3, UpstreamTimeoutError)
        await fail(runtime.upstream, 1, CircuitOpenError)


@pytest.mark.needs("upstream.retry")
async def test_an_open_circuit_ends_the_retries(api: StandIn) -> None:
    api.behave(respond(500))
    quick = {
        "enable_retries": True,
        "max_retries": 9,
        "retry_delay_seconds": 0.001,
        "retry_max_delay_seconds": 0.01,
    }
    async with opened(api.url, **SETTINGS | quick | {"circuit_failure_threshold": 1}) as runtime:
        await fail(runtime.upstream, 1, CircuitOpenError)
    assert len(api.requests) == 1


@pytest.mark.needs("upstream.retry")
async def test_the_attempts_of_one_request_are_one_failure(api: StandIn) -> None:
    api.behave(respond(500))
    quick = {"enable_retries": True, "max_retries": 4, "retry_delay_seconds": 0.001}
    async with opened(api.url, **SETTINGS | quick) as runtime:
        await fail(runtime.upstream, 2)
        assert len(api.requests) == 10
        await fail(runtime.upstream, 1, CircuitOpenError)
    assert len(api.requests) == 11


@pytest.mark.needs("upstream.retry")
async def test_an_attempt_that_the_deadline_cut_short_has_no_verdict(api: StandIn) -> None:
    api.behave(respond(429, retry_after="1"), hang())
    short = {
        "request_timeout_seconds": 1.3,
        "attempt_timeout_seconds": 1.0,
        "max_retries": 1,
        "enable_retries": True,
    }
    async with opened(api.url, **SETTINGS | short | {"circuit_failure_threshold": 1}) as runtime:
        await fail(runtime.upstream, 1, UpstreamError)
        api.behave(respond())
        assert await runtime.upstream.get_json("/") == {"ok": True}


# --- Around anything else -------------------------------------------------------------------------------------------


async def break_down(guard: CircuitGuard, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(ConnectionError):
            async with guard:
                raise ConnectionError


async def test_a_context_manager_guards_any_call() -> None:
    server = create_server(config(**SETTINGS))
    await break_down(circuit_breaker(server, "database"))
    with pytest.raises(CircuitOpenError, match="Service temporarily unavailable: database has failed repeatedly"):
        async with circuit_breaker(server, "database"):
            pytest.fail("an open circuit admits nothing")
    async with circuit_breaker(server, "cache"):
        pass


async def test_a_decorator_guards_a_function() -> None:
    server = create_server(config(**SETTINGS))
    calls = 0

    @circuit_breaker(server, "database")
    async def query(sql: str) -> str:
        nonlocal calls
        calls += 1
        if sql == "fail":
            raise ConnectionError
        return f"rows of {sql}"

    assert await query("select 1") == "rows of select 1"
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await query("fail")
    with pytest.raises(CircuitOpenError):
        await query("select 1")
    assert calls == 4


async def test_concurrent_and_nested_blocks_keep_their_generations_apart(clock: Clock) -> None:
    server = create_server(config(**SETTINGS))
    outer, inner = circuit_breaker(server, "outer"), circuit_breaker(server, "inner")
    late = asyncio.Event()

    async def fail_late() -> None:
        async with outer:
            await late.wait()
            raise ConnectionError

    running = [asyncio.create_task(fail_late()) for _ in range(3)]
    await asyncio.sleep(0)
    await break_down(outer)
    clock.now += RECOVERY_SECONDS
    async with outer:  # closes the circuit; calls from before the outage do not open it again
        pass
    late.set()
    assert [type(error) for error in await asyncio.gather(*running, return_exceptions=True)] == [ConnectionError] * 3
    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with outer, inner:  # the outer one is in its fourth generation, the inner one in its first
                raise ConnectionError
    with pytest.raises(CircuitOpenError, match="inner"):
        async with inner:
            pass


async def test_a_block_that_ends_out_of_order_ends_its_own_generation(clock: Clock) -> None:
    """As that of an async generator which its consumer closes late, or in another task."""
    server = create_server(config(**SETTINGS))
    one, other = circuit_breaker(server, "one"), circuit_breaker(server, "other")

    async def rows(guard: CircuitGuard) -> AsyncIterator[int]:
        async with guard:
            yield 1

    await break_down(one)
    for close in (lambda generator: generator.aclose(), lambda generator: asyncio.create_task(generator.aclose())):
        clock.now += RECOVERY_SECONDS
        generator: Any = rows(one)
        await anext(generator)  # the one test request of a half-open circuit
        async with other:
            await close(generator)
    async with one:
        pass


async def test_only_the_named_exceptions_are_failures() -> None:
    server = create_server(config(**SETTINGS))
    guard = circuit_breaker(server, "database", failures=ConnectionError)
    for error in (
        LookupError(),
        UpstreamError("not found", host="api", verdict=Verdict.SUCCESS),
        asyncio.CancelledError(),
    ):
        for _ in range(5):
            with pytest.raises(type(error)):
                async with guard:
                    raise error
    async with guard:
        pass


@pytest.mark.parametrize(
    ("errors", "opens"),
    [
        ([ConnectionError(), LookupError()], True),
        ([LookupError(), UpstreamError("down", host="api", verdict=Verdict.FAILURE)], True),
        ([LookupError(), KeyError()], False),
        ([UpstreamError("not found", host="api", verdict=Verdict.SUCCESS), LookupError()], False),
        ([ExceptionGroup("inner", [ConnectionError()])], True),
    ],
    ids=["a named one", "an upstream that is down", "others", "an upstream that works", "nested"],
)
async def test_the_worst_exception_of_a_group_decides_the_verdict(errors: list[Exception], opens: bool) -> None:
    guard = circuit_breaker(create_server(config(**SETTINGS)), "database", failures=ConnectionError)
    for _ in range(3):
        with pytest.raises(ExceptionGroup):
            async with guard:
                raise ExceptionGroup("both", errors)
    with pytest.raises(CircuitOpenError) if opens else contextlib.nullcontext():
        async with guard:
            pass


async def test_a_tool_reaches_the_circuit_through_its_context(serve: Serve) -> None:
    async def look_up(ctx: Context[Any, Any]) -> str:
        async with circuit_breaker(ctx, "database"):
            raise ConnectionError

    with serve(lambda server: server.add_tool(look_up), **SETTINGS) as server:
        for _ in range(3):
            server.call("look_up")
        assert text_of(server.call("look_up")).startswith("Service temporarily unavailable: database")
        assert server.get("/health").json()["problems"] == ["circuit_open"]


async def test_every_call_passes_where_circuit_breakers_are_off() -> None:
    server = create_server(config(**SETTINGS, enable_circuit_breaker=False))
    await break_down(circuit_breaker(server, "database"), 10)
