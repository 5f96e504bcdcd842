"""The OAuth clients: those that have registered (RFC 7591), and those whose id is the URL of a document about them."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Literal
from urllib.parse import urlsplit

import httpcore2
import jwt
from mcp.server.auth.provider import RegistrationError
from mcp.shared.auth import InvalidRedirectUriError, OAuthClientInformationFull
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, ValidationError

from ..environment import tls_context
from .auth_oauth_store import digest
from .issuer_keys import ACCEPTED_ALGORITHMS, signing_keys

MAX_DOCUMENT_BYTES = 10 * 1024
"""Largest document about a client; the specification recommends 5 kB."""

FETCH_SECONDS = 5.0
MAX_URL_CHARACTERS = 2000
MAX_REDIRECT_URIS = 20
MAX_NAME_CHARACTERS = 100

DEFAULT_AGE, MIN_AGE, MAX_AGE = 3600.0, 60.0, 86_400.0
"""Seconds for which a document is kept: without a header, at least, at most."""

FAILED_AGE = 30.0
"""Seconds for which a document that is not valid is not fetched again."""

MAX_CACHED = 256
MAX_FETCHES = 8
"""Documents that are fetched at once."""

ASSERTION_METHOD = "private_key_jwt"
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MAX_ASSERTION_SECONDS = 600

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
"""Hosts of the redirect URIs of native clients, whose port is free (RFC 8252, section 7.3)."""

FORBIDDEN_SCHEMES = (
    "javascript",
    "data",
    "vbscript",
    "file",
    "blob",
    "about",
    "filesystem",
    "view-source",
    "ws",
    "wss",
)
"""Schemes by which a browser would run or open something in place of a client."""

REFUSED_NETWORKS = tuple(
    ip_network(block)
    for block in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "192.0.0.0/24", "168.63.129.16/32")
)
"""Networks that count as public and lead inside: NAT64, 6to4 and Teredo stand for an IPv4 address, and two are those of
the metadata services of Oracle and Azure."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


class ClientError(Exception):
    """A client is not acceptable; the text says why, for whoever has written it."""


class OAuthClient(OAuthClientInformationFull):
    """A client as the authorization server sees it."""

    supported_scopes: tuple[str, ...] = ()

    @property
    def host(self) -> str | None:
        """Return the host that vouches for the client's name; `None` for a registered client, which can claim any."""
        return urlsplit(self.client_id).hostname if is_document_url(self.client_id) else None

    def validate_scope(self, requested_scope: str | None) -> list[str] | None:
        """Return the supported ones of the requested scopes; the response names them (RFC 6749, section 3.3)."""
        if requested_scope is None:
            return None
        return [scope for scope in self.supported_scopes if scope in requested_scope.split()]

    def validate_redirect_uri(self, redirect_uri: AnyUrl | None) -> AnyUrl:
        """Return the URI if the client has it; only the port of a loopback address may differ.

        Raises:
            InvalidRedirectUriError: the client does not have it.
        """
        if redirect_uri is None:
            return super().validate_redirect_uri(None)
        registered = {_comparable(uri) for uri in self.redirect_uris or ()}
        if redirect_problem(str(redirect_uri)) is None and _comparable(redirect_uri) in registered:
            return redirect_uri
        raise InvalidRedirectUriError("the redirect_uri is not one of this client's")


def _comparable(uri: AnyUrl) -> str:
    text = str(AnyUrl(str(uri)))
    parts = urlsplit(text)
    if parts.scheme == "http" and parts.netloc.removesuffix(f":{parts.port}") in LOOPBACK:
        return parts._replace(netloc=parts.netloc.removesuffix(f":{parts.port}")).geturl()
    return text


def redirect_problem(uri: str) -> str | None:
    """Return why a redirect URI is not acceptable: https, http of this machine, or a private scheme (RFC 8252)."""
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is no URI"
    if not (uri.isascii() and uri.isprintable() and " " not in uri) or len(uri) > MAX_URL_CHARACTERS:
        return "has characters that must be encoded, or too many of them"
    if parts.fragment or "#" in uri or "\\" in uri or parts.username is not None:
        return "must have no fragment, backslash or user"
    if parts.scheme in FORBIDDEN_SCHEMES or not _SCHEME.fullmatch(parts.scheme):
        return f"must not have the scheme {parts.scheme!r}"
    if parts.scheme in ("http", "https") and (not host or "*" in parts.netloc):
        return "must have a host"
    if parts.scheme == "http" and parts.netloc.removesuffix(f":{parts.port}") not in LOOPBACK:
        return "must be https, unless it is one of the user's own machine"
    return None


