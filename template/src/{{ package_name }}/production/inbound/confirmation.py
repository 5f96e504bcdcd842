"""Confirmation: what has `policy(confirm=True)` runs only after the user of the client has agreed.

The client asks its user (elicitation): since 2026-07-28 in a round of the request (`input_required`), before that when
this server sends it a request, which needs a session. A client that cannot ask is rejected, unless `CONFIRM_FALLBACK`
says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult
from mcp_types.methods import is_input_required
from mcp_types.version import is_version_at_least
from pydantic_settings import SettingsConfigDict

from ..config import EnvironmentSettings, StartError
from ..json_values import encode
from ..registry import Registry
from ..request import COMPLETE, MCPRequest, current_request, reject

ROUNDS_SINCE = "2026-07-28"
"""The protocol version in which a server asks by `input_required`."""

ASKED = "confirmation"
"""State of a request whose user is being asked; the SDK seals it together with the arguments."""

CONFIRMED = "confirmed:"
"""Beginning of the state of a request whose user has agreed, before the state of the function."""

KEY = "confirmation"
"""Key of the question and of its answer."""

SCHEMA: dict[str, Any] = {"type": "object", "properties": {}}
"""An empty form: to accept it is to agree."""

STATE_SECONDS = 600.0
"""Lifetime of a state (`RequestStateSecurity`)."""

MAX_ARGUMENTS = 1000
"""Characters of the arguments that the question shows."""

OUTCOMES = ("confirmed", "declined", "unavailable")


class ConfirmSettings(EnvironmentSettings):
    """Settings of confirmations. The environment variable of a field is `CONFIRM_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="CONFIRM_")

    fallback: Literal["reject", "allow"] = "reject"


def install(registry: Registry) -> None:
    """Ask the user before a function with `policy(confirm=True)` runs.

    Raises:
        ConfigError: `CONFIRM_FALLBACK` is not valid.
    """
    settings = ConfirmSettings.load()
    arguments = dict(registry.server_arguments)
    confirmation = Confirmation(registry, settings)
    # Middleware of the SDK, inside the one that seals the states.
    arguments["middleware"] = [*arguments.get("middleware", ()), confirmation]
    registry.server_arguments = arguments
    registry.policy_fields.add("confirm")
    registry.on_registered.append(confirmation.check)


class Confirmation:
    """Middleware of the SDK."""

    def __init__(self, registry: Registry, settings: ConfirmSettings) -> None:
        self._registry = registry
        self._rejects = settings.fallback == "reject"
        counter = registry.meter.counter(
            "mcp_confirmations_total", "Requests that need the consent of the user, by outcome.", ("outcome",)
        )
        self._count = {outcome: counter(outcome).inc for outcome in OUTCOMES}

    def check(self) -> None:
        """Check that only what a client can ask about needs a confirmation.

        Raises:
            StartError: the completion function has one.
        """
        if self._registry.targets.policy(COMPLETE, "").confirm:
            raise StartError("policy(confirm=True): a completion cannot ask the user")

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        request = current_request.get()
        if request is None or ctx.request_id is None or not request.policy.confirm:
            return await call_next(ctx)
        state = (ctx.params or {}).get("requestState")
        if isinstance(state, str) and state.startswith(CONFIRMED) and await self._is_new(request):
            return await _run(ctx, call_next, state.removeprefix(CONFIRMED))
        if not _can_ask(ctx):
            return await self._unavailable(request, ctx, call_next)
        if ctx.session.can_send_request:
            try:
                answer: object = (await ctx.session.elicit_form(_question(request), SCHEMA, ctx.request_id)).action
            except MCPError:  # the client declares the capability, and answers with an error
                return self._reject(request, "unavailable", "ConfirmationUnavailable")
        elif state != ASKED or not await self._is_new(request):
            return _question_result(request)
        else:
            answer = _answer(ctx.params)
        if answer != "accept":
            return self._reject(request, "declined", "NotConfirmed")
        self._count["confirmed"]()
        return await _run(ctx, call_next, None)

    async def _is_new(self, request: MCPRequest) -> bool:
        """Return whether this answer was not used before: it confirms one request."""
        state = str(request.params.get("requestState"))
        return await self._registry.first_use("confirmation", state, STATE_SECONDS)

    async def _unavailable(
        self, request: MCPRequest, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        if self._rejects:
            return self._reject(request, "unavailable", "ConfirmationUnavailable")
        self._count["unavailable"]()
        return await call_next(ctx)

    def _reject(self, request: MCPRequest, outcome: str, reason: str) -> HandlerResult:
        self._count[outcome]()
        name = request.target_label
        text = f"The user has not agreed to {name}" if outcome == "declined" else f"This client cannot ask about {name}"
        return reject(request, reason, f"{text}, so it was not executed.")


async def _run(ctx: ServerRequestContext[Any, Any], call_next: CallNext, state: str | None) -> HandlerResult:
    """Run a confirmed request with the state of the function itself; its further rounds are confirmed too."""
    params = dict(ctx.params or {})
    if state is None:
        params.pop("requestState", None)
        params.pop("inputResponses", None)
    else:
        params["requestState"] = state
    result = await call_next(replace(ctx, params=params))
    if is_input_required(result) and isinstance(result, dict):
        result["requestState"] = CONFIRMED + (result.get("requestState") or "")
    return result


def _can_ask(ctx: ServerRequestContext[Any, Any]) -> bool:
    """Return whether the client can ask its user, and this server can send it the question."""
    capabilities = ctx.session.client_capabilities
    elicitation = capabilities.elicitation if capabilities is not None else None
    if elicitation is None or (elicitation.form is None and elicitation.url is not None):
        return False
    return ctx.session.can_send_request or is_version_at_least(ctx.protocol_version, ROUNDS_SINCE)


def _answer(params: Mapping[str, Any] | None) -> object:
    """Return the action of the user as the client reports it: `accept`, `decline` or `cancel`."""
    responses = (params or {}).get("inputResponses")
    response = responses.get(KEY) if isinstance(responses, Mapping) else None
    return response.get("action") if isinstance(response, Mapping) else None


def _question_result(request: MCPRequest) -> HandlerResult:
    """Return the result that makes the client ask, and repeat the request with the answer."""
    ask = ElicitRequest(params=ElicitRequestFormParams(message=_question(request), requested_schema=SCHEMA))
    question = InputRequiredResult(input_requests={KEY: ask}, request_state=ASKED)
    return question.model_dump(mode="json", by_alias=True, exclude_none=True)


def _question(request: MCPRequest) -> str:
    """Return the question, with arguments in which no character can hide or reorder others."""
    wanted = {name: value for name, value in request.params.items() if name in ("arguments", "uri")}
    text = encode(wanted.get("arguments", wanted)).decode()
    shown = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text[:MAX_ARGUMENTS])
    rest = f" … ({len(text)} characters)" if len(text) > MAX_ARGUMENTS else ""
    return f"Allow {request.target_label} with {shown}{rest}?"
