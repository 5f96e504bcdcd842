"""uvicorn's HTTP/1.1 protocol with limits on what arrives before an application sees the request."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import suppress
from http import HTTPStatus
from typing import Any, NamedTuple

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..inbound.http_limits import error_body
from ..observe.rejections import Reason
from ..request import SharedTimer
from .connections import Connections

MAX_HEAD_BYTES = 65_536
"""Greatest size of a request's URL and headers together, and of its trailers."""

MAX_HEADERS = 100
"""Headers of a request, and trailers. A request behind several proxies has about thirty."""

HEAD_SECONDS = 10.0
"""Time for the URL and headers of a request from their first byte, and for its trailers."""

BODY_SECONDS = 30.0
"""Time for the body of a request from its head."""

RESERVE_SECONDS = 1.0
"""Seconds in which a connection beyond the limits has to deliver the head of its request."""

MAX_TINY_CHUNKS = 10_000
"""Chunks of a body with fewer bytes than `TINY_CHUNK`. Each takes as much time as many bytes do."""

TINY_CHUNK = 16

MAX_PIPELINED = 16
"""Requests that a client may send before it has the response to the first one."""

MAX_QUEUED_BYTES = 65_536
"""Bytes of requests that wait for an earlier one, beyond which nothing is read until all of them have begun.

With an incomplete head and one read of the event loop, 256 KiB, a connection keeps at most 384 KiB of them. It is
little, as no limit on what one caller holds applies before a request begins.
"""

LINGER_SECONDS = 1.0
"""Seconds in which a rejected client may go on sending: closing with unread data would lose the response."""

LINGER_BYTES = 1024 * 1024
"""Number of bytes that it may send in that time."""

PROBES = frozenset((b"/livez", b"/readyz", b"/health", b"/metrics"))
"""Paths that are served on connections beyond the limits too."""

_ABSOLUTE = re.compile(rb"https?://([^/?#]+)/?(.*)", re.IGNORECASE | re.DOTALL)


class Rejection(NamedTuple):
    """An HTTP error that the protocol answers."""

    status: int
    reason: Reason
    text: str
    setting: str | None = None


MALFORMED = Rejection(400, "malformed", "The request is not valid HTTP/1.1.")
TOO_LARGE = Rejection(
    431, "head", f"The URL and headers, or the trailers, exceed {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} lines."
)
TOO_SLOW = Rejection(408, "timeout", f"The URL and headers, or the trailers, took more than {HEAD_SECONDS:g} seconds.")
SLOW_BODY = Rejection(408, "timeout", f"The body of the request took more than {BODY_SECONDS:g} seconds.")
TINY_CHUNKS = Rejection(
    400, "malformed", f"The body has more than {MAX_TINY_CHUNKS} chunks of fewer than {TINY_CHUNK} bytes."
)
TOO_MANY = Rejection(400, "malformed", f"More than {MAX_PIPELINED} requests at once on one connection.")


class RejectedError(Exception):
    """Stops the parser."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.text)
        self.rejection = rejection


class EdgeConfig(uvicorn.Config):
    """uvicorn's configuration without its own lifespan and logging, and the connections of the listener."""

    def __init__(self, application: ASGIApp, connections: Connections, **options: Any) -> None:
        super().__init__(
            application,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=None,
            access_log=False,
            server_header=False,
            workers=1,  # given, so that uvicorn does not read WEB_CONCURRENCY
            headers=[("x-content-type-options", "nosniff")],
            proxy_headers=False,
            **options,
        )
        self.connections = connections
        self.idle = SharedTimer(self.timeout_keep_alive, HttpProtocol.timeout_keep_alive_handler)
        """The connections without a request."""


