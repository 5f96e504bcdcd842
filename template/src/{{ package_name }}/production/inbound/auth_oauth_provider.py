"""The identity provider with which users sign in: OpenID Connect, or GitHub's own form of OAuth 2.0."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import quote_plus, urlencode, urlsplit

import httpx2
import jwt
import structlog

from ..environment import tls_context
from ..registry import HealthPart
from .auth import AuthError
from .auth_oauth_settings import ANYONE, OAuthSettings, mapping
from .claims import claim, texts
from .issuer_keys import ACCEPTED_ALGORITHMS, MAX_DOCUMENT_BYTES, KeySet, get_json, signed_claims

TIMEOUT_SECONDS = 10.0
METADATA_SECONDS = 3600.0
"""Age at which the provider's metadata is fetched again."""

RETRY_SECONDS = 5.0
"""Least time between two attempts to fetch the metadata."""

LEEWAY_SECONDS = 30
"""Tolerated difference between the provider's clock and ours."""

EXPIRY_SKEW_SECONDS = 60.0
"""Time before its end at which a token of the provider is renewed."""

MAX_CLAIMS_BYTES = 32 * 1024
"""Largest claims of a user that are kept."""

PROTOCOL_CLAIMS = frozenset(("aud", "exp", "iat", "nbf", "nonce", "at_hash", "c_hash", "s_hash", "jti", "azp", "sid"))
"""Claims about an ID token, which say nothing of its user."""

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"

_ERROR = re.compile(r"[a-z_]{1,40}")

log = structlog.stdlib.get_logger(__name__)


class SignInError(Exception):
    """A user cannot sign in; the text is for the user, so without anything confidential."""

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome
        """`not_admitted`, `rejected` (by the provider) or `unavailable`."""


class Identity(NamedTuple):
    """A user who has signed in, with the provider's tokens."""

    subject: str
    claims: dict[str, Any]
    tokens: dict[str, Any]
    """`access_token`, perhaps `refresh_token`, and `expires` (seconds since 1970) where it is known."""


class Metadata(NamedTuple):
    """Where the provider's endpoints are."""

    issuer: str
    authorization: str
    token: str
    userinfo: str | None
    jwks: str | None
    basic: bool
    """Whether this server presents its credentials in the Authorization header."""
    sends_iss: bool
    """Whether responses have the parameter `iss` (RFC 9207)."""
    scopes: tuple[str, ...] | None
    """The scopes that the provider has, if its metadata lists them."""


