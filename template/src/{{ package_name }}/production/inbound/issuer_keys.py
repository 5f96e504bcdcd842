"""The keys of an issuer of tokens, cached, so that a short outage of the issuer does not affect calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from ..environment import tls_context
from ..registry import HealthPart
from .auth import AuthError

ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""Signature algorithms by type and curve of a key; the token does not choose the algorithm (RFC 8725, section 3.1)."""

PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")
"""Members of a JWK that are used: if an issuer publishes a private key by mistake, its public part still verifies."""

ACCEPTED_ALGORITHMS = frozenset(name for names in ALGORITHMS.values() for name in names)
MIN_RSA_BITS = 2048

REFRESH_SECONDS = 300.0
"""Age at which the keys are fetched again in the background; the old keys stay valid until that succeeds."""

MIN_FETCH_INTERVAL_SECONDS = 5.0
"""Least time between two fetches, so that tokens with invented key ids do not cause requests to the issuer."""

FETCH_TIMEOUT_SECONDS = 5.0
MAX_DOCUMENT_BYTES = 1024 * 1024

MAX_CANDIDATES = 4
"""Keys to try for a token without a key id; each costs a signature check."""

log = structlog.stdlib.get_logger(__name__)


class SigningKey(NamedTuple):
    """A key that verifies signatures with one of `algorithms`."""

    kid: str | None
    key: Any
    algorithms: tuple[str, ...]


class KeySet:
    """An issuer's signing keys. At most one fetch runs at a time, and a failed one leaves the keys as they are."""

    def __init__(self, issuer: str, jwks_url: str | None = None) -> None:
        """Prepare for the keys of `issuer`, at `jwks_url` or where its metadata says."""
        self._issuer = issuer
        self._url = jwks_url
        self._keys: tuple[SigningKey, ...] = ()
        self._fetched_at = self._next_fetch = float("-inf")
        self._problem = "not fetched yet"
        self._fetching: asyncio.Task[None] | None = None
        self._client: httpx2.AsyncClient | None = None

    async def open(self) -> None:
        """Fetch the keys; the server starts even if that fails."""
        self._client = httpx2.AsyncClient(verify=tls_context(), timeout=None)  # `_fetch` has a timeout of its own
        self._next_fetch = float("-inf")
        await self._refresh()

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])
            self._fetching = None
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def check(self) -> None:
        """Check that there are keys.

        Raises:
            ValueError: there are none; the text gives the reason.
        """
        if not self._keys:
            raise ValueError(self._problem)

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart() if self._keys else HealthPart(degraded=("issuer_keys",))

    async def candidates(self, kid: object, algorithm: str) -> AsyncGenerator[Any]:
        """Yield the keys that can have signed a token; if none of the known ones has, fetch and yield new ones.

        A key without an id can belong to any token, and two keys can share an id if their algorithms differ (RFC 7517,
        section 4.5). A token without an id is verified with every key of its algorithm, up to `MAX_CANDIDATES`.

        Raises:
            AuthError: there is no such key, or no key has ever been fetched.
        """
        if time.monotonic() - self._fetched_at > REFRESH_SECONDS and self._keys:
            self._start_fetch()
        known = self._cached(kid, algorithm)
        for key in known:
            yield key.key
        if known and known[0].kid is not None and kid is not None:
            return
        await self._refresh()
        fetched = [key for key in self._cached(kid, algorithm) if key not in known]
        for key in fetched:
            yield key.key
        if not self._keys:
            reason = "The keys of the authorization server cannot be fetched: try again soon"
            raise AuthError(503, "", reason, retry_after=int(MIN_FETCH_INTERVAL_SECONDS))
        if not known and not fetched:
            raise AuthError(401, "invalid_token", "The access token is signed with an unknown key")

    def _cached(self, kid: object, algorithm: str) -> list[SigningKey]:
        usable = [key for key in self._keys if algorithm in key.algorithms]
        named = [key for key in usable if key.kid == kid and kid is not None]
        return named or [key for key in usable if kid is None or key.kid is None][:MAX_CANDIDATES]

    async def _refresh(self) -> None:
        """Wait for the running fetch; start one first if none runs and the last one is long enough ago."""
        self._start_fetch()
        if self._fetching is not None and not self._fetching.done():
            await asyncio.shield(self._fetching)  # other requests wait for it too

    def _start_fetch(self) -> None:
        if (self._fetching is None or self._fetching.done()) and time.monotonic() >= self._next_fetch:
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                client = self._client
                if client is None:
                    raise ValueError("the server is not running")
                url = self._url or await self._discover_url(client)
                keys = signing_keys(await get_json(client, url))
            if not keys:
                raise ValueError(f"{url} has no usable key")
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            self._problem = str(error) or repr(error)
            log.warning("the issuer's keys cannot be fetched", issuer=self._issuer, problem=self._problem)
        else:
            self._keys, self._fetched_at = keys, time.monotonic()
        finally:
            self._next_fetch = time.monotonic() + MIN_FETCH_INTERVAL_SECONDS

    async def _discover_url(self, client: httpx2.AsyncClient) -> str:
        """Return the URL of the keys from the issuer's metadata (OpenID Connect Discovery 1.0, section 4; RFC 8414)."""
        parts = urlsplit(self._issuer)
        path = parts.path.rstrip("/")
        base = f"{parts.scheme}://{parts.netloc}"
        problems = []
        for url in (
            f"{base}{path}/.well-known/openid-configuration",
            f"{base}/.well-known/oauth-authorization-server{path}",
        ):
            try:
                document = await get_json(client, url)
            except (httpx2.HTTPError, ValueError) as error:
                problems.append(f"{url}: {str(error) or repr(error)}")
                continue
            if document.get("issuer") != self._issuer:  # RFC 8414, section 3.3
                raise ValueError(f"the issuer is {self._issuer}, but the issuer in {url} is {document.get('issuer')!r}")
            jwks_uri = document.get("jwks_uri")
            if not isinstance(jwks_uri, str) or urlsplit(jwks_uri).scheme not in ("https", parts.scheme):
                raise ValueError(f"{url} has no usable jwks_uri")
            return jwks_uri
        raise ValueError("; ".join(problems) + "; set the URL of its keys if the issuer publishes no metadata")


