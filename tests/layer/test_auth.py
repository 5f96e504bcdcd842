"""Bearer authentication: what every request to the endpoint has to present, whatever kind of token it is."""

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
from starlette.types import Scope

from harness import DEADLINE_SECONDS, HEADERS, INITIALIZE, Running, Serve, config, message, text_of
from weather_station.__main__ import main
from weather_station.production.caller import Caller, User, caller
from weather_station.production.config import ConfigError
from weather_station.production.inbound import auth
from weather_station.production.inbound.auth import MAX_TOKEN_BYTES, AuthError, UnknownTokenError
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.startup import require_http_allowed
from weather_station.server import create_server


class Users:
    """Accepts the tokens `alice` and `bob`, and counts the verifications."""

    def __init__(self) -> None:
        self.verified = 0

    async def verify(self, token: bytes, scope: Scope) -> User:
        self.verified += 1
        if token not in (b"alice", b"bob"):
            raise UnknownTokenError
        name = token.decode()
        return User(AccessToken(token="", client_id=name, scopes=[]), Caller(name, client=name))

    def __call__(self, server: ProductionServer) -> None:
        async def who(ctx: Context[Any, Any]) -> str:
            token = get_access_token()
            assert token is not None
            return f"{token.client_id} {caller(ctx).id}"

        server.tool()(who)
        methods = auth.methods(server.registry)
        methods.add("users", "", self.verify)
        methods.challenge = lambda scope: 'resource_metadata="https://x/y"'


def send(server: Running, *headers: tuple[str, str]) -> httpx2.Response:
    return server.client.post(
        server.url, json=server.request("who"), headers=httpx2.Headers([*HEADERS.items(), *headers])
    )


def test_a_request_without_a_token_gets_401_with_the_way_to_get_one(serve: Serve) -> None:
    with serve(Users()) as server:
        response = send(server)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Bearer resource_metadata="https://x/y"'
        assert response.json()["id"] is None
        assert "Authorization header" in response.json()["error"]["message"]


