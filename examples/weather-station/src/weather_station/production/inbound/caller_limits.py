"""What one caller may hold at once: requests, open streams, sessions and bodies that are being read.

The limits of the SDK and of the process are for all callers together, so that one could use them up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import variable
from ..observe.rejections import Rejections
from ..registry import Registry
from .http_limits import LISTEN_HEADER, header_of, http_error

MAX_BODIES = 4
"""Bodies of the greatest size that a caller may send at once."""

RETRY_SECONDS = 5
"""When a rejected client should try again."""

MIN_SWEEP = 1000
"""Callers after which those without anything open are looked for."""


@dataclass(slots=True)
class Usage:
    """What one caller uses at the moment."""

    requests: int = 0
    streams: int = 0
    opening: int = 0
    """Requests that open a session."""
    body_bytes: int = 0
    sessions: set[str] = field(default_factory=set)
    """Ids of sessions, of which some may have ended."""


class CallerLimits:
    """ASGI middleware that limits what one caller holds (429): by its token, else by its address.

    Args:
        registry: Settings, metrics and the identification of callers.
        app: The application.
        is_open: Returns whether a session has not ended; `None` for an application without sessions.
        streams: Whether a GET is an open stream.
    """

    def __init__(
        self, registry: Registry, app: ASGIApp, is_open: Callable[[str], bool] | None = None, *, streams: bool = True
    ) -> None:
        config = registry.config
        self._registry = registry
        self._app = app
        self._is_open = is_open
        self._streams = streams
        self._max_requests = config.max_requests_per_caller
        self._max_streams = config.max_streams_per_caller
        self._max_sessions = config.max_sessions_per_caller
        self._max_request_bytes = config.max_request_bytes
        self._max_body_bytes = MAX_BODIES * config.max_request_bytes
        self._rejected = Rejections(registry)
        self._usage: dict[str, Usage] = {}
        self._sweep_at = MIN_SWEEP

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = self._registry.identify(Request(scope)).id
        usage = self._usage.get(caller) or self._add(caller)
        is_stream = self._streams and (scope["method"] == "GET" or LISTEN_HEADER in scope["headers"])
        opens = self._is_open is not None and _opens_session(scope)
        if problem := self._problem(usage, is_stream, opens):
            await self._reject(scope, send, problem)
            return
        body_bytes = 0
        rejected = False

        async def receive_counted() -> Message:
            nonlocal body_bytes, rejected
            message = await receive()
            size = len(message.get("body", b""))
            body_bytes += size
            usage.body_bytes += size
            too_much = usage.body_bytes > self._max_body_bytes and message.get("more_body", False)
            if too_much and body_bytes <= self._max_request_bytes and not rejected:  # larger: see InputLimits
                rejected = True
                limit = f"{MAX_BODIES} times MAX_REQUEST_BYTES"
                await self._reject(scope, send, f"The request bodies of this caller together exceed {limit}.")
            return {"type": "http.disconnect"} if rejected else message

        async def send_and_note(message: Message) -> None:
            if opens and message["type"] == "http.response.start":
                usage.sessions.update(
                    value.decode("latin-1") for name, value in message["headers"] if name.lower() == b"mcp-session-id"
                )
            if not rejected:
                await send(message)

        usage.requests += not is_stream
        usage.streams += is_stream
        usage.opening += opens
        try:
            # `InputLimits`, which reads a message to the endpoint, sends nothing after a disconnect.
            plain = scope["method"] == "POST" and self._streams and not opens
            await self._app(scope, receive_counted, send if plain else send_and_note)
        finally:
            usage.requests -= not is_stream
            usage.streams -= is_stream
            usage.opening -= opens
            usage.body_bytes -= body_bytes
            self._remove_unused(caller, usage)

    def _problem(self, usage: Usage, is_stream: bool, opens: bool) -> str | None:
        if is_stream and usage.streams >= self._max_streams:
            return _text(self._max_streams, "open streams", "max_streams_per_caller")
        if not is_stream and usage.requests >= self._max_requests:
            return _text(self._max_requests, "requests at once", "max_requests_per_caller")
        if opens and len(usage.sessions) + usage.opening >= self._max_sessions:
            self._forget_ended(usage)
            if len(usage.sessions) + usage.opening >= self._max_sessions:
                return _text(self._max_sessions, "sessions", "max_sessions_per_caller")
        return None

    async def _reject(self, scope: Scope, send: Send, text: str) -> None:
        self._rejected("limited", text, scope, http_status=429)
        await http_error(send, 429, text, (b"retry-after", str(RETRY_SECONDS).encode()))

    def _add(self, caller: str) -> Usage:
        if len(self._usage) >= self._sweep_at:
            for other, usage in list(self._usage.items()):
                self._forget_ended(usage)
                self._remove_unused(other, usage)
            self._sweep_at = max(MIN_SWEEP, 2 * len(self._usage))
        usage = self._usage[caller] = Usage()
        return usage

    def _forget_ended(self, usage: Usage) -> None:
        if self._is_open is not None:
            usage.sessions = {*filter(self._is_open, usage.sessions)}

    def _remove_unused(self, caller: str, usage: Usage) -> None:
        if not (usage.requests or usage.streams or usage.sessions) and self._usage.get(caller) is usage:
            del self._usage[caller]


def _opens_session(scope: Scope) -> bool:
    if scope["method"] != "POST" or header_of(scope, b"mcp-session-id") is not None:
        return False
    version = header_of(scope, b"mcp-protocol-version")
    return version is None or version.decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS


def _text(limit: int, what: str, setting: str) -> str:
    return f"This caller has {limit} {what}, as many as it may have ({variable(setting)}). Try again later."


class RouteLimits:
    """ASGI middleware for routes beside the MCP endpoint: the same limits, and one on the size of a body (413).

    A handler whose client has left ends without an error, as the client does not need an answer.
    """

    def __init__(self, registry: Registry, app: ASGIApp, without_limits: frozenset[str]) -> None:
        self._limits = CallerLimits(registry, self._limited, streams=False)
        self._app = app
        self._without_limits = without_limits
        self._limit = registry.config.max_request_bytes
        self._rejected = Rejections(registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._without_limits:
            await self._app(scope, receive, send)
        else:
            await self._limits(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = (header_of(scope, b"content-length") or b"").lstrip(b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > self._limit):
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
