"""What one caller may hold: requests, streams, sessions and bodies."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import (
    DEADLINE_SECONDS,
    HAS_METRICS,
    HEADERS,
    INITIALIZE,
    NO_TLS,
    Running,
    Serve,
    config,
    has,
    modern,
    running,
    wait_for,
)
from raw_http import Raw, error_of, post_head
from weather_station.production.inbound.caller_limits import MAX_BODIES
from weather_station.production.sdk import ProductionServer

PROXY: dict[str, Any] = {"trusted_proxies": "127.0.0.1", "auth": "none"}
"""The client address is that of X-Forwarded-For."""

LISTEN = {"notifications": {"toolsListChanged": True}}

Hold = Callable[[httpx2.Client, Running, dict[str, str]], contextlib.AbstractContextManager[httpx2.Response]]


def address(number: int) -> dict[str, str]:
    return {"x-forwarded-for": f"192.0.2.{number}"} if has("inbound.identity") else {}


def listen(client: httpx2.Client, server: Running, headers: dict[str, str]) -> Any:
    message, own = modern("subscriptions/listen", LISTEN)
    return client.stream("POST", server.url, json=message, headers=own | headers)


@contextlib.contextmanager
def open_session(client: httpx2.Client, server: Running, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    response = client.post(server.url, json=INITIALIZE, headers=HEADERS | headers)
    yield response
    if response.status_code == 200:
        session = {"mcp-session-id": response.headers["mcp-session-id"]}
        assert client.delete(server.url, headers=HEADERS | headers | session).status_code == 200


@pytest.mark.parametrize(
    ("setting", "hold", "mode"),
    [("MAX_STREAMS_PER_CALLER", listen, "stateless"), ("MAX_SESSIONS_PER_CALLER", open_session, "stateful")],
)
def test_one_caller_holds_so_many_and_leaves_the_rest_to_others(
    setting: str, hold: Hold, mode: str, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting, "3")
    with (
        serve(session_mode=mode, **PROXY) as server,
        httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client,
    ):
        for _ in range(2):  # what has ended is free again
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    wait_for(lambda: stack.enter_context(hold(client, server, address(1))).status_code == 200)
                with hold(client, server, address(1)) as rejected:
                    rejected.read()
                    assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "5")
                    assert setting in error_of(rejected)
                if has("inbound.identity"):
                    with hold(client, server, address(2)) as other:
                        assert other.status_code == 200
        count = server.metrics().value("mcp_http_rejections_total", reason="limited")
        assert count is not None and count >= 2 if HAS_METRICS else count is None


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MAX_STREAMS_PER_CALLER", "2")
        with running(config(**PROXY)) as server:
            yield server


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 3) if has("inbound.identity") else st.just(1), st.booleans()), max_size=12))
def test_whatever_callers_open_and_close_each_has_its_own_number(
    shared: Running, steps: list[tuple[int, bool]]
) -> None:
    with (
        httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client,
        contextlib.ExitStack() as stack,
    ):
        held: dict[int, list[contextlib.ExitStack]] = {1: [], 2: [], 3: []}
        for caller, opens in steps:
            if not opens:
                if held[caller]:
                    held[caller].pop().close()
            elif len(held[caller]) == 2:
                with listen(client, shared, address(caller)) as rejected:
                    assert rejected.status_code == 429
            else:
                stream = stack.enter_context(contextlib.ExitStack())

                def is_open(stream: contextlib.ExitStack = stream, caller: int = caller) -> bool:
                    stream.close()  # of a rejected attempt: the end of another stream had not arrived
                    return bool(stream.enter_context(listen(client, shared, address(caller))).status_code == 200)

                wait_for(is_open)
                held[caller].append(stream)


def test_requests_at_once_are_limited_for_each_caller(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_REQUESTS_PER_CALLER", "3")
    release, running = threading.Event(), threading.Semaphore(0)

    def register(server: ProductionServer) -> None:
        async def wait() -> str:
            running.release()
            await anyio.to_thread.run_sync(release.wait)
            return "done"

        server.tool()(wait)

    with serve(register, **PROXY) as server, ThreadPoolExecutor(3) as pool:

        def call(caller: int) -> httpx2.Response:
            with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:
                return client.post(server.url, json=server.request("wait"), headers=HEADERS | address(caller))

        calls = [pool.submit(call, 1) for _ in range(3)]
        for _ in calls:
            assert running.acquire(timeout=DEADLINE_SECONDS)
        rejected = call(1)
        assert rejected.status_code == 429
        assert "MAX_REQUESTS_PER_CALLER" in error_of(rejected)
        release.set()
        assert [each.result().status_code for each in calls] == [200] * 3
        assert call(1).status_code == 200


def test_bodies_that_are_being_sent_are_limited_together(serve: Serve) -> None:
    size = 4096
    with serve(max_request_bytes=size, **PROXY) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Raw(server.base)) for _ in range(MAX_BODIES + 2)]
        for connection in connections:
            connection.send(post_head("/mcp", size, **address(1)), b" " * (size - 1))
        rejected = next(connection for connection in connections[::-1])
        status, body = rejected.response()
        assert status == 429
        assert "MAX_REQUEST_BYTES" in json.loads(body)["error"]["message"]
