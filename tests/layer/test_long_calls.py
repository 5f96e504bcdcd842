"""Calls that take long: cancellation without sessions, and the time in which a call waits for its user."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import AsyncIterator, Callable
from types import FunctionType, ModuleType
from typing import Any

import anyio
import httpx2
import pytest
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from harness import (
    HEADERS,
    INITIALIZE,
    MODERN,
    Running,
    Serve,
    config,
    message,
    rebuild_pipeline,
    stdio_process,
    text_of,
    wait_for,
)
from held import open_session
from weather_station.production import policy
from weather_station.production.config import ConfigError
from weather_station.production.inbound.long_calls import REQUEST_CANCELLED, reports_progress
from weather_station.production.request import CallNext, MCPRequest, Result
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

PROXY = {"trusted_proxies": ("127.0.0.1",)}
ALICE, BOB = {"x-forwarded-for": "203.0.113.1"}, {"x-forwarded-for": "203.0.113.2"}


class Answer(BaseModel):
    sure: bool


class Tools:
    """Tools that a test ends, and the outcomes of their calls."""

    def __init__(self) -> None:
        self.running = 0
        self.end = threading.Event()
        self.outcomes: list[tuple[str, str | None]] = []
        self.cancels = 0

    def __call__(self, server: ProductionServer) -> None:
        cancel_call = server.registry.cancel_call

        def count_cancel(caller_id: str, request_id: object) -> None:
            cancel_call(caller_id, request_id)
            self.cancels += 1

        server.registry.cancel_call = count_cancel
        server.tool()(self.held)
        server.tool()(ask)
        server.registry.middleware["metrics"] = self.record
        rebuild_pipeline(server)

    async def record(self, request: MCPRequest, call_next: CallNext) -> Result:
        try:
            return await call_next(request)
        finally:
            self.outcomes.append((request.status, request.error_type))

    async def held(self) -> str:
        self.running += 1
        try:
            await anyio.to_thread.run_sync(self.end.wait, abandon_on_cancel=True)
        finally:
            self.running -= 1
        return "held"

    async def wait_for_running(self, count: int) -> None:
        await anyio.to_thread.run_sync(lambda: wait_for(lambda: self.running == count))


async def ask(ctx: Context[Any, Any], seconds: float = 0.0) -> str:
    answer = await ctx.elicit("Are you sure\ud800?", Answer)  # a lone surrogate, which JSON lacks
    await anyio.sleep(seconds)
    return str(answer)


def register(server: ProductionServer) -> None:
    server.tool()(ask)


# --- notifications/cancelled without sessions ----------------------------------------------------------------


class Calls:
    """Running calls of the tool `held`, by callers at other addresses."""

    def __init__(self, server: Running, tools: Tools, http: httpx2.AsyncClient) -> None:
        self._server, self._tools, self._http = server, tools, http
        self.calls: list[asyncio.Task[httpx2.Response]] = []
        self._handled = 0
        cancel_call = server.registry.cancel_call

        def count(caller_id: str, request_id: object) -> None:
            cancel_call(caller_id, request_id)
            self._handled += 1

        server.registry.cancel_call = count

    async def start(self, number: Any, caller: dict[str, str]) -> asyncio.Task[httpx2.Response]:
        content = self._server.request("held") | {"id": number}
        call = asyncio.create_task(self._http.post(self._server.url, json=content, headers=HEADERS | caller))
        self.calls.append(call)
        await self._tools.wait_for_running(len(self.calls))
        return call

    async def cancel(self, number: Any, caller: dict[str, str], **headers: str) -> None:
        content = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}}
        handled = self._handled
        response = await self._http.post(self._server.url, json=content, headers=HEADERS | caller | headers)
        assert response.status_code == 202
        if not headers:  # the SDK answers before it handles the notification, and drops one of `MODERN`
            await anyio.to_thread.run_sync(lambda: wait_for(lambda: self._handled > handled))


@pytest.fixture(params=["json", "auto", "sse"])
async def calls(
    request: pytest.FixtureRequest, serve: Serve, http: httpx2.AsyncClient
) -> AsyncIterator[tuple[Calls, Tools]]:
    tools = Tools()
    with serve(tools, response_mode=request.param, **PROXY) as server:
        made = Calls(server, tools, http)
        yield made, tools
        tools.end.set()
        await asyncio.gather(*made.calls)


def answer_of(response: httpx2.Response) -> dict[str, Any]:
    text = response.text
    answer: dict[str, Any] = json.loads(text if text.startswith("{") else text.partition("data: ")[2].splitlines()[0])
    return answer


@pytest.mark.parametrize(("number", "cancelled"), [(7, 7), ("7", "7"), (7, "7"), ("a b", "a b")])
async def test_a_client_cancels_its_call_by_id(calls: tuple[Calls, Tools], number: Any, cancelled: Any) -> None:
    made, tools = calls
    call = await made.start(number, ALICE)
    await made.cancel(cancelled, ALICE)
    answer = answer_of(await call)
    assert answer["id"] == number
    assert (answer["error"]["code"], answer["error"]["message"]) == (REQUEST_CANCELLED, "Request cancelled")
    assert tools.running == 0
    assert ("client_error", "Cancelled") in tools.outcomes
    made.calls.clear()
    await made.cancel(cancelled, ALICE)  # there is nothing left to cancel
    await anyio.to_thread.run_sync(lambda: wait_for(lambda: tools.cancels == 2))  # 202 comes before it is handled
    next_call = await made.start(number, ALICE)
    tools.end.set()
    assert "result" in answer_of(await next_call)


async def test_only_one_running_call_of_the_same_caller_is_cancelled(calls: tuple[Calls, Tools]) -> None:
    made, tools = calls
    named_like_values = (("None", ALICE), ("True", ALICE), ("4.0", ALICE))
    for number, caller in ((1, ALICE), (1, ALICE), (2, ALICE), (1, BOB), (3, BOB), *named_like_values):
        await made.start(number, caller)
    others: list[Any] = [1, 3, None, 4, 4.0, [2], {"a": 2}, True]
    for other in others:  # several have it, another caller has it, or none
        await made.cancel(other, ALICE)
    await made.cancel(2, ALICE, **{"mcp-protocol-version": MODERN})  # where a client cancels by leaving
    await made.cancel(2, ALICE)
    await tools.wait_for_running(7)
    tools.end.set()
    answers = [answer_of(call) for call in await asyncio.gather(*made.calls)]
    assert ["error" in answer for answer in answers] == [False, False, True, False, False, False, False, False]


# --- Waiting for the user ------------------------------------------------------------------------------------


class Session:
    """A client with a session, which gets the server's questions in the streams of its calls."""

    def __init__(self, server: Running, http: httpx2.AsyncClient) -> None:
        self._server, self._http = server, http
        self._headers = HEADERS | open_session(server.url, {"elicitation": {}})

    async def call(self, *waits: float, **arguments: Any) -> dict[str, Any]:
        """Call `ask` and answer its question after the time given."""
        content = self._server.request("ask", arguments)
        async with self._http.stream("POST", self._server.url, json=content, headers=self._headers) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data: "):
                    received = json.loads(line.removeprefix("data: "))
                    if "method" not in received:
                        return dict(received)
                    if received["method"] != "elicitation/create":  # the server gives up
                        continue
                    for seconds in waits:
                        await anyio.sleep(seconds)
                        await self.answer(received["id"])
        raise AssertionError("no answer")

    async def answer(self, number: int) -> None:
        result = {"action": "accept", "content": {"sure": True}}
        content = {"jsonrpc": "2.0", "id": number, "result": result}
        assert (await self._http.post(self._server.url, json=content, headers=self._headers)).status_code == 202


