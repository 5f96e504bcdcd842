"""The HTTP side of the sign-in: the endpoints of the authorization server, and the pages that users see.

The pages need no script. After a form, the browser is sent on by a page and not by a redirect, because the target of a
redirect counts as one of the form, and would have to be in the page's `form-action`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable, Mapping
from html import escape
from typing import Any
from urllib.parse import urlsplit

import structlog
from mcp.server.auth.handlers.authorize import AuthorizationHandler
from mcp.server.auth.handlers.metadata import MetadataHandler, ProtectedResourceMetadataHandler
from mcp.server.auth.handlers.register import RegistrationHandler
from mcp.server.auth.handlers.token import TokenHandler
from mcp.server.auth.middleware.client_auth import AuthenticationError
from mcp.server.auth.provider import construct_redirect_uri
from mcp.server.auth.routes import cors_middleware
from mcp.server.auth.settings import ClientRegistrationOptions
from mcp.server.transport_security import RequestBodyLimitMiddleware
from mcp.shared.auth import OAuthMetadata, ProtectedResourceMetadata
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, request_response
from starlette.types import ASGIApp

from ..observe.rejections import Rejections
from .auth_oauth_provider import SignInError
from .auth_oauth_server import (
    REQUEST_SECONDS,
    Authenticator,
    AuthorizationServer,
    Outcomes,
    current_browser,
    current_http,
    with_client_id,
)
from .auth_oauth_store import Record, StoreUnavailableError, digest

MAX_BODY_BYTES = 64 * 1024

LIMITS: Mapping[str, tuple[int, int]] = {
    "requests": (100, 600),
    "registrations": (20, 3600),
    "failures": (30, 600),
}
"""What one address may do, and in how many seconds: begin sign-ins, register clients, and fail."""

TOTALS: Mapping[str, tuple[int, int]] = {"requests": (5000, 600), "registrations": (1000, 3600)}
"""What all addresses together may do."""

AUTHORIZATION_SERVER = "/.well-known/oauth-authorization-server"
PROTECTED_RESOURCE = "/.well-known/oauth-protected-resource"

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 3rem auto; padding: 0 1rem; color: #1b1b1f }
h1 { font-size: 1.4rem } dt { font-weight: 600 } dd { margin: 0 0 .8rem; overflow-wrap: anywhere }
.warning { border-left: .3rem solid #b35900; padding-left: .8rem }
button, .button { font: inherit; padding: .6rem 1.4rem; margin-right: .8rem; border: 1px solid #1b1b1f;
  border-radius: .3rem; background: #fff; color: #1b1b1f; cursor: pointer }
.primary { background: #0b57d0; border-color: #0b57d0; color: #fff }
@media (prefers-color-scheme: dark) { body { background: #1b1b1f; color: #f2f2f4 } }
"""

