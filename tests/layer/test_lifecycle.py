"""Lifecycle: signals, and the callbacks of start and shutdown."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx2
import pytest
from structlog.testing import capture_logs

from harness import (
    HEADERS,
    INITIALIZE,
    NO_TLS,
    command,
    config,
    http_process,
    message,
    result_of,
    started,
    stdio_process,
    text_of,
    wait_for,
)
from held import TOOLS, ServerWithHeldCalls, ToolClient, legacy
from weather_station.production import on_shutdown, on_startup, sdk
from weather_station.production.config import StartError
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

BLOCKED_SECONDS = 600
LONG = 3600.0
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal handler")


@posix
async def test_a_second_signal_ends_the_process_at_once(http: httpx2.AsyncClient) -> None:
    with http_process(TOOLS, SHUTDOWN_GRACE_SECONDS=LONG) as process:
        blocked = asyncio.create_task(ToolClient(http, process.url, legacy, "stateless")("block", BLOCKED_SECONDS))
        await ServerWithHeldCalls(http, process).stop(signal.SIGTERM, 1)
        assert _caught(process.process.pid) >= {signal.SIGTERM, signal.SIGINT}
        process.signal(signal.SIGTERM)
        assert process.status() == 128 + signal.SIGTERM
        with pytest.raises(httpx2.TransportError):
            await blocked


def _caught(pid: int) -> set[int]:
    """Return the signals that the process handles; with PID 1 it gets no others. Known on Linux only."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return set(signal.Signals)
    (mask,) = re.findall(r"SigCgt:\t([0-9a-f]+)", status.read_text())
    return {number for number in signal.Signals if int(mask, 16) >> (number - 1) & 1}


def hang_at_the_start(server: ProductionServer) -> None:
    async def connect() -> None:
        sys.stderr.write("<hanging>")
        sys.stderr.flush()
        await anyio.sleep_forever()

    on_startup(server, connect)


@posix
@pytest.mark.parametrize(("transport", "status"), [("http", 128 + signal.SIGTERM), ("stdio", 0)])
def test_a_signal_ends_a_startup_callback_that_hangs(transport: str, status: int) -> None:
    program = command(f"{__name__}:hang_at_the_start", "--port", "0", "--transport", transport)
    with started(program, subprocess.PIPE, {}) as server:
        wait_for(lambda: "<hanging>" in server.log())
        server.signal()
        assert server.status() == status


async def test_shutdown_callbacks_run_in_reverse_order_even_if_one_fails_or_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sdk, "SHUTDOWN_CALLBACK_SECONDS", 0.05)
    seen: list[str] = []

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

    server = create_server(config())
    on_startup(server, open_it)
    for callback in (close_it, fail, hang):
        on_shutdown(server, callback)
    with capture_logs() as log:
        async with server.running():
            assert seen == ["opened"]
    assert seen == ["opened", "hung", "failed", "closed"]
    entries = [entry for entry in log if entry["event"] == "shutdown callback failed"]
    assert [type(entry["exc_info"]) for entry in entries] == [TimeoutError, OSError]
    assert entries[1]["callback"].endswith("fail")


async def test_the_errors_of_a_task_group_in_a_callback_are_named() -> None:
    async def reject(error: Exception) -> None:
        raise error

    async def fail() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reject(ConnectionError("no database")))
            group.create_task(reject(LookupError("no key")))

    server = create_server(config())
    on_startup(server, fail)
    with pytest.raises(StartError, match=r"fail failed with ConnectionError: no database; LookupError: no key$"):
        async with server.running():
            pytest.fail("the server started")


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()], ids=repr)
async def test_a_callback_may_raise_anything(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    name = type(error).__name__
    starting = create_server(config())
    on_startup(starting, fail)
    with pytest.raises(StartError, match=rf"^cannot start: \S+fail failed with {name}"):
        async with starting.running():
            pytest.fail("the server started")
    stopping = create_server(config())
    on_shutdown(stopping, fail)
    with capture_logs() as log:
        async with stopping.running():
            pass
    assert [type(entry["exc_info"]) for entry in log if "callback" in entry] == [type(error)]


def exit_in_a_task(server: ProductionServer) -> None:
    @server.tool()
    async def together() -> str:
        async def leave() -> None:
            await asyncio.sleep(0)
            sys.exit(3)

        await asyncio.gather(leave(), asyncio.sleep(0.01))
        return "done"

    @server.tool()
    async def behind() -> str:
        async def leave() -> None:
            sys.exit(3)

        tasks = [asyncio.create_task(leave())]
        await asyncio.wait(tasks)
        return "done"


def test_a_task_of_a_tool_that_exits_does_not_end_the_process() -> None:
    with http_process(f"{__name__}:exit_in_a_task") as process, httpx2.Client(trust_env=False, verify=NO_TLS) as client:
        for tool, text in (("together", "an unexpected error occurred"), ("behind", "done")) * 2:
            content = message("tools/call", {"name": tool})
            response = client.post(process.url, json=content, headers=HEADERS)
            assert text in text_of(result_of(response))
        process.signal()
        assert process.status() == 0


def test_a_task_of_a_tool_that_exits_does_not_end_the_process_over_stdio() -> None:
    with stdio_process(f"{__name__}:exit_in_a_task") as process:
        process.send(INITIALIZE, {"method": "notifications/initialized"})
        process.receive()
        for number, (tool, text) in enumerate((("together", "an unexpected error occurred"), ("behind", "done")) * 2):
            process.send(message("tools/call", {"name": tool}, number=number))
            assert text in process.receive().decode()
        process.close_stdin()
        assert process.status() == 0


async def test_a_startup_callback_that_fails_stops_the_start_and_shuts_down_what_was_opened() -> None:
    seen: list[str] = []

    async def open_it() -> None:
        seen.append("opened")

    async def close_it() -> None:
        seen.append("closed")

    async def fail() -> None:
        raise ConnectionError("no database at db:5432")

    server = create_server(config())
    on_startup(server, open_it)
    on_startup(server, fail)
    on_shutdown(server, close_it)
    with pytest.raises(
        StartError, match=r"^cannot start: \S+fail failed with ConnectionError: no database at db:5432$"
    ):
        async with server.running():
            pytest.fail("the server started")
    assert seen == ["opened", "closed"]
    assert server.registry.running == []
