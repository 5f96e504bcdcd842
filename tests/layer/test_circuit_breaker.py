"""The circuit breaker: its rules against a plain model, and its effect on a running server."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mcp.server.mcpserver import Context

from weather_station.production import circuit_breaker, upstream
from weather_station.production.app import ProductionServer, Runtime
from weather_station.production.circuit_breaker import (
    CircuitBreaker,
    CircuitGuard,
    CircuitOpenError,
    State,
)
from weather_station.production.client import (
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from weather_station.server import create_server

from .faulty import Faulty, Play, answer, faulty, hang, hold, reset
from .harness import HEADERS, Running, config, text_of, wait_for

QUICK: dict[str, Any] = {
    "enable_retries": False,
    "circuit_failure_threshold": 3,
    "circuit_recovery_timeout": 0.2,
    "circuit_half_open_requests": 1,
}
"""Each request is one attempt, so that failures are easily counted."""

PACKAGE = "weather_station"
HAS_METRICS = find_spec(f"{PACKAGE}.production.metrics") is not None
HAS_RETRIES = find_spec(f"{PACKAGE}.production.retry") is not None
LEGAL = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}


# --- The rules, against a plain model ----------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Calls begin and end in any order, and time passes; the model knows each call by the visit it began in.

    A visit is the time from one transition to the next. The model keeps plain lists where the breaker keeps counts.
    """

    @initialize(threshold=st.integers(1, 4), timeout=st.integers(1, 5), probes=st.integers(1, 4))
    def start(self, threshold: int, timeout: int, probes: int) -> None:
        self.threshold, self.timeout, self.probes = threshold, timeout, probes
        self.now = 1000.0
        self.seen: list[State] = []
        self.breaker = CircuitBreaker(
            "api",
            failure_threshold=threshold,
            recovery_timeout=timeout,
            half_open_requests=probes,
            clock=lambda: self.now,
            on_transition=self.seen.append,
        )
        self.state: State = "closed"
        self.visits = 0
        self.expected: list[State] = []
        self.results: list[bool] = []
        """What came of the calls that began in this visit."""
        self.opened_at = 0.0
        self.running: list[tuple[int, int]] = []
        """Era, as the breaker gave it, and visit, as the model knows it, of each call that has not ended."""

    def move(self, state: State) -> None:
        self.state = state
        self.visits += 1
        self.results = []
        self.expected.append(state)
        if state == "open":
            self.opened_at = self.now

    def in_flight(self) -> int:
        return sum(visit == self.visits for _, visit in self.running)

    @rule()
    def begin(self) -> None:
        if self.state == "open" and self.now >= self.opened_at + self.timeout:
            self.move("half_open")
        if self.state == "half_open":
            admitted = self.in_flight() + self.results.count(True) < self.probes
        else:
            admitted = self.state == "closed"
        if admitted:
            self.running.append((self.breaker.admit(), self.visits))
            return
        with pytest.raises(CircuitOpenError, match="Service temporarily unavailable") as refusal:
            self.breaker.admit()
        if self.state == "open":
            assert refusal.value.retry_after == self.opened_at + self.timeout - self.now

    @rule(calls=st.integers(2, 5))
    def begin_at_once(self, calls: int) -> None:
        for _ in range(calls):
            self.begin()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), failed=st.sampled_from([True, False, None]))
    def end_one(self, data: st.DataObject, failed: bool | None) -> None:
        self.end(data.draw(st.integers(0, len(self.running) - 1)), failed)

    @precondition(lambda self: self.running)
    @rule(failed=st.sampled_from([True, False, None]))
    def end_all(self, failed: bool | None) -> None:
        while self.running:
            self.end(0, failed)

    def end(self, position: int, failed: bool | None) -> None:
        """A call ends: it failed, it succeeded, or it was cancelled (None)."""
        era, visit = self.running.pop(position)
        self.breaker.record(era, failed)
        if visit != self.visits or failed is None:
            return
        self.results.append(not failed)
        if self.state == "half_open":
            if failed:
                self.move("open")
            elif self.results.count(True) == self.probes:
                self.move("closed")
        elif self.results[-self.threshold :] == [False] * self.threshold:
            self.move("open")

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_for_the_probe(self) -> None:
        if self.state == "open":
            self.now = max(self.now, self.opened_at + self.timeout)

    @invariant()
    def it_is_where_the_model_is(self) -> None:
        assert self.breaker.state == self.state

    @invariant()
    def probes_and_successes_never_exceed_the_bound(self) -> None:
        if self.state == "half_open":
            assert self.in_flight() + self.results.count(True) <= self.probes

    @invariant()
    def each_transition_is_legal_and_notified_once(self) -> None:
        assert self.seen == self.expected
        assert set(zip(["closed", *self.seen], self.seen, strict=False)) <= LEGAL


