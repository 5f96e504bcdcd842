"""What one caller may hold at once: requests, open streams, sessions and bodies that are being read.

The limits of the SDK and of the process are for all callers together, so that one could use them up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..caller import User
from ..config import EnvironmentSettings
from ..observe.rejections import Rejections
from ..registry import Registry
from .http_limits import header_of, http_error, is_listen

MAX_BODIES = 4
"""Bodies of the greatest size that a caller may send at once."""

RETRY_SECONDS = 5
"""Seconds after which a rejected client should try again."""

MIN_SWEEP = 1000
"""Number of callers from which on adding one removes those that hold nothing any more."""


Limit = Annotated[int, Field(ge=1, le=65_536)]


class CallerLimitSettings(EnvironmentSettings):
    """Greatest numbers of what one caller holds at once."""

    max_requests_per_caller: Limit = 1024
    max_streams_per_caller: Limit = 64
    max_sessions_per_caller: Limit = 100


def install(registry: Registry) -> None:
    """Limit what one caller holds at the MCP endpoint and at the owner's routes.

    Raises:
        ConfigError: a limit is not valid.
    """
    settings = CallerLimitSettings.load()
    registry.http.limits = lambda app, is_open: CallerLimits(registry, settings, app, is_open)
    registry.http.route_limits = lambda app: CallerLimits(registry, settings, app, streams=False)


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
        registry: Metrics and the identification of callers.
        settings: The limits.
        app: The application.
        is_open: Returns whether a session has not ended; `None` for an application without sessions.
        streams: Whether a GET is an open stream.
    """

    def __init__(
        self,
        registry: Registry,
        settings: CallerLimitSettings,
        app: ASGIApp,
        is_open: Callable[[str], bool] | None = None,
        *,
        streams: bool = True,
    ) -> None:
        self._registry = registry
        self._app = app
        self._is_open = is_open
        self._streams = streams
        self._max_requests = settings.max_requests_per_caller
        self._max_streams = settings.max_streams_per_caller
        self._max_sessions = settings.max_sessions_per_caller
        self._max_request_bytes = registry.config.max_request_bytes
        self._max_body_bytes = MAX_BODIES * registry.config.max_request_bytes
        self._rejected = Rejections(registry)
        self._usage: dict[str, Usage] = {}
        self._sweep_at = MIN_SWEEP

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = scope.get("user")
        caller = user.caller.id if isinstance(user, User) else self._registry.identify(Request(scope)).id
        usage = self._usage.get(caller) or self._add(caller)
        is_stream = self._streams and (scope["method"] == "GET" or is_listen(scope))
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
            if too_much and body_bytes <= self._max_request_bytes and not rejected:  # else InputLimits rejects it
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
            usage.body_bytes -= body_bytes  # what is left unused is removed by `_add`

    def _problem(self, usage: Usage, is_stream: bool, opens: bool) -> str | None:
        if is_stream and usage.streams >= self._max_streams:
            return _text(self._max_streams, "open streams", "MAX_STREAMS_PER_CALLER")
        if not is_stream and usage.requests >= self._max_requests:
            return _text(self._max_requests, "requests at once", "MAX_REQUESTS_PER_CALLER")
        if opens and len(usage.sessions) + usage.opening >= self._max_sessions:
            self._forget_ended(usage)
            if len(usage.sessions) + usage.opening >= self._max_sessions:
                return _text(self._max_sessions, "sessions", "MAX_SESSIONS_PER_CALLER")
        return None

    async def _reject(self, scope: Scope, send: Send, text: str) -> None:
        self._rejected("limited", text, scope, http_status=429)
        await http_error(send, 429, text, (b"retry-after", str(RETRY_SECONDS).encode()))

    def _add(self, caller: str) -> Usage:
        if len(self._usage) >= self._sweep_at:
            for other, usage in list(self._usage.items()):
                self._forget_ended(usage)
                if not (usage.requests or usage.streams or usage.sessions):
                    del self._usage[other]
            self._sweep_at = max(MIN_SWEEP, 2 * len(self._usage))
        usage = self._usage[caller] = Usage()
        return usage

    def _forget_ended(self, usage: Usage) -> None:
        if self._is_open is not None:
            usage.sessions = {*filter(self._is_open, usage.sessions)}


def _opens_session(scope: Scope) -> bool:
    if scope["method"] != "POST" or header_of(scope, b"mcp-session-id") is not None:
        return False
    version = header_of(scope, b"mcp-protocol-version")
    return version is None or version.decode("latin-1") in HANDSHAKE_PROTOCOL_VERSIONS


def _text(limit: int, what: str, setting: str) -> str:
    return f"This caller has {limit} {what}, as many as it may have ({setting}). Try again later."
