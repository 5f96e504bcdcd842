"""Lifecycle: a server that is told to stop answers what it has begun, says so to balancers, and ends with status 0."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from weather_station.production import app as app_module
from weather_station.production import on_shutdown, on_startup
from weather_station.production.registry import ProductionServer

from harness import (
    HEADERS,
    NO_TLS,
    Process,
    Running,
    command,
    http_process,
    modern,
    result_of,
    started,
    text_of,
    until,
    wait_for,
)

Serve = Callable[..., AbstractContextManager[Running]]
Exchange = tuple[dict[str, Any], dict[str, str]]
"""A message and its headers."""

CALLS = 200
BLOCKED_SECONDS = 600
TOOLS = f"{__name__}:tools"
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")


def legacy(method: str, params: dict[str, Any] | None = None) -> Exchange:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}, HEADERS


def initialize(url: str) -> dict[str, str]:
    """Opens a session and returns the header that belongs to it."""
    client_info = {"name": "test", "version": "1"}
    message, headers = legacy(
        "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client_info}
    )
    with httpx2.Client(trust_env=False, verify=NO_TLS) as client:
        answer = client.post(url, json=message, headers=headers)
        session = {"mcp-session-id": answer.headers["mcp-session-id"]}
        client.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers | session)
    return session


class Caller:
    """Calls tools in one of the protocol versions, in a session where the server has sessions."""

    def __init__(self, client: httpx2.AsyncClient, url: str, protocol: Callable[..., Exchange], session_mode: str):
        self._client = client
        self._url = url
        self._protocol = protocol
        self._session = initialize(url) if session_mode == "stateful" else {}

    async def __call__(self, tool: str, number: int = 1) -> dict[str, Any]:
        message, headers = self._protocol("tools/call", {"name": tool, "arguments": {"number": number}})
        answer = await self._client.post(self._url, json=message | {"id": number}, headers=headers | self._session)
        return result_of(answer)


def tools(server: ProductionServer) -> None:
    """Tools that last until the test says so, and the routes by which it says so."""
    released = asyncio.Event()
    waiting = 0

    async def hold(number: int) -> int:
        nonlocal waiting
        waiting += 1
        try:
            await released.wait()
        finally:
            waiting -= 1
        return number

    def block(number: int) -> int:
        nonlocal waiting
        waiting += 1
        time.sleep(number)
        return number

    async def count(request: Request) -> Response:
        return JSONResponse(waiting)

    async def release(request: Request) -> Response:
        released.set()
        return JSONResponse(None)

    server.tool()(hold)
    server.tool()(block)
    server.registry.routes += [Route("/count", count), Route("/release", release)]
    for name in ("first", "last"):

        async def say(name: str = name) -> None:
            sys.stderr.write(f"<opened {name}, {waiting} calls>\n")

        on_shutdown(server, say)


class Held:
    """A server in a process of its own, with the tools above, that the test holds and lets go."""

    def __init__(self, client: httpx2.AsyncClient, process: Process) -> None:
        self._client = client
        self.process = process

    async def get(self, path: str) -> httpx2.Response:
        return await self._client.get(f"{self.process.base}{path}")

    async def stop(self, number: signal.Signals, calls: int) -> None:
        """Sends the signal once so many calls wait, and returns when the server waits for them."""

        async def all_wait() -> bool:
            return bool((await self.get("/count")).json() == calls)

        async def not_ready() -> bool:
            return (await self.get("/readyz")).status_code == 503 and "draining" in self.process.log()

        await until(all_wait)
        self.process.signal(number)
        await until(not_ready)


@posix
@pytest.mark.parametrize("response_mode", ["json", "sse"])
async def test_all_calls_in_flight_are_answered_and_the_status_is_zero(
    http: httpx2.AsyncClient, response_mode: str
) -> None:
    with http_process(TOOLS, SESSION_MODE="stateless", RESPONSE_MODE=response_mode) as process:
        held = Held(http, process)
        callers = [Caller(http, process.url, protocol, "stateless") for protocol in (legacy, modern)]
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call("hold", n)) for call in callers for n in range(CALLS)]
            await held.stop(signal.SIGTERM, len(calls))
            assert (await held.get("/readyz")).json()["failing"] == ["draining"]
            assert (await held.get("/livez")).status_code == 200
            for call in callers:
                refused = await call("hold")
                assert refused["isError"]
                assert text_of(refused).startswith("Server is shutting down.")
            await held.get("/release")
        assert [text_of(call.result()) for call in calls] == [str(n) for n in range(CALLS)] * len(callers)
        assert process.status() == 0
        assert re.findall("<(.*)>", process.log()) == ["opened last, 0 calls", "opened first, 0 calls"]


@posix
async def test_sessions_drain_too_and_a_blocked_thread_does_not_keep_the_process(http: httpx2.AsyncClient) -> None:
    settings = {"SESSION_MODE": "stateful", "RESPONSE_MODE": "sse", "SHUTDOWN_GRACE_SECONDS": 1.5}
    with http_process(TOOLS, **settings) as process:
        held = Held(http, process)
        call = Caller(http, process.url, legacy, "stateful")
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call("hold", n)) for n in range(1, CALLS)]
            blocked = group.create_task(call("block", BLOCKED_SECONDS))
            await held.stop(signal.SIGINT, CALLS)
            await held.get("/release")
        assert [text_of(call.result()) for call in calls] == [str(n) for n in range(1, CALLS)]
        assert text_of(blocked.result()) == "Server is shutting down; the call was stopped before it finished."
        assert process.status(5) == 0


@posix
async def test_a_second_signal_stops_at_once(http: httpx2.AsyncClient) -> None:
    with http_process(TOOLS) as process:
        blocked = asyncio.create_task(Caller(http, process.url, legacy, "stateless")("block", BLOCKED_SECONDS))
        await Held(http, process).stop(signal.SIGTERM, 1)
        assert _caught(process.process.pid) >= {signal.SIGTERM, signal.SIGINT}
        process.signal(signal.SIGTERM)
        assert process.status(2) == 128 + signal.SIGTERM
        with pytest.raises(httpx2.TransportError):
            await blocked


def _caught(pid: int) -> set[int]:
    """Signals with a handler of the process's own; with PID 1 it gets no others. Known on Linux only."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return set(signal.Signals)
    (mask,) = re.findall(r"SigCgt:\t([0-9a-f]+)", status.read_text())
    return {number for number in signal.Signals if int(mask, 16) >> (number - 1) & 1}


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
    serve: Serve, http: httpx2.AsyncClient, session_mode: str, response_mode: str, protocol: Callable[..., Exchange]
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
        call = asyncio.create_task(Caller(http, server.url, protocol, session_mode)("endless"))
        await anyio.to_thread.run_sync(started.wait)
        server.http.stop()
        result = await call
    assert result["isError"]
    assert text_of(result) == "Server is shutting down; the call was stopped before it finished."
    assert stopped.is_set()


