"""Responses of `auto`: JSON for a quick answer, an event stream for what comes before the answer of a longer call."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver import Context

from clocks import VirtualLoop
from harness import HEADERS, Running, Serve, config, message, modern, rebuild_pipeline, running, wait_for
from held import open_session
from weather_station.production.config import ConfigError
from weather_station.production.inbound.http_limits import HEADERS as READ_HEADERS
from weather_station.production.inbound.http_limits import IS_LISTEN, RECEIVE, TASK
from weather_station.production.inbound.response_mode import (
    BLANK,
    COMMENT,
    WATCH_AFTER_SECONDS,
    DeferredResponse,
    Form,
    Responses,
    accepts_stream,
)
from weather_station.production.request import CallNext, MCPRequest, Result
from weather_station.production.sdk import ProductionServer

JSON = {"accept": "application/json"}
MARK = 'a "token" of\nthe client: {"jsonrpc":"2.0","id":1,"result":{}}'

ways = pytest.mark.parametrize(
    ("protocol", "session_mode"),
    [("legacy", "stateless"), ("modern", "stateless"), ("legacy", "stateful"), ("modern", "stateful")],
)


class Tools:
    """Tools whose calls a test follows and ends."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.started, self.end = threading.Event(), threading.Event()
        self.cancelled, self.ended = threading.Event(), threading.Event()

    def __call__(self, server: ProductionServer) -> None:
        server.tool()(self.quick)
        server.tool()(self.progress)
        server.tool()(self.held)
        server.tool()(self.odd)

    async def quick(self) -> str:
        return "quick"

    async def progress(self, ctx: Context[Any, Any]) -> str:
        for step in (1, 2):
            await ctx.report_progress(step, 2, MARK)
        return "after progress"

    async def odd(self, ctx: Context[Any, Any]) -> str:
        await ctx.report_progress(1, 2, "a\ud800")
        text: Any = type("Text", (), {"__str__": lambda self: "text"})()
        await ctx.report_progress(math.nan, 2, text)
        return "odd"

    async def held(self) -> str:
        end, cancelled, ended = self.end, self.cancelled, self.ended
        self.started.set()
        try:
            await anyio.to_thread.run_sync(end.wait, abandon_on_cancel=True)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        ended.set()
        return "held"


Servers = Callable[..., tuple[Running, Tools]]


@pytest.fixture(scope="module")
def all_servers() -> Iterator[Servers]:
    """Start each server once."""
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as environment:

        @functools.cache
        def start(mode: str, session_mode: str, sse_after: str = "10") -> tuple[Running, Tools]:
            environment.setenv("SSE_AFTER_SECONDS", sse_after)
            tools = Tools()
            settings = config(response_mode=mode, session_mode=session_mode)
            return stack.enter_context(running(settings, tools)), tools

        yield start


@pytest.fixture
def servers(all_servers: Servers) -> Iterator[Servers]:
    used: list[Tools] = []

    def start(*arguments: str) -> tuple[Running, Tools]:
        server, tools = all_servers(*arguments)
        tools.reset()
        used.append(tools)
        return server, tools

    yield start
    for tools in used:
        tools.end.set()


def tool_call(
    protocol: str, session: dict[str, str], name: str, *, token: str | None = MARK, number: Any = 1
) -> tuple[dict[str, Any], dict[str, str]]:
    params: dict[str, Any] = {"name": name, "arguments": {}}
    content, headers = (
        (message("tools/call", params), dict(HEADERS)) if protocol == "legacy" else modern("tools/call", params)
    )
    if token is not None:
        content["params"].setdefault("_meta", {})["progressToken"] = token
    return content | {"id": number}, headers | (session if protocol == "legacy" else {})


def session_of(url: str, session_mode: str) -> dict[str, str]:
    return open_session(url) if session_mode == "stateful" else {}


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


@ways
def test_a_quick_answer_is_json(servers: Servers, protocol: str, session_mode: str) -> None:
    server, _ = servers("auto", session_mode)
    session = session_of(server.url, session_mode)
    for number in (1, "1", 'id","method":"x', "", 2**53):
        for name, token in (("quick", MARK), ("progress", None), ("missing", MARK)):
            content, headers = tool_call(protocol, session, name, token=token, number=number)
            response = server.client.post(server.url, json=content, headers=headers)
            assert response.status_code == 200
            assert response.headers["content-type"] == "application/json"
            assert response.json()["id"] == number
        assert response.json()["result"]["isError"] is True


