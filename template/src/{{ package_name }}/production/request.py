"""MCP requests, and the middleware that handles them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, InputRequiredResult, TextContent

from .caller import Caller
from .config import StartError

R = TypeVar("R")
T = TypeVar("T")

Result = CallToolResult | InputRequiredResult
Status = Literal["success", "error", "rejected"]


@dataclass(slots=True)
class MCPRequest:
    """One tools/call while the pipeline handles it."""

    method: str
    """The JSON-RPC method."""
    target: str
    """The tool's name as the client sent it: unbounded, so neither a label nor a span name."""
    target_label: str
    """The name of a registered tool, else `unknown`: safe as a label."""
    arguments: dict[str, Any]
    context: Context[Any, Any]
    caller: Caller
    request_id: str
    """Random and unique, unlike JSON-RPC ids, which several clients can choose alike."""
    status: Status = "success"
    error_type: str | None = None
    """Class of the original exception, `ToolError` for an error result of the tool, or the reason of a rejection."""


CallNext = Callable[[MCPRequest], Awaitable[Result]]
Middleware = Callable[[MCPRequest, CallNext], Awaitable[Result]]


def error_result(text: str, **meta: Any) -> CallToolResult:
    """Return an error result with `text` for the model, and `meta` for programs as its `_meta`."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True, _meta=meta or None)


def fail(request: MCPRequest, error_type: str, text: str, **meta: Any) -> CallToolResult:
    """Set the status of `request` to `error`, and return the error result."""
    request.status, request.error_type = "error", error_type
    return error_result(text, **meta)


def reject(request: MCPRequest, reason: str, text: str, **meta: Any) -> CallToolResult:
    """Set the status of `request` to `rejected` for `reason`, and return the error result."""
    request.status, request.error_type = "rejected", reason
    return error_result(text, **meta)


def compose(
    order: Sequence[str],
    middleware: Mapping[str, Callable[[R, Callable[[R], Awaitable[T]]], Awaitable[T]]],
    handler: Callable[[R], Awaitable[T]],
) -> Callable[[R], Awaitable[T]]:
    """Return `handler` inside `middleware`; the first name of `order` is the outermost.

    Raises:
        StartError: a middleware's name is not in `order`.
    """
    if unknown := sorted(middleware.keys() - set(order)):
        raise StartError(f"middleware {', '.join(unknown)} has no place in the order {', '.join(order)}")
    for name in reversed(order):
        if name in middleware:
            handler = _wrap(middleware[name], handler)
    return handler


def _wrap(
    middleware: Callable[[R, Callable[[R], Awaitable[T]]], Awaitable[T]], call_next: Callable[[R], Awaitable[T]]
) -> Callable[[R], Awaitable[T]]:
    return lambda request: middleware(request, call_next)
