"""Plain functions that outlive their call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from harness import DEADLINE_SECONDS, HAS_METRICS, Running, Serve, message, wait_for
from weather_station.production.sdk import ProductionServer

LIMIT = 3


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


@pytest.mark.parametrize("kind", CALLS)
def test_functions_that_outlive_their_timeout_keep_their_threads(kind: str, gate: Gate, serve: Serve) -> None:
    with serve(gate.register, max_tool_threads=LIMIT, tool_timeout_seconds=0.2) as server:
        for _ in range(LIMIT):
            assert "0.2 seconds" in server.post(CALLS[kind]).text
        assert gate.entered == LIMIT
        assert stuck(server) == (LIMIT if HAS_METRICS else None)
        for _ in range(20):
            for other in CALLS.values():
                assert "MAX_TOOL_THREADS" in server.post(other).text
        assert gate.entered == LIMIT
        assert server.call("quick")["structuredContent"] == {"result": "quick"}
        gate.release.set()
        wait_for(lambda: gate.left == LIMIT)
        wait_for(lambda: stuck(server) == (0 if HAS_METRICS else None))
        assert "done" in server.post(CALLS[kind]).text


def test_a_call_waits_for_a_thread_that_is_in_use(gate: Gate, serve: Serve) -> None:
    with serve(gate.register, max_tool_threads=LIMIT) as server, ThreadPoolExecutor(2 * LIMIT) as pool:
        calls = [pool.submit(server.post, CALLS["tool"]) for _ in range(2 * LIMIT)]
        wait_for(lambda: gate.entered == LIMIT)
        assert server.call("quick")["structuredContent"] == {"result": "quick"}
        assert gate.entered == LIMIT
        gate.release.set()
        assert all("done" in call.result().text for call in calls)
        assert gate.left == 2 * LIMIT


def test_a_call_that_was_stopped_while_it_waited_never_runs(gate: Gate, serve: Serve) -> None:
    with serve(gate.register, max_tool_threads=LIMIT, tool_timeout_seconds=0.5) as server:
        with ThreadPoolExecutor(2 * LIMIT) as pool:
            calls = [pool.submit(server.post, CALLS["tool"]) for _ in range(2 * LIMIT)]
            assert all("0.5 seconds" in call.result().text for call in calls)
        assert gate.entered == LIMIT
        gate.release.set()
        wait_for(lambda: gate.left == LIMIT)
        assert "done" in server.post(CALLS["tool"]).text
        assert gate.left == LIMIT + 1


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_function_that_fails_frees_its_thread(error: type[BaseException], serve: Serve) -> None:
    def fail() -> str:
        raise error("a mistake")

    with serve(lambda server: server.tool()(fail), max_tool_threads=1) as server:
        for _ in range(3):
            assert server.call("fail")["isError"]
