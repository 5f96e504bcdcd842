"""Retries: which requests are repeated, how often, after which wait, and which are not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.trace import INVALID_SPAN_CONTEXT, NonRecordingSpan
from structlog.testing import capture_logs

from harness import HAS_METRICS, Serve, add_fetch, config, opened, text_of, wait_for
from stand_in import Behavior, StandIn, hang, reset, respond
from weather_station.production.observe.meter import NullMeter
from weather_station.production.upstream import retry as retry_module
from weather_station.production.upstream.client import UpstreamRequest
from weather_station.production.upstream.errors import (
    UpstreamConnectError,
    UpstreamError,
    UpstreamStatusError,
    UpstreamTimeoutError,
)
from weather_station.production.upstream.retry import Retries, retry
from weather_station.server import create_server

HIDDEN = "s3cr3t-value"
SETTINGS: dict[str, Any] = {
    "enable_circuit_breaker": False,
    "max_retries": 3,
    "retry_delay_seconds": 0.01,
    "retry_max_delay_seconds": 0.02,
}
"""Retries with short waits, and nothing else that ends them."""


class Time:
    """Time that passes only while the retries wait; `waits` has each of their waits in seconds."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def time(self) -> float:
        return sum(self.waits)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock of retries around functions, and of the waits between all attempts."""
    clock = Time()
    fake = SimpleNamespace(get_running_loop=lambda: clock, sleep=clock.sleep)
    monkeypatch.setattr(retry_module, "asyncio", fake)
    return clock


# --- What is repeated -----------------------------------------------------------------------------------------------


def test_a_transient_fault_does_not_reach_the_caller(api: StandIn, serve: Serve) -> None:
    api.behave(respond(503), reset(), respond())
    with serve(add_fetch, upstream_base_url=api.url, **SETTINGS) as server, capture_logs() as log:
        result = server.call("fetch", {"path": f"/thing?key={HIDDEN}"})
        assert result["structuredContent"] == {"ok": True}
        assert [request.target for request in api.requests] == [f"/thing?key={HIDDEN}"] * 3
        assert server.metrics().value("mcp_upstream_retries_total", host=api.host) == (2 if HAS_METRICS else None)
    entries = [entry for entry in log if entry["event"] == "retrying"]
    assert [(entry["host"], entry["failed_attempts"]) for entry in entries] == [(api.host, 1), (api.host, 2)]
    assert entries[0]["reason"] == f"{api.host} answered 503 Service Unavailable"
    assert HIDDEN not in str(log)


def test_a_lasting_fault_is_reported_with_the_number_of_attempts(api: StandIn, serve: Serve) -> None:
    api.behave(respond(502))
    with serve(add_fetch, upstream_base_url=api.url, **SETTINGS) as server:
        text = text_of(server.call("fetch", {"path": "/"}))
    assert text == f"{api.host} answered 502 Bad Gateway (4 attempts). Trying again later may help."
    assert len(api.requests) == 4


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_transient_status_is_retried(status: int, api: StandIn) -> None:
    api.behave(respond(status), respond())
    async with opened(api.url, **SETTINGS) as runtime:
        assert await runtime.upstream.get_json("/") == {"ok": True}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 501, 505])
async def test_any_other_status_is_not_retried(status: int, api: StandIn) -> None:
    api.behave(respond(status), respond())
    async with opened(api.url, **SETTINGS) as runtime:
        with pytest.raises(UpstreamStatusError):
            await runtime.upstream.get_json("/")
    assert len(api.requests) == 1


async def test_a_body_that_is_not_json_is_not_retried(api: StandIn) -> None:
    api.behave(respond(body=b"{"), respond())
    async with opened(api.url, **SETTINGS) as runtime:
        with pytest.raises(UpstreamError, match="malformed JSON"):
            await runtime.upstream.get_json("/")
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("method", "key", "attempts"),
    [("GET", None, 2), ("PUT", None, 2), ("DELETE", None, 2), ("POST", None, 1), ("PATCH", None, 1), ("POST", "k", 2)],
)
@pytest.mark.parametrize("behavior", [respond(503), reset()], ids=["503", "reset"])
async def test_a_request_that_may_have_arrived_is_repeated_only_where_that_is_safe(
    behavior: Behavior, method: str, key: str | None, attempts: int, api: StandIn
) -> None:
    api.behave(behavior, respond())
    async with opened(api.url, **SETTINGS) as runtime:
        request = runtime.upstream.request(method, "/", json={"a": 1}, idempotency_key=key)
        if attempts == 1:
            with pytest.raises(UpstreamError):
                await request
        else:
            assert (await request).status_code == 200
    assert [received.headers.get("idempotency-key") for received in api.requests] == [key] * attempts
    assert {received.body for received in api.requests} == {b'{"a":1}'}


async def test_a_request_that_was_never_sent_is_repeated_whatever_its_method() -> None:
    attempts = 0

    async def unreachable(request: UpstreamRequest) -> httpx2.Response:
        nonlocal attempts
        attempts += 1
        raise UpstreamConnectError("refused", host="api", may_retry=True)

    retries = Retries(config(**SETTINGS), NullMeter())
    deadline = asyncio.get_running_loop().time() + 3600
    post = UpstreamRequest(httpx2.Request("POST", "http://api/"), "api", "api", deadline, repeatable=False)
    with pytest.raises(UpstreamConnectError):
        await retries.middleware(post, unreachable)
    assert attempts == 4


async def test_zero_retries_mean_one_attempt(api: StandIn) -> None:
    api.behave(respond(503))
    async with opened(api.url, **SETTINGS | {"max_retries": 0}) as runtime:
        with pytest.raises(UpstreamStatusError):
            await runtime.upstream.get_json("/")
    assert len(api.requests) == 1


# --- When -----------------------------------------------------------------------------------------------------------


async def test_retry_after_is_waited_for(api: StandIn) -> None:
    api.behave(respond(503, retry_after="1"), respond())
    async with opened(api.url, **SETTINGS) as runtime:
        started = time.monotonic()
        assert await runtime.upstream.get_json("/") == {"ok": True}
        assert time.monotonic() - started >= 1


@pytest.mark.parametrize(
    "retry_after", ["60", format_datetime(datetime.now(UTC) + timedelta(days=9), usegmt=True)], ids=["seconds", "date"]
)
async def test_a_retry_after_beyond_the_deadline_ends_the_retries_without_a_wait(
    retry_after: str, api: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def sleep(seconds: float) -> None:
        pytest.fail(f"it waited {seconds} s")

    monkeypatch.setattr(
        retry_module, "asyncio", SimpleNamespace(get_running_loop=asyncio.get_running_loop, sleep=sleep)
    )
    api.behave(respond(429, retry_after=retry_after), respond())
    async with opened(api.url, **SETTINGS) as runtime:
        with pytest.raises(UpstreamStatusError, match=r"Try again in \d+ seconds") as caught:
            await runtime.upstream.get_json("/")
    assert caught.value.retry_after is not None
    assert len(api.requests) == 1


async def test_one_deadline_covers_all_attempts(api: StandIn) -> None:
    api.behave(hang())
    limits = {"request_timeout_seconds": 2.0, "attempt_timeout_seconds": 0.8, "max_retries": 100}
    async with opened(api.url, **SETTINGS | limits) as runtime:
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError):
            await runtime.upstream.get_json("/")
        assert time.monotonic() - started >= 1.9
    assert 2 <= len(api.requests) <= 3  # the third was interrupted, before or after it arrived


async def test_cancellation_ends_the_wait_for_another_attempt(api: StandIn) -> None:
    api.behave(respond(503, retry_after="20"), respond())
    async with opened(api.url, **SETTINGS) as runtime:
        with capture_logs() as log:
            request = asyncio.create_task(runtime.upstream.get_json("/"))
            await asyncio.to_thread(wait_for, lambda: log)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
    assert len(api.requests) == 1


async def test_cancellation_ends_a_running_attempt_and_is_not_retried(api: StandIn) -> None:
    api.behave(respond(503), hang())
    async with opened(api.url, **SETTINGS) as runtime:
        request = asyncio.create_task(runtime.upstream.get_json("/"))
        await asyncio.to_thread(wait_for, lambda: len(api.requests) == 2)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert len(api.requests) == 2


def test_waits_are_spread_over_the_whole_range() -> None:
    retries = Retries(config(retry_delay_seconds=1, retry_max_delay_seconds=4), NullMeter())
    for failures, ceiling in ((1, 1), (2, 2), (3, 4), (4, 4), (100, 4)):
        waits = [retries.wait_seconds(failures, None) for _ in range(2000)]
        assert 0 <= min(waits) < 0.1 * ceiling
        assert 0.9 * ceiling < max(waits) <= ceiling
        assert 0.45 * ceiling < sum(waits) / len(waits) < 0.55 * ceiling
    assert retries.wait_seconds(1, 3.0) == 3.0


# --- What shows -----------------------------------------------------------------------------------------------------


class Span(NonRecordingSpan):
    """Keeps its events."""

    def __init__(self) -> None:
        super().__init__(INVALID_SPAN_CONTEXT)
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.events.append((name, dict(attributes)))


async def test_each_retry_is_an_event_of_the_span(api: StandIn) -> None:
    api.behave(respond(503), respond())
    span = Span()
    async with opened(api.url, **SETTINGS) as runtime:
        with trace.use_span(span):
            await runtime.upstream.get_json(f"/?key={HIDDEN}")
    ((name, attributes),) = span.events
    assert name == "upstream.retry"
    assert attributes["server.address"] == api.host
    assert attributes["error.type"] == "UpstreamStatusError"
    assert attributes["retry.failed_attempts"] == 1
    assert HIDDEN not in str(attributes)


# --- Around anything else -------------------------------------------------------------------------------------------


class Database:
    """Raises the given exceptions first."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.queries = 0

    async def query(self, sql: str) -> str:
        self.queries += 1
        if self.failures:
            raise self.failures.pop(0)
        return f"rows of {sql}"


