"""Serving over stdio, with the same drain as over HTTP.

The SDK's own stdio server cancels the running calls when stdin ends, and after a signal its thread that reads stdin
keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import CancelledError

import anyio
import anyio.to_thread
import structlog
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from ..request import LISTEN
from ..sdk import SHUTDOWN_CALLBACK_SECONDS, ProductionServer
from .drain import Drain
from .lifecycle import EXIT_SECONDS, exit_within, on_signals, run

log = structlog.stdlib.get_logger(__name__)


def serve(server: ProductionServer, source: int, sink: int) -> None:
    """Serve one client until it closes `source` or a signal arrives, and drain. The process ends soon afterwards.

    `source` and `sink` are file descriptors, which nothing else in the process may use.

    Raises:
        StartError: a startup callback failed.
    """
    run(_serve(server, source, sink), server.registry)


async def _serve(server: ProductionServer, source: int, sink: int) -> None:
    registry = server.registry
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    incoming, messages = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    pending = _Pending(server.drain)

    def stop(sig: int) -> None:
        if stopping.is_set():
            os._exit(128 + sig)
        registry.draining = True
        stopping.set()

    async def receive(line: bytes) -> None:
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError as error:
            await incoming.send(error)
            return
        if not registry.draining:
            pending.add(message)
        await incoming.send(SessionMessage(message))

    def read_lines() -> None:
        try:
            with open(source, "rb", closefd=False) as lines:
                for line in lines:
                    asyncio.run_coroutine_threadsafe(receive(line), loop).result()
            loop.call_soon_threadsafe(stopping.set)
        except (OSError, RuntimeError, CancelledError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the server has ended before stdin

    async def drain_and_close() -> None:
        await stopping.wait()
        await server.drain.run(0.0)
        await incoming.aclose()
        # A writing thread blocks while the client does not read, and a startup callback may hang: limit both.
        exit_within(EXIT_SECONDS + SHUTDOWN_CALLBACK_SECONDS * len(registry.on_shutdown))

    on_signals(loop, stop)
    # A daemon thread, because a blocking read cannot be interrupted.
    threading.Thread(target=read_lines, name="stdin", daemon=True).start()
    closing = asyncio.create_task(drain_and_close())
    try:
        async with incoming, messages:
            await server.serve_streams(messages, _Output(sink, pending))
    finally:
        closing.cancel()
    log.info("stopped")
    exit_within(EXIT_SECONDS)


class _Pending:
    """The requests without a response yet, which the drain waits for."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._ids: set[str | int] = set()

    def add(self, message: object) -> None:
        """Add a request; a cancellation removes its request, because the SDK does not answer it."""
        if isinstance(message, JSONRPCRequest) and message.method != LISTEN and message.id not in self._ids:
            self._ids.add(message.id)
            self._drain.request_received()
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self.remove((message.params or {}).get("requestId"))

    def remove(self, request_id: object) -> None:
        if isinstance(request_id, str | int) and request_id in self._ids:
            self._ids.remove(request_id)
            self._drain.request_finished()


class _Output:
    """A stream that writes one message per line; a request is no longer pending once its response is written."""

    def __init__(self, sink: int, pending: _Pending) -> None:
        self._sink = sink
        self._pending = pending
        self._lock = anyio.Lock()

    async def send(self, item: SessionMessage, /) -> None:
        message = item.message
        line = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        try:
            async with self._lock:
                await anyio.to_thread.run_sync(_write_all, self._sink, line)
        except OSError:
            raise anyio.BrokenResourceError from None
        finally:
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                self._pending.remove(message.id)

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> _Output:
        return self

    async def __aexit__(self, *exception: object) -> None: ...


def _write_all(sink: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(sink, rest) :]
