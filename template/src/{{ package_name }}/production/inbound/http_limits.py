"""Limits on request bodies, and the HTTP errors sent before a request reaches the pipeline."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from itertools import accumulate, islice

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..observe.rejections import Reason, Rejections
from ..registry import Registry
from ..request import LISTEN

MAX_JSON_DEPTH = 100
"""Greatest nesting of arrays and objects in a message, so that recursion over arguments is bounded."""

SPACE = 0x20

LISTEN_METHOD = LISTEN.encode()
"""Value of Mcp-Method, required by the SDK, of the only POST whose response stays open until the client disconnects."""

HEADERS = "mcp.headers"
"""Key of the scope of a request to the MCP endpoint: its headers, see `read_headers`."""

IS_LISTEN = "mcp.is_listen"
"""Key of the same scope: whether Mcp-Method is `LISTEN_METHOD`."""

ACCEPT = b"accept"

BODY = "mcp.body"
"""Key of the scope of a POST: its whole body, for those that need it before the application reads it."""

IS_VALID = "mcp.credentials_are_valid"
"""Key of a request's scope: an async function that returns whether its credentials are still valid."""

MAX_LISTEN_BYTES = 65_536
MAX_LISTEN_VALUES = 1000
"""Limits of a `subscriptions/listen` in bytes and JSON values: it stays in memory as long as its stream is open."""

INVALID_ID_TEXT = "The id of a request must be a string or an integer."

TASK = "mcp.task"
"""Key of the scope of a POST: the task that handles the HTTP request, which is not one that the SDK made."""

RECEIVE = "mcp.receive"
"""Key of the same scope: receives what follows the body, which is that the client has left."""

INVALID_REQUEST = -32600
PARSE_ERROR = -32700

MAX_ID_DIGITS = 100
"""Greatest number of digits in a number that is read."""

Headers = Sequence[tuple[bytes, bytes]]

NO_STORE = (b"cache-control", b"no-store")
"""Default of Cache-Control: a response of the endpoint is meant for one caller only."""


class InputLimits:
    """ASGI middleware for the body of a POST.

    It rejects another media type than JSON (415), a body above MAX_REQUEST_BYTES or MAX_JSON_VALUES (413), and JSON
    deeper than `MAX_JSON_DEPTH` or a request with an unusable id (400). The SDK limits neither depth nor values,
    compares the media type case-sensitively, answers in plain text, which MCP clients do not show, and treats a request
    with an unusable id as a notification.
    """

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        self._limit = registry.config.max_request_bytes
        self._max_values = registry.config.max_json_values
        self._rejected = Rejections(registry)
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        limit, max_values, settings = self._limit, self._max_values, ("MAX_REQUEST_BYTES", "MAX_JSON_VALUES")
        if scope[IS_LISTEN]:
            limit, max_values = min(limit, MAX_LISTEN_BYTES), min(max_values, MAX_LISTEN_VALUES)
            settings = ("a subscription", "a subscription")
        headers = scope[HEADERS]
        if is_repeated(scope, ACCEPT):  # one list (RFC 9110, section 5.3), of which the SDK reads one line
            set_header(scope, ACCEPT, b", ".join(value for name, value in scope["headers"] if name == ACCEPT))
        length, media_type = headers.get(b"content-length", b"").lstrip(b"0"), headers.get(b"content-type", b"")
        if media_type != b"application/json":
            media_type = media_type.partition(b";")[0].strip().lower()
            set_header(scope, b"content-type", media_type)
        if media_type != b"application/json":
            error = "The Content-Type of a message must be application/json."
            await self._reject(scope, send, 415, "media_type", error)
            return
        if exceeds(limit, length):
            await self._too_large(scope, send, limit, settings[0])
            return
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                await self._too_large(scope, send, limit, settings[0])
                return
        body = scope[BODY] = parts[0] if len(parts) == 1 else b"".join(parts)
        if more_values_than(max_values, body):
            error = f"The message has more than {max_values} JSON values and member names ({settings[1]})."
            await self._reject(scope, send, 413, "body", error)
            return
        if deeper_than(MAX_JSON_DEPTH, body):
            error = f"The message is nested deeper than {MAX_JSON_DEPTH} levels."
            await self._reject(scope, send, 400, "body", error, PARSE_ERROR)
            return
        scope[TASK] = asyncio.current_task()
        scope[RECEIVE] = receive
        buffered: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_buffered() -> Message:
            return buffered.pop() if buffered else await receive()

        rejected = False

        async def send_response(message: Message) -> None:
            nonlocal rejected
            # The SDK accepts a request with an unusable id as a notification, which has no response.
            if message["type"] == "http.response.start" and message["status"] == 202 and ids_of_requests(body):
                rejected = True
                await self._reject(scope, send, 400, "body", INVALID_ID_TEXT)
            elif not rejected:
                if message["type"] == "http.response.start" and not _has(message["headers"], b"cache-control"):
                    message["headers"] = [*message["headers"], NO_STORE]
                await send(message)

        await self._app(scope, receive_buffered, send_response)

    async def _too_large(self, scope: Scope, send: Send, limit: int, setting: str) -> None:
        error = f"The request body is larger than {limit} bytes ({setting})."
        await self._reject(scope, send, 413, "body", error)

    async def _reject(
        self, scope: Scope, send: Send, status: int, reason: Reason, text: str, code: int = INVALID_REQUEST
    ) -> None:
        self._rejected(reason, text, scope, http_status=status)
        await http_error(send, status, text, code=code)


