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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..config import EnvironmentSettings, Seconds
from ..json_values import encode_message
from ..memo import Memo
from ..registry import Registry
from .http_limits import ACCEPT, IS_LISTEN, RECEIVE, TASK, header_of, http_error, is_modern, set_header

RESPONSE: Final = "mcp.response"
"""Key of a request's scope: its `DeferredResponse`."""

WATCH_AFTER_SECONDS = 0.25
"""How long a call runs at most before its client is watched: not from the start, so that a quick call costs no task."""

COMMENT = b": ping\r\n\r\n"
"""A comment of an event stream, which clients ignore."""

BLANK = b" "
"""Allowed before a JSON value (RFC 8259, section 2)."""

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx and others pass on each event at once
]

JSON_HEADERS = [(b"content-type", b"application/json")]

STREAM_RANGES = (b"text/event-stream", b"text/*", b"*/*")
"""The media ranges that an event stream matches, the one with precedence first."""

_NOT_ACCEPTABLE = re.compile(rb"q\s*=\s*0(\.0{0,3})?")
"""Matches the weight of a media range that is not acceptable (RFC 9110, section 12.4.2)."""

SESSION = b"mcp-session-id"

_ANSWER = re.compile(
    rb'event: message\r\ndata: (?=\{"jsonrpc":"2\.0","id":(?:"(?:[^"\\]|\\.)*+"|[^,"]*+),"(?:result|error)":)'
)
"""The beginning of an event of the SDK with the answer to a request: no notification, and no request to the client."""


class ResponseSettings(EnvironmentSettings):
    """Settings of `auto`."""

    sse_after_seconds: Seconds = 10.0
    """Seconds after which a response begins, and between its comments or blanks, whatever else is sent."""


def install(registry: Registry) -> None:
    """Choose the form of responses, and let a client that leaves cancel its call.

    Raises:
        ConfigError: SSE_AFTER_SECONDS is not valid.
    """
    settings = ResponseSettings.load()
    if registry.config.response_mode != "sse":
        registry.http.respond = lambda app: Responses(registry, app, settings.sse_after_seconds)


@dataclass(frozen=True, slots=True)
class Form:
    """How one response is sent: as JSON or a stream, when it begins, and whether its client is watched."""

    streams: bool
    """Whether it may be an event stream, for a client that accepts one."""
    begins_after: float | None
    """Seconds after which it begins, and between its comments or blanks, whatever else is sent; `None` for one that
    begins with its answer."""
    is_watched: bool
    """Whether the call is cancelled when the client leaves before it has the answer."""


