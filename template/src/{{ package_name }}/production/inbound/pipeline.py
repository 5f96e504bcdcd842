"""The pipeline around every MCP request: the order of its middleware, and how failures become results.

It runs as a middleware of the SDK, which calls it for every message. A failure inside a tool, resource or prompt is
explained where it happens, in `sdk`, because only there the exception itself is visible; the `errors` middleware
explains those of all other methods, and what the middleware inside it raises.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
from mcp.server.context import CallNext as SDKCallNext
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.exceptions import (
    ResourceError,
    ResourceNotFoundError,
    ToolError,
    UnexpectedResourceError,
    UnexpectedToolError,
)
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, URL_ELICITATION_REQUIRED, CallToolResult
from pydantic import ValidationError

from ..caller import current_caller
from ..json_values import NonFiniteNumberError, sendable, valid_unicode
from ..policy import Policy
from ..registry import Registry
from ..request import (
    LISTEN,
    PROMPTS_GET,
    RESOURCES_READ,
    TOOLS_CALL,
    CallNext,
    MCPRequest,
    Middleware,
    Result,
    SharedTimer,
    Status,
    Timer,
    compose,
    current_request,
    give_error,
    is_own_failure,
)
from ..upstream.errors import UpstreamError, ungrouped
from .http_limits import TASK

ORDER = (
    "drain",
    "telemetry",
    "logging",
    "audit",
    "metrics",
    "errors",
    "reject_draining",
    "reject_unaudited",
    "message_limit",
    "authorization",
    "rate_limit",
    "concurrency",
    "timeout",
)
"""The middleware's names, outermost first."""

SERVER_CREDENTIALS = frozenset({401, 407})
"""Statuses of an upstream that its callers cannot change: the operator's credentials are wrong."""

ERROR_TYPES = {INVALID_PARAMS: "InvalidParams", METHOD_NOT_FOUND: "MethodNotFound"}
"""Error types of JSON-RPC errors by code; that of any other one is the class of the exception."""

HANDLERS = {
    TOOLS_CALL: "executing tool",
    RESOURCES_READ: "reading resource",
    PROMPTS_GET: "rendering prompt",
}
"""What a failed handler was doing, by method, for the text of its error."""

MAX_TARGET = 200
"""Characters of a name, URI or other text of the client's that an error text repeats."""

MAX_PROBLEMS = 10
"""Problems with the arguments of a request that its error lists."""

MAX_VALIDATION_ERRORS = 2000
"""Greatest number of validation errors that pydantic is asked to list: it lists all or none, in 5 µs each."""

Target = tuple[str, str, str, Policy]
"""`method`, `target`, `target_label` and `policy` of an `MCPRequest`."""

log = structlog.stdlib.get_logger(__name__)


class Pipeline:
    """Middleware of the SDK that handles every request in the middleware of `registry`.

    Args:
        target_of: Returns the target of a request.
        handler: Runs the request in the SDK, inside all middleware.
        to_wire: Returns the wire form of a result that did not come from the SDK.
        prepare: Prepares the SDK's channel from a request to its client.

    Raises:
        StartError: a middleware's name is not in `ORDER`.
    """

    def __init__(
        self,
        registry: Registry,
        target_of: Callable[[ServerRequestContext[Any, Any]], Target],
        handler: CallNext,
        to_wire: Callable[[ServerRequestContext[Any, Any], CallToolResult], Result],
        prepare: Callable[[MCPRequest], None],
    ) -> None:
        self._registry = registry
        self._target_of = target_of
        self._to_wire = to_wire
        self._prepare = prepare
        middleware = {"errors": errors, "timeout": timeout(registry.config.tool_timeout_seconds), **registry.middleware}
        self._handle: CallNext = compose(ORDER, middleware, handler)

    def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: SDKCallNext) -> Coroutine[Any, Any, Result]:
        if ctx.request_id is None:
            return self._notify(ctx, self._registry.identify(ctx.request).id, call_next)
        request = self.request(ctx, call_next)
        self._prepare(request)
        return self.run(request)

    def request(self, ctx: ServerRequestContext[Any, Any], call_next: SDKCallNext) -> MCPRequest:
        """Return the request that `run` handles."""
        method, target, label, policy = self._target_of(ctx)
        caller = self._registry.identify(ctx.request)
        task = asyncio.current_task()
        of_sdk = ctx.request is None or ctx.request.scope.get(TASK) is not task
        budget = self._registry.budget
        return MCPRequest(method, target, label, ctx, caller, new_request_id(), task, call_next, policy, of_sdk, budget)

    async def run(self, request: MCPRequest) -> Result:
        """Handle a request in all middleware."""
        outer_request = current_request.set(request)
        outer_caller = current_caller.set(request.caller)
        try:
            result = await self._handle(request)
        finally:
            current_caller.reset(outer_caller)
            current_request.reset(outer_request)
        return self._to_wire(request.context, result) if isinstance(result, CallToolResult) else result

    async def _notify(self, ctx: ServerRequestContext[Any, Any], caller_id: str, call_next: SDKCallNext) -> Result:
        """Handle a notification, which has no answer: one beyond the limit of messages is dropped."""
        if not self._registry.admit_notification(caller_id):
            return None
        if ctx.method == "notifications/cancelled":
            self._registry.cancel_call(caller_id, (ctx.params or {}).get("requestId"))
        task = asyncio.current_task()
        try:
            return await call_next(ctx)
        except BaseException as error:
            if not is_own_failure(error, task):
                raise
            log.error("handler of a notification raised an unexpected exception", exc_info=error)
            return None