def accepted(information: Mapping[str, Any], supported_scopes: tuple[str, ...]) -> OAuthClient:
    """Return the client that a registration or a document describes.

    Raises:
        ClientError: it is not acceptable.
    """
    try:
        client = OAuthClient.model_validate({**information, "supported_scopes": supported_scopes})
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ClientError(f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}") from None
    uris = client.redirect_uris or []
    if not 0 < len(uris) <= MAX_REDIRECT_URIS:
        raise ClientError(f"redirect_uris: must be from 1 to {MAX_REDIRECT_URIS}")
    for uri in uris:
        if problem := redirect_problem(str(uri)):
            raise ClientError(f"redirect_uris: {str(uri)[:100]!r} {problem}")
    name = client.client_name or ""
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise ClientError(f"client_name: must have at most {MAX_NAME_CHARACTERS} printable characters")
    return client


def registered(information: OAuthClientInformationFull) -> dict[str, Any]:
    """Return what is kept of a client that registers.

    Raises:
        RegistrationError: it is not acceptable.
    """
    kept = information.model_dump(
        mode="json",
        exclude_none=True,
        include={
            "client_id",
            "client_secret",
            "client_secret_expires_at",
            "client_name",
            "redirect_uris",
            "grant_types",
            "token_endpoint_auth_method",
        },
    )
    try:
        accepted(kept, ())
    except ClientError as error:
        redirect = str(error).startswith("redirect_uris")
        raise RegistrationError("invalid_redirect_uri" if redirect else "invalid_client_metadata", str(error)) from None
    return kept


# --- Client ID Metadata Documents ----------------------------------------------------------------------------


class Document(BaseModel):
    """A document about a client (draft-ietf-oauth-client-id-metadata-document)."""

    model_config = ConfigDict(extra="ignore")

    client_id: str
    client_name: str | None = None
    redirect_uris: list[str] = Field(min_length=1)
    token_endpoint_auth_method: Literal["none", "private_key_jwt"] = "none"  # noqa: S105 (a method)
    grant_types: list[str] = ["authorization_code", "refresh_token"]
    jwks: dict[str, Any] | None = None
    jwks_uri: str | None = None


def is_document_url(client_id: str) -> bool:
    """Return whether a client id is the URL of a document: https, a path without dot segments, and nothing else."""
    try:
        parts = urlsplit(client_id)
        usable = parts.scheme == "https" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        return False
    segments = parts.path.split("/")
    return bool(
        usable
        and len(client_id) <= MAX_URL_CHARACTERS
        and client_id.isascii()
        and client_id.isprintable()
        and not any(character in client_id for character in " \\#?")
        and parts.path not in ("", "/")
        and not {".", "..", "%2e", "%2e%2e"} & {segment.lower() for segment in segments}
    )


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public internet, and stands for no other one."""
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    refused = any(parsed in network for network in REFUSED_NETWORKS)
    return parsed.is_global and not (refused or parsed.is_multicast or parsed.is_reserved)


class PublicNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses only: whatever a name resolves to, and checked again on the connected socket."""

    def __init__(self, backend: httpcore2.AsyncNetworkBackend | None = None) -> None:
        self._backend = backend or httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (the signature of the base class)
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not addresses or not all(is_public(address) for address in addresses):
            raise ClientError("the client_id is no URL of a public host")
        stream = await self._backend.connect_tcp(addresses[0], port, timeout, local_address, socket_options)
        peer = stream.get_extra_info("server_addr")
        if not peer or not is_public(str(peer[0])):
            await stream.aclose()
            raise ClientError("the client_id is no URL of a public host")
        return stream