@pytest.mark.parametrize("response_mode", ["json", "sse"])
async def test_a_request_that_is_no_call_is_answered_too(
    serve: Serve, http: httpx2.AsyncClient, response_mode: str
) -> None:
    started, released = threading.Event(), threading.Event()

    def register(server: ProductionServer) -> None:
        async def slow() -> str:
            started.set()
            await anyio.to_thread.run_sync(released.wait)
            return "the whole text"

        server.resource("test://slow")(slow)

    with serve(register, response_mode=response_mode) as server:
        message, headers = modern("resources/read", {"uri": "test://slow"})
        headers["mcp-name"] = "test://slow"
        reading = asyncio.create_task(http.post(server.url, json=message, headers=headers))
        await anyio.to_thread.run_sync(started.wait)
        server.http.stop()
        await anyio.sleep(0.3)  # three ticks of the server: what would be cut, would be cut by now
        released.set()
        assert "the whole text" in (await reading).text


async def test_a_get_stream_ends_with_the_drain(serve: Serve, http: httpx2.AsyncClient) -> None:
    with serve(session_mode="stateful", response_mode="sse") as server:
        headers = HEADERS | initialize(server.url)
        async with http.stream("GET", server.url, headers=headers) as stream:
            assert stream.status_code == 200
            server.http.stop()
            assert [line async for line in stream.aiter_lines() if line.startswith("data: {")] == []