async def test_any_function_can_be_retried(clock: Time) -> None:
    database = Database(ConnectionError(HIDDEN), TimeoutError(HIDDEN))
    query = retry(create_server(config(**SETTINGS)), "database", on=OSError)(database.query)
    with capture_logs() as log:
        assert await query("select 1") == "rows of select 1"
    assert database.queries == 3
    assert [(entry["host"], entry["reason"]) for entry in log] == [
        ("database", "ConnectionError"),
        ("database", "TimeoutError"),
    ]
    assert HIDDEN not in str(log)
    assert len(clock.waits) == 2


async def test_any_other_exception_ends_the_retries() -> None:
    database = Database(ConnectionError(), LookupError())
    query = retry(create_server(config(**SETTINGS)), "database", on=ConnectionError)(database.query)
    with pytest.raises(LookupError):
        await query("select 1")
    assert database.queries == 2


async def test_an_upstream_error_says_itself_whether_it_may_be_retried() -> None:
    database = Database(UpstreamError("open", host="database"))
    query = retry(create_server(config(**SETTINGS)), "database", on=Exception)(database.query)
    with pytest.raises(UpstreamError):
        await query("select 1")
    assert database.queries == 1


TRANSIENT = UpstreamError("busy", host="database", may_retry=True, retry_after=7.0)