class Documents:
    """Fetches the documents of clients, and keeps them for as long as their headers say, within bounds."""

    def __init__(self, supported_scopes: tuple[str, ...], proxy: str | None = None) -> None:
        """Prepare the connections.

        Args:
            supported_scopes: Those that clients may ask for.
            proxy: A forward proxy, which then has to keep requests away from the company's own network.
        """
        self._scopes = supported_scopes
        self._cache: dict[str, tuple[tuple[OAuthClient, dict[str, Any]] | ClientError, float]] = {}
        self._fetches = asyncio.Semaphore(MAX_FETCHES)
        self._proxy = proxy
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def open(self) -> None:
        proxy = httpcore2.Proxy(self._proxy) if self._proxy else None
        network = None if proxy else PublicNetwork()
        self._pool = httpcore2.AsyncConnectionPool(
            tls_context(), proxy, max_connections=MAX_FETCHES, max_keepalive_connections=0, network_backend=network
        )

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    async def client(self, client_id: str) -> OAuthClient:
        """Return the client of a document.

        Raises:
            ClientError: there is no such document, or it is not acceptable.
        """
        return (await self._found(client_id))[0]

    async def keys(self, client_id: str) -> dict[str, Any]:
        """Return the JWK Set of a client.

        Raises:
            ClientError: there is none.
        """
        document = (await self._found(client_id))[1]
        if document["jwks"] is not None:
            return dict(document["jwks"])
        if not is_document_url(document["jwks_uri"] or ""):
            raise ClientError("the document has no jwks and no usable jwks_uri")
        return (await self._get(document["jwks_uri"]))[0]

    async def _found(self, client_id: str) -> tuple[OAuthClient, dict[str, Any]]:
        found, until = self._cache.get(client_id, (None, 0.0))
        if found is None or time.monotonic() >= until:
            try:
                content, age = await self._get(client_id)
                found = self._parsed(client_id, content)
            except ClientError as error:
                found, age = error, FAILED_AGE
            self._cache.pop(client_id, None)
            if len(self._cache) >= MAX_CACHED:
                del self._cache[next(iter(self._cache))]
            self._cache[client_id] = (found, time.monotonic() + age)
        if isinstance(found, ClientError):
            raise ClientError(str(found))
        return found

    def _parsed(self, client_id: str, content: dict[str, Any]) -> tuple[OAuthClient, dict[str, Any]]:
        if "client_secret" in content:
            raise ClientError("the document must not have a client_secret")
        try:
            document = Document.model_validate(content).model_dump()
        except ValidationError as error:
            detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise ClientError(f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}") from None
        if document["client_id"] != client_id:
            raise ClientError("the client_id in the document is not its URL")
        return accepted({**document, "jwks": None, "jwks_uri": None}, self._scopes), document

    async def _get(self, url: str) -> tuple[dict[str, Any], float]:
        """Return a JSON object, and for how many seconds it is kept. Redirects are not followed."""
        if self._pool is None:
            raise ClientError("the server is not running")
        body = bytearray()
        try:
            async with (
                asyncio.timeout(FETCH_SECONDS),
                self._fetches,
                self._pool.stream("GET", url, headers=[("accept", "application/json")]) as response,
            ):
                if response.status != 200:
                    raise ClientError(f"the URL answered with status {response.status}")
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > MAX_DOCUMENT_BYTES:
                        raise ClientError(f"the document is larger than {MAX_DOCUMENT_BYTES} bytes")
            content = json.loads(body)
        except (OSError, TimeoutError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException):
            raise ClientError("the URL does not answer") from None
        except (ValueError, RecursionError):
            raise ClientError("the document is not JSON") from None
        if not isinstance(content, dict):
            raise ClientError("the document is not a JSON object")
        return content, _age(response.headers)


def _age(headers: Iterable[tuple[bytes, bytes]]) -> float:
    """Return for how many seconds a response may be kept (RFC 9111, section 5.2.2), within our bounds."""
    control = b",".join(value.lower() for name, value in headers if name.lower() == b"cache-control").decode("latin-1")
    found = re.search(r"max-age=\"?(\d{1,9})", control)
    age = float(found[1]) if found else DEFAULT_AGE
    if re.search(r"no-store|no-cache", control):
        age = 0.0
    return min(max(age, MIN_AGE), MAX_AGE)


def assertion_claims(token: str, keys: Mapping[str, Any], client_id: str, audiences: tuple[str, ...]) -> dict[str, Any]:
    """Return the claims of a client's assertion (RFC 7523, section 3).

    Raises:
        ClientError: it is not valid.
    """
    try:
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        usable = [key for key in signing_keys(keys) if algorithm in key.algorithms and key.kid == header.get("kid")]
        if algorithm not in ACCEPTED_ALGORITHMS or not usable:
            raise ClientError("the client_assertion is signed with an unknown key")
        claims: dict[str, Any] = jwt.decode(
            token,
            usable[0].key,
            algorithms=[algorithm],
            audience=audiences,
            issuer=client_id,
            leeway=30,
            options={"require": ["exp", "iss", "sub", "aud", "jti"]},
        )
    except (jwt.PyJWTError, RecursionError):
        raise ClientError("the client_assertion is not valid") from None
    if claims["sub"] != client_id or claims["exp"] > time.time() + MAX_ASSERTION_SECONDS:
        raise ClientError("the client_assertion is not valid: sub must be the client_id, and exp soon")
    return claims


def assertion_key(client_id: str, claims: Mapping[str, Any]) -> str:
    """Return the key of the record that an assertion has been used."""
    return "assertion:" + digest(f"{client_id} {claims['jti']}")
