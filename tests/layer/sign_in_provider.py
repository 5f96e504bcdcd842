"""An identity provider on a real socket that answers as a given one documents it, and a browser that signs in there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any
from urllib.parse import parse_qs, parse_qsl, unquote_plus, urlencode, urlsplit

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from harness import Running, asgi_server

PUBLIC = "https://mcp.example.com/weather"
"""The server's public URL: a proxy takes away the path."""

CLIENT_ID, CLIENT_SECRET = "our client", "our secret:/"
CALLBACK = "http://127.0.0.1:7777/callback"
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")


@dataclass
class Provider:
    """A provider, and what it has been asked. `path` comes before its endpoints, `kind` is a preset's name."""

    kind: str = "oidc"
    path: str = ""
    base: str = ""
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "alice"})
    metadata: dict[str, Any] = field(default_factory=dict)
    id_token: dict[str, Any] = field(default_factory=dict)
    """Claims of ID tokens in place of the right ones; `None` leaves one out."""
    userinfo: dict[str, Any] = field(default_factory=dict)
    organisations: list[str] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    """Parameters of its answers at the redirect URI in place of the right ones."""
    expires_in: int = 3600
    refuses: str = ""
    """The error of the token endpoint."""
    has_refresh_tokens: bool = True
    authorizations: list[dict[str, str]] = field(default_factory=list)
    grants: list[str] = field(default_factory=list)
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rotate("first")

    def reset(self) -> None:
        """Answer as a provider without peculiarities does."""
        usual = Provider()
        for name in ("claims", "metadata", "id_token", "userinfo", "answers", "expires_in", "refuses"):
            setattr(self, name, getattr(usual, name))
        self.authorizations.clear()
        self.grants.clear()

    def rotate(self, kid: str) -> None:
        self.key, self.kid = ec.generate_private_key(ec.SECP256R1()), kid

    @property
    def issuer(self) -> str:
        return self.base + self.path

    def app(self) -> Starlette:
        routes = [
            Route(f"{self.path}/.well-known/openid-configuration", self._discovery),
            Route("/keys", self._jwks),
            Route("/authorize", self._authorize),
            Route("/token", self._token, methods=["POST"]),
            Route("/userinfo", lambda request: JSONResponse(self.userinfo)),
            Route("/login/oauth/authorize", self._authorize),
            Route("/login/oauth/access_token", self._token, methods=["POST"]),
            Route("/api/v3/user", self._github_user),
            Route("/api/v3/user/emails", lambda request: JSONResponse(self.claims["emails"])),
            Route("/api/v3/user/orgs", lambda request: JSONResponse([{"login": name} for name in self.organisations])),
        ]
        return Starlette(routes=routes)

    def _discovery(self, request: Request) -> Response:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.base}/authorize",
            "token_endpoint": f"{self.base}/token",
            "jwks_uri": f"{self.base}/keys",
            "scopes_supported": ["openid", "profile", "email", "offline_access"],
        }
        return JSONResponse({name: value for name, value in (document | self.metadata).items() if value is not None})

    def _jwks(self, request: Request) -> Response:
        entry = json.loads(ECAlgorithm.to_jwk(self.key.public_key()))
        return JSONResponse({"keys": [entry | {"kid": self.kid, "alg": "ES256", "use": "sig"}]})

    def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        self.authorizations.append(query)
        if "resource" in query:  # AADSTS9010010
            return JSONResponse({"error": "invalid_target"}, 400)
        if query["redirect_uri"] != f"{PUBLIC}/oauth/callback" or query["client_id"] != CLIENT_ID:
            return JSONResponse({"error": "invalid_request"}, 400)
        if query.get("prompt") == "none":
            answer = {"error": "login_required", "state": query["state"]}
        else:
            code = secrets.token_urlsafe(8)
            self._codes[code] = query
            answer = {"code": code, "state": query["state"]}
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(answer | self.answers)}", 302)

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        self.grants.append(form["grant_type"])
        credentials = (form.get("client_id"), form.get("client_secret"))
        if basic := request.headers.get("authorization", "").removeprefix("Basic "):
            name, _, secret = base64.b64decode(basic).decode().partition(":")
            credentials = (unquote_plus(name), unquote_plus(secret))
        if credentials != (CLIENT_ID, CLIENT_SECRET):
            return JSONResponse({"error": "invalid_client"}, 401)
        if self.refuses:
            return JSONResponse({"error": self.refuses}, 200 if self.kind == "github" else 400)
        nonce = None
        if form["grant_type"] == "authorization_code":
            asked = self._codes.pop(form["code"])
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == asked["code_challenge"]
            nonce = asked.get("nonce")
        answer: dict[str, Any] = {"access_token": f"provider-{secrets.token_urlsafe(6)}", "token_type": "Bearer"}
        if self.kind == "github":
            return JSONResponse(answer | {"scope": "read:user,user:email"})
        answer |= {"expires_in": self.expires_in, "id_token": self._signed(nonce)}
        if self.has_refresh_tokens:
            answer["refresh_token"] = f"refresh-{secrets.token_urlsafe(6)}"
        return JSONResponse(answer)

    def _signed(self, nonce: str | None, **more: Any) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce}
        claims |= self.claims | self.id_token | more
        return self.sign({name: value for name, value in claims.items() if value is not None})

    def sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.key, "ES256", headers={"kid": self.kid})

    def logout_token(self, **more: Any) -> str:
        events: dict[str, Any] = {"http://schemas.openid.net/event/backchannel-logout": {}}
        return self._signed(more.pop("nonce", None), **{"events": events} | more)

    def _github_user(self, request: Request) -> Response:
        if self.refuses:
            return JSONResponse({"message": "Bad credentials"}, 401)
        return JSONResponse({"id": self.claims["id"], "login": self.claims["login"], "name": None})


