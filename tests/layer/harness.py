"""Running servers of the project under test, and clients that talk to them as an MCP host would.

`running` serves in a thread, which is what most tests need; `http_process` and `stdio_process` start the command.
The owner's `tools/` are never loaded: importing this module replaces `server.register`. Run as a program, this file is
the server's command with the tools of a test.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

import anyio
import httpx2
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context
from mcp_types import CLIENT_CAPABILITIES_META_KEY, PROTOCOL_VERSION_META_KEY
from starlette.types import ASGIApp

import weather_station
from preloaded import Forked, preloaded
from weather_station import server as server_module
from weather_station.production import upstream
from weather_station.production.caller import Caller
from weather_station.production.config import ANSWERS, ProductionConfig, variable
from weather_station.production.inbound.pipeline import Pipeline
from weather_station.production.policy import NO_POLICY
from weather_station.production.registry import Registry, Runtime
from weather_station.production.request import MCPRequest
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.connections import base_url, bind
from weather_station.production.serve.lifecycle import HttpServer
from weather_station.server import create_app, create_server

Register = Callable[[ProductionServer], object]
"""Registers the tools of a test."""

Serve = Callable[..., AbstractContextManager["Running"]]
"""Type of the fixture `serve`."""

DEADLINE_SECONDS = 60.0
"""How long a test waits for something that is bound to happen; a test that works never waits that long."""

LAYER = Path(__file__).parent
PROJECT = Path(weather_station.__file__).parents[2]
PRODUCTION = "weather_station.production"

LEGACY, MODERN = "2025-11-25", "2026-07-28"
"""The protocol versions: with the initialize handshake, and without."""

HEADERS = {"accept": "application/json, text/event-stream", "mcp-protocol-version": LEGACY}

ENVIRONMENT = {"LOG_LEVEL": "INFO", "SSL_CERT_DIR": str(LAYER)} | (
    {} if ANSWERS["config"].get("metrics_port") is None else {"METRICS_PORT": "0"}
)
"""Whatever the answers are, tests find the lines that they look for, and no two servers want the same port.

No test connects to the internet, and loading the system's certificates is a third of what starting a server costs: it
gets a folder without any.
"""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For HTTP clients: loading the system's certificates takes 30 ms."""


def has(module: str) -> bool:
    """Return whether the project has `production/<module>`, such as `observe.metrics`."""
    return find_spec(f"{PRODUCTION}.{module}") is not None


HAS_METRICS = has("observe.metrics")
HAS_LOGGING = has("observe.logging")


def no_tools(server: ProductionServer) -> None:
    """Register nothing, in place of the owner's tools."""


def replace_tools(register: Register = no_tools) -> None:
    """Make `create_server` call `register` instead of loading the owner's code, and forbid its import."""
    vars(server_module)["register"] = register
    vars(sys)["modules"]["weather_station.options"] = None
    vars(sys)["modules"]["weather_station.tools"] = None


replace_tools()


def config(**overrides: Any) -> ProductionConfig:
    """Return the project's configuration, independent of the network, of fixed ports, and of its modes and limits."""
    neutral: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "session_mode": "stateless",
        "response_mode": "json",
        "metrics_port": None,
        "rate_limit_requests": 1_000_000,
        "telemetry_endpoint": None,
        "upstream_base_url": "http://127.0.0.1:9",
        "upstream_auth": "api_key",
        "shutdown_grace_seconds": 5.0,
    }
    return ProductionConfig(**(neutral | overrides))


ONE_ATTEMPT: dict[str, Any] = {"enable_retries": False, "enable_circuit_breaker": False}
"""Each request to the upstream is one attempt, whatever features the project has."""


async def fetch(path: str, ctx: Context[Any, Any]) -> dict[str, Any]:
    """Fetch a path of the upstream."""
    content: dict[str, Any] = await upstream(ctx).get_json(path)
    return content


def add_fetch(server: ProductionServer) -> None:
    server.add_tool(fetch)


@asynccontextmanager
async def opened(base_url: str, **settings: Any) -> AsyncIterator[Runtime]:
    """Open the upstream client of a server with these settings, without a transport."""
    async with create_server(config(upstream_base_url=base_url, **settings)).running() as runtime:
        yield runtime


