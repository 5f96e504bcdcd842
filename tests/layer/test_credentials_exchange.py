"""Each caller's token for the upstream, in exchange for the caller's own (RFC 8693), and what all such tokens share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver.exceptions import ToolError

from clocks import Clock
from harness import ONE_ATTEMPT, config, opened, wait_for
from stand_in import StandIn, hang, respond, stand_in
from token_endpoint import TokenEndpoint, token_endpoint
from weather_station.production.caller import Caller, User, current_caller
from weather_station.production.config import ConfigError
from weather_station.production.upstream import credentials_source
from weather_station.production.upstream.client import Upstream
from weather_station.production.upstream.credentials_token import MAX_RESPONSE_BYTES
from weather_station.production.upstream.errors import UpstreamError, UpstreamStatusError, UpstreamTimeoutError
from weather_station.server import create_server

ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 (the name of a type)


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with token_endpoint() as endpoint:
        yield endpoint


@asynccontextmanager
async def exchanging(api: StandIn, endpoint: TokenEndpoint, **changed: Any) -> AsyncIterator[Upstream]:
    async with opened(api.url, **(ONE_ATTEMPT | endpoint.settings(**changed))) as runtime:
        yield runtime.upstream


@contextmanager
def calling(name: str, token: str = "") -> Iterator[None]:
    """Be a caller with an access token, as the pipeline sets it."""
    sender = Caller(name, client=name)
    user = User(AccessToken(token=token or f"token-of-{name}", client_id=name, scopes=[]), sender)
    user_reset, caller_reset = auth_context_var.set(user), current_caller.set(sender)
    try:
        yield
    finally:
        auth_context_var.reset(user_reset)
        current_caller.reset(caller_reset)


def sent(api: StandIn) -> list[str | None]:
    return [request.headers.get("authorization") for request in api.requests]


async def test_a_callers_token_is_exchanged_with_the_parameters_of_rfc_8693(
    api: StandIn, endpoint: TokenEndpoint
) -> None:
    settings = {
        "upstream_scope": "orders",
        "upstream_audience": "api://orders",
        "upstream_resource": "https://o.example",
    }
    async with exchanging(api, endpoint, **settings) as upstream:
        with calling("alice"):
            await upstream.get_json("/orders")
    assert endpoint.forms == [
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": "token-of-alice",
            "subject_token_type": ACCESS_TOKEN,
            "requested_token_type": ACCESS_TOKEN,
            "scope": "orders",
            "audience": "api://orders",
            "resource": "https://o.example",
        }
    ]
    assert sent(api) == ["Bearer minted-token-0123456789-1"]


@pytest.mark.parametrize(
    ("method", "header", "in_form"),
    [
        ("basic", "Basic bWNwLXNlcnZlcjpzZWNyZXQlM0FvZit0aGUlMkJjbGllbnQ=", None),
        ("post", None, "secret:of the+client"),
    ],
)
async def test_the_server_authenticates_as_configured(
    api: StandIn, endpoint: TokenEndpoint, method: str, header: str | None, in_form: str | None
) -> None:
    async with exchanging(api, endpoint, upstream_client_auth=method) as upstream:
        with calling("alice"):
            await upstream.get_json("/")
    assert endpoint.server.requests[0].headers.get("authorization") == header
    assert endpoint.forms[0].get("client_secret") == in_form


async def test_each_caller_has_a_token_of_its_own_that_is_kept(api: StandIn, endpoint: TokenEndpoint) -> None:
    async with exchanging(api, endpoint) as upstream:
        for name in ("alice", "bob", "alice", "bob"):
            with calling(name):
                await upstream.get_json("/")
        with calling("alice", "another-token-of-alice"):
            await upstream.get_json("/")
    assert [form["subject_token"] for form in endpoint.forms] == [
        "token-of-alice",
        "token-of-bob",
        "another-token-of-alice",
    ]
    minted = "Bearer minted-token-0123456789-"
    assert sent(api) == [f"{minted}{number}" for number in (1, 2, 1, 2, 3)]


async def test_concurrent_requests_of_a_caller_share_one_exchange(api: StandIn, endpoint: TokenEndpoint) -> None:
    endpoint.release.clear()

    async def call(upstream: Upstream, name: str) -> None:
        with calling(name):
            await upstream.get_json("/")

    async with exchanging(api, endpoint) as upstream, asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(call(upstream, ("alice", "bob")[number % 2]))
        await asyncio.to_thread(wait_for, lambda: len(endpoint.forms) == 2)
        endpoint.release.set()
    assert len(endpoint.forms) == 2
    assert len({*sent(api)}) == 2


@pytest.mark.parametrize(
    ("expires_in", "kept"),
    [(300, 269), ("300", 269), (40, 19), (None, 0), ("soon", 0), (-5, 0), (10**400, 0)],
    ids=lambda value: str(value)[:4],
)
async def test_a_token_is_kept_until_shortly_before_its_end(
    api: StandIn, endpoint: TokenEndpoint, expires_in: Any, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(1000.0)
    monkeypatch.setattr(credentials_source, "time", clock)
    endpoint.expires_in = expires_in
    async with exchanging(api, endpoint) as upstream:
        with calling("alice"):
            await upstream.get_json("/")
            clock.now += kept
            await upstream.get_json("/")
            assert len(endpoint.forms) == (1 if kept else 2)
            clock.now += 2
            await upstream.get_json("/")
            assert len(endpoint.forms) == (2 if kept else 3)


async def test_the_number_of_tokens_that_are_kept_is_bounded(
    api: StandIn, endpoint: TokenEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials_source, "MAX_CACHED", 2)
    async with exchanging(api, endpoint) as upstream:
        for name in ("alice", "bob", "carol", "carol", "bob", "alice"):
            with calling(name):
                await upstream.get_json("/")
    assert [form["subject_token"].removeprefix("token-of-") for form in endpoint.forms] == [
        "alice",
        "bob",
        "carol",
        "alice",
    ]


async def test_a_token_that_the_upstream_rejects_is_replaced_once(api: StandIn, endpoint: TokenEndpoint) -> None:
    async with exchanging(api, endpoint) as upstream:
        with calling("alice"):
            await upstream.get_json("/")
            api.behave(respond(401), respond(200))
            await upstream.request("POST", "/", json={"a": 1})
            assert [text and text[-1] for text in sent(api)] == ["1", "2"]
            assert [request.body for request in api.requests] == [b'{"a":1}'] * 2
            api.behave(respond(401))
            with pytest.raises(UpstreamStatusError, match="401"):
                await upstream.get_json("/")
            assert [text and text[-1] for text in sent(api)] == ["2", "3"]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (respond(400, b'{"error": "invalid_grant"}'), r"issued no token \(invalid_grant\)"),
        (respond(400, b'{"error": "<script>"}'), r"issued no token \(status 400\)"),
        (respond(400, b'{"error": "interaction_required"}'), "has to sign in again"),
        (respond(401, b'{"error": "invalid_client"}'), "invalid_client"),
        (respond(403, b"<html>"), "status 403"),
        (respond(302, b"", location="https://evil.example.com"), "status 302"),
        (respond(200, b"{}"), "status 200"),
        (respond(200, b"null"), "status 200"),
        (respond(200, b"[" * 100_000), "status 200"),
        (respond(200, b'{"access_token": "a\\nb", "token_type": "Bearer"}'), "status 200"),
        (respond(200, b'{"access_token": "abc", "token_type": "N_A"}'), "unsupported_token_type"),
        (respond(200, b'{"access_token": "abc"}'), "unsupported_token_type"),
        (respond(500, b"{}"), "Trying again later may help"),
        (respond(429, b"{}"), "Trying again later may help"),
        (respond(200, b" " * (MAX_RESPONSE_BYTES + 1)), "Trying again later may help"),
    ],
)
async def test_without_a_token_no_request_is_sent(
    api: StandIn, endpoint: TokenEndpoint, answer: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_TEST_KEY", "the-servers-own-key")
    endpoint.answers = [answer]
    async with exchanging(api, endpoint, upstream_api_key_env="UPSTREAM_TEST_KEY") as upstream:
        with calling("alice"):
            with pytest.raises(UpstreamError, match=text):
                await upstream.get_json("/")
            assert api.requests == []
            await upstream.get_json("/")
    assert sent(api) == ["Bearer minted-token-0123456789-2"]


async def test_an_endpoint_that_hangs_fails_by_the_deadline_of_the_request(
    api: StandIn, endpoint: TokenEndpoint
) -> None:
    endpoint.server.behave(hang())
    async with exchanging(api, endpoint, request_timeout_seconds=0.3) as upstream:
        with calling("alice"), pytest.raises(UpstreamTimeoutError):
            await upstream.get_json("/")
    assert api.requests == []


@pytest.mark.needs("upstream.circuit_breaker")
async def test_an_outage_opens_a_circuit_of_the_endpoints_own(api: StandIn, endpoint: TokenEndpoint) -> None:
    settings = endpoint.settings(enable_circuit_breaker=True, circuit_failure_threshold=2, enable_retries=False)
    endpoint.answers = [respond(400, b"{}")] * 5 + [respond(500)] * 2
    async with opened(api.url, **settings) as runtime:
        with calling("alice"):
            for _ in range(7):
                with pytest.raises(UpstreamError, match="issued no token"):
                    await runtime.upstream.get_json("/")
            with pytest.raises(UpstreamError, match=r"\(tokens\) has failed repeatedly"):
                await runtime.upstream.get_json("/")
    assert len(endpoint.forms) == 7


@pytest.mark.parametrize("token", ["", None])
async def test_a_caller_without_a_token_is_rejected(
    api: StandIn, endpoint: TokenEndpoint, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_TEST_KEY", "the-servers-own-key")
    async with exchanging(api, endpoint, upstream_api_key_env="UPSTREAM_TEST_KEY") as upstream:
        user = None if token is None else User(AccessToken(token="", client_id="a", scopes=[]), Caller("a"))
        reset = auth_context_var.set(user)
        try:
            with pytest.raises(UpstreamError, match="no access token that can be exchanged"):
                await upstream.get_json("/")
        finally:
            auth_context_var.reset(reset)
    assert (api.requests, endpoint.forms) == ([], [])


@pytest.mark.parametrize(
    "request_of",
    [
        {"headers": {"Authorization": "Bearer token-of-alice"}},
        {"headers": {"X-Token": "token-of-alice"}},
        {"params": {"access_token": "token-of-alice"}},
    ],
)
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_the_callers_own_token_is_never_sent(
    api: StandIn, endpoint: TokenEndpoint, request_of: dict[str, Any], elsewhere: bool
) -> None:
    with stand_in() as other:
        async with exchanging(api, endpoint) as upstream:
            with calling("alice"), pytest.raises(UpstreamError, match="own token must not be sent"):
                await upstream.request("GET", other.url if elsewhere else "/", **request_of)
        assert api.requests == other.requests == []


async def test_another_host_gets_no_token(api: StandIn, endpoint: TokenEndpoint) -> None:
    with stand_in() as other:
        async with exchanging(api, endpoint) as upstream:
            with calling("alice"):
                await upstream.get_json(other.url)
        assert sent(other) == [None]
    assert endpoint.forms == []


async def test_only_allowed_hosts_are_reached_by_a_url(api: StandIn, endpoint: TokenEndpoint) -> None:
    async with exchanging(api, endpoint, upstream_allowed_hosts="geo.example.com") as upstream:
        with calling("alice"):
            await upstream.get_json(f"{api.url}/by-its-url")
            for url in ("http://169.254.169.254/latest", "https://evil.example.com", "http://geo.example.com.evil.com"):
                with pytest.raises(ToolError, match="UPSTREAM_ALLOWED_HOSTS"):
                    await upstream.get_json(url)
            with pytest.raises(UpstreamError, match="cannot be reached"):
                await upstream.get_json("http://GEO.example.com:9/")


async def test_tokens_show_in_no_log_line(
    api: StandIn, endpoint: TokenEndpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    endpoint.answers = [respond(400, b'{"error": "invalid_grant", "error_description": "token-of-alice"}')]
    async with exchanging(api, endpoint) as upstream:
        with calling("alice"):
            with pytest.raises(UpstreamError) as caught:
                await upstream.get_json("/")
            api.behave(respond(500))
            with pytest.raises(UpstreamError):
                await upstream.get_json("/")
    said = capfd.readouterr().err + str(caught.value)
    assert "no token for the upstream" in said
    for secret in ("token-of-alice", "minted-token", "secret:of"):
        assert secret not in said


async def test_without_settings_every_request_is_rejected_and_the_start_says_so(api: StandIn) -> None:
    server = create_server(config(upstream_base_url=api.url, upstream_auth="token_exchange", **ONE_ATTEMPT))
    assert "UPSTREAM_TOKEN_URL" in " ".join(server.registry.notices)
    async with server.running() as runtime:
        with calling("alice"), pytest.raises(UpstreamError, match="UPSTREAM_TOKEN_URL"):
            await runtime.upstream.get_json("/")
    assert api.requests == []


@pytest.mark.parametrize("missing", ["upstream_token_url", "upstream_client_id", "upstream_client_secret"])
def test_a_missing_setting_stops_the_start(endpoint: TokenEndpoint, missing: str) -> None:
    settings = endpoint.settings()
    del settings[missing]
    with pytest.raises(ConfigError, match=f"{missing.upper()}: must be set"):
        create_server(config(**settings))


async def test_a_successful_exchange_is_counted(api: StandIn, endpoint: TokenEndpoint) -> None:
    endpoint.answers = [respond(500), respond(400, b"{}")]
    server = create_server(config(upstream_base_url=api.url, **ONE_ATTEMPT, **endpoint.settings()))
    async with server.running() as runtime:
        with calling("alice"):
            for _ in range(4):
                try:
                    await runtime.upstream.get_json("/")
                except UpstreamError:
                    continue
    if samples := getattr(server.registry.meter, "samples", None):
        counts = {
            sample.labels["outcome"]: sample.value
            for sample in samples()
            if sample.name == "mcp_upstream_credentials_total"
        }
        assert counts == {"obtained": 1, "rejected": 1, "failed": 1}
