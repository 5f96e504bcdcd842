"""A running server on a real socket or in a process of its own, and clients that speak to it as a model's host would.

`running` serves in a thread and is what most tests need; `http_process` and `stdio_process` start the command itself.
Run as a module, this file is that command with the tools of a test in place of the project's.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import anyio
import httpx2
from mcp_types import CLIENT_CAPABILITIES_META_KEY, PROTOCOL_VERSION_META_KEY

from weather_station import server as server_module
from weather_station.__main__ import main
from weather_station.production.app import App, ProductionServer
from weather_station.production.config import ProductionConfig, variable
from weather_station.production.lifecycle import HttpServer, bind
from weather_station.server import create_app, create_server

from .. import ENVIRONMENT

Register = Callable[[ProductionServer], None]
DEADLINE_SECONDS = 10.0
PROJECT = Path(__file__).parents[2]
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of servers in these tests: the certificates of the system take 30 ms to load."""


def config(**overrides: Any) -> ProductionConfig:
    """This project's configuration, made independent of the network, of fixed ports, of its modes and its limits."""
    neutral: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "session_mode": "stateless",
        "response_mode": "json",
        "metrics_port": None,
        "rate_limit_requests": 1_000_000,
        "telemetry_endpoint": None,
        "upstream_base_url": "http://127.0.0.1:9",
        "shutdown_grace_seconds": 5.0,
    }
    return ProductionConfig(**(neutral | overrides))


@dataclass
class Running:
    """A server that serves on `base`, and a raw client of it."""

    server: ProductionServer
    http: HttpServer
    base: str
    client: httpx2.Client = field(repr=False)

    @property
    def app(self) -> App:
        return self.server.production

    @property
    def url(self) -> str:
        return f"{self.base}/mcp"

    def request(self, tool: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON-RPC message of a tools/call."""
        return {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": tool, "arguments": arguments or {}},
        }

    def post(self, message: Any, **headers: str) -> httpx2.Response:
        """Posts one message to the endpoint, as a 2025-11-25 client does."""
        return self.client.post(self.url, json=message, headers=HEADERS | _dashed(headers))

    def call(self, tool: str, arguments: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """Calls a tool and returns the `CallToolResult` as it came over the wire."""
        response = self.post(self.request(tool, arguments), **headers)
        assert response.status_code == 200, response.text
        return result_of(response)

    async def acall(
        self, client: httpx2.AsyncClient, tool: str, arguments: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """As `call`, for tests that have many calls in flight."""
        response = await client.post(self.url, json=self.request(tool, arguments), headers=HEADERS)
        assert response.status_code == 200, response.text
        return result_of(response)


HEADERS = {
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


def modern(method: str, params: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """A request of protocol version 2026-07-28: the message and its headers."""
    version = "2026-07-28"
    meta = {PROTOCOL_VERSION_META_KEY: version, CLIENT_CAPABILITIES_META_KEY: {}}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": (params or {}) | {"_meta": meta}}
    headers = {"accept": HEADERS["accept"], "mcp-protocol-version": version, "mcp-method": method}
    return message, headers | ({"mcp-name": params["name"]} if params and "name" in params else {})


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def result_of(response: httpx2.Response) -> dict[str, Any]:
    """The `result` of an answer, JSON or one SSE event."""
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = next(line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {"))
    message: dict[str, Any] = httpx2.Response(200, content=text).json()
    assert "result" in message, message
    result: dict[str, Any] = message["result"]
    return result


def text_of(result: dict[str, Any]) -> str:
    """The text that the model reads."""
    return "\n".join(block["text"] for block in result["content"])


@contextmanager
def running(settings: ProductionConfig, register: Register | None = None) -> Iterator[Running]:
    """Serves in a thread on a port of the system's choice until the block ends."""
    server = create_server(settings)
    if register is not None:
        register(server)
    listener = bind("127.0.0.1", 0)
    http = HttpServer(server, create_app(server))
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: http.started or not thread.is_alive())
    assert thread.is_alive(), "the server ended during its start"
    try:
        with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:
            yield Running(server, http, f"http://127.0.0.1:{listener.getsockname()[1]}", client)
    finally:
        http.stop()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Returns as soon as `condition()` is true; fails when it is not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {condition}"
        time.sleep(0.005)


