"""The response to a POST over HTTP: JSON, or an event stream where something is to be sent before the call ends.

With RESPONSE_MODE=auto a response is JSON, unless the call sends a notification, such as its progress, or takes longer
than SSE_AFTER_SECONDS: from then on it is an event stream, whose comments keep the connection alive. A client that
accepts only JSON gets JSON, with a blank where a stream has a comment. With `auto` and `json`, a client that leaves
cancels its call.

The SDK writes to a `DeferredResponse`, which is in the scope of the request (`RESPONSE`): notifications go there, too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import EnvironmentSettings, Seconds
from ..json_values import encode
from ..registry import Registry
from ..request import SharedTimer
from .http_limits import HEADERS, IS_LISTEN, TASK, header_of, http_error, set_header

RESPONSE: Final = "mcp.response"
"""Key of a request's scope: its `DeferredResponse`."""

WATCH_AFTER_SECONDS = 0.25
"""How long a call runs before its client is watched, so that a quick call costs no task."""

PING = b": ping\r\n\r\n"
"""A comment, which clients ignore."""

BLANK = b" "
"""Allowed before a JSON value (RFC 8259, section 2)."""

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx and others pass on each event at once
]

JSON_HEADERS = [(b"content-type", b"application/json")]

STREAM_TYPES = frozenset((b"*/*", b"text/*", b"text/event-stream"))

SESSION = b"mcp-session-id"

_ANSWER = re.compile(
    rb'event: message\r\ndata: (?=\{"jsonrpc":"2\.0","id":(?:"(?:[^"\\]|\\.)*+"|[^,"]*+),"(?:result|error)":)'
)
"""The beginning of an event of the SDK with the answer to a request: no notification, and no request to the client."""


class ResponseSettings(EnvironmentSettings):
    """Settings of `auto`."""

    sse_after_seconds: Seconds = 10.0
    """Time without a byte after which a response begins, and gets a comment or a blank."""


def install(registry: Registry) -> None:
    """Choose the form of responses, and let a client that leaves cancel its call.

    Raises:
        ConfigError: SSE_AFTER_SECONDS is not valid.
    """
    settings = ResponseSettings.load()
    if registry.config.response_mode != "sse":
        registry.http.respond = lambda app: Responses(registry, app, settings.sse_after_seconds)


class Responses:
    """ASGI middleware that gives the application a `DeferredResponse` to write to."""

    def __init__(self, registry: Registry, app: ASGIApp, silence: float) -> None:
        self._app = app
        self._silence = silence
        self._timer = SharedTimer(min(silence, WATCH_AFTER_SECONDS), DeferredResponse.attend)
        self._streams = registry.config.response_mode == "auto"
        self._has_sessions = registry.config.session_mode == "stateful"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or scope[IS_LISTEN]:
            await self._app(scope, receive, send)
            return
        accept = scope[HEADERS].get(b"accept", b"")
        may_stream = self._streams and accepts_stream(accept)
        # A header of the response to initialize has the session's id, so that it cannot begin before the SDK's does.
        opens_session = self._has_sessions and not _is_modern(scope) and header_of(scope, SESSION) is None
        silence = self._silence if self._streams and not opens_session else None
        goes_on = self._has_sessions and not _is_modern(scope)  # as the client may come back
        watched = None if goes_on else receive
        response = DeferredResponse(scope[TASK], send, self._timer, silence, may_stream, watched)
        scope[RESPONSE] = response
        if self._has_sessions and self._streams and not may_stream and accept.strip():
            set_header(scope, b"accept", accept + b", text/event-stream")  # the SDK requires it
        body = [await receive()]  # the whole body: `InputLimits` has buffered it

        async def receive_body() -> Message:
            return body.pop() if body else await receive()

        try:
            await self._app(scope, receive_body, response)
        except asyncio.CancelledError:
            if not response.left or response.task.cancelling() > 1:
                raise
        finally:
            response.close()
            del scope[RESPONSE]  # breaks a reference cycle, which would have to wait for the garbage collector


@lru_cache(maxsize=256)
def accepts_stream(accept: bytes) -> bool:
    """Return whether an Accept header accepts an event stream."""
    types = (media_type.partition(b";")[0].strip().lower() for media_type in accept.split(b","))
    return not STREAM_TYPES.isdisjoint(types)


def _is_modern(scope: Scope) -> bool:
    version = header_of(scope, b"mcp-protocol-version")
    return version is not None and version.decode("latin-1") not in HANDSHAKE_PROTOCOL_VERSIONS