class IdentityProvider:
    """Signs users in, and decides who is admitted.

    Args:
        settings: The settings of the sign-in.
        redirect_uri: The address to which the provider sends users back.
        learn: Gets each token of the provider, to keep it out of logs.
    """

    def __init__(self, settings: OAuthSettings, redirect_uri: str, learn: Callable[[str], object]) -> None:
        self.settings = settings
        self._learn = learn
        self.redirect_uri = redirect_uri
        self.issuer = settings.issuer_url
        self._client_id = settings.client_id
        secret = settings.client_secret
        self._secret = secret.get_secret_value() if secret else ""
        self._scope_map = mapping("OAUTH_SCOPE_MAP", settings.scope_map)
        self._tier_map = mapping("OAUTH_TIER_MAP", settings.tier_map)
        self._client: httpx2.AsyncClient | None = None
        self._metadata: Metadata | None = None
        self._keys: KeySet | None = None
        self._fetched_at = self._next_fetch = float("-inf")
        self._fetching = asyncio.Lock()
        self._clock_skew = 0.0
        self._problem = "the metadata has not been fetched yet"

    async def open(self) -> None:
        """Fetch the metadata and the keys; the server starts even if that fails."""
        hooks = {"response": [self._compare_clocks]}
        self._client = httpx2.AsyncClient(verify=tls_context(), timeout=TIMEOUT_SECONDS, event_hooks=hooks)
        self._next_fetch = float("-inf")
        with suppress(SignInError):
            await self.metadata()

    async def close(self) -> None:
        if self._keys is not None:
            await self._keys.close()
            self._keys = None
        if self._client is not None:
            await self._client.aclose()
            self._client = None
        self._metadata = None

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart() if self._metadata else HealthPart(degraded=("identity_provider",))

    async def check(self) -> None:
        """Check what users need to sign in, as far as it can be known: metadata, keys, clock and redirect URI.

        Raises:
            ValueError: they cannot; the text gives the reason.
        """
        try:
            metadata = await self.metadata()
        except SignInError as error:
            raise ValueError(str(error)) from None
        if self._keys is not None:
            await self._keys.check()
        if abs(self._clock_skew) > LEEWAY_SECONDS:
            ahead = "ahead of" if self._clock_skew < 0 else "behind"
            raise ValueError(f"this machine's clock is {abs(self._clock_skew):.0f} s {ahead} the provider's")
        url = self.login_url(metadata, "check", "check", "check" * 10, prompt="none")
        response = await self._http().get(url)
        if response.status_code >= 400:
            raise ValueError(
                f"the provider answers {response.status_code} to a sign-in: is {self.redirect_uri} a redirect URI of "
                "this client there, and is OAUTH_CLIENT_ID right?"
            )

    # --- The flow --------------------------------------------------------------------------------------------

    def login_url(self, metadata: Metadata, state: str, nonce: str, verifier: str, **parameters: str) -> str:
        """Return the URL at which the user signs in. The resource is not among its parameters: Entra ID rejects it."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        query = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(self._scopes(metadata)),
            "state": state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **({} if self._is_github else {"nonce": nonce}),
            **self.settings.preset.parameters,
            **parameters,
        }
        separator = "&" if urlsplit(metadata.authorization).query else "?"
        return f"{metadata.authorization}{separator}{urlencode(query)}"

    async def exchange(self, code: str, verifier: str, nonce: str) -> Identity:
        """Return the admitted user for whom the provider has issued a code.

        Raises:
            SignInError: the provider does not accept the code, its answer is not valid, or the user is not admitted.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
        }
        tokens, id_token = await self._tokens(form)
        return await self._identity(tokens, id_token, nonce)

    async def renew(self, subject: str, claims: dict[str, Any], tokens: dict[str, Any]) -> Identity:
        """Return the identity with tokens that are valid now, so that a user who has left is noticed.

        Raises:
            SignInError: the provider or our own rules do not admit the user any more, or the provider does not answer.
        """
        refresh = tokens.get("refresh_token")
        if self._is_github:
            return await self._identity(tokens, None, None)
        if not refresh:
            if tokens.get("expires", 0.0) and tokens["expires"] < time.time():
                raise SignInError("rejected", "The provider's sign-in has expired: sign in again")
            return Identity(subject, claims, tokens)
        if tokens.get("expires", 0.0) - EXPIRY_SKEW_SECONDS > time.time() + self.settings.access_token_seconds:
            return Identity(subject, claims, tokens)
        renewed, id_token = await self._tokens({"grant_type": "refresh_token", "refresh_token": refresh})
        renewed.setdefault("refresh_token", refresh)
        if id_token is None:
            return Identity(subject, claims, renewed)
        identity = await self._identity(renewed, id_token, None)
        if identity.subject != subject:
            raise SignInError("rejected", "The provider's answer is for another user")
        return identity

    async def signed_out(self, logout_token: str) -> str:
        """Return the subject whom a logout token (OpenID Connect Back-Channel Logout 1.0) signs out.

        Raises:
            SignInError: the token is not valid.
        """
        claims = await self._verified(logout_token)
        if LOGOUT_EVENT not in (claims.get("events") or {}) or "nonce" in claims or not claims.get("sub"):
            raise SignInError("rejected", "The logout token is not valid")
        return str(claims["sub"])

    # --- What follows from the claims ------------------------------------------------------------------------

    def scopes(self, claims: Mapping[str, Any]) -> frozenset[str] | None:
        """Return the scopes that a user may have, or `None` where claims do not decide it."""
        if not self.settings.scope_claims:
            return None
        values = [text for name in self.settings.scope_claims for text in texts(claim(claims, name))]
        if self._scope_map:
            values = [scope for value in values for scope in self._scope_map.get(value, "").split()]
        return frozenset(values)

    def tier(self, claims: Mapping[str, Any]) -> str | None:
        values = list(texts(claim(claims, self.settings.tier_claim), separator=None))
        if self._tier_map:
            values = [self._tier_map[value] for value in values if value in self._tier_map]
        return next(iter(values), None)

    def tenant(self, claims: Mapping[str, Any]) -> str | None:
        return next(iter(texts(claim(claims, self.settings.tenant_claim), separator=None)), None)

    def admit(self, claims: Mapping[str, Any]) -> None:
        """Check that a user may use this server: named in OAUTH_ALLOWED_USERS, or in all other lists that are set.

        Raises:
            SignInError: the user may not.
        """
        settings = self.settings
        email = self._verified_email(claims)
        named = str(claims["sub"]) in settings.allowed_users or ANYONE in settings.allowed_users
        if named or email in {user.lower() for user in settings.allowed_users}:
            return
        rules = (
            (settings.allowed_domains, {self._domain(claims, email)}, "account's domain"),
            (settings.allowed_groups, set(texts(claim(claims, settings.groups_claim), separator=None)), "groups"),
            (settings.allowed_tenants, set(texts(claims.get("tid"), separator=None)), "tenant"),
        )
        active = [(allowed, found, what) for allowed, found, what in rules if allowed]
        for allowed, found, what in active:
            if not {entry.lower() for entry in allowed} & {entry.lower() for entry in found if entry}:
                overage = what == "groups" and settings.groups_claim in (claims.get("_claim_names") or {})
                hint = ": the provider did not list the groups, since they are too many" if overage else ""
                raise SignInError("not_admitted", f"Your {what} may not use this server{hint}")
        if settings.allowed_users and not active:
            raise SignInError("not_admitted", "You may not use this server")

    def _domain(self, claims: Mapping[str, Any], email: str | None) -> str:
        name = self.settings.preset.domain_claim
        if name is not None:
            return str(claims.get(name) or "")
        return (email or "").rpartition("@")[2]

    def _verified_email(self, claims: Mapping[str, Any]) -> str | None:
        email = claims.get("email")
        verified = str(claims.get(self.settings.preset.verified_claim)).lower() in ("true", "1")
        return email.lower() if isinstance(email, str) and "@" in email and verified else None

    # --- The provider's endpoints ----------------------------------------------------------------------------

    @property
    def _is_github(self) -> bool:
        return self.settings.provider == "github"

    def _scopes(self, metadata: Metadata) -> Iterable[str]:
        if self.settings.scopes:
            return self.settings.scopes
        scopes = [*self.settings.preset.scopes]
        if self._is_github and self.settings.wants_groups:
            scopes.append("read:org")
        known = metadata.scopes
        return [scope for scope in scopes if scope != "offline_access" or known is None or scope in known]

    async def metadata(self) -> Metadata:
        """Return the provider's endpoints; the last known ones while it does not answer.

        Raises:
            SignInError: they have never been known.
        """
        if self._is_github:
            self._metadata = self._metadata or _github(self.issuer)
            return self._metadata
        async with self._fetching:
            now = time.monotonic()
            if now - self._fetched_at > METADATA_SECONDS and now >= self._next_fetch:
                self._next_fetch = now + RETRY_SECONDS
                await self._fetch()
        if self._metadata is None:
            raise SignInError("unavailable", self._problem)
        return self._metadata

    async def _fetch(self) -> None:
        url = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
        try:
            document = await get_json(self._http(), url)
            found = _discovered(document, self.issuer, any_issuer=self.settings.provider == "entra")
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            self._problem = str(error) or repr(error)
            log.warning("the identity provider's metadata is not usable", issuer=self.issuer, problem=self._problem)
            return
        if self._keys is None or self._metadata is None or self._metadata.jwks != found.jwks:
            if self._keys is not None:
                await self._keys.close()
            self._keys = KeySet(found.issuer, found.jwks)
            await self._keys.open()
        self._metadata, self._fetched_at = found, time.monotonic()

    async def _identity(self, tokens: dict[str, Any], id_token: str | None, nonce: str | None) -> Identity:
        """Return the admitted user of the provider's tokens."""
        if self._is_github:
            claims = await self._github_claims(str(tokens["access_token"]))
        else:
            if id_token is None:
                raise SignInError("rejected", "The provider sent no ID token: is openid among OAUTH_SCOPES?")
            claims = await self._verified(id_token)
            if nonce is not None and not hmac.compare_digest(str(claims.get("nonce")), nonce):
                raise SignInError("rejected", "The ID token is for another sign-in")
            claims = await self._with_userinfo(claims, str(tokens["access_token"]))
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject or not subject.isprintable():
            raise SignInError("rejected", "The provider names no user")
        claims = {name: value for name, value in claims.items() if name not in PROTOCOL_CLAIMS}
        if len(json.dumps(claims)) > MAX_CLAIMS_BYTES:
            raise SignInError("rejected", "The provider says too much about the user: request fewer scopes")
        self.admit(claims)
        return Identity(subject, claims, tokens)

    async def _verified(self, token: str) -> dict[str, Any]:
        """Return the claims of an ID or logout token that the provider has signed for this client.

        Raises:
            SignInError: it has not.
        """
        metadata = await self.metadata()
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header.get("alg")
            if self._keys is None or algorithm not in ACCEPTED_ALGORITHMS:
                raise SignInError("rejected", "The ID token is not signed with an accepted algorithm")
            claims = await signed_claims(
                self._keys,
                token,
                header.get("kid"),
                str(algorithm),
                leeway=LEEWAY_SECONDS,
                audience=self._client_id,
                options={"require": ["exp", "iat", "iss", "aud"]},
            )
        except (jwt.PyJWTError, RecursionError):
            raise SignInError("rejected", "The ID token is not valid") from None
        except AuthError as error:
            outcome = "unavailable" if error.status == 503 else "rejected"
            raise SignInError(outcome, "The ID token cannot be verified") from None
        # Metadata of a shared tenant has a placeholder for the tenant of the user.
        expected = {metadata.issuer.replace("{tenantid}", str(claims.get("tid"))), *self.settings.preset.issuers}
        if claims["iss"] not in expected:
            raise SignInError("rejected", "The ID token is from another issuer")
        if claims.get("azp", self._client_id) != self._client_id:
            raise SignInError("rejected", "The ID token is for another client")
        return claims

    async def _with_userinfo(self, claims: dict[str, Any], access_token: str) -> dict[str, Any]:
        """Return the claims with those that the provider has at its userinfo endpoint only, if some are missing."""
        settings = self.settings
        wanted = {"email", *([settings.groups_claim] if settings.wants_groups else [])}
        wanted |= {name for name in (*settings.scope_claims, settings.tier_claim, settings.tenant_claim) if name}
        url = (await self.metadata()).userinfo
        if url is None or all(claim(claims, name) is not None for name in wanted):
            return claims
        try:
            found = await get_json(self._http(), url, authorization=f"Bearer {access_token}")
        except (httpx2.HTTPError, ValueError) as error:
            log.warning("the identity provider's userinfo is not usable", problem=str(error) or repr(error))
            return claims
        if found.get("sub") != claims.get("sub"):  # OpenID Connect Core 1.0, section 5.3.2
            raise SignInError("rejected", "The provider's answer is for another user")
        return {**found, **claims}

    async def _tokens(self, form: dict[str, str]) -> tuple[dict[str, Any], str | None]:
        """Return the tokens and the ID token that the token endpoint issues.

        Raises:
            SignInError: it issues none.
        """
        metadata = await self.metadata()
        headers = {"accept": "application/json"}
        if metadata.basic:  # RFC 6749, section 2.3.1
            credentials = f"{quote_plus(self._client_id)}:{quote_plus(self._secret)}".encode()
            headers["authorization"] = f"Basic {base64.b64encode(credentials).decode()}"
        else:
            form = form | {"client_id": self._client_id, "client_secret": self._secret}
        try:
            response = await self._http().post(metadata.token, data=form, headers=headers)
            found = response.json() if len(response.content) <= MAX_DOCUMENT_BYTES else None
        except (httpx2.HTTPError, ValueError, RecursionError):
            raise SignInError("unavailable", "The identity provider does not answer") from None
        if response.status_code >= 500 or response.status_code == 429:
            raise SignInError("unavailable", "The identity provider does not answer")
        document: dict[str, Any] = found if isinstance(found, dict) else {}
        token = document.get("access_token")
        if response.status_code != 200 or not isinstance(token, str) or not token:  # GitHub has 200 for an error
            error = document.get("error")
            code = error if isinstance(error, str) and _ERROR.fullmatch(error) else "no token"
            log.warning("the identity provider issued no token", error=code, http_status=response.status_code)
            outcome = "unavailable" if code == "temporarily_unavailable" else "rejected"
            raise SignInError(outcome, f"The identity provider rejected the sign-in ({code})")
        tokens: dict[str, Any] = {"access_token": token}
        if isinstance(document.get("refresh_token"), str):
            tokens["refresh_token"] = document["refresh_token"]
        for value in tokens.values():
            self._learn(value)
        if isinstance(seconds := document.get("expires_in"), int | float):
            tokens["expires"] = time.time() + seconds
        id_token = document.get("id_token")
        return tokens, id_token if isinstance(id_token, str) else None

    async def _github_claims(self, token: str) -> dict[str, Any]:
        api = "https://api.github.com" if self.issuer == "https://github.com" else f"{self.issuer}/api/v3"
        user = await self._github_get(f"{api}/user", token)
        emails = await self._github_get(f"{api}/user/emails", token)
        primary: dict[str, Any] = next((entry for entry in emails if entry.get("primary")), {})
        claims = {
            "sub": str(user["id"]),
            "iss": self.issuer,
            "preferred_username": user.get("login"),
            "name": user.get("name"),
            "email": primary.get("email"),
            "email_verified": primary.get("verified") is True,
        }
        if self.settings.wants_groups:
            organisations = await self._github_get(f"{api}/user/orgs?per_page=100", token)
            claims[self.settings.groups_claim] = [entry["login"] for entry in organisations]
        return claims

    async def _github_get(self, url: str, token: str) -> Any:
        headers = {"authorization": f"Bearer {token}", "accept": "application/vnd.github+json"}
        try:
            response = await self._http().get(url, headers=headers)
            if response.status_code == 200:
                return response.json()
        except (httpx2.HTTPError, ValueError):
            raise SignInError("unavailable", "GitHub does not answer") from None
        if response.status_code >= 500 or response.status_code == 429:
            raise SignInError("unavailable", "GitHub does not answer")
        raise SignInError("rejected", "GitHub does not accept the sign-in any more")

    async def _compare_clocks(self, response: httpx2.Response) -> None:
        try:
            theirs = parsedate_to_datetime(response.headers["date"]).timestamp()
        except (KeyError, ValueError, TypeError):
            return
        self._clock_skew = theirs - time.time()

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            raise SignInError("unavailable", "the server is not running")
        return self._client


