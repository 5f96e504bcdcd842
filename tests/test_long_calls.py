"""Long calls of an `auto` server: real clients, and the proxies of `docs/reverse_proxy.md` in Debian's nginx and Caddy.

Of the page's configurations only addresses, certificates and times differ: the server is on loopback.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .live_servers import (
    HEADERS,
    IN_PROJECT,
    LOCAL,
    TOKEN,
    Project,
    Server,
    accepts,
    free_port,
    make_project,
    node,
    npm_packages,
    post,
    process,
    tool_call,
)
from .ops import tool
from .support import ROOT, run, uv, wait_for

pytestmark = pytest.mark.slow
acceptance = pytest.mark.acceptance

PAGE = ROOT / "template" / "docs" / "reverse_proxy.md"
PROGRESS = {"seen": [[1, "waiting"], [2, "done"]], "text": "after progress"}
VERSION = "2026-07-28"
CLOSED = ("/metrics", "/health", "/livez", "/readyz", "/%6detrics", "/", "/weather", "/weather/metrics")
FORGED = "203.0.113.9"
JSON_TYPE, STREAM_TYPE = "application/json", "text/event-stream"


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(template, tmp_path_factory.mktemp("long") / "project", "long_calls")


@contextlib.contextmanager
def serving(project: Project, folder: Path, **settings: object) -> Iterator[Server]:
    public = {
        "ALLOWED_HOSTS": f"{LOCAL},mcp.example.com,example.com",
        "TRUSTED_PROXIES": LOCAL,
        "JWT_ISSUER": f"http://{LOCAL}:9",
        "JWT_AUDIENCE": "https://example.com/weather/mcp",
    }
    with project.serving(folder / "server.log", RESPONSE_MODE="auto", **public, **settings) as server:
        yield server


@pytest.fixture(scope="module")
def server(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(project, tmp_path_factory.mktemp("server"), SSE_AFTER_SECONDS=0.3) as running:
        yield running


# --- Clients -------------------------------------------------------------------------------------------------


CLIENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "python-sdk-2025-06-18": (("mcp==1.12.4", "pydantic<2.12"), "-"),
    "python-sdk-1": (("mcp>=1.28,<2",), "-"),
    "python-sdk-2-legacy": ((), "legacy"),
    "python-sdk-2": ((), VERSION),
    "typescript-sdk": ((), ""),
}
"""By name: the distributions of a client in Python, none for those of the project, and its mode."""


def follow_progress(client: str, project: Project, port: int, folder: Path, *seconds: str) -> None:
    """Run a client that has to see the progress of a call, and to await one that is silent for some seconds."""
    distributions, mode = CLIENTS[client]
    url = f"http://{LOCAL}:{port}/mcp"
    if mode:
        python: list[str | Path] = [project.python]
        if distributions:
            wanted = [option for distribution in distributions for option in ("--with", distribution)]
            python = [str(uv()), "run", "--quiet", "--no-project", *wanted, "python"]
        command: Sequence[str | Path] = [*python, IN_PROJECT / "client_progress.py", url, TOKEN, mode]
    else:
        packages = npm_packages("inspector", "@modelcontextprotocol/inspector@2.12.0", "node@22")
        command = [node(packages), IN_PROJECT / "client_progress.mjs", packages / "node_modules", url, TOKEN]
    done = run(*command, *seconds, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout) == PROGRESS


@acceptance
@pytest.mark.parametrize("client", CLIENTS)
def test_progress_reaches_the_client(client: str, project: Project, server: Server, tmp_path: Path) -> None:
    follow_progress(client, project, server.port, tmp_path)


# --- Proxies -------------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A proxy with TLS in front of a server."""

    port: int
    host: str
    path: str
    certificate: Path
    log_file: Path

    @contextlib.contextmanager
    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Iterator[http.client.HTTPResponse]:
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection(self.host, self.port, context=context)
        connection.sock = context.wrap_socket(
            socket.create_connection((LOCAL, self.port), 60), server_hostname=self.host
        )
        content = None if body is None else json.dumps(body)
        with contextlib.closing(connection):
            connection.request(method, path, content, {"host": self.host, **headers})
            yield connection.getresponse()

    @contextlib.contextmanager
    def call(self, name: str, accept: str = HEADERS["accept"], **arguments: Any) -> Iterator[http.client.HTTPResponse]:
        """Call a tool as a client of the newest protocol that shows its progress."""
        meta = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": {},
            "progressToken": "token",
        }
        params = {"name": name, "arguments": arguments, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {"mcp-protocol-version": VERSION, "mcp-method": "tools/call", "mcp-name": name, "accept": accept}
        with self.request("POST", self.path, body, **{**HEADERS, **headers}) as response:
            assert response.status == 200, response.read()
            yield response


def certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate of both names and its key."""
    pem, key = folder / "tls.pem", folder / "tls.key"
    names = "subjectAltName=DNS:mcp.example.com,DNS:example.com"
    options = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", names)
    done = run(tool("openssl"), *options, "-keyout", key, "-out", pem, cwd=folder)
    assert done.returncode == 0, done.stderr
    return pem, key


def blocks() -> dict[str, str]:
    """Return the page's configurations by program and place."""
    found = re.findall(
        r"^## (nginx|Caddy), at a (host name|path)\n.*?```\w+\n(.*?)```", PAGE.read_text("utf-8"), re.S | re.M
    )
    return {f"{program} {place}": text for program, place, text in found}


ACCESS_LOG = (
    """log_format json escape=json '{"accept": "$http_accept", "type": "$sent_http_content_type", """
    """"seconds": $request_time, "body": "$request_body"}';\naccess_log access.log json;\n"""
)


@contextlib.contextmanager
def proxying(name: str, server: Server, folder: Path, **changes: str) -> Iterator[Proxy]:
    """Run a configuration of the page in front of `server`."""
    port = free_port()
    pem, key = certificate(folder)
    text = blocks()[name].replace("127.0.0.1:8000", f"{LOCAL}:{server.port}")
    text = re.sub(r"/etc/ssl/\S+\.pem", str(pem), re.sub(r"/etc/ssl/[^\s;]+\.key", str(key), text))
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    if name.startswith("nginx"):
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("listen 443", f"listen {LOCAL}:{port}")
        main = f"daemon off; user root; pid {folder}/nginx.pid; events {{}}\nhttp {{\n{temporary}"
        main = f"{main}{ACCESS_LOG}{text}}}\n"
        command: list[str | Path] = [tool("nginx"), "-e", "stderr", "-p", folder, "-c", folder / "proxy.conf"]
    else:
        text = text.replace("request_buffers 4MiB", "buffer_requests")  # the name in Debian's Caddy 2.6
        main = (
            f"{{\nadmin off\nauto_https disable_redirects\nhttp_port {free_port()}\nhttps_port {port}\n"
            f"default_bind {LOCAL}\n}}\n{text}"
        )
        command = [tool("caddy"), "run", "--adapter", "caddyfile", "--config", folder / "proxy.conf"]
    (folder / "proxy.conf").write_text(main, "utf-8")
    log_file = folder / "proxy.log"
    at_path = name.endswith("path")
    with process(command, log_file, cwd=folder, HOME=str(folder), XDG_DATA_HOME=str(folder)) as started:
        wait_for(lambda: accepts(port) or started.poll() is not None, log_file.read_text)
        assert started.poll() is None, log_file.read_text()
        host = "example.com" if at_path else "mcp.example.com"
        yield Proxy(port, host, "/weather/mcp" if at_path else "/mcp", pem, log_file)


PROXIES = ("nginx host name", "nginx path", "Caddy host name", "Caddy path")


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def test_the_page_has_the_configurations() -> None:
    assert tuple(blocks()) == PROXIES


@acceptance
@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_passes_calls_and_streams_and_nothing_else(name: str, server: Server, tmp_path: Path) -> None:
    with proxying(name, server, tmp_path) as proxy:
        with proxy.call("open_gate") as quick:
            assert quick.headers["content-type"] == "application/json"
            assert json.load(quick)["result"]["content"][0]["text"] == "open"
        with proxy.call("progress") as stream:
            assert stream.headers["content-type"] == "text/event-stream"
            first = next(json.loads(line[6:]) for line in stream if line.startswith(b"data: "))  # while the call runs
            assert first["params"]["progress"] == 1
            with proxy.call("open_gate") as opening:
                opening.read()
            second, answer = events(stream.read().decode())
            assert (second["params"]["progress"], answer["result"]["content"][0]["text"]) == (2, "after progress")
        with proxy.call("silent", "application/json", seconds=1) as only_json:
            assert json.load(only_json)["result"]["content"][0]["text"] == "after silence"
        for path in CLOSED:
            with proxy.request("GET", path) as closed:
                assert closed.status == 404, path
        metadata = f"/.well-known/oauth-protected-resource{proxy.path}"
        with proxy.request("GET", metadata) as document:
            assert json.load(document)["resource"] == "https://example.com/weather/mcp"
        with proxy.request("POST", proxy.path, {}, **{"x-forwarded-for": FORGED}) as rejected:
            assert rejected.status == 401
            assert "resource_metadata=" in rejected.headers["www-authenticate"]
        with proxy.request("POST", proxy.path, "x" * 5_000_000, **HEADERS) as too_large:
            assert too_large.status == 413
    assert FORGED not in server.log()


@acceptance
@pytest.mark.parametrize("name", ["nginx host name", "nginx path"])
def test_a_silent_call_outlives_the_time_in_which_a_proxy_waits_for_a_byte(
    name: str, server: Server, tmp_path: Path
) -> None:
    with (
        proxying(name, server, tmp_path, **{"proxy_read_timeout 60s": "proxy_read_timeout 1s"}) as proxy,
        proxy.call("silent", seconds=3) as stream,
    ):
        text = stream.read().decode()
    assert text.count(": ping") >= 3
    assert events(text)[0]["result"]["content"][0]["text"] == "after silence"


@pytest.mark.release
def test_calls_of_thirty_seconds_outlive_a_read_timeout_of_ten(project: Project, tmp_path: Path) -> None:
    """All clients, one of which accepts only JSON; nginx records what each response is."""
    changes = {"proxy_read_timeout 60s": "proxy_read_timeout 10s", "listen 443 ssl": "listen 443"}

    def only_json(port: int) -> None:
        for name, arguments, text in (("open_gate", {}, "open"), ("silent", {"seconds": 30}, "after silence")):
            code, answer = post(port, tool_call(name, arguments), accept=JSON_TYPE)
            assert (code, json.loads(answer)["result"]["content"][0]["text"]) == (200, text)

    with (
        serving(project, tmp_path, SSE_AFTER_SECONDS=5) as server,
        proxying("nginx host name", server, tmp_path, **changes) as proxy,
        ThreadPoolExecutor(len(CLIENTS) + 1) as pool,
    ):
        clients = [pool.submit(follow_progress, name, project, proxy.port, tmp_path, "30") for name in CLIENTS]
        clients.append(pool.submit(only_json, proxy.port))
        for client in clients:
            client.result()
        lines = [json.loads(line) for line in (tmp_path / "access.log").read_text("utf-8").splitlines()]
    found: dict[str, list[tuple[bool, str]]] = {}
    for line in lines:
        if '"tools/call"' in line["body"]:
            params = json.loads(line["body"])["params"]
            found.setdefault(params["name"], []).append((line["accept"] == JSON_TYPE, line["type"]))
            assert params["name"] != "silent" or line["seconds"] >= 30
    streams = [(False, STREAM_TYPE)] * len(CLIENTS)
    assert sorted(found["open_gate"]) == [*[(False, JSON_TYPE)] * len(CLIENTS), (True, JSON_TYPE)]
    assert found["progress"] == streams
    assert sorted(found["silent"]) == [*streams, (True, JSON_TYPE)]
