"""The direct path answers as the SDK does: status, headers, body, and what the pipeline and the handlers see."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcp import MCPError
from mcp.server.context import CallNext as SDKCallNext
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.server.mcpserver.resources import TextResource
from mcp.server.runner import ServerRunner
from mcp_types import (
    Annotations,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    EmbeddedResource,
    InputRequiredResult,
    ResourceLink,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harness import LEGACY, MODERN, PRODUCTION, Running, Serve, config, rebuild_pipeline, until
from weather_station.production import sdk_direct
from weather_station.production.inbound.direct import DirectPath
from weather_station.production.inbound.response_mode import DeferredResponse
from weather_station.production.request import CallNext, MCPRequest, Result
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_app, create_server

PROTOCOL, INFO, CAPABILITIES, LOG_LEVEL = (
    f"io.modelcontextprotocol/{name}" for name in ("protocolVersion", "clientInfo", "clientCapabilities", "logLevel")
)
VERSIONS = (MODERN, LEGACY, "2025-03-26")


class Colour(Enum):
    RED = "red"


class Report(BaseModel):
    number: float = Field(serialization_alias="theNumber")
    note: str | None = None


@dataclasses.dataclass
class Point:
    x: float
    y: float | None = None


ASK = ElicitRequest(
    params=ElicitRequestFormParams(message="Really?", requested_schema={"type": "object", "properties": {}})
)

RESULTS: dict[str, Any] = {
    "text": "5",
    "empty": "",
    "lines": 'a\n"b"\t\\ \x00\x1f\x7f/',
    "unicode": "Zürich \u2028 \U0001f600",
    "lone": "a\ud800b",
    "long": "e-7 " * 5000,
    "int": 2**53 + 1,
    "huge": 2**80,
    "float": 1.5,
    "small": 1e-7,
    "smaller": 0.00001234,
    "large": 1e22,
    "negative zero": -0.0,
    "nan": float("nan"),
    "infinity": {"a": [float("inf")]},
    "bool": True,
    "none": None,
    "list": [1, "a", None, 2.5],
    "flat": {"a": 1, "b": "x", "c": True, "d": 1e-5},
    "nested": {"a": {"b": [None, {"c": 1e-9}]}, "d": None},
    "number as key": {1: "a"},
    "date": datetime(2026, 11, 27, tzinfo=UTC),
    "dates": {"at": datetime(2026, 11, 27, tzinfo=UTC), "colour": Colour.RED, "pair": (1, 2), "bytes": b"x"},
    "model": Report(number=0.5),
    "point": Point(1e-6),
    "complex": 1 + 2j,
    "image": Image(data=b"\x89PNG", format="png"),
    "images": [Image(data=b"\x89PNG", format="png"), "text"],
    "content": CallToolResult(content=[TextContent(type="text", text="plain")]),
    "content with data": CallToolResult(
        content=[TextContent(type="text", text="a"), TextContent(type="text", text="b")], structured_content={"a": 1}
    ),
    "content with nested data": CallToolResult(content=[], structured_content={"a": {"at": datetime.max}, "b": None}),
    "content with odd data": CallToolResult(content=[], structured_content={"a": Colour.RED, "b": float("nan")}),
    "content with a list": CallToolResult.model_construct(
        content=[], structured_content=[1], is_error=False, result_type="complete", meta=None
    ),
    "content with meta": CallToolResult(content=[], _meta={"a": 1e-7, "io.modelcontextprotocol/serverInfo": None}),
    "content with a block's meta": CallToolResult(content=[TextContent(type="text", text="a", _meta={"b": None})]),
    "annotated": CallToolResult(
        content=[TextContent(type="text", text="a", annotations=Annotations(audience=["user"], priority=0.00001))]
    ),
    "error": CallToolResult(content=[TextContent(type="text", text="no")], is_error=True),
    "another type": CallToolResult.model_construct(
        content=[TextContent(type="text", text="a")], is_error=False, result_type="task", meta=None
    ),
    "wrong type": CallToolResult.model_construct(content=[1], is_error="no", result_type="complete", meta=None),
    "link": ResourceLink(type="resource_link", uri="https://example.com/a", name="a"),
    "embedded": EmbeddedResource(
        type="resource", resource=TextResourceContents(uri="https://example.com/b", text="b", mime_type="text/plain")
    ),
    "question": InputRequiredResult(input_requests={"really": ASK}, request_state="state"),
    "question without a state": InputRequiredResult(input_requests={"really": ASK}),
}

FAILURES: dict[str, Callable[[], BaseException]] = {
    "expected": lambda: ToolError("no such city: Zürich"),
    "lone": lambda: ToolError("a\ud800"),
    "crash": lambda: ValueError("secret"),
    "protocol": lambda: MCPError(-32602, "wrong", {"why": [1e-7, None]}),
    "not found": lambda: MCPError(-32601, "not here"),
    "internal": lambda: MCPError(-32603, "broken"),
    "capability": lambda: MCPError(-32021, "needs sampling", {"é": 1}),
    "odd data": lambda: MCPError(-32000, "odd", {"a": float("nan")}),
    "link": lambda: MCPError(-32042, "sign in", {"elicitations": []}),
    "resource": lambda: ResourceError("gone"),
    "exit": lambda: SystemExit(1),
    "interrupt": lambda: KeyboardInterrupt(),
    "generator": lambda: GeneratorExit(),
    "group": lambda: BaseExceptionGroup("two", [ToolError("a"), ToolError("b")]),
    "cancelled": lambda: asyncio.CancelledError(),
    "timeout": lambda: TimeoutError(),
}


def register(server: ProductionServer) -> None:
    """Register handlers that give every kind of result."""

    def add(kind: str) -> None:
        async def give() -> Any:
            return copy.deepcopy(RESULTS[kind])

        server.add_tool(give, name=f"give_{[*RESULTS].index(kind)}")

        async def typed():  # type: ignore[no-untyped-def]
            return copy.deepcopy(RESULTS[kind])

        typed.__annotations__["return"] = type(RESULTS[kind])
        with suppress(Exception):
            server.add_tool(typed, name=f"typed_{[*RESULTS].index(kind)}")

    for kind in RESULTS:
        add(kind)

    @server.tool()
    async def fail(how: str) -> str:
        raise FAILURES[how]()

    @server.tool()
    async def add_numbers(a: int, b: float = 0.5, c: list[int] | None = None) -> float:
        return a + b + sum(c or ())

    @server.tool()
    def plain(text: str) -> dict[str, Any]:
        return {"text": text, "length": len(text)}

    @server.tool()
    async def echo(value: Any = None) -> Any:
        return value

    @server.tool()
    async def mirrored(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
        return region

    @server.tool()
    async def slow() -> str:
        await asyncio.sleep(60)
        return "late"

    @server.tool()
    async def talk(ctx: Context[Any, Any]) -> str:
        await ctx.report_progress(1, 2, "half")
        await ctx.info("hello")
        await ctx.session.send_resource_list_changed()
        try:
            await ctx.elicit("Name?", Report)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "asked"

    @server.tool()
    async def context(ctx: Context[Any, Any]) -> Any:
        return await seen(ctx)

    @server.tool()
    async def nested(ctx: Context[Any, Any]) -> Any:
        first = await server.call_tool("echo", {"value": [1]}, ctx)
        return [str(first), [str(part) for part in await ctx.read_resource("test://text")]]

    @server.resource("test://text", mime_type="text/plain")
    async def text() -> str:
        return "Zürich 1e-7"

    @server.resource("test://blob")
    async def blob() -> bytes:
        return b"\x00\xff"

    @server.resource("test://item/{number}")
    async def item(number: int, ctx: Context[Any, Any]) -> Any:
        return {"number": number, "seen": await seen(ctx)}

    @server.resource("test://fails/{how}")
    async def fails(how: str) -> str:
        raise FAILURES[how]()

    @server.prompt()
    async def greet(name: str, tone: str = "kind") -> str:
        return f"Greet {name} in a {tone} tone: é"

    @server.prompt()
    async def failing(how: str) -> str:
        raise FAILURES[how]()


async def seen(ctx: Context[Any, Any]) -> dict[str, Any]:
    """Return what a handler can see of its request."""
    request = ctx.request_context
    session = request.session
    params, capabilities = session.client_params, session.client_capabilities
    connection = session._connection
    http = request.request
    assert http is not None
    return {
        "id": [type(ctx.request_id).__name__, ctx.request_id],
        "method": request.method,
        "params": request.params,
        "meta": request.meta and dict(request.meta),
        "version": [request.protocol_version, session.protocol_version, connection.protocol_version],
        "client": params and params.model_dump(mode="json"),
        "capabilities": capabilities and capabilities.model_dump(mode="json"),
        "body": (await http.body()).decode("latin-1"),
        "headers": http.headers.items(),
        "transport": str(session._request_outbound.transport),
        "can": [session.can_send_request, connection.has_standalone_channel, connection.initialize_accepted],
        "cancelled": session._request_outbound.cancel_requested.is_set(),
        "levels": sorted(session._allowed_log_levels),
        "session": [connection.session_id, connection.state, connection.initialized.is_set()],
        "streams": [request.close_sse_stream, request.close_standalone_sse_stream],
        "started": request.lifespan_context.registry.draining,
        "round": [ctx.request_state, ctx.input_responses],
        "extras": [hasattr(connection, "absent"), ctx._subscriptions is not None],
    }


class Both:
    """A server's application, which answers on the direct path or on the SDK's, and what its pipeline has seen."""

    def __init__(self, server: ProductionServer | None = None, **options: Any) -> None:
        self.requests: list[tuple[Any, ...]] = []
        self.direct = self.taken = 0
        self.use_direct = True
        self.server = server or self._server(options)
        self.server.registry.http.direct = self._switch
        self.app = create_app(self.server)

    def _server(self, options: dict[str, Any]) -> ProductionServer:
        server = create_server(config(**options))
        register(server)
        outer = server.registry.middleware["drain"]

        async def note(request: MCPRequest, call_next: CallNext) -> Result:
            try:
                return await outer(request, call_next)
            finally:
                context = request.context
                about = (request.method, request.target, request.target_label, request.caller, request.policy)
                outcome = (request.status, request.error_type, request.handler_called, request.entered)
                sent = (context.method, context.params, context.meta, context.protocol_version, context.request_id)
                self.requests.append((*about, *outcome, repr(sent)))

        server.registry.middleware["drain"] = note
        rebuild_pipeline(server)
        return server

    def _switch(self, server: ProductionServer, sdk: ASGIApp) -> ASGIApp:
        async def through_sdk(scope: Scope, receive: Receive, send: Send) -> None:
            self.taken += 1
            await sdk(scope, receive, send)

        path = self.path = DirectPath(server, through_sdk)

        async def switch(scope: Scope, receive: Receive, send: Send) -> None:
            await (path if self.use_direct else through_sdk)(scope, receive, send)

        return switch

    async def send(self, headers: list[tuple[bytes, bytes]], body: bytes, *, on: bool, method: str = "POST") -> Any:
        """Return the messages of the response."""
        self.use_direct = on
        self.taken = 0
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/mcp",
            "raw_path": b"/mcp",
            "query_string": b"",
            "root_path": "",
            "headers": [*headers],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        sent: list[Message] = []
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not waiting:
                await asyncio.Event().wait()  # the client stays
            return waiting.pop()

        async def send(message: Message) -> None:
            sent.append(message)

        async def respond() -> None:
            await self.app(scope, receive, send)

        await asyncio.create_task(respond())  # a task of its own, as in a server
        head = next(message for message in sent if message["type"] == "http.response.start")
        parts = [message.get("body", b"") for message in sent if message["type"] == "http.response.body"]
        content = b"".join(parts)
        fields = [*head["headers"]]
        is_stream = (b"content-type", b"text/event-stream") in fields
        assert (b"content-length", b"%d" % len(content)) in fields or is_stream or not content
        if b'"requestState"' in content:  # it has a time, of which the number of digits varies
            fields = [(name, b"X" if name == b"content-length" else value) for name, value in fields]
        return int(head["status"]), fields, neutral(content)

    async def compare(self, headers: list[tuple[bytes, bytes]], body: bytes, method: str = "POST") -> None:
        """Send a request on both paths."""
        self.requests.clear()
        expected = await self.send(headers, body, on=False, method=method)
        by_sdk = [*self.requests]
        self.requests.clear()
        answered = await self.send(headers, body, on=True, method=method)
        self.direct += self.taken == 0
        assert answered == expected
        assert self.requests == by_sdk


def neutral(body: bytes) -> bytes:
    """Return a body without what is random: ids of requests, and sealed states."""
    body = re.sub(rb"(equest.id[\": ]+)[0-9a-f]{16}", rb"\1X", body)
    return re.sub(rb'("requestState":")[^"]+', rb"\1X", body)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["json", "auto"])
def both(loop: asyncio.Runner, request: pytest.FixtureRequest) -> Iterator[Both]:
    """A running server; its handlers are those of `register`."""
    pair = Both(tool_timeout_seconds=5.0, response_mode=request.param)

    async def serve(started: asyncio.Event, stop: asyncio.Event) -> None:
        async with pair.server.session_manager.run():
            started.set()
            await stop.wait()

    async def start() -> tuple[asyncio.Task[None], asyncio.Event]:
        started, stop = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(serve(started, stop))
        await started.wait()
        return task, stop

    async def end(task: asyncio.Task[None], stop: asyncio.Event) -> None:
        stop.set()
        await task

    task, stop = loop.run(start())
    yield pair
    loop.run(end(task, stop))


def headers_of(version: str, method: str, name: object) -> dict[str, str]:
    headers = {
        "host": "127.0.0.1:8000",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": version,
    }
    if version == MODERN:
        headers |= {"mcp-method": method, "mcp-name": str(name)}
    return headers


def meta_of(version: str) -> dict[str, Any]:
    return {PROTOCOL: version, INFO: {"name": "test", "version": "1"}, CAPABILITIES: {}} if version == MODERN else {}


def request(
    version: str, method: str, name: str, arguments: Mapping[str, Any] | None = None, **more: Any
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of an ordinary request."""
    params: dict[str, Any] = {} if method in LISTS else {"uri" if method == "resources/read" else "name": name}
    if arguments is not None:
        params["arguments"] = arguments
    if meta := meta_of(version) | more.pop("meta", {}):
        params["_meta"] = meta
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params} | more
    return raw(headers_of(version, method, name)), json.dumps(body).encode()


def raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("utf-8")) for name, value in headers.items()]


ORDINARY: list[tuple[str, str, dict[str, Any] | None]] = [
    *(("tools/call", f"give_{number}", {}) for number in range(len(RESULTS))),
    *(("tools/call", f"typed_{number}", {}) for number in range(len(RESULTS))),
    *(("tools/call", "fail", {"how": how}) for how in FAILURES),
    *(("resources/read", f"test://fails/{how}", None) for how in FAILURES),
    *(("prompts/get", "failing", {"how": how}) for how in FAILURES),
    ("tools/call", "add_numbers", {"a": 1, "b": 2}),
    ("tools/call", "add_numbers", {"a": "1", "c": "[1, 2]"}),
    ("tools/call", "add_numbers", {"a": "x", "b": [], "d": 1}),
    ("tools/call", "plain", {"text": "Zürich"}),
    ("tools/call", "echo", {"value": {"a": [1, None, 2.5, "é", 1e-9, 2**70]}}),
    ("tools/call", "context", {}),
    ("tools/call", "context", None),
    ("tools/call", "talk", {}),
    ("tools/call", "nested", {}),
    ("tools/call", "absent", {}),
    ("tools/call", "mirrored", {"region": "eu"}),
    ("tools/call", "mirrored", {}),
    ("resources/read", "test://text", None),
    ("resources/read", "test://blob", None),
    ("resources/read", "test://item/7", None),
    ("resources/read", "test://item/x", None),
    ("resources/read", "test://absent", None),
    ("prompts/get", "greet", {"name": "Ann"}),
    ("prompts/get", "greet", {}),
    ("prompts/get", "absent", None),
]

