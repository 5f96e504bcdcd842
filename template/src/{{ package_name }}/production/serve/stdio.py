"""Serving over stdio: stdout carries the protocol's lines and nothing else, and what was read is answered.

The SDK's own stdio server gives up the calls in flight when stdin ends, and its thread on stdin keeps a process that
got a signal from ending. Here both ends drain as HTTP does.
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

from ..sdk import SHUTDOWN_CALLBACK_SECONDS, ProductionServer
from .drain import Drain
from .lifecycle import EXIT_SECONDS, exit_within, on_signals

log = structlog.stdlib.get_logger(__name__)

LISTEN = "subscriptions/listen"
"""The one request that is open until its client leaves."""


def serve(server: ProductionServer, source: int, sink: int) -> None:
    """Serves one client until it closes `source` or a signal has drained the server. The process has to end afterwards.

    `source` and `sink` are file descriptors; nothing else in the process may use them.

    Raises:
        StartError: a startup callback failed.
    """
    asyncio.run(_serve(server, source, sink))


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

    async def take(line: bytes) -> None:
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError as error:
            await incoming.send(error)
            return
        if not registry.draining:
            pending.received(message)
        await incoming.send(SessionMessage(message))

    def read() -> None:
        try:
            with open(source, "rb", closefd=False) as lines:
                for line in lines:
                    asyncio.run_coroutine_threadsafe(take(line), loop).result()
            loop.call_soon_threadsafe(stopping.set)
        except (OSError, RuntimeError, CancelledError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return  # the server has ended first

    async def end() -> None:
        await stopping.wait()
        await server.drain.run(0.0)
        await incoming.aclose()
        # A client that no longer reads holds the thread that writes to it, and a startup callback may hang.
        exit_within(EXIT_SECONDS + SHUTDOWN_CALLBACK_SECONDS * len(registry.on_shutdown))

    on_signals(loop, stop)
    # A daemon, since nothing can wake a thread that reads: the process ends without it.
    threading.Thread(target=read, name="stdin", daemon=True).start()
    ending = asyncio.create_task(end())
    try:
        async with incoming, messages:
            await server.serve_streams(messages, _Answers(sink, pending))
    finally:
        ending.cancel()
    log.info("stopped")
    exit_within(EXIT_SECONDS)


class _Pending:
    """The requests that wait for their answer."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._ids: set[str | int] = set()

    def received(self, message: object) -> None:
        if isinstance(message, JSONRPCRequest) and message.method != LISTEN and message.id not in self._ids:
            self._ids.add(message.id)
            self._drain.request_received()
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self.settled((message.params or {}).get("requestId"))  # the SDK never answers it then

    def settled(self, request_id: object) -> None:
        if isinstance(request_id, str | int) and request_id in self._ids:
            self._ids.remove(request_id)
            self._drain.request_finished()


class _Answers:
    """The way out, one whole line at a time; a request is settled when its answer has been written."""

    def __init__(self, sink: int, pending: _Pending) -> None:
        self._sink = sink
        self._pending = pending
        self._turn = anyio.Lock()

    async def send(self, item: SessionMessage, /) -> None:
        message = item.message
        line = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        try:
            async with self._turn:
                await anyio.to_thread.run_sync(_write_all, self._sink, line)
        except OSError:
            raise anyio.BrokenResourceError from None
        finally:
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                self._pending.settled(message.id)

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> _Answers:
        return self

    async def __aexit__(self, *exception: object) -> None: ...


def _write_all(sink: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(sink, rest) :]
