"""Confirmation: a function runs once for each agreement of the user, and never without one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.server.mcpserver import Context
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    Completion,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitRequestParams,
    ElicitResult,
    InputRequiredResult,
)

from harness import HAS_METRICS, LEGACY, MODERN, Running, Serve, config, modern
from weather_station.production import policy
from weather_station.production.config import StartError
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

Answer = dict[str, Any]

ran: list[Any] = []


def register(server: ProductionServer) -> None:
    ran.clear()

    @server.tool()
    @policy(confirm=True)
    async def delete(order: str) -> str:
        ran.append(order)
        return f"deleted {order}"

    @server.tool()
    async def free() -> str:
        return "free"

    @policy(confirm=True)
    @server.tool()
    async def asks_itself(ctx: Context[Any, Any]) -> str | InputRequiredResult:
        if ctx.input_responses is None:
            assert ctx.request_state is None
            ask = ElicitRequest(
                params=ElicitRequestFormParams(
                    message="How many?", requested_schema={"type": "object", "properties": {}}
                )
            )
            return InputRequiredResult(input_requests={"number": ask}, request_state="own state")
        assert (ctx.request_state, [*ctx.input_responses]) == ("own state", ["number"])
        ran.append("asks_itself")
        return "done"

    @policy(confirm=True)
    @server.resource("orders://{number}")
    async def order(number: str) -> str:
        ran.append(number)
        return number

    @policy(confirm=True)
    @server.prompt()
    async def summary(of: str) -> str:
        ran.append(of)
        return of


TARGETS: dict[str, tuple[str, Answer]] = {
    "tool": ("tools/call", {"name": "delete", "arguments": {"order": "7"}}),
    "resource": ("resources/read", {"uri": "orders://7"}),
    "prompt": ("prompts/get", {"name": "summary", "arguments": {"of": "7"}}),
}


def send(server: Running, method: str, params: Answer, *, elicitation: Any = None) -> Answer:
    """Send a request of protocol version 2026-07-28, as a client with the capability unless `elicitation` is False."""
    content, headers = modern(method, params)
    capability = {} if elicitation is False else {"elicitation": elicitation or {}}
    content["params"]["_meta"][CLIENT_CAPABILITIES_META_KEY] = capability
    answer: Answer = server.client.post(server.url, json=content, headers=headers).json()
    return answer


def reply(question: Answer, action: str = "accept") -> Answer:
    """Return the parameters that answer a question."""
    keys = question["result"]["inputRequests"]
    responses = {key: {"action": action, **({"content": {}} if action == "accept" else {})} for key in keys}
    return {"requestState": question["result"]["requestState"], "inputResponses": responses}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_function_runs_after_the_user_has_agreed(serve: Serve, kind: str) -> None:
    method, params = TARGETS[kind]
    with serve(register) as server:
        question = send(server, method, params)
        assert question["result"]["resultType"] == "input_required"
        [ask] = question["result"]["inputRequests"].values()
        label = {"tool": "delete", "resource": "orders://{number}", "prompt": "summary"}[kind]
        assert ask["params"]["message"].startswith(f"Allow {label} with {{")
        assert '"7"' in ask["params"]["message"] or "orders://7" in ask["params"]["message"]
        assert ran == []
        answer = send(server, method, params | reply(question))
        assert ran == ["7"]
        assert "7" in str(answer["result"])


@pytest.mark.parametrize("action", ["decline", "cancel", "nonsense", None])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_function_does_not_run_if_the_user_has_not_agreed(serve: Serve, kind: str, action: str | None) -> None:
    method, params = TARGETS[kind]
    with serve(register) as server:
        answered = reply(send(server, method, params), action or "accept")
        if action is None:
            del answered["inputResponses"]
        answer = send(server, method, params | answered)
        assert "The user has not agreed" in str(answer) or answer["error"]["code"] == -32602
        assert ran == []


def test_an_agreement_is_good_for_one_run_with_the_same_arguments(serve: Serve) -> None:
    method, params = TARGETS["tool"]
    with serve(register) as server:
        answered = reply(send(server, method, params))
        other = {"name": "delete", "arguments": {"order": "8"}}
        assert send(server, method, other | answered)["error"]["code"] == -32602
        made_up = answered | {"requestState": "confirmed:"}
        assert send(server, method, params | made_up)["error"]["code"] == -32602
        assert ran == []
        assert "deleted" in str(send(server, method, params | answered))
        assert send(server, method, params | answered)["result"]["resultType"] == "input_required"
        assert ran == ["7"]


def test_an_agreement_without_a_question_is_none(serve: Serve) -> None:
    method, params = TARGETS["tool"]
    with serve(register) as server:
        answered = {"inputResponses": {"confirmation": {"action": "accept", "content": {}}}}
        assert send(server, method, params | answered)["result"]["resultType"] == "input_required"
        assert ran == []


def test_a_function_can_ask_questions_of_its_own(serve: Serve) -> None:
    params = {"name": "asks_itself", "arguments": {}}
    with serve(register) as server:
        confirmation = send(server, "tools/call", params)
        assert [*confirmation["result"]["inputRequests"]] == ["confirmation"]
        question = send(server, "tools/call", params | reply(confirmation))
        assert [*question["result"]["inputRequests"]] == ["number"]
        answer = send(server, "tools/call", params | reply(question))
        assert answer["result"]["content"][0]["text"] == "done"
        assert ran == ["asks_itself"]


def test_an_answer_to_a_question_of_the_function_is_good_for_one_run(serve: Serve) -> None:
    """Else one agreement would be good for any number of runs."""
    call: Answer = {"name": "asks_itself", "arguments": {}}
    with serve(register) as server:
        own = send(server, "tools/call", call | reply(send(server, "tools/call", call)))
        answered = call | reply(own)
        assert "done" in str(send(server, "tools/call", answered))
        for _ in range(3):
            again = send(server, "tools/call", answered)
            assert [*again["result"]["inputRequests"]] == ["confirmation"]
        assert ran == ["asks_itself"]
        assert "inputRequests" in send(server, "tools/call", call | reply(again))["result"]
        assert ran == ["asks_itself"]


@pytest.mark.parametrize("elicitation", [False, {"url": {}}])
@pytest.mark.parametrize("kind", TARGETS)
def test_a_client_that_cannot_ask_is_rejected(serve: Serve, kind: str, elicitation: Any) -> None:
    method, params = TARGETS[kind]
    with serve(register) as server:
        answer = send(server, method, params, elicitation=elicitation)
        assert "client cannot ask about" in str(answer)
        assert ran == []
        if HAS_METRICS:
            assert server.metrics().value("mcp_confirmations_total", outcome="unavailable") == 1
            assert server.metrics().value("mcp_confirmations_total", outcome="declined") == 0


def test_a_client_of_the_older_version_without_a_session_is_rejected(serve: Serve) -> None:
    with serve(register) as server:
        assert "client cannot ask about" in str(server.call("delete", {"order": "7"}))
        assert server.call("free")["isError"] is False
        assert ran == []


def test_a_client_that_cannot_ask_is_admitted_where_that_is_set(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIRM_FALLBACK", "allow")
    with serve(register) as server:
        server.call("delete", {"order": "7"})
        assert send(server, *TARGETS["tool"])["result"]["resultType"] == "input_required"
        assert ran == ["7"]


@pytest.mark.parametrize("action", ["accept", "decline"])
@pytest.mark.parametrize(("version", "session"), [(LEGACY, "stateful"), (MODERN, "stateless")])
def test_the_client_of_the_sdk_asks_its_user(serve: Serve, version: str, session: str, action: Any) -> None:
    asked: list[str] = []

    async def ask(context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action=action, content={} if action == "accept" else None)

    async def call(url: str) -> str:
        mode = "legacy" if version == LEGACY else "auto"
        async with Client(url, mode=mode, elicitation_callback=ask) as client:
            return str(await client.call_tool("delete", {"order": "7"}))

    with serve(register, session_mode=session, response_mode="sse") as server:
        text = asyncio.run(call(server.url))
    assert asked == ['Allow delete with {"order":"7"}?']
    assert ran == (["7"] if action == "accept" else [])
    assert ("deleted 7" if action == "accept" else "The user has not agreed to delete") in text


def test_no_character_of_an_argument_hides_another(serve: Serve) -> None:
    with serve(register) as server:
        arguments = {"order": "x\u202e7\u0000\n" + "y" * 5000}
        question = send(server, "tools/call", {"name": "delete", "arguments": arguments})
    text = question["result"]["inputRequests"]["confirmation"]["params"]["message"]
    assert text.isprintable()
    assert text.startswith('Allow delete with {"order":"x\\u202e7')
    assert len(text) < 1100


def test_a_completion_cannot_ask() -> None:
    server = create_server(config())

    @policy(confirm=True)
    @server.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Completion:
        return Completion(values=[])

    async def start() -> None:
        async with server.running():
            pass

    with pytest.raises(StartError, match="a completion cannot ask the user"):
        asyncio.run(start())


@pytest.mark.parametrize("value", ["yes", 1, "always"])
def test_the_field_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match="is not True or False"):
        policy(confirm=value)
