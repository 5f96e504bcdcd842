"""Bounds on what a request to the MCP endpoint may contain, and the HTTP errors of the edge.

An error is a JSON-RPC error without id, which MCP clients show to their user.
"""

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
"""How deep the arrays and objects of a message may nest. Code that walks arguments may recurse that deep."""

LOG_INTERVAL_SECONDS = 10.0
"""Least time between two log lines about rejected requests, so that a flood of requests does not flood the log."""

INVALID_REQUEST = -32600
PARSE_ERROR = -32700

Headers = Sequence[tuple[bytes, bytes]]

log = structlog.stdlib.get_logger(__name__)


class InputLimits:
    """Answers 413 for a body above MAX_REQUEST_BYTES and 400 for JSON deeper than `MAX_JSON_DEPTH`.

    The SDK stops at the same size, but in plain text that its client does not show, and parses the 2026 protocol as
    deep as the interpreter's stack goes.
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
            if message["type"] != "http.request":  # the client has gone
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                await self._too_large(send)
                return
        # Only a body with that many brackets can be that deep: of ordinary calls none is looked into.
        if body.count(b"[") + body.count(b"{") > MAX_JSON_DEPTH and deeper_than(MAX_JSON_DEPTH, body):
            await http_error(send, 400, f"The message nests deeper than {MAX_JSON_DEPTH} levels.", code=PARSE_ERROR)
            return
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)

    async def _too_large(self, send: Send) -> None:
        await http_error(send, 413, f"The request body is larger than {self._limit} bytes (MAX_REQUEST_BYTES).")


# Every quote outside a string opens one, and the match never gives back: linear in the body, whatever is in it.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


def deeper_than(limit: int, body: bytes | bytearray) -> bool:
    """Whether the arrays and objects of the JSON text `body` nest deeper than `limit`. Well-formed or not, it takes
    about as long as parsing does."""
    brackets = _STRING.sub(b"", body).translate(None, _OTHERS)
    steps = memoryview(brackets.translate(_STEPS)).cast("b")
    return any(map(limit.__lt__, accumulate(steps)))


async def http_error(
    send: Send, status: int, message: str, *headers: tuple[bytes, bytes], code: int = INVALID_REQUEST
) -> None:
    """Answers with an HTTP status and a JSON-RPC error without id, as the MCP transport allows for any refusal."""
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    body = json.dumps(error).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


class RejectionLog:
    """Logs refused requests, at most one line in `LOG_INTERVAL_SECONDS`, which counts those it held back."""

    def __init__(self) -> None:
        self._held_back = 0
        self._next = 0.0

    def __call__(self, reason: str, **context: Any) -> None:
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return
        log.warning("request refused", reason=reason, held_back=self._held_back, **context)
        self._held_back, self._next = 0, now + LOG_INTERVAL_SECONDS


def header_of(scope: Scope, wanted: bytes) -> bytes | None:
    headers: Headers = scope["headers"]
    return next((value for name, value in headers if name == wanted), None)