@pytest.mark.parametrize("response_mode", ["auto", "sse"])
async def test_waiting_for_the_user_is_not_time_of_the_tool(
    serve: Serve, http: httpx2.AsyncClient, response_mode: str
) -> None:
    with serve(register, session_mode="stateful", response_mode=response_mode, tool_timeout_seconds=0.3) as server:
        session = Session(server, http)
        answered = await session.call(0.6, seconds=0.0)
        assert "sure=True" in text_of(answered["result"])
        late = await session.call(0.6, seconds=60.0)  # what follows is
        assert text_of(late["result"]) == "Tool ask did not finish within 0.3 seconds and was stopped."


async def test_waiting_for_the_client_itself_is_time_of_the_tool(serve: Serve, http: httpx2.AsyncClient) -> None:
    async def ping(ctx: Context[Any, Any]) -> None:
        await ctx.session.send_ping()

    with serve(
        lambda server: server.tool()(ping), session_mode="stateful", response_mode="auto", tool_timeout_seconds=0.3
    ) as server:
        headers = HEADERS | open_session(server.url)
        response = await http.post(server.url, json=server.request("ping"), headers=headers)
    assert "Tool ping did not finish within 0.3 seconds" in response.text


def test_waiting_for_the_user_over_stdio() -> None:
    with stdio_process("test_long_calls:register", TOOL_TIMEOUT_SECONDS=0.3) as server:
        initialize = json.loads(json.dumps(INITIALIZE))
        initialize["params"]["capabilities"] = {"elicitation": {}}
        server.send(initialize)
        server.receive()
        server.send({"method": "notifications/initialized"})
        server.send(message("tools/call", {"name": "ask", "arguments": {}}))
        question = json.loads(server.receive())
        assert question["method"] == "elicitation/create"
        threading.Event().wait(0.6)  # twice the timeout
        server.send({"id": question["id"], "result": {"action": "decline"}})
        assert "decline" in text_of(json.loads(server.receive())["result"])


