"""The challenge to an access token that lacks scopes: one HTTP 403 with all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from harness import HEADERS, LEGACY, MODERN, Running, Serve, message, modern, text_of
from test_auth_jwt import AUDIENCE, Issuer, issuer  # noqa: F401 (a fixture)
from weather_station.production import policy
from weather_station.production.sdk import ProductionServer

STATIC = "a-static-token-of-the-reader"
both_generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


def register(server: ProductionServer) -> None:
    @server.tool()
    @policy(scopes=["orders:write", "orders:refund"])
    async def refund() -> str:
        return "done"

    @server.resource("orders://list")
    @policy(scopes=["orders:read"])
    async def orders() -> str:
        return "all"


def post(server: Running, version: str, token: str, method: str, params: dict[str, Any]) -> httpx2.Response:
    content, headers = (message(method, params), HEADERS) if version == LEGACY else modern(method, params)
    return server.client.post(server.url, json=content, headers={**headers, "authorization": f"Bearer {token}"})


@both_generations
@pytest.mark.parametrize("response_mode", ["json", "sse"])
def test_the_challenge_has_all_scopes_of_the_operation(
    serve: Serve,
    issuer: Issuer,  # noqa: F811
    version: str,
    response_mode: str,
) -> None:
    ours = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
    with serve(register, **ours, jwt_required_scopes="mcp", response_mode=response_mode) as server:
        token = issuer.token(scope="mcp orders:write")
        response = post(server, version, token, "tools/call", {"name": "refund"})
        assert response.status_code == 403
        challenge = response.headers["www-authenticate"]
        assert challenge.startswith('Bearer error="insufficient_scope", error_description="')
        assert challenge.count("scope=") == 1
        assert 'scope="mcp orders:refund orders:write"' in challenge
        assert "resource_metadata=" in challenge
        assert server.metrics().value("mcp_http_rejections_total", reason="forbidden") in (1, None)
        response = post(server, version, token, "resources/read", {"uri": "orders://list"})
        assert 'scope="mcp orders:read"' in response.headers["www-authenticate"]
        enough = issuer.token(scope="mcp orders:write orders:refund")
        assert post(server, version, enough, "tools/call", {"name": "refund"}).status_code == 200


def test_the_metadata_has_all_scopes(serve: Serve, issuer: Issuer) -> None:  # noqa: F811
    ours = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
    with serve(register, **ours, jwt_required_scopes="mcp") as server:
        document = server.get("/.well-known/oauth-protected-resource").json()
        assert document["scopes_supported"] == ["mcp", "orders:read", "orders:refund", "orders:write"]


@both_generations
def test_a_static_token_gets_the_error_of_the_method(
    serve: Serve,
    issuer: Issuer,  # noqa: F811
    tmp_path: Path,
    version: str,
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"reader:{STATIC} scopes=orders:read\n", "utf-8")
    ours = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
    with serve(register, **ours, enable_auth_tokens=True, auth_tokens_file=tokens) as server:
        response = post(server, version, STATIC, "tools/call", {"name": "refund"})
        assert response.status_code == 200
        assert "needs the scopes orders:refund, orders:write" in text_of(response.json()["result"])
        assert post(server, version, STATIC, "resources/read", {"uri": "orders://list"}).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"[1]",
        b"{",
        b'"text"',
        b'{"jsonrpc": "2.0", "id": 1}',
        b'{"jsonrpc": "2.0", "id": 1, "method": 7, "params": []}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": [1]}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": {"a": 1}}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "completion/complete", "params": {"ref": {"uri": [1]}}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": {"notifications": 1}}',
        b'{"jsonrpc": "2.0", "method": "notifications/initialized"}',
    ],
)
def test_whatever_is_no_request_passes_to_its_own_error(serve: Serve, issuer: Issuer, content: bytes) -> None:  # noqa: F811
    ours = {"jwt_issuer": issuer.url, "jwt_audience": AUDIENCE, "jwt_jwks_url": issuer.jwks_url}
    with serve(register, **ours) as server:
        headers = HEADERS | {"authorization": f"Bearer {issuer.token()}", "content-type": "application/json"}
        response = server.client.post(server.url, content=content, headers=headers)
        assert response.status_code in (200, 202, 400)