def _github(issuer: str) -> Metadata:
    """Return GitHub's endpoints: it has no discovery, no ID tokens and no userinfo endpoint."""
    base = f"{issuer}/login/oauth"
    return Metadata(issuer, f"{base}/authorize", f"{base}/access_token", None, None, False, False, None)


def _discovered(document: Mapping[str, Any], issuer: str, *, any_issuer: bool) -> Metadata:
    """Return what the metadata of an issuer says (OpenID Connect Discovery 1.0, section 3).

    Args:
        document: The metadata.
        issuer: The configured issuer.
        any_issuer: Whether `issuer` there may be another one of the same provider, as Entra ID has for shared tenants
            and for its first version.

    Raises:
        ValueError: it is not usable.
    """
    named = document.get("issuer")
    if not isinstance(named, str) or (named != issuer and not any_issuer):
        raise ValueError(f"the issuer is {issuer}, but its metadata says {named!r}")
    secure = urlsplit(issuer).scheme
    urls = {}
    for name in ("authorization_endpoint", "token_endpoint", "jwks_uri", "userinfo_endpoint"):
        url = document.get(name)
        if name == "userinfo_endpoint" and url is None:
            continue
        if not isinstance(url, str) or urlsplit(url).scheme not in ("https", secure):
            raise ValueError(f"the metadata of {issuer} has no usable {name}")
        urls[name] = url
    methods = document.get("token_endpoint_auth_methods_supported")
    scopes = document.get("scopes_supported")
    return Metadata(
        named,
        urls["authorization_endpoint"],
        urls["token_endpoint"],
        urls.get("userinfo_endpoint"),
        urls["jwks_uri"],
        not isinstance(methods, list) or "client_secret_basic" in methods,
        document.get("authorization_response_iss_parameter_supported") is True,
        tuple(map(str, scopes)) if isinstance(scopes, list) else None,
    )
