"""Chain: every tools/call passes the links in their order, and whatever a tool does, its client gets a result."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, TextContent

from weather_station.production import chain
from weather_station.production.app import ProductionServer
from weather_station.production.chain import (
    ORDER,
    Call,
    Link,
    Next,
    Result,
    compose,
)
from weather_station.production.config import StartError
from weather_station.server import create_server

from .harness import Running, config, modern, running, text_of, wait_for

Serve = Callable[..., AbstractContextManager[Running]]
Register = Callable[[ProductionServer], None]
Shared = tuple[Running, "Observer"]
DETAIL = "row 17 of the customers"


class Observer:
    """Stands around all other links of a server and keeps the calls that passed."""

    def __init__(self, *tools: Callable[..., Any]) -> None:
        self.calls: list[Call] = []
        self._tools = tools

    def __call__(self, server: ProductionServer) -> None:
        for tool in self._tools:
            server.tool()(tool)
        links = server.production.links
        inner = links["drain"]

        async def link(call: Call, following: Next) -> Result:
            self.calls.append(call)
            return await inner(call, following)

        links["drain"] = link

    @property
    def seen(self) -> tuple[str, str | None]:
        """Outcome and error type of the last call."""
        return self.calls[-1].outcome, self.calls[-1].error_type


async def succeed(ctx: Context[Any, Any]) -> str:
    return "fine"


def succeed_in_a_thread() -> str:
    return "fine too"


async def add(a: int, b: int) -> int:
    return a + b


async def crash() -> None:
    raise ValueError(DETAIL)


async def refuse() -> None:
    raise ToolError("No such city: Atlantis. Try another spelling.")


async def refuse_because() -> None:
    try:
        raise KeyError(DETAIL)
    except KeyError as error:
        raise ToolError("No such city.") from error


async def return_an_error() -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text="not today")], is_error=True)


async def ask_for_a_protocol_error() -> None:
    raise MCPError(code=INVALID_PARAMS, message="the cursor is invalid")


async def time_out_by_itself() -> None:
    raise TimeoutError(DETAIL)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """One server with all the tools above, for the tests that change nothing."""
    observer = Observer(
        succeed,
        succeed_in_a_thread,
        add,
        crash,
        refuse,
        refuse_because,
        return_an_error,
        ask_for_a_protocol_error,
        time_out_by_itself,
    )
    with running(config(), observer) as server:
        yield server, observer


async def test_links_stand_in_their_order_whatever_order_they_came_in() -> None:
    passed: list[str] = []

    def link(name: str) -> Link:
        async def pass_on(call: Call, following: Next) -> Result:
            passed.append(name)
            return await following(call)

        return pass_on

    async def innermost(call: Call) -> Result:
        passed.append("tool")
        return CallToolResult(content=[])

    links: Mapping[str, Link] = {name: link(name) for name in sorted(ORDER)}
    await compose(links, innermost)(Call("t", "t", {}, Context(), "me", "1"))
    assert passed == [*ORDER, "tool"]


def test_every_link_of_this_project_has_a_place_in_the_order() -> None:
    assert set(create_server(config()).production.links) <= set(ORDER)


@pytest.mark.parametrize(
    ("tool", "text", "outcome", "error_type"),
    [
        (succeed, "fine", "success", None),
        (succeed_in_a_thread, "fine too", "success", None),
        (refuse, "No such city: Atlantis. Try another spelling.", "error", "ToolError"),
        (refuse_because, "No such city.", "error", "ToolError"),
        (return_an_error, "not today", "error", "ToolError"),
    ],
)
def test_what_a_tool_says_reaches_its_client_word_for_word(
    shared: Shared, tool: Callable[..., Any], text: str, outcome: str, error_type: str | None
) -> None:
    server, observer = shared
    result = server.call(tool.__name__)
    assert text_of(result) == text
    assert result.get("isError", False) == (outcome == "error")
    assert observer.seen == (outcome, error_type)


@pytest.mark.parametrize(("tool", "error_type"), [(crash, "ValueError"), (time_out_by_itself, "TimeoutError")])
def test_an_unexpected_exception_is_told_to_the_log_alone(
    shared: Shared, capfd: pytest.CaptureFixture[str], tool: Callable[..., Any], error_type: str
) -> None:
    server, observer = shared
    result = server.call(tool.__name__)
    request_id = observer.calls[-1].request_id
    assert result["isError"]
    assert text_of(result) == (
        f"Error executing tool {tool.__name__}: an unexpected error occurred. Request id: {request_id}"
    )
    assert result["_meta"] == {"request_id": request_id}
    assert DETAIL not in str(result)
    assert observer.seen == ("error", error_type)
    log = capfd.readouterr().err
    assert DETAIL in log
    assert "Traceback" in log


def test_a_link_that_crashes_is_answered_for_as_a_tool_is(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    observer = Observer()

    async def broken(call: Call, following: Next) -> Result:
        raise LookupError(DETAIL)

    def register(server: ProductionServer) -> None:
        observer(server)
        server.production.links["timeout"] = broken

    with serve(register) as server:
        result = server.call("health_check")
    assert result["isError"]
    assert DETAIL not in str(result)
    assert observer.seen == ("error", "LookupError")
    assert DETAIL in capfd.readouterr().err


def test_a_protocol_error_passes_as_one(shared: Shared) -> None:
    server, observer = shared
    answer = server.post(server.request("ask_for_a_protocol_error"))
    assert "the cursor is invalid" in answer.text
    assert f'"code":{INVALID_PARAMS}' in answer.text.replace(" ", "")
    assert observer.seen == ("error", "MCPError")


def test_wrong_arguments_are_named_and_not_repeated(shared: Shared) -> None:
    server, observer = shared
    result = server.call("add", {"a": DETAIL})
    assert result["isError"]
    text = text_of(result)
    assert text.startswith("Invalid arguments for tool add: a: Input should be a valid integer")
    assert "b: Field required" in text
    assert "\n" not in text
    assert DETAIL not in text
    assert observer.seen == ("error", "ValidationError")


def test_an_unknown_tool_is_an_error_result_and_never_a_label(shared: Shared) -> None:
    server, observer = shared
    result = server.call("no_such_tool")
    assert result["isError"]
    assert "no_such_tool" in text_of(result)
    assert (observer.calls[-1].tool, observer.calls[-1].name) == ("unknown", "no_such_tool")
    assert observer.seen[0] == "error"


@pytest.mark.parametrize("response_mode", ["json", "sse"])
def test_a_tool_that_takes_too_long_is_cancelled(serve: Serve, response_mode: str) -> None:
    stopped = threading.Event()

    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    observer = Observer(endless)
    with serve(observer, tool_timeout_seconds=0.5, response_mode=response_mode) as server:
        before = time.monotonic()
        result = server.call("endless")
        assert 0.5 <= time.monotonic() - before < 5
        assert stopped.is_set()
        assert not server.call("health_check")["isError"]
    assert result["isError"]
    assert text_of(result) == "Tool endless did not finish within 0.5 seconds and was stopped."
    assert result["_meta"] == {"timeout_seconds": 0.5}
    assert observer.calls[0].error_type == "ToolTimeout"


def test_a_tool_that_blocks_a_thread_too_long_is_answered_for(serve: Serve) -> None:
    release = threading.Event()

    def block() -> None:
        release.wait(10)

    observer = Observer(block)
    with serve(observer, tool_timeout_seconds=0.5) as server:
        result = server.call("block")
        release.set()
    assert text_of(result) == "Tool block did not finish within 0.5 seconds and was stopped."
    assert observer.seen == ("error", "ToolTimeout")


async def test_a_client_that_leaves_cancels_its_call(serve: Serve, http: httpx2.AsyncClient) -> None:
    """Over SSE: with JSON answers the SDK does not see that the client has left."""
    started = threading.Event()

    async def endless() -> None:
        started.set()
        await anyio.sleep_forever()

    observer = Observer(endless)
    with serve(observer, response_mode="sse") as server:
        message, headers = modern("tools/call", {"name": "endless", "arguments": {}})
        call = asyncio.create_task(http.post(server.url, json=message, headers=headers))
        await anyio.to_thread.run_sync(started.wait)
        call.cancel()
        await asyncio.wait([call])
        wait_for(lambda: observer.seen == ("error", "Cancelled"))


def test_a_call_has_the_clients_id_and_a_request_id_of_its_own(shared: Shared) -> None:
    server, observer = shared
    server.call("succeed")
    server.call("succeed")
    assert {call.client_id for call in observer.calls} == {"127.0.0.1"}
    first, second = (call.request_id for call in observer.calls[-2:])
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first != second


@pytest.mark.parametrize("session_mode", ["stateless", "stateful"])
@pytest.mark.parametrize("response_mode", ["json", "sse"])
@pytest.mark.parametrize("protocol", ["2026-07-28", "legacy"])
async def test_the_sdks_client_lists_and_calls_tools(
    serve: Serve, session_mode: str, response_mode: str, protocol: str
) -> None:
    observer = Observer(add)
    with serve(observer, session_mode=session_mode, response_mode=response_mode) as server:
        async with Client(server.url, mode=protocol) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            result = await client.call_tool("add", {"a": 1, "b": 2})
            health = await client.call_tool("health_check", {})
    assert {"add", "health_check"} <= set(names)
    assert result.structured_content == {"result": 3}
    assert health.structured_content is not None
    assert health.structured_content["status"] in ("healthy", "degraded")
    assert [call.tool for call in observer.calls] == ["add", "health_check"]


async def test_the_sdks_client_calls_tools_in_memory() -> None:
    observer = Observer(add)
    server = create_server(config())
    observer(server)
    async with Client(server) as client:
        result = await client.call_tool("add", {"a": 1, "b": 2})
    assert result.structured_content == {"result": 3}
    assert observer.calls[0].client_id == "stdio"


PLACE = r"\S+test_chain\.py:\d+"


def _duplicate(server: ProductionServer) -> None:
    server.tool()(add)
    server.tool(name="add")(succeed)


def _unusable(server: ProductionServer) -> None:
    async def broken(_hidden: int) -> None: ...

    server.tool()(broken)


def _nameless(server: ProductionServer) -> None:
    server.tool()(lambda: 1)


@pytest.mark.parametrize(
    ("register", "problem"),
    [
        (_duplicate, rf"{PLACE}: tool add: {PLACE} has that name already; give one of them another name"),
        (_unusable, rf"{PLACE}: tool broken: .*_hidden.*"),
        (_nameless, rf"{PLACE}: tool <lambda>: .*server\.tool\(name=\.\.\.\)"),
    ],
)
def test_a_tool_that_cannot_be_registered_stops_the_start_with_one_line(register: Register, problem: str) -> None:
    with pytest.raises(StartError) as caught:
        register(create_server(config()))
    assert re.fullmatch(problem, str(caught.value)), caught.value


def test_a_failure_carries_its_reason_for_programs() -> None:
    assert chain.failure("no", seconds=3).meta == {"seconds": 3}
    assert chain.failure("no").meta is None