LISTS = ("tools/list", "prompts/list", "resources/list", "resources/templates/list")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_result_is_answered_as_by_the_sdk(loop: asyncio.Runner, both: Both, version: str) -> None:
    before = both.direct
    for method, name, arguments in ORDINARY:
        loop.run(both.compare(*request(version, method, name, arguments)))
    mirrored = 2 if version == MODERN else 0  # headers that repeat arguments are left to the SDK
    assert both.direct - before == len(ORDINARY) - mirrored


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", LISTS)
def test_lists_are_those_of_the_sdk(loop: asyncio.Runner, both: Both, method: str, version: str) -> None:
    before = both.direct
    server = both.server
    for _ in range(3):
        loop.run(both.compare(*request(version, method, "")))
    calls = [request(version, method, "", id="é"), request(version, method, "", meta={"progressToken": 7})]
    for call in calls:
        loop.run(both.compare(*call))
    assert both.direct - before == 5

    async def another() -> str:
        """Another one with an é."""
        return ""

    server.add_tool(another)
    server.prompt()(another)
    server.resource("test://another")(another)

    @server.resource("test://another/{name}")
    async def other(name: str) -> str:
        return name

    for _ in range(2):
        loop.run(both.compare(*request(version, method, "")))
    server.remove_tool("another")
    del server._prompt_manager._prompts["another"]
    del server._resource_manager._resources["test://another"]
    del server._resource_manager._templates["test://another/{name}"]
    for key in [key for key in server._functions if "another" in key[1]]:
        del server._functions[key]
    loop.run(both.compare(*request(version, method, "")))


