"""Requests of every method that a server answers, over every transport, and handlers that do what a request asks for.

What that is stands in the request's `_meta`: to answer, to name the caller, to crash, or to wait.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import INVALID_PARAMS, Completion, PaginatedRequestParams

from harness import (
    HAS_METRICS,
    HEADERS,
    INITIALIZE,
    LEGACY,
    MODERN,
    NO_TLS,
    Metrics,
    Process,
    Running,
    config,
    log_lines,
    message,
    modern,
    rebuild_pipeline,
    running,
    stdio_process,
    wait_for,
)
from held import open_session
from weather_station.production.config import variable
from weather_station.production.request import LISTEN, MCPRequest, Result, current_request
from weather_station.production.sdk import ProductionServer

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
DETAIL = "row 17 of the customers"
MODE = "test/mode"
METRICS_ADDRESS = re.compile(r"""['"]?metrics['"]?[=:]['"](http[^'"]+)""")
"""Matches the address in both formats of the log."""
END = "end"

EXAMPLES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "completion/complete": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "ask"}, "argument": {"name": "topic", "value": ""}},
        (LEGACY, MODERN),
    ),
    "extension": ("test/extension", {}, (LEGACY, MODERN)),
    "ping": ("ping", {}, (LEGACY,)),
    "prompts/get": ("prompts/get", {"name": "ask", "arguments": {"topic": "rain"}}, (LEGACY, MODERN)),
    "prompts/list": ("prompts/list", {}, (LEGACY, MODERN)),
    "resources/list": ("resources/list", {}, (LEGACY, MODERN)),
    "resources/read of a resource": ("resources/read", {"uri": "test://static"}, (LEGACY, MODERN)),
    "resources/read of a template": ("resources/read", {"uri": "test://items/7"}, (LEGACY, MODERN)),
    "resources/templates/list": ("resources/templates/list", {}, (LEGACY, MODERN)),
    "server/discover": ("server/discover", {}, (MODERN,)),
    "tools/call": ("tools/call", {"name": "work", "arguments": {}}, (LEGACY, MODERN)),
    "subscriptions/listen": (LISTEN, {"notifications": {"toolsListChanged": True}}, (MODERN,)),
    "tools/list": ("tools/list", {}, (LEGACY, MODERN)),
    # At the end: over stdio the SDK reads nothing else until it is answered.
    "initialize": ("initialize", INITIALIZE["params"], (LEGACY,)),
}
"""By name: the method, its parameters, and the protocol versions that have it."""

TARGETS = {
    "prompts/get": {"prompt": "ask"},
    "resources/read of a resource": {"resource": "test://static"},
    "resources/read of a template": {"resource": "test://items/{item}"},
    "tools/call": {"tool": "work"},
}
"""Labels of the targets, by the log's field."""

OWN_METHODS = {"tools/call", "resources/read", "prompts/get", "completion/complete", "test/extension"}
"""Methods whose handlers are functions of this module."""

HTTP = {
    "2025-11-25 stateless": (LEGACY, "stateless"),
    "2025-11-25 stateful": (LEGACY, "stateful"),
    "2026-07-28": (MODERN, "stateless"),
}
STDIO = {"2025-11-25 stdio": LEGACY, "2026-07-28 stdio": MODERN}
TRANSPORTS = (*HTTP, *STDIO)

TOOLS = f"{__name__}:tools"


Case = tuple[str, str]
"""A transport, and the name of an example."""


def cases(*transports: str) -> list[Case]:
    """Return each transport with each example of its protocol version."""
    return [
        (transport, name)
        for transport in transports or TRANSPORTS
        for name, (_, _, versions) in EXAMPLES.items()
        if transport[: len(LEGACY)] in versions
    ]


