"""Handlers that ask the client (`input_required`, protocol version 2026-07-28), and requests of their rounds."""

from __future__ import annotations

from typing import Any

import httpx2
from mcp.server.mcpserver import Context
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from harness import DEADLINE_SECONDS, NO_TLS, modern
from weather_station.production.sdk import ProductionServer


def rounds(server: ProductionServer) -> None:
    """Register a tool, a resource and a prompt that ask a question first, with and without a state of their own."""

    def question(state: str | None) -> InputRequiredResult:
        schema = {"type": "object", "properties": {"really": {"type": "boolean"}}}
        ask = ElicitRequest(params=ElicitRequestFormParams(message="Really?", requested_schema=schema))
        return InputRequiredResult(input_requests={"really": ask}, request_state=state)

    async def answer(ctx: Context[Any, Any], state: str | None) -> str | InputRequiredResult:
        if ctx.input_responses is None:
            assert ctx.request_state is None
            return question(state)
        assert ctx.request_state == state
        return "done"

    @server.tool()
    async def with_state(ctx: Context[Any, Any]) -> str | InputRequiredResult:
        return await answer(ctx, "own state")

    @server.tool()
    async def without_state(ctx: Context[Any, Any]) -> str | InputRequiredResult:
        return await answer(ctx, None)

    @server.resource("test://{item}")
    async def read(item: str, ctx: Context[Any, Any]) -> str | InputRequiredResult:
        return await answer(ctx, None)

    @server.prompt()
    async def ask(ctx: Context[Any, Any]) -> str | InputRequiredResult:
        return await answer(ctx, "own state")


ROUNDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a tool with a state": ("tools/call", {"name": "with_state", "arguments": {}}),
    "a tool without a state": ("tools/call", {"name": "without_state", "arguments": {}}),
    "a resource": ("resources/read", {"uri": "test://7"}),
    "a prompt": ("prompts/get", {"name": "ask"}),
}
RESPONSES = {"inputResponses": {"really": {"action": "accept", "content": {"really": True}}}}


def post(url: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Post a request of protocol version 2026-07-28 and return the message of the response."""
    content, headers = modern(method, params)
    with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:
        answer: dict[str, Any] = client.post(url, json=content, headers=headers).json()
    return answer


def ask(url: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return the method and the parameters of the retry of a round that `url` has begun."""
    method, params = ROUNDS[name]
    question = post(url, method, params)["result"]
    assert question["resultType"] == "input_required"
    return method, params | RESPONSES | {"requestState": question["requestState"]}
