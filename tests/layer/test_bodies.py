"""Bodies of requests: how long they may take, their size at the owner's routes, and the size of a subscription."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from harness import DEADLINE_SECONDS, Running, Serve, config, modern, running, wait_for
from raw_http import Raw, error_of, post_head
from weather_station.production.inbound.http_limits import MAX_LISTEN_BYTES, MAX_LISTEN_VALUES
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import http_protocol


def add_upload(server: ProductionServer) -> None:
    @server.custom_route("/upload", methods=["POST"])
    async def upload(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    @server.custom_route("/ignore", methods=["POST"])
    async def ignore(request: Request) -> Response:
        return PlainTextResponse("read nothing")


@pytest.mark.parametrize("path", ["/mcp", "/upload"])
def test_a_body_that_never_ends_gets_408(path: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.2)
    with serve(add_upload, auth="none") as server:
        for length, begun in ((100, b""), (100, b"{"), (None, b"1\r\n{\r\n")):
            with Raw(server.base) as connection:
                connection.send(post_head(path, length), begun)
                status, _ = connection.response()
                assert status == 408
                assert connection.rest() == b""


def test_a_connection_whose_body_nobody_reads_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.2)
    with serve(add_upload, auth="none") as server, Raw(server.base) as connection:
        connection.send(post_head("/ignore", 100), b"{")
        assert connection.response()[0] == 200
        assert connection.rest() == b""


def test_a_body_that_has_arrived_is_not_timed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.05)
    with serve(add_upload, auth="none") as server, Raw(server.base) as connection:
        for _ in range(3):
            connection.send(post_head("/upload", 4), b"12")
            connection.send(b"34")
            assert connection.response() == (200, b"4")
            server.get("/livez")


def test_a_large_body_to_a_route_of_the_owner_gets_413(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    size = 4096
    with serve(add_upload, max_request_bytes=size, auth="none") as server:
        for content in (b"x" * size, iter([b"x" * 1000] * 4)):
            assert server.client.post(f"{server.base}/upload", content=content).status_code == 200
        for content in (b"x" * (size + 1), iter([b"x" * 1000] * 50)):
            response = server.client.post(f"{server.base}/upload", content=content)
            assert response.status_code == 413
            assert "MAX_REQUEST_BYTES" in error_of(response)
        with Raw(server.base) as connection:
            connection.send(post_head("/upload", 10**18 - 1))
            assert connection.response()[0] == 413
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_leaves_a_route_of_the_owner_logs_no_traceback(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    left = threading.Event()

    def register(server: ProductionServer) -> None:
        @server.custom_route("/upload", methods=["POST"])
        async def upload(request: Request) -> Response:
            try:
                return PlainTextResponse(str(len(await request.body())))
            finally:
                left.set()

        @server.custom_route("/crash", methods=["POST"])
        async def crash(request: Request) -> Response:
            raise ValueError("a mistake of the owner's")

    with serve(register, auth="none") as server:
        with Raw(server.base) as connection:
            connection.send(post_head("/upload", 100), b"{")
            server.get("/livez")
        assert left.wait(DEADLINE_SECONDS)
        assert server.post({}).status_code == 400
        assert "Traceback" not in capfd.readouterr().err
        assert server.client.post(f"{server.base}/crash").status_code == 500
        wait_for(lambda: "a mistake of the owner's" in capfd.readouterr().err)


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    with running(config(auth="none")) as server:
        yield server


@settings(max_examples=60)
@given(
    count=st.one_of(st.integers(0, 20), st.integers(0, 3 * MAX_LISTEN_VALUES)),
    length=st.one_of(st.integers(0, 40), st.integers(0, 2 * MAX_LISTEN_BYTES)),
)
def test_a_subscription_is_as_large_as_it_may_be_and_no_larger(shared: Running, count: int, length: int) -> None:
    uris = ["test://" + "a" * length] * min(count, 4_000_000 // (length + 20))
    message, headers = modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
    content = json.dumps(message).encode()
    too_large = len(content) > MAX_LISTEN_BYTES or len(uris) + 50 > MAX_LISTEN_VALUES
    assume(len(content) > MAX_LISTEN_BYTES or not -50 < len(uris) - MAX_LISTEN_VALUES < 0)  # 50: the other values
    headers |= {"content-type": "application/json"}
    with shared.client.stream("POST", shared.url, content=content, headers=headers) as response:
        assert response.status_code == (413 if too_large else 200)


@pytest.mark.parametrize("uris", [["test://" + "a" * MAX_LISTEN_BYTES], [f"test://{n}" for n in range(2000)]])
def test_a_subscription_to_many_or_long_uris_gets_413(uris: list[str], serve: Serve) -> None:
    with serve(auth="none") as server:
        message, headers = modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
        response = server.client.post(server.url, json=message, headers=headers)
        assert response.status_code == 413
        assert "subscription" in error_of(response)
        message, headers = modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris[:0]}})
        with server.client.stream("POST", server.url, json=message, headers=headers) as response:
            assert response.status_code == 200
