"""Requests below the level of an HTTP client, and the HTTP errors of the endpoint."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

import httpx2

from harness import DEADLINE_SECONDS, Running


def exchange(server: Running, head: str, body: bytes = b"") -> bytes:
    """Send these bytes and return the first ones of the response."""
    parts = urlsplit(server.base)
    address = (str(parts.hostname), int(parts.port or 0))
    with socket.create_connection(address, timeout=DEADLINE_SECONDS) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        return connection.recv(65536)


def post_head(path: str, length: int | None, **headers: str) -> bytes:
    """Return the head of a POST of JSON with this Content-Length, or in chunks where it is `None`."""
    fields = {"host": "localhost", "content-type": "application/json"} | headers
    fields |= {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def error_of(response: httpx2.Response) -> str:
    """Return the text of an HTTP error, which is a JSON-RPC error without id."""
    message = response.json()
    assert message["jsonrpc"] == "2.0"
    assert message["id"] is None
    text: str = message["error"]["message"]
    return text


class Raw:
    """One connection, of which every byte is the test's."""

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        self.socket = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=DEADLINE_SECONDS)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send these bytes, whether or not the other side still reads."""
        with contextlib.suppress(OSError):
            for part in parts:
                self.socket.sendall(part)

    def rest(self) -> bytes:
        """Return everything until the other side closes the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := self.socket.recv(65536):
                received += part
        return received

    def response(self) -> tuple[int, bytes]:
        """Return the status and body of the next response, which has a Content-Length."""
        received = b""
        while b"\r\n\r\n" not in received:
            part = self.socket.recv(1)
            assert part, received
            received += part
        head = received.lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = b""
        while len(body) < length:
            part = self.socket.recv(length - len(body))
            assert part, body
            body += part
        return int(received[9:12]), body