async def test_a_user_who_does_not_answer_ends_the_call(
    serve: Serve, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER_TIMEOUT_SECONDS", "0.2")
    with serve(register, session_mode="stateful", response_mode="auto", tool_timeout_seconds=60) as server:
        answer = await Session(server, http).call()
    assert "timed out" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("response_mode", "accept"),
    [("auto", {"accept": "application/json"}), ("json", {"accept": "application/json"}), ("json", {})],
)
async def test_a_client_that_cannot_be_asked_gets_an_error_at_once(
    serve: Serve, http: httpx2.AsyncClient, response_mode: str, accept: dict[str, str]
) -> None:
    with serve(register, session_mode="stateful", response_mode=response_mode) as server:
        headers = HEADERS | open_session(server.url, {"elicitation": {}}) | accept
        response = await http.post(server.url, json=server.request("ask"), headers=headers)
    assert "no back-channel" in response.text.lower()


def test_a_time_for_the_user_that_is_none_stops_the_start(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER_TIMEOUT_SECONDS", "never")
    with pytest.raises(ConfigError, match="USER_TIMEOUT_SECONDS: "), serve():
        pass


# --- Notices -------------------------------------------------------------------------------------------------


async def with_progress(ctx: Context[Any, Any]) -> None:
    await ctx.report_progress(1)


async def with_progress_inside(ctx: Context[Any, Any]) -> None:
    async def step(number: int) -> None:
        await ctx.report_progress(number)

    await step(1)


def passing(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def run(*arguments: Any, **options: Any) -> None:
        await fn(*arguments, **options)

    return run


def reporting(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def run(ctx: Context[Any, Any]) -> None:
        await ctx.report_progress(0)

    return run


@reporting
async def decorated(ctx: Context[Any, Any]) -> None:
    pass


async def with_helper(ctx: Context[Any, Any]) -> None:
    await with_progress_inside(ctx)


async def with_helper_of_a_module(ctx: Context[Any, Any]) -> None:
    await helpers.with_helper(ctx)


helpers = ModuleType("helpers")
vars(helpers)["with_helper"] = with_helper


class Owner:
    async def method(self, ctx: Context[Any, Any]) -> None:
        await ctx.report_progress(1)

    async def __call__(self, ctx: Context[Any, Any]) -> None:
        await with_helper(ctx)


async def recursive() -> None:
    await recursive()


async def other_package() -> None:
    other.report()


async def same_name(mapping: dict[str, int]) -> None:
    mapping.with_progress()  # type: ignore[attr-defined]


other = ModuleType("other")
vars(other)["report"] = FunctionType(with_progress.__code__, vars(other))


async def silent(text: str = "report_progress") -> str:
    return text


without_module = FunctionType(with_progress.__code__, {})

REPORTING: list[Callable[..., Any]] = [
    without_module,
    with_progress,
    with_progress_inside,
    passing(with_progress),
    decorated,
    with_helper,
    with_helper_of_a_module,
    functools.partial(with_progress),
    Owner().method,
    Owner(),
]


@pytest.mark.parametrize("fn", REPORTING)
def test_a_function_that_reports_progress_is_recognized(fn: Callable[..., Any]) -> None:
    assert reports_progress(fn)


OTHERS: list[Any] = [
    silent,
    recursive,
    same_name,
    other_package,
    len,
    functools.partial(silent, "x"),
    None,
]


@pytest.mark.parametrize("fn", OTHERS)
def test_another_function_is_not(fn: Callable[..., Any] | None) -> None:
    assert not reports_progress(fn)


class Odd:
    """An object that fails whenever it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_an_object_that_cannot_be_looked_at_stops_no_start() -> None:
    odd: Any = Odd()
    wrapper = FunctionType(other_package.__code__, {"other": odd})
    vars(wrapper)["__wrapped__"] = odd
    assert not reports_progress(wrapper)
    assert not reports_progress(odd)


JSON_PROGRESS = "RESPONSE_MODE=json leaves out the progress of with_progress: set RESPONSE_MODE=auto"
LATE = ": with RESPONSE_MODE=json a proxy in front gives up no later than that, after PROXY_TIMEOUT_SECONDS="
ADVICE = ": set RESPONSE_MODE=auto, or raise the proxy's timeout and PROXY_TIMEOUT_SECONDS"


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ({"response_mode": "json"}, {}, [JSON_PROGRESS, f"policy(timeout=100) of late{LATE}90{ADVICE}"]),
        ({"response_mode": "json"}, {"PROXY_TIMEOUT_SECONDS": "101"}, [JSON_PROGRESS]),
        (
            {"response_mode": "json", "tool_timeout_seconds": 300.0},
            {"PROXY_TIMEOUT_SECONDS": "101"},
            [JSON_PROGRESS, f"TOOL_TIMEOUT_SECONDS=300{LATE}101{ADVICE}"],
        ),
        ({"response_mode": "auto", "tool_timeout_seconds": 300.0}, {}, []),
        ({"response_mode": "sse", "tool_timeout_seconds": 300.0}, {}, []),
        ({"response_mode": "json", "transport": "stdio"}, {}, []),
        (
            {"response_mode": "auto"},
            {"SSE_AFTER_SECONDS": "20", "PROXY_TIMEOUT_SECONDS": "20"},
            [
                "SSE_AFTER_SECONDS=20: a proxy in front gives up no later than that, after PROXY_TIMEOUT_SECONDS=20: "
                "set SSE_AFTER_SECONDS lower"
            ],
        ),
    ],
)
async def test_a_start_says_which_calls_do_not_arrive(
    settings: dict[str, Any], environment: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = create_server(config(**settings))
    before = [*server.registry.notices]
    server.tool()(with_progress)
    server.tool(name="late")(policy(timeout=100)(silent))
    for _ in range(2):  # once, however often it starts
        async with server.running():
            assert [text for text in server.registry.notices if text not in before] == expected
