"""The shipped configuration of the load balancer, in Debian's HAProxy in front of replicas.

Only addresses and times differ from the file: the replicas are on loopback, and nothing takes ten seconds.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .conftest import Renderings
from .live_servers import LOCAL, free_port, process, status
from .matrix import Project
from .ops import passes, tool
from .support import wait_for

pytestmark = pytest.mark.slow

CONFIGURATION = Path("ops/load-balancer/haproxy.cfg")
PUBLIC = ("/mcp", "/mcp/", "/livez", "/readyz", "/health", "/own", "/.well-known/oauth-protected-resource/mcp")
PRIVATE = (
    "/metrics",
    "/%6detrics",
    "/%6Detrics",
    "/%256detrics",
    "//metrics",
    "/mcp/../metrics",
    "/mcp%2f..%2fmetrics",
    "/mcp%00",
    "/MCP",
    "/",
    "/.well-known/oauth-protected-resource/x",
)


class Replica(BaseHTTPRequestHandler):
    """A server that starts a session for each POST without one, and says in each answer who it is."""

    protocol_version = "HTTP/1.1"
    sessions = itertools.count()

    def do_POST(self) -> None:
        self.send_response(200)
        if self.command == "POST" and "mcp-session-id" not in self.headers:
            self.send_header("mcp-session-id", f"session-{next(self.sessions)}")
        body = str(self.server.server_port).encode()  # type: ignore[attr-defined]
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_POST()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # HAProxy ends its checks with a reset
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def replicas(count: int) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            server = stack.enter_context(ThreadingHTTPServer((LOCAL, 0), Replica))
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            ports.append(server.server_port)
        yield ports


@contextlib.contextmanager
def balanced(project: Path, folder: Path, *backends: int, changes: Mapping[str, str] | None = None) -> Iterator[int]:
    """Run HAProxy in front of `backends` with `changes` of the file's text, and yield its port."""
    port = free_port()
    text = (project / CONFIGURATION).read_text("utf-8")
    servers = "\n".join(f"    server replica{number} {LOCAL}:{number}" for number in backends)
    local = {
        "bind :8000": f"bind {LOCAL}:{port}",
        "resolvers docker init-addr none": "",
        "    server-template replica 10 server:8000": servers,
    }
    for old, new in {**local, **(changes or {})}.items():
        assert old in text, old
        text = text.replace(old, new)
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text, "utf-8")
    command: list[str | Path] = [tool("haproxy"), "-db", "-f", configuration]
    with process(command, folder / "haproxy.log", cwd=folder, PUBLIC_PATHS="/mcp /own", PROXY_TIMEOUT_SECONDS="90"):
        wait_for(lambda: status(port, "/livez") == 200, (folder / "haproxy.log").read_text)
        yield port


def ask(port: int, path: str = "/mcp", session: str | None = None, method: str = "POST") -> tuple[int, str, str | None]:
    """Return the status, the replica that answered, and the session that it started."""
    with contextlib.closing(http.client.HTTPConnection(LOCAL, port, timeout=30)) as connection:
        connection.putrequest(method, path)
        if session is not None:
            connection.putheader("mcp-session-id", session)
        connection.putheader("content-length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.getheader("mcp-session-id")


@pytest.fixture
def project(renderings: Renderings) -> Path:
    return renderings["default"].first


def test_the_file_is_valid_as_it_is(project: Path) -> None:
    for paths in ("/mcp", "/mcp /own /other"):
        passes(tool("haproxy"), "-c", "-f", CONFIGURATION, cwd=project, PUBLIC_PATHS=paths)


def test_only_listed_paths_are_public(project: Path, tmp_path: Path) -> None:
    with replicas(1) as ports, balanced(project, tmp_path, *ports) as port:
        assert {path: ask(port, path, method="GET")[0] for path in PUBLIC} == dict.fromkeys(PUBLIC, 200)
        assert {path: ask(port, path, method="GET")[0] for path in PRIVATE} == dict.fromkeys(PRIVATE, 404)


def test_made_up_sessions_do_not_displace_real_ones(project: Path, tmp_path: Path) -> None:
    with (
        replicas(2) as ports,
        balanced(project, tmp_path, *ports, changes={"string len 64 size 100k": "string len 64 size 4"}) as port,
    ):
        started = [ask(port) for _ in range(4)]
        assert len({replica for _, replica, _ in started}) == 2
        for number in range(101):
            ask(port, session=f"made-up-{number}")
            _, replica, session = started[number % 4]
            assert ask(port, session=session)[1] == replica


def test_a_request_that_arrives_slowly_is_rejected(project: Path, tmp_path: Path) -> None:
    with (
        replicas(1) as ports,
        balanced(project, tmp_path, *ports, changes={"timeout http-request 10s": "timeout http-request 1s"}) as port,
        socket.create_connection((LOCAL, port), 0.05) as connection,
    ):
        connection.sendall(b"GET /mcp HTTP/1.1\r\nHost: a\r\nA: ")
        answer = b""
        while not answer:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(100)
            if not answer:
                connection.sendall(b"a")
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_address_has_a_limit_of_connections(project: Path, tmp_path: Path) -> None:
    with (
        replicas(1) as ports,
        balanced(project, tmp_path, *ports, changes={"sc0_conn_cur gt 500": "sc0_conn_cur gt 5"}) as port,
        contextlib.ExitStack() as stack,
    ):
        held = [stack.enter_context(socket.create_connection((LOCAL, port), 30)) for _ in range(5)]
        wait_for(lambda: status(port, "/livez") == 0, lambda: "the limit")
        held.pop().close()
        wait_for(lambda: status(port, "/livez") == 200, lambda: "a free place")


@pytest.mark.acceptance
def test_a_trailer_cannot_forge_the_client_address(built: Callable[[str], Project], tmp_path: Path) -> None:
    project, server = built("default"), free_port()
    environment: dict[str, Any] = {
        "PORT": server,
        "TRUSTED_PROXIES": "127.0.0.0/8",
        "RATE_LIMIT_REQUESTS": 1,
        "BASE_URL": f"http://{LOCAL}:9",
    }
    command = [project.path / ".venv/bin/weather-station"]
    settings = {name: str(value) for name, value in environment.items()}
    with (
        process(command, tmp_path / "server.log", cwd=project.path, **settings),
        contextlib.ExitStack() as stack,
    ):
        wait_for(lambda: status(server, "/livez") == 200, (tmp_path / "server.log").read_text)
        port = stack.enter_context(balanced(project.path, tmp_path, server))
        answers = [_call_with_trailer(port, f"X-Forwarded-For: 192.0.2.{number}") for number in range(3)]
        assert [b"Rate limit" in answer for answer in answers] == [False, True, True], answers
        assert status(port, "/%6detrics") == 404


def _call_with_trailer(port: int, trailer: str) -> bytes:
    params = {"name": "health_check", "arguments": {}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    head = (
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
        "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2025-11-25\r\n"
        f"Transfer-Encoding: chunked\r\nTrailer: {trailer.partition(':')[0]}\r\n\r\n"
    )
    with socket.create_connection((LOCAL, port), 30) as connection:
        connection.sendall(head.encode() + b"%x\r\n%s\r\n0\r\n%s\r\n\r\n" % (len(body), body, trailer.encode()))
        return b"".join(iter(lambda: connection.recv(65536), b""))
