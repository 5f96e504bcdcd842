"""An access token counts where its signature, issuer, audience, times and scopes do.

This server is a resource server only: clients get their tokens from the authorization server `JWT_ISSUER`, which the
metadata of RFC 9728 names to them. The issuer's keys are fetched and kept here, so that it is asked rarely and may be
away for a while.
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
from .guard import binds_loopback, own_host

ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""What a key may verify, by its type and curve. The token never decides it (RFC 8725, section 3.1)."""

PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")
"""What of a key is used: with more, an issuer's mistake would make a private key of it, which verifies nothing."""

ACCEPTED = frozenset(name for names in ALGORITHMS.values() for name in names)
MIN_RSA_BITS = 2048

LEEWAY_SECONDS = 30
"""How far the issuer's clock may be off."""

FRESH_SECONDS = 300.0
"""How old the keys may get before new ones are fetched; those at hand serve meanwhile, and while the issuer is away."""

PAUSE_SECONDS = 5.0
"""How long after a fetch the next one may begin, so that tokens with made-up key ids cannot burden the issuer."""

FETCH_SECONDS = 5.0
MAX_DOCUMENT_BYTES = 1024 * 1024

REMEMBER_SECONDS = 60.0
"""How long a verified token needs no second verification, unless it expires before."""

MAX_REMEMBERED = 4096

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
    """Requires a token of `JWT_ISSUER` where it is set; where it is not, only this machine can be served.

    Raises:
        ConfigError: the settings are incomplete or contradict each other.
    """
    config = registry.config
    auth.report(registry, JWT_ISSUER=config.jwt_issuer, JWT_AUDIENCE=config.jwt_audience)
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
        if parts.scheme == "http" and not binds_loopback(parts.hostname or ""):
            registry.notices.append(f"{name} is not https: whoever is between can pass off keys as the issuer's")
    keys = Keys(config.jwt_issuer, config.jwt_jwks_url)
    registry.on_startup.append(keys.open)
    registry.on_shutdown.append(keys.close)
    registry.health.parts.append(keys.health)
    registry.health.probes["issuer"] = Probe(config.jwt_jwks_url or config.jwt_issuer, keys.check)
    resource = Resource(registry, config.jwt_issuer, config.jwt_audience)
    registry.http.routes += resource.routes()
    tokens = Tokens(config.jwt_issuer, config.jwt_audience, config.jwt_required_scopes, keys)
    auth.require(registry, tokens.verify, resource.challenge)