@pytest.mark.parametrize("response_mode", ["json", "sse"])
async def test_a_subscription_ends_with_the_drain(serve: Serve, http: httpx2.AsyncClient, response_mode: str) -> None:
    with serve(response_mode=response_mode) as server:
        message, headers = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        async with http.stream("POST", server.url, json=message, headers=headers) as stream:
            assert stream.status_code == 200
            lines = stream.aiter_lines()
            await anext(lines)
            before = time.monotonic()
            server.http.stop()
            async for _line in lines:
                pass
    assert time.monotonic() - before < 3, "the open stream was waited for"


async def test_an_answer_that_is_read_slowly_is_complete(serve: Serve, http: httpx2.AsyncClient) -> None:
    size = 20_000_000

    def register(server: ProductionServer) -> None:
        async def large() -> str:
            return "x" * size

        server.tool(structured_output=False)(large)

    with serve(register) as server:
        message = server.request("large")
        async with http.stream("POST", server.url, json=message, headers=HEADERS) as answer:
            server.http.stop()
            wait_for(lambda: server.http.should_exit)
            await anyio.sleep(0.2)  # what would be cut, would be cut by now
            body = b"".join([chunk async for chunk in answer.aiter_bytes()])
    assert len(body) > size
    assert body.endswith(b"}")


def test_an_idle_server_stops_at_once(serve: Serve) -> None:
    with serve() as server:
        server.call("health_check")
        before = time.monotonic()
    assert time.monotonic() - before < 2


def hang_at_the_start(server: ProductionServer) -> None:
    async def connect() -> None:
        sys.stderr.write("<hanging>")
        sys.stderr.flush()
        await anyio.sleep_forever()

    on_startup(server, connect)


@posix
@pytest.mark.parametrize(("transport", "status"), [("http", 128 + signal.SIGTERM), ("stdio", 0)])
def test_a_signal_ends_a_start_that_hangs(transport: str, status: int) -> None:
    program = command(f"{__name__}:hang_at_the_start", "--port", "0", "--transport", transport)
    with started(program, subprocess.PIPE, {}) as server:
        wait_for(lambda: "<hanging>" in server.log(), 60)
        server.signal()
        assert server.status(30) == status


def test_servers_in_one_process_stop_one_by_one(serve: Serve) -> None:
    with serve() as lasting:
        with serve() as other:
            other.call("health_check")
        assert not lasting.call("health_check")["isError"]
        assert lasting.client.get(f"{lasting.base}/readyz").status_code == 200


def test_shutdown_callbacks_run_in_reverse_order_whatever_one_of_them_does(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app_module, "SHUTDOWN_CALLBACK_SECONDS", 0.05)
    seen: list[str] = []

    def register(server: ProductionServer) -> None:
        async def open_it() -> None:
            seen.append("opened")

        async def close_it() -> None:
            seen.append("closed")

        async def fail() -> None:
            seen.append("failed")
            raise OSError("connection lost")

        async def hang() -> None:
            seen.append("hung")
            await anyio.sleep_forever()

        on_startup(server, open_it)
        for callback in (close_it, fail, hang):
            on_shutdown(server, callback)

    with serve(register):
        assert seen == ["opened"]
    assert seen == ["opened", "hung", "failed", "closed"]
    log = capfd.readouterr().err
    assert "connection lost" in log
    assert "TimeoutError" in log
