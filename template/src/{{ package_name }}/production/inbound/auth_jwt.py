"""Authentication with JWT access tokens: signature, issuer, audience, lifetime and scopes are verified.

The server is a resource server (RFC 9728): its metadata names the authorization server `JWT_ISSUER`, which issues the
tokens. The issuer's keys are cached, so a short outage of the issuer does not affect calls.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.routes import cors_middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Scope

from ..config import ConfigError, ProductionConfig
from ..registry import HealthPart, Probe, Registry
from . import auth
from .auth import AuthError, Fingerprint, User
from .guard import host_header, resolves_to_loopback
from .http_limits import header_of

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

LEEWAY_SECONDS = 30
"""Tolerated difference between the issuer's clock and ours."""

REFRESH_SECONDS = 300.0
"""Age at which the keys are fetched again in the background; the old keys stay valid until that succeeds."""

MIN_FETCH_INTERVAL_SECONDS = 5.0
"""Least time between two fetches, so that tokens with invented key ids do not cause requests to the issuer."""

FETCH_TIMEOUT_SECONDS = 5.0
MAX_DOCUMENT_BYTES = 1024 * 1024

CACHE_SECONDS = 60.0
"""Longest time that a verified token is accepted without verifying it again."""

MAX_CACHED_TOKENS = 4096

ENDPOINT_PATH = "/mcp"
WELL_KNOWN = "/.well-known/oauth-protected-resource"

REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "The access token has expired",
    jwt.ImmatureSignatureError: "The access token is not valid yet",
    jwt.InvalidAudienceError: "The access token is for another audience",
    jwt.InvalidIssuerError: "The access token is from another issuer",
    jwt.MissingRequiredClaimError: "The access token lacks one of the claims exp, iss and aud",
}

log = structlog.stdlib.get_logger(__name__)


def install(registry: Registry) -> None:
    """Require a token of `JWT_ISSUER`, or a loopback address where `JWT_ISSUER` is not set.

    Raises:
        ConfigError: the settings are incomplete or contradict each other.
    """
    config = registry.config
    auth.report_settings(registry, JWT_ISSUER=config.jwt_issuer, JWT_AUDIENCE=config.jwt_audience)
    if config.transport == "stdio":
        return
    problems = _problems(config)
    if problems:
        raise ConfigError(problems)
    if not config.jwt_issuer or not config.jwt_audience:
        auth.require_loopback(registry, "JWT_ISSUER and JWT_AUDIENCE")
        return
    for name, url in (("JWT_ISSUER", config.jwt_issuer), ("JWT_JWKS_URL", config.jwt_jwks_url or "")):
        parts = urlsplit(url)
        if parts.scheme == "http" and not resolves_to_loopback(parts.hostname or ""):
            registry.notices.append(f"{name} is not https: an attacker on the network can replace the issuer's keys")
    keys = KeySet(config.jwt_issuer, config.jwt_jwks_url)
    registry.on_startup.append(keys.open)
    registry.on_shutdown.append(keys.close)
    registry.health.parts.append(keys.health)
    registry.health.probes["issuer"] = Probe(config.jwt_jwks_url or config.jwt_issuer, keys.check)
    metadata = ResourceMetadata(registry, config.jwt_issuer, config.jwt_audience)
    registry.http.routes += metadata.routes()
    verifier = JWTVerifier(config.jwt_issuer, config.jwt_audience, config.jwt_required_scopes, keys)
    auth.require(registry, verifier.verify, metadata.challenge)


def _problems(config: ProductionConfig) -> list[str]:
    if config.jwt_issuer and not config.jwt_audience:
        return [
            "JWT_AUDIENCE: must be set with JWT_ISSUER, or tokens issued for other services would be accepted; "
            "use the public URL of this server's /mcp"
        ]
    if not config.jwt_issuer:
        others = {
            "JWT_AUDIENCE": config.jwt_audience,
            "JWT_JWKS_URL": config.jwt_jwks_url,
            "JWT_REQUIRED_SCOPES": config.jwt_required_scopes,
        }
        return [f"JWT_ISSUER: must be set with {name}" for name, value in others.items() if value][:1]
    parts = urlsplit(config.jwt_issuer)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        return ["JWT_ISSUER: must be the issuer's URL, exactly as in the iss claim of its tokens"]
    return []