class DeferredResponse:
    """The response to one request. An instance is the `send` of the application.

    What the application sends as one body is the answer. Where the SDK sends an event stream, its events are passed on
    without its comments; if the answer is the only event, it is sent as JSON.

    Args:
        task: The task that handles the request.
        send: Sends to the client.
        timer: Calls `attend` where the call takes long.
        silence: Seconds without a byte after which the response begins and gets a comment or a blank; `None` for one
            that begins with its answer.
        may_stream: Whether the response may be an event stream; one that must be JSON leaves out all other events.
        receive: Receives from the client, whose call is cancelled when it leaves before it has the answer; `None` for
            a call that goes on.
    """

    complete = False
    """Whether the answer has been sent."""
    left = False
    """Whether the call was cancelled because the client has left."""
    _begun = False
    _reads_stream = False
    _writing: asyncio.Lock | None = None
    """Held while something that precedes the answer is sent."""

    def __init__(
        self,
        task: asyncio.Task[Any],
        send: Send,
        timer: SharedTimer[DeferredResponse],
        silence: float | None,
        may_stream: bool,
        receive: Receive | None = None,
    ) -> None:
        self.task = task
        self._send = send
        self.may_stream = may_stream
        self._silence = silence
        self._receive = receive
        self._start: Message = {}
        self._parts: list[bytes] = []
        self._attending: list[asyncio.Task[None]] = []
        self._timer = timer
        timer.add(self)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            media_type = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
            self._reads_stream = media_type.startswith(b"text/event-stream")
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        if self._reads_stream:
            if answer := _ANSWER.match(data):
                await self._answer_json(data[answer.end() :].rstrip())
            elif data and not data.startswith(b":"):
                await self.event(data)
            if not more and not self.complete:  # the session has ended
                await self._end_without_answer()
            return
        self._parts.append(data)
        if not more:
            await self.answer(self._start["status"], self._start["headers"], *self._parts)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: object = None) -> None:
        """Send a notification, as the SDK's `DispatchContext`."""
        message = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": dict(params)})
        await self.event(b"event: message\r\ndata: %b\r\n\r\n" % encode(message))

    async def event(self, event: bytes) -> None:
        """Send an event that precedes the answer, as an event stream has it; the response becomes a stream."""
        if self.may_stream:
            await self._begin_with(event, STREAM_HEADERS)

    async def _begin_with(self, data: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Send data that precedes the answer, and before the first of it the status and `headers`."""
        self._writing = self._writing or asyncio.Lock()
        async with self._writing:
            if self.complete:
                return
            if not self._begun:
                self._begun = True
                start = {"type": "http.response.start", "status": 200, "headers": [*headers, *self._session()]}
                await self._send(start)
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], *parts: bytes) -> None:
        """Send the answer: with `status` and `headers`, or as the last event where a stream has begun."""
        if self._writing is not None:
            async with self._writing:  # what comes after this one finds the response complete
                pass
        if self.complete:
            return
        self.complete = True
        if not self._begun:
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
        elif self.may_stream:
            parts = (b"event: message\r\ndata: ", *parts, b"\r\n\r\n")
        for part in parts[:-1]:  # not joined, which takes a hundred microseconds for a long list
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send({"type": "http.response.body", "body": parts[-1]})

    async def _answer_json(self, body: bytes) -> None:
        headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body)), *self._session()]
        await self.answer(200, headers, body)

    def _session(self) -> list[tuple[bytes, bytes]]:
        return [header for header in self._start.get("headers", ()) if header[0].lower() == SESSION]

    async def _end_without_answer(self) -> None:
        self.complete = True
        if self._begun:
            await self._send({"type": "http.response.body", "body": b""})
        else:
            await http_error(self._send, 500, "The session ended before the request was answered.")

    def close(self) -> None:
        """Stop sending comments and blanks, and do not cancel the call any more."""
        self._timer.remove(self)
        for task in self._attending:
            task.cancel()
        if self.left:
            self.task.uncancel()

    def attend(self) -> None:
        """Begin to send comments and blanks, and to watch the client."""
        if self._silence is not None:
            self._attending.append(asyncio.create_task(self._ping(self._silence)))
        if self._receive is not None:
            self._attending.append(asyncio.create_task(self._watch(self._receive)))

    async def _ping(self, silence: float) -> None:
        await asyncio.sleep(silence - min(silence, WATCH_AFTER_SECONDS))
        while not self.complete:
            await (self.event(PING) if self.may_stream else self._begin_with(BLANK, JSON_HEADERS))
            await asyncio.sleep(silence)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.complete:
            self.left = self.task.cancel()  # not by a scope of anyio, which costs a twentieth of a call