class Incomparable:
    """As an array of numpy: whether two are equal is not a bool."""

    def __eq__(self, other: object) -> Any:
        raise ValueError("ambiguous")


class Table(TextResource):
    data: Any = None


def test_a_list_changes_with_each_of_its_items(loop: asyncio.Runner, both: Both) -> None:
    resources = both.server._resource_manager._resources
    try:
        for description in ("first", "second", "second"):
            resources["test://table"] = Table(
                uri="test://table", name="table", text="", description=description, data=Incomparable()
            )
            for _ in range(2):
                loop.run(both.compare(*request(MODERN, "resources/list", "")))
    finally:
        del resources["test://table"]


ABSENT = object()
ODD_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1.0, 1.5, 2**63, 2**80, 10**120, "", "1", "é", "x" * 300, [], [1], {}, {"a": None})
]
ODD_HEADERS: Mapping[str, tuple[str, ...]] = {
    "host": ("localhost:8000", "example.com"),
    "origin": ("http://localhost:8000", "https://example.com"),
    "content-type": ("application/json; charset=utf-8", "Application/JSON", "text/plain", "application/jsonx", ""),
    "accept": (
        *("application/json", "text/event-stream", "*/*", "application/*;q=0.5", "text/html", ""),
        "APPLICATION/JSON , x/y",
    ),
    "mcp-protocol-version": (*VERSIONS, "2025-06-18", "2024-11-05", "1999-01-01", "", "é"),
    "mcp-method": ("tools/call", "TOOLS/CALL", "resources/read", "", "tools/list", "tools/call "),
    "mcp-name": ("echo", "=?base64?ZWNobw==?=", "=?base64?!?=", "ECHO", "", "é", "test://text", " echo"),
    "mcp-session-id": ("abc",),
    "mcp-param-region": ("eu", "us"),
    "last-event-id": ("1",),
    "x-other": ("1",),
    "content-length": ("5", "x"),
    "authorization": ("Bearer x",),
}
META_FIELDS: Mapping[str, list[Any]] = {
    "progressToken": [1, "a", 1.5, True, None, [], 2**80],
    "traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 1, None],
    "tracestate": ["a=1", []],
    "other": ODD_VALUES,
    PROTOCOL: [MODERN, LEGACY, None, 1, "", ABSENT],
    INFO: [None, {}, {"name": "a"}, {"name": "a", "version": "1", "title": "é", "x": 1}, 1, "a", ABSENT],
    CAPABILITIES: [None, {}, {"elicitation": {}}, {"sampling": 1}, [], {"x": {"y": None}}, ABSENT],
    LOG_LEVEL: ["info", "error", "loud", None, 1],
}
PARAMETERS: Mapping[str, list[Any]] = {
    "name": [*ODD_VALUES, "greet", ABSENT],
    "uri": [*ODD_VALUES, "test://text", ABSENT],
    "arguments": [*ODD_VALUES, {"value": [1, {"é": None}]}, ABSENT],
    "_meta": [*ODD_VALUES, ABSENT],
    "task": [None, {}, {"ttl": 1}, 1],
    "requestState": [None, "", "state", 1],
    "inputResponses": [None, {}, {"a": {"action": "accept"}}, 1],
    "cursor": [None, "a"],
    "x": [None, 1],
}
ENVELOPE: Mapping[str, list[Any]] = {
    "jsonrpc": [*ODD_VALUES, "2.0 ", 2.0, ABSENT],
    "id": [*ODD_VALUES, ABSENT, 'a"b\\\n\x7f'],
    "method": [*ODD_VALUES, ABSENT, "tools/list", "tools/call ", "ping", "resources/read", "server/discover"],
    "params": [*ODD_VALUES, ABSENT],
    "extra": [None, 1],
    "result": [{}],
    "error": [{"code": 1, "message": "a"}],
}