POLICY = "; ".join(
    (
        "default-src 'none'",
        f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}

Handler = Callable[[Request], Awaitable[Response]]

log = structlog.stdlib.get_logger(__name__)


class Pages:
    """The routes of the sign-in.

    Args:
        server: The authorization server.
        title: The name of this server, as users read it.
        address: Returns the address that a request comes from.
        rejected: Counts requests above a limit.
        sign_ins: Records sign-ins.
        clients: Records registrations.
    """

    def __init__(
        self,
        server: AuthorizationServer,
        title: str,
        address: Callable[[Request], str],
        rejected: Rejections,
        sign_ins: Outcomes,
        clients: Outcomes,
    ) -> None:
        self._server = server
        self._title = title
        self._address = address
        self._rejected = rejected
        self._sign_ins = sign_ins
        self._clients = clients
        parts = urlsplit(server.issuer)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._prefix = parts.path
        self._secure = parts.scheme == "https"
        # Browsers accept a cookie of this name only for this host and over https; over http it is one of a test.
        self._cookie = "__Host-oauth" if self._secure else "oauth"
        self._authorization = AuthorizationHandler(server)
        self._authenticator = Authenticator(server)
        self._token = TokenHandler(server, self._authenticator)
        self._registration = RegistrationHandler(server, ClientRegistrationOptions(enabled=True))

    def routes(self) -> list[Route]:
        metadata = MetadataHandler(self._metadata()).handle
        resource = ProtectedResourceMetadataHandler(self._resource_metadata()).handle
        routes = [
            *self._public(metadata, AUTHORIZATION_SERVER, f"{AUTHORIZATION_SERVER}{self._prefix}"),
            *self._public(resource, PROTECTED_RESOURCE, f"{PROTECTED_RESOURCE}/mcp", self.resource_metadata_path),
            self._route("/authorize", self._authorize, "GET", "POST"),
            self._route("/oauth/consent", self._consent, "GET"),
            self._route("/oauth/consent", self._decide, "POST"),
            self._route("/oauth/callback", self._callback, "GET"),
            self._route("/oauth/logout", self._logout, "POST"),
            self._route("/token", self._issue, "POST", cors=True),
            self._route("/revoke", self._revoke, "POST", cors=True),
        ]
        if self._server.settings.registration:
            routes.append(self._route("/register", self._register, "POST", cors=True))
        return routes

    @property
    def resource_metadata_path(self) -> str:
        return f"{PROTECTED_RESOURCE}{self._prefix}/mcp"

    @property
    def challenge(self) -> str:
        """Return the parameters of WWW-Authenticate (RFC 9728, section 5.1)."""
        scopes = " ".join(self._server.settings.supported_scopes)
        parameters = f'resource_metadata="{self._origin}{self.resource_metadata_path}"'
        return parameters + (f', scope="{scopes}"' if scopes else "")

    # --- Metadata --------------------------------------------------------------------------------------------

    def _metadata(self) -> OAuthMetadata:
        server, settings = self._server, self._server.settings
        methods = ["none", "client_secret_post", "client_secret_basic"]
        document: dict[str, Any] = {
            "issuer": server.issuer,
            "authorization_endpoint": f"{server.issuer}/authorize",
            "token_endpoint": f"{server.issuer}/token",
            "revocation_endpoint": f"{server.issuer}/revoke",
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": server.documents is not None,
        }
        if settings.registration:
            document["registration_endpoint"] = f"{server.issuer}/register"
        if settings.supported_scopes:
            document["scopes_supported"] = list(settings.supported_scopes)
        if server.documents is not None:
            methods.append("private_key_jwt")
            document["token_endpoint_auth_signing_alg_values_supported"] = ["ES256", "RS256", "PS256", "EdDSA"]
        document["token_endpoint_auth_methods_supported"] = methods
        document["revocation_endpoint_auth_methods_supported"] = methods
        return OAuthMetadata.model_validate(document)

    def _resource_metadata(self) -> ProtectedResourceMetadata:
        scopes = list(self._server.settings.supported_scopes)
        return ProtectedResourceMetadata.model_validate(
            {
                "resource": self._server.resource,
                "authorization_servers": [self._server.issuer],
                "resource_name": self._title,
                **({"scopes_supported": scopes} if scopes else {}),
            }
        )

    def _public(self, handler: Handler, *paths: str) -> list[Route]:
        app = cors_middleware(handler, ["GET", "OPTIONS"])
        return [Route(path, app, methods=["GET", "OPTIONS"]) for path in dict.fromkeys(paths)]

    def _route(self, path: str, handler: Handler, *methods: str, cors: bool = False) -> Route:
        async def guarded(request: Request) -> Response:
            current_http.set(request)
            try:
                if self._sign_ins.rejects():
                    raise StoreUnavailableError("its audit record cannot be written")
                return await handler(request)
            except StoreUnavailableError as error:
                log.warning("the sign-in is not available", problem=str(error))
                headers = {"retry-after": "5", "cache-control": "no-store"}
                return JSONResponse({"error": "temporarily_unavailable"}, 503, headers=headers)

        allowed = [*methods, "OPTIONS"] if cors else [*methods]
        app: ASGIApp = cors_middleware(guarded, allowed) if cors else request_response(guarded)
        return Route(path, RequestBodyLimitMiddleware(app, MAX_BODY_BYTES), methods=allowed)

    # --- Authorization request and consent -------------------------------------------------------------------

    async def _authorize(self, request: Request) -> Response:
        """Check the request, as the SDK does, and send the browser to the consent page."""
        if await self._exceeded(request, "requests"):
            return self._limited(request, as_page=True)
        browser = request.cookies.get(self._cookie) or secrets.token_urlsafe(32)
        token = current_browser.set(digest(browser))
        try:
            response = await self._authorization.handle(request)
        finally:
            current_browser.reset(token)
        location = response.headers.get("location", "")
        if location.startswith(f"{self._server.issuer}/oauth/consent?"):
            response.set_cookie(
                self._cookie,
                browser,
                max_age=REQUEST_SECONDS,
                path="/",
                secure=self._secure,
                httponly=True,
                samesite="lax",
            )
        elif location:  # an error for the client (RFC 9207, section 2)
            response.headers["location"] = construct_redirect_uri(location, iss=self._server.issuer)
        else:
            await self._failed(request, "invalid_request")
            return self._page("Sign-in not possible", "<p>The application has sent an invalid request.</p>", 400)
        return response

    async def _consent(self, request: Request) -> Response:
        request_id = request.query_params.get("request", "")
        record = await self._server.records.get(f"request:{digest(request_id)}")
        browser = request.cookies.get(self._cookie, "")
        client = await self._server.get_client(record["client"]) if record else None
        if record is None or client is None or record["browser"] != digest(browser):
            return self._expired()
        target = urlsplit(record["redirect_uri"])
        name = client.client_name or client.host or "An application without a name"
        known = (
            f"<dd>{escape(client.host)}</dd>"
            if client.host
            else '<dd class="warning">not verified: this application has chosen its name itself</dd>'
        )
        where = escape(target.netloc or f"an application on this device ({target.scheme})")
        scopes = " ".join(record["scopes"] or self._server.settings.supported_scopes)
        body = f"""
<p><strong>{escape(name)}</strong> asks to use {escape(self._title)} in your name.</p>
<dl>
<dt>Publisher of the application</dt>{known}
<dt>After the sign-in you are sent to</dt><dd><strong>{where}</strong><br>{escape(record["redirect_uri"])}</dd>
{f"<dt>Permissions</dt><dd>{escape(scopes)}</dd>" if scopes else ""}
<dt>You sign in with</dt><dd>{escape(urlsplit(self._server.provider.issuer).netloc)}</dd>
</dl>
<p>Continue only if you have just started this in that application.</p>
<form method="post" action="{escape(self._prefix)}/oauth/consent">
<input type="hidden" name="request" value="{escape(request_id)}">
<input type="hidden" name="proof" value="{self._proof(browser, request_id)}">
<button class="primary" name="decision" value="allow">Continue to sign in</button>
<button name="decision" value="deny">Cancel</button>
</form>"""
        return self._page(f"Sign in to {self._title}", body)

    async def _decide(self, request: Request) -> Response:
        form = await request.form()
        request_id, browser = str(form.get("request") or ""), request.cookies.get(self._cookie, "")
        proof = str(form.get("proof") or "")
        origin = request.headers.get("origin", self._origin)
        if origin != self._origin or not hmac.compare_digest(proof.encode(), self._proof(browser, request_id).encode()):
            await self._failed(request, "forged")
            return self._expired()
        record = await self._server.records.take(f"request:{digest(request_id)}")
        if record is None or record["browser"] != digest(browser):
            await self._failed(request, "expired")
            return self._expired()
        if form.get("decision") != "allow":
            self._sign_ins("denied", client=record["client"])
            return self._onward(self._error_url(record, "access_denied", "the user did not agree"))
        state, verifier, nonce = (secrets.token_urlsafe(32) for _ in range(3))
        record |= {"verifier": verifier, "nonce": nonce}
        self._sign_ins.audit("consented", client=record["client"])
        provider = self._server.provider
        try:
            metadata = await provider.metadata()
        except SignInError as error:
            self._sign_ins(error.outcome, client=record["client"])
            url = self._error_url(record, "temporarily_unavailable", "the identity provider does not answer")
            return self._onward(url)
        await self._server.records.put(f"login:{digest(state)}", record, REQUEST_SECONDS)
        return self._onward(provider.login_url(metadata, state, nonce, verifier))

    async def _callback(self, request: Request) -> Response:
        """Take the user back from the identity provider, and send the browser to the client with a code."""
        if await self._exceeded(request, "failures", count=False):
            return self._limited(request, as_page=True)
        query, browser = request.query_params, request.cookies.get(self._cookie, "")
        record = await self._server.records.take(f"login:{digest(query.get('state', ''))}")
        if record is None or record["browser"] != digest(browser):
            await self._failed(request, "expired")
            return self._expired()
        provider = self._server.provider
        try:
            metadata = await provider.metadata()
            issuer = query.get("iss")
            if (issuer is None and metadata.sends_iss) or (issuer is not None and issuer != metadata.issuer):
                raise SignInError("rejected", "The answer is from another identity provider")
            if "code" not in query:
                raise SignInError("rejected", "The identity provider did not sign you in")
            identity = await provider.exchange(query["code"], record["verifier"], record["nonce"])
        except SignInError as error:
            context = {"problem": str(error), "provider_error": query.get("error", "")[:40]}
            await self._failed(request, error.outcome, client=record["client"], **context)
            code = "temporarily_unavailable" if error.outcome == "unavailable" else "access_denied"
            return self._redirect(self._error_url(record, code, str(error)))
        code = await self._server.issue_code(record, identity)
        self._sign_ins("completed", client=record["client"], subject=identity.subject)
        log.info("signed in", client=record["client"], subject=identity.subject)
        url = construct_redirect_uri(record["redirect_uri"], code=code, state=record["state"], iss=self._server.issuer)
        return self._redirect(url)

    async def _logout(self, request: Request) -> Response:
        """End the sessions of a user whom the provider has signed out (OpenID Connect Back-Channel Logout 1.0)."""
        form = await request.form()
        try:
            subject = await self._server.provider.signed_out(str(form.get("logout_token") or ""))
        except SignInError as error:
            await self._failed(request, error.outcome, problem=str(error))
            return JSONResponse({"error": "invalid_request"}, 400, headers={"cache-control": "no-store"})
        await self._server.sign_out(subject)
        log.info("signed out by the identity provider", subject=subject)
        return Response(headers={"cache-control": "no-store"})

    # --- Endpoints of clients --------------------------------------------------------------------------------

    async def _issue(self, request: Request) -> Response:
        if await self._exceeded(request, "failures", count=False):
            return self._limited(request)
        request = await with_client_id(request)
        form = await request.form()
        resource = form.get("resource")
        if resource is not None and str(resource).rstrip("/") != self._server.resource:
            return JSONResponse({"error": "invalid_target"}, 400, headers={"cache-control": "no-store"})
        response: Response = await self._token.handle(request)
        if response.status_code != 200:
            await self._failed(request, "token")
        return response

    async def _register(self, request: Request) -> Response:
        if await self._exceeded(request, "registrations"):
            self._clients("limited")
            return self._limited(request)
        response = await self._registration.handle(request)
        self._clients("registered" if response.status_code == 201 else "rejected")
        response.headers["cache-control"] = "no-store"
        return response

    async def _revoke(self, request: Request) -> Response:
        """Revoke a token (RFC 7009). The SDK's handler demands a client_secret of public clients."""
        request = await with_client_id(request)
        try:
            client = await self._authenticator.authenticate_request(request)
        except AuthenticationError as error:
            await self._failed(request, "token")
            return JSONResponse({"error": "invalid_client", "error_description": error.message}, 401)
        value = str((await request.form()).get("token") or "")
        token = await self._server.load_access_token(value) or await self._server.load_refresh_token(client, value)
        if token is not None and token.client_id == client.client_id:
            await self._server.revoke_token(token)
        return Response(headers={"cache-control": "no-store"})

    # --- Parts -----------------------------------------------------------------------------------------------

    async def _exceeded(self, request: Request, what: str, *, count: bool = True) -> bool:
        """Return whether an address, or all together, have done something too often; count it unless told not to."""
        store, (limit, seconds) = self._server.records.store, LIMITS[what]
        key = f"count:{what} {digest(self._address(request))}"
        if not count:
            return int(await store.get(key) or 0) > limit
        exceeded = await store.count(key, seconds) > limit
        if not exceeded and what in TOTALS:
            total, seconds = TOTALS[what]
            exceeded = await store.count(f"count:{what}", seconds) > total
        return exceeded

    async def _failed(self, request: Request, outcome: str, **context: str) -> None:
        self._sign_ins(outcome, path=request.url.path, **context)
        log.warning("a sign-in failed", outcome=outcome, peer=self._address(request), path=request.url.path, **context)
        await self._exceeded(request, "failures")

    def _limited(self, request: Request, *, as_page: bool = False) -> Response:
        self._rejected("limited", "too many sign-ins from one address", request.scope, http_status=429)
        if as_page:
            return self._page("Too many attempts", "<p>Try again in a few minutes.</p>", 429)
        return JSONResponse({"error": "temporarily_unavailable"}, 429, headers={"retry-after": "600"})

    def _proof(self, browser: str, request_id: str) -> str:
        return hmac.new(browser.encode(), request_id.encode(), "sha256").hexdigest()

    def _error_url(self, record: Record, error: str, text: str) -> str:
        return construct_redirect_uri(
            str(record["redirect_uri"]),
            error=error,
            error_description=text,
            state=record["state"],
            iss=self._server.issuer,
        )

    def _redirect(self, url: str) -> Response:
        return RedirectResponse(url, 302, headers={"cache-control": "no-store", "referrer-policy": "no-referrer"})

    def _onward(self, url: str) -> Response:
        link = escape(url)
        body = f'<p><a class="button" href="{link}">Continue</a> if the page does not change by itself.</p>'
        return self._page("One moment", body, head=f'<meta http-equiv="refresh" content="0;url={link}">')

    def _expired(self) -> Response:
        body = (
            "<p>This sign-in has expired, was used already, or was begun in another browser. Start it again in your "
            "application.</p>"
        )
        return self._page("Start again", body, 400)

    def _page(self, title: str, body: str, status: int = 200, head: str = "") -> Response:
        document = (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{head}'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
            f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
        )
        return HTMLResponse(document, status, headers=HEADERS)