@pytest.mark.parametrize(
    ("group", "queries"),
    [
        (ExceptionGroup("both", [ConnectionError(), TRANSIENT]), 2),
        (ExceptionGroup("outer", [ExceptionGroup("inner", [ConnectionError()])]), 2),
        (ExceptionGroup("both", [ConnectionError(), LookupError()]), 1),
        (ExceptionGroup("both", [ConnectionError(), UpstreamError("open", host="database")]), 1),
        (BaseExceptionGroup("both", [ConnectionError(), SystemExit()]), 1),
    ],
    ids=["all transient", "nested", "another exception", "not to be repeated", "an exit"],
)
async def test_a_group_is_retried_if_all_its_exceptions_allow_it(
    clock: Time, group: BaseExceptionGroup[BaseException], queries: int
) -> None:
    database = Database(group)
    query = retry(create_server(config(**SETTINGS)), "database", on=ConnectionError)(database.query)
    with contextlib.suppress(BaseExceptionGroup):
        await query("select 1")
    assert database.queries == queries
    if TRANSIENT in group.exceptions:
        assert clock.waits[0] >= 7.0


@pytest.mark.parametrize("status", [429, 503])
async def test_a_function_that_posts_is_not_repeated_after_a_status(status: int, api: StandIn) -> None:
    api.behave(respond(status), respond())
    server = create_server(config(**SETTINGS | {"upstream_base_url": api.url}))
    async with server.running() as runtime:

        @retry(server, "orders", on=ConnectionError)
        async def order() -> None:
            await runtime.upstream.request("POST", "/orders")

        with pytest.raises(UpstreamError):
            await order()
    assert len(api.requests) == 1


async def test_no_attempt_of_a_function_starts_after_the_deadline(clock: Time) -> None:
    database = Database(*(ConnectionError() for _ in range(1000)))
    settings = SETTINGS | {"max_retries": 100, "request_timeout_seconds": 0.1}
    query = retry(create_server(config(**settings)), "database", on=ConnectionError)(database.query)
    with pytest.raises(ConnectionError):
        await query("select 1")
    assert sum(clock.waits) < 0.1
    assert 1 < database.queries == len(clock.waits) + 1


async def test_a_function_runs_once_where_retries_are_off() -> None:
    database = Database(ConnectionError())
    query = retry(create_server(config(**SETTINGS, enable_retries=False)), "database", on=ConnectionError)(
        database.query
    )
    with pytest.raises(ConnectionError):
        await query("select 1")
    assert database.queries == 1


async def test_functions_of_one_server_share_the_counter() -> None:
    """Each decorator declares the metric; declaring it again returns the same one."""
    server = create_server(config(**SETTINGS))
    for name in ("database", "queue"):
        database = Database(ConnectionError())
        await retry(server, name, on=ConnectionError)(database.query)("select 1")
    if samples := getattr(server.registry.meter, "samples", None):
        counts = {
            sample.labels["host"]: sample.value for sample in samples() if sample.name == "mcp_upstream_retries_total"
        }
        assert counts == {"database": 1, "queue": 1}