@dataclasses.dataclass
class Draft:
    """A request that is changed before it is sent."""

    version: str
    method: str
    name: str
    arguments: Mapping[str, Any] | None

    def __post_init__(self) -> None:
        self.params: dict[str, Any] = {}
        if self.method not in LISTS:
            self.params["uri" if self.method == "resources/read" else "name"] = self.name
        if self.arguments is not None:
            self.params["arguments"] = {**self.arguments}
        self.meta = meta_of(self.version)
        if self.meta:
            self.params["_meta"] = self.meta
        self.message = {"jsonrpc": "2.0", "id": 1, "method": self.method, "params": self.params}
        self.headers = raw(headers_of(self.version, self.method, self.name))
        self.http_method = "POST"
        self.rewrite: Callable[[bytes], bytes] = lambda body: body

    def sent(self) -> tuple[list[tuple[bytes, bytes]], bytes, str]:
        return self.headers, self.rewrite(json.dumps(self.message).encode()), self.http_method


Change = Callable[[Draft], None]


def _put(part: str, key: str, value: Any) -> Change:
    def change(draft: Draft) -> None:
        into: dict[str, Any] = getattr(draft, part)
        if part == "meta" and isinstance(draft.params.get("_meta", {}), dict):
            draft.params["_meta"] = into
        if value is ABSENT:
            into.pop(key, None)
        else:
            into[key] = copy.deepcopy(value)

    return change


