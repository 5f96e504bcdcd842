"""The authorization server: codes, and tokens that are bound to this resource, their client and a user's session.

The SDK's handlers parse and check the requests (`mcp.server.auth.handlers`); this is their provider.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote, urlencode

import structlog
from mcp.server.auth.middleware.client_auth import AuthenticationError, ClientAuthenticator
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    AuthorizeError,
    OAuthAuthorizationServerProvider,
    RefreshToken,
    RegistrationError,
    TokenError,
)
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import AnyUrl
from starlette.requests import Request
from starlette.types import Message, Scope

from ..caller import Caller, User
from ..observe.meter import Counter
from ..registry import Registry
from .auth import AuthError, Fingerprint, UnknownTokenError
from .auth_oauth_clients import (
    ASSERTION_METHOD,
    ASSERTION_TYPE,
    MAX_ASSERTION_SECONDS,
    ClientError,
    Documents,
    OAuthClient,
    accepted,
    assertion_claims,
    assertion_key,
    is_document_url,
    registered,
)
from .auth_oauth_provider import Identity, IdentityProvider, SignInError
from .auth_oauth_settings import OAuthSettings
from .auth_oauth_store import Record, Records, StoreUnavailableError, digest
from .identity import account_id

REQUEST_SECONDS = 600
"""Lifetime of an authorization request, until the user is back from the provider."""

CODE_SECONDS = 60
CACHE_SECONDS = 5.0
"""Time for which a process does not look up a session again, and thus until a sign-out elsewhere reaches it."""

MAX_CACHED_TOKENS = 4096
RACE_SECONDS = 60.0
"""How long the used refresh token is remembered, to detect a concurrent second use; later ones have an old number."""

UNUSED_REGISTRATION_SECONDS = 3600
"""Lifetime of a registration with which nobody has signed in yet."""

MAX_STATE_CHARACTERS = 4096
CHALLENGE_CHARACTERS = 43
"""Length of a SHA-256 in base64url (RFC 7636, section 4.2)."""

ACCESS, REFRESH = "at+jwt", "rt+jwt"

log = structlog.stdlib.get_logger(__name__)

current_browser: ContextVar[str] = ContextVar("current_browser", default="")
"""Digest of the cookie of the browser that sends the authorization request."""


current_http: ContextVar[Request | None] = ContextVar("current_http", default=None)
"""The HTTP request that is being handled."""


class Outcomes:
    """Counts and audits what happens, by its outcome.

    Args:
        event: What it happens to, for the audit.
        counter: The counter, which gets all of `outcomes` at once: a series that begins with its first event would
            hide that event from alerts.
    """

    def __init__(
        self, registry: Registry, event: str, counter: Callable[..., Counter], outcomes: Iterable[str]
    ) -> None:
        self._registry = registry
        self._event = event
        self._counters = {outcome: counter(outcome) for outcome in outcomes}

    def __call__(self, outcome: str, **fields: str | None) -> None:
        """Record an outcome, with more fields for the audit."""
        self._counters[outcome].inc()
        self.audit(outcome, **fields)

    def audit(self, outcome: str, **fields: str | None) -> None:
        """Record a step that is not counted."""
        if self._registry.audit is not None:
            self._registry.audit.record(self._event, outcome, current_http.get(), **fields)

    def rejects(self) -> bool:
        """Return whether requests must be rejected at the moment, because they could not be audited."""
        return self._registry.audit is not None and self._registry.audit.rejects()


class Code(AuthorizationCode):
    """An authorization code, and the session that it stands for."""

    session_id: str
    session: Record


class Refresh(RefreshToken):
    """A refresh token: the number of its session's refresh that it is good for."""

    session_id: str
    number: int


class Access(AccessToken):
    session_id: str


