"""Authentication with JWT access tokens: signature, issuer, audience, lifetime and scopes are verified.

The server is a resource server (RFC 9728): its metadata names the authorization servers that issue the tokens. The
keys of each issuer are cached, so a short outage of an issuer does not affect calls.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import jwt
from mcp.server.auth.routes import cors_middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Scope

from ..caller import User
from ..config import ConfigError, ProductionConfig, without_credentials
from ..registry import Probe, Registry
from . import auth
from .auth import AuthError, Fingerprint, UnknownTokenError
from .guard import ANY_PORT, MAX_HEADER_BYTES, authority_of
from .http_limits import header_of
from .issuer_keys import ACCEPTED_ALGORITHMS, KeySet, signed_claims
from .issuers import Issuer, trusted_issuers, warn_without_tls

LEEWAY_SECONDS = 30
"""Tolerated difference between the issuer's clock and ours."""

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
            warn_without_tls(registry, name, url, "an attacker on the network can replace the issuer's keys")
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
        self.issuers = {issuer.issuer: (issuer, KeySet(issuer.issuer, issuer.jwks_url)) for issuer in issuers}
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
    try:
        return await signed_claims(
            keys,
            token,
            kid,
            algorithm,
            leeway=LEEWAY_SECONDS,
            audience=issuer.audience,
            issuer=issuer.issuer,
            options={"require": ["exp", "iss", "aud"]},
        )
    except jwt.PyJWTError as error:
        raise AuthError(401, "invalid_token", REASONS.get(type(error), "The access token is not valid")) from None


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


class ResourceMetadata:
    """The protected resource metadata (RFC 9728), which names the authorization servers, and its URL."""

    def __init__(self, registry: Registry, issuers: Sequence[Issuer]) -> None:
        audience = issuers[0].audience[0]
        parts = urlsplit(audience)
        is_url = parts.scheme in ("http", "https") and bool(parts.netloc) and not parts.query and not parts.fragment
        self._url = audience if is_url else None
        self._path = parts.path.rstrip("/") if is_url else ENDPOINT_PATH
        self._scopes = registry.config.jwt_required_scopes
        self._scopes_supported = registry.http.scopes_supported
        self._document: dict[str, Any] = {
            "authorization_servers": [issuer.issuer for issuer in issuers],
            "bearer_methods_supported": ["header"],
            "resource_name": registry.about.title,
        }

    def routes(self) -> list[Route]:
        handler = cors_middleware(self._metadata, ["GET", "OPTIONS"])
        paths = dict.fromkeys((WELL_KNOWN, f"{WELL_KNOWN}{ENDPOINT_PATH}", f"{WELL_KNOWN}{self._path}"))
        return [Route(path, handler, methods=["GET", "OPTIONS"]) for path in paths]

    async def _metadata(self, request: Request) -> JSONResponse:
        resource = self._resource(request.scope)
        if resource is None:
            return JSONResponse({"error": "the Host header is not valid"}, status_code=400)
        headers = {"cache-control": "max-age=300" if self._url else "no-store"}
        document = {"resource": resource, **self._document}
        if scopes := [*self._scopes, *sorted(self._scopes_supported - {*self._scopes})]:
            document["scopes_supported"] = scopes
        return JSONResponse(document, headers=headers)

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
        host = _host_header(scope)
        if host is None:
            return None
        # Each proxy may append its own: the first one is that of the client.
        forwarded = (header_of(scope, b"x-forwarded-proto") or b"").partition(b",")[0].strip().lower()
        secure = scope["scheme"] == "https" or forwarded == b"https"
        return f"{'https' if secure else 'http'}://{host}{ENDPOINT_PATH}"


def _host_header(scope: Scope) -> str | None:
    """Return the Host header in its shortest form, or `None` if it is missing or malformed."""
    host = authority_of((header_of(scope, b"host") or b"")[: MAX_HEADER_BYTES + 1].decode("latin-1"))
    if host is None or host.port == ANY_PORT:
        return None
    return host.host if host.port is None else f"{host.host}:{host.port}"
