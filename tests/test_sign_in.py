"""Sign-in with real parts: npm's oidc-provider, the Python SDK's OAuth client, and replicas that share a Redis.

A server is stopped and started between each two steps of a browser, so that what one replica knows is what all know.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from .live_servers import (
    IN_PROJECT,
    LOCAL,
    TOKEN,
    Project,
    Server,
    balancing,
    free_port,
    make_project,
    node,
    npm_packages,
    post,
    process,
    tool_call,
)
from .live_servers import status as status_of
from .support import run, wait_for
from .test_identity_provider import ORDERS, Orders, claims, orders

__all__ = ["orders"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp("sign-in") / "project"
    return make_project(template, directory, "callers", "sign_in", auth="oauth", upstream_auth="token_exchange")


@pytest.fixture(scope="module")
def packages() -> Path:
    return npm_packages("identity-provider", "oidc-provider@9.13.3", "node@22")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    options = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1")
    names = ("-addext", f"subjectAltName=IP:{LOCAL}", "-keyout", path, "-out", path.with_suffix(".crt"))
    done = run("openssl", "req", *options, *names, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    path.write_bytes(path.with_suffix(".crt").read_bytes() + path.read_bytes())
    return path


class World:
    """The identity provider, Redis, and the settings of a server that uses them."""

    def __init__(self, project: Project, packages: Path, orders: Orders, certificate: Path, directory: Path) -> None:
        self.project = project
        self.packages = packages
        self.directory = directory
        self.port, self.provider_port, self.redis_port = free_port(), free_port(), free_port()
        self.url = f"http://{LOCAL}:{self.port}"
        self.issuer = f"http://{LOCAL}:{self.provider_port}"
        self.settings: dict[str, object] = {
            "PORT": self.port,
            "PUBLIC_URL": self.url,
            "OAUTH_ISSUER": self.issuer,
            "OAUTH_CLIENT_ID": "connector",
            "OAUTH_CLIENT_SECRET": "secret of connector",
            "OAUTH_SCOPES": "openid,orders:read",
            "OAUTH_KEYS": "0123456789abcdef" * 4,
            "REDIS_URL": f"redis://{LOCAL}:{self.redis_port}/0",
            "BASE_URL": orders.url,
            "UPSTREAM_TOKEN_URL": f"{self.issuer}/token",
            "UPSTREAM_CLIENT_ID": "mcp-server",
            "UPSTREAM_CLIENT_SECRET": "secret of mcp-server",
            "UPSTREAM_SCOPE": "orders:read",
            "UPSTREAM_RESOURCE": ORDERS,
            "OTEL_SDK_DISABLED": "true",
            "SSL_CERT_FILE": certificate,
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run Redis and the identity provider."""
        log = self.directory / "provider.log"
        script = (
            IN_PROJECT / "identity_provider.mjs",
            self.packages / "node_modules",
            str(self.provider_port),
            "first",
        )
        command: list[str | Path] = [node(self.packages), *script, f"{self.url}/oauth/callback"]
        with (
            self.project.redis(self.directory / "redis.log", self.redis_port),
            process(command, log, cwd=self.directory),
        ):
            path = "/.well-known/openid-configuration"
            wait_for(lambda: status_of(self.provider_port, path) == 200, lambda: log.read_text("utf-8"))
            yield

    def serving(self) -> contextlib.AbstractContextManager[Server]:
        return self.project.serving(self.directory / "server.log", **self.settings)

    def client(self, user: str, *arguments: str) -> subprocess.Popen[str]:
        script = IN_PROJECT / "client_sign_in.py"
        return subprocess.Popen(
            [self.project.python, script, f"{self.url}/mcp", user, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def world(project: Project, packages: Path, orders: Orders, certificate: Path, tmp_path: Path) -> Iterator[World]:
    found = World(project, packages, orders, certificate, tmp_path)
    with found.running():
        yield found


def report_of(client: subprocess.Popen[str], server: Server) -> dict[str, Any]:
    output, errors = client.communicate(timeout=120)
    assert client.returncode == 0, errors + server.log()
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


def call(world: World, token: str) -> int:
    return post(world.port, tool_call("who", {}), authorization=f"Bearer {token}")[0]


def form(world: World, path: str, **fields: str) -> int:
    with contextlib.closing(HTTPConnection(LOCAL, world.port, timeout=30)) as connection:
        connection.request("POST", path, urlencode(fields), {"content-type": "application/x-www-form-urlencoded"})
        return connection.getresponse().status


def register(world: World, **metadata: Any) -> str:
    with contextlib.closing(HTTPConnection(LOCAL, world.port, timeout=30)) as connection:
        body = json.dumps({"token_endpoint_auth_method": "none"} | metadata)
        connection.request("POST", "/register", body, {"content-type": "application/json"})
        return str(json.loads(connection.getresponse().read())["client_id"])


@pytest.mark.acceptance
def test_a_client_registers_and_its_user_reaches_the_upstream(world: World) -> None:
    with world.serving() as server:
        report = report_of(world.client("alice", "", ""), server)
        assert report["who"] == report["after_refresh"]
        assert (report["who"]["id"], report["who"]["client"]) == ("alice", report["client"])
        found = json.loads(report["orders"][0])
        assert (found["sub"], found["aud"], found["client_id"]) == ("alice", ORDERS, "mcp-server")
        assert "not verified" in report["consent"]
        assert call(world, TOKEN) == 200, "static tokens work beside it"
        first, second = report["first"], report["second"]
        assert claims(first["access_token"])["aud"] == f"{world.url}/mcp"
        assert call(world, second["access_token"]) == 200
        used = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"], "client_id": report["client"]}
        assert form(world, "/token", **used) == 400
        assert call(world, second["access_token"]) == 401, "the reuse has ended the session"
        log = server.log()
        assert not any(text in log for text in (first["access_token"], first["refresh_token"], "secret of connector"))


@pytest.mark.acceptance
def test_a_client_with_a_document_needs_no_registration(world: World, certificate: Path) -> None:
    with world.serving() as server:
        report = report_of(world.client("bob", str(certificate), ""), server)
        assert report["who"]["client"] == report["client"]
        assert report["client"].endswith("/client.json")
        assert "A client with a document" in report["consent"]
        assert form(world, "/revoke", token=report["second"]["refresh_token"], client_id=report["client"]) == 200
        assert call(world, report["second"]["access_token"]) == 401


def steps_of(client: subprocess.Popen[str], before: Callable[[str], None]) -> dict[str, Any]:
    """Call `before` with each request of a client that waits, and return its report."""
    assert client.stdin
    assert client.stdout
    for line in client.stdout:
        if "next" not in (step := json.loads(line)):
            client.communicate(timeout=60)
            return step  # type: ignore[no-any-return]
        before(step["next"])
        client.stdin.write("go on\n")
        client.stdin.flush()
    raise AssertionError(client.communicate()[1])


@pytest.mark.acceptance
def test_another_replica_goes_on_at_each_step(world: World) -> None:
    with contextlib.ExitStack() as serving:
        serving.enter_context(world.serving())
        steps = []

        def restart(request: str) -> None:
            if f" {world.url}/" in request:
                steps.append(request)
                serving.close()
                serving.enter_context(world.serving())

        report = steps_of(world.client("carol", "", "browser"), restart)
        assert report["who"]["id"] == "carol"
        assert [step.replace(world.url, "") for step in steps] == [
            "GET /authorize",
            "GET /oauth/consent",
            "POST /oauth/consent",
            "GET /oauth/callback",
        ]


@pytest.mark.release
def test_one_of_two_replicas_is_killed_before_each_request(world: World, figure: Callable[[str], None]) -> None:
    """Each one in turn, so that whatever a request has left in a process is gone before the next."""
    ports = [free_port(), free_port()]
    requests: list[str] = []
    with contextlib.ExitStack() as running:
        _, served = running.enter_context(balancing(*ports, port=world.port))
        stacks = [running.enter_context(contextlib.ExitStack()) for _ in ports]

        def start(number: int) -> None:
            log, settings = world.directory / f"replica{number}.log", world.settings | {"PORT": ports[number]}
            stacks[number].enter_context(world.project.serving(log, **settings))

        def kill_one(request: str) -> None:
            number = len(requests) % 2
            if requests:
                start(1 - number)
            stacks[number].close()  # kills it
            requests.append(request.replace(world.url, "").replace(world.issuer, "provider "))

        start(0)
        start(1)
        report = steps_of(world.client("dora", "", "all"), kill_one)
    assert report["who"] == report["after_refresh"]
    assert report["who"]["id"] == "dora"
    assert json.loads(report["orders"][0])["sub"] == "dora"
    for request in ("POST /register", "GET /authorize", "POST /oauth/consent", "GET /oauth/callback", "POST /mcp"):
        assert request in requests
    assert requests.count("POST /token") == 2
    assert any(request.startswith("POST provider ") for request in requests), "the login"
    own = sum(" /" in request and "provider" not in request for request in requests)
    assert sum(served.values()) == own
    figure(f"one of two replicas was killed before each of {len(requests)} requests, of which {own} were to them")


@contextlib.contextmanager
def document_site(certificate: Path) -> Iterator[str]:
    """Serve a document about a client, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = {"client_id": url, "redirect_uris": ["http://127.0.0.1:1/callback"]}
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"https://{LOCAL}:{server.server_address[1]}/client.json"
        yield url
        server.shutdown()


@pytest.mark.release
def test_the_client_of_the_typescript_sdk_registers_or_has_a_document(world: World, certificate: Path) -> None:
    client = npm_packages("inspector", "@modelcontextprotocol/inspector@2.12.0", "node@22")
    command = (node(client), IN_PROJECT / "client_sign_in.mjs", client / "node_modules", f"{world.url}/mcp", "erin")
    with world.serving() as server, document_site(certificate) as document:
        for arguments in ((), (document,)):
            done = run(*command, *arguments, cwd=world.directory)
            assert done.returncode == 0, done.stderr + server.log()
            report = json.loads(done.stdout)
            assert (report["who"]["id"], report["who"]["client"]) == ("erin", report["client"])
            assert (report["client"] == document) is bool(arguments)


@pytest.mark.release
def test_chromium_signs_in_without_a_script(world: World, figure: Callable[[str], None]) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "Chromium is missing: apt-get install chromium"
    verifier = "v" * 64
    digest = hashlib.sha256(verifier.encode()).digest()
    with world.serving() as server:
        client = register(world, client_name="Claude", redirect_uris=["http://127.0.0.1:1/callback"])
        query = {
            "response_type": "code",
            "client_id": client,
            "redirect_uri": "http://127.0.0.1:1/callback",
            "state": "the state",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
        }
        url = f"{world.url}/authorize?{urlencode(query)}"
        picture = world.directory / "consent.png"
        script = IN_PROJECT / "browser_sign_in.py"
        done = run(world.project.python, script, chromium, url, "dave", picture, cwd=world.directory)
        assert done.returncode == 0, done.stderr + server.log()
        answer = parse_qs(urlsplit(json.loads(done.stdout)).query)
        assert (answer["state"], answer["iss"]) == (["the state"], [world.url])
        fields = {"grant_type": "authorization_code", "code": answer["code"][0], "client_id": client}
        fields |= {"redirect_uri": query["redirect_uri"], "code_verifier": verifier}
        assert form(world, "/token", **fields) == 200
    figure(f"Chromium signs in without a script; its picture of the consent page has {picture.stat().st_size} bytes")


@pytest.mark.acceptance
def test_check_proves_the_sign_in(world: World) -> None:
    environment = {name: str(value) for name, value in world.settings.items()}
    done = run(world.project.command, "--check", cwd=world.directory, **environment)
    assert f"ok: {world.issuer}" in done.stdout, done.stdout + done.stderr
    wrong = environment | {"PUBLIC_URL": "http://127.0.0.1:1"}
    done = run(world.project.command, "--check", cwd=world.directory, **wrong)
    assert "is http://127.0.0.1:1/oauth/callback a redirect URI" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
