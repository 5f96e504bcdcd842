"""The gate that every bearer token passes, whatever kind of token it is."""

from __future__ import annotations

import json
import socket
import traceback
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context

from weather_station.__main__ import main
from weather_station.production import auth
from weather_station.production.app import ProductionServer, production_of
from weather_station.production.auth import (
    MAX_TOKEN_BYTES,
    Owner,
    RefusedError,
)

from .harness import HEADERS, Running, text_of


class Gate:
    """Knows the tokens `alice` and `bob`; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def verify(self, token: bytes) -> Owner:
        self.asked += 1
        if token not in (b"alice", b"bob"):
            raise RefusedError(401, "invalid_token", "The access token is not valid")
        return Owner(AccessToken(token="", client_id=token.decode(), scopes=[]))

    def __call__(self, server: ProductionServer) -> None:
        async def who(ctx: Context[Any, Any]) -> str:
            token = get_access_token()
            assert token is not None
            return f"{token.client_id} {production_of(server).identify(ctx.request_context.request)}"

        server.tool()(who)
        auth.require(server.production, self.verify, lambda scope: 'resource_metadata="https://x/y"')


def send(server: Running, *headers: tuple[str, str]) -> httpx2.Response:
    return server.client.post(
        server.url, json=server.request("who"), headers=httpx2.Headers([*HEADERS.items(), *headers])
    )


def test_a_request_without_a_token_gets_401_and_is_told_how_to_get_one(serve: Any) -> None:
    with serve(Gate()) as server:
        response = send(server)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer resource_metadata="https://x/y"'
        assert response.json()["id"] is None
        assert "Authorization header" in response.json()["error"]["message"]


def test_a_request_with_a_wrong_token_gets_401_that_says_so(serve: Any) -> None:
    with serve(Gate()) as server:
        response = send(server, ("authorization", "Bearer mallory"))
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith('Bearer error="invalid_token", error_description="The ')
        assert "mallory" not in response.text + str(response.headers)


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Basic YWxpY2U6YWxpY2U=")],
        [("authorization", "alice")],
        [("authorization", "Bearer")],
        [("authorization", "Beareralice")],
        [("authorization", "Bearer " + "a" * (MAX_TOKEN_BYTES + 1))],
        [("authorization", "Bearer alice"), ("authorization", "Bearer bob")],
        [("proxy-authorization", "Bearer alice")],
    ],
    ids=["basic", "bare", "no-token", "joined", "long", "two", "other-header"],
)
def test_what_is_no_bearer_token_is_refused_unseen(serve: Any, headers: list[tuple[str, str]]) -> None:
    gate = Gate()
    with serve(gate) as server:
        assert send(server, *headers).status_code == 401
        assert gate.asked == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_owner_of_a_token_is_known_to_tools_and_to_the_limits(serve: Any, scheme: str) -> None:
    with serve(Gate()) as server:
        assert text_of(server.call("who", authorization=f"{scheme} alice")) == "alice alice"
        assert text_of(server.call("who", authorization=f"{scheme} bob")) == "bob bob"


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_clients_of_both_eras_work_with_a_token_and_are_told_why_not_without(serve: Any, mode: Any) -> None:
    with serve(Gate()) as server:
        async with (
            httpx2.AsyncClient(headers={"authorization": "Bearer alice"}, trust_env=False) as http,
            Client(streamable_http_client(server.url, http_client=http), mode=mode) as client,
        ):
            assert not (await client.call_tool("who", {})).is_error
        with pytest.raises((MCPError, ExceptionGroup)) as caught:  # the session's task group wraps what ends it
            async with Client(server.url, mode=mode) as client:
                await client.call_tool("who", {})
        assert "Authentication required" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "length", ["Content-Length: 4000000", "Transfer-Encoding: chunked", "Content-Length: 9999999999"]
)
def test_a_stranger_is_refused_before_his_body_is_read(serve: Any, length: str) -> None:
    with serve(Gate()) as server:
        parts = urlsplit(server.base)
        with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as connection:
            connection.sendall(f"POST /mcp HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_wrong_host_is_refused_before_the_token_is_looked_at(serve: Any) -> None:
    gate = Gate()
    with serve(gate) as server:
        assert send(server, ("host", "evil.com"), ("authorization", "Bearer alice")).status_code == 421
        assert gate.asked == 0


def test_a_page_may_ask_without_a_token_and_read_the_refusal(serve: Any) -> None:
    page = ("origin", "https://app.example.com")
    with serve(Gate(), allowed_origins=page[1]) as server:
        asked = dict([page, ("access-control-request-method", "POST")])
        assert server.client.options(server.url, headers=asked).status_code == 204
        response = send(server, page)
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == page[1]
        assert "www-authenticate" in response.headers["access-control-expose-headers"]


def test_probes_need_no_token(serve: Any) -> None:
    with serve(Gate()) as server:
        for path in ("/livez", "/readyz", "/health"):
            assert server.client.get(server.base + path).status_code == 200


def test_a_session_belongs_to_the_owner_of_the_token_that_opened_it(serve: Any) -> None:
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    with serve(Gate(), session_mode="stateful") as server:
        session = server.post(hello, authorization="Bearer alice").headers["mcp-session-id"]
        for owner, status in (("alice", 200), ("bob", 404)):
            response = server.post(
                {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
                authorization=f"Bearer {owner}",
                mcp_session_id=session,
            )
            assert response.status_code == status


def test_a_verifier_that_cannot_know_answers_503_with_the_time_to_wait(serve: Any) -> None:
    async def verify(token: bytes) -> Owner:
        raise RefusedError(503, "", "Try again soon", retry_after=5)

    with serve(lambda server: auth.require(server.production, verify)) as server:
        response = send(server, ("authorization", "Bearer alice"))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert "www-authenticate" not in response.headers


@pytest.mark.parametrize("host", ["192.0.2.1", "::"])
def test_without_credentials_nobody_else_is_served(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST", host)
    assert main(["--port", "0"]) == 2
    said = capsys.readouterr().err
    assert f"HOST: {host} is reachable from other machines" in said
    assert "set AUTH_TOKENS" in said or "set JWT_ISSUER" in said
    assert "Traceback" not in said


def test_without_credentials_this_machine_is_served_and_health_says_what_is_missing(serve: Any) -> None:
    with serve() as server:
        assert not server.call("health_check").get("isError")
        assert "missing" in json.loads(server.client.get(f"{server.base}/health").text)["auth_config"].values()
