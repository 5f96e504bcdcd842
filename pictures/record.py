"""A server of the default project under traffic: what Prometheus and a receiver of traces have afterwards.

The project's own Prometheus configuration and rules are used as they are but for the addresses. The API is a stand-in
that is slow now and then, fails one request in eight, and is down for 15 % of the time.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.live_servers import LOCAL, free_port, process, status
from tests.ops import passes, tool
from tests.support import uv, wait_for

from .draw import Series, Span

STEP_SECONDS = 15
"""Between the points of a graph; the interval at which the project's Prometheus scrapes."""

DOWN = (0.45, 0.6)
"""The part of the time in which the API is down."""

CITIES = ("Berlin", "Nairobi", "Lima", "Osaka", "Turin", "Accra")
CALLERS = ("assistant", "reports", "batch")


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: object = None) -> None:
        content = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


def api(is_down: Callable[[], bool]) -> type[Quiet]:
    """Stands in for the weather API: the places and the forecasts that the starter tool asks for."""
    chance = random.Random(24)  # noqa: S311 (of delays)

    class Api(Quiet):
        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            time.sleep(min(chance.lognormvariate(-3.2, 0.7), 1.5))
            if is_down() or chance.random() < 0.12:
                return self.answer(503, {})
            if parts.path == "/v1/search":
                name = dict(urllib.parse.parse_qsl(parts.query))["name"]
                place = {"name": name, "country": "Somewhere", "latitude": 1.0, "longitude": 2.0}
                return self.answer(200, {"results": [place]})
            return self.answer(
                200, {"current": {"temperature_2m": 18.5, "wind_speed_10m": 9.0, "time": "2026-11-27T01:00"}}
            )

    return Api