async def until(condition: Callable[[], Awaitable[object]], seconds: float = DEADLINE_SECONDS) -> None:
    """As `wait_for`, for a condition that is awaited."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {condition}"
        await anyio.sleep(0.02)


def environment(**settings: object) -> dict[str, str]:
    """This process's environment for a server of its own: of the server's variables only `settings`."""
    own = {variable(name) for name in ProductionConfig.model_fields}
    inherited = {k: v for k, v in os.environ.items() if k.upper() not in own and not k.startswith("OTEL_")}
    neutral = {
        "SESSION_MODE": "stateless",
        "RESPONSE_MODE": "json",
        "RATE_LIMIT_REQUESTS": 1_000_000,
        "BASE_URL": "http://127.0.0.1:9",
        "LOG_FORMAT": "json",
    }
    return inherited | {name: str(value) for name, value in (neutral | ENVIRONMENT | settings).items()}


def command(tools: str | None, *options: str) -> list[str]:
    """The server's command; `tools` names a function `module:register` that replaces the project's own."""
    if tools is None:
        return [sys.executable, "-m", "weather_station", *options]
    return [sys.executable, "-m", __name__, tools, *options]


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes]
    base: str = ""
    """Its URL, over HTTP."""
    lines: queue.Queue[bytes] = field(default_factory=queue.Queue, repr=False)
    """What it wrote to stdout and `receive` has not taken yet, a line each; `b""` at the end."""
    log_file: Path | None = None

    @property
    def url(self) -> str:
        return f"{self.base}/mcp"

    def log(self) -> str:
        """What it has written to stderr so far; of an unread log, what it writes until its end."""
        if self.log_file is not None:
            return self.log_file.read_text("utf-8")
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def status(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Waits for the end of the process and returns its exit status."""
        return self.process.wait(seconds)

    def send(self, *messages: dict[str, Any]) -> None:
        """Writes JSON-RPC messages to stdin, a line each."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(b"".join(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n" for message in messages))
        stdin.flush()

    def receive(self, seconds: float = DEADLINE_SECONDS) -> bytes:
        """The next line of stdout, `b""` at its end."""
        return self.lines.get(timeout=seconds)

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def http_process(tools: str | None = None, *options: str, **settings: object) -> Iterator[Process]:
    """Runs the command on a port of the system's choice until the block ends; yields it once it serves."""
    with started(command(tools, "--port", "0", *options), None, settings) as server:

        def address() -> str:
            found = re.search(r"http://[^/\s]+:\d+(?=/mcp)", server.log())
            assert found or server.process.poll() is None, server.log()
            return found[0] if found else ""

        wait_for(address, 6 * DEADLINE_SECONDS)  # a first start compiles every library
        server.base = address()
        yield server


@contextmanager
def stdio_process(
    tools: str | None = None, *options: str, unread_log: bool = False, **settings: object
) -> Iterator[Process]:
    """Runs the command over stdio until the block ends; with `unread_log` its stderr is a pipe that fills up."""
    pipe = subprocess.PIPE
    with started(
        command(tools, "--transport", "stdio", *options), pipe, settings, pipe if unread_log else None
    ) as server:
        assert server.process.stdout is not None
        threading.Thread(target=_collect, args=(server.process.stdout, server.lines), daemon=True).start()
        yield server


@contextmanager
def started(
    arguments: list[str], pipe: int | None, settings: dict[str, object], stderr: int | None = None
) -> Iterator[Process]:
    with tempfile.TemporaryDirectory() as directory:
        log_file = Path(directory) / "stderr"
        with (
            log_file.open("wb") as log,
            subprocess.Popen(  # noqa: S603 (this project's own command)
                arguments, cwd=PROJECT, env=environment(**settings), stdin=pipe, stdout=pipe, stderr=stderr or log
            ) as process,
        ):
            try:
                yield Process(process, log_file=None if stderr else log_file)
            finally:
                process.kill()


def _collect(stdout: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put(b"")


if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    vars(server_module)["register"] = getattr(importlib.import_module(module), function)
    sys.exit(main(sys.argv[2:]))
