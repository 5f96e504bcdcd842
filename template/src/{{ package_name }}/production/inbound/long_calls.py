"""Calls that take long: notifications in an `auto` response, cancellation without sessions, and waiting for the user.

- Notifications of a call, such as its progress, go to its response (`response_mode`).
- Without sessions, a `notifications/cancelled` (protocol 2025-11-25 and earlier) comes in a request of its own. It
  cancels a call only if exactly one running call of the same caller has the id: ids are not unique.
- While a call waits for its client, as in `ctx.elicit`, its timeout does not run. The client has USER_TIMEOUT_SECONDS.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp_types import ServerRequest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel

from ..config import EnvironmentSettings, Seconds
from ..json_values import encode
from ..registry import Registry
from ..request import CallNext, MCPRequest, Result
from ..sdk import channel_of
from .response_mode import RESPONSE, DeferredResponse

REQUEST_CANCELLED = -32800
"""JSON-RPC code with which the SDK answers a cancelled request of protocol 2025-11-25 and earlier."""

R = TypeVar("R", bound=BaseModel)


class LongCallSettings(EnvironmentSettings):
    """Settings of long calls."""

    user_timeout_seconds: Seconds = 600.0
    """Time in which a client answers a request of a call, such as a question to its user."""


def install(registry: Registry) -> None:
    """Add the middleware.

    Raises:
        ConfigError: USER_TIMEOUT_SECONDS is not valid.
    """
    calls = LongCalls(registry, LongCallSettings.load().user_timeout_seconds)
    registry.middleware["long_calls"] = calls.middleware
    if calls.stateless:
        registry.cancel_call = calls.cancel


class LongCalls:
    """The running calls of a server."""

    def __init__(self, registry: Registry, user_seconds: float) -> None:
        config = registry.config
        self.stateless = config.transport == "http" and config.session_mode == "stateless"
        self._user_seconds = user_seconds
        self._running: defaultdict[tuple[str, str], list[MCPRequest]] = defaultdict(list)
        """By caller and JSON-RPC id."""
        self._cancelled: set[str] = set()
        """Random ids of the calls that their clients have cancelled."""

    async def middleware(self, request: MCPRequest, call_next: CallNext) -> Result:
        """Middleware: prepare a call's channel to its client, and let the client cancel it."""
        context = request.context
        channel = channel_of(context)
        response = None if context.request is None else context.request.scope.get(RESPONSE)
        if self.stateless:
            if response is not None:
                vars(channel)["notify"] = partial(notify, response)  # in place of the SDK, which leaves it out of JSON
            if context.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
                return await self._cancellable(request, call_next)
        elif channel.can_send_request:
            if response is not None and not response.may_stream:
                channel.transport = replace(channel.transport, can_send_request=False)
            request.context = replace(context, session=UserSession(context.session, request, self._user_seconds))
        return await call_next(request)

    async def _cancellable(self, request: MCPRequest, call_next: CallNext) -> Result:
        key = (request.caller.id, str(request.context.request_id))
        self._running[key].append(request)
        try:
            return await call_next(request)
        except asyncio.CancelledError:
            if request.request_id not in self._cancelled:
                raise
            request.fail("client_error", "Cancelled")
            raise MCPError(REQUEST_CANCELLED, "Request cancelled") from None
        finally:
            if request.request_id in self._cancelled and request.task is not None:
                self._cancelled.remove(request.request_id)
                request.task.uncancel()
            self._running[key].remove(request)
            if not self._running[key]:
                del self._running[key]

    def cancel(self, caller_id: str, request_id: object) -> None:
        """Cancel the call of a caller with this JSON-RPC id, unless several have it."""
        running = self._running.get((caller_id, str(request_id)), [])
        if len(running) == 1 and (task := running[0].task) is not None and running[0].request_id not in self._cancelled:
            self._cancelled.add(running[0].request_id)
            task.cancel()


async def notify(
    response: DeferredResponse, method: str, params: Mapping[str, Any] | None, opts: object = None
) -> None:
    """Send a notification in the response of the call."""
    message = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": dict(params)})
    await response.event(b"event: message\r\ndata: %b\r\n\r\n" % encode(message))


class UserSession(ServerSession):
    """A session of the SDK's for one call, whose timeout does not run while the client has a request of the call."""

    def __init__(self, session: ServerSession, call: MCPRequest, seconds: float) -> None:
        vars(self).update(vars(session))
        self._call = call
        self._seconds = seconds
        self._waiting = 0
        self._left = 0.0

    async def send_request(
        self,
        request: ServerRequest,
        result_type: type[R],
        request_read_timeout_seconds: float | None = None,
        *args: Any,
        **options: Any,
    ) -> R:
        """Send a request to the client, and wait for its answer."""
        with self._stopped_timeout():
            return await super().send_request(
                request, result_type, request_read_timeout_seconds or self._seconds, *args, **options
            )

    @contextmanager
    def _stopped_timeout(self) -> Iterator[None]:
        timer = self._call.timer
        now = asyncio.get_running_loop().time
        if timer is None:
            yield
            return
        if (when := timer.when()) is not None:
            self._left = when - now()
            timer.reschedule(None)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                with suppress(RuntimeError):  # the call has ended
                    timer.reschedule(now() + self._left)
