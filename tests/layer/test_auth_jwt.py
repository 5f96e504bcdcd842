"""Access tokens of an authorization server: a real one, which serves its keys, changes them, hangs and dies."""

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

from weather_station.production import auth_jwt, connections
from weather_station.production.app import (
    App,
    ProductionServer,
    production_of,
)
from weather_station.production.auth_jwt import (
    LEEWAY_SECONDS,
    MAX_DOCUMENT_BYTES,
    usable,
)
from weather_station.production.config import ConfigError, about
from weather_station.server import create_server

from .harness import Running, config, modern, text_of, wait_for

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
    """An authorization server on a real socket. `answers` maps paths to documents."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.hanging = threading.Event()
        self.hanging.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                issuer.hanging.wait(20)
                self.answer(issuer.answers.get(self.path))

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
                issuer.requests.append(f"{self.path} {form.get('resource')}")
                token = issuer.token(scope=form.get("scope", [""])[0], client_id="machine", sub="machine")
                self.answer({"access_token": token, "token_type": "Bearer", "expires_in": 300})

            def answer(self, document: Any) -> None:
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(404 if document is None else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._handler = Handler
        self._server: ThreadingHTTPServer | None = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._start(self._server)
        self.url = f"http://127.0.0.1:{self.port}"
        self.jwks_url = f"{self.url}/keys"
        self.audience = AUDIENCE
        self.answers: dict[str, Any] = {}
        self.serve_keys(jwk("first", P256))

    def _start(self, server: ThreadingHTTPServer) -> None:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve_keys(self, *keys: dict[str, Any]) -> None:
        self.answers["/keys"] = {"keys": keys}

    def die(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def rise(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self._server.daemon_threads = True
        self._start(self._server)

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.url, "aud": self.audience, "sub": "alice", "client_id": "app", "exp": now + 300} | changed
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: Any = P256, alg: str = "ES256", kid: str | None = "first", **claims: Any) -> str:
        return jwt.encode(self.claims(**claims), key, alg, headers={} if kid is None else {"kid": kid})


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    issuer = Issuer()
    yield issuer
    issuer.hanging.set()
    issuer.die()


Serve = Callable[..., Any]


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
        identity = production_of(server).identify(ctx.request_context.request)
        return {"identity": identity, **token.model_dump(include={"client_id", "subject", "scopes", "resource"})}

    server.tool()(who)


def ask(server: Running, token: str) -> httpx2.Response:
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
def test_a_token_signed_by_the_issuer_counts(protected: Serve, issuer: Issuer, key: Any, alg: str) -> None:
    issuer.serve_keys(jwk("a", key))
    with protected() as server:
        assert ask(server, issuer.token(key, alg, "a")).status_code == 200


def test_the_tokens_subject_client_and_scopes_are_known_to_tools(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        found = who(server, issuer.token(scope="a b"))
        assert (found["identity"], found["subject"], found["client_id"]) == ("alice", "alice", "app")
        assert (found["scopes"], found["resource"]) == (["a", "b"], AUDIENCE)
        assert who(server, issuer.token(sub=None))["identity"] == "app"
        assert who(server, issuer.token(client_id=None, azp="azp"))["client_id"] == "azp"
        assert who(server, issuer.token(client_id=None))["client_id"] == "alice"
        assert who(server, issuer.token(scp=["x", "y"]))["scopes"] == ["x", "y"]
        assert who(server, issuer.token(sub="10.0.0.1"))["identity"] == "account:10.0.0.1"
        assert ask(server, issuer.token(sub=None, client_id=None)).status_code == 401


def forged(issuer: Issuer, alg: str) -> str:
    """A token signed with the public key as if that were a shared secret, or not at all."""
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
        (lambda issuer: issuer.token(nbf=int(time.time()) + LEEWAY_SECONDS + 10), "not valid yet"),
        (lambda issuer: issuer.token(OTHER_P256), "is not valid"),
        (lambda issuer: issuer.token(RSA, "RS256"), "is not valid"),
        (lambda issuer: issuer.token(kid="second"), "unknown key"),
        (lambda issuer: forged(issuer, "HS256"), "accepted algorithm"),
        (lambda issuer: forged(issuer, "none"), "accepted algorithm"),
        (lambda issuer: issuer.token()[:-6] + "AAAAAA", "is not valid"),
        (lambda issuer: re.sub(r"\.[^.]+\.", ".e30.", issuer.token()), "is not valid"),
        (lambda issuer: "a.b.c", "not a JWT"),
        (lambda issuer: "opaque-token", "not a JWT"),
        (lambda issuer: "..", "not a JWT"),
        (lambda issuer: "W10.e30.", "not a JWT"),
    ],
)
def test_any_other_token_gets_401_and_the_reason(
    protected: Serve, issuer: Issuer, make: Callable[[Issuer], str], reason: str
) -> None:
    with protected() as server:
        response = ask(server, make(issuer))
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]
        assert reason in response.json()["error"]["message"]
        assert ask(server, issuer.token()).status_code == 200


@pytest.mark.parametrize("algorithm", [[], {}, 1, None])
def test_an_algorithm_that_is_no_text_is_refused_like_others(protected: Serve, issuer: Issuer, algorithm: Any) -> None:
    _, claims, signature = issuer.token().split(".")
    header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "typ": "JWT"}).encode()).decode().rstrip("=")
    with protected() as server:
        response = ask(server, f"{header}.{claims}.{signature}")
    assert response.status_code == 401
    assert "invalid_token" in response.headers["www-authenticate"]


def test_clocks_may_differ_a_little(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        now = int(time.time())
        assert ask(server, issuer.token(exp=now - LEEWAY_SECONDS + 10)).status_code == 200
        assert ask(server, issuer.token(nbf=now + LEEWAY_SECONDS - 10)).status_code == 200


@pytest.mark.parametrize("granted", [{}, {"scope": "mcp:read"}, {"scp": ["mcp:read"]}, {"scope": "mcp:read mcp:calls"}])
def test_a_token_without_a_required_scope_gets_403_that_names_the_scopes(
    protected: Serve, issuer: Issuer, granted: dict[str, Any]
) -> None:
    with protected(jwt_required_scopes="mcp:read,mcp:call") as server:
        response = ask(server, issuer.token(**granted))
        assert response.status_code == 403
        header = response.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in header
        assert 'scope="mcp:read mcp:call"' in header
        assert "mcp:call" in response.json()["error"]["message"]
        assert ask(server, issuer.token(scope="mcp:call mcp:read x")).status_code == 200
        assert ask(server, issuer.token(scp=["mcp:call", "mcp:read"])).status_code == 200


def test_a_token_is_verified_once_and_not_used_beyond_its_time(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = 0
    decode = jwt.decode

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal verified
        verified += 1
        return decode(*args, **options)

    monkeypatch.setattr(jwt, "decode", counted)
    monkeypatch.setattr(auth_jwt, "LEEWAY_SECONDS", 0)
    with protected() as server:
        expiry = int(time.time()) + 4
        token = issuer.token(exp=expiry)
        assert [ask(server, token).status_code for _ in range(5)] == [200] * 5
        assert verified == 1
        wait_for(lambda: ask(server, token).status_code == 401)
        assert time.time() >= expiry
    monkeypatch.setattr(auth_jwt, "MAX_REMEMBERED", 3)
    with protected() as server:
        verified = 0
        tokens = [issuer.token(jti=str(number)) for number in range(5)]
        assert {ask(server, token).status_code for token in tokens + tokens[-3:]} == {200}
        assert verified == 5
        assert ask(server, tokens[0]).status_code == 200
        assert verified == 6  # forgotten, for there is room for three


# --- Keys -----------------------------------------------------------------------------------------------------------


def test_a_key_that_appears_at_the_issuer_counts_at_once_and_one_that_goes_stops(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "REMEMBER_SECONDS", 0.0)
    with protected() as server:
        old = issuer.token()
        assert ask(server, old).status_code == 200
        issuer.serve_keys(jwk("second", OTHER_P256))
        assert ask(server, issuer.token(OTHER_P256, kid="second")).status_code == 200
        assert ask(server, old).status_code == 401
        assert len(issuer.requests) <= 3


def test_old_keys_serve_while_new_ones_are_fetched(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "REMEMBER_SECONDS", 0.0)
    with protected() as server:
        assert ask(server, issuer.token()).status_code == 200
        monkeypatch.setattr(auth_jwt, "FRESH_SECONDS", 0.0)
        issuer.hanging.clear()
        issuer.serve_keys(jwk("second", OTHER_P256))
        began = time.monotonic()
        assert [ask(server, issuer.token()).status_code for _ in range(5)] == [200] * 5
        assert time.monotonic() - began < 2.0
        wait_for(lambda: len(issuer.requests) == 2)  # one fetch, which hangs
        issuer.hanging.set()
        wait_for(lambda: ask(server, issuer.token()).status_code == 401)


def test_made_up_key_ids_do_not_reach_the_issuer(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        before = len(issuer.requests)
        assert before == 1
        with ThreadPoolExecutor(8) as pool:
            tokens = [issuer.token(kid=f"made-up-{number}") for number in range(200)]
            assert set(pool.map(lambda token: ask(server, token).status_code, tokens)) == {401}
        assert len(issuer.requests) - before <= 1
        assert ask(server, issuer.token()).status_code == 200


def test_the_keys_are_fetched_once_for_many_who_wait(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "PAUSE_SECONDS", 0.0)
    issuer.die()
    with protected() as server, ThreadPoolExecutor(20) as pool:
        issuer.hanging.clear()
        issuer.rise()
        answers = [pool.submit(ask, server, issuer.token(jti=str(number))) for number in range(20)]
        wait_for(lambda: issuer.requests)
        wait_for(lambda: sum(answer.running() for answer in answers) == 20)
        issuer.hanging.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert len(issuer.requests) == 1


def test_without_keys_the_server_says_so_and_recovers(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "PAUSE_SECONDS", 1.0)
    issuer.die()
    with protected() as server:
        response = ask(server, issuer.token())
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert "authorization server" in response.json()["error"]["message"]
        health = server.client.get(f"{server.base}/health").json()
        assert health["status"] == "degraded"
        assert "the keys of JWT_ISSUER cannot be fetched" in health["problems"]
        assert server.client.get(f"{server.base}/readyz").status_code == 200
        issuer.rise()
        wait_for(lambda: ask(server, issuer.token()).status_code == 200)
        assert server.client.get(f"{server.base}/health").json()["status"] == "healthy"


def test_an_issuer_that_dies_or_talks_nonsense_takes_no_key_away(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(auth_jwt, "REMEMBER_SECONDS", 0.0)
    nonsense: list[Any] = [None, {}, {"keys": []}, {"keys": "no"}, [], b"<html>", b"[" * 100_000]
    nonsense.append({"keys": [jwk("first", OTHER_P256)], "padding": "x" * MAX_DOCUMENT_BYTES})
    with protected() as server:
        for document in nonsense:
            issuer.answers["/keys"] = document
            issuer.requests.clear()
            for _ in range(3):
                assert ask(server, issuer.token()).status_code == 200
                wait_for(lambda: ask(server, issuer.token()).status_code == 200 and issuer.requests)
        issuer.die()
        for _ in range(3):
            assert ask(server, issuer.token()).status_code == 200


def test_an_issuer_that_hangs_holds_nobody_up_for_long(
    protected: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_jwt, "FETCH_SECONDS", 0.3)
    issuer.hanging.clear()
    began = time.monotonic()
    with protected() as server:
        assert ask(server, issuer.token()).status_code == 503
        assert time.monotonic() - began < 5.0


def test_only_keys_that_can_verify_count() -> None:
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
    found = {key.kid: key.algorithms for key in usable({"keys": keys})}
    assert set(found) == {"rsa", "any-rsa", "p256"}
    assert found["rsa"] == ("RS256",)
    assert found["p256"] == ("ES256",)


def test_a_private_key_published_by_mistake_verifies_as_its_public_half(protected: Serve, issuer: Issuer) -> None:
    issuer.serve_keys(json.loads(RSAAlgorithm.to_jwk(RSA)) | {"kid": "first"})
    with protected() as server:
        assert ask(server, issuer.token(RSA, "RS256")).status_code == 200


def test_a_token_that_names_no_key_needs_an_issuer_with_only_one(protected: Serve, issuer: Issuer) -> None:
    issuer.serve_keys(jwk(None, P256))
    with protected() as server:
        assert ask(server, issuer.token(kid=None)).status_code == 200
    issuer.serve_keys(jwk("first", P256), jwk("second", OTHER_P256))
    with protected() as server:
        assert ask(server, issuer.token(kid=None)).status_code == 401
        assert ask(server, issuer.token()).status_code == 200


# --- Discovery and metadata -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/tenant/.well-known/openid-configuration", "/.well-known/oauth-authorization-server/tenant"]
)
def test_the_issuers_metadata_says_where_its_keys_are(protected: Serve, issuer: Issuer, path: str) -> None:
    tenant = f"{issuer.url}/tenant"
    issuer.answers[path] = {"issuer": tenant, "jwks_uri": issuer.jwks_url}
    with protected(jwt_issuer=tenant, jwt_jwks_url=None) as server:
        assert ask(server, issuer.token(iss=tenant)).status_code == 200
    issuer.answers[path]["issuer"] = f"{issuer.url}/other"
    with protected(jwt_issuer=tenant, jwt_jwks_url=None) as server:
        assert ask(server, issuer.token(iss=tenant)).status_code == 503


def challenged(server: Running) -> str:
    header = server.post(server.request("health_check")).headers["www-authenticate"]
    found = re.search(r'resource_metadata="([^"]+)"', header)
    assert found, header
    return found[1]


def test_the_metadata_names_the_resource_and_its_issuer(protected: Serve, issuer: Issuer) -> None:
    with protected(jwt_required_scopes="mcp:call") as server:
        assert challenged(server) == "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
        for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
            response = server.client.get(server.base + path, headers={"origin": "https://app.example.com"})
            assert response.headers["access-control-allow-origin"] == "*"
            document = response.json()
            assert document["resource"] == AUDIENCE
            assert document["authorization_servers"] == [issuer.url]
            assert document["scopes_supported"] == ["mcp:call"]


def test_an_audience_that_is_no_url_leaves_the_resource_to_the_address_that_was_called(
    protected: Serve, issuer: Issuer
) -> None:
    issuer.audience = "api://weather"
    with protected(jwt_audience="api://weather") as server:
        assert ask(server, issuer.token()).status_code == 200
        url = challenged(server)
        assert url == f"{server.base}/.well-known/oauth-protected-resource/mcp"
        response = server.client.get(url)
        assert response.json()["resource"] == server.url
        assert response.headers["cache-control"] == "no-store"
        behind = {"host": "mcp.example.com", "x-forwarded-proto": "https"}
        assert server.client.get(url, headers=behind).json()["resource"] == "https://mcp.example.com/mcp"
        assert server.client.get(url, headers={"host": 'x"y'}).status_code == 400


async def test_a_client_finds_its_way_from_the_first_refusal_to_an_answer(protected: Serve, issuer: Issuer) -> None:
    """401, metadata of the resource, metadata of the issuer, token, call: the MCP authorization specification."""
    issuer.answers["/.well-known/oauth-authorization-server"] = {
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

    issuer.audience = "api://weather"  # so that the resource is the address of this server
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
        assert result.structured_content["identity"] == "machine"
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
def test_half_a_configuration_stops_the_start(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(**settings))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_health_says_which_variables_are_missing(protected: Serve, serve: Serve) -> None:
    with protected() as server:
        configured = server.client.get(f"{server.base}/health").json()["auth_config"]
    with serve() as server:
        missing = server.client.get(f"{server.base}/health").json()["auth_config"]
    for variable in ("JWT_ISSUER", "JWT_AUDIENCE"):
        assert (configured[variable], missing[variable]) == ("configured", "missing")


def test_keys_over_plain_http_are_pointed_out() -> None:
    def notices(**settings: Any) -> list[str]:
        app = App(config(jwt_audience=AUDIENCE, **settings), about())
        auth_jwt.install(app)
        return app.notices

    assert notices(jwt_issuer="https://192.0.2.1") == []
    assert notices(jwt_issuer="http://127.0.0.1:8080") == []
    assert "JWT_ISSUER" in notices(jwt_issuer="http://192.0.2.1")[0]
    assert "JWT_JWKS_URL" in notices(jwt_issuer="https://192.0.2.1", jwt_jwks_url="http://192.0.2.1/keys")[0]


def test_both_eras_check_the_token(protected: Serve, issuer: Issuer) -> None:
    with protected() as server:
        message, headers = modern("tools/call", {"name": "health_check", "arguments": {}})
        assert server.client.post(server.url, json=message, headers=headers).status_code == 401
        headers["authorization"] = f"Bearer {issuer.token()}"
        assert server.client.post(server.url, json=message, headers=headers).status_code == 200
        assert server.post(server.request("health_check")).status_code == 401


async def test_check_asks_the_issuer_for_its_keys(issuer: Issuer) -> None:
    server = create_server(config(jwt_issuer=issuer.url, jwt_audience=AUDIENCE, jwt_jwks_url=issuer.jwks_url))
    async with server.running():
        found = await connections.ask_all(server.production.connections)
    assert found["issuer"].problem is None
    issuer.die()
    server = create_server(config(jwt_issuer=issuer.url, jwt_audience=AUDIENCE, jwt_jwks_url=issuer.jwks_url))
    async with server.running():
        found = await connections.ask_all(server.production.connections)
    assert found["issuer"].problem
