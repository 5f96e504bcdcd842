"""stdio: stdout has the lines of the protocol only, and every request gets its response before the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp_types import jsonrpc_message_adapter

from harness import HAS_LOGGING, INITIALIZE, Process, command, started, stdio_process, wait_for
from weather_station.production import on_shutdown
from weather_station.production.sdk import ProductionServer

TOOLS = f"{__name__}:tools"
NOISE = "this is no protocol"


def tools(server: ProductionServer) -> None:
    """Register tools that write to stdout, and write to it while doing so."""
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

    async def wait(seconds: float) -> str:
        await anyio.sleep(seconds)
        return "done"

    async def hold(until: str) -> str:
        nonlocal waiting
        waiting += 1
        sys.stderr.write(f"<{waiting} calls>\n")
        await anyio.to_thread.run_sync(wait_for, Path(until).exists)
        return "done"

    async def slow() -> str:
        await anyio.sleep(0.3)
        return "the whole text"

    async def long() -> str:
        return "x" * 1_000_000

    def block(until: str) -> str:
        wait_for(Path(until).exists)
        return "done"

    server.tool()(block)
    server.resource("test://slow")(slow)
    for tool in (noisy, noisy_child, read_stdin, wait, hold, long):
        server.tool()(tool)
    for name in ("first", "last"):

        async def write(name: str = name) -> None:
            sys.stderr.write(f"<opened {name}>\n")

        on_shutdown(server, write)


def _make_noise() -> None:
    print(NOISE)  # noqa: T201 (the noise)
    sys.stdout.flush()
    os.write(1, f"{NOISE}\n".encode())


posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")


def call(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    return {"id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def open_session(server: Process) -> None:
    server.send(INITIALIZE)
    assert parse(server.receive())["id"] == 0
    server.send({"method": "notifications/initialized"})


def parse(line: bytes) -> dict[str, Any]:
    """Return the message in one line of stdout, which has to be a line of the protocol, byte for byte."""
    assert line.endswith(b"}\n"), line
    assert line.count(b"\n") == 1
    assert not line.startswith((b" ", b"\n"))
    jsonrpc_message_adapter.validate_json(line, by_name=False)
    message: dict[str, Any] = json.loads(line)
    assert message["jsonrpc"] == "2.0"
    return message


def responses(server: Process, count: int) -> dict[int, str]:
    """Return the texts of the next `count` responses, by id."""
    messages = [parse(server.receive()) for _ in range(count)]
    return {message["id"]: message["result"]["content"][0]["text"] for message in messages}


def test_stdout_has_only_the_protocol_and_the_end_of_stdin_ends_the_server() -> None:
    """Where the project has the logging feature nobody reads the log: a plain log blocks its writer."""
    unread = HAS_LOGGING and sys.platform != "win32"
    with stdio_process(TOOLS, unread_log=unread, LOG_LEVEL="DEBUG") as server:
        open_session(server)
        server.send(call(1, "noisy"), call(2, "noisy_child"), call(3, "read_stdin"), call(4, "health_check"))
        texts = responses(server, 4)
        assert (texts[1], texts[2], texts[3]) == ("done", "done", "b''")
        assert '"status"' in texts[4]
        if unread:
            many = range(10, 510)
            for number in many:
                server.send(call(number, "health_check"))
            assert responses(server, len(many)).keys() == set(many)
        server.send(call(5, "wait", seconds=0.1))
        server.send({"id": 6, "method": "resources/read", "params": {"uri": "test://slow"}})
        server.close_stdin()
        assert responses(server, 1) == {5: "done"}, "a call made before the end of stdin gets its response"
        assert b"the whole text" in server.receive(), "so does any other request"
        unread_log = server.log() if unread else ""
        assert server.receive() == b""
        assert server.status() == 0
        log = unread_log or server.log()
    assert log.count(NOISE) == 5, "nothing is lost on stderr"
    assert log.index("<opened last>") < log.index("<opened first>")
    assert len(log) > 65536 or not unread, "the pipe was not full"


@posix
def test_a_client_that_stops_reading_does_not_keep_the_process() -> None:
    program = command(TOOLS, "--transport", "stdio")
    with started(program, subprocess.PIPE, {"SHUTDOWN_GRACE_SECONDS": 1}) as server:  # nobody reads its stdout
        server.send(INITIALIZE)
        server.send({"method": "notifications/initialized"}, call(1, "long"), call(2, "hold", until=os.devnull))
        wait_for(lambda: "<1 calls>" in server.log())
        server.signal(signal.SIGTERM)
        assert server.status() == 0


@posix
def test_calls_in_flight_get_their_results_after_a_signal(tmp_path: Path) -> None:
    release = tmp_path / "release"
    with stdio_process(TOOLS) as server:
        open_session(server)
        server.send(*(call(number, "hold", until=str(release)) for number in range(1, 6)))
        wait_for(lambda: "<5 calls>" in server.log())
        server.signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.log())
        server.send(call(6, "hold", until=str(release)))
        (rejected,) = responses(server, 1).items()
        assert rejected[0] == 6
        assert rejected[1].startswith("Server is shutting down.")
        release.touch()
        assert responses(server, 5) == dict.fromkeys(range(1, 6), "done")
        assert server.status() == 0
        assert server.log().index("<opened last>") < server.log().index("<opened first>")


LIMIT = 4096
X = b"x" * LIMIT
UNREADABLE: dict[str, tuple[bytes, list[int | str | None]]] = {
    "half an emoji": (b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"\\ud83d"}}', [7]),
    "the other half in a name": (b'{"jsonrpc":"2.0","id":"a","method":"x","params":{"\\ude00":1}}', ["a"]),
    "half an emoji as the id": (b'{"jsonrpc":"2.0","id":"\\ud83d","method":"ping"}', ["\ud83d"]),
    "a batch": (b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":"b","method":"ping"}]', [1, "b"]),
    "a batch of notifications": (b'[{"jsonrpc":"2.0","method":"notifications/x"}, 7, []]', []),
    "no JSON": (b"SECRET", []),
    "half of a message": (b'{"jsonrpc":"2.0","id":3,"method":', []),
    "no object": (b'"SECRET"', []),
    "no JSON-RPC": (b'{"id":4,"method":"ping"}', [4]),
    "no parameters but a list": (b'{"jsonrpc":"2.0","id":4,"method":"ping","params":[1]}', [4]),
    "bytes that are not UTF-8": (b'{"jsonrpc":"2.0","id":5,"method":"ping","params":{"x":"\xff\xfe"}}', [5]),
    "such bytes in the id": (b'{"jsonrpc":"2.0","id":"\xff","method":"ping"}', [None]),
    "deeper than can be read": (b'{"jsonrpc":"2.0","id":6,"method":"ping","params":' + b"[" * 4000, []),
    "an id that is a fraction": (b'{"jsonrpc":"2.0","id":1.0,"method":"ping"}', [None]),
    "an id that is null": (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', [None]),
    "an id that is true": (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', [None]),
    "an id that is an object": (b'{"jsonrpc":"2.0","id":{"id":1},"method":"ping"}', [None]),
    "too long, the id first": (
        b'{"jsonrpc":"2.0","id":8,"method":"x","params":{"id":9,"x":"%s"}}' % X,
        [8],
    ),
    "too long, the id last": (b'{"method":"x","params":{"x":"%s","id":9},"id":"z"}' % (9 * X), ["z"]),
    "too long, the id in between": (b'{"a":"%s","id":1,"b":"%s"}' % (X, X), []),
    "too long, an id inside": (b'{"params":{"x":"%s","id":9}}' % X, []),
}


def test_a_line_that_cannot_be_read_is_logged_without_its_text_and_answered_by_its_id() -> None:
    with stdio_process(TOOLS, MAX_REQUEST_BYTES=LIMIT) as server:
        open_session(server)
        stdin = server.process.stdin
        assert stdin is not None
        for count, (name, (line, ids)) in enumerate(UNREADABLE.items(), 1):
            stdin.write(line + b"\n\n")
            stdin.flush()
            answers = [json.loads(server.receive()) for _ in ids]
            assert [answer["id"] for answer in answers] == ids, name
            assert all(answer["error"]["code"] == -32600 for answer in answers), name
            server.send(call(100 + count, "noisy"))
            assert responses(server, 1) == {100 + count: "done"}, name
            assert server.log().count("a line of stdin was rejected") == count, name
        server.close_stdin()
        assert server.status() == 0
        assert not any(text in server.log() for text in ("SECRET", "xxxx", "ud83d", "Traceback"))


def test_a_byte_order_mark_is_ignored() -> None:
    with stdio_process(TOOLS) as server:
        stdin = server.process.stdin
        assert stdin is not None
        stdin.write(b"\xef\xbb\xbf")  # before the first line, as a pipe of PowerShell does
        open_session(server)
        for number in (1, 2):
            stdin.write(b"\xef\xbb\xbf" * (number - 1))
            server.send(call(number, "noisy"))
            assert responses(server, 1) == {number: "done"}
        assert "a line of stdin was rejected" not in server.log()


def test_a_line_of_the_greatest_length_is_read() -> None:
    with stdio_process(TOOLS, MAX_REQUEST_BYTES=LIMIT) as server:
        open_session(server)
        stdin = server.process.stdin
        assert stdin is not None
        for end in (b"\n", b"\r\n"):
            line = json.dumps({"jsonrpc": "2.0"} | call(1, "noisy")).encode()
            stdin.write(line[:-1] + b" " * (LIMIT - len(line)) + b"}" + end)
            stdin.flush()
            assert responses(server, 1) == {1: "done"}


def test_calls_that_block_their_thread_do_not_block_the_answers_of_others(tmp_path: Path) -> None:
    with stdio_process(TOOLS) as server:
        open_session(server)
        end = tmp_path / "end"
        blocked = range(1, 61)
        server.send(*(call(number, "block", until=str(end)) for number in blocked))
        for number in range(100, 110):
            server.send(call(number, "noisy"))
            assert responses(server, 1) == {number: "done"}
        end.touch()
        assert responses(server, len(blocked)).keys() == set(blocked)


@posix
@pytest.mark.parametrize(("sent", "named"), [(1, "1"), ("1", 1), ("01", 1), ("a", "a")])
def test_a_cancelled_request_does_not_hold_the_drain(sent: int | str, named: int | str) -> None:
    with stdio_process(TOOLS, SHUTDOWN_GRACE_SECONDS=3600) as server:
        open_session(server)
        server.send(call(0, "wait", seconds=3600) | {"id": sent})
        server.send({"method": "notifications/cancelled", "params": {"requestId": named}})
        server.send(call(2, "noisy"))
        assert responses(server, 1) == {2: "done"}
        server.signal()
        assert server.status() == 0


@posix
@pytest.mark.parametrize(
    "closed", ["<&- >&-", *(pytest.param(each, marks=pytest.mark.release) for each in ("<&-", ">&-"))]
)
def test_a_closed_stream_is_one_line(closed: str, tmp_path: Path) -> None:
    shell = ["sh", "-c", f'"$@" {closed} 2>"$0"', str(tmp_path / "log"), *command(TOOLS, "--transport", "stdio")]
    with started(shell, subprocess.PIPE, {"LOG_FORMAT": "console"}) as server:
        assert server.status() == 1
    (line,) = (tmp_path / "log").read_text("utf-8").splitlines()
    assert line.endswith("stdin, stdout or stderr is closed: over stdio a host has to start the server with all three")
