"""The pipeline around every tools/call: the order of its middleware, and the middleware that is always there.

`errors` turns exceptions into results and sets the request's status, so that the middleware outside it, which records
requests, sees a result for everything but protocol errors and cancellation.
"""

from __future__ import annotations

import asyncio
import os

import structlog
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult
from pydantic import ValidationError

from ..caller import current_caller
from ..registry import Registry
from ..request import CallNext, MCPRequest, Middleware, Result, compose, error_result, fail

ORDER = ("drain", "telemetry", "logging", "metrics", "errors", "reject_draining", "rate_limit", "timeout")
"""The middleware's names, outermost first. The SDK's OpenTelemetry span is open around all of it."""

log = structlog.stdlib.get_logger(__name__)


def build(registry: Registry, handler: CallNext) -> CallNext:
    """Return `handler` inside the middleware of `registry`.

    Raises:
        StartError: a middleware's name is not in `ORDER`.
    """
    middleware = {"errors": errors, "timeout": timeout(registry.config.tool_timeout_seconds), **registry.middleware}
    pipeline = compose(ORDER, middleware, handler)

    async def handle(request: MCPRequest) -> Result:
        token = current_caller.set(request.caller)
        try:
            return await pipeline(request)
        finally:
            current_caller.reset(token)

    return handle


def new_request_id() -> str:
    """Return a random id; JSON-RPC ids are not unique across clients."""
    return os.urandom(8).hex()


async def errors(request: MCPRequest, call_next: CallNext) -> Result:
    """Turn exceptions into error results. The text of an unexpected exception is logged, but not returned."""
    try:
        result = await call_next(request)
    except MCPError as error:  # the tool raised a protocol error, which the SDK sends
        request.status, request.error_type = "error", type(error).__name__
        raise
    except Exception as error:
        if not isinstance(error, ToolError) or isinstance(error, UnexpectedToolError):
            return _unexpected_error(request, error)
        cause = error.__cause__ or error
        if isinstance(cause, ValidationError):
            return fail(request, type(cause).__name__, _invalid_arguments(request, cause))
        # The text of a ToolError is meant for the model; `error` may be the SDK's wrapper, with a prefix.
        return fail(request, type(cause).__name__, str(cause if isinstance(cause, ToolError) else error))
    except asyncio.CancelledError:
        request.status, request.error_type = "error", "Cancelled"
        raise
    if isinstance(result, CallToolResult) and result.is_error and request.status == "success":
        request.status, request.error_type = "error", "ToolError"
    return result


def _unexpected_error(request: MCPRequest, error: Exception) -> CallToolResult:
    """Log an unexpected exception of the tool (which the SDK wraps) or of a middleware, and return its error result."""
    cause = error.__cause__ or error if isinstance(error, UnexpectedToolError) else error
    request.status, request.error_type = "error", type(cause).__name__
    log.error("tool raised an unexpected exception", exc_info=cause)
    return error_result(
        f"Error executing tool {request.target}: an unexpected error occurred. Request id: {request.request_id}",
        request_id=request.request_id,
    )


def _invalid_arguments(request: MCPRequest, error: ValidationError) -> str:
    problems = [
        f"{'.'.join(str(part) for part in detail['loc']) or 'arguments'}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return f"Invalid arguments for tool {request.target}: {'; '.join(problems)}"


def timeout(seconds: float) -> Middleware:
    """Return middleware that cancels a tool, including its upstream requests, after `seconds`."""

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        try:
            async with asyncio.timeout(seconds) as scope:
                return await call_next(request)
        except TimeoutError:
            if not scope.expired():
                raise
            return fail(
                request,
                "ToolTimeout",
                f"Tool {request.target} did not finish within {seconds:g} seconds and was stopped.",
                timeout_seconds=seconds,
            )

    return middleware
