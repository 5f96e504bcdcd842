"""Plain functions that outlive their call."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from mcp import Client

from harness import DEADLINE_SECONDS, HAS_METRICS, Running, Serve, config, has, message, wait_for
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

LIMIT = 4
SHARE = 1 if has("upstream.shares") else LIMIT
"""Threads of one caller: a quarter, or all where callers have no shares."""

HAS_CALLERS = has("upstream.shares") and has("inbound.identity")


class Gate:
    """Functions that wait until the test ends, and the number of those that run."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.entered = 0
        self.left = 0

    def wait(self) -> str:
        self.entered += 1
        self.release.wait(DEADLINE_SECONDS)
        self.left += 1
        return "done"

    def register(self, server: ProductionServer) -> None:
        def wait() -> str:
            return self.wait()

        def wait_for_part(part: str) -> str:
            return self.wait()

        async def quick() -> str:
            return "quick"

        server.tool()(wait)
        server.tool()(quick)
        server.resource("test://wait")(wait)
        server.resource("test://wait/{part}")(wait_for_part)
        server.prompt()(wait)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.release.set()


CALLS: dict[str, dict[str, Any]] = {
    "tool": message("tools/call", {"name": "wait", "arguments": {}}),
    "resource": message("resources/read", {"uri": "test://wait"}),
    "template": message("resources/read", {"uri": "test://wait/a"}),
    "prompt": message("prompts/get", {"name": "wait"}),
}


def stuck(server: Running) -> float | None:
    return server.metrics().value("mcp_tool_threads_stuck")


def post(server: Running, kind: str, caller: int = 0) -> str:
    """Send a call as the caller with this number; where the project has no identities, all are one."""
    return server.post(CALLS[kind], x_forwarded_for=f"192.0.2.{caller}").text


@pytest.mark.parametrize("kind", CALLS)
def test_functions_that_outlive_their_timeout_keep_their_threads(kind: str, gate: Gate, serve: Serve) -> None:
    with serve(gate.register, max_tool_threads=LIMIT, tool_timeout_seconds=0.2, trusted_proxies="127.0.0.1") as server:
        held = 0
        for caller in range(LIMIT if HAS_CALLERS else 1):
            for _ in range(SHARE):
                assert "0.2 seconds" in post(server, kind, caller)
                held += 1
            for other in CALLS:
                assert "a caller's share of MAX_TOOL_THREADS" in post(server, other, caller) or held == LIMIT
        assert gate.entered == held
        assert stuck(server) == (held if HAS_METRICS else None)
        for other in CALLS:
            for caller in range(20 if HAS_CALLERS else 1):
                assert "MAX_TOOL_THREADS" in post(server, other, caller)
        assert gate.entered == held
        assert server.call("quick")["structuredContent"] == {"result": "quick"}
        gate.release.set()
        wait_for(lambda: gate.left == held)
        wait_for(lambda: stuck(server) == (0 if HAS_METRICS else None))
        assert "done" in post(server, kind)


@pytest.mark.needs("upstream.shares", "inbound.identity")
@pytest.mark.parametrize("ended", [True, False], ids=["stuck", "in use"])
@pytest.mark.parametrize("limit", [4, 5, 8])
def test_one_caller_takes_a_quarter_of_the_threads(limit: int, gate: Gate, serve: Serve, *, ended: bool) -> None:
    settings: dict[str, Any] = {"tool_timeout_seconds": 0.2} if ended else {}
    with (
        serve(gate.register, max_tool_threads=limit, trusted_proxies="127.0.0.1", **settings) as server,
        ThreadPoolExecutor(2 * limit + 4) as pool,
    ):
        greedy = [pool.submit(post, server, kind, 1) for kind in CALLS for _ in range(limit // 2)]
        wait_for(lambda: gate.entered == limit // 4)
        if ended:
            assert all("done" not in call.result() for call in greedy)
        others = [pool.submit(post, server, "tool", caller) for caller in (2, 3, 4)]
        wait_for(lambda: gate.entered == limit // 4 + 3)
        gate.release.set()
        assert all("done" in call.result() for call in (others if not ended else []))
        wait_for(lambda: "done" in post(server, "tool", 1))


def test_over_stdio_the_only_caller_uses_all_threads(gate: Gate) -> None:
    server = create_server(config(max_tool_threads=LIMIT))
    gate.register(server)

    async def main() -> None:
        async with Client(server) as client, asyncio.TaskGroup() as calls:
            for _ in range(LIMIT):
                calls.create_task(client.call_tool("wait", {}))
            await asyncio.to_thread(wait_for, lambda: gate.entered == LIMIT)
            gate.release.set()

    asyncio.run(asyncio.wait_for(main(), DEADLINE_SECONDS))
    assert gate.left == LIMIT


def test_a_call_waits_for_a_thread_that_is_in_use(gate: Gate, serve: Serve) -> None:
    with serve(gate.register, max_tool_threads=LIMIT) as server, ThreadPoolExecutor(2 * LIMIT) as pool:
        calls = [pool.submit(post, server, "tool") for _ in range(2 * LIMIT)]
        wait_for(lambda: gate.entered == SHARE)
        assert server.call("quick")["structuredContent"] == {"result": "quick"}
        assert gate.entered == SHARE
        gate.release.set()
        assert all("done" in call.result() for call in calls)
        assert gate.left == 2 * LIMIT


def test_a_call_that_was_stopped_while_it_waited_never_runs(gate: Gate, serve: Serve) -> None:
    with serve(gate.register, max_tool_threads=LIMIT, tool_timeout_seconds=0.5) as server:
        with ThreadPoolExecutor(2 * LIMIT) as pool:
            calls = [pool.submit(post, server, "tool") for _ in range(2 * LIMIT)]
            assert all("0.5 seconds" in call.result() for call in calls)
        assert gate.entered == SHARE
        gate.release.set()
        wait_for(lambda: gate.left == SHARE)
        assert "done" in post(server, "tool")
        assert gate.left == SHARE + 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_function_that_fails_frees_its_thread(error: type[BaseException], serve: Serve) -> None:
    def fail() -> str:
        raise error("a mistake")

    with serve(lambda server: server.tool()(fail), max_tool_threads=1) as server:
        for _ in range(3):
            assert server.call("fail")["isError"]