class BodyLimit:
    """ASGI middleware for routes beside the MCP endpoint: a body above MAX_REQUEST_BYTES gets 413.

    A handler whose client has left ends without an error, as the client does not need an answer.
    """

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        self._app = app
        self._limit = registry.config.max_request_bytes
        self._rejected = Rejections(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if exceeds(self._limit, (header_of(scope, b"content-length") or b"").lstrip(b"0")):
            await self._too_large(scope, send)
            return
        size = 0
        left = responding = False

        async def receive_limited() -> Message:
            nonlocal size, left
            if left:
                return {"type": "http.disconnect"}
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limit:
                left = True
                if not responding:
                    await self._too_large(scope, send)
                return {"type": "http.disconnect"}
            left = message["type"] == "http.disconnect"
            return message

        async def send_unless_left(message: Message) -> None:
            nonlocal responding
            responding = True
            if not left:
                await send(message)

        try:
            await self._app(scope, receive_limited, send_unless_left)
        except Exception:
            if not left:
                raise

    async def _too_large(self, scope: Scope, send: Send) -> None:
        text = f"The request body is larger than {self._limit} bytes (MAX_REQUEST_BYTES)."
        self._rejected("body", text, scope, http_status=413)
        await http_error(send, 413, text)


def exceeds(limit: int, length: bytes) -> bool:
    """Return whether a Content-Length without leading zeros is a number above `limit`."""
    # The length of the text first: Python does not convert a number of thousands of digits.
    return length.isdigit() and (len(length) > 18 or int(length) > limit)


# Possessive quantifiers do not backtrack, so matching takes linear time for any body, well-formed or not.
_STRING = re.compile(rb'"[^"]*+"?')
_VALUE = re.compile(rb'[\s,:\]}]*+("[^"]*+"?|[\[{]|[^\s,:\[\]{}"]++|\Z)')
_DEPTH_CHANGES = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # 1 and, as a signed byte, -1
# To remove these, and see what is left, takes less time than to count two characters.
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_NOT_BEFORE_VALUES = bytes(set(range(256)) - set(b",:[{"))


def more_values_than(limit: int, body: bytes | bytearray) -> bool:
    """Return whether the JSON text `body` has more than `limit` values and names of members.

    They are counted before the text is parsed and validated, since validation collects an error for each value. In a
    text that is not well-formed, some may not be counted.
    """
    # Each value has a byte, and each but the first follows one of these characters.
    if len(body) <= limit or len(body.translate(None, _NOT_BEFORE_VALUES)) < limit:
        return False
    value = next(islice(_VALUE.finditer(_without_escapes(body)), limit, None), None)
    return value is not None and bool(value[1])


def _without_escapes(body: bytes | bytearray) -> bytes | bytearray:
    """Return `body` without escaped backslashes and quotation marks, so that each other one begins or ends a string."""
    return body.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in body else body


def deeper_than(limit: int, body: bytes | bytearray) -> bool:
    """Return whether the arrays and objects of the JSON text `body` are nested deeper than `limit`."""
    brackets = body.translate(None, _NOT_BRACKETS)  # those in strings too
    opening = brackets.count(b"[") + brackets.count(b"{")
    if opening <= limit:
        return False
    brackets = _STRING.sub(b"", _without_escapes(body)).translate(None, _NOT_BRACKETS)
    brackets = brackets[: 2 * opening]  # more are not well-formed
    changes = memoryview(brackets.translate(_DEPTH_CHANGES)).cast("b")
    return any(depth > limit for depth in accumulate(changes))


def ids_of_requests(text: bytes | bytearray) -> list[str | int | None]:
    """Return the ids of the requests in JSON text, a message or a batch of them; `None` for an id of another type.

    It reads what the SDK does not, such as half of a surrogate pair. Nothing is returned for a text that is not JSON.
    """
    try:
        # Python does not convert a number of thousands of digits; such a number is no valid id either.
        decoded = json.loads(text.decode(errors="replace"), parse_int=lambda digits: int(digits[:MAX_ID_DIGITS]))
    except (ValueError, RecursionError):
        return []
    messages = decoded if isinstance(decoded, list) else [decoded]
    ids = [item["id"] for item in messages if isinstance(item, dict) and "method" in item and "id" in item]
    return [request_id if _is_id(request_id) else None for request_id in ids]


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return "\ufffd" not in value  # it replaces bytes that are not UTF-8
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10 ** (MAX_ID_DIGITS - 1)


def error_body(message: str, code: int = INVALID_REQUEST) -> bytes:
    """Return the body of an HTTP error: a JSON-RPC error without id, which MCP clients show to their user."""
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}).encode()


