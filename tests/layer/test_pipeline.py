"""Request pipeline: its order, and the result of a call whatever its tool does."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, TextContent
from structlog.testing import capture_logs

from harness import (
    DEADLINE_SECONDS,
    Running,
    Serve,
    config,
    modern,
    new_request,
    rebuild_pipeline,
    running,
    text_of,
    wait_for,
)
from weather_station.production.config import StartError, about
from weather_station.production.inbound import pipeline
from weather_station.production.registry import Registry
from weather_station.production.request import (
    CallNext,
    MCPRequest,
    Middleware,
    Result,
    compose,
    error_result,
)
from weather_station.production.sdk import ProductionServer
from weather_station.production.upstream import client
from weather_station.server import create_server

Shared = tuple[Running, "Observer"]
DETAIL = "row 17 of the customers"


class Observer:
    """Registers tools, and keeps the requests that pass the outermost middleware."""

    def __init__(self, *tools: Callable[..., Any]) -> None:
        self.requests: list[MCPRequest] = []
        self._tools = tools

    def __call__(self, server: ProductionServer) -> None:
        for tool in self._tools:
            server.tool()(tool)
        drain = server.registry.middleware["drain"]

        async def keep(request: MCPRequest, call_next: CallNext) -> Result:
            self.requests.append(request)
            return await drain(request, call_next)

        rebuild(server, drain=keep)

    @property
    def last(self) -> tuple[str, str | None]:
        """Status and error type of the last request."""
        return self.requests[-1].status, self.requests[-1].error_type


def rebuild(server: ProductionServer, **middleware: Middleware) -> None:
    """Build the server's pipeline anew, with `middleware` in place of its own."""
    server.registry.middleware.update(middleware)
    rebuild_pipeline(server)


async def succeed(ctx: Context[Any, Any]) -> str:
    return "fine"


def succeed_in_a_thread() -> str:
    return "fine too"


async def add(a: int, b: int) -> int:
    return a + b


async def crash() -> None:
    raise ValueError(DETAIL)


async def raise_a_tool_error() -> None:
    raise ToolError("No such city: Atlantis. Try another spelling.")


async def raise_a_tool_error_with_a_cause() -> None:
    try:
        raise KeyError(DETAIL)
    except KeyError as error:
        raise ToolError("No such city.") from error


async def return_an_error() -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text="not today")], is_error=True)


async def raise_a_protocol_error() -> None:
    raise MCPError(code=INVALID_PARAMS, message="the cursor is invalid")


async def raise_a_timeout_error() -> None:
    raise TimeoutError(DETAIL)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """One server with all the tools above, for the tests that change nothing."""
    observer = Observer(
        succeed,
        succeed_in_a_thread,
        add,
        crash,
        raise_a_tool_error,
        raise_a_tool_error_with_a_cause,
        return_an_error,
        raise_a_protocol_error,
        raise_a_timeout_error,
    )
    with running(config(), observer) as server:
        yield server, observer


# --- Order ----------------------------------------------------------------------------------------------------------


def passing(name: str, passed: list[str]) -> Any:
    """Return a middleware that notes its name; it fits both pipelines."""

    async def middleware(request: Any, call_next: Callable[[Any], Any]) -> Any:
        passed.append(name)
        return await call_next(request)

    return middleware


@pytest.mark.parametrize("order", [pipeline.ORDER, client.ORDER], ids=["inbound", "upstream"])
async def test_middleware_runs_in_the_written_order_whatever_the_order_of_registration(order: tuple[str, ...]) -> None:
    passed: list[str] = []

    async def handler(request: None) -> None:
        passed.append("handler")

    await compose(order, {name: passing(name, passed) for name in sorted(order)}, handler)(None)
    assert passed == [*order, "handler"]


def test_every_middleware_of_this_project_has_a_place_in_the_order() -> None:
    registry = create_server(config()).registry
    assert registry.middleware.keys() <= set(pipeline.ORDER)
    assert registry.upstream.middleware.keys() <= set(client.ORDER)


def test_an_unknown_name_in_the_request_pipeline_stops_the_start() -> None:
    registry = Registry(config(), about())
    registry.middleware["cache"] = passing("cache", [])
    with pytest.raises(StartError, match=r"^middleware cache has no place in the order drain, .*timeout$"):
        ProductionServer(registry)


async def test_an_unknown_name_in_the_upstream_pipeline_stops_the_start() -> None:
    server = create_server(config())
    server.registry.upstream.middleware["cache"] = passing("cache", [])
    text = "middleware cache has no place in the order credentials, retry, circuit_breaker, metrics, share"
    with pytest.raises(StartError, match=f"^{text}$"):
        async with server.running():
            pass


# --- Results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "text", "status", "error_type"),
    [
        (succeed, "fine", "success", None),
        (succeed_in_a_thread, "fine too", "success", None),
        (raise_a_tool_error, "No such city: Atlantis. Try another spelling.", "client_error", "ToolError"),
        (raise_a_tool_error_with_a_cause, "No such city.", "client_error", "ToolError"),
        (return_an_error, "not today", "client_error", "ToolError"),
    ],
)
def test_the_text_of_a_tool_reaches_the_client_word_for_word(
    shared: Shared, tool: Callable[..., Any], text: str, status: str, error_type: str | None
) -> None:
    server, observer = shared
    result = server.call(tool.__name__)
    assert text_of(result) == text
    assert result.get("isError", False) == (status == "client_error")
    assert observer.last == (status, error_type)


