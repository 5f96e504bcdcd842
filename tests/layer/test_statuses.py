"""Statuses: whose fault a failure is, whatever a tool, resource, prompt or completion raises."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp_types import ElicitRequestURLParams
from pydantic import BaseModel, TypeAdapter

from harness import ONE_ATTEMPT, Running, Serve, config, message, modern, rebuild_pipeline, running, text_of
from stand_in import StandIn, hang, reset, respond
from weather_station.production import UpstreamError, upstream
from weather_station.production.request import CallNext, MCPRequest, Result
from weather_station.production.sdk import ProductionServer

Outcome = tuple[str, str | None]

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tool": ("tools/call", {"name": "fails", "arguments": {}}),
    "static resource": ("resources/read", {"uri": "test://fails"}),
    "resource": ("resources/read", {"uri": "test://fails/1"}),
    "prompt": ("prompts/get", {"name": "fails", "arguments": {}}),
    "completion": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "fails"}, "argument": {"name": "x", "value": ""}},
    ),
}


class Forecast(BaseModel):
    hours: list[int]


class Failing:
    """A server whose handlers all raise `error`, or do what it says, and the outcomes of its requests."""

    def __init__(self) -> None:
        self.error: BaseException | Callable[[], Any] = ToolError("none")
        self.outcomes: list[Outcome] = []

    async def act(self) -> str:
        if isinstance(self.error, BaseException):
            raise self.error
        result = self.error()
        return str(await result if asyncio.iscoroutine(result) else result)

    def register(self, server: ProductionServer) -> None:
        act = self.act

        @server.tool()
        async def fails() -> str:
            return await act()

        @server.tool()
        async def counts(number: int) -> str:
            return await act()

        @server.tool()
        async def calls_the_other(ctx: Context[Any, Any]) -> str:
            await server.call_tool("fails", {}, ctx)
            return "done"

        @server.resource("test://fails")
        async def static() -> str:
            return await act()

        @server.resource("test://fails/{number}")
        async def template(number: int) -> str:
            return await act()

        @server.prompt(name="fails")
        async def prompt() -> str:
            return await act()

        @server.prompt(name="counts")
        def counted(number: int) -> str:
            return str(TypeAdapter(int).validate_python(self.error))

        @server.completion()
        async def complete(*arguments: Any) -> Any:
            return await act()

        logged = server.registry.middleware["drain"]

        async def drain(request: MCPRequest, call_next: CallNext) -> Result:
            try:
                return await logged(request, call_next)
            finally:
                self.outcomes.append((request.status, request.error_type))

        server.registry.middleware["drain"] = drain
        rebuild_pipeline(server)


@pytest.fixture(scope="module")
def failing() -> Iterator[tuple[Failing, Running]]:
    failing = Failing()
    with running(config(), failing.register) as server:
        yield failing, server


def ask(server: Running, method: str, params: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = server.post(message(method, params)).json()
    return answer


def text(answer: dict[str, Any]) -> str:
    return text_of(answer["result"]) if "result" in answer else str(answer["error"]["message"])


EXPECTED = [ToolError("say this"), ResourceError("say this"), ResourceNotFoundError("say this")]
EXPECTED_GROUPS = [
    ExceptionGroup("two", [ToolError("say this"), ToolError("not that")]),
    ExceptionGroup("outer", [ExceptionGroup("inner", [ToolError("say this")]), ResourceError("not that")]),
]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("error", [*EXPECTED, *EXPECTED_GROUPS], ids=repr)
def test_an_error_that_was_raised_on_purpose_is_the_callers(
    failing: tuple[Failing, Running], kind: str, error: Exception
) -> None:
    state, server = failing
    state.error = error
    answer = ask(server, *REQUESTS[kind])
    assert text(answer) == "say this"
    expected = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    if isinstance(expected, ExceptionGroup):
        expected = expected.exceptions[0]
    assert state.outcomes[-1] == ("client_error", type(expected).__name__)
    if kind != "tool":
        assert answer["error"]["code"] == (-32602 if isinstance(expected, ResourceNotFoundError) else -32603)


CRASHES: list[BaseException] = [
    ValueError("secret"),
    StopAsyncIteration("secret"),
    RecursionError("secret"),
    MemoryError("secret"),
    asyncio.CancelledError("secret"),
    TimeoutError("secret"),
    SystemExit("secret"),
    KeyboardInterrupt("secret"),
    GeneratorExit("secret"),
    ExceptionGroup("secret", [ToolError("secret"), KeyError("secret")]),
    BaseExceptionGroup("secret", [SystemExit("secret")]),
]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("error", CRASHES, ids=repr)
def test_any_other_exception_is_the_servers_and_its_text_is_hidden(
    failing: tuple[Failing, Running], kind: str, error: BaseException
) -> None:
    state, server = failing
    state.error = error
    answer = ask(server, *REQUESTS[kind])
    assert "an unexpected error occurred. Request id: " in text(answer)
    assert "secret" not in str(answer)
    assert state.outcomes[-1] == ("error", type(error).__name__)


def deeply_grouped() -> Exception:
    error: Exception = ToolError("secret")
    for _ in range(2000):
        error = ExceptionGroup("secret", [error])
    return error


class MuteError(Exception):
    def __str__(self) -> str:
        raise SystemExit("secret")


class MuteToolError(ToolError):
    def __str__(self) -> str:
        raise ValueError("secret")


INEXPLICABLE: list[Exception] = [deeply_grouped(), MuteError(), MuteToolError()]
"""Exceptions whose text cannot be had."""


@pytest.fixture(scope="module", params=["direct", "sdk"])
def in_threads(request: pytest.FixtureRequest) -> Iterator[tuple[Failing, Running]]:
    """A server whose handlers are plain functions, on either path."""
    failing = Failing()

    def act() -> str:
        assert isinstance(failing.error, BaseException)
        raise failing.error

    def template(number: int) -> str:
        return act()

    def register(server: ProductionServer) -> None:
        failing.register(server)
        server.tool(name="in_a_thread")(act)
        server.resource("test://thread")(act)
        server.resource("test://thread/{number}")(template)
        server.prompt(name="in_a_thread")(act)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIRECT", str(request.param == "direct"))
        with running(config(), register) as server:
            yield failing, server


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "in_a_thread", "arguments": {}}),
        ("resources/read", {"uri": "test://thread"}),
        ("resources/read", {"uri": "test://thread/1"}),
        ("prompts/get", {"name": "in_a_thread"}),
    ],
)
@pytest.mark.parametrize("error", [*CRASHES, *INEXPLICABLE], ids=type)
def test_what_a_plain_function_raises_fails_its_request_only(
    in_threads: tuple[Failing, Running], method: str, params: dict[str, Any], error: BaseException
) -> None:
    """An exception in a future can close the coroutines that wait for it, and those around them."""
    state, server = in_threads
    state.error = error
    answers = [
        server.post(message(method, params)),
        server.client.post(server.url, json=modern(method, params)[0], headers=modern(method, params)[1]),
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert "an unexpected error occurred. Request id: " in text(answer.json())
        assert "secret" not in answer.text
    assert [outcome[0] for outcome in state.outcomes[-2:]] == ["error", "error"]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("error", INEXPLICABLE, ids=type)
def test_an_exception_that_cannot_be_explained_is_a_crash(
    in_threads: tuple[Failing, Running], kind: str, error: Exception
) -> None:
    state, server = in_threads
    state.error = error
    assert "an unexpected error occurred. Request id: " in text(ask(server, *REQUESTS[kind]))
    assert state.outcomes[-1][0] == "error"


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_validation_error_of_the_handler_is_no_mistake_of_the_caller(
    failing: tuple[Failing, Running], kind: str
) -> None:
    """The API changed, so that its response does not match the model."""
    state, server = failing
    state.error = lambda: Forecast.model_validate({"hours": "many"})
    answer = ask(server, *REQUESTS[kind])
    assert "an unexpected error occurred" in text(answer)
    assert state.outcomes[-1] == ("error", "ValidationError")


@pytest.mark.parametrize(
    ("method", "params", "problem"),
    [
        ("tools/call", {"name": "counts", "arguments": {"number": "many"}}, "number: Input should be a valid integer"),
        ("tools/call", {"name": "counts", "arguments": {}}, "number: Field required"),
        ("prompts/get", {"name": "counts", "arguments": {"number": "many"}}, "number: Input should be a valid integer"),
        ("prompts/get", {"name": "counts", "arguments": {}}, "number: Field required"),
        ("prompts/get", {"name": "counts", "arguments": {"number": "1", "other": ""}}, "Unexpected keyword argument"),
        ("resources/read", {"uri": "test://fails/many"}, "number: Input should be a valid integer"),
    ],
)
def test_invalid_arguments_are_named(
    failing: tuple[Failing, Running], method: str, params: dict[str, Any], problem: str
) -> None:
    state, server = failing
    answer = ask(server, method, params)
    assert text(answer).startswith("Invalid arguments for ")
    assert problem in text(answer)
    assert "many" not in text(answer).partition(": ")[2]
    assert ("result" in answer) == (method == "tools/call")
    assert method == "tools/call" or answer["error"]["code"] == -32602
    assert state.outcomes[-1] == ("client_error", "InvalidArguments")


def test_a_validation_error_in_a_prompt_with_arguments_is_no_invalid_argument(
    failing: tuple[Failing, Running],
) -> None:
    state, server = failing
    state.error = ToolError("not a number")
    answer = ask(server, "prompts/get", {"name": "counts", "arguments": {"number": "1"}})
    assert "an unexpected error occurred" in text(answer)
    assert state.outcomes[-1] == ("error", "ValidationError")


@pytest.mark.parametrize(
    ("method", "params", "error_type"),
    [
        ("tools/call", {"name": "none", "arguments": {}}, "UnknownTool"),
        ("resources/read", {"uri": "test://none"}, "UnknownResource"),
        ("prompts/get", {"name": "none"}, "UnknownPrompt"),
        ("tools/call", {"name": {}}, "InvalidParams"),
        ("prompts/get", {}, "InvalidParams"),
        ("no/such/method", {}, "MethodNotFound"),
    ],
)
def test_a_request_for_what_does_not_exist_is_the_callers_and_writes_no_traceback(
    failing: tuple[Failing, Running],
    capfd: pytest.CaptureFixture[str],
    method: str,
    params: dict[str, Any],
    error_type: str,
) -> None:
    state, server = failing
    answer = ask(server, method, params)
    assert ("error" in answer) == (error_type != "UnknownTool")
    assert state.outcomes[-1] == ("client_error", error_type)
    assert "Traceback" not in capfd.readouterr().err


def test_a_long_name_is_shortened_in_the_error(failing: tuple[Failing, Running]) -> None:
    _, server = failing
    answer = ask(server, "tools/call", {"name": "x" * 100_000, "arguments": {}})
    assert text(answer) == f"Unknown tool: {'x' * 200}…"


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MCPError(-32602, "the cursor is invalid"), ("client_error", "InvalidParams")),
        (MCPError(-32050, "own code"), ("client_error", "MCPError")),
        (MCPError(-32603, "broken"), ("error", "MCPError")),
        (
            UrlElicitationRequiredError(
                [ElicitRequestURLParams(message="sign in", url="https://example.com/", elicitation_id="1")]
            ),
            ("input_required", "UrlElicitationRequiredError"),
        ),
    ],
    ids=["invalid params", "own code", "internal error", "url elicitation"],
)
def test_a_protocol_error_reaches_the_client(
    failing: tuple[Failing, Running], kind: str, error: MCPError, outcome: Outcome
) -> None:
    state, server = failing
    state.error = error
    answer = ask(server, *REQUESTS[kind])
    assert answer["error"]["code"] == error.code
    assert answer["error"]["message"] == error.message
    assert state.outcomes[-1] == outcome


def test_a_tool_that_calls_another_one_is_one_request(failing: tuple[Failing, Running]) -> None:
    state, server = failing
    state.error = ToolError("say this")
    before = len(state.outcomes)
    answer = ask(server, "tools/call", {"name": "calls_the_other", "arguments": {}})
    assert text(answer) == "Error executing tool fails: say this"
    assert state.outcomes[before:] == [("client_error", "ToolError")]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_a_shared_task_that_another_request_cancelled_fails_its_own_request_only(
    failing: tuple[Failing, Running], kind: str
) -> None:
    state, server = failing

    async def fetch() -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    state.error = fetch
    answer = ask(server, *REQUESTS[kind])
    assert "an unexpected error occurred" in text(answer)
    assert state.outcomes[-1] == ("error", "CancelledError")


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_child_task_that_exits_fails_its_own_request_only(failing: tuple[Failing, Running], kind: str) -> None:
    """In this test the loop is that of a thread: `test_lifecycle` has the process."""
    state, server = failing

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
            raise SystemExit(3)

    state.error = group
    assert "an unexpected error occurred" in text(ask(server, *REQUESTS[kind]))
    assert state.outcomes[-1] == ("error", "SystemExit")


# --- The upstream ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behavior", "outcome"),
    [
        (respond(401), ("error", "UpstreamStatusError")),
        (respond(407), ("error", "UpstreamStatusError")),
        (respond(400), ("client_error", "UpstreamStatusError")),
        (respond(403), ("client_error", "UpstreamStatusError")),
        (respond(404), ("client_error", "UpstreamStatusError")),
        (respond(429), ("client_error", "UpstreamStatusError")),
        (respond(500), ("error", "UpstreamStatusError")),
        (respond(503), ("error", "UpstreamStatusError")),
        (respond(200, b"<html>"), ("error", "UpstreamResponseError")),
        (reset(), ("error", "UpstreamInterruptedError")),
        (hang(), ("error", "UpstreamTimeoutError")),
    ],
    ids=["401", "407", "400", "403", "404", "429", "500", "503", "no JSON", "reset", "timeout"],
)
def test_an_error_of_the_upstream_counts_by_whose_fault_it_is(
    serve: Serve, api: StandIn, behavior: Any, outcome: Outcome
) -> None:
    state = Failing()

    def register(server: ProductionServer) -> None:
        state.register(server)
        state.error = lambda: upstream(server).get_json("/things")

    api.behave(behavior)
    with serve(register, upstream_base_url=api.url, request_timeout_seconds=0.5, **ONE_ATTEMPT) as server:
        for kind in REQUESTS:
            answer = ask(server, *REQUESTS[kind])
            assert api.host in text(answer)
            assert state.outcomes[-1] == outcome, kind


def test_a_group_of_upstream_errors_is_explained_as_the_first_one(failing: tuple[Failing, Running]) -> None:
    state, server = failing
    missing = UpstreamError("it has no item 7", host="api.example", status=404)
    state.error = ExceptionGroup("both", [missing, UpstreamError("it is down", host="api.example")])
    answer = ask(server, *REQUESTS["tool"])
    assert text(answer) == str(missing)
    assert state.outcomes[-1] == ("client_error", "UpstreamError")
