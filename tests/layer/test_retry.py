"""Retries: what is tried again, how often, after how long, and what is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec
from typing import Any

import httpx2
import pytest
import stamina
from mcp.server.mcpserver import Context
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan
from stamina.instrumentation import RetryDetails, get_on_retry_hooks, set_on_retry_hooks

from weather_station.production import retry, upstream
from weather_station.production.app import ProductionServer, Runtime
from weather_station.production.client import (
    UpstreamConnectError,
    UpstreamError,
    UpstreamRequest,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from weather_station.production.retry import Retries
from weather_station.server import create_server

from .faulty import Faulty, answer, faulty, hang, reset
from .harness import Running, config, text_of, wait_for

HIDDEN = "s3cr3t-value"
QUICK: dict[str, Any] = {
    "enable_circuit_breaker": False,
    "max_retries": 3,
    "retry_delay_seconds": 0.01,
    "retry_max_delay_seconds": 0.02,
}
"""Retries without waiting, and without anything else that stops them."""

HAS_METRICS = find_spec("weather_station.production.metrics") is not None


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


# --- What is tried again -----------------------------------------------------------------------------------


def test_a_passing_fault_does_not_reach_the_caller(
    api: Faulty, serve: Callable[..., AbstractContextManager[Running]], capfd: pytest.CaptureFixture[str]
) -> None:
    api.play(answer(503), reset(), answer())
    with serve(register, upstream_base_url=api.url, **QUICK) as server:
        result = server.call("ask", {"path": f"/thing?key={HIDDEN}"})
        assert result["structuredContent"] == {"ok": True}
        assert [request.target for request in api.arrived] == [f"/thing?key={HIDDEN}"] * 3
        if HAS_METRICS:
            labels = f'host="{api.host}"'
            sample = "mcp_upstream_retries_total{" + labels + "} 2.0"
            assert sample in server.client.get(f"{server.base}/metrics").text
    log = capfd.readouterr().err
    assert log.count("trying again") == 2
    assert f"{api.host} answered 503 Service Unavailable" in log
    assert "stamina" not in log
    assert HIDDEN not in log


def test_a_lasting_fault_is_told_with_the_number_of_attempts(
    api: Faulty, serve: Callable[..., AbstractContextManager[Running]]
) -> None:
    api.play(answer(502))
    with serve(register, upstream_base_url=api.url, **QUICK) as server:
        text = text_of(server.call("ask", {"path": "/"}))
    assert text == f"{api.host} answered 502 Bad Gateway (4 attempts). Trying again later may help."
    assert len(api.arrived) == 4


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_transient_status_is_tried_again(status: int, api: Faulty) -> None:
    api.play(answer(status), answer())
    async with opened(api.url) as runtime:
        assert await runtime.upstream.get_json("/") == {"ok": True}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 501, 505])
async def test_another_status_is_not(status: int, api: Faulty) -> None:
    api.play(answer(status), answer())
    async with opened(api.url) as runtime:
        with pytest.raises(UpstreamStatusError):
            await runtime.upstream.get_json("/")
    assert len(api.arrived) == 1


async def test_an_answer_that_is_not_json_is_not(api: Faulty) -> None:
    api.play(answer(body=b"{"), answer())
    async with opened(api.url) as runtime:
        with pytest.raises(UpstreamError, match="malformed JSON"):
            await runtime.upstream.get_json("/")
    assert len(api.arrived) == 1


@pytest.mark.parametrize(
    ("method", "key", "attempts"),
    [("GET", None, 2), ("PUT", None, 2), ("DELETE", None, 2), ("POST", None, 1), ("PATCH", None, 1), ("POST", "k", 2)],
)
@pytest.mark.parametrize("play", [answer(503), reset()], ids=["503", "reset"])
async def test_what_may_have_arrived_is_sent_again_only_where_that_is_safe(
    play: Any, method: str, key: str | None, attempts: int, api: Faulty
) -> None:
    api.play(play, answer())
    async with opened(api.url) as runtime:
        request = runtime.upstream.request(method, "/", json={"a": 1}, idempotency_key=key)
        if attempts == 1:
            with pytest.raises(UpstreamError):
                await request
        else:
            assert (await request).status_code == 200
    assert [arrived.headers.get("idempotency-key") for arrived in api.arrived] == [key] * attempts
    assert {arrived.body for arrived in api.arrived} == {b'{"a":1}'}


async def test_what_never_left_is_sent_again_whatever_its_method() -> None:
    attempts = 0

    async def unreachable(request: UpstreamRequest) -> httpx2.Response:
        nonlocal attempts
        attempts += 1
        raise UpstreamConnectError("refused", host="api", may_retry=True)

    async with opened("http://127.0.0.1:9") as runtime:
        link = runtime.app.upstream_links["retry"]
        deadline = asyncio.get_running_loop().time() + 5
        post = UpstreamRequest(httpx2.Request("POST", "http://api/"), "api", "api", deadline, repeatable=False)
        with pytest.raises(UpstreamConnectError):
            await link(post, unreachable)
    assert attempts == 4


async def test_no_retries_means_one_attempt(api: Faulty) -> None:
    api.play(answer(503))
    async with opened(api.url, max_retries=0) as runtime:
        with pytest.raises(UpstreamStatusError):
            await runtime.upstream.get_json("/")
    assert len(api.arrived) == 1


# --- When --------------------------------------------------------------------------------------------------


async def test_retry_after_is_waited_for(api: Faulty) -> None:
    api.play(answer(503, retry_after="1"), answer())
    async with opened(api.url) as runtime:
        started = time.monotonic()
        assert await runtime.upstream.get_json("/") == {"ok": True}
        assert 1 <= time.monotonic() - started < 2.5


@pytest.mark.parametrize(
    "retry_after", ["60", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)], ids=["seconds", "date"]
)
async def test_a_retry_after_beyond_the_deadline_fails_at_once(retry_after: str, api: Faulty) -> None:
    api.play(answer(429, retry_after=retry_after), answer())
    async with opened(api.url) as runtime:
        started = time.monotonic()
        with pytest.raises(UpstreamStatusError, match=r"Try again in \d{2,4} seconds") as caught:
            await runtime.upstream.get_json("/")
        assert time.monotonic() - started < 1
    assert caught.value.retry_after is not None
    assert len(api.arrived) == 1


async def test_one_deadline_holds_for_all_attempts(api: Faulty) -> None:
    api.play(hang())
    limits = {"request_timeout_seconds": 2.0, "attempt_timeout_seconds": 0.8, "max_retries": 100}
    async with opened(api.url, **limits) as runtime:
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError):
            await runtime.upstream.get_json("/")
        assert 1.9 <= time.monotonic() - started < 6
    assert 2 <= len(api.arrived) <= 3  # the third was interrupted, before or after it arrived


async def test_cancellation_ends_the_waiting(api: Faulty) -> None:
    api.play(answer(503, retry_after="20"), answer())
    async with opened(api.url) as runtime:
        asking = asyncio.create_task(runtime.upstream.get_json("/"))
        await asyncio.to_thread(wait_for, lambda: len(api.arrived) == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asking
    assert len(api.arrived) == 1


async def test_cancellation_ends_an_attempt_and_is_not_retried(api: Faulty) -> None:
    api.play(answer(503), hang())
    async with opened(api.url) as runtime:
        asking = asyncio.create_task(runtime.upstream.get_json("/"))
        await asyncio.to_thread(wait_for, lambda: len(api.arrived) == 2)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asking
    assert len(api.arrived) == 2


async def test_waits_are_spread_over_the_whole_range() -> None:
    async with opened("http://127.0.0.1:9", retry_delay_seconds=1, retry_max_delay_seconds=4) as runtime:
        retries = runtime.app.upstream_links["retry"]
        assert isinstance(retries, Retries)
        for failures, ceiling in ((1, 1), (2, 2), (3, 4), (4, 4), (100, 4)):
            waits = [retries.wait_seconds(failures, None) for _ in range(2000)]
            assert 0 <= min(waits) < 0.1 * ceiling
            assert 0.9 * ceiling < max(waits) <= ceiling
            assert 0.45 * ceiling < sum(waits) / len(waits) < 0.55 * ceiling
        assert retries.wait_seconds(1, 3.0) == 3.0


# --- What shows --------------------------------------------------------------------------------------------


class Span(NonRecordingSpan):
    """Remembers its events."""

    def __init__(self) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.events.append((name, dict(attributes)))


async def test_each_retry_is_an_event_of_the_span(api: Faulty) -> None:
    api.play(answer(503), answer())
    span = Span()
    async with opened(api.url) as runtime:
        with trace.use_span(span):
            await runtime.upstream.get_json(f"/?key={HIDDEN}")
    ((name, attributes),) = span.events
    assert name == "upstream.retry"
    assert attributes["server.address"] == api.host
    assert attributes["error.type"] == "UpstreamStatusError"
    assert attributes["retry.failed_attempts"] == 1
    assert HIDDEN not in str(attributes)


async def test_other_users_of_stamina_keep_their_reports(api: Faulty) -> None:
    reported: list[str] = []

    def spy(details: RetryDetails) -> None:
        reported.append(type(details.caused_by).__name__)

    @stamina.retry(on=OSError, attempts=2, wait_initial=0, wait_jitter=0)
    async def of_others() -> None:
        raise ConnectionError

    before = get_on_retry_hooks()
    set_on_retry_hooks([spy])
    try:
        for _ in range(2):  # two servers in one process
            api.play(answer(503), answer())
            async with opened(api.url) as runtime:
                await runtime.upstream.get_json("/")
                with pytest.raises(ConnectionError):
                    await of_others()
    finally:
        set_on_retry_hooks(before)
    assert reported == ["ConnectionError"] * 2


# --- Around anything else ----------------------------------------------------------------------------------


class Database:
    """Fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked = 0

    async def query(self, sql: str) -> str:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return f"rows of {sql}"


