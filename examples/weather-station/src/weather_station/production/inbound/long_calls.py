"""Calls that take long: notifications in an `auto` response, cancellation without sessions, and waiting for the user.

- Notifications of a call, such as its progress, go to its response (`response_mode`).
- Without sessions, a `notifications/cancelled` (protocol 2025-11-25 and earlier) comes in a request of its own. It
  cancels a call only if exactly one running call of the same caller has the id: ids are not unique.
- While a call waits for the user or the model, as in `ctx.elicit`, its timeout does not run. The client has
  USER_TIMEOUT_SECONDS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from dis import get_instructions
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import ServerRequest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel, Field

from ..config import EnvironmentSettings, Seconds
from ..registry import Registry
from ..request import TOOLS_CALL, MCPRequest
from ..sdk import channel_of
from .response_mode import RESPONSE, ResponseSettings

REQUEST_CANCELLED = -32800
"""JSON-RPC code with which the SDK answers a cancelled request of protocol 2025-11-25 and earlier."""

ASKING = frozenset(("elicitation/create", "sampling/createMessage"))
"""Requests that the client's user or model answers; for any other one, the call's timeout runs on."""

R = TypeVar("R", bound=BaseModel)


class LongCallSettings(EnvironmentSettings):
    """Settings of long calls."""

    user_timeout_seconds: Seconds = 600.0
    """Time in which a client answers a request of a call, such as a question to its user."""
    proxy_timeout_seconds: int = Field(default=90, ge=1, le=86_400)
    """Time after which a proxy in front gives up a response without a byte; that of the compose stack reads it too."""


def install(registry: Registry) -> None:
    """Prepare the channel of each call, and let notifications cancel calls.

    Raises:
        ConfigError: USER_TIMEOUT_SECONDS or PROXY_TIMEOUT_SECONDS is not valid.
    """
    settings = LongCallSettings.load()
    calls = LongCalls(registry, settings.user_timeout_seconds)
    registry.prepare_channel = calls.prepare
    if calls.stateless:
        registry.cancel_call = calls.cancel

    async def add_notices() -> None:  # at startup: the tools are registered after `install`
        registry.notices += [text for text in notices(registry, settings) if text not in registry.notices]

    registry.on_startup.append(add_notices)


def notices(registry: Registry, settings: LongCallSettings) -> Iterator[str]:
    """Yield one line for each setting with which a proxy ends a long call or its progress is lost."""
    config = registry.config
    if config.transport != "http" or config.response_mode == "sse":
        return
    limit = settings.proxy_timeout_seconds
    if config.response_mode == "auto":
        if (seconds := ResponseSettings.load().sse_after_seconds) >= limit:
            yield (
                f"SSE_AFTER_SECONDS={seconds:g}: a proxy in front gives up no later than that, after "
                f"PROXY_TIMEOUT_SECONDS={limit}: set SSE_AFTER_SECONDS lower"
            )
        return
    advice = "set RESPONSE_MODE=auto"
    tools = registry.targets.labels(TOOLS_CALL)
    with_progress = [tool for tool in tools if reports_progress(registry.targets.function(TOOLS_CALL, tool))]
    if with_progress:
        yield f"RESPONSE_MODE=json leaves out the progress of {', '.join(with_progress)}: {advice}"
    timeouts = {tool: registry.targets.policy(TOOLS_CALL, tool).timeout for tool in tools}
    late = [f"policy(timeout={seconds:g}) of {tool}" for tool, seconds in timeouts.items() if (seconds or 0) >= limit]
    if config.tool_timeout_seconds >= limit and None in timeouts.values():
        late.append(f"TOOL_TIMEOUT_SECONDS={config.tool_timeout_seconds:g}")
    if late:
        yield (
            f"{', '.join(late)}: with RESPONSE_MODE=json a proxy in front gives up no later than that, after "
            f"PROXY_TIMEOUT_SECONDS={limit}: {advice}, or raise the proxy's timeout and PROXY_TIMEOUT_SECONDS"
        )


def reports_progress(fn: Callable[..., Any] | None) -> bool:
    """Return whether a call of `fn` may report progress.

    That is so if its bytecode, or that of a function of the same top-level package that it uses, names
    `report_progress`.
    """
    pending: list[Any] = [fn]
    seen: set[FunctionType] = set()
    while pending:
        item = pending.pop()
        if isinstance(item, partial):
            pending.append(item.func)
        elif isinstance(item, MethodType):
            pending.append(item.__func__)
        elif not isinstance(item, FunctionType):
            call = getattr(type(item), "__call__", None)  # noqa: B004
            pending += [call] if isinstance(call, FunctionType) else []
        elif item not in seen:
            seen.add(item)
            codes = [*_codes(item.__code__)]
            names = {name for code in codes for name in code.co_names}
            if "report_progress" in names:
                return True
            used = {step.argval for code in codes for step in get_instructions(code) if step.opname == "LOAD_GLOBAL"}
            pending += [vars(item).get("__wrapped__"), *_functions(used, names, item.__globals__)]
    return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _functions(used: set[str], names: set[str], module: Mapping[str, Any]) -> Iterator[FunctionType]:
    """Yield the functions of a package that code of `module` uses: by their name, or by that of their module."""
    values = [module[name] for name in used & module.keys()]
    for inner in [vars(value) for value in values if isinstance(value, ModuleType)]:
        values += [inner[name] for name in names & inner.keys()]
    for value in values:
        if isinstance(value, FunctionType) and _package(value.__globals__) == _package(module):
            yield value


def _package(module: Mapping[str, Any]) -> str:
    return str(module.get("__name__")).partition(".")[0]


class LongCalls:
    """Prepares the channel of each call to its client, and cancels calls by notification."""

    def __init__(self, registry: Registry, user_seconds: float) -> None:
        config = registry.config
        self.stateless = config.transport == "http" and config.session_mode == "stateless"
        self._user_seconds = user_seconds
        self._running = registry.calls

    def prepare(self, request: MCPRequest) -> None:
        """Prepare a call's channel to its client."""
        context = request.context
        channel = channel_of(context)
        response = None if context.request is None else context.request.scope.get(RESPONSE)
        if self.stateless:
            if response is not None:
                channel.notify = response.notify  # in place of the SDK, which leaves it out of JSON
        elif channel.can_send_request:
            if response is not None and not response.may_stream:
                channel.transport = replace(channel.transport, can_send_request=False)
            request.context = replace(context, session=UserSession(context.session, request, self._user_seconds))

    def cancel(self, caller_id: str, request_id: object) -> None:
        """Cancel the call of a caller with this JSON-RPC id, unless several have it."""
        if type(request_id) not in (int, str):
            return
        key = (caller_id, str(request_id))
        found = [
            call.timer
            for call in self._running.values()
            if (call.caller.id, str(call.context.request_id)) == key
            and call.context.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS
            and call.timer is not None
        ]
        if len(found) == 1:
            found[0].cancel(MCPError(REQUEST_CANCELLED, "Request cancelled"))


class UserSession(ServerSession):
    """A session of the SDK for one call, whose timeout is stopped while a question of the call waits for its answer."""

    def __init__(self, session: ServerSession, call: MCPRequest, seconds: float) -> None:
        # A copy: the SDK's session belongs to the connection, and this timeout to one call.
        vars(self).update(vars(session))
        self._call = call
        self._seconds = seconds
        self._waiting = 0
        self._seconds_left = 0.0

    async def send_request(
        self,
        request: ServerRequest,
        result_type: type[R],
        request_read_timeout_seconds: float | None = None,
        *args: Any,
        **options: Any,
    ) -> R:
        """Send a request to the client, and wait for its answer."""
        with self._stopped_timeout() if request.method in ASKING else nullcontext():
            return await super().send_request(
                request, result_type, request_read_timeout_seconds or self._seconds, *args, **options
            )

    @contextmanager
    def _stopped_timeout(self) -> Iterator[None]:
        timer = self._call.timer
        if timer is None:
            yield
            return
        if not self._waiting:
            self._seconds_left = timer.stop()
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                timer.start(self._seconds_left)