@pytest.mark.parametrize(("tool", "error_type"), [(crash, "ValueError"), (raise_a_timeout_error, "TimeoutError")])
def test_the_text_of_an_unexpected_exception_is_in_the_log_only(
    shared: Shared, capfd: pytest.CaptureFixture[str], tool: Callable[..., Any], error_type: str
) -> None:
    server, observer = shared
    result = server.call(tool.__name__)
    request_id = observer.requests[-1].request_id
    assert result["isError"]
    assert text_of(result) == (
        f"Error executing tool {tool.__name__}: an unexpected error occurred. Request id: {request_id}"
    )
    assert result["_meta"] == {"request_id": request_id}
    assert DETAIL not in str(result)
    assert observer.last == ("error", error_type)
    log = capfd.readouterr().err
    assert DETAIL in log
    assert "Traceback" in log


def test_a_middleware_that_crashes_yields_an_error_result(serve: Serve) -> None:
    observer = Observer()

    async def broken(request: MCPRequest, call_next: CallNext) -> Result:
        raise LookupError(DETAIL)

    def register(server: ProductionServer) -> None:
        observer(server)
        rebuild(server, timeout=broken)

    with serve(register) as server, capture_logs() as log:
        result = server.call("health_check")
    assert result["isError"]
    assert DETAIL not in str(result)
    assert observer.last == ("error", "LookupError")
    assert [str(entry["exc_info"]) for entry in log if entry["log_level"] == "error"] == [str(LookupError(DETAIL))]


def test_a_protocol_error_reaches_the_client_as_a_protocol_error(shared: Shared) -> None:
    server, observer = shared
    error = server.post(server.request("raise_a_protocol_error")).json()["error"]
    assert (error["code"], error["message"]) == (INVALID_PARAMS, "the cursor is invalid")
    assert observer.last == ("client_error", "InvalidParams")


def test_invalid_arguments_are_named_without_their_values(shared: Shared) -> None:
    server, observer = shared
    result = server.call("add", {"a": DETAIL})
    assert result["isError"]
    text = text_of(result)
    assert text.startswith("Invalid arguments for tool add: a: Input should be a valid integer")
    assert "b: Field required" in text
    assert "\n" not in text
    assert DETAIL not in text
    assert observer.last == ("client_error", "InvalidArguments")


def test_an_unknown_tool_is_an_error_result_and_its_name_is_no_label(shared: Shared) -> None:
    server, observer = shared
    result = server.call("no_such_tool")
    assert result["isError"]
    assert "no_such_tool" in text_of(result)
    request = observer.requests[-1]
    assert (request.method, request.target, request.target_label) == ("tools/call", "no_such_tool", "unknown")
    assert observer.last == ("client_error", "UnknownTool")


def test_an_error_result_has_metadata_for_programs() -> None:
    assert error_result("no", seconds=3).meta == {"seconds": 3}
    assert error_result("no").meta is None


# --- Timeout and cancellation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("response_mode", ["json", "sse"])
def test_a_tool_is_cancelled_after_its_timeout(serve: Serve, response_mode: str) -> None:
    stopped = threading.Event()

    async def endless() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.set()

    observer = Observer(endless)
    with serve(observer, tool_timeout_seconds=1, response_mode=response_mode) as server:
        result = server.call("endless")
        assert stopped.is_set()
        assert not server.call("health_check")["isError"]
    assert result["isError"]
    assert text_of(result) == "Tool endless did not finish within 1 seconds and was stopped."
    assert result["_meta"] == {"timeout_seconds": 1}
    assert observer.requests[0].error_type == "ToolTimeout"


async def test_the_timeout_of_a_tool_is_not_shorter_than_configured() -> None:
    loop = asyncio.get_running_loop()

    async def endless(request: MCPRequest) -> Result:
        await anyio.sleep_forever()
        raise AssertionError

    request = new_request(target="t")
    started = loop.time()
    await pipeline.timeout(0.3)(request, endless)
    assert loop.time() - started >= 0.3
    assert request.error_type == "ToolTimeout"


def test_a_tool_that_blocks_a_thread_gets_an_error_result_after_the_timeout(serve: Serve) -> None:
    release = threading.Event()

    def block() -> None:
        release.wait(DEADLINE_SECONDS)

    observer = Observer(block)
    with serve(observer, tool_timeout_seconds=0.5) as server:
        result = server.call("block")
        release.set()
    assert text_of(result) == "Tool block did not finish within 0.5 seconds and was stopped."
    assert observer.last == ("error", "ToolTimeout")


async def test_a_client_that_disconnects_cancels_its_call(serve: Serve, http: httpx2.AsyncClient) -> None:
    """With `response_mode=sse` by the SDK, otherwise by `response_mode`."""
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
        await anyio.to_thread.run_sync(lambda: wait_for(lambda: observer.last == ("client_error", "Cancelled")))


# --- Requests and clients -------------------------------------------------------------------------------------------


def test_a_request_has_its_caller_and_a_request_id_of_its_own(shared: Shared) -> None:
    server, observer = shared
    server.call("succeed")
    server.call("succeed")
    assert {request.caller.id for request in observer.requests} == {"127.0.0.1"}
    first, second = (request.request_id for request in observer.requests[-2:])
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first != second


@pytest.mark.parametrize("session_mode", ["stateless", "stateful"])
@pytest.mark.parametrize("response_mode", ["json", "sse"])
@pytest.mark.parametrize("protocol", ["2026-07-28", "legacy"])
async def test_the_client_of_the_sdk_lists_and_calls_tools(
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
    assert [request.target_label for request in observer.requests if request.target] == ["add", "health_check"]


async def test_the_client_of_the_sdk_calls_tools_in_memory() -> None:
    observer = Observer(add)
    server = create_server(config())
    observer(server)
    async with Client(server) as client:
        result = await client.call_tool("add", {"a": 1, "b": 2})
    assert result.structured_content == {"result": 3}
    assert observer.requests[0].caller.id == "stdio"