def _header(name: str, value: Any, *, at: int | None = None) -> Change:
    """Replace a header, or put another one of its name to the beginning or the end."""

    def change(draft: Draft) -> None:
        if at is None:
            draft.headers = [header for header in draft.headers if header[0] != name.encode()]
        own = next((own for key, own in draft.headers if key == name.encode()), b"x")
        if value is not ABSENT:
            draft.headers.insert(at or 0, (name.encode(), own if value is None else value.encode()))

    return change


def _rewrite(how: Callable[[bytes], bytes]) -> Change:
    return lambda draft: vars(draft).update(rewrite=how)


def _changes() -> Iterator[Change]:
    for part, fields in (("message", ENVELOPE), ("params", PARAMETERS), ("meta", META_FIELDS)):
        for key, values in fields.items():
            yield from (_put(part, key, value) for value in values)
    for name, texts in ODD_HEADERS.items():
        yield from (_header(name, text) for text in (*texts, ABSENT))
        yield from (_header(name, text, at=at) for text in (*texts[:2], None) for at in (0, 99))
    yield from (_rewrite(how) for how in BODIES.values())
    yield from (lambda draft, method=method: vars(draft).update(http_method=method) for method in ("PUT", "DELETE"))


BODIES: Mapping[str, Callable[[bytes], bytes]] = {
    "truncated": lambda body: body[:-2],
    "twice": lambda body: body + body,
    "spaces": lambda body: b" \n" + body + b"\t ",
    "mark": lambda body: b"\xef\xbb\xbf" + body,
    "utf-16": lambda body: body.decode().encode("utf-16"),
    "utf-32": lambda body: body.decode().encode("utf-32"),
    "latin-1": lambda body: body + b"\xe9",
    "batch": lambda body: b"[" + body + b"]",
    "a member twice": lambda body: body[:-1] + b', "id": 7}',
    "a parameter twice": lambda body: body.replace(b'"params": {', b'"params": {"name": "absent", "uri": "test://x", '),
    "NaN": lambda body: body.replace(b"1", b"NaN", 1),
    "infinite id": lambda body: body.replace(b'"id": 1', b'"id": 1e999'),
    "number with a zero": lambda body: body.replace(b'"id": 1', b'"id": 01'),
    "negative zero": lambda body: body.replace(b'"id": 1', b'"id": -0'),
    "digits": lambda body: body.replace(b'"id": 1', b'"id": 1' + b"0" * 5000),
    "half a pair": lambda body: body.replace(b'"echo"', b'"ec\\ud800ho"'),
    "a half as id": lambda body: body.replace(b'"id": 1', b'"id": "\\udc00"'),
    "control character": lambda body: body.replace(b'"echo"', b'"ec\x01ho"'),
    "escaped name": lambda body: body.replace(b'"echo"', b'"\\u0065cho"'),
    "deep": lambda body: body.replace(b'"value": 0', b'"value": ' + b"[" * 90 + b"]" * 90),
    "deeper": lambda body: body.replace(b'"value": 0', b'"value": ' + b"[" * 150 + b"]" * 150),
    "deepest": lambda body: body.replace(b'"value": 0', b'"value": ' + b"[" * 5000),
    "empty": lambda body: b"",
    "null": lambda body: b"null",
    "text": lambda body: b'"text"',
}
CHANGES = [*_changes()]
ECHO = ("tools/call", "echo", {"value": 0})


