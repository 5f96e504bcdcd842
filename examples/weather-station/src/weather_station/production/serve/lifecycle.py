"""Start, serving, drain and stop over HTTP.

uvicorn itself closes its listener at once, before load balancers see that `/readyz` fails, and cuts streamed responses.
Here the listener stays open until the last request has its response or `SHUTDOWN_GRACE_SECONDS` are over. A second
signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from ..registry import Registry
from ..sdk import ProductionServer
from .connections import Connections, connection_limit
from .http_protocol import EdgeConfig

NOTICE_SECONDS = 1.0
"""Least time to accept connections after SIGTERM, in which load balancers see that `/readyz` fails."""

CLOSE_SECONDS = 3.0
"""Least time for clients to read their response and close the connection."""

EXIT_SECONDS = 2.0
"""Time limit of the interpreter's exit, which waits for threads that tools may block."""

log = structlog.stdlib.get_logger(__name__)


class HttpServer(uvicorn.Server):
    """A uvicorn server that drains before it stops listening."""

    def __init__(self, server: ProductionServer, application: ASGIApp) -> None:
        # The lifespan is entered in `serve`: uvicorn would log a failing start as a traceback.
        config = server.registry.config
        connections = Connections(
            server.registry, "mcp", connection_limit(server.registry), config.max_http_connections_per_address
        )
        super().__init__(EdgeConfig(application, connections, timeout_keep_alive=config.keep_alive_seconds))
        self._server = server
        self._registry = server.registry
        self._drain = server.drain
        self._stopping: asyncio.Task[None] | None = None
        self._notice_seconds = NOTICE_SECONDS

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Run the startup callbacks, serve until the drain has ended, then run the shutdown callbacks.

        Raises:
            StartError: a startup callback failed.
        """
        with self.capture_signals():
            async with self._server.session_manager.run():
                await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._registry.draining or not self.started:  # not started: a startup callback may hang
            os._exit(128 + sig)
        self._notice_seconds = 0.0 if sig == signal.SIGINT else NOTICE_SECONDS
        self._registry.draining = True

    def stop(self) -> None:
        """Drain and stop, as SIGINT does. Safe to call from any thread."""
        self._notice_seconds = 0.0
        self._registry.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._registry.draining and self._stopping is None:
            self._stopping = asyncio.create_task(self._drain_and_exit())
        return await super().on_tick(counter)

    async def _drain_and_exit(self) -> None:
        try:
            rest = await self._drain.run(self._notice_seconds)
            # Clients that still read their response have the rest of the grace time.
            self.config.timeout_graceful_shutdown = math.ceil(max(CLOSE_SECONDS, rest))
        finally:
            self.should_exit = True


def serve_http(server: ProductionServer, application: ASGIApp, listener: socket.socket) -> None:
    """Serve until a signal has drained the server. The process ends soon afterwards, see `exit_within`.

    Raises:
        ConfigError: an entry of TRUSTED_PROXIES is neither an address nor a CIDR block.
        StartError: a startup callback failed.
    """
    http = HttpServer(server, application)

    async def serve() -> None:
        await http.serve([listener])
        log.info("stopped")
        exit_within(EXIT_SECONDS)

    run(serve(), server.registry, http.config.get_loop_factory())


def run(
    main: Coroutine[Any, Any, None],
    registry: Registry,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run `main` in a new event loop.

    `SystemExit` and `KeyboardInterrupt` in any task stop an event loop. While the server runs, signals do not raise
    them: they come from a task that a tool started, are logged, and the loop is continued.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while not task.done():
            try:
                loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                if task.done() or not registry.running:
                    raise
                log.error("a task tried to end the process", exc_info=error)


def on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[int], None]) -> None:
    """Call `stop(signal)` in the event loop on SIGINT and SIGTERM."""
    for sig in (signal.SIGINT, signal.SIGTERM):
        if sys.platform == "win32":
            signal.signal(sig, lambda number, frame: loop.call_soon_threadsafe(stop, number))
        else:
            loop.add_signal_handler(sig, stop, sig)


def exit_within(seconds: float) -> None:
    """End the process with status 0 after `seconds`, unless it has ended before."""

    def exit_process() -> None:
        time.sleep(seconds)
        os._exit(0)

    threading.Thread(target=exit_process, name="exit", daemon=True).start()
