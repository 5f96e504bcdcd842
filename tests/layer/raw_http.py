"""Requests below the level of an HTTP client, and the HTTP errors of the endpoint."""

from __future__ import annotations

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


def error_of(response: httpx2.Response) -> str:
    """Return the text of an HTTP error, which is a JSON-RPC error without id."""
    message = response.json()
    assert message["jsonrpc"] == "2.0"
    assert message["id"] is None
    text: str = message["error"]["message"]
    return text
