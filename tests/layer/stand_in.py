"""A stand-in of the upstream on a real socket: it responds as told, faults included, and records the requests."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Behavior = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What happens once a request has been received."""

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    """A request as it was received; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def respond(status: int = 200, body: bytes = b'{"ok": true}', **headers: str) -> Behavior:
    """Send a complete response; `retry_after="1"` is the header Retry-After."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(status, len(body), headers) + body)

    return behave


def hold(release: threading.Event) -> Behavior:
    """Respond as soon as `release` is set."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(release.wait, DEADLINE_SECONDS)
        await respond()(reader, writer)

    return behave


def hang() -> Behavior:
    """Never respond."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    return behave


def hang_in_body() -> Behavior:
    """Send half a response and then nothing."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, 100, {}) + b'{"half":')
        await reader.read()

    return behave


def reset(before: bytes = b"") -> Behavior:
    """Send `before`, then reset the connection (RST)."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        await writer.drain()
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


def reset_in_body() -> Behavior:
    """Send half a response, then reset the connection."""
    return reset(_head(200, 100, {}) + b'{"half":')


def drip() -> Behavior:
    """Send a body that never ends, a byte at a time."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, 1_000_000, {}))
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    return behave


def flood(size: int) -> Behavior:
    """Send a body of `size` bytes."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, size, {}))
        for _ in range(0, size, 65536):
            writer.write(bytes(65536))
            await writer.drain()

    return behave


def _head(status: int, length: int, headers: dict[str, str]) -> bytes:
    fields = {"content-type": "application/json", "content-length": str(length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Secret phrase", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class StandIn:
    """The upstream. Each request gets the next of `behaviors`, the last one repeats."""

    url: str
    behaviors: list[Behavior] = field(default_factory=lambda: [respond()])
    documents: dict[str, Any] | None = None
    """JSON by path, in place of `behaviors`; any other path gets 404."""
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    """How many are open."""

    def behave(self, *behaviors: Behavior) -> None:
        """Start over with these behaviors and forget the requests."""
        self.behaviors = list(behaviors)
        self.requests.clear()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                request = await _receive(reader)
                self.requests.append(request)
                await self._behavior(request)(reader, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has disconnected
        finally:
            self.connections -= 1
            writer.close()

    def _behavior(self, request: Request) -> Behavior:
        if self.documents is None:
            return self.behaviors.pop(0) if len(self.behaviors) > 1 else self.behaviors[0]
        path = request.target.partition("?")[0]
        if path not in self.documents:
            return respond(404, b"{}")
        return respond(200, json.dumps(self.documents[path]).encode())


async def _receive(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    return Request(method, target, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@contextmanager
def stand_in(documents: dict[str, Any] | None = None) -> Iterator[StandIn]:
    """Serve in a thread on a port of the system's choice until the block ends."""
    started = threading.Event()
    upstream = StandIn("", documents=documents)
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def main() -> None:
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = loop.create_task(upstream.serve(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=2048)
        upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.set()
        await stopping.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(DEADLINE_SECONDS)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(DEADLINE_SECONDS)
        loop.close()


@contextmanager
def refusing() -> Iterator[str]:
    """Yield the URL of a port that refuses every connection and that nothing else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never sends anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