async def act() -> str:
    """Do what the request asks for."""
    request = current_request.get()
    assert request is not None
    mode, _, directory = request.params.get("_meta", {}).get(MODE, "answer").partition(":")
    if mode == "caller":
        raise MCPError(INVALID_PARAMS, request.caller.id)
    if mode == "crash":
        raise ValueError(DETAIL)
    if mode == "exit":
        sys.exit(3)
    if mode.startswith("cancel"):
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if mode == "cancel and wait":
            await asyncio.sleep(60)
    if mode == "wait":
        await anyio.to_thread.run_sync(wait_in, Path(directory), request.request_id, abandon_on_cancel=True)
    return "done"


def wait_in(directory: Path, request_id: str) -> None:
    """Show with a file that the request runs, and wait until the test allows its end, if ever."""
    (directory / request_id).touch()
    wait_for((directory / END).exists)


def tools(server: ProductionServer) -> None:
    """Register handlers of all methods."""

    @server.tool()
    async def work() -> str:
        return await act()

    @server.resource("test://static")
    async def static() -> str:
        return await act()

    @server.resource("test://items/{item}")
    async def item(item: str) -> str:
        return await act()

    @server.prompt()
    async def ask(topic: str) -> str:
        return await act()

    @server.completion()
    async def complete(*arguments: Any) -> Completion:
        return Completion(values=[await act()])

    low_level = server._lowlevel_server

    async def extension(ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> dict[str, Any]:
        return {"text": await act()}

    low_level.add_request_handler("test/extension", PaginatedRequestParams, extension)

    def acting(handler: Callable[..., Any]) -> Callable[..., Any]:
        async def act_first(ctx: Any, params: Any) -> Any:
            await act()
            return await handler(ctx, params)

        return act_first

    for method, entry in list(low_level._request_handlers.items()):
        if method not in OWN_METHODS:
            low_level.add_request_handler(method, entry.params_type, acting(entry.handler))

    handle = server._handle

    async def act_at_initialize(request: MCPRequest) -> Result:
        """Act for `initialize`, which the SDK handles itself."""
        if request.method == "initialize":
            await act()
        return await handle(request)

    vars(server)["_handle"] = act_at_initialize
    rebuild_pipeline(server)


class Peer(ABC):
    """A client of a running server."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    @abstractmethod
    def send(self, name: str, mode: str = "answer") -> Callable[[], dict[str, Any]]:
        """Send the example, and return a function that waits for its response.

        That of a subscription is its acknowledgement, as a result; then the client leaves.
        """

    @abstractmethod
    def subscription(self) -> AbstractContextManager[Callable[[], list[dict[str, Any]]]]:
        """Open a subscription, and yield a function that returns what comes after its acknowledgement, to its end."""

    def ask(self, name: str, mode: str = "answer") -> dict[str, Any]:
        """Send the example, and return its response."""
        return self.send(name, mode)()

    @abstractmethod
    def stop(self) -> None:
        """Make the server drain."""

    @abstractmethod
    def log(self) -> list[dict[str, Any]]:
        """Return the lines of the log since the last time, parsed."""

    @abstractmethod
    def metrics(self) -> Metrics:
        """Scrape the server."""

    def exchange(self, version: str, name: str, mode: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the message and the headers of an example."""
        method, params, _ = EXAMPLES[name]
        content, headers = modern(method, params) if version == MODERN else (message(method, dict(params)), HEADERS)
        content["params"]["_meta"] = content["params"].get("_meta", {}) | {MODE: mode}
        return content | {"id": next(self._numbers)}, headers


class HttpPeer(Peer):
    def __init__(self, server: Running, transport: str, read_log: Callable[[], str], token: str) -> None:
        super().__init__()
        self.server = server
        self._version, session_mode = HTTP[transport]
        self._token = {"authorization": f"Bearer {token}"} if token else {}
        self._session = open_session(server.url, headers=HEADERS | self._token) if session_mode == "stateful" else {}
        self._read_log = read_log
        self._pool = ThreadPoolExecutor(len(EXAMPLES))

    def send(self, name: str, mode: str = "answer") -> Callable[[], dict[str, Any]]:
        return self._pool.submit(self._first_message, name, mode).result

    def _first_message(self, name: str, mode: str) -> dict[str, Any]:
        with self._stream(name, mode) as response:
            if name == LISTEN:
                message = next(messages_of(response))
                return {"result": message["params"]} if "method" in message else message
            response.read()
            return dict(response.json())

    @contextmanager
    def subscription(self) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        with self._stream(LISTEN, "answer") as response:
            messages = messages_of(response)
            assert next(messages)["method"] == ACKNOWLEDGED
            yield lambda: [*messages]

    def _stream(self, name: str, mode: str) -> AbstractContextManager[httpx2.Response]:
        content, headers = self.exchange(self._version, name, mode)
        headers = headers | self._token | ({} if name == "initialize" else self._session)
        return self.server.client.stream("POST", self.server.url, json=content, headers=headers)

    def stop(self) -> None:
        self.server.http.stop()

    def log(self) -> list[dict[str, Any]]:
        return log_lines(self._read_log())

    def metrics(self) -> Metrics:
        return self.server.metrics()


def messages_of(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Yield the messages of a response: of a stream, or the only one."""
    for line in response.iter_lines():
        if (text := line.removeprefix("data: ")).startswith("{"):
            yield json.loads(text)


class StdioPeer(Peer):
    def __init__(self, process: Process, transport: str) -> None:
        super().__init__()
        self.process = process
        self._version = STDIO[transport]
        self._answers: dict[int, dict[str, Any]] = {}
        self._log_read = 0
        if self._version == LEGACY:
            process.send(INITIALIZE)
            assert "result" in self._receive(0)
            process.send({"method": "notifications/initialized"})

    def send(self, name: str, mode: str = "answer") -> Callable[[], dict[str, Any]]:
        content, _ = self.exchange(self._version, name, mode)
        self.process.send(content)
        return lambda: self._response(name, content["id"])

    def _response(self, name: str, number: int) -> dict[str, Any]:
        message = self._receive(number)
        if "method" not in message:
            return message
        self.process.send({"method": "notifications/cancelled", "params": {"requestId": number}})
        return {"result": message["params"]}

    @contextmanager
    def subscription(self) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        content, _ = self.exchange(self._version, LISTEN, "answer")
        self.process.send(content)
        assert self._receive(content["id"])["method"] == ACKNOWLEDGED
        yield lambda: [json.loads(line) for line in iter(self.process.receive, b"")]

    def _receive(self, number: int) -> dict[str, Any]:
        """Return the response to a request, or the acknowledgement of a subscription."""
        while number not in self._answers:
            line = self.process.receive()
            assert line, self.process.log()
            message = json.loads(line)
            of = message["params"]["_meta"][SUBSCRIPTION_ID_META_KEY] if "method" in message else message["id"]
            self._answers[of] = message
        return self._answers.pop(number)

    def stop(self) -> None:
        self.process.signal()
        wait_for(lambda: "draining" in self.process.log())

    def log(self) -> list[dict[str, Any]]:
        text = self.process.log()[self._log_read :]
        complete = text[: text.rfind("\n") + 1]
        self._log_read += len(complete)
        return log_lines(complete)

    def metrics(self) -> Metrics:
        wait_for(lambda: METRICS_ADDRESS.search(self.process.log()))
        (address,) = METRICS_ADDRESS.findall(self.process.log())
        return Metrics(httpx2.get(address, trust_env=False, verify=NO_TLS).text)


@contextmanager
def serving(transport: str, read_log: Callable[[], str], *, token: str = "", **settings: Any) -> Iterator[Peer]:
    """Run a server with handlers of all methods, and yield a client of it, over HTTP with this access token."""
    if transport in HTTP:
        _, session_mode = HTTP[transport]
        with running(config(session_mode=session_mode, **settings), tools) as server:
            yield HttpPeer(server, transport, read_log, token)
    else:
        ports: dict[str, Any] = {"METRICS_PORT": 0} if HAS_METRICS else {}
        environment = {variable(name): value for name, value in settings.items()}
        with stdio_process(TOOLS, **ports, **environment) as process:
            yield StdioPeer(process, transport)
