"""Limits on the size and nesting of request bodies, and the HTTP errors sent before a request reaches the pipeline."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import ProductionConfig

MAX_JSON_DEPTH = 100
"""Greatest nesting of arrays and objects in a message, so that recursion over arguments is bounded."""

LOG_INTERVAL_SECONDS = 10.0
"""Least time between two log lines about rejected requests, so that many requests do not flood the log."""

INVALID_REQUEST = -32600
PARSE_ERROR = -32700

Headers = Sequence[tuple[bytes, bytes]]

log = structlog.stdlib.get_logger(__name__)


class InputLimits:
    """ASGI middleware that rejects a body above MAX_REQUEST_BYTES (413) and JSON deeper than `MAX_JSON_DEPTH` (400).

    The SDK has the same size limit, but answers in plain text, which MCP clients do not show; it does not limit depth.
    """

    def __init__(self, config: ProductionConfig, app: ASGIApp) -> None:
        self._limit = config.max_request_bytes
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        declared = header_of(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._limit:
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
            await http_error(send, 400, error, code=PARSE_ERROR)
            return
        buffered: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def receive_buffered() -> Message:
            return buffered.pop() if buffered else await receive()

        await self._app(scope, receive_buffered, send)

    async def _too_large(self, send: Send) -> None:
        await http_error(send, 413, f"The request body is larger than {self._limit} bytes (MAX_REQUEST_BYTES).")


# Possessive quantifiers do not backtrack, so matching takes linear time for any body, well-formed or not.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_DEPTH_CHANGES = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and, as a signed byte, -1
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))


def deeper_than(limit: int, body: bytes | bytearray) -> bool:
    """Return whether the arrays and objects of the JSON text `body` are nested deeper than `limit`."""
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    changes = memoryview(brackets.translate(_DEPTH_CHANGES)).cast("b")
    return any(depth > limit for depth in accumulate(changes))


async def http_error(
    send: Send, status: int, message: str, *headers: tuple[bytes, bytes], code: int = INVALID_REQUEST
) -> None:
    """Send an HTTP error whose body is a JSON-RPC error without id, which MCP clients show to their user."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    body = json.dumps(error).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


class RejectionLog:
    """Logs rejected requests: at most one line per `LOG_INTERVAL_SECONDS`, with the number of lines left out before."""

    def __init__(self) -> None:
        self._held_back = 0
        self._next_line = 0.0

    def __call__(self, reason: str, **context: Any) -> None:
        now = time.monotonic()
        if now < self._next_line:
            self._held_back += 1
            return
        log.warning("request rejected", reason=reason, held_back=self._held_back, **context)
        self._held_back, self._next_line = 0, now + LOG_INTERVAL_SECONDS


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header `name` (in lower case) of a request."""
    headers: Headers = scope["headers"]
    return next((value for key, value in headers if key == name), None)
