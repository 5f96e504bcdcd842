"""Limits on what arrives before an application sees the request, and requests as RFC 9112 has them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.server.mcpserver import Context
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness import (
    HAS_METRICS,
    HEADERS,
    LEGACY,
    MODERN,
    Running,
    Serve,
    config,
    message,
    modern,
    running,
    wait_for,
)
from raw_http import Raw, post_head
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import http_protocol
from weather_station.production.serve.http_protocol import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_QUEUED_BYTES,
    MAX_TINY_CHUNKS,
    TINY_CHUNK,
    HttpProtocol,
)

MIB = 1024 * 1024
READ_BYTES = 256 * 1024
"""What the event loop reads at once."""
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
WEBSOCKET = (
    b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"
)


def add_echo(server: ProductionServer) -> None:
    """Serve at `/echo` what the application sees of a request."""

    async def echo(request: Request) -> Response:
        body = await request.body()
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in request.scope["headers"]]
        return JSONResponse({"method": request.method, "headers": headers, "body": body.decode("latin-1")})

    server.custom_route("/echo", ["GET", "POST"])(echo)


@pytest.fixture
def echo(serve: Serve) -> Iterator[Running]:
    with serve(add_echo) as server:
        yield server


@pytest.fixture(scope="module")
def shared_echo() -> Iterator[Running]:
    """For generated requests, which a server for each would make slow."""
    with running(config(), add_echo) as server:
        yield server


def rejections(server: Running, reason: str) -> float | None:
    return server.metrics().value("mcp_http_rejections_total", reason=reason)


def expected(count: int) -> float | None:
    return count if HAS_METRICS else None


# --- Size -----------------------------------------------------------------------------------------------------------

HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
OVERSIZED = {
    "many headers": (HEAD, b"a:\r\n", 18 * MIB),
    "one value": (HEAD + b"a: ", b"x" * 1024, 18 * MIB),
    "one name": (HEAD, b"x" * 1024, 18 * MIB),
    "the URL": (b"GET /echo?", b"x" * 1024, 18 * MIB),
    "many trailers": (CHUNKED + b"0\r\n", b"a:\r\n", 18 * MIB),
    "one trailer": (CHUNKED + b"0\r\na: ", b"x" * 1024, 18 * MIB),
    "the size of a chunk": (CHUNKED + b"1;", b"x" * 1024, 18 * MIB),
    "empty lines": (b"", b"\r\n", 18 * MIB),
}


@pytest.mark.parametrize("name", OVERSIZED)
def test_an_unterminated_head_is_rejected_early(name: str, echo: Running) -> None:
    start, piece, size = OVERSIZED[name]
    with Raw(echo.base) as connection:
        connection.send(start)
        sent = 0
        block = piece * (65536 // len(piece))
        while sent < size:
            try:
                sent += connection.socket.send(block)
            except OSError:
                break
        assert connection.rest()[9:12] in (b"431", b"")  # nothing: this client went on sending and lost the answer
    assert sent < size
    wait_for(lambda: rejections(echo, "head") == expected(1))
    assert echo.get("/livez").status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        HEAD + b"a: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        HEAD + b"a: b\r\n" * MAX_HEADERS + b"\r\n",
        b"GET /echo?" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        CHUNKED + b"0\r\n" + b"a: b\r\n" * (MAX_HEADERS + 2),
        CHUNKED + b"0\r\na: " + b"x" * 8 * MAX_HEAD_BYTES,
        HEAD + H2C + b"a: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    ],
)
def test_a_head_above_the_limit_gets_431_as_a_json_rpc_error(head: bytes, echo: Running) -> None:
    with Raw(echo.base) as connection:
        connection.send(head)
        status, body = connection.response()
        assert (status, json.loads(body)["id"]) == (431, None)
        assert str(MAX_HEAD_BYTES) in json.loads(body)["error"]["message"]
        assert connection.rest() == b""
    assert rejections(echo, "head") == expected(1)


def test_a_head_at_the_limit_is_served_also_with_a_large_body(echo: Running) -> None:
    body = b"x" * 200_000
    start = HEAD + b"Content-Length: 200000\r\n" + b"a: b\r\n" * (MAX_HEADERS - 3) + b"z: "
    with Raw(echo.base) as connection:
        connection.send(start + b"x" * (MAX_HEAD_BYTES - len(start) - 100) + b"\r\n\r\n" + body)
        status, answer = connection.response()
    assert (status, len(json.loads(answer)["body"])) == (200, 200_000)


@pytest.mark.needs("observe.metrics")
def test_another_listener_has_the_same_limits() -> None:
    with running(config(metrics_port=0)) as server:
        base = server.registry.http.addresses["metrics"].removesuffix("/metrics")
        with Raw(base) as connection:
            connection.send(HEAD + b"a:\r\n" * (MAX_HEADERS + 1))
            assert connection.response()[0] == 431
        text = server.client.get(f"{base}/metrics").text
        assert 'mcp_http_rejections_total{reason="head"} 1.0' in text
        assert 'mcp_http_connections{listener="metrics"}' in text


@pytest.mark.parametrize(("size", "status"), [(1, 400), (TINY_CHUNK - 1, 400), (TINY_CHUNK, 200), (1000, 200)])
def test_a_body_in_many_tiny_chunks_is_rejected(size: int, status: int, echo: Running) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    for count in (MAX_TINY_CHUNKS, MAX_TINY_CHUNKS + 1) if size < 100 else (2000,):
        with Raw(echo.base) as connection:
            connection.send(head + b"%x\r\n%s\r\n" % (size, b"x" * size) * count + b"0\r\n\r\n")
            answer, body = connection.response()
            assert answer == (status if count > MAX_TINY_CHUNKS else 200)
            assert (b"chunks" in body) is (answer == 400)


def test_the_pieces_in_which_a_body_arrives_are_no_chunks(echo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_TINY_CHUNKS", 3)
    with Raw(echo.base) as connection:
        connection.send(HEAD + b"Content-Length: 10\r\n\r\n")
        for _ in range(10):
            connection.send(b"x")
            echo.get("/livez")
        assert connection.response()[0] == 200


def test_more_requests_at_once_than_the_limit_close_the_connection(echo: Running) -> None:
    with Raw(echo.base) as connection:
        connection.send(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n" * (MAX_PIPELINED + 2))
        assert connection.rest() == b""
    assert rejections(echo, "malformed") == expected(1)
    with Raw(echo.base) as connection:
        connection.send(b"GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n" * MAX_PIPELINED)
        assert [connection.response()[0] for _ in range(MAX_PIPELINED)] == [200] * MAX_PIPELINED


# --- Requests behind a running one ----------------------------------------------------------------------------------


class Held:
    """Tools and a route that run until they are cancelled, or the test ends those of the route."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled = self.polls = 0
        self.end = threading.Event()

    def __call__(self, server: ProductionServer) -> None:
        server.tool()(self.silent)
        server.tool()(self.progress)
        server.custom_route("/held", ["GET", "POST"])(self.route)

    def wait(self, *, begun: int, cancelled: int = 0) -> None:
        wait_for(lambda: len(self.begun) >= begun and self.cancelled >= cancelled)

    async def silent(self) -> str:
        with self._counted("silent"):
            await asyncio.Event().wait()
        return ""

    async def progress(self, ctx: Context[Any, Any]) -> str:
        with self._counted("progress"):
            for step in itertools.count():
                await ctx.report_progress(step)
                await asyncio.sleep(0.001)
        return ""

    @contextlib.contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        self.begun.append(name)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def route(self, request: Request) -> Response:
        """Ask all the time whether the client has left, except for `?without`, and return the size of the body."""
        size = len(await request.body())
        query = request.url.query
        self.begun.append(query)
        while not self.end.is_set() and (query == "without" or not await request.is_disconnected()):
            self.polls += 1
            await asyncio.sleep(0.001)
        return JSONResponse({"query": query, "size": size})