class Responses:
    """ASGI middleware that gives the application a `DeferredResponse` to write to."""

    def __init__(self, registry: Registry, app: ASGIApp, begins_after: float) -> None:
        streams = registry.config.response_mode == "auto"
        self._app = app
        self._form = Form(streams, begins_after if streams else None, is_watched=True)
        self._has_sessions = registry.config.session_mode == "stateful"
        self._interval = min(begins_after, WATCH_AFTER_SECONDS) / 2
        self._without_tasks: set[DeferredResponse] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that has the next `_tick` scheduled; `None` if none has."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or scope[IS_LISTEN]:
            await self._app(scope, receive, send)
            return
        form = self._form_in_session(scope) if self._has_sessions else self._form
        response = scope[RESPONSE] = DeferredResponse(scope, send, form)
        self._without_tasks.add(response)
        if (loop := asyncio.get_running_loop()) is not self._loop:
            self._loop = loop
            loop.call_later(self._interval, self._tick, loop)
        try:
            await self._app(scope, receive, response)
        except asyncio.CancelledError:
            # Not raised if only `_watch` has cancelled: the client has left, so nobody gets an error.
            if not response.client_left or response.task.cancelling() > 1:
                raise
        finally:
            self._without_tasks.discard(response)
            if response.tasks:
                response.close()
            del scope[RESPONSE]  # breaks a reference cycle, which would have to wait for the garbage collector

    def _form_in_session(self, scope: Scope) -> Form:
        """Return the form of a response where the server has sessions, and accept a stream of the SDK."""
        form = self._form
        if not is_modern(scope):
            form = replace(form, is_watched=False)  # the call goes on, as the client may come back
            if header_of(scope, SESSION) is None:
                # The response to initialize cannot begin early: its header with the session's id comes from the SDK.
                form = replace(form, begins_after=None)
        accept = header_of(scope, ACCEPT) or b""
        if form.streams and not _accepting[accept] and accept.strip():
            form = replace(form, streams=False)
            set_header(scope, ACCEPT, accept + b", text/event-stream")  # the SDK requires it
        return form

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the tasks of each response that an earlier tick has seen.

        A timer for each, even a shared one, would take a hundredth of a quick call.
        """
        old = [response for response in self._without_tasks if response.seen_before]
        self._without_tasks.difference_update(old)
        for response in old:
            response.start_tasks(self._interval)
        for response in self._without_tasks:
            response.seen_before = True
        if self._without_tasks:
            loop.call_later(self._interval, self._tick, loop)
        else:
            self._loop = None


def accepts_stream(accept: bytes) -> bool:
    """Return whether an Accept header accepts an event stream (RFC 9110, section 12.5.1)."""
    ranges = {}
    for media_range in accept.lower().split(b","):
        media_type, *parameters = (part.strip() for part in media_range.split(b";"))
        ranges[media_type] = not any(map(_NOT_ACCEPTABLE.fullmatch, parameters))
    return next((ranges[each] for each in STREAM_RANGES if each in ranges), False)


_accepting = Memo(accepts_stream)


@dataclass(slots=True, eq=False)
class DeferredResponse:
    """The response to one request. An instance is the `send` of the application.

    What the application sends as one body is the answer. Where the SDK sends an event stream, its events are passed on
    without its comments; if the answer is the only event, it is sent as JSON.
    """

    scope: Scope
    """The request's."""
    send: Send
    """Sends to the client."""
    form: Form
    complete: bool = False
    """Whether the answer has been sent."""
    client_left: bool = False
    """Whether the call was cancelled because the client has left."""
    seen_before: bool = False
    """Whether an earlier tick of `Responses` has seen it."""
    tasks: Sequence[asyncio.Task[None]] = ()
    """What `start_tasks` has started."""
    _begun: bool = False
    _writing: asyncio.Lock | None = None
    """Held while something that precedes the answer is sent."""
    _headers: Sequence[tuple[bytes, bytes]] = ()
    """What the application has sent; its status, and what is known of its body, are set with them."""
    _status: int = field(init=False)
    _parts: list[bytes] = field(init=False)
    _reads_stream: bool = field(init=False)

    @property
    def task(self) -> asyncio.Task[Any]:
        """The task that handles the request."""
        task: asyncio.Task[Any] = self.scope[TASK]
        return task

    @property
    def may_stream(self) -> bool:
        """Whether the response may be an event stream; one that must be JSON leaves out all events but the answer."""
        return self.form.streams and _accepting[header_of(self.scope, ACCEPT) or b""]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers, self._parts = message["status"], message["headers"], []
            media_type = next((value for name, value in self._headers if name.lower() == b"content-type"), b"")
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
            await self.answer(self._status, self._headers, *self._parts)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: object = None) -> None:
        """Send a notification, as the SDK's `DispatchContext`."""
        if self.may_stream:
            message = {"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": dict(params)})
            await self.event(b"event: message\r\ndata: %b\r\n\r\n" % encode_message(message))

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
                start = {"type": "http.response.start", "status": 200, "headers": [*headers, *self._session()]}
                await self.send(start)  # a call that is cancelled while this waits has not begun
                self._begun = True
            await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], *parts: bytes) -> None:
        """Send the answer: with `status` and `headers`, or as the last event where a stream has begun."""
        if self._writing is not None:
            async with self._writing:  # what comes after this one finds the response complete
                pass
        if self.complete:
            return
        self.complete = True
        if not self._begun:
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
        elif self.may_stream:
            parts = (b"event: message\r\ndata: ", *parts, b"\r\n\r\n")
        for part in parts[:-1]:  # not joined, which takes a hundred microseconds for a long list
            await self.send({"type": "http.response.body", "body": part, "more_body": True})
        await self.send({"type": "http.response.body", "body": parts[-1]})

    async def _answer_json(self, body: bytes) -> None:
        headers = [*JSON_HEADERS, (b"content-length", b"%d" % len(body)), *self._session()]
        await self.answer(200, headers, body)

    def _session(self) -> list[tuple[bytes, bytes]]:
        return [header for header in self._headers if header[0].lower() == SESSION]

    async def _end_without_answer(self) -> None:
        self.complete = True
        if self._begun:
            await self.send({"type": "http.response.body", "body": b""})
        else:
            await http_error(self.send, 500, "The session ended before the request was answered.")

    def close(self) -> None:
        """Stop sending comments and blanks, and do not cancel the call any more."""
        for task in self.tasks:
            task.cancel()
        if self.client_left:
            self.task.uncancel()

    def start_tasks(self, age: float) -> None:
        """Begin to send comments and blanks, and to watch the client, `age` seconds after the call began."""
        started = []
        if (seconds := self.form.begins_after) is not None:
            started.append(self._keep_alive(seconds, seconds - age))
        if self.form.is_watched:
            started.append(self._watch(self.scope[RECEIVE]))
        self.tasks = [asyncio.create_task(each) for each in started]

    async def _keep_alive(self, interval: float, first: float) -> None:
        await asyncio.sleep(first)
        while not self.complete:
            await (self.event(COMMENT) if self.may_stream else self._begin_with(BLANK, JSON_HEADERS))
            await asyncio.sleep(interval)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self.complete:
            self.client_left = self.task.cancel()  # not by a scope of anyio, which costs a twentieth of a call