class AuthorizationServer(OAuthAuthorizationServerProvider[Code, Refresh, Access]):
    """The provider of the SDK's handlers.

    Args:
        settings: The settings of the sign-in.
        provider: The identity provider.
        records: Where codes, sessions and clients are kept.
        documents: The documents of clients, `None` where they are switched off.
        issuer: The URL of this authorization server.
        resource: The URL of the MCP endpoint, which is all that tokens are good for.
        tokens: Records what happens to tokens.
        shared: Whether other processes use the store too.
    """

    def __init__(
        self,
        settings: OAuthSettings,
        provider: IdentityProvider,
        records: Records,
        documents: Documents | None,
        *,
        issuer: str,
        resource: str,
        tokens: Outcomes,
        shared: bool,
    ) -> None:
        self.settings = settings
        self.provider = provider
        self.records = records
        self.documents = documents
        self.issuer = issuer
        self.resource = resource
        self._tokens = tokens
        self._cache_seconds = CACHE_SECONDS if shared else float("inf")  # one process forgets at once
        self._fingerprint = Fingerprint()
        self._cache: dict[bytes, tuple[User, float]] = {}

    # --- Clients ---------------------------------------------------------------------------------------------

    async def get_client(self, client_id: str) -> OAuthClient | None:
        if is_document_url(client_id):
            if self.documents is None:
                return None
            try:
                return await self.documents.client(client_id)
            except ClientError as error:
                log.warning("the document of a client is not acceptable", client=client_id[:200], problem=str(error))
                return None
        record = await self.records.get(f"client:{client_id}")
        return accepted(record, self.settings.supported_scopes) if record else None

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        record = registered(client_info)
        try:
            await self.records.put(f"client:{client_info.client_id}", record, UNUSED_REGISTRATION_SECONDS)
        except StoreUnavailableError:
            raise RegistrationError("invalid_client_metadata", "no more clients can register now") from None

    async def _keep_client(self, client_id: str) -> None:
        """Renew a registration that is in use."""
        key = f"client:{client_id}"
        if not is_document_url(client_id) and (record := await self.records.get(key)):
            await self.records.put(key, record, self.settings.registration_seconds)

    # --- Authorization ---------------------------------------------------------------------------------------

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        """Return the URL of the consent page."""
        challenge = params.code_challenge
        if len(challenge) != CHALLENGE_CHARACTERS or not challenge.replace("-", "a").replace("_", "a").isalnum():
            raise AuthorizeError("invalid_request", "code_challenge must be a SHA-256 in base64url")
        if params.resource is not None and params.resource.rstrip("/") != self.resource:
            raise AuthorizeError("invalid_target", f"this server issues tokens for {self.resource} only")
        if len(params.state or "") > MAX_STATE_CHARACTERS:
            raise AuthorizeError("invalid_request", "state is too long")
        request_id = secrets.token_urlsafe(32)
        record = {
            "client": client.client_id,
            "redirect_uri": str(params.redirect_uri),
            "explicit": params.redirect_uri_provided_explicitly,
            "state": params.state,
            "challenge": challenge,
            "scopes": params.scopes,
            "browser": current_browser.get(),
        }
        try:
            await self.records.put(f"request:{digest(request_id)}", record, REQUEST_SECONDS)
        except StoreUnavailableError:
            raise AuthorizeError("temporarily_unavailable", "the server cannot begin a sign-in now") from None
        return f"{self.issuer}/oauth/consent?request={request_id}"

    async def issue_code(self, request: Record, identity: Identity) -> str:
        """Return a code for a user who has consented and signed in."""
        allowed = self.provider.scopes(identity.claims)
        wanted = self.settings.supported_scopes if request["scopes"] is None else request["scopes"]
        now = time.time()
        session = {
            "subject": identity.subject,
            "claims": identity.claims,
            "tokens": identity.tokens,
            "client": request["client"],
            "scopes": [scope for scope in wanted if allowed is None or scope in allowed],
            "started": now,
            "ends": now + self.settings.session_seconds,
            "number": 0,
        }
        code = secrets.token_urlsafe(32)
        record = request | {"session": session, "session_id": secrets.token_urlsafe(24), "expires": now + CODE_SECONDS}
        await self.records.put(f"code:{digest(code)}", record, CODE_SECONDS)
        return code

    async def load_authorization_code(self, client: OAuthClientInformationFull, authorization_code: str) -> Code | None:
        name = digest(authorization_code)
        record = await self.records.get(f"code:{name}")
        if record is None:
            spent = await self.records.take(f"spent:{name}")
            if spent is not None:  # RFC 6749, section 4.1.2: revoke what was issued for a code that is used twice
                log.warning("an authorization code was used twice: its session has ended", client=client.client_id)
                self._tokens("replayed", client=client.client_id)
                await self.end(spent["session_id"])
            return None
        return Code(
            code=authorization_code,
            scopes=record["session"]["scopes"],
            expires_at=record["expires"],
            client_id=record["client"],
            code_challenge=record["challenge"],
            redirect_uri=AnyUrl(record["redirect_uri"]),
            redirect_uri_provided_explicitly=record["explicit"],
            resource=self.resource,
            subject=record["session"]["subject"],
            session_id=record["session_id"],
            session=record["session"],
        )

    async def exchange_authorization_code(
        self, client: OAuthClientInformationFull, authorization_code: Code
    ) -> OAuthToken:
        name = digest(authorization_code.code)
        if await self.records.take(f"code:{name}") is None:  # another request was faster
            raise TokenError("invalid_grant", "authorization code does not exist")
        session, session_id = authorization_code.session, authorization_code.session_id
        seconds = session["ends"] - time.time()
        await self.records.put(f"session:{session_id}", session, seconds)
        await self.records.put(f"spent:{name}", {"session_id": session_id}, REQUEST_SECONDS)
        await self._keep_client(client.client_id)
        self._tokens("issued", client=client.client_id, subject=session["subject"], session=digest(session_id))
        return self._issue(session_id, session, session["scopes"])

    # --- Tokens ----------------------------------------------------------------------------------------------

    def _issue(self, session_id: str, session: Record, scopes: list[str]) -> OAuthToken:
        now = int(time.time())
        expires = min(now + self.settings.access_token_seconds, int(session["ends"]))
        common = {"iss": self.issuer, "aud": self.resource, "sub": session["subject"], "iat": now, "sid": session_id}
        common |= {"client_id": session["client"]}
        sign = self.records.ring.sign
        return OAuthToken(
            access_token=sign(
                ACCESS, common | {"exp": expires, "scope": " ".join(scopes), "jti": secrets.token_urlsafe(12)}
            ),
            expires_in=expires - now,
            scope=" ".join(scopes),
            refresh_token=sign(REFRESH, common | {"exp": int(session["ends"]), "number": session["number"]}),
        )

    async def _session(self, session_id: str) -> Record | None:
        """Return a session, unless it or all sessions of its user have ended."""
        session = await self.records.get(f"session:{session_id}")
        if session is None:
            return None
        signed_out = await self.records.get(f"signed_out:{digest(session['subject'])}")
        return None if signed_out and session["started"] <= signed_out["at"] else session

    async def load_refresh_token(self, client: OAuthClientInformationFull, refresh_token: str) -> Refresh | None:
        claims = self.records.ring.verify(REFRESH, refresh_token, self.issuer, self.resource)
        session = await self._session(claims["sid"]) if claims else None
        if claims is None or session is None:
            return None
        return Refresh(
            token=refresh_token,
            client_id=claims["client_id"],
            scopes=session["scopes"],
            expires_at=claims["exp"],
            resource=self.resource,
            subject=claims["sub"],
            session_id=claims["sid"],
            number=claims["number"],
        )

    async def exchange_refresh_token(
        self, client: OAuthClientInformationFull, refresh_token: Refresh, scopes: list[str]
    ) -> OAuthToken:
        """Return new tokens for a refresh token that is used for the first time; a second use ends the session.

        Raises:
            TokenError: it is used again, the session has ended, or the provider does not admit the user any more.
            StoreUnavailableError: the provider does not answer; the refresh token stays valid.
        """
        session_id = refresh_token.session_id
        session = await self._session(session_id)
        if session is None:
            raise TokenError("invalid_grant", "the session has ended")
        used = f"used:{session_id} {refresh_token.number}"
        if refresh_token.number != session["number"] or not await self.records.store.add(used, b"1", RACE_SECONDS):
            log.warning("a refresh token was used twice: its session has ended", client=client.client_id)
            self._tokens("reused", client=client.client_id, subject=session["subject"], session=digest(session_id))
            await self.end(session_id)
            raise TokenError("invalid_grant", "the refresh token was used before, so its session has ended")
        try:
            identity = await self.provider.renew(session["subject"], session["claims"], session["tokens"])
        except SignInError as error:
            if error.outcome == "unavailable":
                await self.records.store.delete(used)
                raise StoreUnavailableError(str(error)) from None
            await self.end(session_id)
            self._tokens("ended", client=client.client_id, subject=session["subject"], session=digest(session_id))
            raise TokenError("invalid_grant", str(error)) from None
        allowed = self.provider.scopes(identity.claims)
        session |= {"claims": identity.claims, "tokens": identity.tokens, "number": session["number"] + 1}
        session["scopes"] = [scope for scope in session["scopes"] if allowed is None or scope in allowed]
        if not await self.records.replace(f"session:{session_id}", session, session["ends"] - time.time()):
            raise TokenError("invalid_grant", "the session has ended")
        await self._keep_client(client.client_id)
        self._tokens("refreshed", client=client.client_id, subject=session["subject"], session=digest(session_id))
        return self._issue(session_id, session, [scope for scope in scopes if scope in session["scopes"]])

    async def load_access_token(self, token: str) -> Access | None:
        claims = self.records.ring.verify(ACCESS, token, self.issuer, self.resource)
        if claims is None:
            return None
        return Access(
            token=token,
            client_id=claims["client_id"],
            scopes=claims["scope"].split(),
            expires_at=claims["exp"],
            resource=self.resource,
            subject=claims["sub"],
            claims={"iss": self.issuer},
            session_id=claims["sid"],
        )

    async def revoke_token(self, token: Access | Refresh) -> None:
        """End the session of a token (RFC 7009), with all its tokens."""
        self._tokens("revoked", client=token.client_id, subject=token.subject, session=digest(token.session_id))
        await self.end(token.session_id)

    async def end(self, session_id: str) -> None:
        await self.records.store.delete(f"session:{session_id}")
        self._cache.clear()

    async def sign_out(self, subject: str) -> None:
        """End all sessions of a user."""
        record = {"at": time.time()}
        await self.records.put(f"signed_out:{digest(subject)}", record, self.settings.session_seconds)
        self._tokens("signed_out", subject=subject)
        self._cache.clear()

    async def verify(self, token: bytes, scope: Scope) -> User:
        """Return the user of an access token of this server, as `auth.Verifier`."""
        fingerprint = self._fingerprint(token)
        user, until = self._cache.get(fingerprint, (None, 0.0))
        if user is not None and time.time() < until:
            return user
        try:
            access = await self.load_access_token(token.decode("ascii", "replace"))
            if access is None:
                raise UnknownTokenError("The access token has expired, or this server did not issue it")
            session = await self._session(access.session_id)
        except StoreUnavailableError:
            raise AuthError(503, "", "The sessions cannot be read now: try again soon", retry_after=5) from None
        if session is None:
            raise AuthError(401, "invalid_token", "The session of the access token has ended")
        user = self._user(access, session)
        self._cache.pop(fingerprint, None)
        if len(self._cache) >= MAX_CACHED_TOKENS:
            del self._cache[next(iter(self._cache))]
        self._cache[fingerprint] = (user, min(access.expires_at or 0, time.time() + self._cache_seconds))
        return user

    def _user(self, access: Access, session: Record) -> User:
        claims: dict[str, Any] = session["claims"]
        caller = Caller(
            account_id(session["subject"]),
            subject=session["subject"],
            client=access.client_id,
            issuer=self.provider.issuer,
            scopes=frozenset(access.scopes) & frozenset(session["scopes"]),
            tier=self.provider.tier(claims),
            tenant=self.provider.tenant(claims),
            claims=claims,
        )
        return User(access, caller, str(session["tokens"]["access_token"]))


