"""Opaque tokens: the authorization server is asked about them (RFC 7662), here a stand-in on a real socket."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest
from mcp.server.mcpserver import Context

from clocks import Clock
from harness import DEADLINE_SECONDS, HAS_METRICS, Running, Serve, config, text_of, wait_for
from weather_station.production.caller import caller
from weather_station.production.config import ConfigError
from weather_station.production.inbound import auth_introspection
from weather_station.production.inbound.auth_introspection import MAX_RESPONSE_BYTES, MAX_UNKNOWN_TOKENS
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

AUDIENCE = "https://mcp.example.com/mcp"
ISSUER = "https://login.example.com"
CLIENT, SECRET = "mcp server", "s:cret+of the client"


class Introspector:
    """The endpoint. `tokens` maps tokens to responses: JSON, bytes, or a status; others are not active."""

    def __init__(self) -> None:
        self.tokens: dict[str, Any] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.responding = threading.Event()
        self.responding.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                outer.asked.append(form["token"][0])
                outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                outer.responding.wait(DEADLINE_SECONDS)
                response = outer.tokens.get(form["token"][0], {"active": False})
                body = response if isinstance(response, bytes) else json.dumps(response).encode()
                self.send_response(response if isinstance(response, int) else 200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/introspect?realm=a"

    def issue(self, token: str, **changed: Any) -> str:
        claims = {"active": True, "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "client_id": "app"} | changed
        self.tokens[token] = {name: value for name, value in claims.items() if value is not None}
        return token

    def stop(self) -> None:
        self.responding.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def issuer() -> Iterator[Introspector]:
    introspector = Introspector()
    yield introspector
    introspector.stop()


def settings(issuer: Introspector, **changed: Any) -> dict[str, Any]:
    return {
        "auth_methods": "introspection",
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "introspection_url": issuer.url,
        "introspection_client_id": CLIENT,
        "introspection_client_secret": SECRET,
    } | changed


@pytest.fixture
def protected(serve: Serve, issuer: Introspector) -> Serve:
    """`with protected() as server:` runs a server that asks the stand-in."""
    return lambda **changed: serve(add_who, **settings(issuer, **changed))


def add_who(server: ProductionServer) -> None:
    async def who(ctx: Context[Any, Any]) -> dict[str, Any]:
        sender = caller(ctx)
        return {"id": sender.id, "client": sender.client, "scopes": sorted(sender.scopes), "tenant": sender.tenant}

    server.tool()(who)


def call(server: Running, token: str, **headers: str) -> httpx2.Response:
    return server.post(server.request("who"), authorization=f"Bearer {token}", **headers)


def test_an_active_token_names_its_caller(protected: Serve, issuer: Introspector) -> None:
    with protected(jwt_scope_claims="scope", jwt_tenant_claim="org") as server:
        token = issuer.issue("opaque", scope="b a", org="acme", exp=int(time.time()) + 60)
        found = json.loads(text_of(server.call("who", authorization=f"Bearer {token}")))
        assert found == {"id": "alice", "client": "app", "scopes": ["a", "b"], "tenant": "acme"}
        issuer.issue("machine", sub=None, iss=None, aud=["x", AUDIENCE])
        found = json.loads(text_of(server.call("who", authorization="Bearer machine")))
        assert found["id"] == "client:app"


def test_the_server_authenticates_as_rfc_6749_says(protected: Serve, issuer: Introspector) -> None:
    with protected() as server:
        assert call(server, issuer.issue("opaque")).status_code == 200
    credentials = base64.b64decode(issuer.headers[0]["authorization"].removeprefix("Basic ")).decode()
    assert credentials == "mcp+server:s%3Acret%2Bof+the+client"


@pytest.mark.parametrize(
    "changed",
    [
        {"active": False},
        {"active": "true"},
        {"active": None},
        {"aud": "https://other.example.com"},
        {"aud": None},
        {"aud": [[AUDIENCE]]},
        {"iss": "https://evil.example.com"},
        {"exp": 1},
        {"exp": "soon"},
        {"exp": True},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"sub": None, "client_id": None},
    ],
)
def test_any_other_token_gets_401(protected: Serve, issuer: Introspector, changed: dict[str, Any]) -> None:
    with protected() as server:
        response = call(server, issuer.issue("opaque", **changed))
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        assert "resource_metadata=" in response.headers["www-authenticate"]
        assert call(server, issuer.issue("good")).status_code == 200


def test_a_token_without_a_required_scope_gets_403(protected: Serve, issuer: Introspector) -> None:
    with protected(jwt_required_scopes="mcp") as server:
        response = call(server, issuer.issue("opaque", scope="other"))
        assert response.status_code == 403
        assert 'scope="mcp"' in response.headers["www-authenticate"]


def test_an_active_token_is_asked_about_once_but_never_counts_beyond_its_end(
    protected: Serve, issuer: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(time.time())
    monkeypatch.setattr(auth_introspection, "time", clock)
    with protected() as server:
        token = issuer.issue("opaque", exp=int(clock.now) + 10)
        assert [call(server, token).status_code for _ in range(3)] == [200] * 3
        assert len(issuer.asked) == 1
        clock.now += 11
        assert call(server, token).status_code == 401
        assert len(issuer.asked) == 2


def test_a_revoked_token_is_rejected_when_its_response_is_old(
    protected: Serve, issuer: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(time.time())
    monkeypatch.setattr(auth_introspection, "time", clock)
    with protected(introspection_cache_seconds=5) as server:
        token = issuer.issue("opaque")
        assert call(server, token).status_code == 200
        issuer.tokens.clear()
        clock.now += 6
        assert call(server, token).status_code == 401


def test_many_requests_with_a_new_token_share_one_response(protected: Serve, issuer: Introspector) -> None:
    with protected() as server, ThreadPoolExecutor(20) as pool:
        token = issuer.issue("opaque")
        issuer.responding.clear()
        answers = [pool.submit(call, server, token) for _ in range(20)]
        wait_for(lambda: issuer.asked)
        wait_for(lambda: sum(answer.running() for answer in answers) == 20)
        issuer.responding.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert len(issuer.asked) == 1


def test_an_unknown_token_is_asked_about_once(protected: Serve, issuer: Introspector) -> None:
    with protected() as server:
        assert [call(server, "unknown").status_code for _ in range(3)] == [401] * 3
        assert issuer.asked == ["unknown"]


def test_unknown_tokens_are_limited_for_each_address(protected: Serve, issuer: Introspector) -> None:
    with protected(trusted_proxies="127.0.0.1") as server, ThreadPoolExecutor(16) as pool:
        known = issuer.issue("known")
        assert call(server, known, x_forwarded_for="198.51.100.1").status_code == 200
        attack = [f"guess-{number}" for number in range(MAX_UNKNOWN_TOKENS * 3)]
        statuses = [*pool.map(lambda token: call(server, token, x_forwarded_for="198.51.100.1").status_code, attack)]
        assert sorted({*statuses}) == [401, 429]
        assert len(issuer.asked) == 1 + MAX_UNKNOWN_TOKENS
        response = call(server, "one-more", x_forwarded_for="198.51.100.1")
        assert response.status_code == 429
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert call(server, known, x_forwarded_for="198.51.100.1").status_code == 200
        assert call(server, issuer.issue("other"), x_forwarded_for="198.51.100.2").status_code == 200
        if HAS_METRICS:
            assert server.metrics().value("mcp_token_introspections_total", outcome="inactive") == MAX_UNKNOWN_TOKENS


@pytest.mark.parametrize("bound", ["MAX_CACHED_TOKENS", "MAX_ADDRESSES"])
def test_the_cache_is_bounded(
    protected: Serve, issuer: Introspector, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(auth_introspection, bound, 3)
    with protected(trusted_proxies="127.0.0.1") as server:
        for number in range(8):
            address = f"198.51.100.{number}"
            assert call(server, f"unknown-{number}", x_forwarded_for=address).status_code == 401
            assert call(server, issuer.issue(f"known-{number}"), x_forwarded_for=address).status_code == 200


@pytest.mark.parametrize(
    "response", [500, 401, b"<html>", b"[]", b"[" * 100_000, b" " * (MAX_RESPONSE_BYTES + 1)], ids=lambda r: str(r)[:9]
)
def test_without_a_usable_response_a_new_token_gets_503(
    protected: Serve, issuer: Introspector, response: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_introspection, "RETRY_SECONDS", 0.0)
    with protected() as server:
        known = issuer.issue("known")
        assert call(server, known).status_code == 200
        issuer.tokens["new"] = response
        rejected = call(server, "new")
        assert rejected.status_code == 503
        assert int(rejected.headers["retry-after"]) >= 1
        assert server.get("/health").json()["problems"] == ["introspection"]
        assert call(server, known).status_code == 200
        issuer.issue("new")
        assert call(server, "new").status_code == 200
        assert server.get("/health").json()["status"] == "healthy"


def test_an_outage_costs_one_request_at_a_time_and_counts_for_no_limit(
    protected: Serve, issuer: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_introspection, "RETRY_SECONDS", 3600.0)
    with protected() as server:
        issuer.tokens["new"] = 500
        tokens = ["new", *(f"token-{number}" for number in range(MAX_UNKNOWN_TOKENS * 2))]
        assert {call(server, token).status_code for token in tokens} == {503}
        assert issuer.asked == ["new"]


def test_an_endpoint_that_hangs_is_given_up(
    protected: Serve, issuer: Introspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_introspection, "TIMEOUT_SECONDS", 0.3)
    issuer.responding.clear()
    with protected() as server:
        assert call(server, issuer.issue("opaque")).status_code == 503


def test_a_token_shows_in_no_log_line(
    protected: Serve, issuer: Introspector, capfd: pytest.CaptureFixture[str]
) -> None:
    issuer.tokens["opaque-token-0123456789"] = 500
    with protected() as server:
        call(server, "opaque-token-0123456789")
    said = capfd.readouterr().err
    assert "introspection of a token failed" in said
    assert "opaque-token-0123456789" not in said


@contextmanager
def rejected() -> Iterator[list[str]]:
    problems: list[str] = []
    with pytest.raises(ConfigError) as caught:
        yield problems
    problems += caught.value.problems


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"introspection_client_id": ""}, "INTROSPECTION_URL: needs INTROSPECTION_CLIENT_ID"),
        ({"introspection_client_secret": None}, "INTROSPECTION_URL: needs INTROSPECTION_CLIENT_ID"),
        ({"jwt_issuer": None}, "JWT_ISSUER: must be set with "),
        (
            {"jwt_issuer": None, "jwt_audience": (), "auth_methods": ()},
            "JWT_ISSUER: must be set with INTROSPECTION_URL",
        ),
        ({"jwt_audience": ()}, "JWT_AUDIENCE: must be set"),
    ],
)
def test_an_incomplete_configuration_stops_the_start(
    issuer: Introspector, changed: dict[str, Any], problem: str
) -> None:
    with rejected() as problems:
        create_server(config(**settings(issuer, **changed)))
    assert problems[0].startswith(problem)


def test_an_opaque_token_is_asked_about_beside_jwts(protected: Serve, issuer: Introspector) -> None:
    with protected(auth_methods=(), jwt_jwks_url=issuer.url) as server:
        assert call(server, issuer.issue("opaque")).status_code == 200
        assert call(server, "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.c2ln").status_code == 401
        assert issuer.asked == ["opaque"]
