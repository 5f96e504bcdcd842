"""MCP requests, and the middleware that handles them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import anyio
from mcp.server.context import CallNext as SDKCallNext
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from .caller import Caller
from .config import StartError
from .json_values import valid_unicode
from .policy import Policy

R = TypeVar("R")
T = TypeVar("T")

Result = HandlerResult
Status = Literal["success", "input_required", "client_error", "rejected", "error"]
Copies = Literal["both", "text", "structure"]

TOOLS_CALL = "tools/call"
RESOURCES_READ = "resources/read"
PROMPTS_GET = "prompts/get"
COMPLETE = "completion/complete"
LISTEN = "subscriptions/listen"
"""The only request whose response stays open until the client disconnects."""

REJECTED = -32000
"""JSON-RPC code of a rejected request other than tools/call: implementation-defined (JSON-RPC 2.0, section 5.1)."""


class SharedTimer(Generic[T]):
    """Calls `expire` with each item some seconds after it was added, unless it was removed before.

    Nearly all are removed before. One timer of the event loop serves them all, since making and cancelling one for each
    call takes five times as long.
    """

    def __init__(self, seconds: float, expire: Callable[[T], object]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._items: dict[T, float] = {}
        """The times at which the items expire, the earliest first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop whose timer runs."""

    def add(self, item: T) -> None:
        """Add an item that is not there."""
        loop = asyncio.get_running_loop()
        self._items[item] = time = loop.time() + self._seconds
        if loop is not self._loop:
            self._start(loop, time)

    def remove(self, item: T) -> float | None:
        """Return the time at which the item would have expired, on the clock of the loop; `None` if it has."""
        return self._items.pop(item, None)

    def _start(self, loop: asyncio.AbstractEventLoop, time: float) -> None:
        self._loop = loop
        loop.call_at(time, self._run, loop, time)

    def _run(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        self._loop = None
        expired = []
        for item, time in self._items.items():
            if time > now:
                self._start(loop, time)
                break
            expired.append(item)
        for item in expired:
            if self.remove(item) is not None:  # else an earlier one has removed it
                self._expire(item)


class Timer:
    """Cancels the task of a request after some seconds, as `asyncio.timeout` does at ten times the cost."""

    __slots__ = ("_cancelling", "_handle", "_shared", "_task", "error", "expired")

    def __init__(self, task: asyncio.Task[Any] | None, shared: SharedTimer[Timer]) -> None:
        self._task = task
        self._cancelling = task.cancelling() if task is not None else 0
        self.expired = False
        """Whether the task has been cancelled, which `end` takes back."""
        self.error: MCPError | None = None
        """The answer to a request that `cancel` has cancelled, which `end` takes back too."""
        self._handle: asyncio.TimerHandle | None = None
        """The timer after `start`; before, it is the shared one."""
        self._shared = shared
        if task is not None:
            shared.add(self)

    def start(self, seconds: float) -> None:
        """Start again with as many seconds, unless the request has ended."""
        if self._task is not None:
            self._handle = asyncio.get_running_loop().call_later(seconds, self.expire)

    def stop(self) -> float:
        """Stop, and return the seconds that are left."""
        time = self._shared.remove(self)
        if self._handle is not None:
            self._handle.cancel()
            time = self._handle.when()
        return 0.0 if time is None else max(0.0, time - asyncio.get_running_loop().time())

    def end(self) -> None:
        """Stop for ever: the request has ended."""
        self._shared.remove(self)
        if self._handle is not None:
            self._handle.cancel()
        if self._task is not None:
            for _ in range(self.expired + (self.error is not None)):
                self._task.uncancel()
        self._task = self._handle = None

    def cancel(self, error: MCPError) -> None:
        """Cancel the task, so that its request is answered with `error`, unless the request has ended."""
        if self._task is not None and self.error is None:
            self.error = error
            self._task.cancel()

    def is_cancelled_otherwise(self) -> bool:
        """Return whether the task of an expired timer was cancelled by something else too."""
        return self._task is not None and self._task.cancelling() > self._cancelling + 1

    def expire(self) -> None:
        """Cancel the task."""
        self.expired = True
        if self._task is not None:
            self._task.cancel()


class ResultBudget(Protocol):
    """What limits the results of a server."""

    def limit(self, request: MCPRequest) -> int:
        """Return the bytes of text and structure that the result may have; 0 for no limit."""

    def copies(self, request: MCPRequest) -> Copies:
        """Return which copies are sent of a result that has an output schema."""

    def check_returned(self, request: MCPRequest, value: Any) -> None:
        """Raise if what the handler returned is too large; it is not converted yet."""

    def check_sent(self, request: MCPRequest) -> None:
        """Raise if the result, whose `result_bytes` are known, is too large; record its size otherwise."""

    def check_error(self, request: MCPRequest, error: MCPError) -> None:
        """Raise if the error that answers the request is too large."""


@dataclass(slots=True)
class MCPRequest:
    """One request of a client while the pipeline handles it."""

    method: str
    """The JSON-RPC method, or `unknown` where the server does not answer it: safe as a label."""
    target: str
    """The tool's or prompt's name or the resource's URI as the client sent it: unbounded, so never a label."""
    target_label: str
    """Name of a registered tool or prompt, URI or URI template of a registered resource, `unknown` for any other
    target, empty for methods without a target: safe as a label."""
    context: ServerRequestContext[Any, Any]
    caller: Caller
    request_id: str
    """Random and unique, unlike JSON-RPC ids, which several clients can choose alike."""
    task: asyncio.Task[Any] | None
    """The task that handles the request."""
    call_sdk: SDKCallNext
    """Continues in the SDK, which validates the parameters, runs the handler and builds the result."""
    policy: Policy
    """The policy of the target."""
    has_sdk_task: bool = False
    """Whether the SDK made the task for this request, so that no other code cancels it."""
    budget: ResultBudget | None = None
    """Limits the result; `None` for no limit, and both copies of what has an output schema."""
    status: Status = "success"
    error_type: str | None = None
    """Class of the original exception, `ToolError` for an error result of the tool, or the reason of a rejection."""
    handler_called: bool = False
    """Whether the owner's function was called, so that its arguments were valid."""
    encoded: bytes | None = None
    """The final JSON of the result where the direct path sends a remembered list; the result itself is then empty."""
    timer: Timer | None = None
    """The timeout of the request."""
    entered: bool = False
    """Whether the server runs this request already: what its handler calls in Python is not a request of the client."""
    is_nested: bool = False
    """Whether its handler has called another one in Python, whose result is not sent."""
    result_bytes: int = 0
    """Bytes of text and structure in the result, as JSON."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the task that the SDK made for this request was cancelled."""
        return self.has_sdk_task and self.task is not None and self.task.cancelling() > 0

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters as the client sent them, not validated."""
        return self.context.params or {}

    def has_failed(self, error: BaseException) -> bool:
        """Return whether the handler failed with `error`; if not, the request was cancelled.

        A handler that cancels its own task has failed: the end of a task that the SDK made would stop all others.
        """
        if is_own_failure(error, self.task):
            return True
        if self.task is None or not isinstance(error, asyncio.CancelledError) or not self.is_cancelled:
            return False
        is_drained = self.status != "success"
        is_stopped = self.timer is not None and (self.timer.expired or self.timer.error is not None)
        if is_drained or is_stopped or anyio.current_effective_deadline() == -math.inf:  # a cancelled scope
            return False
        while self.task.uncancel():
            pass
        return True

    def fail(self, status: Status, error_type: str) -> None:
        """Record a failure."""
        self.status, self.error_type = status, error_type


CallNext = Callable[[MCPRequest], Awaitable[Result]]
Middleware = Callable[[MCPRequest, CallNext], Awaitable[Result]]

current_request: ContextVar[MCPRequest | None] = ContextVar("current_request", default=None)
"""The request that is being handled, or `None`."""


def error_result(text: str, **meta: Any) -> CallToolResult:
    """Return an error result with `text` for the model, and `meta` for programs as its `_meta`."""
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True, _meta=meta or None)


def reject(request: MCPRequest, reason: str, text: str, **meta: Any) -> CallToolResult:
    """Record the rejection of `request` for `reason`, and return or raise its error as `give_error` does."""
    request.fail("rejected", reason)
    return give_error(request, REJECTED, text, **meta)


def give_error(request: MCPRequest, code: int, text: str, **meta: Any) -> CallToolResult:
    """Return an error result for a tools/call, which the model reads.

    Raises:
        MCPError: for any other method, a JSON-RPC error with `code`, `text` as its message and `meta` as its data.
    """
    if request.method == TOOLS_CALL:
        return error_result(valid_unicode(text), **meta)
    if request.method == RESOURCES_READ:
        meta["uri"] = valid_unicode(request.target)  # MCP specification 2025-11-25, server/resources#error-handling
    raise MCPError(code=code, message=valid_unicode(text), data=meta or None)


def max_items(request: MCPRequest | None) -> int | None:
    """Return how many items of an iterator are read: more than the result may have bytes; `None` for no limit."""
    if request is None or request.budget is None or request.is_nested:
        return None
    limit = request.budget.limit(request)
    return limit + 1 if limit else None


def is_own_failure(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Return whether code in `task` failed with `error`, which may be any `BaseException`.

    False if the task was cancelled, or its coroutine is closed. A `CancelledError` that the code itself caused is a
    failure, since `task` was not cancelled.
    """
    if isinstance(error, asyncio.CancelledError):
        return task is None or task.cancelling() == 0
    if isinstance(error, GeneratorExit):
        return _current_task() is task
    return True


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # the event loop has ended
        return None


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
