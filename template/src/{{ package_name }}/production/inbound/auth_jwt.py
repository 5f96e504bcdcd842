"""Authentication with JWT access tokens: signature, issuer, audience, lifetime and scopes are verified.

The server is a resource server (RFC 9728): its metadata names the authorization servers that issue the tokens. The
keys of each issuer are cached, so a short outage of an issuer does not affect calls.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from mcp.server.auth.routes import cors_middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Scope

from ..caller import User
from ..config import ConfigError, ProductionConfig, without_credentials
from ..registry import HealthPart, Probe, Registry
from . import auth
from .auth import AuthError, Fingerprint, UnknownTokenError
from .guard import host_header
from .http_limits import header_of
from .issuers import Issuer, trusted_issuers

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

MAX_CANDIDATES = 4
"""Keys to try for a token without a key id; each costs a signature check."""

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
    """Require a token of one of the issuers, or a loopback address where no method is configured.

    Raises:
        ConfigError: the settings are incomplete or contradict each other.
    """
    config = registry.config
    issuer_settings = config.jwt_issuer or config.jwt_issuers or config.jwt_issuers_file
    methods = auth.methods(registry)
    methods.report(JWT_ISSUER=issuer_settings, JWT_AUDIENCE=config.jwt_audience)
    if config.transport == "stdio":
        return
    issuers = trusted_issuers(config)
    if not issuers:
        if problems := _settings_without_issuer(config):
            raise ConfigError(problems)
        methods.add("jwt", "JWT_ISSUER and JWT_AUDIENCE", None)
        return
    metadata = ResourceMetadata(registry, issuers)
    registry.http.routes += metadata.routes()
    methods.challenge = metadata.challenge
    verifier = JWTVerifier(issuers)
    if not methods.add("jwt", "JWT_ISSUER and JWT_AUDIENCE", verifier.verify):
        return
    for number, (issuer, keys) in enumerate(verifier.issuers.values(), 1):
        for name, url in (("JWT_ISSUER", issuer.issuer), ("JWT_JWKS_URL", issuer.jwks_url or "")):
            auth.require_tls(registry, name, url, "an attacker on the network can replace the issuer's keys")
        registry.on_startup.append(keys.open)
        registry.on_shutdown.append(keys.close)
        registry.health.parts.append(keys.health)
        probe = "issuer" if number == 1 else f"issuer {number}"
        registry.health.probes[probe] = Probe(without_credentials(issuer.jwks_url or issuer.issuer), keys.check)


def _settings_without_issuer(config: ProductionConfig) -> list[str]:
    others = {
        "JWT_AUDIENCE": config.jwt_audience,
        "JWT_JWKS_URL": config.jwt_jwks_url,
        "JWT_REQUIRED_SCOPES": config.jwt_required_scopes,
        "INTROSPECTION_URL": config.introspection_url,
    }
    return [f"JWT_ISSUER: must be set with {name}" for name, value in others.items() if value][:1]


class JWTVerifier:
    """Verifies access tokens, with a cache of the users of recently verified tokens."""

    def __init__(self, issuers: Sequence[Issuer]) -> None:
        self.issuers = {issuer.issuer: (issuer, KeySet(issuer)) for issuer in issuers}
        self._fingerprint = Fingerprint()
        self._cache: dict[bytes, tuple[User, float]] = {}

    async def verify(self, token: bytes, scope: Scope) -> User:
        fingerprint = self._fingerprint(token)
        user, valid_until = self._cache.get(fingerprint, (None, 0.0))
        if user is not None and time.time() < valid_until:
            return user
        header, unverified = _parts(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ACCEPTED_ALGORITHMS:
            raise AuthError(401, "invalid_token", "The access token is not signed with an accepted algorithm")
        issuer, keys = self._issuer_of(unverified)
        claims = await _verified_claims(token, issuer, keys, header.get("kid"), algorithm)
        if not is_access_token(header, claims):
            raise AuthError(401, "invalid_token", "The token is no access token, but one of another type")
        user = issuer.user(claims, token)
        self._add_to_cache(fingerprint, user)
        return user

    def _issuer_of(self, claims: Mapping[str, Any]) -> tuple[Issuer, KeySet]:
        name = claims.get("iss")
        issuer = self.issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            error = jwt.MissingRequiredClaimError if name is None else jwt.InvalidIssuerError
            raise AuthError(401, "invalid_token", REASONS[error])
        return issuer

    def _add_to_cache(self, fingerprint: bytes, user: User) -> None:
        self._cache.pop(fingerprint, None)
        if len(self._cache) >= MAX_CACHED_TOKENS:
            del self._cache[next(iter(self._cache))]
        expires = (user.access_token.expires_at or 0) + LEEWAY_SECONDS
        self._cache[fingerprint] = (user, min(expires, time.time() + CACHE_SECONDS))


def _parts(token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims of a JWT, neither of them verified.

    Raises:
        UnknownTokenError: `token` is not a JWT.
    """
    try:
        unverified = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, RecursionError):
        raise UnknownTokenError("The access token is not a JWT") from None
    return unverified["header"], unverified["payload"]