class Authenticator(ClientAuthenticator):
    """The SDK's authentication of clients, and `private_key_jwt` (RFC 7523) for those whose document has keys."""

    def __init__(self, server: AuthorizationServer) -> None:
        super().__init__(server)
        self._server = server

    async def authenticate_request(self, request: Request) -> OAuthClientInformationFull:
        form = await request.form()
        client = await self._server.get_client(str(form.get("client_id") or ""))
        if client is None or client.token_endpoint_auth_method != ASSERTION_METHOD:
            return await super().authenticate_request(request)
        server, assertion = self._server, form.get("client_assertion")
        if form.get("client_assertion_type") != ASSERTION_TYPE or not isinstance(assertion, str):
            raise AuthenticationError("This client must send a client_assertion")
        assert server.documents is not None  # noqa: S101 (such a client has come from there)
        try:
            keys = await server.documents.keys(client.client_id)
            claims = assertion_claims(assertion, keys, client.client_id, (server.issuer, f"{server.issuer}/token"))
        except ClientError as error:
            raise AuthenticationError(str(error)) from None
        used = assertion_key(client.client_id, claims)
        if not await server.records.store.add(used, b"1", 2 * MAX_ASSERTION_SECONDS):
            raise AuthenticationError("The client_assertion was used before")
        return client


async def with_client_id(request: Request) -> Request:
    """Return a request with the client_id of its Authorization header in the form, where the SDK looks for it."""
    form = await request.form()
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic" or "client_id" in form:
        return request
    try:
        client_id = unquote(base64.b64decode(credentials).decode().partition(":")[0])
    except ValueError:
        return request
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    body = urlencode([*fields, ("client_id", client_id)]).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)
