"""An upstream that answers as it is told, faults included, on a real socket."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What happens once a request has arrived."""

DEADLINE_SECONDS = 10.0


@dataclass(frozen=True)
class Arrived:
    """A request as it came in; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def answer(status: int = 200, body: bytes = b'{"ok": true}', **headers: str) -> Play:
    """A complete answer; `retry_after="1"` is the header Retry-After."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(status, len(body), headers) + body)

    return play


def hold(release: threading.Event, seconds: float) -> Play:
    """The answer as soon as `release` is set, or `seconds` are over."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(release.wait, seconds)
        await answer()(reader, writer)

    return play


def hang() -> Play:
    """No answer at all."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    return play


def hang_in_body() -> Play:
    """Half an answer, then nothing."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, 100, {}) + b'{"half":')
        await reader.read()

    return play


def reset(before: bytes = b"") -> Play:
    """Sends `before`, then resets the connection (RST, no orderly end)."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        await writer.drain()
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return play


def reset_in_body() -> Play:
    """Half an answer, then a reset."""
    return reset(_head(200, 100, {}) + b'{"half":')


def drip() -> Play:
    """A body that never stops to arrive, a byte at a time."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, 1_000_000, {}))
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    return play


def flood(size: int) -> Play:
    """A body of `size` bytes."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, size, {}))
        for _ in range(0, size, 65536):
            writer.write(bytes(65536))
            await writer.drain()

    return play


def _head(status: int, length: int, headers: dict[str, str]) -> bytes:
    fields = {"content-type": "application/json", "content-length": str(length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Secret phrase", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class Faulty:
    """The upstream. `plays` is what it does with one request after the other, the last for all that follow."""

    url: str
    plays: list[Play] = field(default_factory=lambda: [answer()])
    arrived: list[Arrived] = field(default_factory=list)
    connections: int = 0
    """How many are open."""

    def play(self, *plays: Play) -> None:
        """Starts anew with these plays and forgets what has arrived."""
        self.plays = list(plays)
        self.arrived.clear()

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while request := await _receive(reader):
                self.arrived.append(request)
                play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
                await play(reader, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            self.connections -= 1
            writer.close()


async def _receive(reader: asyncio.StreamReader) -> Arrived | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    return Arrived(method, target, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@contextmanager
def faulty() -> Iterator[Faulty]:
    """Serves in a thread on a port of the system's choice until the block ends."""
    started = threading.Event()
    upstream = Faulty("")
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
    """The URL of a port that is taken but refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
