"""stdio: stdout carries the protocol's lines and nothing else, and what was asked is answered before the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import anyio
import pytest
from mcp_types import jsonrpc_message_adapter

from weather_station.production import on_shutdown
from weather_station.production.registry import ProductionServer

from harness import Process, command, started, stdio_process, wait_for

TOOLS = f"{__name__}:tools"
NOISE = "this is no protocol"


def tools(server: ProductionServer) -> None:
    """Tools that do all they should not, registered with as much noise."""
    _make_noise()
    waiting = 0

    async def noisy() -> str:
        _make_noise()
        return "done"

    async def noisy_child() -> str:
        await anyio.run_process([sys.executable, "-c", f"print('{NOISE}')"], stdout=None, stderr=None)
        return "done"

    async def read_stdin() -> str:
        return repr(os.read(0, 1))

    async def wait(seconds: float, loud: bool = False) -> str:
        nonlocal waiting
        waiting += 1
        if loud:
            sys.stderr.write(f"<{waiting} calls>\n")
        await anyio.sleep(seconds)
        return "done"

    async def slow() -> str:
        await anyio.sleep(0.3)
        return "the whole text"

    async def long() -> str:
        return "x" * 1_000_000

    server.resource("test://slow")(slow)
    for tool in (noisy, noisy_child, read_stdin, wait, long):
        server.tool()(tool)
    for name in ("first", "last"):

        async def say(name: str = name) -> None:
            sys.stderr.write(f"<opened {name}>\n")

        on_shutdown(server, say)


def _make_noise() -> None:
    print(NOISE)  # noqa: T201 (the noise)
    sys.stdout.flush()
    os.write(1, f"{NOISE}\n".encode())


INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")


def call(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return {"id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def open_session(server: Process) -> None:
    server.send({"id": 0, "method": "initialize", "params": INITIALIZE})
    assert answer(server.receive(60))["id"] == 0
    server.send({"method": "notifications/initialized"})


def answer(line: bytes) -> dict[str, Any]:
    """The message in one line of stdout, which has to be a line of the protocol, byte for byte."""
    assert line.endswith(b"}\n"), line
    assert line.count(b"\n") == 1
    assert not line.startswith((b" ", b"\n"))
    jsonrpc_message_adapter.validate_json(line, by_name=False)
    message: dict[str, Any] = json.loads(line)
    assert message["jsonrpc"] == "2.0"
    return message


def answers(server: Process, count: int) -> dict[int, str]:
    """The texts of the next `count` answers, by id."""
    messages = [answer(server.receive()) for _ in range(count)]
    return {message["id"]: message["result"]["content"][0]["text"] for message in messages}


def test_nothing_but_the_protocol_reaches_stdout_and_the_end_of_stdin_ends_the_server() -> None:
    """With a log that nobody reads, where the logging feature is there: a plain log is written by who calls it."""
    logging = find_spec("weather_station.production.logging")
    unread = logging is not None and sys.platform != "win32"
    with stdio_process(TOOLS, unread_log=unread, LOG_LEVEL="DEBUG") as server:
        open_session(server)
        server.send(call(1, "noisy"), call(2, "noisy_child"), call(3, "read_stdin"), call(4, "health_check"))
        texts = answers(server, 4)
        assert (texts[1], texts[2], texts[3]) == ("done", "done", "b''")
        assert '"status"' in texts[4]
        if unread:
            many = range(10, 510)
            for number in many:
                server.send(call(number, "health_check"))
            assert answers(server, len(many)).keys() == set(many)
        server.send(call(5, "wait", seconds=0.1))
        server.send({"id": 6, "method": "resources/read", "params": {"uri": "test://slow"}})
        server.close_stdin()
        assert answers(server, 1) == {5: "done"}, "a call that was made before the end is answered"
        assert b"the whole text" in server.receive(), "and so is a request that is no call"
        unread_log = server.log() if unread else ""
        assert server.receive() == b""
        assert server.status() == 0
        log = unread_log or server.log()
    assert log.count(NOISE) == 5, "on stderr nothing is lost"
    assert log.index("<opened last>") < log.index("<opened first>")
    assert len(log) > 65536 or not unread, "the pipe was not full"


@posix
def test_a_client_that_no_longer_reads_does_not_keep_the_server() -> None:
    program = command(TOOLS, "--transport", "stdio")
    with started(program, subprocess.PIPE, {"SHUTDOWN_GRACE_SECONDS": 1}) as server:  # its stdout is read by nobody
        server.send({"id": 0, "method": "initialize", "params": INITIALIZE})
        server.send({"method": "notifications/initialized"}, call(1, "long"), call(2, "wait", seconds=0, loud=True))
        wait_for(lambda: "<1 calls>" in server.log(), 60)
        server.signal(signal.SIGTERM)
        assert server.status(60) == 0


@posix
def test_a_signal_lets_the_calls_in_flight_be_answered() -> None:
    with stdio_process(TOOLS) as server:
        open_session(server)
        server.send(*(call(number, "wait", seconds=0.7, loud=True) for number in range(1, 6)))
        wait_for(lambda: "<5 calls>" in server.log())
        server.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log())
        server.send(call(6, "wait", seconds=60))
        texts = answers(server, 6)
        assert texts.pop(6).startswith("Server is shutting down.")
        assert texts == dict.fromkeys(range(1, 6), "done")
        assert server.status() == 0
        assert server.log().index("<opened last>") < server.log().index("<opened first>")