Machine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_it_keeps_its_rules_in_any_order_of_events = Machine.TestCase


# --- On a running server -----------------------------------------------------------------------------------


async def ask(path: str, ctx: Context[Any, Any]) -> dict[str, Any]:
    """Asks the upstream."""
    found: dict[str, Any] = await upstream(ctx).get_json(path)
    return found


def register(server: ProductionServer) -> None:
    server.add_tool(ask)


@pytest.fixture
def api() -> Iterator[Faulty]:
    with faulty() as upstream:
        yield upstream


@asynccontextmanager
async def opened(base_url: str, **settings: Any) -> AsyncIterator[Runtime]:
    async with create_server(config(upstream_base_url=base_url, **QUICK | settings)).running() as runtime:
        yield runtime


def metrics(server: Running, name: str) -> dict[str, float]:
    """The samples of a series by their labels, none where nobody counts."""
    text = server.client.get(f"{server.base}/metrics").text if HAS_METRICS else ""
    lines = (line.removeprefix(name).rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return {labels: float(value) for labels, _, value in lines}


def test_an_open_circuit_is_seen_by_the_caller_and_spares_the_upstream(
    api: Faulty, serve: Callable[..., AbstractContextManager[Running]], capfd: pytest.CaptureFixture[str]
) -> None:
    api.play(answer(500))
    with serve(register, upstream_base_url=api.url, **QUICK | {"circuit_recovery_timeout": 60}) as server:
        assert server.client.get(f"{server.base}/health").json()["status"] == "healthy"
        for _ in range(3):
            assert "answered 500" in text_of(server.call("ask", {"path": "/"}))
        result = server.call("ask", {"path": "/"})
        assert result["isError"]
        assert text_of(result) == (
            f"Service temporarily unavailable: {api.host} has failed repeatedly. Try again in 60 seconds."
        )
        assert len(api.arrived) == 3
        health = server.client.get(f"{server.base}/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert health.json()["problems"] == [f"circuit {api.host} is open"]
        assert server.client.get(f"{server.base}/readyz").status_code == 200
        if HAS_METRICS:
            labels = f'host="{api.host}"'
            assert metrics(server, "mcp_circuit_state") == {"{" + labels + "}": 2}
            transitions = metrics(server, "mcp_circuit_transitions_total")
            assert {tuple(key.strip("{}").split(",")): value for key, value in transitions.items()} == {
                (labels, 'state="closed"'): 0,
                (labels, 'state="half_open"'): 0,
                (labels, 'state="open"'): 1,
            }
    assert capfd.readouterr().err.count("circuit changed") == 1


def test_a_successful_probe_closes_the_circuit(
    api: Faulty, serve: Callable[..., AbstractContextManager[Running]]
) -> None:
    api.play(reset(), reset(), reset(), answer())
    with serve(register, upstream_base_url=api.url, **QUICK) as server:
        for _ in range(3):
            assert server.call("ask", {"path": "/"})["isError"]
        wait_for(lambda: not server.call("ask", {"path": "/"})["isError"])
        assert len(api.arrived) == 4
        assert server.client.get(f"{server.base}/health").json()["status"] == "healthy"
        if HAS_METRICS:
            assert list(metrics(server, "mcp_circuit_state").values()) == [0]


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
    """The answer to a tools/call as it came, over a connection of its own; a pool of a thousand would be slow."""
    host, _, port = server.base.removeprefix("http://").partition(":")
    body = json.dumps(server.request("ask", {"path": "/"})).encode()
    fields = {"host": f"{host}:{port}", "content-type": "application/json", "content-length": str(len(body))}
    fields |= HEADERS | {"connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + body)
    text = await reader.read()
    writer.close()
    return text


@pytest.mark.usefixtures("many_connections")
async def test_of_a_thousand_calls_at_the_half_open_moment_only_the_probes_arrive(
    api: Faulty, serve: Callable[..., AbstractContextManager[Running]]
) -> None:
    calls, probes, patience = 1000, 3, 60
    release = threading.Event()
    bounds = {
        "circuit_half_open_requests": probes,
        "circuit_recovery_timeout": 0.1,
        "attempt_timeout_seconds": patience,
        "request_timeout_seconds": patience,
        "log_level": "ERROR",
    }
    with serve(register, upstream_base_url=api.url, **QUICK | bounds) as server:
        api.play(answer(500))
        for _ in range(3):
            server.call("ask", {"path": "/"})
        await asyncio.sleep(0.1)
        api.play(hold(release, patience))
        running = [asyncio.create_task(raw_call(server)) for _ in range(calls)]
        refusals = 0
        for ended in asyncio.as_completed(running):
            refusals += b"Service temporarily unavailable" in await ended
            if refusals == calls - probes:
                break
        # On its way when the others were refused.
        await asyncio.to_thread(wait_for, lambda: len(api.arrived) >= probes, 60)
        assert len(api.arrived) == probes
        release.set()
        texts = await asyncio.gather(*running)
        assert len(api.arrived) == probes
        assert sum(b'"ok":true' in text for text in texts) == probes
        assert not server.call("ask", {"path": "/"})["isError"]


# --- What counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("play", [answer(404), answer(429), answer(body=b"not JSON")], ids=["404", "429", "no JSON"])
async def test_an_upstream_that_answers_is_not_down(play: Play, api: Faulty) -> None:
    api.play(play)
    async with opened(api.url) as runtime:
        for _ in range(5):
            with pytest.raises(UpstreamError):
                await runtime.upstream.get_json("/")
    assert len(api.arrived) == 5


async def test_each_host_has_its_own_circuit(api: Faulty) -> None:
    api.play(answer(500))
    with faulty() as other:
        async with opened(api.url) as runtime:
            for _ in range(3):
                with pytest.raises(UpstreamStatusError):
                    await runtime.upstream.get_json("/")
            with pytest.raises(CircuitOpenError):
                await runtime.upstream.get_json("/")
            assert await runtime.upstream.get_json(f"{other.url}/") == {"ok": True}


async def test_a_cancelled_probe_gives_its_place_back(api: Faulty) -> None:
    api.play(answer(500), answer(500), answer(500), hang())
    async with opened(api.url, circuit_recovery_timeout=0.05) as runtime:
        for _ in range(3):
            with pytest.raises(UpstreamStatusError):
                await runtime.upstream.get_json("/")
        await asyncio.sleep(0.05)
        probe = asyncio.create_task(runtime.upstream.get_json("/"))
        await asyncio.to_thread(wait_for, lambda: len(api.arrived) == 4)
        with pytest.raises(CircuitOpenError, match="Try again in 1 second"):
            await runtime.upstream.get_json("/")
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        api.play(answer())
        assert await runtime.upstream.get_json("/") == {"ok": True}


async def test_a_hanging_upstream_opens_the_circuit(api: Faulty) -> None:
    api.play(hang())
    async with opened(api.url, attempt_timeout_seconds=1) as runtime:
        for _ in range(3):
            with pytest.raises(UpstreamTimeoutError):
                await runtime.upstream.get_json("/")
        with pytest.raises(CircuitOpenError):
            await runtime.upstream.get_json("/")


if HAS_RETRIES:

    async def test_an_open_circuit_ends_the_retrying(api: Faulty) -> None:
        api.play(answer(500))
        quick = {"max_retries": 9, "retry_delay_seconds": 0.001, "retry_max_delay_seconds": 0.01}
        async with opened(api.url, enable_retries=True, circuit_recovery_timeout=60, **quick) as runtime:
            with pytest.raises(CircuitOpenError):
                await runtime.upstream.get_json("/")
        assert len(api.arrived) == 3

    async def test_what_a_retry_had_left_of_the_deadline_says_nothing_of_the_upstream(api: Faulty) -> None:
        api.play(answer(429, retry_after="1"), hang())
        short = {"request_timeout_seconds": 1.3, "attempt_timeout_seconds": 1.0, "max_retries": 1}
        async with opened(api.url, enable_retries=True, circuit_failure_threshold=1, **short) as runtime:
            with pytest.raises(UpstreamError):
                await runtime.upstream.get_json("/")
            api.play(answer())
            assert await runtime.upstream.get_json("/") == {"ok": True}


# --- Around anything else ----------------------------------------------------------------------------------


async def test_a_context_manager_guards_anything(serve: Callable[..., AbstractContextManager[Running]]) -> None:
    server = create_server(config(**QUICK))
    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with circuit_breaker(server, "database"):
                raise ConnectionError
    with pytest.raises(CircuitOpenError, match="Service temporarily unavailable: database has failed repeatedly"):
        async with circuit_breaker(server, "database"):
            pytest.fail("an open circuit lets nothing pass")
    async with circuit_breaker(server, "cache"):
        pass


async def test_a_decorator_guards_a_function() -> None:
    server = create_server(config(**QUICK))
    asked = 0

    @circuit_breaker(server, "database")
    async def query(sql: str) -> str:
        nonlocal asked
        asked += 1
        if sql == "fail":
            raise ConnectionError
        return f"rows of {sql}"

    assert await query("select 1") == "rows of select 1"
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await query("fail")
    with pytest.raises(CircuitOpenError):
        await query("select 1")
    assert asked == 4


async def test_concurrent_and_nested_blocks_keep_their_eras_apart() -> None:
    server = create_server(config(**QUICK | {"circuit_recovery_timeout": 0.05}))
    outer, inner = circuit_breaker(server, "outer"), circuit_breaker(server, "inner")
    late = asyncio.Event()

    async def straggle() -> None:
        async with outer:
            await late.wait()
            raise ConnectionError

    running = [asyncio.create_task(straggle()) for _ in range(3)]
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with outer:
                raise ConnectionError
    await asyncio.sleep(0.05)
    async with outer:  # the probe closes the circuit, and what began before the outage does not open it again
        pass
    late.set()
    assert [type(error) for error in await asyncio.gather(*running, return_exceptions=True)] == [ConnectionError] * 3
    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with outer, inner:  # the outer one is in its fourth era, the inner one in its first
                raise ConnectionError
    with pytest.raises(CircuitOpenError, match="inner"):
        async with inner:
            pass


async def test_a_block_that_ends_out_of_order_gives_back_its_own_place() -> None:
    """As an async generator does that its consumer closes late, or in another task."""
    server = create_server(config(**QUICK | {"circuit_recovery_timeout": 0.05}))
    one, other = circuit_breaker(server, "one"), circuit_breaker(server, "other")

    async def rows(guard: CircuitGuard) -> AsyncIterator[int]:
        async with guard:
            yield 1

    for _ in range(3):
        with pytest.raises(ConnectionError):
            async with one:
                raise ConnectionError
    for close in (lambda opened: opened.aclose(), lambda opened: asyncio.create_task(opened.aclose())):
        await asyncio.sleep(0.05)
        opened: Any = rows(one)
        await anext(opened)  # it is the one probe of a half-open circuit
        async with other:
            await close(opened)
    async with one:
        pass


async def test_only_what_says_so_is_a_failure() -> None:
    server = create_server(config(**QUICK))
    guard = circuit_breaker(server, "database", failures=ConnectionError)
    for error in (LookupError(), UpstreamError("not found", host="api", outage=False), asyncio.CancelledError()):
        for _ in range(5):
            with pytest.raises(type(error)):
                async with guard:
                    raise error
    async with guard:
        pass


async def test_a_call_reaches_the_circuit_through_its_context(
    serve: Callable[..., AbstractContextManager[Running]],
) -> None:
    with serve(lambda server: server.add_tool(look_up), **QUICK) as server:
        for _ in range(3):
            server.call("look_up")
        assert text_of(server.call("look_up")).startswith("Service temporarily unavailable: database")
        assert server.client.get(f"{server.base}/health").json()["problems"] == ["circuit database is open"]


async def look_up(ctx: Context[Any, Any]) -> str:
    """Asks a database that is down."""
    async with circuit_breaker(ctx, "database"):
        raise ConnectionError


async def test_switched_off_every_call_passes(api: Faulty) -> None:
    server = create_server(config(**QUICK, enable_circuit_breaker=False))
    for _ in range(10):
        with pytest.raises(ConnectionError):
            async with circuit_breaker(server, "database"):
                raise ConnectionError