@ways
@pytest.mark.parametrize("accept", ["application/json, text/event-stream", "*/*", "application/json;q=0.5, Text/*"])
def test_progress_makes_the_response_a_stream(servers: Servers, protocol: str, session_mode: str, accept: str) -> None:
    server, _ = servers("auto", session_mode)
    content, headers = tool_call(protocol, session_of(server.url, session_mode), "progress")
    response = server.client.post(server.url, json=content, headers=headers | {"accept": accept})
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["x-accel-buffering"] == "no"
    first, second, answer = events(response.text)
    for number, notification in enumerate((first, second), 1):
        assert notification["method"] == "notifications/progress"
        params = notification["params"]
        assert (params["progressToken"], params["progress"], params["message"]) == (MARK, number, MARK)
    assert (answer["id"], answer["result"]["content"][0]["text"]) == (1, "after progress")


@ways
@pytest.mark.parametrize("mode", ["auto", "sse", "json"])
def test_what_json_lacks_in_a_notification_does_not_fail_its_call(
    servers: Servers, protocol: str, session_mode: str, mode: str
) -> None:
    server, _ = servers(mode, session_mode)
    content, headers = tool_call(protocol, session_of(server.url, session_mode), "odd")
    response = server.client.post(server.url, json=content, headers=headers)
    answer = response.json() if mode == "json" else events(response.text)[-1]
    assert answer["result"]["content"][0]["text"] == "odd"
    if mode != "json":
        (texts, sent) = [event["params"] for event in events(response.text)[:-1]]
        assert texts["message"] == "a\ufffd"
        assert (sent["progress"], sent["message"]) == (None, "text")


@ways
def test_accept_may_have_several_lines(servers: Servers, protocol: str, session_mode: str) -> None:
    server, _ = servers("auto", session_mode)
    content, headers = tool_call(protocol, session_of(server.url, session_mode), "progress")
    others = [(name, value) for name, value in headers.items() if name != "accept"]
    for first, second in itertools.permutations(("application/json", "text/event-stream")):
        lines = [*others, ("accept", first), ("accept", second)]
        response = server.client.post(server.url, json=content, headers=lines)
        assert response.headers["content-type"] == "text/event-stream", response.text


@pytest.mark.parametrize("session_mode", ["stateless", "stateful"])
def test_a_call_is_no_subscription_by_its_header(servers: Servers, session_mode: str) -> None:
    server, _ = servers("auto", session_mode)
    content, headers = tool_call("legacy", session_of(server.url, session_mode), "progress")
    response = server.client.post(server.url, json=content, headers=headers | {"mcp-method": "subscriptions/listen"})
    assert len(events(response.text)) == 3


@ways
async def test_a_silent_call_becomes_a_stream_with_comments(
    servers: Servers, http: httpx2.AsyncClient, protocol: str, session_mode: str
) -> None:
    server, tools = servers("auto", session_mode, "0.05")
    content, headers = tool_call(protocol, session_of(server.url, session_mode), "held")
    received = await received_until_the_end(http, server.url, tools, content, headers, "text/event-stream", 3 * COMMENT)
    (answer,) = events(received.decode())
    assert answer["result"]["content"][0]["text"] == "held"