async def _verified_claims(token: bytes, issuer: Issuer, keys: KeySet, kid: object, algorithm: str) -> dict[str, Any]:
    """Return the claims of a token that one of the issuer's keys has signed.

    Raises:
        AuthError: no key has signed it, or a claim is not valid.
    """
    async with aclosing(keys.candidates(kid, algorithm)) as candidates:
        async for key in candidates:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=issuer.audience,
                    issuer=issuer.issuer,
                    leeway=LEEWAY_SECONDS,
                    options={"require": ["exp", "iss", "aud"]},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.PyJWTError as error:
                reason = REASONS.get(type(error), "The access token is not valid")
                raise AuthError(401, "invalid_token", reason) from None
    raise AuthError(401, "invalid_token", "The access token is not valid")


def is_access_token(header: Mapping[str, Any], claims: Mapping[str, Any]) -> bool:
    """Return whether a token of a trusted issuer is an access token, not an ID, refresh or logout token.

    RFC 9068 marks access tokens by `typ: at+jwt`. Without it some issuers say so in a claim (Keycloak `typ`, Cognito
    `token_use`), and the claims of OpenID Connect Core 1.0, section 2, mark an ID token.
    """
    media_type = str(header.get("typ", "jwt")).lower().removeprefix("application/")
    if media_type != "jwt":
        return media_type == "at+jwt"
    kind = claims.get("token_use", claims.get("typ"))
    if kind is not None:
        return str(kind).lower() in ("access", "bearer", "dpop")
    return claims.keys().isdisjoint(("nonce", "at_hash", "c_hash", "events"))


class SigningKey(NamedTuple):
    """A key that verifies signatures with one of `algorithms`."""

    kid: str | None
    key: Any
    algorithms: tuple[str, ...]


class KeySet:
    """An issuer's signing keys. At most one fetch runs at a time, and a failed one leaves the keys as they are."""

    def __init__(self, issuer: Issuer) -> None:
        self._issuer = issuer.issuer
        self._url = issuer.jwks_url
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

    async def candidates(self, kid: object, algorithm: str) -> AsyncGenerator[Any]:
        """Yield the keys that can have signed a token, and fetch the keys if there is none or none without an id did.

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
                raise ValueError(f"the issuer is {self._issuer}, but the issuer in {url} is {document.get('issuer')!r}")
            jwks_uri = document.get("jwks_uri")
            if not isinstance(jwks_uri, str) or urlsplit(jwks_uri).scheme not in ("https", parts.scheme):
                raise ValueError(f"{url} has no usable jwks_uri")
            return jwks_uri
        raise ValueError("; ".join(problems) + "; set the URL of its keys if the issuer publishes no metadata")

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
    """The protected resource metadata (RFC 9728), which names the authorization servers, and its URL."""

    def __init__(self, registry: Registry, issuers: Sequence[Issuer]) -> None:
        audience = issuers[0].audience[0]
        parts = urlsplit(audience)
        is_url = parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.query and not parts.fragment
        self._url = audience if is_url else None
        self._path = parts.path.rstrip("/") if is_url else ENDPOINT_PATH
        self._scopes = registry.config.jwt_required_scopes
        self._document: dict[str, Any] = {
            "authorization_servers": [issuer.issuer for issuer in issuers],
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