def new_request_id() -> str:
    """Return a random id; JSON-RPC ids are not unique across clients."""
    return os.urandom(8).hex()


async def errors(request: MCPRequest, call_next: CallNext) -> Result:
    """Record the status, and turn exceptions into errors whose text has only what is meant for the client."""
    try:
        result = await call_next(request)
        if request.is_cancelled:
            await asyncio.sleep(0)  # the cancellation is raised here, and not where the SDK sends the result
    except MCPError as error:
        if request.status == "success":
            request.fail(*_judge(error))
        try:
            error.error.message = valid_unicode(error.error.message)
            error.error.data = sendable(error.error.data)
        except Exception as failure:
            return explain_failure(request, failure)
        raise
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and not request.has_failed(error):
            if request.method != LISTEN and request.status == "success":  # else the drain has cancelled it
                request.fail("client_error", "Cancelled")
            raise
        return explain_failure(request, error)
    if request.status == "success" and isinstance(result, dict):
        if result.get("resultType") == "input_required":
            request.status = "input_required"
        elif result.get("isError") is True:
            request.fail("client_error", "ToolError")
    return result


def _judge(error: MCPError) -> tuple[Status, str]:
    """Return status and error type of a request that was answered with a protocol error."""
    code = error.error.code
    error_type = ERROR_TYPES.get(code, type(error).__name__)
    if code == URL_ELICITATION_REQUIRED:
        return "input_required", error_type
    return "error" if code == INTERNAL_ERROR else "client_error", error_type


def explain_failure(request: MCPRequest, error: BaseException) -> CallToolResult:
    """Return the error result of a failed handler, and record the failure.

    Raises:
        MCPError: the handler asked for a protocol error, or the request is no tools/call.
        BaseException: `error`, where the request was cancelled.
    """
    if isinstance(error, MCPError) or not request.has_failed(error):
        raise error
    try:
        expected = expected_error(error)
        text = str(expected)
    except BaseException as failure:  # its own `__str__` failed, or a group is nested too deeply
        return _explain_crash(request, failure)
    if expected is None:
        return _explain_crash(request, error)
    request.fail(status_of(expected), type(expected).__name__)
    code = INVALID_PARAMS if isinstance(expected, ResourceNotFoundError) else INTERNAL_ERROR
    return give_error(request, code, text)


def status_of(error: Exception) -> Status:
    """Return whose fault an expected error is."""
    if isinstance(error, NonFiniteNumberError):
        return "error"
    if not isinstance(error, UpstreamError):
        return "client_error"
    status = error.status or 0
    return "client_error" if 400 <= status < 500 and status not in SERVER_CREDENTIALS else "error"


def expected_error(error: BaseException) -> Exception | None:
    """Return the error whose text is meant for the client, or `None` where the exception is a crash.

    A group counts as its first error where all of them are expected.
    """
    found = [
        single
        for single in ungrouped(error)
        if isinstance(single, ToolError | ResourceError)
        and not isinstance(single, UnexpectedToolError | UnexpectedResourceError)
    ]
    return found[0] if found and len(found) == len(ungrouped(error)) else None