@contextmanager
def provider(**settings: Any) -> Iterator[Provider]:
    found = Provider(**settings)
    with asgi_server(found.app()) as base:
        found.base = base
        yield found


class Browser:
    """A browser with cookies, for which the server is at `PUBLIC`."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []
        self.client = server.client

    def request(self, method: str, url: str, **options: Any) -> httpx2.Response:
        headers = options.pop("headers", {})
        if url.startswith(PUBLIC):
            headers |= {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
            url = self.server.base + url.removeprefix(PUBLIC)
        response = self.client.request(method, url, headers=headers, **options)
        for header in response.headers.get_list("set-cookie"):
            self.set_cookies.append(header)
            name, _, value = header.partition(";")[0].partition("=")
            self.cookies[name] = value
        return response

    def get(self, url: str, **options: Any) -> httpx2.Response:
        return self.request("GET", url, **options)

    def decide(self, page: httpx2.Response, decision: str = "allow", **changed: str) -> httpx2.Response:
        """Press a button of the consent page."""
        form = dict(re.findall(r'name="(\w+)" value="([^"]*)">', page.text)) | {"decision": decision} | changed
        return self.request("POST", f"{PUBLIC}/oauth/consent", data=form, headers={"origin": "https://mcp.example.com"})

    def authorize(self, client_id: str, **parameters: str | None) -> httpx2.Response:
        """Send an authorization request, and return the answer: a redirect, or a page with an error."""
        return self.get(authorization_url(client_id, **parameters))

    def consent(self, client_id: str, **parameters: str | None) -> httpx2.Response:
        """Return the consent page."""
        response = self.authorize(client_id, **parameters)
        assert response.status_code == 302, response.text
        return self.get(response.headers["location"])

    def to_provider(self, client_id: str, **parameters: str | None) -> str:
        """Consent, and return the URL at which the user signs in."""
        return onward(self.decide(self.consent(client_id, **parameters)))

    def sign_in(self, client_id: str, **parameters: str | None) -> dict[str, str]:
        """Go through all of it, and return the parameters with which the browser comes to the client."""
        back = self.get(self.to_provider(client_id, **parameters)).headers["location"]
        response = self.get(back)
        assert response.status_code == 302, response.text
        return query_of(response.headers["location"])


def authorization_url(client_id: str, **parameters: str | None) -> str:
    query = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": CALLBACK,
        "state": "the client's state",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        "resource": f"{PUBLIC}/mcp",
        **parameters,
    }
    return f"{PUBLIC}/authorize?{urlencode({name: value for name, value in query.items() if value is not None})}"


def onward(page: httpx2.Response) -> str:
    """Return where a page sends the browser on."""
    assert page.status_code == 200, page.text
    found = re.search(r'http-equiv="refresh" content="0;url=([^"]*)"', page.text)
    assert found, page.text
    return unescape(found[1])


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
