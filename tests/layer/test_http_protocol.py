"""Limits on what arrives before an application sees the request, and requests as RFC 9112 has them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from harness import HAS_METRICS, HEADERS, Running, Serve, config, message, running, wait_for
from raw_http import Raw
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import http_protocol
from weather_station.production.serve.http_protocol import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    MAX_TINY_CHUNKS,
    TINY_CHUNK,
)

MIB = 1024 * 1024
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