@pytest.fixture
def held(serve: Serve) -> Iterator[tuple[Running, Held]]:
    tools = Held()
    with serve(tools) as server:
        try:
            yield server, tools
        finally:
            tools.end.set()


def close(connection: Raw) -> None:
    connection.socket.close()


def close_sending(connection: Raw) -> None:
    connection.socket.shutdown(socket.SHUT_WR)
    assert b"result" not in connection.rest()


def reset(connection: Raw) -> None:
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.socket.close()


def call_of(tool: str, version: str) -> bytes:
    content, headers = message("tools/call", {"name": tool, "arguments": {}}), HEADERS
    if version == MODERN:
        content, headers = modern("tools/call", {"name": tool, "arguments": {}})
    content["params"].setdefault("_meta", {})["progressToken"] = "token"
    body = json.dumps(content).encode()
    return post_head("/mcp", len(body), **headers) + body


def protocol_of(server: Running) -> HttpProtocol:
    """Return the protocol of the only connection."""
    (protocol,) = server.http.server_state.connections
    assert isinstance(protocol, HttpProtocol)
    return protocol


def wait_for_queued(server: Running, held: Held, count: int) -> None:
    """Wait until one request runs and `count` are behind it."""
    wait_for(lambda: held.begun and len(protocol_of(server).pipeline) == count)