def _problems(config: ProductionConfig) -> list[str]:
    if config.jwt_issuer and not config.jwt_audience:
        return [
            "JWT_AUDIENCE: must be set with JWT_ISSUER, or tokens made for other services would count here; "
            "best to the public URL of this server's /mcp"
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
        return ["JWT_ISSUER: must be the issuer's URL, character by character as in the claim iss of its tokens"]
    return []


class Tokens:
    """Verifies access tokens, and remembers for a short time which were good."""

    def __init__(self, issuer: str, audience: str, required_scopes: Sequence[str], keys: Keys) -> None:
        self._issuer = issuer
        self._audience = audience
        self._required = frozenset(required_scopes)
        self._keys = keys
        self._fingerprint = Fingerprint()
        self._remembered: dict[bytes, tuple[User, float]] = {}

    async def verify(self, token: bytes) -> User:
        fingerprint = self._fingerprint(token)
        user, until = self._remembered.get(fingerprint, (None, 0.0))
        if user is not None and time.time() < until:
            return user
        claims = await self._claims(token)
        user = _user(claims, token, self._audience)
        missing = self._required.difference(user.access_token.scopes)
        if missing:
            reason = f"The access token lacks the scope {' '.join(sorted(missing))}"
            raise AuthError(403, "insufficient_scope", reason)
        self._remember(fingerprint, user)
        return user

    async def _claims(self, token: bytes) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise AuthError(401, "invalid_token", "The access token is not a JWT") from None
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in ACCEPTED:
            raise AuthError(401, "invalid_token", "The access token is not signed with an accepted algorithm")
        signing = await self._keys.find(header.get("kid"))
        try:
            return jwt.decode(
                token,
                signing.key,
                algorithms=signing.algorithms,
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            reason = REASONS.get(type(error), "The access token is not valid")
            raise AuthError(401, "invalid_token", reason) from None

    def _remember(self, fingerprint: bytes, user: User) -> None:
        self._remembered.pop(fingerprint, None)
        if len(self._remembered) >= MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        expires = (user.access_token.expires_at or 0) + LEEWAY_SECONDS
        self._remembered[fingerprint] = (user, min(expires, time.time() + REMEMBER_SECONDS))


def _user(claims: Mapping[str, Any], token: bytes, audience: str) -> User:
    subject = _text(claims, "sub")
    client = _text(claims, "client_id", "azp", "cid") or subject
    if client is None:
        raise AuthError(401, "invalid_token", "The access token names neither a subject nor a client")
    return User(
        AccessToken(
            token=token.decode("ascii"),  # the signature covers it, and base64 is ASCII
            client_id=client,
            scopes=_scopes(claims),
            expires_at=int(claims["exp"]),
            resource=audience,
            subject=subject,
            claims=dict(claims),
        )
    )


def _text(claims: Mapping[str, Any], *names: str) -> str | None:
    return next((value for name in names if isinstance(value := claims.get(name), str) and value), None)


def _scopes(claims: Mapping[str, Any]) -> list[str]:
    """The scopes from `scope` (RFC 9068, section 2.2.3), or `scp` as Entra ID and Okta name them."""
    granted = claims.get("scope", claims.get("scp", ""))
    if isinstance(granted, str):
        return granted.split()
    return [scope for scope in granted if isinstance(scope, str)] if isinstance(granted, list) else []


class SigningKey(NamedTuple):
    kid: str | None
    key: Any
    algorithms: tuple[str, ...]


class Keys:
    """The issuer's signing keys. One fetch at a time, none more often than `PAUSE_SECONDS`, none forgotten because
    the next fetch fails."""

    def __init__(self, issuer: str, url: str | None) -> None:
        self._issuer = issuer
        self._url = url
        self._keys: tuple[SigningKey, ...] = ()
        self._fetched_at = self._next_fetch = float("-inf")
        self._problem = "not asked yet"
        self._fetching: asyncio.Task[None] | None = None
        self._client: httpx2.AsyncClient | None = None

    async def open(self) -> None:
        """Fetches the keys before the first request. Without them the server starts all the same."""
        self._client = httpx2.AsyncClient(timeout=None)  # each fetch has one, as a whole
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
        """Returns when the keys are here.

        Raises:
            ValueError: they are not; the text is why.
        """
        if not self._keys:
            raise ValueError(self._problem)

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart() if self._keys else HealthPart(degraded=("the keys of JWT_ISSUER cannot be fetched",))

    async def find(self, kid: object) -> SigningKey:
        """The key with the id `kid`, or the only key where a token names none.

        Raises:
            AuthError: there is no such key, also not after asking the issuer again, or it never answered.
        """
        if time.monotonic() - self._fetched_at > FRESH_SECONDS and self._keys:
            self._begin()
        found = self._pick(kid)
        if found is None:
            await self._refresh()
            found = self._pick(kid)
        if found is not None:
            return found
        if not self._keys:
            reason = "The keys of the authorization server cannot be fetched: try again soon"
            raise AuthError(503, "", reason, retry_after=int(PAUSE_SECONDS))
        raise AuthError(401, "invalid_token", "The access token is signed with an unknown key")

    def _pick(self, kid: object) -> SigningKey | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.kid == kid), None)

    async def _refresh(self) -> None:
        self._begin()
        if self._fetching is not None and not self._fetching.done():
            await asyncio.shield(self._fetching)  # others wait for it too

    def _begin(self) -> None:
        if (self._fetching is None or self._fetching.done()) and time.monotonic() >= self._next_fetch:
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                url = self._url or await self._discover()
                keys = usable(await self._get(url))
            if not keys:
                raise ValueError(f"{url} has no key that can be used")
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            self._problem = str(error) or repr(error)
            log.warning("the issuer's keys cannot be fetched", issuer=self._issuer, problem=self._problem)
        else:
            self._keys, self._fetched_at = keys, time.monotonic()
        finally:
            self._next_fetch = time.monotonic() + PAUSE_SECONDS

    async def _discover(self) -> str:
        """The address of the keys, from the issuer's own metadata (OpenID Connect Discovery, RFC 8414)."""
        parts = urlsplit(self._issuer)
        path = parts.path.rstrip("/")
        base = f"{parts.scheme}://{parts.netloc}"
        tried = []
        for url in (
            f"{base}{path}/.well-known/openid-configuration",
            f"{base}/.well-known/oauth-authorization-server{path}",
        ):
            try:
                document = await self._get(url)
            except (httpx2.HTTPError, ValueError) as error:
                tried.append(f"{url}: {str(error) or repr(error)}")
                continue
            if document.get("issuer") != self._issuer:  # RFC 8414, section 3.3
                raise ValueError(f"JWT_ISSUER is {self._issuer}, but {url} says {document.get('issuer')!r}")
            found = document.get("jwks_uri")
            if not isinstance(found, str) or urlsplit(found).scheme not in ("https", parts.scheme):
                raise ValueError(f"{url} names no jwks_uri that can be used")
            return found
        raise ValueError("; ".join(tried) + "; set JWT_JWKS_URL where the issuer has no metadata")

    async def _get(self, url: str) -> dict[str, Any]:
        if self._client is None:
            raise ValueError("the server is not running")
        body = bytearray()
        async with self._client.stream("GET", url, headers={"accept": "application/json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"{url} answers {response.status_code}")
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise ValueError(f"{url} answers more than {MAX_DOCUMENT_BYTES} bytes")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise ValueError(f"{url} answers no JSON object")
        return document


def usable(document: Mapping[str, Any]) -> tuple[SigningKey, ...]:
    """The keys of a JWK Set (RFC 7517) that can verify signatures; others are passed over, as it demands."""
    entries = document.get("keys")
    found = [_signing_key(entry) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return tuple(key for key in found if key is not None)


def _signing_key(entry: dict[str, Any]) -> SigningKey | None:
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


class Resource:
    """What clients are told: who issues tokens for this server (RFC 9728), and where that is written."""

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
            return JSONResponse({"error": "the Host header names no host"}, status_code=400)
        headers = {"cache-control": "max-age=300" if self._url else "no-store"}
        return JSONResponse({"resource": resource, **self._document}, headers=headers)

    def challenge(self, scope: Scope) -> str:
        """The parameters of WWW-Authenticate that lead a client to a token."""
        parameters = []
        resource = self._resource(scope)
        if resource is not None:
            parts = urlsplit(resource)
            parameters.append(f'resource_metadata="{parts.scheme}://{parts.netloc}{WELL_KNOWN}{self._path}"')
        if self._scopes:
            parameters.append(f'scope="{" ".join(self._scopes)}"')
        return ", ".join(parameters)

    def _resource(self, scope: Scope) -> str | None:
        """The public URL of the endpoint: JWT_AUDIENCE where it is one, else what the client called.

        The latter is the client's word. It comes back to that client only, for nothing may store the answer.
        """
        if self._url is not None:
            return self._url
        host = own_host(scope)
        if host is None:
            return None
        secure = scope["scheme"] == "https" or (b"x-forwarded-proto", b"https") in scope["headers"]
        return f"{'https' if secure else 'http'}://{host}{ENDPOINT_PATH}"
