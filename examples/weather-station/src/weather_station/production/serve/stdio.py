"""Serving over stdio, with the same drain as over HTTP.

The SDK's own stdio server cancels the running calls when stdin ends, and after a signal its thread that reads stdin
keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from codecs import BOM_UTF8
from collections.abc import Sequence
from concurrent.futures import CancelledError

import anyio
import anyio.to_thread
import structlog
from mcp.shared.dispatcher import as_request_id, coerce_request_id
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCNotification, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from ..inbound.http_limits import INVALID_ID_TEXT, INVALID_REQUEST, ids_of_requests
from ..request import LISTEN
from ..sdk import SHUTDOWN_CALLBACK_SECONDS, ProductionServer
from .drain import Drain
from .lifecycle import EXIT_SECONDS, exit_within, on_signals, run

_ID = rb'"id"\s*:\s*(-?\d{1,18}|"[^"\\]{0,200}")\s*'
_ID_AT_BEGIN = re.compile(rb'\s*\{(?:\s*"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*,)*\s*' + _ID + rb",")
_ID_AT_END = re.compile(rb",\s*" + _ID + rb"\}\s*$")
"""The id of a request in the first or last bytes of a line too long to be read: clients put it at one of the ends."""

END_BYTES = 1000
READ_BYTES = 65_536

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
    output = _Output(sink, pending)
    limit = registry.config.max_request_bytes

    def stop(sig: int) -> None:
        if stopping.is_set():
            os._exit(128 + sig)
        registry.draining = True
        stopping.set()

    async def receive(line: bytes) -> None:
        line = line.removeprefix(BOM_UTF8)  # of a host on Windows (RFC 8259, section 8.1, lets a reader ignore it)
        try:
            message = jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValueError:
            if line.strip():
                await reject(len(line), ids_of_requests(line), "The line is not one valid JSON-RPC message.")
            return
        if isinstance(message, JSONRPCNotification) and (ids := ids_of_requests(line)):
            await reject(len(line), ids, INVALID_ID_TEXT)
            return
        if not registry.draining:
            pending.add(message)
        await incoming.send(SessionMessage(message))

    async def reject(size: int, ids: Sequence[str | int | None], problem: str) -> None:
        """Log a line that is not handled, without its text, and answer the requests in it."""
        log.warning("a line of stdin was rejected", problem=problem, bytes=size, requests=len(ids))
        for request_id in ids:
            error = {"code": INVALID_REQUEST, "message": problem}
            with contextlib.suppress(anyio.BrokenResourceError):  # the client has stopped reading
                await output.write(json.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}).encode())

    async def reject_long(begin: bytes, end: bytes, size: int) -> None:
        found = _ID_AT_BEGIN.match(begin) or _ID_AT_END.search(end)
        ids = [json.loads(found[1].decode(errors="replace"))] if found else []
        await reject(size, ids, f"The message is larger than {limit} bytes (MAX_REQUEST_BYTES).")

    def read_lines() -> None:
        try:
            with open(source, "rb", closefd=False) as lines:
                while line := lines.readline(limit + 2):  # with the line break, \n or \r\n
                    if len(line.rstrip(b"\r\n")) <= limit:
                        handled = receive(line)
                    else:
                        begin, end, size = line, line[-END_BYTES:], len(line)
                        while not end.endswith(b"\n") and (more := lines.readline(READ_BYTES)):
                            end, size = (end + more)[-END_BYTES:], size + len(more)
                        handled = reject_long(begin, end, size)
                    asyncio.run_coroutine_threadsafe(handled, loop).result()
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
            await server.serve_streams(messages, output)
    finally:
        closing.cancel()
    log.info("stopped")
    exit_within(EXIT_SECONDS)


class _Pending:
    """The requests without a response yet."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain
        self._ids: dict[str | int, bool] = {}
        """As the SDK compares them ("7" and 7 are the same): whether they are subscriptions."""

    def add(self, message: object) -> None:
        """Add a request; a cancellation removes its request, because the SDK does not answer it."""
        if isinstance(message, JSONRPCRequest):
            request_id = coerce_request_id(message.id)
            if request_id not in self._ids:
                self._ids[request_id] = is_listen = message.method == LISTEN
                self._drain.request_received(is_listen)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self.remove((message.params or {}).get("requestId"))

    def remove(self, request_id: object) -> None:
        known = as_request_id(request_id)
        if known is not None and (same := coerce_request_id(known)) in self._ids:
            self._drain.request_finished(self._ids.pop(same))


class _Output:
    """A stream that writes one message per line; a request is no longer pending once its response is written."""

    def __init__(self, sink: int, pending: _Pending) -> None:
        self._sink = sink
        self._pending = pending
        # A thread of its own: the functions of tools, resources and prompts that are not async share those of anyio.
        self._thread = anyio.CapacityLimiter(1)

    async def send(self, item: SessionMessage, /) -> None:
        message = item.message
        try:
            await self.write(message.model_dump_json(by_alias=True, exclude_unset=True).encode())
        finally:
            if isinstance(message, JSONRPCResponse | JSONRPCError):
                self._pending.remove(message.id)

    async def write(self, line: bytes) -> None:
        """Write a line.

        Raises:
            anyio.BrokenResourceError: the client has closed stdout.
        """
        try:
            await anyio.to_thread.run_sync(_write_all, self._sink, line + b"\n", limiter=self._thread)
        except OSError:
            raise anyio.BrokenResourceError from None

    async def aclose(self) -> None: ...

    async def __aenter__(self) -> _Output:
        return self

    async def __aexit__(self, *exception: object) -> None: ...


def _write_all(sink: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(sink, rest) :]
