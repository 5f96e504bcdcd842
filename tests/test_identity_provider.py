"""A real identity provider, npm's oidc-provider: its JWTs and opaque tokens, new keys, revocation, token exchange.

The provider has no token exchange of its own; `in_project/identity_provider.mjs` adds it through the hook for grants,
and checks the parameters that RFC 8693 demands.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest

from .live_servers import (
    IN_PROJECT,
    LOCAL,
    TOKEN,
    Project,
    Server,
    free_port,
    make_project,
    node,
    npm_packages,
    post,
    process,
    tool_call,
)
from .live_servers import status as status_of
from .support import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.acceptance]

JWT_RESOURCE, OPAQUE_RESOURCE = "https://mcp.example.com/mcp", "https://mcp.example.com/opaque"
ORDERS = "https://orders.example.com"


@dataclass
class Provider:
    """The identity provider in a process of its own."""

    packages: Path
    directory: Path
    port: int = field(default_factory=free_port)

    @property
    def issuer(self) -> str:
        return f"http://{LOCAL}:{self.port}"

    @contextlib.contextmanager
    def running(self, kid: str) -> Iterator[None]:
        """Run it until the block ends, with a new key of this id."""
        log = self.directory / f"{kid}.log"
        script = (IN_PROJECT / "identity_provider.mjs", self.packages / "node_modules", str(self.port), kid)
        with process([node(self.packages), *script], log, cwd=self.directory):
            path = "/.well-known/openid-configuration"
            wait_for(lambda: status_of(self.port, path) == 200, lambda: log.read_text("utf-8"))
            yield

    def post(self, path: str, client: str, **form: str) -> dict[str, Any]:
        credentials = f"{client}:{quote_plus(f'secret of {client}')}".encode()
        headers = {
            "authorization": f"Basic {base64.b64encode(credentials).decode()}",
            "content-type": "application/x-www-form-urlencoded",
        }
        with contextlib.closing(HTTPConnection(LOCAL, self.port, timeout=30)) as connection:
            connection.request("POST", path, urlencode(form), headers)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
        document: dict[str, Any] = json.loads(body or "{}")
        return document

    def token(self, user: str, resource: str = JWT_RESOURCE) -> str:
        form = {"grant_type": "urn:example:login", "user": user, "resource": resource, "scope": "orders:read"}
        return str(self.post("/token", "app", **form)["access_token"])


@dataclass
class Orders:
    """The upstream: it answers with the claims of the token that a request carries."""

    url: str = ""
    authorizations: list[str | None] = field(default_factory=list)


@pytest.fixture(scope="module")
def orders() -> Iterator[Orders]:
    upstream = Orders()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("authorization")
            upstream.authorizations.append(authorization)
            body = json.dumps(claims((authorization or "Bearer ..").removeprefix("Bearer "))).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        upstream.url = f"http://{LOCAL}:{server.server_address[1]}"
        yield upstream
        server.shutdown()


def claims(token: str) -> dict[str, Any]:
    """Return the claims of a JWT, unverified."""
    payload = token.split(".")[1]
    document: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)) or b"{}")
    return document


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Provider:
    packages = npm_packages("identity-provider", "oidc-provider@9.13.3", "node@22")
    return Provider(packages, tmp_path_factory.mktemp("provider"))


@pytest.fixture(scope="module")
def project(provider: Provider, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    directory = tmp_path_factory.mktemp("callers") / "project"
    return make_project(template, directory, "callers", upstream_auth="token_exchange", rate_limit_backend="memory")


@pytest.fixture
def settings(provider: Provider, orders: Orders) -> dict[str, object]:
    """The settings of a server that trusts the provider."""
    orders.authorizations.clear()
    return {
        "JWT_ISSUER": provider.issuer,
        "JWT_AUDIENCE": f"{JWT_RESOURCE},{OPAQUE_RESOURCE}",
        "INTROSPECTION_URL": f"{provider.issuer}/token/introspection",
        "INTROSPECTION_CLIENT_ID": "mcp-server",
        "INTROSPECTION_CLIENT_SECRET": "secret of mcp-server",
        "INTROSPECTION_CACHE_SECONDS": 1,
        "BASE_URL": orders.url,
        "UPSTREAM_TOKEN_URL": f"{provider.issuer}/token",
        "UPSTREAM_CLIENT_ID": "mcp-server",
        "UPSTREAM_CLIENT_SECRET": "secret of mcp-server",
        "UPSTREAM_SCOPE": "orders:read",
        "UPSTREAM_RESOURCE": ORDERS,
        "OTEL_SDK_DISABLED": "true",
    }


@pytest.fixture
def server(project: Project, provider: Provider, settings: dict[str, object], tmp_path: Path) -> Iterator[Server]:
    with provider.running("first"), project.serving(tmp_path / "server.log", **settings) as running:
        yield running


def call(server: Server, token: str, tool: str = "who") -> tuple[int, dict[str, Any]]:
    """Call a tool and return the HTTP status and the result, or the error."""
    status, body = post(server.port, tool_call(tool, {}), authorization=f"Bearer {token}")
    answer = json.loads(body)
    return status, answer.get("result", answer)


def test_both_kinds_of_its_tokens_and_static_ones_name_their_callers(server: Server, provider: Provider) -> None:
    for token in (provider.token("alice"), provider.token("alice", OPAQUE_RESOURCE)):
        status, result = call(server, token)
        assert status == 200, result
        assert result["structuredContent"] == {"id": "alice", "client": "app", "scopes": ["orders:read"], "tier": None}
    assert call(server, TOKEN)[1]["structuredContent"]["id"] == "token:tests"


def test_a_token_for_another_audience_is_rejected(server: Server, provider: Provider) -> None:
    status, error = call(server, provider.token("alice", ORDERS))
    assert (status, error["error"]["message"]) == (401, "The access token is for another audience.")


def test_a_new_key_takes_effect_without_a_restart(
    project: Project, provider: Provider, settings: dict[str, object], tmp_path: Path
) -> None:
    with contextlib.ExitStack() as running:
        with provider.running("first"):
            server = running.enter_context(project.serving(tmp_path / "server.log", **settings))
            assert call(server, provider.token("alice"))[0] == 200
            unused = provider.token("alice")
        with provider.running("second"):
            new = provider.token("alice")
            wait_for(lambda: call(server, new)[0] == 200, server.log)
            status, error = call(server, unused)
            assert (status, error["error"]["message"]) == (401, "The access token is signed with an unknown key.")


def test_a_revoked_token_is_rejected_soon(server: Server, provider: Provider) -> None:
    token = provider.token("alice", OPAQUE_RESOURCE)
    assert call(server, token)[0] == 200
    provider.post("/token/revocation", "app", token=token)
    wait_for(lambda: call(server, token)[0] == 401, server.log)


def test_each_caller_reaches_the_upstream_with_a_token_of_its_own(
    server: Server, provider: Provider, orders: Orders
) -> None:
    tokens = {user: provider.token(user) for user in ("alice", "bob")}
    for user in ("alice", "bob", "alice"):
        status, result = call(server, tokens[user], "orders")
        assert status == 200, result
        document = json.loads(result["content"][0]["text"])
        assert (document["sub"], document["aud"], document["client_id"]) == (user, ORDERS, "mcp-server")
    assert len(orders.authorizations) == 3
    assert len({*orders.authorizations}) == 2
    assert not any(token in str(orders.authorizations) for token in tokens.values())


def test_a_caller_whose_token_cannot_be_exchanged_never_reaches_the_upstream(
    server: Server, provider: Provider, orders: Orders
) -> None:
    for token in (TOKEN, provider.token("alice", OPAQUE_RESOURCE)):
        status, result = call(server, token, "orders")
        assert status == 200, result
        assert result["isError"]
    assert orders.authorizations == []
    assert provider.token("alice", OPAQUE_RESOURCE) not in server.log()