def queued_bytes(protocol: HttpProtocol) -> int:
    heads = [cycle.scope["headers"] for cycle, _ in list(protocol.pipeline)]
    bodies = [len(cycle.body) for cycle, _ in list(protocol.pipeline)]
    return sum(bodies) + sum(len(name) + len(value) for head in heads for name, value in head)


@pytest.mark.parametrize(
    "leave", [close, *(pytest.param(leave, marks=pytest.mark.release) for leave in (close_sending, reset))]
)
@pytest.mark.parametrize("version", [LEGACY, MODERN])
@pytest.mark.parametrize(
    "mode",
    [*(pytest.param(mode, marks=pytest.mark.needs("inbound.response_mode")) for mode in ("auto", "json")), "sse"],
)
def test_a_client_that_leaves_cancels_its_call_whatever_is_queued(
    mode: str, version: str, leave: Callable[[Raw], None], serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = Held()
    with serve(tools, response_mode=mode) as server:
        with contextlib.ExitStack() as stack:
            for tool, count in itertools.product(("silent", "progress"), (1, 2, 1 + MAX_PIPELINED)):
                connection = stack.enter_context(Raw(server.base))
                connection.send(call_of(tool, version) * count)
                stack.callback(leave, connection)
            tools.wait(begun=6)
        tools.wait(begun=6, cancelled=6)
        wait_for(lambda: not server.http.server_state.tasks)
        assert len(tools.begun) == tools.cancelled == 6
        assert server.get("/livez").status_code == 200
    log = capfd.readouterr().err
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_a_client_may_leave_while_the_head_or_body_of_a_queued_request_is_incomplete(
    serve: Serve,
) -> None:
    tools = Held()
    call = call_of("silent", LEGACY)
    large = post_head("/held", MAX_QUEUED_BYTES - 1000) + b"x" * (MAX_QUEUED_BYTES - 2000)
    with serve(tools, response_mode="sse") as server:
        for number, rest in enumerate((call[:30], call[:-1], call + call[:-1], large), 1):
            with Raw(server.base) as connection:
                connection.send(call + rest)
                tools.wait(begun=number)
            tools.wait(begun=number, cancelled=number)
            wait_for(lambda: not server.http.server_state.tasks)
    assert tools.begun == ["silent"] * 4


def test_a_request_that_goes_on_without_its_client_ends_quietly(
    held: tuple[Running, Held], capfd: pytest.CaptureFixture[str]
) -> None:
    server, tools = held
    with Raw(server.base) as connection:
        connection.send(b"GET /held?without HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        tools.wait(begun=1)
    wait_for(lambda: not server.http.server_state.connections)
    tools.end.set()
    wait_for(lambda: not server.http.server_state.tasks)
    assert tools.begun == ["without"]
    log = capfd.readouterr().err
    assert "Traceback" not in log
    assert "ERROR" not in log


def test_responses_come_in_the_order_of_the_requests_however_these_arrive(serve: Serve) -> None:
    tools = Held()
    with serve(tools, keep_alive_seconds=1) as server, Raw(server.base) as connection:
        for number in range(1 + MAX_PIPELINED):
            connection.send(b"GET /held?%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number)
            wait_for_queued(server, tools, number)
        assert tools.begun == ["0"]
        tools.end.set()
        for number in range(1 + MAX_PIPELINED):
            status, body = connection.response()
            assert (status, json.loads(body)["query"]) == (200, str(number))
        assert connection.rest() == b""  # it is closed as one without a request


def test_no_request_begins_behind_one_that_closes_the_connection(held: tuple[Running, Held]) -> None:
    server, tools = held
    with Raw(server.base) as connection:
        connection.send(b"GET /held HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" * 3)
        wait_for(lambda: tools.begun)
        tools.end.set()
        assert connection.response()[0] == 200
        assert connection.rest() == b""
    assert len(tools.begun) == 1


def test_the_limit_of_requests_at_once_holds_also_if_they_arrive_one_by_one(held: tuple[Running, Held]) -> None:
    server, tools = held
    with Raw(server.base) as connection:
        for number in range(1 + MAX_PIPELINED):
            connection.send(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for_queued(server, tools, number)
        connection.send(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.rest() == b""
    assert rejections(server, "malformed") == expected(1)
    assert len(tools.begun) == 1


QUEUED = {
    "one body": [post_head("/held?1", 32 * MIB) + b"x" * 32 * MIB],
    "bodies": [post_head(f"/held?{number}", 30_000) + b"x" * 30_000 for number in range(1, 1 + MAX_PIPELINED)],
    "heads": [post_head(f"/held?{number}", 0, a="x" * 60_000) for number in range(1, 1 + MAX_PIPELINED)],
}


@pytest.mark.parametrize("name", QUEUED)
def test_what_is_queued_is_bounded_and_answered_in_the_end(name: str, serve: Serve) -> None:
    """Also behind an application that asks whether its client has left, at which uvicorn reads on."""
    tools = Held()
    with serve(tools, max_request_bytes=64 * MIB) as server, Raw(server.base) as connection:
        connection.send(b"GET /held?0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: tools.polls)
        sender = threading.Thread(target=connection.send, args=QUEUED[name], daemon=True)
        sender.start()
        protocol = protocol_of(server)
        wait_for(lambda: protocol.flow.read_paused)
        polls = tools.polls
        wait_for(lambda: tools.polls > polls + 100)
        assert MAX_QUEUED_BYTES < queued_bytes(protocol) <= MAX_QUEUED_BYTES + READ_BYTES
        tools.end.set()
        for number in range(1 + len(QUEUED[name])):
            status, body = connection.response()
            size = {"one body": 32 * MIB, "bodies": 30_000, "heads": 0}[name] if number else 0
            assert (status, json.loads(body)) == (200, {"query": str(number), "size": size})
        assert protocol.flow.queued_bytes == 0
        sender.join()


# --- Time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        b"G",
        b"\r\n",
        HEAD,
        HEAD + b"a: b",
        CHUNKED + b"0\r\n",
        CHUNKED + b"0\r\na: b\r\n",
        CHUNKED + b"1\r\n",
    ],
)
def test_a_stalled_request_gets_408(start: bytes, echo: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.1)
    with Raw(echo.base) as connection:
        connection.send(start)
        status, body = connection.response()
        assert (status, "seconds" in json.loads(body)["error"]["message"]) == (408, True)
        assert connection.rest() == b""
    assert rejections(echo, "timeout") == expected(1)


@pytest.mark.parametrize("start", [HEAD, CHUNKED + b"0\r\n"])
def test_a_byte_now_and_then_does_not_prolong_the_time(
    start: bytes, echo: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    with Raw(echo.base) as connection:
        connection.socket.settimeout(0.02)
        connection.send(start)
        answer = b""
        for _ in range(3000):
            connection.send(b"a")
            try:
                answer = connection.socket.recv(100)
                break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_the_time_of_a_head_does_not_run_while_a_request_is_handled(
    echo: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
    with Raw(echo.base) as connection:
        for _ in range(2):
            connection.send(HEAD, b"Content-Length: 2\r\n", b"\r\n", b"x")
            connection.socket.settimeout(0.5)
            with pytest.raises(TimeoutError):  # the body may take longer
                connection.socket.recv(1)
            connection.socket.settimeout(10)
            connection.send(b"y")
            assert connection.response()[0] == 200


# --- Trailers and offers --------------------------------------------------------------------------------------------


def test_trailers_are_dropped(echo: Running) -> None:
    trailers = b"Authorization: Bearer x\r\nX-Forwarded-For: 10.0.0.1\r\nHost: other\r\n"
    with Raw(echo.base) as connection:
        for _ in range(2):  # the second request on the same connection has none of them either
            connection.send(CHUNKED + b"0\r\n" + trailers + b"\r\n")
            status, body = connection.response()
            seen = json.loads(body)
            assert (status, seen["body"]) == (200, "x")
            assert seen["headers"] == [["host", "localhost"], ["transfer-encoding", "chunked"]]


@pytest.mark.needs("inbound.auth_token")
def test_a_token_in_a_trailer_does_not_authenticate(serve: Serve) -> None:
    body = json.dumps(message("ping")).encode()
    head = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    head += b"Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-11-25\r\n"
    with serve(auth_tokens="a:0123456789abcdef0123456789abcdef") as server, Raw(server.base) as connection:
        token = b"Authorization: Bearer 0123456789abcdef0123456789abcdef\r\n"
        connection.send(head + b"\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, token))
        assert connection.response()[0] == 401
        assert rejections(server, "unauthenticated") == expected(1)


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET])
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
def test_an_offer_to_upgrade_is_ignored(offer: bytes, framing: str, echo: Running) -> None:
    request = {
        "length": HEAD + offer + b"Content-Length: 5\r\n\r\nhello",
        "chunked": HEAD + offer + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX-A: b\r\n\r\n",
        "none": HEAD + offer + b"\r\n",
    }[framing]
    with Raw(echo.base) as connection:
        for _ in range(3):
            connection.send(request)
            status, body = connection.response()
            seen = json.loads(body)
            assert (status, seen["body"]) == (200, "" if framing == "none" else "hello")
            assert not {"upgrade", "x-a"} & {name for name, _ in seen["headers"]}
    assert rejections(echo, "malformed") == expected(0)


@pytest.mark.parametrize(
    "offer", [{"upgrade": "h2c", "connection": "Upgrade, HTTP2-Settings"}, {"upgrade": "websocket"}]
)
def test_a_message_with_an_upgrade_offer_is_answered(offer: dict[str, str], serve: Serve, capsys: Any) -> None:
    with serve() as server:
        headers = HEADERS | {"connection": "Upgrade"} | offer
        for _ in range(3):
            assert server.client.post(server.url, json=message("ping"), headers=headers).status_code == 200
    assert "upgrade request" not in capsys.readouterr().err


# --- Requests as RFC 9112 has them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"http://other:80/echo?a", b"HTTP://other:80/echo", b"https://other:80/echo"])
def test_an_absolute_url_has_precedence_over_the_host(target: bytes, echo: Running) -> None:
    """RFC 9112, section 3.2.2."""
    with Raw(echo.base) as connection:
        connection.send(b"GET %s HTTP/1.1\r\nHost: localhost\r\na: b\r\n\r\n" % target)
        status, body = connection.response()
    assert (status, json.loads(body)["headers"]) == (200, [["host", "other:80"], ["a", "b"]])


def test_the_guard_judges_the_host_of_an_absolute_url(serve: Serve) -> None:
    with serve() as server:
        for target, host, allowed in (
            (b"http://evil.example/mcp", b"localhost", False),
            (b"http://localhost/mcp", b"evil.example", True),
        ):
            with Raw(server.base) as connection:
                connection.send(b"GET %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host))
                assert (connection.response()[0] != 421) is allowed


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
        b"GET ftp://localhost/echo HTTP/1.1\r\nHost: localhost\r\n",
        b"GET http://user@localhost/echo HTTP/1.1\r\nHost: localhost\r\n",
        b"GET localhost:443 HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 5001 + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_malformed_requests_get_400(head: bytes, echo: Running) -> None:
    with Raw(echo.base) as connection:
        connection.send(head + b"\r\n")
        status, body = connection.response()
    assert (status, json.loads(body)["error"]["message"]) == (400, "The request is not valid HTTP/1.1.")
    assert rejections(echo, "malformed") == expected(1)


def test_malformed_requests_are_counted_and_hardly_logged(serve: Serve, capsys: Any) -> None:
    with serve() as server:
        for _ in range(100):
            with Raw(server.base) as connection:
                connection.send(b"nonsense\r\n\r\n")
                assert connection.response()[0] == 400
        assert rejections(server, "malformed") == expected(100)
    assert capsys.readouterr().err.count("not valid HTTP") <= 1


fields = st.tuples(st.sampled_from([b"x-a", b"X-B", b"accept"]), st.binary(max_size=20)).map(
    lambda field: (field[0], bytes(byte for byte in field[1] if byte > 32 and byte != 127))
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes, list[list[str]]]:
    """A valid request, its body, and the headers that an application may see."""
    body = draw(st.binary(max_size=40))
    seen = [(b"Host", b"localhost"), *draw(st.lists(fields, max_size=5))]
    lines = list(seen)
    if draw(st.booleans()):
        lines += [(b"Connection", b"Upgrade"), (b"Upgrade", draw(st.sampled_from([b"h2c", b"websocket"])))]
        seen.append((b"Connection", b"Upgrade"))
    chunks = draw(st.one_of(st.none(), st.lists(st.integers(1, 10), max_size=3)))
    if chunks is None:
        framed = (b"Content-Length", b"%d" % len(body))
        content = body
    else:
        framed = (b"Transfer-Encoding", b"chunked")
        content, rest = b"", body
        for size in [*chunks, len(body)]:
            part, rest = rest[:size], rest[size:]
            content += b"%x%s\r\n%s\r\n" % (len(part), draw(st.sampled_from([b"", b";a=b"])), part) if part else b""
        trailers = draw(st.lists(fields, max_size=3))
        content += b"0\r\n" + b"".join(b"%s: %s\r\n" % trailer for trailer in trailers) + b"\r\n"
    lines.append(framed)
    seen.append(framed)
    head = b"POST /echo HTTP/1.1\r\n" + b"".join(b"%s: %s\r\n" % line for line in lines)
    return head + b"\r\n" + content, body, [[n.lower().decode(), v.decode("latin-1")] for n, v in seen]


@settings(max_examples=150)
@given(messages=st.lists(requests(), min_size=1, max_size=3), cuts=st.lists(st.floats(0, 1), max_size=4))
def test_a_request_is_the_same_wherever_it_is_cut(
    shared_echo: Running, messages: list[tuple[bytes, bytes, list[list[str]]]], cuts: list[float]
) -> None:
    whole = b"".join(request for request, _, _ in messages)
    bounds = sorted({0, len(whole), *(round(cut * len(whole)) for cut in cuts)})
    with Raw(shared_echo.base) as connection:
        connection.send(*(whole[start:end] for start, end in itertools.pairwise(bounds)))
        for _, body, headers in messages:
            status, answer = connection.response()
            seen = json.loads(answer)
            assert (status, seen["body"].encode("latin-1"), seen["headers"]) == (200, body, headers)


@settings(max_examples=150)
@given(
    data=st.lists(
        st.one_of(st.binary(max_size=30), st.sampled_from([HEAD, CHUNKED, H2C, b"\r\n", b"0\r\n"])), max_size=6
    )
)
def test_the_server_survives_any_input(shared_echo: Running, data: list[bytes]) -> None:
    with Raw(shared_echo.base) as connection:
        connection.send(*data)
    assert shared_echo.get("/livez").status_code == 200
