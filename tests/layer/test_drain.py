"""Drain: a stopping server finishes what runs within the grace time, and rejects what is new."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import threading

import anyio
import httpx2
import pytest

from harness import HEADERS, Serve, has, http_process, modern, text_of, wait_for
from held import TOOLS, Protocol, ServerWithHeldCalls, ToolClient, legacy, open_session
from weather_station.production.sdk import ProductionServer

CALLS = 200
BLOCKED_SECONDS = 600
LONG = 3600.0
"""Grace time in seconds of a server that has nothing to wait for; the harness fails where it waits."""

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal handler")


@posix
@pytest.mark.parametrize("response_mode", ["json", "sse"])
async def test_all_calls_in_flight_get_their_results_and_the_exit_status_is_zero(
    http: httpx2.AsyncClient, response_mode: str
) -> None:
    with http_process(TOOLS, SESSION_MODE="stateless", RESPONSE_MODE=response_mode) as process:
        server = ServerWithHeldCalls(http, process)
        clients = [ToolClient(http, process.url, protocol, "stateless") for protocol in (legacy, modern)]
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call("hold", n)) for call in clients for n in range(CALLS)]
            await server.stop(signal.SIGTERM, len(calls))
            assert (await server.get("/readyz")).json()["failing"] == ["draining"]
            assert (await server.get("/livez")).status_code == 200
            for call in clients:
                rejected = await call("hold")
                assert rejected["isError"]
                assert text_of(rejected).startswith("Server is shutting down.")
            await server.get("/release")
        assert [text_of(call.result()) for call in calls] == [str(n) for n in range(CALLS)] * len(clients)
        assert process.status() == 0
        assert re.findall("<(.*)>", process.log()) == ["opened last, 0 calls", "opened first, 0 calls"]


@posix
async def test_sessions_are_drained_and_a_blocked_thread_does_not_keep_the_process(http: httpx2.AsyncClient) -> None:
    settings = {"SESSION_MODE": "stateful", "RESPONSE_MODE": "sse", "SHUTDOWN_GRACE_SECONDS": 4}
    with http_process(TOOLS, **settings) as process:
        server = ServerWithHeldCalls(http, process)
        call = ToolClient(http, process.url, legacy, "stateful")
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call("hold", n)) for n in range(1, CALLS)]
            blocked = group.create_task(call("block", BLOCKED_SECONDS))
            await server.stop(signal.SIGINT, CALLS)
            await server.get("/release")
        assert [text_of(call.result()) for call in calls] == [str(n) for n in range(1, CALLS)]
        assert text_of(blocked.result()) == "Server is shutting down; the call was stopped before it finished."
        assert process.status() == 0


@pytest.mark.parametrize(
    ("session_mode", "response_mode", "protocol"),
    [
        ("stateless", "json", legacy),
        ("stateless", "json", modern),
        ("stateless", "sse", legacy),
        ("stateless", "sse", modern),
        ("stateful", "json", legacy),
        ("stateful", "sse", legacy),
    ],
)
async def test_a_call_longer_than_the_grace_time_gets_an_error_result(
    serve: Serve, http: httpx2.AsyncClient, session_mode: str, response_mode: str, protocol: Protocol
) -> None:
    started, stopped = threading.Event(), threading.Event()

    def register(server: ProductionServer) -> None:
        async def endless(number: int) -> None:
            started.set()
            try:
                await anyio.sleep_forever()
            finally:
                stopped.set()

        server.tool()(endless)

    with serve(register, session_mode=session_mode, response_mode=response_mode, shutdown_grace_seconds=0.2) as server:
        call = asyncio.create_task(ToolClient(http, server.url, protocol, session_mode)("endless"))
        await anyio.to_thread.run_sync(started.wait)
        server.http.stop()
        result = await call
    assert result["isError"]
    assert text_of(result) == "Server is shutting down; the call was stopped before it finished."
    assert stopped.is_set()


@pytest.mark.parametrize("response_mode", ["json", "sse"])
async def test_a_request_that_is_no_tool_call_gets_its_response(
    serve: Serve, http: httpx2.AsyncClient, response_mode: str
) -> None:
    started, released = threading.Event(), threading.Event()

    def register(server: ProductionServer) -> None:
        async def slow() -> str:
            started.set()
            await anyio.to_thread.run_sync(released.wait)
            return "the whole text"

        server.resource("test://slow")(slow)

    with serve(register, response_mode=response_mode, shutdown_grace_seconds=LONG) as server:
        content, headers = modern("resources/read", {"uri": "test://slow"})
        headers["mcp-name"] = "test://slow"
        reading = asyncio.create_task(http.post(server.url, json=content, headers=headers))
        await anyio.to_thread.run_sync(started.wait)
        server.http.stop()
        await anyio.sleep(0.3)  # three ticks of the server: time enough to cut the response
        released.set()
        assert "the whole text" in (await reading).text


async def test_a_get_stream_ends_with_the_drain(serve: Serve, http: httpx2.AsyncClient) -> None:
    with serve(session_mode="stateful", response_mode="sse", shutdown_grace_seconds=LONG) as server:
        headers = HEADERS | open_session(server.url)
        async with http.stream("GET", server.url, headers=headers) as stream:
            assert stream.status_code == 200
            server.http.stop()
            assert [line async for line in stream.aiter_lines() if line.startswith("data: {")] == []


@pytest.mark.parametrize("response_mode", ["json", "sse"])
async def test_a_subscription_ends_with_the_drain(serve: Serve, http: httpx2.AsyncClient, response_mode: str) -> None:
    with serve(response_mode=response_mode, shutdown_grace_seconds=LONG) as server:
        content, headers = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        async with http.stream("POST", server.url, json=content, headers=headers) as stream:
            assert stream.status_code == 200
            lines = stream.aiter_lines()
            await anext(lines)
            server.http.stop()
            messages = [line.removeprefix("data: ") async for line in lines if line.startswith("data: {")]
            assert "result" in json.loads(messages[-1])


async def test_a_response_that_is_read_slowly_is_complete(serve: Serve, http: httpx2.AsyncClient) -> None:
    size = 20_000_000

    def register(server: ProductionServer) -> None:
        async def large() -> str:
            return "x" * size

        server.tool(structured_output=False)(large)

    with serve(register, **({"max_result_bytes": 0} if has("inbound.result_budget") else {})) as server:
        content = server.request("large")
        async with http.stream("POST", server.url, json=content, headers=HEADERS) as response:
            server.http.stop()
            wait_for(lambda: server.http.should_exit)
            await anyio.sleep(0.2)  # time enough to cut the response
            body = b"".join([chunk async for chunk in response.aiter_bytes()])
    assert len(body) > size
    assert body.endswith(b"}")


def test_an_idle_server_stops_without_waiting(serve: Serve) -> None:
    with serve(shutdown_grace_seconds=LONG) as server:
        server.call("health_check")
