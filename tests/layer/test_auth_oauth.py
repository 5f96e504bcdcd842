"""Sign-in: the whole flow against an identity provider on a real socket, and the known attacks on it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import Context

from harness import PROJECT, Running, config, running
from sign_in_provider import (
    CALLBACK,
    CLIENT_ID,
    CLIENT_SECRET,
    PUBLIC,
    VERIFIER,
    Browser,
    Provider,
    onward,
    provider,
    query_of,
)
from test_audit import VALIDATOR
from weather_station.production.caller import caller
from weather_station.production.config import ConfigError, variables
from weather_station.production.inbound import audit_sinks, auth_oauth_pages, auth_oauth_server, auth_oauth_store
from weather_station.production.inbound.auth_oauth_settings import OAuthSettings
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import startup
from weather_station.server import create_server

Start = Callable[..., Any]


async def who(ctx: Context[Any, Any]) -> dict[str, Any]:
    """Say who calls."""
    found = caller(ctx)
    return {
        "id": found.id,
        "client": found.client,
        "issuer": found.issuer,
        "scopes": sorted(found.scopes),
        "tier": found.tier,
        "tenant": found.tenant,
        "claims": dict(found.claims),
    }


def add_tools(server: ProductionServer) -> None:
    server.add_tool(who)


@pytest.fixture(scope="module")
def one_idp() -> Iterator[Provider]:
    with provider() as found:
        yield found


@pytest.fixture
def idp(one_idp: Provider) -> Provider:
    one_idp.reset()
    return one_idp


def configure(monkeypatch: pytest.MonkeyPatch, issuer: str, **settings: str) -> None:
    values = {"ISSUER": issuer, "CLIENT_ID": CLIENT_ID, "CLIENT_SECRET": CLIENT_SECRET} | settings
    for name, value in values.items():
        monkeypatch.setenv(f"OAUTH_{name}", value)


@pytest.fixture(scope="module")
def one_server(one_idp: Provider) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, one_idp.issuer)
        patch.setattr(auth_oauth_pages, "LIMITS", dict.fromkeys(auth_oauth_pages.LIMITS, (10**6, 600)))
        with running(config(public_url=PUBLIC), add_tools) as server:
            yield server


@pytest.fixture
def server(one_server: Running, idp: Provider) -> Running:
    return one_server


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    """`with start(idp, SUPPORTED_SCOPES="a") as server:` serves with a provider and these settings."""

    @contextmanager
    def serving(idp: Provider, _config: dict[str, Any] | None = None, **settings: str) -> Iterator[Running]:
        configure(monkeypatch, idp.issuer, **{"PROVIDER": idp.kind} | settings)
        with running(config(**{"public_url": PUBLIC} | (_config or {})), add_tools) as server:
            yield server

    return serving


def post(server: Running, path: str, **form: str) -> httpx2.Response:
    return server.client.post(f"{server.base}{path}", data=form)


def register(server: Running, **changed: Any) -> str:
    metadata = {"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none", "client_name": "A client"} | changed
    response = server.client.post(f"{server.base}/register", json=metadata)
    assert response.status_code == 201, response.text
    return str(response.json()["client_id"])


def redeem(server: Running, client_id: str, code: str, **changed: str) -> httpx2.Response:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": client_id,
        "redirect_uri": CALLBACK,
        "code_verifier": VERIFIER,
        "resource": f"{PUBLIC}/mcp",
    }
    return post(server, "/token", **form | changed)


def tokens_of(server: Running, client_id: str | None = None, **parameters: str) -> dict[str, Any]:
    """Sign in and return the token response."""
    client_id = client_id or register(server)
    response = redeem(server, client_id, Browser(server).sign_in(client_id, **parameters)["code"])
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found | {"client_id": client_id}


def refresh(server: Running, tokens: dict[str, Any], **changed: str) -> httpx2.Response:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": tokens["refresh_token"],
        "client_id": tokens["client_id"],
    }
    return post(server, "/token", **form | changed)


def status(server: Running, token: str) -> int:
    return server.post(server.request("who"), authorization=f"Bearer {token}").status_code


def caller_of(server: Running, token: str) -> dict[str, Any]:
    found: dict[str, Any] = server.call("who", authorization=f"Bearer {token}")["structuredContent"]
    return found


# --- The flow --------------------------------------------------------------------------------------------------


def test_a_user_signs_in_and_calls_a_tool(server: Running, idp: Provider) -> None:
    idp.claims |= {"email": "alice@example.com"}
    tokens = tokens_of(server)
    found = caller_of(server, tokens["access_token"])
    assert (found["id"], found["client"], found["issuer"]) == ("alice", tokens["client_id"], idp.issuer)
    assert found["claims"] == {"iss": idp.issuer, "sub": "alice", "email": "alice@example.com"}
    assert tokens["expires_in"] == 900
    assert server.metrics().value("mcp_oauth_sign_ins_total", outcome="completed") != 0


def test_the_answer_to_the_client_has_its_state_and_our_issuer(server: Running) -> None:
    answer = Browser(server).sign_in(register(server))
    assert (answer["state"], answer["iss"]) == ("the client's state", PUBLIC)


def test_metadata(server: Running) -> None:
    rejected = server.post(server.request("who"))
    assert rejected.status_code == 401
    url = "https://mcp.example.com/.well-known/oauth-protected-resource/weather/mcp"
    assert rejected.headers["www-authenticate"] == f'Bearer resource_metadata="{url}"'
    resource = server.get("/.well-known/oauth-protected-resource/weather/mcp").json()
    assert (resource["resource"], resource["authorization_servers"]) == (f"{PUBLIC}/mcp", [PUBLIC])
    for path in ("/.well-known/oauth-authorization-server/weather", "/.well-known/oauth-authorization-server"):
        found = server.get(path).json()
        assert found["issuer"] == PUBLIC
        assert found["authorization_endpoint"] == f"{PUBLIC}/authorize"
        assert found["code_challenge_methods_supported"] == ["S256"]
        assert found["client_id_metadata_document_supported"]
        assert found["authorization_response_iss_parameter_supported"]


def test_the_resource_is_not_forwarded_to_the_provider(server: Running, idp: Provider) -> None:
    Browser(server).sign_in(register(server))
    assert "resource" not in idp.authorizations[0]


def test_a_refresh_token_is_used_once(server: Running) -> None:
    first = tokens_of(server)
    second = refresh(server, first).json()
    assert status(server, second["access_token"]) == 200
    third = refresh(server, first | second).json()
    assert status(server, third["access_token"]) == 200


def test_the_reuse_of_a_refresh_token_ends_the_session(server: Running) -> None:
    first = tokens_of(server)
    second = refresh(server, first).json()
    assert refresh(server, first).json()["error"] == "invalid_grant"
    assert status(server, second["access_token"]) == status(server, first["access_token"]) == 401
    assert refresh(server, first | second).json()["error"] == "invalid_grant"
    assert server.metrics().value("mcp_oauth_tokens_total", outcome="reused") != 0


def test_of_simultaneous_uses_of_a_refresh_token_none_survives(server: Running) -> None:
    tokens = tokens_of(server)

    async def both() -> list[httpx2.Response]:
        form = {
            "grant_type": "refresh_token",
            "refresh_token": tokens["refresh_token"],
            "client_id": tokens["client_id"],
        }
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await asyncio.gather(*(client.post(f"{server.base}/token", data=form) for _ in range(4)))

    answers = asyncio.run(both())
    assert sum(answer.status_code == 200 for answer in answers) <= 1
    assert status(server, tokens["access_token"]) == 401


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
def test_a_revoked_token_ends_the_session(server: Running, which: str) -> None:
    tokens = tokens_of(server)
    assert status(server, tokens["access_token"]) == 200
    response = post(server, "/revoke", token=tokens[which], client_id=tokens["client_id"])
    assert response.status_code == 200
    assert status(server, tokens["access_token"]) == 401
    assert refresh(server, tokens).json()["error"] == "invalid_grant"


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
@pytest.mark.parametrize("right", [True, False])
def test_a_client_with_a_secret_must_present_it(server: Running, method: str, right: bool) -> None:
    metadata = {"redirect_uris": [CALLBACK], "token_endpoint_auth_method": method}
    client = server.client.post(f"{server.base}/register", json=metadata).json()
    client_id, secret = client["client_id"], client["client_secret"] if right else "guessed"
    form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK, "code_verifier": VERIFIER}
    form["code"] = Browser(server).sign_in(client_id)["code"]
    basic = httpx2.BasicAuth(client_id, secret) if method == "client_secret_basic" else None
    form |= {} if basic else {"client_id": client_id, "client_secret": secret}
    response = server.client.post(f"{server.base}/token", data=form, auth=basic or httpx2.USE_CLIENT_DEFAULT)
    assert response.status_code == (200 if right else 401)


def test_many_addresses_do_not_fill_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_oauth_store, "MAX_RECORDS_OF_A_KIND", 3)

    async def fill() -> None:
        store = auth_oauth_store.MemoryStore()
        for number in range(9):
            assert await store.count(f"count:{number}", 60) == 1
            if number < 3:
                await store.put(f"request:{number}", b"", 60)
        with pytest.raises(auth_oauth_store.StoreUnavailableError):
            await store.put("request:9", b"", 60)
        await store.put("request:0", b"again", 0)
        await store.put("request:9", b"", 60)

    asyncio.run(fill())


def test_a_client_cannot_revoke_the_tokens_of_another(server: Running) -> None:
    tokens = tokens_of(server)
    assert post(server, "/revoke", token=tokens["refresh_token"], client_id=register(server)).status_code == 200
    assert status(server, tokens["access_token"]) == 200


def test_the_provider_signs_a_user_out(server: Running, idp: Provider) -> None:
    tokens = tokens_of(server)
    idp.claims = {"sub": "bob"}
    other = tokens_of(server)
    idp.claims = {"sub": "alice"}
    assert post(server, "/oauth/logout", logout_token=idp.logout_token()).status_code == 200
    assert status(server, tokens["access_token"]) == 401
    assert status(server, other["access_token"]) == 200
    assert status(server, tokens_of(server)["access_token"]) == 200


@pytest.mark.parametrize("wrong", [{"events": {}}, {"nonce": "x"}, {"aud": "another"}, {"iss": "https://evil.example"}])
def test_a_logout_token_that_is_not_valid_signs_nobody_out(server: Running, idp: Provider, wrong: Any) -> None:
    tokens = tokens_of(server)
    assert post(server, "/oauth/logout", logout_token=idp.logout_token(**wrong)).status_code == 400
    assert status(server, tokens["access_token"]) == 200


def test_a_user_who_has_left_cannot_refresh(server: Running, idp: Provider) -> None:
    idp.expires_in = 60
    tokens = tokens_of(server)
    idp.refuses = "invalid_grant"
    assert refresh(server, tokens).json()["error"] == "invalid_grant"
    assert status(server, tokens["access_token"]) == 401


def test_an_outage_of_the_provider_does_not_end_sessions(server: Running, idp: Provider) -> None:
    idp.expires_in = 60
    tokens = tokens_of(server)
    idp.refuses = "temporarily_unavailable"
    assert refresh(server, tokens).status_code == 503
    idp.refuses = ""
    assert refresh(server, tokens).status_code == 200


def test_the_provider_may_rotate_its_keys(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weather_station.production.inbound.issuer_keys.MIN_FETCH_INTERVAL_SECONDS", 0)
    with provider() as idp, start(idp) as server:
        tokens_of(server)
        idp.rotate("second")
        assert status(server, tokens_of(server)["access_token"]) == 200


def test_each_step_of_a_sign_in_is_audited(
    start: Start, idp: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_SINK", "file")
    monkeypatch.setenv("AUDIT_FILE", str(tmp_path / "audit.jsonl"))
    with start(idp) as server:
        first = tokens_of(server)
        status(server, first["access_token"])
        second = refresh(server, first).json()
        refresh(server, first)
        status(server, second["access_token"])
        third = tokens_of(server, first["client_id"])
        post(server, "/revoke", token=third["access_token"], client_id=first["client_id"])
        post(server, "/oauth/logout", logout_token=idp.logout_token())
        text = (tmp_path / "audit.jsonl").read_text("utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    for record in records:
        VALIDATOR.validate(record)
    steps = (("sign_in", "consented"), ("sign_in", "completed"), ("token", "issued"))
    signed_in = [(*step, "allowed") for step in steps]
    assert [(record["event"], record["outcome"], record["decision"]) for record in records] == [
        ("registration", "registered", "allowed"),
        *signed_in,
        ("request", "success", "allowed"),
        ("token", "refreshed", "allowed"),
        ("token", "reused", "denied"),
        ("sign_in", "token", "denied"),
        ("http", "rejected", "denied"),
        *signed_in,
        ("token", "revoked", "allowed"),
        ("token", "signed_out", "allowed"),
    ]
    assert {record["subject"] for record in records if record["event"] == "token"} == {"alice"}
    assert {record["client"] for record in records[1:4]} == {first["client_id"]}
    assert {record["address"] for record in records} == {"127.0.0.1"}
    for tokens in (first, second, third):
        assert tokens["access_token"] not in text
        assert tokens["refresh_token"] not in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_nobody_signs_in_without_a_record_where_that_is_set(
    start: Start, idp: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    for name, value in {"SINK": "file", "FILE": str(path), "ON_FAILURE": "deny"}.items():
        monkeypatch.setenv(f"AUDIT_{name}", value)
    monkeypatch.setattr(audit_sinks, "CHECK_SECONDS", 0.0)
    with start(idp) as server:
        register(server)  # the first record that is lost
        metadata = {"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"}
        assert server.client.post(f"{server.base}/register", json=metadata).status_code == 503
        assert post(server, "/token").status_code == 503
        path.unlink()
        assert status(server, tokens_of(server)["access_token"]) == 200


def test_scopes_tier_and_tenant_come_from_claims(start: Start, idp: Provider) -> None:
    idp.claims |= {"groups": ["staff", "admins"], "org": "acme", "plan": "gold"}
    settings = {
        "SUPPORTED_SCOPES": "orders:read,orders:write,billing",
        "SCOPE_CLAIMS": "groups",
        "SCOPE_MAP": "staff=orders:read,admins=orders:write",
        "TIER_CLAIM": "plan",
        "TIER_MAP": "gold=internal",
        "TENANT_CLAIM": "org",
    }
    with start(idp, **settings) as server:
        tokens = tokens_of(server, scope="orders:read billing unknown")
        assert tokens["scope"] == "orders:read"
        found = caller_of(server, tokens["access_token"])
        assert (found["scopes"], found["tier"], found["tenant"]) == (["orders:read"], "internal", "acme")
        assert tokens_of(server)["scope"] == "orders:read orders:write"


# --- Who is admitted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "claims", "admitted"),
    [
        ({"ALLOWED_DOMAINS": "example.com"}, {"email": "a@EXAMPLE.com", "email_verified": True}, True),
        ({"ALLOWED_DOMAINS": "example.com"}, {"email": "a@example.com", "email_verified": False}, False),
        ({"ALLOWED_DOMAINS": "example.com"}, {"email": "a@example.com"}, False),
        ({"ALLOWED_DOMAINS": "example.com"}, {"email": "a@evil-example.com", "email_verified": True}, False),
        ({"ALLOWED_GROUPS": "staff"}, {"groups": ["staff", "other"]}, True),
        ({"ALLOWED_GROUPS": "staff"}, {"groups": ["other"]}, False),
        ({"ALLOWED_GROUPS": "staff"}, {}, False),
        (
            {"ALLOWED_GROUPS": "staff", "GROUPS_CLAIM": "realm_access.roles"},
            {"realm_access": {"roles": ["staff"]}},
            True,
        ),
        ({"ALLOWED_USERS": "alice"}, {}, True),
        ({"ALLOWED_USERS": "A@example.com"}, {"email": "a@example.com", "email_verified": "true"}, True),
        ({"ALLOWED_USERS": "bob"}, {}, False),
        ({"ALLOWED_TENANTS": "t1"}, {"tid": "t1"}, True),
        ({"ALLOWED_TENANTS": "t1"}, {"tid": "t2"}, False),
        ({"ALLOWED_GROUPS": "staff", "ALLOWED_DOMAINS": "example.com"}, {"groups": ["staff"]}, False),
    ],
)
def test_who_is_admitted(
    start: Start, idp: Provider, settings: dict[str, str], claims: dict[str, Any], admitted: bool
) -> None:
    idp.claims |= claims
    with start(idp, **settings) as server:
        answer = Browser(server).sign_in(register(server))
        assert ("code" in answer) is admitted
        assert answer.get("error") == (None if admitted else "access_denied")


# --- Attacks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/callback",
        "http://127.0.0.1:7777/other",
        "http://127.0.0.1:7777/callback/../evil",
        "http://127.0.0.1:7777/callback?x=1",
        "http://127.0.0.1.evil.example:7777/callback",
        "http://127.0.0.1:7777@evil.example/callback",
        "http://127.0.0.1:7777\\@evil.example/callback",
        "https://127.0.0.1:7777/callback",
        "http://localhost:7777/callback",
        "javascript:alert(1)",
        "",
    ],
)
def test_nobody_is_sent_to_an_address_that_the_client_does_not_have(server: Running, uri: str) -> None:
    response = Browser(server).authorize(register(server), redirect_uri=uri)
    assert response.status_code == 400
    assert "location" not in response.headers


def test_the_port_of_a_loopback_redirect_uri_is_free(server: Running) -> None:
    client_id = register(server)
    uri = "http://127.0.0.1:50123/callback"
    answer = Browser(server).sign_in(client_id, redirect_uri=uri)
    assert redeem(server, client_id, answer["code"], redirect_uri=uri).status_code == 200


@pytest.mark.parametrize(
    "uri",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "http://example.com/callback",
        "https://example.com/callback#fragment",
        "https://user@example.com/callback",
        "https://*.example.com/callback",
    ],
)
def test_a_client_cannot_register_a_dangerous_redirect_uri(server: Running, uri: str) -> None:
    metadata = {"redirect_uris": [uri], "token_endpoint_auth_method": "none"}
    response = server.client.post(f"{server.base}/register", json=metadata)
    assert (response.status_code, response.json()["error"][:8]) == (400, "invalid_")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"resource": "https://other.example.com/mcp"}, "invalid_target"),
        ({"state": "x" * 5000}, "invalid_request"),
    ],
)
def test_an_invalid_request_is_an_error_for_the_client(server: Running, changed: Any, error: str) -> None:
    response = Browser(server).authorize(register(server), **changed)
    assert response.status_code == 302
    assert response.headers["location"].startswith(CALLBACK)
    answer = query_of(response.headers["location"])
    assert (answer["error"], answer["iss"]) == (error, PUBLIC)


def test_a_code_is_good_for_its_client_verifier_redirect_uri_and_resource(server: Running) -> None:
    client_id = register(server)
    code = Browser(server).sign_in(client_id)["code"]
    assert redeem(server, register(server), code).json()["error"] == "invalid_grant"
    assert redeem(server, client_id, code, code_verifier="w" * 64).json()["error"] == "invalid_grant"
    assert redeem(server, client_id, code, redirect_uri=f"{CALLBACK}2").json()["error"] == "invalid_request"
    assert redeem(server, client_id, code, resource="https://other.example.com/mcp").json()["error"] == "invalid_target"
    assert redeem(server, client_id, code).status_code == 200


def test_a_replayed_code_ends_the_session(server: Running) -> None:
    client_id = register(server)
    code = Browser(server).sign_in(client_id)["code"]
    token = redeem(server, client_id, code).json()["access_token"]
    assert status(server, token) == 200
    assert redeem(server, client_id, code).json()["error"] == "invalid_grant"
    assert status(server, token) == 401


def test_a_code_of_another_browsers_sign_in_is_not_accepted(server: Running, idp: Provider) -> None:
    """Code injection and login CSRF: the browser that comes back must be the one that has consented."""
    victim, attacker = Browser(server), Browser(server)
    client_id = register(server)
    back = attacker.get(attacker.to_provider(client_id)).headers["location"]
    assert victim.get(back).status_code == 400
    assert attacker.get(back).status_code == 400  # used up


def test_an_answer_of_another_provider_is_not_accepted(start: Start, idp: Provider) -> None:
    """Mix-up (RFC 9207)."""
    with start(idp) as server:
        idp.answers = {"iss": "https://evil.example"}
        assert Browser(server).sign_in(register(server))["error"] == "access_denied"
    idp.metadata = {"authorization_response_iss_parameter_supported": True}
    idp.answers = {}
    with start(idp) as server:
        assert Browser(server).sign_in(register(server))["error"] == "access_denied"
        idp.answers = {"iss": idp.issuer}
        assert "code" in Browser(server).sign_in(register(server))


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"},
        {"aud": "another client"},
        {"nonce": "another"},
        {"nonce": None},
        {"exp": 1},
        {"azp": "another client"},
        {"sub": None},
        {"sub": ["alice"]},
    ],
)
def test_an_id_token_that_is_not_valid_signs_nobody_in(server: Running, idp: Provider, wrong: dict[str, Any]) -> None:
    idp.id_token = wrong
    answer = Browser(server).sign_in(register(server))
    assert answer["error"] == "access_denied"
    assert "code" not in answer


def test_consent_cannot_be_forged(server: Running) -> None:
    client_id = register(server)
    browser = Browser(server)
    page = browser.consent(client_id)
    assert browser.decide(page, proof="0" * 64).status_code == 400
    forged = browser.request("POST", f"{PUBLIC}/oauth/consent", data={"decision": "allow"})
    assert forged.status_code == 400
    other = Browser(server)  # a link to the attacker's own request, opened by a victim
    assert other.get(browser.authorize(client_id).headers["location"]).status_code == 400
    assert onward(browser.decide(page))
    assert browser.decide(page).status_code == 400  # used up


def test_a_form_of_another_site_is_rejected(server: Running) -> None:
    browser = Browser(server)
    page = browser.consent(register(server))
    form = {"request": page.text.split('name="request" value="')[1].split('"')[0], "decision": "allow"}
    form["proof"] = page.text.split('name="proof" value="')[1].split('"')[0]
    headers = {"origin": "https://evil.example"}
    assert browser.request("POST", f"{PUBLIC}/oauth/consent", data=form, headers=headers).status_code == 400


def test_a_user_may_decline(server: Running, idp: Provider) -> None:
    browser = Browser(server)
    target = onward(browser.decide(browser.consent(register(server)), "deny"))
    assert target.startswith(CALLBACK)
    assert query_of(target)["error"] == "access_denied"
    assert idp.authorizations == []


def test_the_consent_page_names_client_and_target_and_cannot_be_framed(server: Running) -> None:
    browser = Browser(server)
    name = "<script>alert(1)</script>"
    client_id = register(server, client_name=name, redirect_uris=["https://app.example.com/cb?<b>"])
    page = browser.consent(client_id, redirect_uri="https://app.example.com/cb?<b>")
    assert name not in page.text
    assert "&lt;script&gt;" in page.text
    assert "app.example.com" in page.text
    assert "not verified" in page.text
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert page.headers["x-frame-options"] == "DENY"
    cookie = browser.set_cookies[0].lower()
    assert cookie.startswith("__host-")
    assert all(part in cookie for part in ("secure", "httponly", "samesite=lax", "path=/"))
    assert "domain" not in cookie


def test_a_flood_of_registrations_is_stopped(start: Start, idp: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_oauth_pages, "LIMITS", {**auth_oauth_pages.LIMITS} | {"registrations": (3, 3600)})
    metadata = {"redirect_uris": [CALLBACK], "token_endpoint_auth_method": "none"}
    with start(idp) as server:
        answers = [server.client.post(f"{server.base}/register", json=metadata).status_code for _ in range(5)]
        assert answers == [201, 201, 201, 429, 429]
        assert server.metrics().value("mcp_oauth_registrations_total", outcome="limited") in (2, None)
        assert server.metrics().value("mcp_http_rejections_total", reason="limited") in (2, None)


def test_a_flood_of_sign_ins_is_stopped(start: Start, idp: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_oauth_pages, "LIMITS", {**auth_oauth_pages.LIMITS} | {"requests": (3, 600)})
    with start(idp) as server:
        client_id = register(server)
        answers = [Browser(server).authorize(client_id).status_code for _ in range(5)]
        assert answers == [302, 302, 302, 429, 429]


def test_an_address_that_keeps_failing_is_stopped(start: Start, idp: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_oauth_pages, "LIMITS", {**auth_oauth_pages.LIMITS} | {"failures": (3, 600)})
    with start(idp) as server:
        client_id = register(server)
        answers = [redeem(server, client_id, "guessed").status_code for _ in range(6)]
        assert answers == [400, 400, 400, 400, 429, 429]


def test_registration_can_be_switched_off(start: Start, idp: Provider) -> None:
    with start(idp, REGISTRATION="false", CLIENT_METADATA="false") as server:
        assert server.client.post(f"{server.base}/register", json={}).status_code == 404
        found = server.get("/.well-known/oauth-authorization-server").json()
        assert "registration_endpoint" not in found
        assert not found["client_id_metadata_document_supported"]


def test_a_registration_expires_unless_it_is_used(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_oauth_server, "UNUSED_REGISTRATION_SECONDS", 0.001)
    unused = register(server)
    deadline = time.monotonic() + 30
    while Browser(server).authorize(unused).status_code != 400:
        assert time.monotonic() < deadline


def test_a_token_of_another_server_is_rejected(start: Start, idp: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = "k" * 40
    with start(idp, KEYS=keys) as server:
        token = tokens_of(server)["access_token"]
        assert status(server, token) == 200
    with start(idp, KEYS=keys, _config={"public_url": "https://other.example.com"}) as other:
        assert status(other, token) == 401


@pytest.mark.parametrize("token", ["x", "a.b.c", "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.e30."])
def test_a_token_that_is_none_is_rejected(server: Running, token: str) -> None:
    assert status(server, token) == 401


def test_a_refresh_token_is_no_access_token(server: Running) -> None:
    tokens = tokens_of(server)
    assert status(server, tokens["refresh_token"]) == 401
    assert refresh(server, tokens | {"refresh_token": tokens["access_token"]}).json()["error"] == "invalid_grant"


# --- Settings and --check --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "given", "problem"),
    [
        ({"CLIENT_SECRET": ""}, {}, "OAUTH_CLIENT_SECRET: must be set"),
        ({"ISSUER": ""}, {}, "OAUTH_ISSUER: must be set"),
        ({}, {"public_url": None}, "PUBLIC_URL: must be set"),
        ({"ISSUER": "http://login.example.com"}, {}, "OAUTH_ISSUER: must be an https:// URL"),
        ({}, {"public_url": "http://mcp.example.com"}, "PUBLIC_URL: must be an https:// URL"),
        ({"KEYS": "short"}, {}, "OAUTH_KEYS: needs different random keys of at least 32 bytes"),
        ({"PROVIDER": "google", "ISSUER": ""}, {}, "OAUTH_ALLOWED_DOMAINS: everyone can have an account"),
        ({"PROVIDER": "github", "ISSUER": ""}, {}, "OAUTH_ALLOWED_DOMAINS: everyone can have an account"),
        ({"PROVIDER": "entra", "ISSUER": "https://login.microsoftonline.com/common/v2.0"}, {}, "OAUTH_ALLOWED_DOMAINS"),
        ({}, {"redis_url": "redis://127.0.0.1:1"}, "OAUTH_KEYS: must be set with REDIS_URL"),
        ({"KEYS": "k" * 32}, {"redis_url": "mysql://host"}, "REDIS_URL: not the URL of a Redis server"),
        ({"SCOPE_MAP": "nothing"}, {}, "OAUTH_SCOPE_MAP: must have entries value=result"),
    ],
)
def test_settings_that_cannot_work_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], given: dict[str, Any], problem: str
) -> None:
    configure(monkeypatch, "https://login.example.com", **settings)
    with pytest.raises(ConfigError) as raised:
        create_server(config(**{"public_url": PUBLIC} | given))
    assert problem in str(raised.value)
    assert CLIENT_SECRET not in str(raised.value)


def test_every_setting_is_in_the_example_of_the_environment() -> None:
    example = (PROJECT / ".env.example").read_text("utf-8")
    assert [name for name in variables(OAuthSettings) if f"{name}=" not in example] == []


def test_a_server_in_memory_does_not_start_in_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, "https://login.example.com")
    server = create_server(config(public_url=PUBLIC))
    assert any("a restart signs everyone out" in notice for notice in server.registry.notices)
    startup.require_http_allowed(server.registry)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigError, match="REDIS_URL"):
        startup.require_http_allowed(server.registry)


@pytest.mark.parametrize(
    ("settings", "metadata", "problem"),
    [
        ({}, {}, None),
        ({"CLIENT_ID": "another"}, {}, "the provider answers 400"),
        ({}, {"issuer": "https://evil.example"}, "its metadata says"),
        ({}, {"jwks_uri": "ftp://x"}, "no usable jwks_uri"),
        ({}, {"token_endpoint": None}, "no usable token_endpoint"),
    ],
)
async def test_check(
    monkeypatch: pytest.MonkeyPatch, idp: Provider, settings: dict[str, str], metadata: Any, problem: str | None
) -> None:
    configure(monkeypatch, idp.issuer, **settings)
    idp.metadata = metadata
    server = create_server(config(public_url=PUBLIC))
    async with server.running():
        result = (await startup.run_probes(server.registry))["sign-in"]
    assert (result.problem is None) is (problem is None)
    assert (problem or "") in (result.problem or "")