@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_a_request_with_one_odd_thing_is_answered_as_by_the_sdk(loop: asyncio.Runner, both: Both, version: str) -> None:
    for change in CHANGES:
        draft = Draft(version, *ECHO)
        change(draft)
        loop.run(both.compare(*draft.sent()))


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[tuple[bytes, bytes]], bytes, str]:
    """Requests of which about half have something unusual."""
    kinds = [*ORDINARY, *[(method, "", None) for method in LISTS], *[ECHO] * 40]
    draft = Draft(draw(st.sampled_from(VERSIONS)), *draw(st.sampled_from(kinds)))
    if draw(st.booleans()):
        draft.message["id"] = draw(st.integers() | st.text(max_size=5))
    if draw(st.booleans()) and draft.arguments is not None:
        draft.params["arguments"] = {
            **draw(st.dictionaries(st.text(max_size=3), JSON, max_size=3)),
            **draft.arguments,
        }
    for change in draw(st.lists(st.sampled_from(CHANGES), max_size=2)):
        change(draft)
    return draft.sent()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def check(loop: asyncio.Runner, both: Both, count: int) -> None:
    before = both.direct
    sent = 0

    @settings(max_examples=count, suppress_health_check=list(HealthCheck))
    @given(requests())
    def compare(drawn: tuple[list[tuple[bytes, bytes]], bytes, str]) -> None:
        nonlocal sent
        sent += 1
        loop.run(both.compare(*drawn))

    compare()
    assert sent >= count * 0.9
    assert both.direct - before > sent / 4, "most requests are so unusual that the direct path is not tested"


@pytest.mark.parametrize("count", [400, pytest.param(2500, marks=pytest.mark.release)])
def test_random_requests_are_answered_as_by_the_sdk(loop: asyncio.Runner, both: Both, count: int) -> None:
    """With those that have one odd thing a run of this module sends more than 2,000 requests, on both paths each."""
    check(loop, both, count)


@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_a_call_leaves_nothing_to_the_garbage_collector(loop: asyncio.Runner, both: Both, version: str) -> None:
    def is_of_a_call(item: object) -> bool:
        return isinstance(item, MCPRequest | sdk_direct.Call | DeferredResponse)

    call = request(version, *ECHO)
    loop.run(both.send(*call, on=True))
    gc.collect()
    gc.disable()
    earlier = {id(item) for item in gc.get_objects() if is_of_a_call(item)}
    try:
        loop.run(both.send(*call, on=True))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [item for item in gc.garbage if is_of_a_call(item) and id(item) not in earlier]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


@pytest.mark.parametrize("has_outer", [True, False])
@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_other_middleware_stays_around_a_call(version: str, *, has_outer: bool) -> None:
    pair = Both()

    async def outer(ctx: ServerRequestContext[Any, Any], call_next: SDKCallNext) -> Result:
        result = await call_next(ctx)
        assert isinstance(result, dict)
        return result | {"_meta": {"outer": ctx.method, "small": 1e-7, "none": None}}

    async def inner(ctx: ServerRequestContext[Any, Any], call_next: SDKCallNext) -> Result:
        if (ctx.params or {}).get("name") == "renamed":
            ctx = dataclasses.replace(ctx, params={**(ctx.params or {}), "name": "echo"})
        if (ctx.params or {}).get("name") == "broken":
            ctx = dataclasses.replace(ctx, params={"name": 1})
        if (ctx.params or {}).get("name") == "crash":
            raise ValueError("crash")
        return await call_next(ctx)

    if has_outer:
        pair.server.middleware.insert(0, outer)
    pair.server.middleware.append(inner)

    async def compare() -> None:
        async with pair.server.session_manager.run():
            for name in ("renamed", "echo", "broken", "crash"):
                await pair.compare(*request(version, "tools/call", name, {"value": "é"}))

    asyncio.run(compare())
    assert pair.direct == 4


