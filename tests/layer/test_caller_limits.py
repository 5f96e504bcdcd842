"""What one caller may hold: requests, streams, sessions and bodies; and the routes of owners."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from harness import (
    DEADLINE_SECONDS,
    HAS_METRICS,
    HEADERS,
    INITIALIZE,
    NO_TLS,
    Running,
    Serve,
    has,
    modern,
    wait_for,
)
from raw_http import Raw, error_of
from weather_station.production.inbound.caller_limits import MAX_BODIES
from weather_station.production.inbound.http_limits import MAX_LISTEN_BYTES
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import http_protocol

PROXY: dict[str, Any] = {"trusted_proxies": "127.0.0.1", "auth": "none"}
"""The client address is that of X-Forwarded-For."""

LISTEN = {"notifications": {"toolsListChanged": True}}

Hold = Callable[[httpx2.Client, Running, dict[str, str]], contextlib.AbstractContextManager[httpx2.Response]]


def address(number: int) -> dict[str, str]:
    return {"x-forwarded-for": f"192.0.2.{number}"} if has("inbound.identity") else {}


def listen(client: httpx2.Client, server: Running, headers: dict[str, str]) -> Any:
    message, own = modern("subscriptions/listen", LISTEN)
    return client.stream("POST", server.url, json=message, headers=own | headers)


@contextlib.contextmanager
def open_session(client: httpx2.Client, server: Running, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    response = client.post(server.url, json=INITIALIZE, headers=HEADERS | headers)
    yield response
    if response.status_code == 200:
        session = {"mcp-session-id": response.headers["mcp-session-id"]}
        assert client.delete(server.url, headers=HEADERS | headers | session).status_code == 200


@pytest.mark.parametrize(
    ("setting", "hold", "mode"),
    [("max_streams_per_caller", listen, "stateless"), ("max_sessions_per_caller", open_session, "stateful")],
)
def test_one_caller_holds_so_many_and_leaves_the_rest_to_others(
    setting: str, hold: Hold, mode: str, serve: Serve
) -> None:
    with (
        serve(session_mode=mode, **{setting: 3}, **PROXY) as server,
        httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client,
    ):
        for _ in range(2):  # what has ended is free again
            with contextlib.ExitStack() as stack:
                for _ in range(3):
                    wait_for(lambda: stack.enter_context(hold(client, server, address(1))).status_code == 200)
                with hold(client, server, address(1)) as rejected:
                    rejected.read()
                    assert (rejected.status_code, rejected.headers["retry-after"]) == (429, "5")
                    assert setting.upper() in error_of(rejected)
                if has("inbound.identity"):
                    with hold(client, server, address(2)) as other:
                        assert other.status_code == 200
        count = server.metrics().value("mcp_http_rejections_total", reason="limited")
        assert count is not None and count >= 2 if HAS_METRICS else count is None


def test_requests_at_once_are_limited_for_each_caller(serve: Serve) -> None:
    release, running = threading.Event(), threading.Semaphore(0)

    def register(server: ProductionServer) -> None:
        async def wait() -> str:
            running.release()
            await anyio.to_thread.run_sync(release.wait)
            return "done"

        server.tool()(wait)

    with serve(register, max_requests_per_caller=3, **PROXY) as server, ThreadPoolExecutor(3) as pool:

        def call(caller: int) -> httpx2.Response:
            with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:
                return client.post(server.url, json=server.request("wait"), headers=HEADERS | address(caller))

        calls = [pool.submit(call, 1) for _ in range(3)]
        for _ in calls:
            assert running.acquire(timeout=DEADLINE_SECONDS)
        rejected = call(1)
        assert rejected.status_code == 429
        assert "MAX_REQUESTS_PER_CALLER" in error_of(rejected)
        release.set()
        assert [each.result().status_code for each in calls] == [200] * 3
        assert call(1).status_code == 200


def head(path: str, caller: int, length: int | None, **headers: str) -> bytes:
    fields = {"host": "localhost", "content-type": "application/json"} | address(caller) | headers
    fields |= {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def test_bodies_that_are_being_sent_are_limited_together(serve: Serve) -> None:
    size = 4096
    with serve(max_request_bytes=size, **PROXY) as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Raw(server.base)) for _ in range(MAX_BODIES + 2)]
        for connection in connections:
            connection.send(head("/mcp", 1, size), b" " * (size - 1))
        rejected = next(connection for connection in connections[::-1])
        status, body = rejected.response()
        assert status == 429
        assert "MAX_REQUEST_BYTES" in json.loads(body)["error"]["message"]


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
    with serve(add_upload, **PROXY) as server:
        for length, begun in ((100, b""), (100, b"{"), (None, b"1\r\n{\r\n")):
            with Raw(server.base) as connection:
                connection.send(head(path, 1, length), begun)
                status, _ = connection.response()
                assert status == 408
                assert connection.rest() == b""


def test_a_connection_whose_body_nobody_reads_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.2)
    with serve(add_upload, **PROXY) as server, Raw(server.base) as connection:
        connection.send(head("/ignore", 1, 100), b"{")
        assert connection.response()[0] == 200
        assert connection.rest() == b""


def test_a_body_that_has_arrived_is_not_timed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "BODY_SECONDS", 0.05)
    with serve(add_upload, **PROXY) as server, Raw(server.base) as connection:
        for _ in range(3):
            connection.send(head("/upload", 1, 4), b"12")
            connection.send(b"34")
            assert connection.response() == (200, b"4")
            server.get("/livez")


def test_a_large_body_to_a_route_of_the_owner_gets_413(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    size = 4096
    with serve(add_upload, max_request_bytes=size, **PROXY) as server:
        for content in (b"x" * size, iter([b"x" * 1000] * 4)):
            assert server.client.post(f"{server.base}/upload", content=content).status_code == 200
        for content in (b"x" * (size + 1), iter([b"x" * 1000] * 50)):
            response = server.client.post(f"{server.base}/upload", content=content)
            assert response.status_code == 413
            assert "MAX_REQUEST_BYTES" in error_of(response)
        with Raw(server.base) as connection:
            connection.send(head("/upload", 1, 10**18 - 1))
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

    with serve(register, **PROXY) as server:
        with Raw(server.base) as connection:
            connection.send(head("/upload", 1, 100), b"{")
            server.get("/livez")
        assert left.wait(DEADLINE_SECONDS)
        assert server.post({}).status_code == 400
        assert "Traceback" not in capfd.readouterr().err
        assert server.client.post(f"{server.base}/crash").status_code == 500
        wait_for(lambda: "a mistake of the owner's" in capfd.readouterr().err)


@pytest.mark.parametrize("uris", [["test://" + "a" * MAX_LISTEN_BYTES], [f"test://{n}" for n in range(2000)]])
def test_a_subscription_to_many_or_long_uris_gets_413(uris: list[str], serve: Serve) -> None:
    with serve(**PROXY) as server:
        message, headers = modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
        response = server.client.post(server.url, json=message, headers=headers)
        assert response.status_code == 413
        assert "subscription" in error_of(response)
        message, headers = modern("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris[:0]}})
        with server.client.stream("POST", server.url, json=message, headers=headers) as response:
            assert response.status_code == 200