class JWTVerifier:
    """Verifies access tokens, with a cache of the users of recently verified tokens."""

    def __init__(self, issuer: str, audience: str, required_scopes: Sequence[str], keys: KeySet) -> None:
        self._issuer = issuer
        self._audience = audience
        self._required_scopes = frozenset(required_scopes)
        self._keys = keys
        self._fingerprint = Fingerprint()
        self._cache: dict[bytes, tuple[User, float]] = {}

    async def verify(self, token: bytes) -> User:
        fingerprint = self._fingerprint(token)
        user, valid_until = self._cache.get(fingerprint, (None, 0.0))
        if user is not None and time.time() < valid_until:
            return user
        claims = await self._verified_claims(token)
        user = _user(claims, token, self._audience)
        missing = self._required_scopes.difference(user.access_token.scopes)
        if missing:
            reason = f"The access token lacks the scope {' '.join(sorted(missing))}"
            raise AuthError(403, "insufficient_scope", reason)
        self._add_to_cache(fingerprint, user)
        return user

    async def _verified_claims(self, token: bytes) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise AuthError(401, "invalid_token", "The access token is not a JWT") from None
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ACCEPTED_ALGORITHMS:
            raise AuthError(401, "invalid_token", "The access token is not signed with an accepted algorithm")
        signing_key = await self._keys.get(header.get("kid"))
        try:
            return jwt.decode(
                token,
                signing_key.key,
                algorithms=signing_key.algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            reason = REASONS.get(type(error), "The access token is not valid")
            raise AuthError(401, "invalid_token", reason) from None

    def _add_to_cache(self, fingerprint: bytes, user: User) -> None:
        self._cache.pop(fingerprint, None)
        if len(self._cache) >= MAX_CACHED_TOKENS:
            del self._cache[next(iter(self._cache))]
        expires = (user.access_token.expires_at or 0) + LEEWAY_SECONDS
        self._cache[fingerprint] = (user, min(expires, time.time() + CACHE_SECONDS))


def _user(claims: Mapping[str, Any], token: bytes, audience: str) -> User:
    subject = _text_claim(claims, "sub")
    client = _text_claim(claims, "client_id", "azp", "cid") or subject
    if client is None:
        raise AuthError(401, "invalid_token", "The access token names neither a subject nor a client")
    return User(
        AccessToken(
            token=token.decode("ascii"),  # a JWT with a valid signature is base64url, so ASCII
            client_id=client,
            scopes=_scopes(claims),
            expires_at=int(claims["exp"]),
            resource=audience,
            subject=subject,
            claims=dict(claims),
        )
    )


def _text_claim(claims: Mapping[str, Any], *names: str) -> str | None:
    """Return the first of the claims `names` that is a non-empty string."""
    return next((value for name in names if isinstance(value := claims.get(name), str) and value), None)


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    """Return the scopes from the claim `scope` (RFC 9068, section 2.2.3), or from `scp` (Entra ID, Okta)."""
    granted = claims.get("scope", claims.get("scp", ""))
    if isinstance(granted, str):
        return granted.split()
    return [scope for scope in granted if isinstance(scope, str)] if isinstance(granted, list) else []


class SigningKey(NamedTuple):
    kid: str | None
    key: Any
    algorithms: tuple[str, ...]


class KeySet:
    """The issuer's signing keys. At most one fetch runs at a time, and a failed one leaves the keys as they are."""

    def __init__(self, issuer: str, url: str | None) -> None:
        self._issuer = issuer
        self._url = url
        self._keys: tuple[SigningKey, ...] = ()
        self._fetched_at = self._next_fetch = float("-inf")
        self._problem = "not fetched yet"
        self._fetching: asyncio.Task[None] | None = None
        self._client: httpx2.AsyncClient | None = None

    async def open(self) -> None:
        """Fetch the keys; the server starts even if that fails."""
        self._client = httpx2.AsyncClient(timeout=None)  # `_fetch` has a timeout of its own
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
        """Return if there are keys.

        Raises:
            ValueError: there are none; the text gives the reason.
        """
        if not self._keys:
            raise ValueError(self._problem)

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart() if self._keys else HealthPart(degraded=("issuer_keys",))

    async def get(self, kid: object) -> SigningKey:
        """Return the key with the id `kid`, or the only key if `kid` is None. An unknown id causes a fetch.

        Raises:
            AuthError: there is no such key, or no key has ever been fetched.
        """
        if time.monotonic() - self._fetched_at > REFRESH_SECONDS and self._keys:
            self._start_fetch()
        key = self._cached(kid)
        if key is None:
            await self._refresh()
            key = self._cached(kid)
        if key is not None:
            return key
        if not self._keys:
            reason = "The keys of the authorization server cannot be fetched: try again soon"
            raise AuthError(503, "", reason, retry_after=int(MIN_FETCH_INTERVAL_SECONDS))
        raise AuthError(401, "invalid_token", "The access token is signed with an unknown key")

    def _cached(self, kid: object) -> SigningKey | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == kid), None)

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
                url = self._url or await self._discover_url()
                keys = signing_keys(await self._get_json(url))
            if not keys:
                raise ValueError(f"{url} has no usable key")
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            self._problem = str(error) or repr(error)
            log.warning("the issuer's keys cannot be fetched", issuer=self._issuer, problem=self._problem)
        else:
            self._keys, self._fetched_at = keys, time.monotonic()
        finally:
            self._next_fetch = time.monotonic() + MIN_FETCH_INTERVAL_SECONDS

    async def _discover_url(self) -> str:
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
                document = await self._get_json(url)
            except (httpx2.HTTPError, ValueError) as error:
                problems.append(f"{url}: {str(error) or repr(error)}")
                continue
            if document.get("issuer") != self._issuer:  # RFC 8414, section 3.3
                raise ValueError(f"JWT_ISSUER is {self._issuer}, but the issuer in {url} is {document.get('issuer')!r}")
            jwks_uri = document.get("jwks_uri")
            if not isinstance(jwks_uri, str) or urlsplit(jwks_uri).scheme not in ("https", parts.scheme):
                raise ValueError(f"{url} has no usable jwks_uri")
            return jwks_uri
        raise ValueError("; ".join(problems) + "; set JWT_JWKS_URL if the issuer publishes no metadata")

    async def _get_json(self, url: str) -> dict[str, Any]:
        if self._client is None:
            raise ValueError("the server is not running")
        body = bytearray()
        async with self._client.stream("GET", url, headers={"accept": "application/json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"{url} answered with status {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise ValueError(f"{url} answered with more than {MAX_DOCUMENT_BYTES} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise ValueError(f"{url} did not answer with a JSON object")
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


class ResourceMetadata:
    """The protected resource metadata (RFC 9728), which names the authorization server, and the URL it is served at."""

    def __init__(self, registry: Registry, issuer: str, audience: str) -> None:
        parts = urlsplit(audience)
        is_url = parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.query and not parts.fragment
        self._url = audience if is_url else None
        self._path = parts.path.rstrip("/") if is_url else ENDPOINT_PATH
        self._scopes = registry.config.jwt_required_scopes
        self._document: dict[str, Any] = {
            "authorization_servers": [issuer],
            "bearer_methods_supported": ["header"],
            "resource_name": registry.about.title,
        }
        if self._scopes:
            self._document["scopes_supported"] = list(self._scopes)

    def routes(self) -> list[Route]:
        handler = cors_middleware(self._metadata, ["GET", "OPTIONS"])
        paths = dict.fromkeys((WELL_KNOWN, f"{WELL_KNOWN}{ENDPOINT_PATH}", f"{WELL_KNOWN}{self._path}"))
        return [Route(path, handler, methods=["GET", "OPTIONS"]) for path in paths]

    async def _metadata(self, request: Request) -> JSONResponse:
        resource = self._resource(request.scope)
        if resource is None:
            return JSONResponse({"error": "the Host header is not valid"}, status_code=400)
        headers = {"cache-control": "max-age=300" if self._url else "no-store"}
        return JSONResponse({"resource": resource, **self._document}, headers=headers)

    def challenge(self, scope: Scope) -> str:
        """Return the parameters of WWW-Authenticate (RFC 9728, section 5.1; RFC 6750, section 3)."""
        parameters = []
        resource = self._resource(scope)
        if resource is not None:
            parts = urlsplit(resource)
            parameters.append(f'resource_metadata="{parts.scheme}://{parts.netloc}{WELL_KNOWN}{self._path}"')
        if self._scopes:
            parameters.append(f'scope="{" ".join(self._scopes)}"')
        return ", ".join(parameters)

    def _resource(self, scope: Scope) -> str | None:
        """Return the public URL of the endpoint: JWT_AUDIENCE if that is a URL, else from the Host header.

        The client chooses the Host header, so responses that contain it must not be cached.
        """
        if self._url is not None:
            return self._url
        host = host_header(scope)
        if host is None:
            return None
        # Each proxy may append its own: the first one is that of the client.
        forwarded = (header_of(scope, b"x-forwarded-proto") or b"").partition(b",")[0].strip().lower()
        secure = scope["scheme"] == "https" or forwarded == b"https"
        return f"{'https' if secure else 'http'}://{host}{ENDPOINT_PATH}"