class OfAFeature:
    """Middleware of the project's, which does not change requests."""

    __module__ = f"{PRODUCTION}.feature"

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: SDKCallNext) -> Result:
        result = await call_next(ctx)
        assert isinstance(result, dict)
        return result | {"_meta": {"feature": ctx.method}}


@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_middleware_of_a_feature_stays_around_a_call_as_in_the_sdk(version: str) -> None:
    pair = Both()
    pair.server.middleware.append(OfAFeature())

    async def compare() -> None:
        async with pair.server.session_manager.run():
            await pair.compare(*request(version, "tools/call", "echo", {"value": "é"}))
            status, _, body = await pair.send(*request(version, "tools/call", "echo", {"value": "é"}), on=True)
            assert (status, b'"feature":"tools/call"' in body) == (200, True)

    asyncio.run(compare())


@pytest.mark.parametrize("version", [MODERN, LEGACY])
def test_a_drain_rejects_and_cancels_as_on_the_path_of_the_sdk(version: str) -> None:
    pair = Both(shutdown_grace_seconds=0.0)
    server = pair.server
    slow = request(version, "tools/call", "slow", {})

    async def cancelled(*, on: bool) -> Any:
        call = asyncio.create_task(pair.send(*slow, on=on))
        await until(lambda: asyncio.sleep(0, server.drain._calls))
        await server.drain.run(0.0)
        server.drain._expired = False
        return await call

    async def compare() -> None:
        async with server.session_manager.run():
            assert await cancelled(on=True) == await cancelled(on=False)
            server.registry.draining = True
            await pair.compare(*request(version, "tools/call", "echo", {}))
            await pair.compare(*request(version, "resources/read", "test://text"))

    asyncio.run(compare())
    assert pair.direct == 2


def test_the_switch_turns_the_direct_path_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_direct(server: Running) -> bool:
        return server.registry.http.direct is DirectPath

    with serve(register) as server:
        assert is_direct(server)
        assert server.call("echo", {"value": 1})["content"][0]["text"] == "1"
    with serve(register, response_mode="sse") as server:
        assert not is_direct(server)
    monkeypatch.setenv("DIRECT", "false")
    with serve(register) as server:
        assert not is_direct(server)
        assert not any("direct path" in notice for notice in server.registry.notices)
        assert server.call("echo", {"value": 1})["content"][0]["text"] == "1"


def test_an_sdk_that_is_not_known_turns_the_direct_path_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def notices() -> list[str]:
        return [notice for notice in create_server(config()).registry.notices if "the direct path is off" in notice]

    assert sdk_direct.digest() in sdk_direct.VERIFIED
    assert notices() == []
    original = ServerRunner._on_request

    async def instrumented(*args: Any) -> Any:
        return await original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(ServerRunner, "_on_request", instrumented)
        assert len(notices()) == 1
    monkeypatch.setattr(sdk_direct, "VERIFIED", frozenset(("another",)))
    assert len(notices()) == 1


def test_callers_with_other_permissions_have_lists_of_their_own() -> None:
    pair = Both()
    shown: dict[str, Any] = {}
    pair.server.registry.visibility_key = lambda caller: shown["to"]

    async def compare() -> None:
        async with pair.server.session_manager.run():
            call = request(MODERN, "tools/list", "")
            shown["to"] = frozenset()
            first = await pair.send(*call, on=True)
            handlers = pair.path._handlers
            assert len(handlers._lists) == 1
            shown["to"] = frozenset({"more"})
            assert await pair.send(*call, on=True) == first
            assert len(handlers._lists) == 2
            for number in range(100):
                shown["to"] = number
                await pair.send(*call, on=True)
            assert len(handlers._lists) <= sdk_direct.MAX_LISTS

    asyncio.run(compare())