async def test_any_function_can_be_retried(capfd: pytest.CaptureFixture[str]) -> None:
    database = Database(ConnectionError(HIDDEN), TimeoutError(HIDDEN))
    server = create_server(config(**QUICK))
    query = retry(server, "database", on=OSError)(database.query)
    assert await query("select 1") == "rows of select 1"
    assert database.asked == 3
    log = capfd.readouterr().err
    assert log.count("trying again") == 2
    assert "database" in log
    assert HIDDEN not in log


async def test_other_exceptions_end_the_retrying() -> None:
    database = Database(ConnectionError(), LookupError())
    query = retry(create_server(config(**QUICK)), "database", on=ConnectionError)(database.query)
    with pytest.raises(LookupError):
        await query("select 1")
    assert database.asked == 2


async def test_an_upstream_error_decides_for_itself() -> None:
    database = Database(UpstreamError("open", host="database"))
    query = retry(create_server(config(**QUICK)), "database", on=Exception)(database.query)
    with pytest.raises(UpstreamError):
        await query("select 1")
    assert database.asked == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_function_that_posts_is_not_repeated_for_a_status(status: int, api: Faulty) -> None:
    api.play(answer(status), answer())
    server = create_server(config(**QUICK | {"upstream_base_url": api.url}))
    async with server.running() as runtime:

        @retry(server, "orders", on=ConnectionError)
        async def order() -> None:
            await runtime.upstream.request("POST", "/orders")

        with pytest.raises(UpstreamError):
            await order()
    assert len(api.arrived) == 1


async def test_no_attempt_starts_after_the_deadline() -> None:
    database = Database(*(ConnectionError() for _ in range(1000)))
    settings = QUICK | {"max_retries": 100, "request_timeout_seconds": 0.1, "attempt_timeout_seconds": 0.1}
    query = retry(create_server(config(**settings)), "database", on=ConnectionError)(database.query)
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        await query("select 1")
    assert time.monotonic() - started < 1
    assert database.asked < 100


async def test_switched_off_the_function_runs_once() -> None:
    database = Database(ConnectionError())
    query = retry(create_server(config(**QUICK, enable_retries=False)), "database", on=ConnectionError)(database.query)
    with pytest.raises(ConnectionError):
        await query("select 1")
    assert database.asked == 1