def collector(spans: list[Span]) -> type[Quiet]:
    """Receives traces over OTLP."""

    class Collector(Quiet):
        def do_POST(self) -> None:
            spans.extend(exported(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

    return Collector


@contextlib.contextmanager
def serving(handler: type[Quiet]) -> Iterator[int]:
    server = ThreadingHTTPServer((LOCAL, 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- OTLP ------------------------------------------------------------------------------------------------------------

Fields = dict[int, list[Any]]


def fields(message: bytes) -> Fields:
    """Return the values of a protobuf message by field number; nested messages and texts are bytes."""
    found: Fields = {}
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        value: Any
        match key & 7:
            case 0:
                value, at = varint(message, at)
            case 1:
                value, at = int.from_bytes(message[at : at + 8], "little"), at + 8
            case 5:
                value, at = int.from_bytes(message[at : at + 4], "little"), at + 4
            case _:
                size, at = varint(message, at)
                value, at = message[at : at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return value, at


def exported(request: bytes) -> Iterator[Span]:
    """Yield the spans of an ExportTraceServiceRequest (opentelemetry-proto, trace/v1)."""
    for resource in fields(request).get(1, []):
        for scope in fields(resource).get(2, []):
            for encoded in fields(scope).get(2, []):
                span = fields(encoded)
                code = fields(span.get(15, [b""])[0]).get(3, [0])[0]
                yield Span(
                    id=span[2][0].hex(),
                    parent=span.get(4, [b""])[0].hex(),
                    trace=span[1][0].hex(),
                    name=span[5][0].decode(),
                    start=span[7][0],
                    end=span[8][0],
                    attributes=dict(map(attribute, span.get(9, []))),
                    failed=code == 2,
                )


def attribute(encoded: bytes) -> tuple[str, str]:
    pair = fields(encoded)
    value = fields(pair[2][0])
    shown = value[1][0].decode() if 1 in value else str(value[3][0]) if 3 in value else str(bool(value.get(2, [0])[0]))
    return pair[1][0].decode(), shown


# --- Traffic ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def traffic(port: int) -> Iterator[None]:
    """Calls of three callers at their own pace, some of them mistaken, and one who goes on past the limit."""
    stop = threading.Event()

    def repeat(caller: str, pause: float, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 (of calls)
        while not stop.wait(chance.expovariate(1 / pause)):
            kind = chance.random()
            name, arguments = ("get_weather", {"city": chance.choice(CITIES)})
            if kind < 0.15:
                name, arguments = ("health_check", {})
            elif kind < 0.2:
                arguments = {"town": "Berlin"}
            with contextlib.suppress(OSError):
                call(port, caller, name, arguments)

    pace = {"assistant": 1.0, "reports": 1.4, "batch": 0.45}
    threads = [
        threading.Thread(target=repeat, args=(caller, pause, seed), daemon=True)
        for seed, (caller, pause) in enumerate([*pace.items(), ("batch", 0.9)])
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def call(port: int, caller: str, name: str, arguments: Mapping[str, Any]) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    request(port, "/mcp", message, authorization=f"Bearer {token(caller)}")


def token(caller: str) -> str:
    return f"token-of-the-caller-{caller}"


def request(port: int, path: str, message: object = None, **headers: str) -> bytes:
    """Return the body of an answer.

    Raises:
        OSError: nobody answers, or with another status than 200.
    """
    with contextlib.closing(HTTPConnection(LOCAL, port, timeout=60)) as connection:
        usual = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2025-11-25",
        }
        body = None if message is None else json.dumps(message)
        connection.request("POST" if body else "GET", path, body, usual | headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ConnectionError(f"{path} answered {answer.status}")
        return content


# --- The whole -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(project: Path, place: Path, seconds: float) -> Iterator[tuple[Prometheus, list[Span]]]:
    """Run server, Prometheus and traffic for a while; then Prometheus can be asked until the block ends."""
    begun = time.monotonic()
    spans: list[Span] = []

    def is_down() -> bool:
        return DOWN[0] <= (time.monotonic() - begun) / seconds <= DOWN[1]

    with contextlib.ExitStack() as stack:
        upstream, receiver = stack.enter_context(serving(api(is_down))), stack.enter_context(serving(collector(spans)))
        port, prometheus = free_port(), free_port()
        log = place / "server.log"
        stack.enter_context(
            process(
                [project / ".venv/bin/weather-station"],
                log,
                place,
                PORT=str(port),
                AUTH_TOKENS=",".join(f"{caller}:{token(caller)}" for caller in CALLERS),
                BASE_URL=f"http://{LOCAL}:{upstream}",
                GEOCODING_URL=f"http://{LOCAL}:{upstream}",
                OTEL_EXPORTER_ENDPOINT=f"http://{LOCAL}:{receiver}",
            )
        )
        wait_for(lambda: status(port, "/readyz") == 200, log.read_text)
        configure(project, place, port)
        stack.enter_context(
            process(
                [
                    tool("prometheus"),
                    f"--config.file={place / 'prometheus.yml'}",
                    f"--storage.tsdb.path={place / 'data'}",
                    f"--web.listen-address={LOCAL}:{prometheus}",
                ],
                place / "prometheus.log",
                place,
            )
        )
        wait_for(lambda: status(prometheus, "/-/ready") == 200, (place / "prometheus.log").read_text)
        start = time.time()
        begun = time.monotonic()
        with traffic(port):
            threading.Event().wait(seconds)
        wait_for(lambda: spans, lambda: "no trace was exported")
        yield Prometheus(prometheus, start, time.time()), spans


def configure(project: Path, place: Path, port: int) -> None:
    """Write the project's Prometheus configuration with the address of the server in it."""
    config = yaml.safe_load((project / "ops/prometheus/prometheus.yml").read_text("utf-8"))
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "weather-station")
    del job["dns_sd_configs"], config["alerting"]
    job["static_configs"] = [{"targets": [f"{LOCAL}:{port}"]}]
    # The address is that of a free port: in the picture it is the usual one.
    job["relabel_configs"].append({"target_label": "instance", "replacement": "server:8000"})
    config["scrape_configs"] = [job]
    config["rule_files"] = [str(project / "ops/prometheus/rules/*.yml")]
    (place / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")


class Prometheus:
    """Answers the queries of panels over the time of the traffic."""

    def __init__(self, port: int, start: float, end: float) -> None:
        self.port = port
        self.start = start
        self.end = end

    def series(self, panel: Mapping[str, Any]) -> list[Series]:
        """Return what Grafana asks for a panel: each expression, at each step.

        Raises:
            LookupError: a panel has no data.
        """
        found = [series for target in panel["targets"] for series in self._query(target, panel)]
        if not found:
            raise LookupError(f"the panel {panel['title']!r} has no data")
        return found

    def _query(self, target: Mapping[str, Any], panel: Mapping[str, Any]) -> Iterator[Series]:
        choice = "get_weather" if panel.get("repeat") else ".+"
        expression = re.sub(r"\$tool\b", choice, target["expr"]).replace("$__rate_interval", f"{4 * STEP_SECONDS}s")
        expression = re.sub(r"\$(job|instance)\b", ".+", expression)
        asked = {"query": expression, "start": self.start, "end": self.end, "step": STEP_SECONDS}
        answer = json.loads(request(self.port, f"/api/v1/query_range?{urllib.parse.urlencode(asked)}"))
        for series in answer["data"]["result"]:
            points = [(moment, float(value)) for moment, value in series["values"] if value not in ("NaN", "+Inf")]
            if points:
                yield Series(series["metric"], legend(target, series["metric"]), points)


def legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """Return the name of a series in the legend, as Grafana makes it from the target's format."""
    form = target.get("legendFormat", "__auto")
    if form == "__auto":
        return ", ".join(labels.values()) or "value"
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda name: labels.get(name[1], ""), form)


def sync(project: Path) -> None:
    """Make the environment of a project."""
    passes(str(uv()), "sync", "--quiet", cwd=project, UV_PROJECT_ENVIRONMENT=".venv")


def traced(spans: Sequence[Span]) -> list[Span]:
    """Return the spans of a call that succeeded at the second try of a request to the API, the shortest of those.

    Raises:
        LookupError: there is no such call.
    """
    traces: dict[str, list[Span]] = {}
    for span in spans:
        traces.setdefault(span.trace, []).append(span)
    wanted = [
        trace
        for trace in traces.values()
        if [span.failed for span in trace if not span.parent] == [False] and any(span.failed for span in trace)
    ]
    if not wanted:
        raise LookupError("no call succeeded after a retry")
    return min(wanted, key=lambda trace: max(span.end for span in trace) - min(span.start for span in trace))