def _explain_crash(request: MCPRequest, error: BaseException) -> CallToolResult:
    request.fail("error", type(error).__name__)
    what = "tool" if request.method == TOOLS_CALL else "handler"
    log.error(f"{what} raised an unexpected exception", exc_info=_loggable(error))
    doing = HANDLERS.get(request.method)
    task = f"{doing} {shortened(request.target)}" if doing else f"handling {request.method}"
    text = f"Error {task}: an unexpected error occurred. Request id: {request.request_id}"
    return give_error(request, INTERNAL_ERROR, text, request_id=request.request_id)


def _loggable(error: BaseException) -> BaseException:
    """Return `error`; for a long list of validation errors, an exception that has only their number."""
    if isinstance(error, ValidationError) and (count := error.error_count()) > MAX_VALIDATION_ERRORS:
        return ValueError(f"{count} validation errors for {error.title}").with_traceback(error.__traceback__)
    return error


def explain_unknown(request: MCPRequest, kind: str) -> CallToolResult:
    """Return the error of a request for a tool, resource or prompt (`kind`) that is not registered, and record it.

    Raises:
        MCPError: the error, where the request is no tools/call.
    """
    request.fail("client_error", f"Unknown{kind.capitalize()}")
    return give_error(request, INVALID_PARAMS, f"Unknown {kind}: {shortened(request.target)}")


def explain_arguments(request: MCPRequest, kind: str, problems: str) -> CallToolResult:
    """Return the error of a request whose arguments the handler does not accept, and record it.

    Raises:
        MCPError: the error, where the request is no tools/call.
    """
    request.fail("client_error", "InvalidArguments")
    return give_error(request, INVALID_PARAMS, f"Invalid arguments for {kind} {shortened(request.target)}: {problems}")


def problems_of(error: ValidationError, count: int | None = None) -> str:
    """Return what is wrong with the arguments, without their values: the first problems and the number of others.

    Args:
        error: The problems, or a part of them.
        count: Their number, where `error` has a part of them.
    """
    listed = error.error_count() <= MAX_VALIDATION_ERRORS
    details = error.errors(include_url=False, include_context=False, include_input=False) if listed else []
    count = error.error_count() if count is None else count
    lines = [
        f"{shortened('.'.join(str(part) for part in detail['loc'])) or 'arguments'}: {shortened(detail['msg'])}"
        for detail in details[:MAX_PROBLEMS]
    ]
    if others := count - len(lines):
        lines.append(f"{others} more problems" if lines else f"arguments: {count} problems")
    return "; ".join(lines)


def shortened(target: str) -> str:
    return target if len(target) <= MAX_TARGET else f"{target[:MAX_TARGET]}…"


def timeout(seconds: float) -> Middleware:
    """Return middleware that cancels a handler after `seconds`; the cancellation reaches its upstream request."""
    timers: dict[float, SharedTimer[Timer]] = {}  # by their seconds

    def middleware(request: MCPRequest, call_next: CallNext) -> Awaitable[Result]:
        return call_next(request) if request.method == LISTEN else timed(request, call_next)

    async def timed(request: MCPRequest, call_next: CallNext) -> Result:
        limit = request.policy.timeout or seconds
        shared = timers.get(limit) or timers.setdefault(limit, SharedTimer(limit, Timer.expire))
        timer = request.timer = Timer(request.task, shared)
        try:
            return await call_next(request)
        except (asyncio.CancelledError, TimeoutError) as error:
            if timer.error is not None and isinstance(error, asyncio.CancelledError):
                request.fail("client_error", "Cancelled")
                raise timer.error from None
            if not timer.expired or (isinstance(error, asyncio.CancelledError) and timer.is_cancelled_otherwise()):
                raise
        finally:
            timer.end()
        is_tool = request.method == TOOLS_CALL
        what = f"Tool {request.target}" if is_tool else request.method
        request.fail("error", "ToolTimeout" if is_tool else "Timeout")
        text = f"{what} did not finish within {limit:g} seconds and was stopped."
        return give_error(request, INTERNAL_ERROR, text, timeout_seconds=limit)

    return middleware