async def signed_claims(
    keys: KeySet, token: bytes | str, kid: object, algorithm: str, *, leeway: float, **checks: Any
) -> dict[str, Any]:
    """Return the claims of a JWT that one of an issuer's keys has signed.

    Args:
        keys: The issuer's keys.
        token: The JWT.
        kid: The key id in its header.
        algorithm: The algorithm in its header, one of `ACCEPTED_ALGORITHMS`.
        leeway: Tolerated difference between the issuer's clock and ours, in seconds.
        checks: Further arguments of `jwt.decode`: audience, issuer, options.

    Raises:
        jwt.PyJWTError: none has, or a claim is not valid.
        AuthError: no key can have signed it, or no key has ever been fetched.
    """
    async with aclosing(keys.candidates(kid, algorithm)) as candidates:
        async for key in candidates:
            try:
                claims: dict[str, Any] = jwt.decode(token, key, algorithms=[algorithm], leeway=leeway, **checks)
                return claims
            except jwt.InvalidSignatureError:
                continue
    raise jwt.InvalidSignatureError


async def get_json(client: httpx2.AsyncClient, url: str, **headers: str) -> dict[str, Any]:
    """Return the JSON object that `url` answers with.

    Raises:
        httpx2.HTTPError: it does not answer.
        ValueError: the response has another status than 200, is too large, or is no JSON object.
    """
    async with client.stream("GET", url, headers={"accept": "application/json", **headers}) as response:
        return await read_json(response, url, MAX_DOCUMENT_BYTES)


async def read_json(response: httpx2.Response, source: str, max_bytes: int) -> dict[str, Any]:
    """Return the JSON object in the body of a response that is not read yet.

    Args:
        response: has to have status 200.
        source: who answered, for the text of an error.
        max_bytes: greatest size of the body.

    Raises:
        httpx2.HTTPError: the connection fails.
        ValueError: the response has another status than 200, is too large, or is no JSON object.
    """
    if response.status_code != 200:
        raise ValueError(f"{source} answered with status {response.status_code}")
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise ValueError(f"{source} answered with more than {max_bytes} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError(f"{source} did not answer with a JSON object")
    return document


def signing_keys(document: Mapping[str, Any]) -> tuple[SigningKey, ...]:
    """Return the keys of a JWK Set that can verify signatures; the others are ignored (RFC 7517, section 5)."""
    entries = document.get("keys")
    keys = [_signing_key(entry) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return tuple(key for key in keys if key is not None)


def _signing_key(entry: dict[str, Any]) -> SigningKey | None:
    """Return the key of one JWK, or `None` if it is unsupported, weak, malformed or not for signatures."""
    kid, alg = entry.get("kid"), entry.get("alg")
    curve = None if entry.get("kty") == "RSA" else entry.get("crv")
    algorithms = ALGORITHMS.get((str(entry.get("kty")), curve if isinstance(curve, str) else None), ())
    if alg is not None:
        algorithms = tuple(name for name in algorithms if name == alg)
    if not algorithms or entry.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK({name: entry[name] for name in PUBLIC_MEMBERS if name in entry}, algorithms[0]).key
    except jwt.PyJWTError:
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        return None
    return SigningKey(kid if isinstance(kid, str) else None, key, algorithms)
