"""Stop without losing a call: readiness fails first, what is under way is answered, then the process ends with 0.

Plain uvicorn closes its listener at once, so that nobody sees the failing probe, and cuts streamed answers; here
the listener stays open until the last request has been answered or `SHUTDOWN_GRACE_SECONDS` are over. A second
signal stops at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import cast

import structlog
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import App, ProductionServer
from .chain import Call, Next, Result, failure

NOTICE_SECONDS = 1.0
"""How long a stopping server keeps accepting after SIGTERM, so that balancers see `/readyz` fail first."""

CLOSE_SECONDS = 3.0
"""How long connections may take at least to close once every request has been answered."""

EXIT_SECONDS = 2.0
"""How long the interpreter may take to end. A tool that blocks a thread would keep it for ever."""

LISTEN = (b"mcp-method", b"subscriptions/listen")
"""The header of the one POST that stays open until its client leaves; the SDK insists on it."""

log = structlog.stdlib.get_logger(__name__)


class Drain:
    """Knows what is under way and brings it to an end: by itself, or with an error when the grace time is over."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._calls: set[asyncio.Task[object]] = set()
        self._requests = 0
        self._expired = False
        self._idle = asyncio.Event()
        self.closing = asyncio.Event()
        """Set when streams that nobody waits for have to end."""

    async def link(self, call: Call, following: Next) -> Result:
        task = cast("asyncio.Task[object]", asyncio.current_task())
        if self._app.draining:  # refused further in, where it is logged and counted
            return await following(call)
        self._calls.add(task)
        try:
            return await following(call)
        except asyncio.CancelledError:
            if not self._expired:
                raise
            task.uncancel()
            return failure("Server is shutting down; the call was stopped before it finished.")
        finally:
            self._calls.discard(task)
            self._settle()

    async def refusal(self, call: Call, following: Next) -> Result:
        if not self._app.draining:
            return await following(call)
        call.outcome, call.error_type = "rejected", "Draining"
        return failure("Server is shutting down. Try again in a few seconds.")

    def opened(self) -> None:
        """A request has been read; `answered` has to follow."""
        self._requests += 1

    def answered(self) -> None:
        """The answer of a request has been handed to its transport, or will never be given."""
        self._requests -= 1
        self._settle()

    async def run(self, notice_seconds: float) -> float:
        """Waits until all that was under way has been answered, at most the grace time plus one second.

        Returns the seconds of the grace time that are left.
        """
        grace = self._app.config.shutdown_grace_seconds
        deadline = time.monotonic() + grace
        log.info("draining", calls_in_flight=len(self._calls), grace_seconds=grace)
        await asyncio.sleep(min(notice_seconds, grace))
        await self._until_idle(deadline - time.monotonic())
        if self._calls:
            log.warning("grace time is over: stopping calls", calls_in_flight=len(self._calls))
            self._expired = True
            for task in list(self._calls):
                task.cancel()
            await self._until_idle(1.0)
        self.closing.set()
        return max(0.0, deadline - time.monotonic())

    async def _until_idle(self, seconds: float) -> None:
        self._idle.clear()
        self._settle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), max(0.0, seconds))

    def _settle(self) -> None:
        if not self._calls and not self._requests:
            self._idle.set()


def install(app: App) -> None:
    app.drain = Drain(app)
    app.links["drain"] = app.drain.link
    app.links["refusal"] = app.drain.refusal


class Streams:
    """Counts the requests under way, and ends at the end of the drain the streams that would outlive them.

    A GET stream and `subscriptions/listen` stay open until their client leaves. Once the drain closes, they
    receive the `http.disconnect` that ends them.
    """

    def __init__(self, app: App, handler: ASGIApp) -> None:
        self._app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET" or LISTEN in scope["headers"]:
            await self._stream(scope, receive, send)
        elif self._app.draining:  # refused or short: were it counted, the drain might never end
            await self._request(scope, receive, send)
        else:
            self._app.drain.opened()
            try:
                await self._request(scope, receive, send)
            finally:
                self._app.drain.answered()

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_ = False

        async def send_and_note(message: Message) -> None:
            nonlocal open_
            open_ = message.get("more_body", message["type"] == "http.response.start")
            await send(message)

        await self._request(scope, receive, send_and_note)
        if open_ and self._app.drain.closing.is_set():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        closing = self._app.drain.closing
        body_read = scope["method"] != "POST"

        async def receive_until_closing() -> Message:
            nonlocal body_read
            if not body_read:
                message = await receive()
                body_read = not message.get("more_body", False)
                return message
            return await _first(receive, closing)

        await self._handler(scope, receive_until_closing, send)


async def _first(receive: Receive, closing: asyncio.Event) -> Message:
    message = asyncio.ensure_future(receive())
    closed = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait((message, closed), return_when=asyncio.FIRST_COMPLETED)
        return message.result() if message.done() else {"type": "http.disconnect"}
    finally:
        message.cancel()
        closed.cancel()


class HttpServer(uvicorn.Server):
    """A uvicorn server that drains before it stops listening."""

    def __init__(self, server: ProductionServer, application: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                lifespan="off",  # entered below, so that a failing start is an exception and not uvicorn's traceback
                log_config=None,
                log_level=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )
        self._server = server
        self._app = server.production
        self._stopping: asyncio.Task[None] | None = None
        self._notice = NOTICE_SECONDS

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Runs the startup callbacks, serves until the drain has ended, then runs the shutdown callbacks.

        Raises:
            StartError: a startup callback failed.
        """
        with self.capture_signals():
            async with self._server.session_manager.run():
                await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.draining or not self.started:  # a startup callback that hangs must not keep the process
            os._exit(128 + sig)
        self._notice = 0.0 if sig == signal.SIGINT else NOTICE_SECONDS
        self._app.draining = True

    def stop(self) -> None:
        """Drains and stops, as a SIGINT does. Safe to call from any thread."""
        self._notice = 0.0
        self._app.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._app.draining and self._stopping is None:
            self._stopping = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        try:
            left = await self._app.drain.run(self._notice)
            # Answers that are still being read have the rest of the grace time.
            self.config.timeout_graceful_shutdown = math.ceil(max(CLOSE_SECONDS, left))
        finally:
            self.should_exit = True


def serve_http(server: ProductionServer, application: ASGIApp, listener: socket.socket) -> None:
    """Serves until a signal has drained the server. The process has to end afterwards.

    Raises:
        StartError: a startup callback failed.
    """
    http = HttpServer(server, application)

    async def serve() -> None:
        await http.serve([listener])
        log.info("stopped")
        leave_within(EXIT_SECONDS)

    with asyncio.Runner(loop_factory=http.config.get_loop_factory()) as runner:
        runner.run(serve())


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> None:
    """Calls `stop(signal)` in the loop for SIGINT and SIGTERM.

    Handlers of its own make a process with PID 1 stoppable: the kernel gives it no default ones.
    """
    for sig in (signal.SIGINT, signal.SIGTERM):
        if sys.platform == "win32":
            signal.signal(sig, lambda number, frame: loop.call_soon_threadsafe(stop, number))
        else:
            loop.add_signal_handler(sig, stop, sig)


def leave_within(seconds: float) -> None:
    """Ends the process with status 0 when it has not ended by itself by then, whatever still blocks a thread."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=leave, name="leave", daemon=True).start()