class QueueFlow(FlowControl):
    """uvicorn's flow control with `MAX_QUEUED_BYTES`.

    Each `receive` of an application resumes reading, and an application may use it all the time to see whether its
    client has left.
    """

    queued_bytes = 0
    """Size of the requests that were queued since the queue was last empty."""

    def resume_reading(self) -> None:
        if self.read_paused and self.queued_bytes <= MAX_QUEUED_BYTES:
            super().resume_reading()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with limits that httptools and uvicorn do not have.

    - The head of a request, and its trailers, have at most `MAX_HEAD_BYTES` and `MAX_HEADERS` (431), and arrive within
      `HEAD_SECONDS` (408). The number of connections is limited, see `Connections`.
    - A body arrives within `BODY_SECONDS` (408), and not in too many tiny chunks (400).
    - Trailers are dropped: uvicorn would append them to the headers, where an application takes them for those that a
      proxy has checked (RFC 9110, section 6.5.1).
    - An offer to upgrade to HTTP/2 or WebSocket is ignored (RFC 9110, section 7.8): httptools would end the request
      before its body.
    - When a client leaves, its running request ends, and those queued behind it do not begin. uvicorn does not notice
      while a request is queued, as it does not read then, and tells only the last request that it has read. Beyond
      `MAX_QUEUED_BYTES` nothing is read here either: that the client has left is noticed when a response cannot be
      written, when all queued requests have begun, or when the time of an incomplete one is over.
    - Every connection has TCP_NODELAY. uvicorn writes the head and the body of a response separately; without the
      option the body waits 40 ms for the client's delayed acknowledgement of the head. asyncio sets it only on sockets
      with an explicit protocol number, which accepted sockets do not have on every platform.
    """

    config: EdgeConfig
    flow: QueueFlow

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._connections = self.config.connections
        self._idle = self.config.idle
        self._excess: Rejection | None = None
        """The answer to everything but probes, where this connection exceeds a limit."""
        self._unfinished = 0
        """Bytes that have arrived of a head, of trailers or of the size of a chunk, counted until it is complete.

        It is 0 where none of them is expected, and at least 1 where one is.
        """
        self._timer: asyncio.TimerHandle | None = None
        self._tiny_chunks = 0
        self._chunk_bytes = 0
        self._reads_body = False
        self._body_timer: asyncio.TimerHandle | None = None
        self._rejected = False
        self._running: RequestResponseCycle | None = None
        """The last request that has begun; those of `pipeline` wait for its response."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        connection = transport.get_extra_info("socket")
        with suppress(OSError, TypeError):  # TypeError: uvloop, which sets the option itself
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        self.flow = QueueFlow(transport)
        setting = self._connections.add(self)
        if setting is None:
            self._idle.add(self)
        else:
            text = f"The server has too many connections ({setting}). Try again later."
            self._excess = Rejection(503, "connections", text, setting)
            self._timer = self.loop.call_later(RESERVE_SECONDS, self._reject, self._excess)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        self._stop_timer()
        self._stop_body_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)  # tells `cycle` only, the last request that was read
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def drop(self) -> None:
        """Close the connection without an answer."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        self._unfinished += len(data)
        if self._rejected:
            if self._unfinished > LINGER_BYTES:
                self.drop()
            return
        self._unset_keepalive_if_required()
        try:
            self._feed(data)
            if self._unfinished > MAX_HEAD_BYTES or len(self.headers or ()) > MAX_HEADERS:
                raise RejectedError(TOO_LARGE)
        except (httptools.HttpParserError, RejectedError) as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
            self._reject(cause.rejection if isinstance(cause, RejectedError) else MALFORMED)
            return
        if self._unfinished and self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._reject, TOO_SLOW)
        if self._reads_body and self._body_timer is None:
            self._body_timer = self.loop.call_later(BODY_SECONDS, self._body_too_slow)

    def _unset_keepalive_if_required(self) -> None:
        self._idle.remove(self)

    def on_response_complete(self) -> None:
        """Begin the next request as uvicorn does, or wait for it, without a timer for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._running, application = self.pipeline.pop()
            self._start_asgi_task(self._running, application)
            if not self.pipeline:
                self.flow.queued_bytes = 0
        else:
            self._idle.add(self)
        self.flow.resume_reading()

    def _feed(self, data: bytes) -> None:
        offered = True
        while offered:
            try:
                self.parser.feed_data(data)
                offered = False
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
            if offered:
                # The parser takes what follows for another protocol. A new one reads the request without the offer.
                head = self._head_without_offer()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self.parser.feed_data(head)

    def _head_without_offer(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s: %s\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(lines))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unfinished = self._unfinished or 1

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise RejectedError(MALFORMED)
            return
        if len(self.headers) > MAX_HEADERS or (
            self._unfinished > MAX_HEAD_BYTES  # of which some may be the body's
            and self._head_bytes() > MAX_HEAD_BYTES
        ):
            raise RejectedError(TOO_LARGE)
        if len(self.pipeline) >= MAX_PIPELINED:
            raise RejectedError(TOO_MANY)
        self._finished()
        if self.url[:1] != b"/":
            self._read_absolute_url()
        if self._excess is not None and self.url.partition(b"?")[0] not in PROBES:
            raise RejectedError(self._excess)
        super().on_headers_complete()
        if self.pipeline:
            self._count_queued(self._head_bytes())
        else:
            self._running = self.cycle
        self._reads_body = True
        self._tiny_chunks = 0
        if self._excess is not None:
            self.cycle.keep_alive = False
        self.headers = []  # where trailers go; those of the request are in its scope

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _count_queued(self, size: int) -> None:
        """Count bytes of a queued request, and read on, where uvicorn does not, unless they are too many."""
        self.flow.queued_bytes += size
        if self.flow.queued_bytes > MAX_QUEUED_BYTES:
            self.flow.pause_reading()
        else:
            self.flow.resume_reading()

    def _read_absolute_url(self) -> None:
        """Replace a URL by its path, and the Host header by the URL's (RFC 9112, section 3.2.2)."""
        match = _ABSOLUTE.fullmatch(self.url)
        if match and b"@" not in match[1]:
            self.url = b"/" + match[2]
            self.headers[:] = [(b"host", match[1]), *(header for header in self.headers if header[0] != b"host")]
        elif self.url != b"*":
            raise RejectedError(MALFORMED)

    def on_chunk_header(self) -> None:
        self._unfinished = self._unfinished or 1
        self._chunk_bytes = 0

    def on_chunk_complete(self) -> None:
        self._finished()
        self._tiny_chunks += 0 < self._chunk_bytes < TINY_CHUNK
        if self._tiny_chunks > MAX_TINY_CHUNKS:
            raise RejectedError(TINY_CHUNKS)

    def on_body(self, body: bytes) -> None:
        self._finished()
        self._chunk_bytes += len(body)
        super().on_body(body)
        if self.pipeline:
            self._count_queued(len(body))

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._finished()
        self._stop_body_timer()
        super().on_message_complete()

    def _finished(self) -> None:
        self._unfinished = 0
        if self._timer is not None:
            self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_body_timer(self) -> None:
        self._reads_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _body_too_slow(self) -> None:
        if self.cycle.response_started:  # the application did not want the body
            self.transport.close()
        else:
            self._reject(SLOW_BODY)

    def _reject(self, rejection: Rejection) -> None:
        """Answer with an HTTP error, unless an earlier response is not complete, and close the connection."""
        self._rejected = True
        self._stop_timer()
        fields = {} if rejection.setting is None else {"setting": rejection.setting}
        # The headers of an incomplete head or, after a complete one, those in the scope of its request.
        headers = self.headers or (self.scope or {}).get("headers", [])
        scope = {"type": "http", "client": self.client, "headers": headers}
        self._connections.rejected(rejection.reason, rejection.text, scope, http_status=rejection.status, **fields)
        cycle = self.cycle
        reads_body = cycle is not None and cycle.more_body and not cycle.response_started and not self.pipeline
        if cycle is not None and not cycle.response_complete and not reads_body:
            self.transport.close()
            return
        if reads_body:
            cycle.disconnected = True
            cycle.message_event.set()
        body = error_body(rejection.text)
        retry = b"retry-after: 5\r\n" if rejection.status == 503 else b""
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
            b"content-length: %d\r\n%sx-content-type-options: nosniff\r\nconnection: close\r\n\r\n%s"
            % (rejection.status, HTTPStatus(rejection.status).phrase.encode(), len(body), retry, body)
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.drop)
