"""Log lines that strangers can cause: few, with the number of those left out and the client's address."""

from __future__ import annotations

import logging
import re
import socket
from urllib.parse import urlsplit

import pytest

from harness import DEADLINE_SECONDS, HAS_LOGGING, HEADERS, Serve, message, wait_for, without_audit_records
from weather_station.production.observe import throttle
from weather_station.production.observe.throttle import LIBRARIES, MAX_LINES

FLOOD = 300


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "LOG_INTERVAL_SECONDS", 2.0)


def suppressed(output: str) -> int:
    """Return the sum of all counts of lines left out."""
    return sum(map(int, re.findall(r"suppressed\W+(\d+)", output)))


def send(base: str, data: bytes) -> None:
    parts = urlsplit(base)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), DEADLINE_SECONDS) as connection:
        connection.sendall(data)
        while connection.recv(65536):
            pass


MALFORMED = {
    "not HTTP": b"\x16\x03\x01\r\n\r\n",
    "method": b"G@T / HTTP/1.1\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "header": b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    "length": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    "host": b"POST /mcp HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "upgrade": b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    "media type": b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",
    "route": b"DELETE /elsewhere HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_flood_of_unusable_requests_is_a_few_lines(
    request_bytes: bytes, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(auth="none") as server:
        capfd.readouterr()
        for _ in range(FLOOD):
            send(server.base, request_bytes)
        assert len(without_audit_records(capfd.readouterr().err)) < 20


def test_the_lines_left_out_are_counted_although_none_follows(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(auth="none") as server:
        capfd.readouterr()
        output = ""
        for _ in range(FLOOD):
            send(server.base, MALFORMED["method"])

        def counted() -> bool:
            nonlocal output
            output += capfd.readouterr().err
            return suppressed(output) + output.count("request rejected") == FLOOD

        wait_for(counted)
        assert len(output.splitlines()) < 20


@pytest.mark.parametrize("enable_logging", {HAS_LOGGING, False})
@pytest.mark.parametrize("library", LIBRARIES)
def test_lines_of_a_library_are_throttled_and_counted(
    library: str, enable_logging: bool, serve: Serve, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(auth="none", enable_logging=enable_logging):
        capfd.readouterr()
        for number in range(FLOOD):
            logging.getLogger(f"{library}.part").error("request %d is wrong", number)
        assert capfd.readouterr().err.count("is wrong") == MAX_LINES
        monkeypatch.setattr(throttle, "LOG_INTERVAL_SECONDS", 0.0)
        logging.getLogger("own.library").error("of the owner")
        assert "of the owner" in capfd.readouterr().err


@pytest.mark.needs("inbound.identity")
@pytest.mark.parametrize("kind", ["host", "media type", "header"])
def test_a_rejected_request_is_logged_with_the_client_behind_the_proxy(
    kind: str, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    line, _, rest = MALFORMED[kind].partition(b"\r\n")
    with serve(auth="none", trusted_proxies="127.0.0.1") as server:
        send(server.base, line + b"\r\nX-Forwarded-For: 192.0.2.7\r\nX-Other: 1\r\n" + rest)
        output = ""

        def logged() -> bool:
            nonlocal output
            output += capfd.readouterr().err
            return "request rejected" in output

        wait_for(logged)
        assert "192.0.2.7" in output


@pytest.mark.needs("observe.logging", "inbound.rate_limit")
def test_rejected_mcp_requests_are_a_few_lines(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(auth="none", rate_limit_requests=1, rate_limit_messages=1) as server:
        capfd.readouterr()
        for _ in range(FLOOD):
            server.client.post(server.url, json=message("tools/list"), headers=HEADERS)
        lines = [line for line in without_audit_records(capfd.readouterr().err) if "MessageRateLimited" in line]
        assert 0 < len(lines) < 100
