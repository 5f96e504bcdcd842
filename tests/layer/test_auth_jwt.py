"""JWT access tokens, with an authorization server on a real socket that rotates its keys, hangs and dies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from mcp import Client
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.mcpserver import Context

from clocks import Clock
from harness import DEADLINE_SECONDS, Running, Serve, config, modern, text_of, wait_for
from weather_station.production.caller import caller
from weather_station.production.config import ConfigError, about
from weather_station.production.inbound import auth_jwt, issuer_keys
from weather_station.production.inbound.auth_jwt import LEEWAY_SECONDS
from weather_station.production.inbound.issuer_keys import MAX_DOCUMENT_BYTES, signing_keys
from weather_station.production.registry import Registry
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import drain, startup
from weather_station.server import create_server

AUDIENCE = "https://mcp.example.com/mcp"
RSA = rsa.generate_private_key(65537, 2048)
WEAK_RSA = rsa.generate_private_key(65537, 1024)  # noqa: S505 (shown to be refused)
P256, OTHER_P256 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()


def jwk(kid: str | None, key: Any, **members: Any) -> dict[str, Any]:
    kinds: dict[Any, Any] = {
        rsa.RSAPrivateKey: RSAAlgorithm,
        ec.EllipticCurvePrivateKey: ECAlgorithm,
        ed25519.Ed25519PrivateKey: OKPAlgorithm,
    }
    algorithm = next(algorithm for kind, algorithm in kinds.items() if isinstance(key, kind))
    entry: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    entry.pop("key_ops", None)
    return entry | ({} if kid is None else {"kid": kid}) | members


class Issuer:
    """Authorization server on a real socket. `documents` maps paths to what it serves."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.responding = threading.Event()
        self.responding.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                issuer.responding.wait(DEADLINE_SECONDS)
                self.respond(issuer.documents.get(self.path))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                issuer.requests.append(f"{self.path} {form.get('resource')}")
                token = issuer.token(scope=form.get("scope", [""])[0], client_id="machine", sub="machine")
                self.respond({"access_token": token, "token_type": "Bearer", "expires_in": 300})

            def respond(self, document: Any) -> None:
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(404 if document is None else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Log nothing."""

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._start(self._server)
        self.url = f"http://127.0.0.1:{self.port}"
        self.jwks_url = f"{self.url}/keys"
        self.audience = AUDIENCE
        self.documents: dict[str, Any] = {}
        self.serve_keys(jwk("first", P256))

    def _start(self, server: ThreadingHTTPServer) -> None:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve_keys(self, *keys: dict[str, Any]) -> None:
        self.documents["/keys"] = {"keys": keys}

    def die(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def restart(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._server.daemon_threads = True
        self._start(self._server)

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.url, "aud": self.audience, "sub": "alice", "client_id": "app", "exp": now + 300} | changed
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self,
        key: Any = P256,
        alg: str = "ES256",
        kid: str | None = "first",
        header: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        headers = ({} if kid is None else {"kid": kid}) | (header or {})
        return jwt.encode(self.claims(**claims), key, alg, headers=headers)


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    issuer = Issuer()
    yield issuer
    issuer.responding.set()
    issuer.die()


@pytest.fixture
def protected(serve: Serve, issuer: Issuer) -> Serve:
    """`with protected() as server:` runs a server that trusts the issuer."""

    def start(**settings: Any) -> Any:
        ours = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
        return serve(add_who, **(ours | settings))

    return start


def add_who(server: ProductionServer) -> None:
    async def who(ctx: Context[Any, Any]) -> dict[str, Any]:
        token = get_access_token()
        assert token is not None
        sender = caller(ctx)
        fields = token.model_dump(include={"client_id", "subject", "scopes", "resource"})
        return {"caller": sender.id, "issuer": sender.issuer, "tier": sender.tier, "tenant": sender.tenant, **fields}

    server.tool()(who)


def call(server: Running, token: str) -> httpx2.Response:
    return server.post(server.request("health_check"), authorization=f"Bearer {token}")


def who(server: Running, token: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text_of(server.call("who", authorization=f"Bearer {token}")))
    return found


# --- Tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "alg"),
    [(RSA, "RS256"), (RSA, "RS512"), (RSA, "PS256"), (P256, "ES256"), (P384, "ES384"), (ED25519, "EdDSA")],
    ids=["RS256", "RS512", "PS256", "ES256", "ES384", "EdDSA"],
)
def test_a_token_signed_by_the_issuer_is_accepted(protected: Serve, issuer: Issuer, key: Any, alg: str) -> None:
    issuer.serve_keys(jwk("a", key))
    with protected() as server:
        assert call(server, issuer.token(key, alg, "a")).status_code == 200


def test_tools_see_the_subject_the_client_and_the_scopes_of_the_token(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        found = who(server, issuer.token(scope="a b"))
        assert (found["caller"], found["subject"], found["client_id"]) == ("alice", "alice", "app")
        assert (found["scopes"], found["resource"]) == (["a", "b"], AUDIENCE)
        assert who(server, issuer.token(sub=None))["caller"] == "client:app"
        assert who(server, issuer.token(client_id=None, azp="azp"))["client_id"] == "azp"
        assert who(server, issuer.token(client_id=None))["client_id"] == "alice"
        assert who(server, issuer.token(scp=["x", "y"]))["scopes"] == ["x", "y"]
        assert who(server, issuer.token(sub="10.0.0.1"))["caller"] == "account:10.0.0.1"
        assert call(server, issuer.token(sub=None, client_id=None)).status_code == 401


@pytest.mark.parametrize(
    "claims",
    [
        {"typ": "Bearer", "nonce": "n"},  # Keycloak before version 24
        {"token_use": "access"},
        {"header": {"typ": "at+jwt"}, "nonce": "n"},
        {"header": {"typ": "application/AT+JWT"}},
        {"header": {"typ": "JWT"}},
    ],
)
def test_the_access_tokens_of_other_issuers_are_accepted(
    protected: Serve, issuer: Issuer, claims: dict[str, Any]
) -> None:
    with protected() as server:
        assert call(server, issuer.token(**claims)).status_code == 200


@pytest.mark.parametrize(
    ("setting", "claims", "scopes"),
    [
        ("", {"scope": "a b", "scp": ["c"]}, {"a", "b", "c"}),
        ("", {"scope": None, "scp": "a b"}, {"a", "b"}),
        ("roles,scp", {"scp": "read", "roles": ["Admin", 7, ""]}, {"read", "Admin"}),
        ("permissions", {"permissions": ["read:orders"], "scope": "openid"}, {"read:orders"}),
        ("realm_access.roles", {"realm_access": {"roles": ["editor"]}}, {"editor"}),
        ("realm_access.roles", {"realm_access": ["editor"]}, set()),
        ("cognito:groups", {"cognito:groups": ["admins"]}, {"admins"}),
        ("https://example.com/roles", {"https://example.com/roles": ["x"]}, {"x"}),
    ],
)
def test_scopes_come_from_the_configured_claims(
    protected: Serve, issuer: Issuer, setting: str, claims: dict[str, Any], scopes: set[str]
) -> None:
    with protected(**({"jwt_scope_claims": setting} if setting else {})) as server:
        assert set(who(server, issuer.token(**claims))["scopes"]) == scopes


def test_tier_and_tenant_come_from_the_configured_claims(protected: Serve, issuer: Issuer) -> None:
    with protected(jwt_tier_claim="app.plan", jwt_tenant_claim="tid") as server:
        found = who(server, issuer.token(app={"plan": "gold"}, tid=["acme"]))
        assert (found["tier"], found["tenant"]) == ("gold", "acme")
        found = who(server, issuer.token(app="gold", tid=7))
        assert (found["tier"], found["tenant"]) == (None, None)


def test_a_client_and_a_subject_of_the_same_name_are_two_callers(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        ids = [
            who(server, issuer.token(**claims))["caller"]
            for claims in (
                {"sub": "app"},
                {"sub": None, "client_id": "app"},
                {"sub": "client:app"},
                {"sub": "account:client:app"},
                {"sub": f"{issuer.url}#app"},
            )
        ]
    assert len(set(ids)) == 5, ids


def test_one_of_several_audiences_suffices(protected: Serve, issuer: Issuer) -> None:
    with protected(jwt_audience=f"{AUDIENCE},api://weather") as server:
        assert who(server, issuer.token(aud="api://weather"))["resource"] == "api://weather"
        assert who(server, issuer.token(aud=["x", AUDIENCE]))["resource"] == AUDIENCE
        assert call(server, issuer.token(aud="x")).status_code == 401


@pytest.fixture
def second() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.serve_keys(jwk("first", OTHER_P256))
    issuer.documents["/.well-known/openid-configuration"] = {"issuer": issuer.url, "jwks_uri": issuer.jwks_url}
    yield issuer
    issuer.die()


def test_each_of_several_issuers_signs_for_itself_only(protected: Serve, issuer: Issuer, second: Issuer) -> None:
    with protected(jwt_issuers=second.url) as server:
        assert who(server, issuer.token())["caller"] == "alice"
        assert who(server, second.token(OTHER_P256))["caller"] == f"{second.url}#alice"
        assert who(server, second.token(OTHER_P256))["issuer"] == second.url
        assert call(server, issuer.token(iss=second.url)).status_code == 401
        assert call(server, second.token(OTHER_P256, iss=issuer.url)).status_code == 401
        document = server.get("/.well-known/oauth-protected-resource").json()
        assert document["authorization_servers"] == [issuer.url, second.url]
        second.die()
        assert call(server, issuer.token()).status_code == 200


def test_a_file_describes_issuers_that_differ(protected: Serve, issuer: Issuer, second: Issuer, tmp_path: Path) -> None:
    file = tmp_path / "issuers.toml"
    file.write_text(
        f"""
        [[issuers]]
        issuer = "{second.url}"
        jwks_url = "{second.jwks_url}"
        audience = ["api://second"]
        scope_claims = ["roles"]
        tenant_claim = "org"
        required_scopes = ["mcp"]
        """,
        "utf-8",
    )
    with protected(jwt_issuers_file=file) as server:
        token = second.token(OTHER_P256, aud="api://second", roles=["mcp"], org="acme", scope="x")
        assert who(server, token) | {"tenant": "acme", "scopes": ["mcp"]} == who(server, token)
        assert call(server, second.token(OTHER_P256, roles=["mcp"])).status_code == 401
        assert call(server, second.token(OTHER_P256, aud="api://second", scope="mcp")).status_code == 403
        assert call(server, issuer.token()).status_code == 200


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must have entries [[issuers]]"),
        ("[[issuers]]\nissuer = 'https://a'\n[other]", "must have entries [[issuers]] and nothing else"),
        ("issuers = [1]", "must have entries"),
        ("[[issuers", "is not valid TOML"),
        ("[[issuers]]\nissuer = 'a'", "entry 1: must be the issuer's URL"),
        ("[[issuers]]\nissuer = 'https://a'\naudience = 'x'", "entry 1: audience: Input should be"),
        ("[[issuers]]\nissuer = 'https://a'\naudiences = ['x']", "entry 1: audiences: Extra inputs"),
        (
            "[[issuers]]\nissuer = 'https://a'\n[[issuers]]\nissuer = 'https://a'",
            "entry 2: the issuer https://a occurs",
        ),
    ],
)
def test_a_mistake_in_the_file_stops_the_start_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "issuers.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        create_server(config(jwt_issuers_file=file, jwt_audience=AUDIENCE))
    assert caught.value.problems[0].startswith("JWT_ISSUERS_FILE: ")
    assert problem in caught.value.problems[0]


def test_settings_that_end_with_a_line_break_count_without_it(
    serve: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("JWT_ISSUER", issuer.url), ("JWT_AUDIENCE", AUDIENCE), ("JWT_JWKS_URL", issuer.jwks_url)):
        monkeypatch.setenv(name, f"{value}\r\n")
    with serve(add_who) as server:
        assert call(server, issuer.token()).status_code == 200


def forged(issuer: Issuer, alg: str) -> str:
    """Return a token that is signed with the public key as a shared secret, or not at all."""
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    secret = P256.public_key().public_bytes(*form)

    def part(value: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part({"alg": alg, "kid": "first", "typ": "JWT"}) + b"." + part(issuer.claims())
    signature = b"" if alg == "none" else hmac.digest(secret, signed, hashlib.sha256)
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda issuer: issuer.token(exp=int(time.time()) - LEEWAY_SECONDS - 1), "expired"),
        (lambda issuer: issuer.token(exp=None), "lacks one of the claims"),
        (lambda issuer: issuer.token(aud=None), "lacks one of the claims"),
        (lambda issuer: issuer.token(iss=None), "lacks one of the claims"),
        (lambda issuer: issuer.token(aud="https://other.example.com"), "another audience"),
        (lambda issuer: issuer.token(aud=AUDIENCE + "/"), "another audience"),
        (lambda issuer: issuer.token(iss="https://evil.example.com"), "another issuer"),
        (lambda issuer: issuer.token(iss=issuer.url + "/"), "another issuer"),
        (lambda issuer: issuer.token(nbf=int(time.time()) + LEEWAY_SECONDS + 1000), "not valid yet"),
        (lambda issuer: issuer.token(OTHER_P256), "is not valid"),
        (lambda issuer: issuer.token(RSA, "RS256"), "unknown key"),
        (lambda issuer: issuer.token(kid="second"), "unknown key"),
        (lambda issuer: forged(issuer, "HS256"), "accepted algorithm"),
        (lambda issuer: forged(issuer, "none"), "accepted algorithm"),
        (lambda issuer: issuer.token()[:-6] + "AAAAAA", "is not valid"),
        (lambda issuer: re.sub(r"\.[^.]+\.", ".e30.", issuer.token()), "lacks one of the claims"),
        (lambda issuer: "a.b.c", "not a JWT"),
        (lambda issuer: "opaque-token", "not a JWT"),
        (lambda issuer: "..", "not a JWT"),
        (lambda issuer: "W10.e30.", "not a JWT"),
        (lambda issuer: base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.", "not a JWT"),
        (lambda issuer: f"eyJhbGciOiJFUzI1NiJ9.{base64.urlsafe_b64encode(b'[' * 9000).decode()}.", "not a JWT"),
        (lambda issuer: re.sub(r"\.[^.]+\.", ".eyJpc3MiOltdfQ.", issuer.token()), "another issuer"),
        (lambda issuer: issuer.token(nonce="n"), "no access token"),
        (lambda issuer: issuer.token(at_hash="h"), "no access token"),
        (lambda issuer: issuer.token(typ="ID"), "no access token"),
        (lambda issuer: issuer.token(typ="Refresh"), "no access token"),
        (lambda issuer: issuer.token(token_use="id"), "no access token"),  # noqa: S106 (a claim)
        (lambda issuer: issuer.token(header={"typ": "logout+jwt"}), "no access token"),
        (lambda issuer: issuer.token(events={"http://schemas.openid.net/event/backchannel-logout": {}}), "no access"),
        (lambda issuer: issuer.token(sub="alice\n"), "unprintable"),
        (lambda issuer: issuer.token(sub="\ud800"), "unprintable"),
    ],
)
def test_any_other_token_gets_401_with_the_reason(
    protected: Serve, issuer: Issuer, make: Callable[[Issuer], str], reason: str
) -> None:
    with protected() as server:
        response = call(server, make(issuer))
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        assert reason in response.json()["error"]["message"]
        assert call(server, issuer.token()).status_code == 200


@pytest.mark.parametrize("algorithm", [[], {}, 1, None])
def test_an_algorithm_that_is_not_a_string_gets_401(protected: Serve, issuer: Issuer, algorithm: Any) -> None:
    _, claims, signature = issuer.token().split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).decode().rstrip("=")
    with protected() as server:
        response = call(server, f"{header}.{claims}.{signature}")
    assert response.status_code == 401
    assert "invalid_token" in response.headers["www-authenticate"]


def test_clocks_may_differ_by_the_leeway(protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_jwt, "LEEWAY_SECONDS", 3600)
    with protected() as server:
        now = int(time.time())
        assert call(server, issuer.token(exp=now - 1800)).status_code == 200
        assert call(server, issuer.token(nbf=now + 1800)).status_code == 200


@pytest.mark.parametrize("granted", [{}, {"scope": "mcp:read"}, {"scp": ["mcp:read"]}, {"scope": "mcp:read mcp:calls"}])
def test_a_token_without_a_required_scope_gets_403_with_the_scopes(
    protected: Serve, issuer: Issuer, granted: dict[str, Any]
) -> None:
    with protected(jwt_required_scopes="mcp:read,mcp:call") as server:
        response = call(server, issuer.token(**granted))
        assert response.status_code == 403
        header = response.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in header
        assert 'scope="mcp:read mcp:call"' in header
        assert "mcp:call" in response.json()["error"]["message"]
        assert call(server, issuer.token(scope="mcp:call mcp:read x")).status_code == 200
        assert call(server, issuer.token(scp=["mcp:call", "mcp:read"])).status_code == 200


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signature was verified."""
    tokens: list[str] = []
    decode = jwt.decode

    def counted(token: Any, *args: Any, **options: Any) -> Any:
        tokens.append(token)
        return decode(token, *args, **options)

    monkeypatch.setattr(jwt, "decode", counted)
    return tokens


def test_a_token_is_verified_once_until_it_expires(
    protected: Serve, issuer: Issuer, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(time.time())
    monkeypatch.setattr(auth_jwt, "time", clock)
    monkeypatch.setattr(auth_jwt, "LEEWAY_SECONDS", 0)
    monkeypatch.setattr(auth_jwt, "CACHE_SECONDS", 7200.0)
    token = issuer.token(exp=int(clock.now) + 3600)
    with protected() as server:
        assert [call(server, token).status_code for _ in range(5)] == [200] * 5
        clock.now += 3590
        assert call(server, token).status_code == 200
        assert len(verified) == 1
        clock.now += 20
        call(server, token)
        assert len(verified) == 2


def test_an_open_stream_ends_when_its_token_expires(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(auth_jwt, "LEEWAY_SECONDS", 0)
    message, own = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    headers = own | {"authorization": f"Bearer {issuer.token(exp=int(time.time()) + 2)}"}
    with protected() as server, server.client.stream("POST", server.url, json=message, headers=headers) as stream:
        assert stream.status_code == 200
        assert [*stream.iter_lines()]  # to its end
        assert call(server, issuer.token()).status_code == 200


def test_a_bounded_number_of_tokens_is_remembered(
    protected: Serve, issuer: Issuer, verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "MAX_CACHED_TOKENS", 3)
    with protected() as server:
        tokens = [issuer.token(jti=str(number), exp=int(time.time()) + 3600) for number in range(5)]
        assert {call(server, token).status_code for token in tokens + tokens[-3:]} == {200}
        assert len(verified) == 5
        assert call(server, tokens[0]).status_code == 200
        assert len(verified) == 6


# --- Keys -----------------------------------------------------------------------------------------------------------


def test_a_new_key_is_accepted_at_once_and_a_removed_one_is_rejected(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "CACHE_SECONDS", 0.0)
    with protected() as server:
        old = issuer.token()
        assert call(server, old).status_code == 200
        issuer.serve_keys(jwk("second", OTHER_P256))
        assert call(server, issuer.token(OTHER_P256, kid="second")).status_code == 200
        assert call(server, old).status_code == 401
        assert len(issuer.requests) <= 3


def test_known_keys_verify_while_new_ones_are_fetched(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "CACHE_SECONDS", 0.0)
    monkeypatch.setattr(issuer_keys, "FETCH_TIMEOUT_SECONDS", 3600.0)
    with protected() as server:
        assert call(server, issuer.token()).status_code == 200
        monkeypatch.setattr(issuer_keys, "REFRESH_SECONDS", 0.0)
        issuer.responding.clear()
        issuer.serve_keys(jwk("second", OTHER_P256))
        # A request that waited for the issuer would have no response until the issuer responds.
        assert [call(server, issuer.token()).status_code for _ in range(5)] == [200] * 5
        wait_for(lambda: len(issuer.requests) == 2)
        issuer.responding.set()
        wait_for(lambda: call(server, issuer.token()).status_code == 401)


def test_invented_key_ids_cause_no_request_to_the_issuer(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 3600.0)
    with protected() as server:
        assert len(issuer.requests) == 1
        with ThreadPoolExecutor(8) as pool:
            tokens = [issuer.token(kid=f"invented-{number}") for number in range(200)]
            assert set(pool.map(lambda token: call(server, token).status_code, tokens)) == {401}
        assert len(issuer.requests) == 1
        assert call(server, issuer.token()).status_code == 200


def test_the_keys_are_fetched_once_for_many_waiting_requests(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    issuer.die()
    with protected() as server, ThreadPoolExecutor(20) as pool:
        issuer.responding.clear()
        issuer.restart()
        answers = [pool.submit(call, server, issuer.token(jti=str(number))) for number in range(20)]
        wait_for(lambda: issuer.requests)
        wait_for(lambda: sum(answer.running() for answer in answers) == 20)
        issuer.responding.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert len(issuer.requests) == 1


def test_a_server_without_keys_responds_503_and_recovers(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 1.0)
    issuer.die()
    with protected() as server:
        response = call(server, issuer.token())
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert "authorization server" in response.json()["error"]["message"]
        health = server.get("/health").json()
        assert health["status"] == "degraded"
        assert health["problems"] == ["issuer_keys"]
        assert server.get("/readyz").status_code == 200
        issuer.restart()
        wait_for(lambda: call(server, issuer.token()).status_code == 200)
        assert server.get("/health").json()["status"] == "healthy"


def test_known_keys_survive_an_issuer_that_dies_or_serves_nonsense(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(issuer_keys, "REFRESH_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "CACHE_SECONDS", 0.0)
    nonsense: list[Any] = [None, {}, {"keys": []}, {"keys": "no"}, [], b"<html>", b"[" * 100_000]
    nonsense.append({"keys": [jwk("first", OTHER_P256)], "padding": "x" * MAX_DOCUMENT_BYTES})
    with protected() as server:
        for document in nonsense:
            issuer.documents["/keys"] = document
            issuer.requests.clear()
            for _ in range(3):
                assert call(server, issuer.token()).status_code == 200
                wait_for(lambda: call(server, issuer.token()).status_code == 200 and issuer.requests)
        issuer.die()
        for _ in range(3):
            assert call(server, issuer.token()).status_code == 200


def test_a_fetch_from_an_issuer_that_hangs_is_given_up(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "FETCH_TIMEOUT_SECONDS", 0.3)
    issuer.responding.clear()
    with protected() as server:
        assert call(server, issuer.token()).status_code == 503


def test_only_keys_that_can_verify_are_used() -> None:
    keys = [
        jwk("rsa", RSA, alg="RS256"),
        jwk("any-rsa", RSA, use="sig"),
        jwk("p256", P256),
        jwk("weak", WEAK_RSA),
        jwk("encryption", RSA, use="enc"),
        jwk("mismatch", RSA, alg="ES256"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA", "kid": "curve"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "broken"},
        {"kty": "RSA", "kid": "empty"},
        {"kty": ["RSA"], "crv": {}, "kid": 7},
        "no key",
    ]
    found = {key.kid: key.algorithms for key in signing_keys({"keys": keys})}
    assert set(found) == {"rsa", "any-rsa", "p256"}
    assert found["rsa"] == ("RS256",)
    assert found["p256"] == ("ES256",)


def test_a_private_key_published_by_mistake_is_used_as_its_public_half(protected: Serve, issuer: Issuer) -> None:
    issuer.serve_keys(json.loads(RSAAlgorithm.to_jwk(RSA)) | {"kid": "first"})
    with protected() as server:
        assert call(server, issuer.token(RSA, "RS256")).status_code == 200


@pytest.mark.parametrize(
    "keys",
    [
        [jwk(None, P256)],
        [jwk(None, RSA), jwk(None, OTHER_P256), jwk(None, P256)],
        [jwk("first", OTHER_P256), jwk("second", P256)],
    ],
    ids=["one", "without-ids", "with-ids"],
)
def test_a_token_without_a_key_id_is_verified_with_every_key_of_its_algorithm(
    protected: Serve, issuer: Issuer, keys: list[dict[str, Any]]
) -> None:
    issuer.serve_keys(*keys)
    with protected() as server:
        assert call(server, issuer.token(kid=None)).status_code == 200
        assert call(server, issuer.token(P384, "ES384", kid=None)).status_code == 401


def test_a_key_without_an_id_can_be_that_of_any_token(protected: Serve, issuer: Issuer) -> None:
    issuer.serve_keys(jwk(None, P256), jwk("other", OTHER_P256))
    with protected() as server:
        assert call(server, issuer.token(kid="anything")).status_code == 200
        assert call(server, issuer.token(kid="other")).status_code == 401


def test_two_keys_of_one_id_differ_by_their_algorithm(protected: Serve, issuer: Issuer) -> None:
    issuer.serve_keys(jwk("first", RSA, alg="RS256"), jwk("first", RSA, alg="PS256"), jwk("first", P256))
    with protected() as server:
        for key, alg in ((RSA, "RS256"), (RSA, "PS256"), (P256, "ES256")):
            assert call(server, issuer.token(key, alg)).status_code == 200, alg
        assert call(server, issuer.token(RSA, "RS512")).status_code == 401


@pytest.mark.parametrize("kid", [None, "first"])
def test_a_key_without_an_id_can_be_replaced(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch, kid: str | None
) -> None:
    monkeypatch.setattr(issuer_keys, "MIN_FETCH_INTERVAL_SECONDS", 0.0)
    issuer.serve_keys(jwk(None, OTHER_P256))
    with protected() as server:
        assert call(server, issuer.token(kid=kid)).status_code == 401
        issuer.serve_keys(jwk(None, P256))
        assert call(server, issuer.token(kid=kid)).status_code == 200


def test_the_url_of_the_keys_may_have_a_query(protected: Serve, issuer: Issuer) -> None:
    issuer.documents["/keys?appid=1234"] = issuer.documents.pop("/keys")
    with protected(jwt_jwks_url=f"{issuer.url}/keys?appid=1234") as server:
        assert call(server, issuer.token()).status_code == 200


# --- Discovery and metadata -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/tenant/.well-known/openid-configuration", "/.well-known/oauth-authorization-server/tenant"]
)
def test_the_keys_are_found_through_the_metadata_of_the_issuer(protected: Serve, issuer: Issuer, path: str) -> None:
    tenant = f"{issuer.url}/tenant"
    issuer.documents[path] = {"issuer": tenant, "jwks_uri": issuer.jwks_url}
    with protected(jwt_issuer=tenant, jwt_jwks_url=None) as server:
        assert call(server, issuer.token(iss=tenant)).status_code == 200
    issuer.documents[path]["issuer"] = f"{issuer.url}/other"
    with protected(jwt_issuer=tenant, jwt_jwks_url=None) as server:
        assert call(server, issuer.token(iss=tenant)).status_code == 503


def challenged(server: Running) -> str:
    header = server.post(server.request("health_check")).headers["www-authenticate"]
    found = re.search(r'resource_metadata="([^"]+)"', header)
    assert found, header
    return found[1]


def test_the_resource_metadata_has_the_resource_and_its_issuer(protected: Serve, issuer: Issuer) -> None:
    with protected(jwt_required_scopes="mcp:call") as server:
        assert challenged(server) == "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
        for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
            response = server.client.get(server.base + path, headers={"origin": "https://app.example.com"})
            assert response.headers["access-control-allow-origin"] == "*"
            document = response.json()
            assert document["resource"] == AUDIENCE
            assert document["authorization_servers"] == [issuer.url]
            assert document["scopes_supported"] == ["mcp:call"]


def test_the_resource_is_the_called_address_where_the_audience_is_no_url(protected: Serve, issuer: Issuer) -> None:
    issuer.audience = "api://weather"
    with protected(jwt_audience="api://weather") as server:
        assert call(server, issuer.token()).status_code == 200
        url = challenged(server)
        assert url == f"{server.base}/.well-known/oauth-protected-resource/mcp"
        response = server.client.get(url)
        assert response.json()["resource"] == server.url
        assert response.headers["cache-control"] == "no-store"
        for scheme in ("https", "https, http", "HTTPS ,http"):
            behind = {"host": "mcp.example.com.", "x-forwarded-proto": scheme}
            assert server.client.get(url, headers=behind).json()["resource"] == "https://mcp.example.com/mcp"
        behind["x-forwarded-proto"] = "http, https"
        assert server.client.get(url, headers=behind).json()["resource"] == "http://mcp.example.com/mcp"
        assert server.client.get(url, headers={"host": "mcp.example.com:*"}).status_code == 400
        assert server.client.get(url, headers={"host": 'x"y'}).status_code == 400


async def test_a_client_gets_from_the_first_401_to_a_result(protected: Serve, issuer: Issuer) -> None:
    """401, metadata of the resource, metadata of the issuer, token, call, as the MCP specification has it."""
    issuer.documents["/.well-known/oauth-authorization-server"] = {
        "issuer": issuer.url,
        "authorization_endpoint": f"{issuer.url}/authorize",
        "token_endpoint": f"{issuer.url}/token",
        "jwks_uri": issuer.jwks_url,
        "response_types_supported": ["code"],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["client_secret_post"],
    }

    class Storage:
        tokens: Any = None
        client: Any = None

        async def get_tokens(self) -> Any:
            return self.tokens

        async def set_tokens(self, tokens: Any) -> None:
            self.tokens = tokens

        async def get_client_info(self) -> Any:
            return self.client

        async def set_client_info(self, client_info: Any) -> None:
            self.client = client_info

    issuer.audience = "api://weather"  # the resource is then the address of this server
    with protected(jwt_audience="api://weather", jwt_required_scopes="mcp:call") as server:
        provider = ClientCredentialsOAuthProvider(
            server.url, Storage(), "machine", "secret", "client_secret_post", "mcp:call", issuer.url
        )
        async with (
            httpx2.AsyncClient(auth=provider, trust_env=False) as http,
            Client(streamable_http_client(server.url, http_client=http)) as client,
        ):
            result = await client.call_tool("who", {})
        assert result.structured_content is not None
        assert result.structured_content["caller"] == "machine"
        assert result.structured_content["scopes"] == ["mcp:call"]
        assert f"/token ['{server.url}']" in issuer.requests


# --- Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"jwt_issuer": "https://login.example.com"}, "JWT_AUDIENCE: must be set"),
        ({"jwt_audience": AUDIENCE}, "JWT_ISSUER: must be set with JWT_AUDIENCE"),
        ({"jwt_jwks_url": "https://login.example.com/keys"}, "JWT_ISSUER: must be set with JWT_JWKS_URL"),
        ({"jwt_required_scopes": "a"}, "JWT_ISSUER: must be set with JWT_REQUIRED_SCOPES"),
        ({"jwt_issuer": "login.example.com", "jwt_audience": AUDIENCE}, "JWT_ISSUER: must be the issuer's URL"),
        ({"jwt_issuer": "https://x.com/?a=b", "jwt_audience": AUDIENCE}, "JWT_ISSUER: must be the issuer's URL"),
    ],
)
def test_an_incomplete_configuration_stops_the_start(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(**settings))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_health_reports_which_variables_are_missing(protected: Serve, serve: Serve) -> None:
    with protected() as server:
        configured = server.get("/health").json()["auth_config"]
    with serve() as server:
        missing = server.get("/health").json()["auth_config"]
    for variable in ("JWT_ISSUER", "JWT_AUDIENCE"):
        assert (configured[variable], missing[variable]) == ("configured", "missing")


def test_keys_over_plain_http_cause_a_notice() -> None:
    def notices(**settings: Any) -> list[str]:
        registry = Registry(config(jwt_audience=AUDIENCE, **settings), about())
        auth_jwt.install(registry)
        return registry.notices

    assert notices(jwt_issuer="https://192.0.2.1") == []
    assert notices(jwt_issuer="http://127.0.0.1:8080") == []
    assert "JWT_ISSUER" in notices(jwt_issuer="http://192.0.2.1")[0]
    assert "JWT_JWKS_URL" in notices(jwt_issuer="https://192.0.2.1", jwt_jwks_url="http://192.0.2.1/keys")[0]


def test_both_protocol_versions_check_the_token(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        message, headers = modern("tools/call", {"name": "health_check", "arguments": {}})
        assert server.client.post(server.url, json=message, headers=headers).status_code == 401
        headers["authorization"] = f"Bearer {issuer.token()}"
        assert server.client.post(server.url, json=message, headers=headers).status_code == 200
        assert server.post(server.request("health_check")).status_code == 401


async def test_check_probes_the_issuer_for_its_keys(issuer: Issuer) -> None:
    server = create_server(config(jwt_issuer=issuer.url, jwt_audience=AUDIENCE, jwt_jwks_url=issuer.jwks_url))
    async with server.running():
        results = await startup.run_probes(server.registry)
    assert results["issuer"].problem is None
    issuer.die()
    server = create_server(config(jwt_issuer=issuer.url, jwt_audience=AUDIENCE, jwt_jwks_url=issuer.jwks_url))
    async with server.running():
        results = await startup.run_probes(server.registry)
    assert results["issuer"].problem
