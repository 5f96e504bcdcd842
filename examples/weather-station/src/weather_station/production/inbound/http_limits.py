"""Limits on request bodies, and the HTTP errors sent before a request reaches the pipeline."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import accumulate

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..observe.rejections import Reason, Rejections
from ..registry import Registry

MAX_JSON_DEPTH = 100
"""Greatest nesting of arrays and objects in a message, so that recursion over arguments is bounded."""

INVALID_REQUEST = -32600
PARSE_ERROR = -32700

Headers = Sequence[tuple[bytes, bytes]]


class InputLimits:
    """ASGI middleware for the body of a POST.

    It rejects another media type than JSON (415), a body above MAX_REQUEST_BYTES (413), and JSON deeper than
    `MAX_JSON_DEPTH` (400). The SDK does not limit depth, compares the media type with case, and answers in plain text,
    which MCP clients do not show.
    """

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        self._limit = registry.config.max_request_bytes
        self._rejected = Rejections(registry.meter)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        length = media_type = b""
        headers = scope["headers"]
        for index, (name, value) in enumerate(headers):
            if name == b"content-length":
                length = value.lstrip(b"0")
            elif name == b"content-type" and not media_type:
                media_type = value.partition(b";")[0].strip().lower()
                headers[index] = (name, media_type)
        if media_type != b"application/json":
            await self._reject(send, 415, "media_type", "The Content-Type of a message must be application/json.")
            return
        # Compared as text first: a number of thousands of digits is none that Python converts.
        if length.isdigit() and (len(length) > 18 or int(length) > self._limit):
            await self._too_large(send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                await self._too_large(send)
                return
        # Counting brackets is cheap, and only a body with more than the limit can be nested too deeply.
        if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH and deeper_than(MAX_JSON_DEPTH, body):
            error = f"The message is nested deeper than {MAX_JSON_DEPTH} levels."
            await self._reject(send, 400, "body", error, PARSE_ERROR)
            return
        buffered: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_buffered() -> Message:
            return buffered.pop() if buffered else await receive()

        await self._app(scope, receive_buffered, send)

    async def _too_large(self, send: Send) -> None:
        error = f"The request body is larger than {self._limit} bytes (MAX_REQUEST_BYTES)."
        await self._reject(send, 413, "body", error)

    async def _reject(self, send: Send, status: int, reason: Reason, text: str, code: int = INVALID_REQUEST) -> None:
        self._rejected(reason, text, http_status=status)
        await http_error(send, status, text, code=code)


# Possessive quantifiers do not backtrack, so matching takes linear time for any body, well-formed or not.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_DEPTH_CHANGES = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and, as a signed byte, -1
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def deeper_than(limit: int, body: bytes | bytearray) -> bool:
    """Return whether the arrays and objects of the JSON text `body` are nested deeper than `limit`."""
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    changes = memoryview(brackets.translate(_DEPTH_CHANGES)).cast("b")
    return any(depth > limit for depth in accumulate(changes))


def error_body(message: str, code: int = INVALID_REQUEST) -> bytes:
    """Return the body of an HTTP error: a JSON-RPC error without id, which MCP clients show to their user."""
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}).encode()


async def http_error(
    send: Send, status: int, message: str, *headers: tuple[bytes, bytes], code: int = INVALID_REQUEST
) -> None:
    """Send an HTTP error with `error_body`."""
    body = error_body(message, code)
    fixed = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header `name` (in lower case) of a request."""
    headers: Headers = scope["headers"]
    return next((value for key, value in headers if key == name), None)
