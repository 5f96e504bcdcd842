"""The drain: a stopping server finishes running calls, for at most `SHUTDOWN_GRACE_SECONDS`, and rejects new ones."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

import structlog
from mcp.server.subscriptions import ListenHandler
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..inbound.http_limits import IS_LISTEN, IS_VALID
from ..registry import Registry
from ..request import LISTEN, REJECTED, CallNext, MCPRequest, Result, give_error, reject

RECHECK_SECONDS = 5.0
"""Interval in which the credentials of an open stream are verified again."""

RETRY_SECONDS = 5
"""Seconds after which a rejected client should try again; by then a load balancer sends it to another replica."""

log = structlog.stdlib.get_logger(__name__)


class Drain:
    """Tracks running calls and requests, waits until they have ended, and cancels calls when the grace time is over.

    Args:
        registry: Whose calls it tracks.
        listen: The handler of `subscriptions/listen`; not the SDK's own where open streams end without a result.
    """

    def __init__(self, registry: Registry, listen: object) -> None:
        self._registry = registry
        self._listen = listen
        self._calls = registry.calls
        self._requests = Counter[bool]()
        """Running requests: whether they are subscriptions, and their number."""
        self._expired = False
        self._ending = False
        """Whether the drain waits for subscriptions too."""
        self._idle = asyncio.Event()
        self.closing = asyncio.Event()
        """Set when open streams must end."""

    async def track(self, request: MCPRequest, call_next: CallNext) -> Result:
        """Middleware: register the call, so that a drain waits for it and can cancel it."""
        # While draining `reject` handles it, further in, where rejections are logged and counted.
        if self._registry.draining or request.method == LISTEN:
            return await call_next(request)
        task = cast("asyncio.Task[object]", request.task)
        self._calls[task] = request
        try:
            return await call_next(request)
        except asyncio.CancelledError:
            if not self._expired:
                raise
            task.uncancel()
            return give_error(request, REJECTED, "Server is shutting down; the call was stopped before it finished.")
        finally:
            self._calls.pop(task, None)
            self._check_idle()

    def reject(self, request: MCPRequest, call_next: CallNext) -> Awaitable[Result]:
        """Middleware: reject a call that arrives during a drain."""
        return self._rejected(request) if self._registry.draining else call_next(request)

    async def _rejected(self, request: MCPRequest) -> Result:
        text = "Server is shutting down. Try again in a few seconds."
        return reject(request, "Draining", text, retry_after_seconds=RETRY_SECONDS)

    def request_received(self, is_listen: bool) -> None:
        """Count a request as running; `request_finished` must follow."""
        self._requests[is_listen] += 1

    def request_finished(self, is_listen: bool) -> None:
        """Count a request as finished: its response has been written, or there will be none."""
        self._requests[is_listen] -= 1
        self._check_idle()

    async def run(self, notice_seconds: float) -> float:
        """Wait until every running request has its response, for at most the grace time plus one second.

        Args:
            notice_seconds: Least time to wait, in which load balancers see that `/readyz` fails.

        Returns:
            The rest of the grace time in seconds.
        """
        grace = self._registry.config.shutdown_grace_seconds
        deadline = time.monotonic() + grace
        log.info("draining", calls_in_flight=len(self._calls), grace_seconds=grace)
        await asyncio.sleep(min(notice_seconds, grace))
        await self._until_idle(deadline - time.monotonic())
        if self._calls:
            log.warning("grace time is over: stopping calls", calls_in_flight=len(self._calls))
            self._expired = True
            for task, request in list(self._calls.items()):
                request.fail("error", "Cancelled")
                task.cancel()
            await self._until_idle(1.0)
        if self._requests[True] and isinstance(self._listen, ListenHandler):
            self._listen.close()  # each open subscription gets its result
            self._ending = True
            await self._until_idle(1.0)
        self.closing.set()
        return max(0.0, deadline - time.monotonic())

    async def _until_idle(self, seconds: float) -> None:
        self._idle.clear()
        self._check_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), max(0.0, seconds))

    def _check_idle(self) -> None:
        if not (self._calls or self._requests[False] or (self._ending and self._requests[True])):
            self._idle.set()


def install(registry: Registry, listen: object) -> Drain:
    """Add the drain's middleware; `listen` is the handler of `subscriptions/listen`."""
    drain = Drain(registry, listen)
    registry.middleware["drain"] = drain.track
    registry.middleware["reject_draining"] = drain.reject
    return drain


class Streams:
    """ASGI middleware that counts running requests for the drain, and ends open streams after it.

    A GET stream and `subscriptions/listen` stay open until the client disconnects. If they are still open after the
    drain, or when their caller's credentials are no longer valid, they receive an `http.disconnect` as if the client
    had disconnected.
    """

    def __init__(self, handler: ASGIApp, drain: Drain, registry: Registry) -> None:
        self._handler = handler
        self._drain = drain
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await self._stream(scope, receive, send)
            return
        is_listen = scope[IS_LISTEN]
        counted = not self._registry.draining  # a series of rejected requests must not prolong the drain
        if counted:
            self._drain.request_received(is_listen)
        try:
            if is_listen:
                await self._stream(scope, receive, send)
            else:
                await self._handler(scope, _until_closing(scope, receive, self._drain.closing), send)
        finally:
            if counted:
                self._drain.request_finished(is_listen)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        incomplete = False

        async def send_and_track(message: Message) -> None:
            nonlocal incomplete
            incomplete = message.get("more_body", message["type"] == "http.response.start")
            await send(message)

        closing = self._drain.closing
        watching: asyncio.Task[None] | None = None
        if (is_valid := scope.get(IS_VALID)) is not None:
            closing = asyncio.Event()
            watching = asyncio.create_task(self._close_when_invalid(closing, scope, is_valid))
        try:
            await self._handler(scope, _until_closing(scope, receive, closing), send_and_track)
        finally:
            if watching is not None:
                watching.cancel()
        if incomplete and closing.is_set():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _close_when_invalid(
        self, closing: asyncio.Event, scope: Scope, is_valid: Callable[[Scope], Awaitable[bool]]
    ) -> None:
        """Set `closing` after the drain, or when the credentials are not valid any more."""
        valid = True
        while valid and not self._drain.closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._drain.closing.wait(), RECHECK_SECONDS)
            valid = await is_valid(scope)
        closing.set()


def _until_closing(scope: Scope, receive: Receive, closing: asyncio.Event) -> Receive:
    """Return `receive` for a request that ends with `closing`, once its body has been read."""
    body_read = scope["method"] != "POST"

    async def receive_until_closing() -> Message:
        nonlocal body_read
        if not body_read:
            message = await receive()
            body_read = not message.get("more_body", False)
            return message
        return await _receive_or_disconnect(receive, closing)

    return receive_until_closing


async def _receive_or_disconnect(receive: Receive, closing: asyncio.Event) -> Message:
    message = asyncio.ensure_future(receive())
    closed = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait((message, closed), return_when=asyncio.FIRST_COMPLETED)
        return message.result() if message.done() else {"type": "http.disconnect"}
    finally:
        message.cancel()
        closed.cancel()