def test_a_session_has_its_id_however_long_initialize_takes(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_AFTER_SECONDS", "0.05")

    async def slow(request: MCPRequest, call_next: CallNext) -> Result:
        await asyncio.sleep(0.3)
        return await call_next(request)

    def register(server: ProductionServer) -> None:
        server.registry.middleware["metrics"] = slow
        rebuild_pipeline(server)

    with serve(register, response_mode="auto", session_mode="stateful") as server:
        assert open_session(server.url)["mcp-session-id"]


@ways
async def test_a_silent_call_of_a_client_that_accepts_only_json_sends_blanks(
    servers: Servers, http: httpx2.AsyncClient, protocol: str, session_mode: str
) -> None:
    server, tools = servers("auto", session_mode, "0.05")
    content, headers = tool_call(protocol, session_of(server.url, session_mode), "held")
    received = await received_until_the_end(
        http, server.url, tools, content, headers | JSON, "application/json", 3 * BLANK
    )
    assert json.loads(received)["result"]["content"][0]["text"] == "held"


async def received_until_the_end(
    http: httpx2.AsyncClient,
    url: str,
    tools: Tools,
    content: dict[str, Any],
    headers: dict[str, str],
    media_type: str,
    before: bytes,
) -> bytes:
    """Return the whole body of a held call, which ends as soon as the client has received `before`."""
    received = b""
    async with http.stream("POST", url, json=content, headers=headers) as response:
        assert response.headers["content-type"] == media_type
        async for chunk in response.aiter_raw():
            received += chunk
            if received == before:
                tools.end.set()
    return received


@ways
@pytest.mark.parametrize("mode", ["auto", "json"])
async def test_a_client_that_accepts_only_json_gets_json(
    servers: Servers, http: httpx2.AsyncClient, mode: str, protocol: str, session_mode: str
) -> None:
    server, tools = servers(mode, session_mode, "0.05")
    session = session_of(server.url, session_mode)
    for name in ("quick", "progress", "held"):
        content, headers = tool_call(protocol, session, name)
        call = asyncio.create_task(http.post(server.url, json=content, headers=headers | JSON))
        if name == "held":
            await anyio.to_thread.run_sync(tools.started.wait)
            await anyio.sleep(0.15)  # three times what it takes until another client has a stream
            tools.end.set()
        response = await call
        assert response.headers["content-type"] == "application/json"
        assert response.json()["result"]["content"][0]["text"].endswith(name)
        assert response.content.startswith(BLANK) is (mode == "auto" and name == "held")
    refused = await http.post(server.url, json=content, headers=headers | {"accept": "text/html"})
    assert refused.status_code == 406


@pytest.mark.parametrize(
    ("mode", "accept"), [("auto", HEADERS["accept"]), ("auto", JSON["accept"]), ("json", "*/*"), ("sse", "*/*")]
)
@ways
async def test_a_client_that_leaves_cancels_its_call(
    servers: Servers, http: httpx2.AsyncClient, mode: str, accept: str, protocol: str, session_mode: str
) -> None:
    """In a session the call goes on: the client may have lost its connection only."""
    server, tools = servers(mode, session_mode)
    content, headers = tool_call(protocol, session_of(server.url, session_mode), "held")
    call = asyncio.create_task(http.post(server.url, json=content, headers=headers | {"accept": accept}))
    await anyio.to_thread.run_sync(tools.started.wait)
    call.cancel()
    await asyncio.wait([call])
    if session_mode == "stateful" and protocol == "legacy":
        await anyio.sleep(2 * WATCH_AFTER_SECONDS)
        tools.end.set()
        await anyio.to_thread.run_sync(lambda: wait_for(tools.ended.is_set))
    else:
        await anyio.to_thread.run_sync(lambda: wait_for(tools.cancelled.is_set))


async def test_a_call_whose_session_ends_gets_an_error(servers: Servers, http: httpx2.AsyncClient) -> None:
    server, tools = servers("auto", "stateful")
    content, headers = tool_call("legacy", open_session(server.url), "held")
    call = asyncio.create_task(http.post(server.url, json=content, headers=headers))
    await anyio.to_thread.run_sync(tools.started.wait)
    assert (await http.delete(server.url, headers=headers)).status_code == 200
    response = await call
    assert response.status_code == 500
    assert "session ended" in response.json()["error"]["message"]


async def test_a_stream_whose_session_ends_is_closed(servers: Servers, http: httpx2.AsyncClient) -> None:
    server, _ = servers("auto", "stateful", "0.05")
    content, headers = tool_call("legacy", open_session(server.url), "held")
    async with http.stream("POST", server.url, json=content, headers=headers) as response:
        received = response.aiter_raw()
        assert await anext(received) == COMMENT
        assert (await http.delete(server.url, headers=headers)).status_code == 200
        assert b"".join([chunk async for chunk in received]).replace(COMMENT, b"") == b""


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_setting_that_is_no_duration_stops_the_start(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("SSE_AFTER_SECONDS", value)
    with pytest.raises(ConfigError, match="SSE_AFTER_SECONDS: "), serve(response_mode="auto"):
        pass


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        (b"", False),
        (b"application/json", False),
        (b"application/*", False),
        (b"text/event-stream2", False),
        (b"text/event-stream", True),
        (b"TEXT/Event-Stream ; q=1", True),
        (b"text/*", True),
        (b"text/html,*/*;q=0.8", True),
        (b"text/event-stream;q=0", False),
        (b"application/json, */*; Q=0.000", False),
        (b"*/*, text/event-stream;q=0", False),
        (b"*/*;q=0, text/*;q=0.001", True),
        (b"text/event-stream;x=y;q=0.", False),
        (b"text/event-stream;q=no", True),
    ],
)
def test_the_types_of_an_event_stream_are_recognized(accept: bytes, accepted: bool) -> None:
    assert accepts_stream(accept) is accepted


# --- The response as such ------------------------------------------------------------------------------------


