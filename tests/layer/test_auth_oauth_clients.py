"""OAuth clients: the documents behind their ids, fetched from a real TLS server, and nothing else on the network."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from pydantic import AnyUrl

from harness import DEADLINE_SECONDS, Running
from sign_in_provider import PUBLIC, VERIFIER, Browser, provider
from test_auth_oauth import Start, start
from weather_station.production.inbound import auth_oauth_clients
from weather_station.production.inbound.auth_oauth_clients import (
    ASSERTION_METHOD,
    ASSERTION_TYPE,
    MAX_DOCUMENT_BYTES,
    ClientError,
    Documents,
    OAuthClient,
    PublicNetwork,
    assertion_claims,
    is_document_url,
    is_public,
    redirect_problem,
)

__all__ = ["start"]

CALLBACK = "http://127.0.0.1/callback"


@dataclass
class Site:
    """A web site of a client on a real socket, with a certificate for localhost."""

    port: int = 0
    requests: list[str] = field(default_factory=list)
    answers: dict[str, tuple[int, Mapping[str, str], bytes]] = field(default_factory=dict)
    hangs: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/client.json"

    def serve(self, status: int = 200, headers: Mapping[str, str] | None = None, **changed: Any) -> None:
        document = {"client_id": self.url, "client_name": "A client", "redirect_uris": [CALLBACK]} | changed
        self.answers["/client.json"] = (status, headers or {}, json.dumps(document).encode())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture
def site(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site()
    found.hangs.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests.append(self.path)
            found.hangs.wait(DEADLINE_SECONDS)
            status, headers, body = found.answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        found.port = server.server_address[1]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setattr(auth_oauth_clients, "is_public", lambda address: address == "127.0.0.1")
        resolve = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *args, **kinds: resolve("127.0.0.1" if host == "localhost" else host, *args, **kinds),
        )
        found.serve()
        yield found
        found.hangs.set()
        server.shutdown()


@pytest.fixture
async def documents(site: Site) -> Any:
    found = Documents(("orders:read",))
    await found.open()
    yield found
    await found.close()


async def test_a_document_is_a_client(site: Site, documents: Documents) -> None:
    client = await documents.client(site.url)
    assert (client.client_name, client.host, client.token_endpoint_auth_method) == ("A client", "localhost", "none")
    assert client.validate_scope("orders:read other") == ["orders:read"]


@pytest.mark.parametrize(
    ("status", "headers", "changed", "problem"),
    [
        (302, {"location": "https://example.com/client.json"}, {}, "status 302"),
        (404, {}, {}, "status 404"),
        (200, {}, {"client_id": "https://example.com/other"}, "is not its URL"),
        (200, {}, {"client_secret": "x"}, "must not have a client_secret"),
        (200, {}, {"redirect_uris": []}, "redirect_uris"),
        (200, {}, {"redirect_uris": ["javascript:alert(1)"]}, "must not have the scheme"),
        (200, {}, {"token_endpoint_auth_method": "client_secret_post"}, "token_endpoint_auth_method"),
        (200, {}, {"client_name": "x" * 200}, "client_name"),
        (200, {}, {"client_name": "evil\u202ename"}, "client_name"),
        (200, {}, {"padding": "x" * MAX_DOCUMENT_BYTES}, "larger than"),
    ],
)
async def test_a_document_that_is_not_acceptable(
    site: Site, documents: Documents, status: int, headers: dict[str, str], changed: Any, problem: str
) -> None:
    site.serve(status, headers, **changed)
    with pytest.raises(ClientError, match=problem):
        await documents.client(site.url)
    assert len(site.requests) == 1


async def test_a_site_that_hangs_is_given_up(site: Site, documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_oauth_clients, "FETCH_SECONDS", 0.2)
    site.hangs.clear()
    with pytest.raises(ClientError, match="does not answer"):
        await documents.client(site.url)


async def test_a_document_is_kept_as_its_headers_say_within_bounds(site: Site, documents: Documents) -> None:
    for _ in range(3):
        await documents.client(site.url)
    assert len(site.requests) == 1
    ages = {"max-age=10": 60, "max-age=7200": 7200, "max-age=99999999": 86_400, "no-store": 60, "": 3600}
    assert [auth_oauth_clients._age([(b"Cache-Control", text.encode())]) for text in ages] == [*ages.values()]


async def test_a_failure_is_kept_for_a_moment(site: Site, documents: Documents) -> None:
    site.serve(404)
    for _ in range(3):
        with pytest.raises(ClientError):
            await documents.client(site.url)
    assert len(site.requests) == 1


async def test_a_client_proves_itself_with_a_key_of_its_document(site: Site, documents: Documents) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    entry = json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": "one", "alg": "ES256", "use": "sig"}
    site.serve(token_endpoint_auth_method=ASSERTION_METHOD, jwks={"keys": [entry]})
    keys = await documents.keys(site.url)
    right = {"iss": site.url, "sub": site.url, "aud": "https://mcp.example.com", "jti": "1", "exp": time.time() + 60}

    def claims(**changed: Any) -> dict[str, Any]:
        signed = changed.pop("key", key)
        token = jwt.encode({**right, **changed}, signed, "ES256", headers={"kid": "one"})
        return assertion_claims(token, keys, site.url, ("https://mcp.example.com",))

    assert claims()["jti"] == "1"
    other = ec.generate_private_key(ec.SECP256R1())
    for wrong in ({"iss": "x"}, {"sub": "x"}, {"aud": "x"}, {"exp": 1}, {"exp": time.time() + 86_400}, {"key": other}):
        with pytest.raises(ClientError):
            claims(**wrong)


def test_an_assertion_is_used_once(site: Site, start: Start) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    entry = json.loads(ECAlgorithm.to_jwk(key.public_key())) | {"kid": "one", "alg": "ES256", "use": "sig"}
    site.serve(token_endpoint_auth_method=ASSERTION_METHOD, jwks_uri=site.url.replace("client", "keys"))
    site.answers["/keys.json"] = (200, {}, json.dumps({"keys": [entry]}).encode())

    def redeem(server: Running, **changed: str) -> httpx2.Response:
        claims = {"iss": site.url, "sub": site.url, "aud": PUBLIC, "jti": "once", "exp": time.time() + 60} | changed
        form = {
            "grant_type": "authorization_code",
            "code": Browser(server).sign_in(site.url, redirect_uri="http://127.0.0.1:5/callback")["code"],
            "client_id": site.url,
            "redirect_uri": "http://127.0.0.1:5/callback",
            "code_verifier": VERIFIER,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": jwt.encode(claims, key, "ES256", headers={"kid": "one"}),
        }
        return server.client.post(f"{server.base}/token", data=form)

    with provider() as idp, start(idp) as server:
        assert redeem(server, sub="another").status_code == 401
        assert redeem(server).status_code == 200
        again = redeem(server)
        assert (again.status_code, again.json()["error_description"]) == (401, "The client_assertion was used before")
        assert redeem(server, jti="another").status_code == 200


# --- The network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "0.0.0.0",  # noqa: S104 (shown to be rejected)
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_an_address_that_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.215.14", "10.0.0.1"], ["169.254.169.254"], []])
async def test_a_name_with_a_private_address_is_never_connected_to(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    class Backend(httpcore2.AsyncNetworkBackend):
        async def connect_tcp(self, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
            raise AssertionError("connected")

    resolve_to(monkeypatch, addresses)
    with pytest.raises(ClientError, match="public host"):
        await PublicNetwork(Backend()).connect_tcp("client.example.com", 443)


async def test_the_connected_socket_decides_whatever_dns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the name has a public address when it is looked up, and the connection goes elsewhere."""
    closed: list[str] = []

    class Stream(httpcore2.AsyncNetworkStream):
        def get_extra_info(self, info: str) -> Any:
            return ("10.0.0.1", 443) if info == "server_addr" else None

        async def aclose(self) -> None:
            closed.append("closed")

    class Backend(httpcore2.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, *args: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
            assert host == "93.184.215.14", "the name was looked up again"
            return Stream()

    resolve_to(monkeypatch, ["93.184.215.14"])
    with pytest.raises(ClientError, match="public host"):
        await PublicNetwork(Backend()).connect_tcp("client.example.com", 443)
    assert closed == ["closed"]


def resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    async def getaddrinfo(*args: Any, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


# --- Ids and redirect URIs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://client.example.com/client.json",
        "https://client.example.com",
        "https://client.example.com/",
        "https://user@client.example.com/client.json",
        "https://client.example.com/a/../client.json",
        "https://client.example.com/a/%2e%2e/client.json",
        "https://client.example.com/client.json#fragment",
        "https://client.example.com/client.json?query",
        "https://client.example.com/" + "x" * 3000,
        "https:///client.json",
        "https://[::1/client.json",
        "2f1c1c0e-0000-4000-8000-000000000000",
    ],
)
def test_an_id_that_is_no_url_of_a_document(url: str) -> None:
    assert not is_document_url(url)


@pytest.mark.parametrize(
    "uri", ["https://app.example.com/cb", "http://localhost:1/cb", "http://[::1]/cb", "cursor://x/cb", "com.app:/cb"]
)
def test_a_redirect_uri_that_is_acceptable(uri: str) -> None:
    assert redirect_problem(uri) is None
    client = OAuthClient(client_id="x", redirect_uris=[AnyUrl(uri)])
    assert str(client.validate_redirect_uri(AnyUrl(uri))) == uri