async def http_error(
    send: Send, status: int, message: str, *headers: tuple[bytes, bytes], code: int = INVALID_REQUEST
) -> None:
    """Send an HTTP error with `error_body`."""
    body = error_body(message, code)
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), NO_STORE]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


def _has(headers: Headers, name: bytes) -> bool:
    return name in [key.lower() for key, _ in headers]


def read_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers of a request by their names in lower case; of several of a name, the first one.

    They are kept in the scope, so that the list of headers is read once, and from then on changed by `set_header` only.
    """
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    found: dict[bytes, bytes] = {}
    for header in headers:
        name, value = header
        if value and value[-1] <= SPACE:  # not part of the value (RFC 9110, section 5.5), but httptools keeps it
            value = value.rstrip(b" \t")
            headers[headers.index(header)] = (name, value)
        found[name] = value
    if len(found) != len(headers):
        found = dict(reversed(headers))
    scope[HEADERS] = found
    scope[IS_LISTEN] = found.get(b"mcp-method") == LISTEN_METHOD and is_modern(scope)
    return found


def is_modern(scope: Scope) -> bool:
    """Return whether a request is one of a protocol version without handshake."""
    version = header_of(scope, b"mcp-protocol-version")
    return version is not None and version.decode("latin-1") not in HANDSHAKE_PROTOCOL_VERSIONS


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header `name` (in lower case) of a request."""
    found: bytes | None = (scope.get(HEADERS) or read_headers(scope)).get(name)
    return found


def is_repeated(scope: Scope, name: bytes) -> bool:
    """Return whether a request has more than one header `name` (in lower case)."""
    headers: Headers = scope["headers"]
    return len(headers) != len(scope[HEADERS]) and [key for key, _ in headers].count(name) > 1


def set_header(scope: Scope, name: bytes, value: bytes) -> None:
    """Replace the headers `name` (in lower case) of a request by one."""
    scope["headers"] = [*(header for header in scope["headers"] if header[0] != name), (name, value)]
    scope[HEADERS][name] = value