class Sent:
    """What a response has sent to the client."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, message: Any) -> None:
        await asyncio.sleep(0)  # as with a client that reads slowly
        assert not self.messages or self.messages[-1].get("more_body", True) or "status" in self.messages[-1]
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


@pytest.fixture
async def respond() -> AsyncIterator[Callable[[float | None], tuple[DeferredResponse, Sent]]]:
    made: list[DeferredResponse] = []

    def make(begins_after: float | None) -> tuple[DeferredResponse, Sent]:
        sent = Sent()
        task = asyncio.current_task()
        assert task is not None
        scope = {TASK: task, READ_HEADERS: {b"accept": b"*/*"}}
        made.append(DeferredResponse(scope, sent, Form(begins_after is not None, begins_after, is_watched=False)))
        if begins_after is not None:
            made[-1].start_tasks(begins_after)
        return made[-1], sent

    yield make
    for response in made:
        response.close()


Respond = Callable[[float | None], tuple[DeferredResponse, Sent]]


async def test_after_the_answer_nothing_is_sent(respond: Respond) -> None:
    response, sent = respond(0.001)
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(response.event(b"data: %d\r\n\r\n" % number))
        group.create_task(response.answer(200, [], b"{}"))
        for number in range(20):
            group.create_task(response.event(b"data: late %d\r\n\r\n" % number))
    length = len(sent.messages)
    await asyncio.sleep(0.02)  # twenty times the interval of comments
    assert len(sent.messages) == length
    assert sent.body.endswith(b"data: {}\r\n\r\n")
    assert b"late" not in sent.body
    assert response.complete


async def test_an_answer_is_sent_once_and_as_it_is(respond: Respond) -> None:
    response, sent = respond(None)
    await response.event(b"data: left out\r\n\r\n")
    await response.answer(404, [(b"x-a", b"b")], b"body")
    await response.answer(200, [], b"again")
    assert sent.messages == [
        {"type": "http.response.start", "status": 404, "headers": [(b"x-a", b"b")]},
        {"type": "http.response.body", "body": b"body"},
    ]


async def test_a_call_that_ends_while_its_stream_begins_has_an_answer() -> None:
    messages: list[Any] = []
    block = asyncio.Event()

    async def send(message: Any) -> None:
        if message.get("headers"):
            await block.wait()  # the client does not read
        messages.append(message)

    scope = {TASK: None, READ_HEADERS: {b"accept": b"*/*"}}
    response = DeferredResponse(scope, send, Form(streams=True, begins_after=None, is_watched=False))
    task = asyncio.create_task(response.notify("notifications/progress", {}))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await response.answer(200, [], b"timed out")
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]


def ages_when_tasks_start(calls: list[tuple[float, float]]) -> list[list[float]]:
    """Return at which ages the tasks of each call start; a call begins some seconds after the last and takes others."""
    loop = VirtualLoop()
    starts: list[float] = []
    ages: list[list[float]] = [[] for _ in calls]
    numbers: dict[object, int] = {}
    registry: Any = SimpleNamespace(config=config(response_mode="auto"))
    unused: Any = None

    def start_tasks(response: DeferredResponse, age: float) -> None:
        number = numbers[response.task]
        assert age <= loop.now - starts[number]
        ages[number].append(loop.now - starts[number])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(calls[numbers[asyncio.current_task()]][1])

    async def call(number: int) -> None:
        task = asyncio.current_task()
        numbers[task] = number
        scope = {"method": "POST", IS_LISTEN: False, READ_HEADERS: {}, TASK: task, RECEIVE: None}
        await responses(scope, unused, unused)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for number, (wait, _) in enumerate(calls):
                await asyncio.sleep(wait)
                starts.append(loop.now)
                group.create_task(call(number))

    responses = Responses(registry, app, 1.0)
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(loop):
        patch.setattr(DeferredResponse, "start_tasks", start_tasks)
        loop.run_until_complete(run())
    return ages


parts = st.integers(0, 12).map(lambda number: (number + 0.5) * WATCH_AFTER_SECONDS / 8)


@pytest.mark.pure
@given(st.lists(st.tuples(parts, parts), max_size=12))
def test_the_tasks_of_a_call_start_once_when_it_takes_long(calls: list[tuple[float, float]]) -> None:
    for (_, duration), ages in zip(calls, ages_when_tasks_start(calls), strict=True):
        assert len(ages) <= 1
        assert all(WATCH_AFTER_SECONDS / 2 <= age <= min(WATCH_AFTER_SECONDS, duration) for age in ages)
        if duration > WATCH_AFTER_SECONDS:
            assert ages
