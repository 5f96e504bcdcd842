"""The HTTP client of the exporters, for each signal that the project exports over HTTP: what a collector answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from harness import Running, Serve, config, has, wait_for
from weather_station.production.config import ANSWERS
from weather_station.production.observe import telemetry
from weather_station.production.observe.telemetry_session import MAX_BODY, collector_session

SIGNALS = [
    *(["traces"] if config().telemetry_protocol != "grpc" else []),
    *(["metrics"] if has("observe.telemetry_metrics") else []),
    *(["logs"] if has("observe.telemetry_logs") else []),
]
"""Those of which an exporter over HTTP is tested; a project over gRPC has it for metrics and logs."""

further = partial(pytest.param, marks=pytest.mark.release)

ENDLESS = 64 * 1024 * 1024
"""Bytes after which a body is taken for one that the exporter reads without end."""


class Received:
    """What an HTTP server got."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.connections: set[tuple[str, int]] = set()
        self.sent: list[int] = []
        """Bytes of each endless body until the client closed the connection."""

    def count(self, signal: str) -> int:
        return self.requests.count(("POST", f"/v1/{signal}"))


Answer = Callable[[BaseHTTPRequestHandler, Received], None]


@contextmanager
def answering(answer: Answer) -> Iterator[tuple[Received, str]]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            received.requests.append((self.command, self.path))
            received.connections.add(self.client_address)
            answer(self, received)

        def do_GET(self) -> None:  # how a redirect would be followed
            self.do_POST()

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield received, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def redirect(status: int, location: str | None) -> Answer:
    def answer(request: BaseHTTPRequestHandler, received: Received) -> None:
        request.send_response(status)
        if location:
            request.send_header("location", location)
        request.send_header("content-length", "0")
        request.end_headers()

    return answer


def endless(header: tuple[str, str]) -> Answer:
    def answer(request: BaseHTTPRequestHandler, received: Received) -> None:
        request.send_response(200)
        request.send_header(*header)
        request.end_headers()
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        try:
            while sent < ENDLESS:
                sent += request.wfile.write(piece)
        except OSError:
            request.close_connection = True
        received.sent.append(sent)

    return answer


def accept(request: BaseHTTPRequestHandler, received: Received) -> None:
    request.send_response(200)
    request.send_header("content-length", "2")
    request.end_headers()
    request.wfile.write(b"{}")


@contextmanager
def exporting(serve: Serve, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Iterator[Running]:
    """Run a server that exports often."""
    monkeypatch.setitem(ANSWERS["config"], "telemetry_protocol", "http/protobuf")
    monkeypatch.setattr(telemetry.once_per_minute, "_next_time", 0.0)
    for name in telemetry.EXPORTERS:  # without OpenTelemetry's own filters, which drop what an earlier test had
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    for name in ("BSP_SCHEDULE_DELAY", "BLRP_SCHEDULE_DELAY", "METRIC_EXPORT_INTERVAL"):
        monkeypatch.setenv(f"OTEL_{name}", "50")
    if "traces" not in SIGNALS:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with serve(telemetry_endpoint=endpoint, telemetry_protocol="http/protobuf") as server:
        yield server


def failures(server: Running) -> list[float | None]:
    metrics = server.metrics()
    return [metrics.value("mcp_telemetry_export_failures_total", signal=signal) for signal in SIGNALS]


def wait_for_exports(received: Received, count: int) -> None:
    wait_for(lambda: all(received.count(signal) >= count for signal in SIGNALS))


@pytest.mark.parametrize(
    ("status", "location", "shown"),
    [
        (301, "https://collector.example/v1/x", "redirects to https://collector.example/v1/x (HTTP 301)"),
        further(302, "/elsewhere", "redirects to /elsewhere (HTTP 302)"),
        further(307, "https://collector.example/" + "x" * 1000, f"https://collector.example/{'x' * 174} (HTTP 307)"),
        further(308, "http://[", "redirects to http://[ (HTTP 308)"),
        (304, None, "HTTP 304"),
    ],
)
def test_a_redirect_is_a_failed_export_whose_line_has_the_address(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: int,
    location: str | None,
    shown: str,
) -> None:
    with (
        answering(redirect(status, location)) as (received, endpoint),
        exporting(serve, monkeypatch, endpoint) as server,
    ):
        server.call("health_check")
        wait_for(lambda: all(failures(server)))
    output = capfd.readouterr().err
    about_export = [line for line in output.splitlines() if "Failed to export" in line]
    assert len(about_export) == 1
    assert shown in about_export[0]
    assert {method for method, _ in received.requests} == {"POST"}
    assert len({path for _, path in received.requests}) == len(SIGNALS)


@pytest.mark.parametrize(
    "header",
    [
        ("transfer-encoding", "chunked"),
        further(("content-length", str(2 * ENDLESS))),
        further(("connection", "close")),
    ],
)
def test_a_body_without_end_takes_no_memory_and_the_export_counts_as_accepted(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, header: tuple[str, str]
) -> None:
    with answering(endless(header)) as (received, endpoint), exporting(serve, monkeypatch, endpoint) as server:
        for number in range(1, 4):
            server.call("health_check")
            wait_for_exports(received, number)
        wait_for(lambda: len(received.sent) >= 3 * len(SIGNALS))
        assert failures(server) == [0] * len(SIGNALS)
    assert max(received.sent) < ENDLESS


def test_the_connection_is_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(accept) as (received, endpoint), exporting(serve, monkeypatch, endpoint) as server:
        for number in range(1, 4):
            server.call("health_check")
            wait_for_exports(received, number)
        assert failures(server) == [0] * len(SIGNALS)
    assert len(received.connections) == len(SIGNALS)


def test_a_body_that_ends_too_early_does_not_fail_what_was_accepted() -> None:
    def answer(request: BaseHTTPRequestHandler, received: Received) -> None:
        request.send_response(200)
        request.send_header("content-length", str(MAX_BODY))
        request.end_headers()
        request.close_connection = True

    with answering(answer) as (received, endpoint):
        session = collector_session()
        assert session.post(f"{endpoint}/v1/traces", data=b"", allow_redirects=False).status_code == 200
        session.close()
    assert received.count("traces") == 1


@pytest.mark.parametrize("signal", ["", "TRACES_", "LOGS_"])
def test_the_session_of_a_credential_provider_stays(monkeypatch: pytest.MonkeyPatch, signal: str) -> None:
    monkeypatch.setenv(f"OTEL_PYTHON_EXPORTER_OTLP_HTTP_{signal}CREDENTIAL_PROVIDER", "own")
    assert collector_session() is None