def test_a_request_with_an_invalid_token_gets_401_that_says_so(serve: Serve) -> None:
    with serve(Users()) as server:
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
def test_anything_but_one_bearer_token_is_rejected_without_verification(
    serve: Serve, headers: list[tuple[str, str]]
) -> None:
    users = Users()
    with serve(users) as server:
        assert send(server, *headers).status_code == 401
        assert users.verified == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_tools_and_limits_see_the_user_of_the_token(serve: Serve, scheme: str) -> None:
    with serve(Users()) as server:
        assert text_of(server.call("who", authorization=f"{scheme} alice")) == "alice alice"
        assert text_of(server.call("who", authorization=f"{scheme} bob")) == "bob bob"


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_clients_of_both_protocol_versions_work_with_a_token_and_get_the_reason_without(
    serve: Serve, mode: Any
) -> None:
    with serve(Users()) as server:
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
def test_a_request_without_a_token_gets_401_before_its_body_is_read(serve: Serve, length: str) -> None:
    with serve(Users()) as server:
        parts = urlsplit(server.base)
        address = (str(parts.hostname), int(parts.port or 0))
        with socket.create_connection(address, timeout=DEADLINE_SECONDS) as connection:
            connection.sendall(f"POST /mcp HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_wrong_host_is_rejected_before_the_token_is_verified(serve: Serve) -> None:
    users = Users()
    with serve(users) as server:
        assert send(server, ("host", "evil.com"), ("authorization", "Bearer alice")).status_code == 421
        assert users.verified == 0


def test_a_web_page_may_send_a_preflight_without_a_token_and_read_the_401(serve: Serve) -> None:
    page = ("origin", "https://app.example.com")
    with serve(Users(), allowed_origins=page[1]) as server:
        preflight = dict([page, ("access-control-request-method", "POST")])
        assert server.client.options(server.url, headers=preflight).status_code == 204
        response = send(server, page)
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == page[1]
        assert "www-authenticate" in response.headers["access-control-expose-headers"]


def test_probes_need_no_token(serve: Serve) -> None:
    with serve(Users()) as server:
        for path in ("/livez", "/readyz", "/health"):
            assert server.get(path).status_code == 200


def test_a_session_belongs_to_the_user_who_opened_it(serve: Serve) -> None:
    with serve(Users(), session_mode="stateful") as server:
        session = server.post(INITIALIZE, authorization="Bearer alice").headers["mcp-session-id"]
        for user, status in (("alice", 200), ("bob", 404)):
            response = server.post(message("tools/list"), authorization=f"Bearer {user}", mcp_session_id=session)
            assert response.status_code == status


def test_a_verifier_without_its_keys_causes_503_with_the_time_to_wait(serve: Serve) -> None:
    async def verify(token: bytes, scope: Scope) -> User:
        raise AuthError(503, "", "Try again soon", retry_after=5)

    with serve(lambda server: auth.methods(server.registry).add("users", "", verify)) as server:
        response = send(server, ("authorization", "Bearer alice"))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert "www-authenticate" not in response.headers


@pytest.mark.parametrize("host", ["192.0.2.1", "::"])
def test_a_server_without_credentials_does_not_serve_other_machines(
    host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST", host)
    assert main(["--port", "0"]) == 2
    stderr = capsys.readouterr().err
    assert f"HOST: {host} is reachable from other machines" in stderr
    assert "set AUTH_TOKENS" in stderr or "set JWT_ISSUER" in stderr
    assert "Traceback" not in stderr


def test_a_server_without_credentials_serves_its_own_machine_and_reports_what_is_missing(serve: Serve) -> None:
    with serve() as server:
        assert not server.call("health_check").get("isError")
        assert "missing" in json.loads(server.get("/health").text)["auth_config"].values()


# --- Several methods ------------------------------------------------------------------------------------------------


def first_of_two(server: ProductionServer) -> None:
    """Accept `alice`, and reject `mallory` without asking the second method, which accepts every token."""

    async def first(token: bytes, scope: Scope) -> User:
        if token == b"mallory":
            raise AuthError(401, "invalid_token", "mallory is not welcome")
        return await Users().verify(token, scope)

    async def second(token: bytes, scope: Scope) -> User:
        return User(AccessToken(token="", client_id="second", scopes=[]), Caller("second"))

    Users()(server)
    methods = auth.methods(server.registry)
    methods.add("users", "", first)
    methods.add("second", "SECOND", second)


def test_the_first_method_that_knows_a_token_decides(serve: Serve) -> None:
    with serve(first_of_two) as server:
        assert text_of(server.call("who", authorization="Bearer alice")) == "alice alice"
        assert text_of(server.call("who", authorization="Bearer anything")) == "second second"
        assert send(server, ("authorization", "Bearer mallory")).status_code == 401


@pytest.mark.parametrize(
    ("methods", "statuses"), [("users", (200, 401)), ("second", (200, 200)), ("second,users", (200, 200))]
)
def test_auth_methods_chooses_among_the_methods(serve: Serve, methods: str, statuses: tuple[int, int]) -> None:
    with serve(first_of_two, auth_methods=methods) as server:
        found = [send(server, ("authorization", f"Bearer {token}")).status_code for token in ("alice", "x")]
        assert tuple(found) == statuses


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ("users,other", "AUTH_METHODS: this project has no method other (accepted: "),
        ("missing", "AUTH_METHODS: missing is not configured: set MISSING_URL"),
    ],
)
def test_a_chosen_method_that_is_absent_or_not_configured_stops_the_start(chosen: str, problem: str) -> None:
    server = create_server(config(auth_methods=chosen))
    methods = auth.methods(server.registry)
    methods.add("users", "", Users().verify)
    methods.add("missing", "MISSING_URL", None)
    with pytest.raises(ConfigError) as caught:
        require_http_allowed(server.registry)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)
