"""One attacker of a server on loopback: `python -m tests.attacker PORT SECONDS TOKEN KIND ...`, with kinds of `KINDS`.

Only the standard library, so that the attacker uses little of the machine that it shares with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

HOST = "127.0.0.1"
MODERN = "2026-07-28"
LEGACY = "2025-11-25"
PIECE = 65_536

Writer = asyncio.StreamWriter


class Attacker:
    """Sends what the rows of the hardening describe, again and again, until it is cancelled."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.token = token
        self.held: list[Writer] = []
        """Connections that stay open."""

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, Writer]]:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    def head(self, length: int, *lines: str, version: str = LEGACY) -> bytes:
        fields = (
            "POST /mcp HTTP/1.1",
            f"host: {HOST}:{self.port}",
            f"authorization: Bearer {self.token}",
            "content-type: application/json",
            "accept: application/json, text/event-stream",
            f"mcp-protocol-version: {version}",
            f"content-length: {length}",
            *lines,
        )
        return ("\r\n".join(fields) + "\r\n\r\n").encode()

    async def post(self, message: dict[str, object], *lines: str, version: str = LEGACY) -> None:
        """Send a message and read the whole response."""
        body = json.dumps(message).encode()
        async with self.connected() as (reader, writer):
            writer.write(self.head(len(body), "connection: close", *lines, version=version) + body)
            await writer.drain()
            while await reader.read(PIECE):
                pass

    async def headers(self) -> None:
        """18 MiB of short header lines, an endless URL, endless trailers."""
        for start, piece in itertools.cycle(
            [
                (b"GET / HTTP/1.1\r\n", b"a:\r\n" * 16_384),
                (b"GET /", b"a" * PIECE),
                (b"GET / HTTP/1.1\r\na: ", b"a" * PIECE),
                (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a:\r\n" * 16_384),
            ]
        ):
            with contextlib.suppress(OSError):
                async with self.connected() as (_, writer):
                    writer.write(start)
                    for _ in range(288):
                        writer.write(piece)
                        await writer.drain()

    async def values(self) -> None:
        """Wrong values for a list of integers, up to a megabyte, and the same as JSON in a string."""
        few, many = ["a"] * 9000, ["a"] * 250_000
        for number in itertools.count():
            value = few if number % 2 else many
            argument: object = json.dumps(value) if number % 4 < 2 else value
            arguments = {"values": argument}
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
            with contextlib.suppress(OSError):
                await self.post(message | {"params": {"name": "total", "arguments": arguments}})

    async def streams(self) -> None:
        """As many `subscriptions/listen` as possible, some with megabytes of URIs."""
        meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
        for number in itertools.count():
            uris = [f"test://{index}/" + "a" * 4000 for index in range(1000 if number % 5 == 0 else 10)]
            params = {"notifications": {"resourceSubscriptions": uris}, "_meta": meta}
            message = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
            body = json.dumps(message).encode()
            lines = ("mcp-method: subscriptions/listen",)
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                self.held.append(writer)
                writer.write(self.head(len(body), *lines, version=MODERN) + body)
                await writer.drain()
                await reader.read(PIECE)
            if len(self.held) > 2000:
                await asyncio.sleep(1)

    async def bodies(self) -> None:
        """Bodies of 4 MiB that never end."""
        size = 4 * 1024 * 1024
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, self.port)
                self.held.append(writer)
                writer.write(self.head(size) + b"[" + b" " * (size - 100))
                await asyncio.wait_for(writer.drain(), 0.2)
            await asyncio.sleep(0.01)

    async def lists(self) -> None:
        """tools/list in a loop."""
        while True:
            with contextlib.suppress(OSError):
                await self.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})

    async def connections(self) -> None:
        """More idle connections than the server admits."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, self.port)
                self.held.append(writer)
            if len(self.held) > 5000:
                await asyncio.sleep(1)


KINDS: dict[str, tuple[str, ...]] = {
    "head": ("headers",) * 4,
    "values": ("values",) * 8,
    "shares": ("streams", "bodies", "lists", "lists"),
    "connections": ("connections",),
}
"""The attacks by name: methods of `Attacker` that run at once."""


async def attack(port: int, seconds: float, token: str, kinds: list[str]) -> None:
    """Attack for so many seconds."""
    attacker = Attacker(port, token)
    methods: list[Callable[[], Awaitable[None]]] = [
        getattr(attacker, method) for kind in kinds for method in KINDS[kind]
    ]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(method() for method in methods))


if __name__ == "__main__":
    asyncio.run(attack(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
