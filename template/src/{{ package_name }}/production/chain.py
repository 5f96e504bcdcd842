"""The one chain around every tools/call: each feature is a link, and their order is written here.

A link sees the call before and after the rest of the chain, and always gets a result: `errors` stands inside
the links that observe, and turns what a tool raises into a result and `Call.outcome`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import structlog
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, InputRequiredResult, TextContent
from pydantic import ValidationError

if TYPE_CHECKING:
    from .app import App

Result = CallToolResult | InputRequiredResult
Outcome = Literal["success", "error", "rejected"]

ORDER = ("drain", "telemetry", "logging", "metrics", "errors", "refusal", "rate_limit", "timeout")
"""From the socket inwards. The SDK's OpenTelemetry span is already open around all of it."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class Call:
    """One tools/call on its way through the chain."""

    tool: str
    """The tool's name, or `unknown` where no such tool is registered: safe as a label."""
    name: str
    """The name as the client sent it."""
    arguments: dict[str, Any]
    context: Context[Any, Any]
    client_id: str
    request_id: str
    """Random, unique over all clients: JSON-RPC ids are not."""
    outcome: Outcome = "success"
    error_type: str | None = None
    """Class name of the original exception, `ToolError` for a returned error, or the reason of a refusal."""


Next = Callable[[Call], Awaitable[Result]]
Link = Callable[[Call, Next], Awaitable[Result]]


def new_request_id() -> str:
    return os.urandom(8).hex()


def compose(links: Mapping[str, Link], innermost: Next) -> Next:
    """`links` around `innermost`, in `ORDER`."""
    chain = innermost
    for name in reversed(ORDER):
        if name in links:
            chain = _bind(links[name], chain)
    return chain


def _bind(link: Link, following: Next) -> Next:
    async def bound(call: Call) -> Result:
        return await link(call, following)

    return bound


def failure(text: str, **meta: Any) -> CallToolResult:
    """An error result with `text` for the model, and `meta` for programs in `_meta`."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True, _meta=meta or None)


async def errors(call: Call, following: Next) -> Result:
    """Whatever goes wrong inside becomes a result; the text of an unexpected exception stays in the log."""
    try:
        result = await following(call)
    except MCPError as error:  # the tool asked for a protocol error: the SDK answers with it
        call.outcome, call.error_type = "error", type(error).__name__
        raise
    except Exception as error:
        if not isinstance(error, ToolError) or isinstance(error, UnexpectedToolError):
            return _crashed(call, error)
        cause = error.__cause__ or error
        call.outcome, call.error_type = "error", type(cause).__name__
        if isinstance(cause, ValidationError):
            return failure(_rejected(call, cause))
        # What a tool raises as a ToolError is the answer, word for word; the SDK puts a prefix before it.
        return failure(str(cause if isinstance(cause, ToolError) else error))
    except asyncio.CancelledError:
        call.outcome, call.error_type = "error", "Cancelled"
        raise
    if isinstance(result, CallToolResult) and result.is_error and call.outcome == "success":
        call.outcome, call.error_type = "error", "ToolError"
    return result


def _crashed(call: Call, error: Exception) -> CallToolResult:
    """For a crash of the tool, which the SDK has wrapped, or of a link."""
    cause = error.__cause__ or error if isinstance(error, UnexpectedToolError) else error
    call.outcome, call.error_type = "error", type(cause).__name__
    log.error("tool raised an unexpected exception", exc_info=cause)
    return failure(
        f"Error executing tool {call.name}: an unexpected error occurred. Request id: {call.request_id}",
        request_id=call.request_id,
    )


def _rejected(call: Call, error: ValidationError) -> str:
    problems = [
        f"{'.'.join(str(part) for part in detail['loc']) or 'arguments'}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return f"Invalid arguments for tool {call.name}: {'; '.join(problems)}"


def timeout(app: App) -> Link:
    """Cancels a tool after `TOOL_TIMEOUT_SECONDS`; the cancellation reaches its upstream request."""
    seconds = app.config.tool_timeout_seconds

    async def link(call: Call, following: Next) -> Result:
        try:
            async with asyncio.timeout(seconds) as scope:
                return await following(call)
        except TimeoutError:
            if not scope.expired():
                raise
            call.outcome, call.error_type = "error", "ToolTimeout"
            return failure(
                f"Tool {call.name} did not finish within {seconds:g} seconds and was stopped.",
                timeout_seconds=seconds,
            )

    return link