class Metrics:
    """The samples of one scrape of /metrics; none where the project has no metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        if text:
            parser = importlib.import_module("prometheus_client.parser")
            for family in parser.text_string_to_metric_families(text):
                for sample in family.samples:
                    self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of one series, or `None` if there is no such series."""
        return self.samples.get((name, frozenset(labels.items())))

    def series(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return the values of all series of that name by their labels."""
        return {labels: value for (sample, labels), value in self.samples.items() if sample == name}


@dataclass
class Running:
    """A server that serves on `base`, and a raw client of it."""

    server: ProductionServer
    http: HttpServer
    base: str
    client: httpx2.Client = field(repr=False)

    @property
    def registry(self) -> Registry:
        return self.server.registry

    @property
    def url(self) -> str:
        return f"{self.base}/mcp"

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(f"{self.base}{path}", headers=_dashed(headers))

    def metrics(self) -> Metrics:
        """Scrape /metrics."""
        if not HAS_METRICS:
            return Metrics("")
        response = self.get("/metrics")
        assert response.status_code == 200
        return Metrics(response.text)

    def request(self, tool: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON-RPC message of a tools/call."""
        return message("tools/call", {"name": tool, "arguments": arguments or {}})

    def post(self, content: Any, **headers: str) -> httpx2.Response:
        """Post one message to the endpoint, as a client of protocol version 2025-11-25 does."""
        return self.client.post(self.url, json=content, headers=HEADERS | _dashed(headers))

    def call(self, tool: str, arguments: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        """Call a tool and return the `CallToolResult` as it came over the wire."""
        response = self.post(self.request(tool, arguments), **headers)
        assert response.status_code == 200, response.text
        return result_of(response)

    async def acall(
        self, client: httpx2.AsyncClient, tool: str, arguments: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Call a tool as `call` does, for tests with many calls in flight."""
        response = await client.post(self.url, json=self.request(tool, arguments), headers=HEADERS)
        assert response.status_code == 200, response.text
        return result_of(response)


def message(method: str, params: dict[str, Any] | None = None, *, number: int = 1) -> dict[str, Any]:
    """Return a JSON-RPC request with the id `number`."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}


def modern(method: str, params: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a request of protocol version 2026-07-28: the message and its headers."""
    meta = {PROTOCOL_VERSION_META_KEY: MODERN, CLIENT_CAPABILITIES_META_KEY: {}}
    headers = {"accept": HEADERS["accept"], "mcp-protocol-version": MODERN, "mcp-method": method}
    if name := (params or {}).get("name") or (params or {}).get("uri"):
        headers["mcp-name"] = name
    return message(method, (params or {}) | {"_meta": meta}), headers


def rebuild_pipeline(server: ProductionServer) -> None:
    """Build the pipeline anew from the middleware in the server's registry."""
    server.middleware[0] = Pipeline(
        server.registry, server._target_of, server._handle, server._to_wire, server._prepare_channel
    )


def new_request(
    method: str = "tools/call", target: str = "tool", *, caller: str = "client", **params: Any
) -> MCPRequest:
    """Return a request of the current task, for middleware that is tested without a server."""
    context = ServerRequestContext[Any, Any](
        session=cast("Any", None), lifespan_context=None, protocol_version=LEGACY, method=method, params=params
    )

    async def call_sdk(context: ServerRequestContext[Any, Any]) -> None: ...

    task = asyncio.current_task()
    return MCPRequest(method, target, target, context, Caller(caller), "0123456789abcdef", task, call_sdk, NO_POLICY)


INITIALIZE = message(
    "initialize",
    {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
    number=0,
)


def _dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def result_of(response: httpx2.Response) -> dict[str, Any]:
    """Return the `result` of a response, which is JSON or one SSE event."""
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = next(line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {"))
    answer: dict[str, Any] = json.loads(text)
    assert "result" in answer, answer
    result: dict[str, Any] = answer["result"]
    return result


def without_audit_records(text: str) -> list[str]:
    """Return the lines of a log, without the audit records between them."""
    return [line for line in text.split("\n") if line and not line.startswith('{"audit":')]


def log_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a JSON log, without the audit records between them."""
    return [json.loads(line) for line in without_audit_records(text)]


def text_of(result: dict[str, Any]) -> str:
    """Return the text that the model reads."""
    return "\n".join(block["text"] for block in result["content"])


class PromptServer(HttpServer):
    """A server that notices at once that it is to stop; uvicorn looks ten times a second."""

    def __init__(self, server: ProductionServer, application: ASGIApp) -> None:
        super().__init__(server, application)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def stop(self) -> None:
        super().stop()
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._woken.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            if self._registry.draining:
                await asyncio.sleep(0.001)
            else:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), 0.1)


@contextmanager
def running(settings: ProductionConfig, register: Register | None = None) -> Iterator[Running]:
    """Serve in a thread on a port of the system's choice until the block ends."""
    server = create_server(settings)
    if register is not None:
        register(server)
    listener = bind("127.0.0.1", 0)
    http = PromptServer(server, create_app(server))
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: http.started or not thread.is_alive())
    assert thread.is_alive(), "the server ended during its start"
    try:
        with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:
            yield Running(server, http, base_url(listener), client)
    finally:
        http.stop()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def asgi_server(application: ASGIApp) -> Iterator[str]:
    """Serve another application, as uvicorn does by default, until the block ends; yield its URL."""
    listener = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield base_url(listener)
    finally:
        server.should_exit = True
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Callable[[], object], what: str = "") -> None:
    """Return as soon as `condition()` is true; fail after `DEADLINE_SECONDS`."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:g} s: {what or condition}"
        time.sleep(0.005)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait as `wait_for` does, for a condition that is awaited."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not await condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS:g} s: {condition}"
        await anyio.sleep(0.02)


VARIABLES = {variable(name) for name in ProductionConfig.model_fields}
"""The names of the settings in the environment."""

NEUTRAL: dict[str, object] = {
    "SESSION_MODE": "stateless",
    "RESPONSE_MODE": "json",
    "RATE_LIMIT_REQUESTS": 1_000_000,
    "BASE_URL": "http://127.0.0.1:9",
    "LOG_FORMAT": "json",
}
"""Settings of a server in a process of its own, as `config` has them in this one."""


def environment(**settings: object) -> dict[str, str]:
    """Return this process's environment for a server of its own: of the server's variables only `settings`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in VARIABLES and not name.startswith("OTEL_")
    }
    return inherited | {name: str(value) for name, value in (NEUTRAL | ENVIRONMENT | settings).items()}


def command(tools: str, *options: str) -> list[str]:
    """Return the server's command with the tools that a function `module:register` of a test registers."""
    return [sys.executable, __file__, tools, *options]


NO_TOOLS = "harness:no_tools"


def copy_package(directory: Path, tools: Mapping[str, str] | None = None) -> None:
    """Copy the package into `directory`, with the modules `tools` by name in place of the owner's."""
    target = directory / "weather_station"
    shutil.copytree(PROJECT / "src" / target.name, target, ignore=shutil.ignore_patterns("tools", "__pycache__"))
    (target / "tools").mkdir()
    for name, source in (tools or {"__init__": "def register(server): ..."}).items():
        (target / "tools" / f"{name}.py").write_text(source)


def run_python(code: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, without the owner's tools."""
    return subprocess.run(
        [sys.executable, "-c", f"import harness\n{code}"],
        env=environment(**settings) | {"PYTHONPATH": str(LAYER)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=2 * DEADLINE_SECONDS,
        check=False,
    )


@dataclass
class Process:
    """A server in a process of its own."""

    process: subprocess.Popen[bytes] | Forked
    base: str = ""
    """Its URL, over HTTP."""
    lines: queue.Queue[bytes] = field(default_factory=queue.Queue, repr=False)
    """What it wrote to stdout and `receive` has not returned yet, a line each; `b""` at the end."""
    log_file: Path | None = None

    @property
    def url(self) -> str:
        return f"{self.base}/mcp"

    def log(self) -> str:
        """Return what it has written to stderr so far; if nobody has read that yet, everything until its end."""
        if self.log_file is not None:
            return self.log_file.read_text("utf-8")
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        """Wait for the end of the process and return its exit status."""
        return self.process.wait(DEADLINE_SECONDS)

    def send(self, *messages: dict[str, Any]) -> None:
        """Write JSON-RPC messages to stdin, a line each."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(b"".join(json.dumps({"jsonrpc": "2.0"} | item).encode() + b"\n" for item in messages))
        stdin.flush()

    def receive(self) -> bytes:
        """Return the next line of stdout, `b""` at its end."""
        return self.lines.get(timeout=DEADLINE_SECONDS)

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def http_process(tools: str = NO_TOOLS, *options: str, **settings: object) -> Iterator[Process]:
    """Run the command on a port of the system's choice until the block ends; yield once it serves."""
    with started(command(tools, "--port", "0", *options), None, settings) as server:

        def address() -> str:
            found = re.search(r"http://[^/\s]+:\d+(?=/mcp)", server.log())
            assert found or server.process.poll() is None, server.log()
            return found[0] if found else ""

        wait_for(address)
        server.base = address()
        yield server


@contextmanager
def stdio_process(
    tools: str = NO_TOOLS, *options: str, unread_log: bool = False, **settings: object
) -> Iterator[Process]:
    """Run the command over stdio until the block ends; with `unread_log` its stderr is a pipe that fills up."""
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
    """Run a command until the block ends; `pipe` is for stdin and stdout."""
    with tempfile.TemporaryDirectory() as directory:
        log_file = Path(directory) / "stderr"
        with log_file.open("wb") as log, _popen(arguments, pipe, settings, stderr or log.fileno()) as process:
            try:
                yield Process(process, log_file=None if stderr else log_file)
            finally:
                process.kill()


def _popen(
    arguments: list[str], pipe: int | None, settings: dict[str, object], stderr: int
) -> subprocess.Popen[bytes] | Forked:
    """Run a command: as a fork, which starts sooner, if it is `command` with settings of the server only."""
    env = environment(**settings)
    may_fork = arguments[:2] == command("")[:2] and settings.keys() <= VARIABLES
    if may_fork and (process := preloaded({name: env[name] for name in env.keys() - VARIABLES})) is not None:
        return Forked(process, arguments[1:], str(PROJECT), env, pipe is not None, stderr)
    return subprocess.Popen(arguments, cwd=PROJECT, env=env, stdin=pipe, stdout=pipe, stderr=stderr)


def _collect(stdout: IO[bytes], lines: queue.Queue[bytes]) -> None:
    for line in stdout:
        lines.put(line)
    lines.put(b"")


if __name__ == "__main__":
    from weather_station.__main__ import main

    module, _, function = sys.argv[1].partition(":")
    replace_tools(getattr(importlib.import_module(module), function))
    sys.exit(main(sys.argv[2:]))
