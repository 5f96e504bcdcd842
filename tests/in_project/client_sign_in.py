"""The Python SDK's OAuth client and a browser: `python client_sign_in.py URL USER CERTIFICATE STEPS`.

It registers, or with a certificate has a document about itself on a server with that certificate. It waits for a line
on stdin before each request of the browser if STEPS is `browser`, and before each request at all if it is `all`. Each
line that it prints is JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
import threading
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx2
from mcp.client.auth import OAuthClientProvider
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

CALLBACK = "http://127.0.0.1:1/callback"
METADATA = {"redirect_uris": [CALLBACK], "client_name": "A client", "token_endpoint_auth_method": "none"}


class Storage:
    tokens: OAuthToken | None = None
    client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def pause(request: httpx2.Request) -> None:
    """Say which request is next, and wait for a line on stdin."""
    print(json.dumps({"next": f"{request.method} {request.url.copy_with(query=None)}"}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)


class User:
    """Whoever sits before the browser: presses the first button of each page, and signs in with a name."""

    def __init__(self, name: str, hooks: Any = None) -> None:
        self._name = name
        self._hooks = hooks
        self.pages: list[str] = []
        self.answer: dict[str, str] = {}

    async def open(self, url: str) -> None:
        async with httpx2.AsyncClient(timeout=30, trust_env=False, event_hooks=self._hooks) as http:
            response = await http.get(url)
            while not self.answer:
                response = await self._next(http, response)

    async def _next(self, http: httpx2.AsyncClient, response: httpx2.Response) -> httpx2.Response:
        target = response.headers.get("location")
        if target is None:
            assert response.status_code == 200, response.text
            self.pages.append(response.text)
            found = re.search('http-equiv="refresh" content="0;url=([^"]*)"', response.text)
            target = unescape(found[1]) if found else None
        if target is not None:
            if target.startswith(CALLBACK):
                self.answer = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
                return response
            return await http.get(urljoin(str(response.url), target))
        action = re.search('<form[^>]* action="([^"]*)"', response.text)
        assert action, response.text
        fields = dict(re.findall('name="([^"]+)" value="([^"]*)"', response.text))
        fields |= {"login": self._name, "password": "any"} if 'name="login"' in response.text else {}
        fields |= {"decision": "allow"} if 'name="decision"' in response.text else {}
        return await http.post(urljoin(str(response.url), unescape(action[1])), data=fields)

    async def come_back(self) -> AuthorizationCodeResult:
        return AuthorizationCodeResult(code=self.answer["code"], state=self.answer["state"], iss=self.answer["iss"])


def document_url(certificate: str) -> str:
    """Serve a document about this client, and return its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = {"client_id": url, "client_name": "A client with a document", "redirect_uris": [CALLBACK]}
            body = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{server.server_address[1]}/client.json"
    return url


async def main(url: str, name: str, certificate: str, steps: str) -> None:
    hooks: Any = {"request": [pause]}
    user, storage = User(name, hooks if steps else None), Storage()
    provider = OAuthClientProvider(
        url,
        OAuthClientMetadata.model_validate(METADATA),
        storage,
        user.open,
        user.come_back,
        client_metadata_url=document_url(certificate) if certificate else None,
    )
    report: dict[str, Any] = {}
    hooks = hooks if steps == "all" else None
    async with httpx2.AsyncClient(auth=provider, timeout=30, trust_env=False, event_hooks=hooks) as http:

        async def call(tool: str) -> Any:
            async with Client(streamable_http_client(url, http_client=http)) as client:
                result = await client.call_tool(tool, {})
                return result.structured_content or [block.text for block in result.content]

        report["who"] = await call("who")
        assert storage.tokens
        assert storage.client
        report |= {"client": storage.client.client_id, "consent": user.pages[0], "first": storage.tokens.model_dump()}
        report["orders"] = await call("orders")
        provider.context.token_expiry_time = 1.0
        report["after_refresh"] = await call("who")
        report["second"] = storage.tokens.model_dump()
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
