"""Identity providers that answer as their documentation says: Entra ID, Google, GitHub, Okta, Auth0 and Keycloak."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from harness import Running
from sign_in_provider import Browser, Provider, provider
from test_auth_oauth import Start, caller_of, refresh, register, start, status, tokens_of

__all__ = ["start"]

TENANT, HOME = "11111111-1111-1111-1111-111111111111", "9188040d-6c67-4c5b-b112-36a304b66dad"


@contextmanager
def signing_in(start: Start, idp: dict[str, Any], **settings: str) -> Iterator[tuple[Provider, Running]]:
    """Serve with a provider of these peculiarities."""
    with provider(**idp) as found, start(found, **settings) as server:
        yield found, server


def entra(version: str, tenant: str = TENANT, **claims: Any) -> dict[str, Any]:
    base = {"tid": TENANT, "oid": "oid", "preferred_username": "a@example.com", "email": "a@example.com"}
    return {"kind": "entra", "path": f"/{tenant}{version}", "claims": {"sub": "pairwise", **base, **claims}}


def test_entra_v2(start: Start) -> None:
    """https://learn.microsoft.com/entra/identity-platform/v2-protocols-oidc"""
    with signing_in(start, entra("/v2.0"), TENANT_CLAIM="tid") as (idp, server):
        found = caller_of(server, tokens_of(server)["access_token"])
        assert (found["id"], found["tenant"]) == ("pairwise", TENANT)
        assert idp.authorizations[0]["scope"] == "openid profile email offline_access"


def test_entra_v1_names_another_issuer_than_its_metadata_s_address(start: Start) -> None:
    issuer = f"https://sts.windows.net/{TENANT}/"
    quirks = entra("") | {"metadata": {"issuer": issuer}, "id_token": {"iss": issuer, "ver": "1.0"}}
    with signing_in(start, quirks) as (_, server):
        assert status(server, tokens_of(server)["access_token"]) == 200


@pytest.mark.parametrize(
    ("tenant", "issuer", "admitted"), [(TENANT, TENANT, True), (HOME, HOME, False), (TENANT, HOME, False)]
)
def test_entra_s_shared_tenants_have_a_placeholder_as_issuer(
    start: Start, tenant: str, issuer: str, admitted: bool
) -> None:
    with provider(**entra("/v2.0", "organizations", tid=tenant)) as idp:
        idp.metadata = {"issuer": f"{idp.base}/{{tenantid}}/v2.0"}
        idp.id_token = {"iss": f"{idp.base}/{issuer}/v2.0"}
        with start(idp, ALLOWED_TENANTS=TENANT) as server:
            assert ("code" in Browser(server).sign_in(register(server))) is admitted


@pytest.mark.parametrize(
    ("verified", "admitted"), [({}, False), ({"email_verified": True}, False), ({"xms_edov": True}, True)]
)
def test_an_email_of_entra_counts_with_the_claim_for_it_only(start: Start, verified: Any, admitted: bool) -> None:
    with signing_in(start, entra("/v2.0", **verified), ALLOWED_DOMAINS="example.com") as (_, server):
        assert ("code" in Browser(server).sign_in(register(server))) is admitted


def test_entra_leaves_out_groups_when_they_are_many(start: Start) -> None:
    overage: dict[str, Any] = {
        "_claim_names": {"groups": "src1"},
        "_claim_sources": {"src1": {"endpoint": "https://graph.example"}},
    }
    with signing_in(start, entra("/v2.0", **overage), ALLOWED_GROUPS="staff") as (_, server):
        answer = Browser(server).sign_in(register(server))
        assert "too many" in answer["error_description"]


@pytest.mark.parametrize(
    ("claims", "admitted"),
    [
        ({"hd": "example.com", "email": "a@example.com", "email_verified": True}, True),
        ({"email": "a@example.com", "email_verified": True}, False),  # a consumer's account with an address there
        ({"hd": "evil.example", "email": "a@example.com", "email_verified": True}, False),
    ],
)
def test_google_s_domain_is_hd(start: Start, claims: dict[str, Any], admitted: bool) -> None:
    """https://developers.google.com/identity/openid-connect/openid-connect#hd-param"""
    quirks = {"kind": "google", "claims": {"sub": "1", **claims}, "id_token": {"iss": "accounts.google.com"}}
    with signing_in(start, quirks, ALLOWED_DOMAINS="example.com") as (idp, server):
        assert ("code" in Browser(server).sign_in(register(server))) is admitted
        asked = idp.authorizations[0]
        assert (asked["access_type"], asked["prompt"]) == ("offline", "consent")
        assert "offline_access" not in asked["scope"]


def github(**more: Any) -> dict[str, Any]:
    emails = [
        {"email": "old@other.example", "primary": False, "verified": True},
        {"email": "a@example.com", "primary": True, "verified": True},
    ]
    return {"kind": "github", "claims": {"id": 4711, "login": "alice", "emails": emails}, **more}


def test_github_has_neither_discovery_nor_id_tokens(start: Start) -> None:
    """https://docs.github.com/apps/oauth-apps/building-oauth-apps/authorizing-oauth-apps"""
    with signing_in(start, github(), ALLOWED_DOMAINS="example.com") as (idp, server):
        tokens = tokens_of(server)
        found = caller_of(server, tokens["access_token"])
        assert (found["id"], found["claims"]["preferred_username"]) == ("4711", "alice")
        assert "nonce" not in idp.authorizations[0]
        assert refresh(server, tokens).status_code == 200


def test_github_s_errors_have_status_200(start: Start) -> None:
    with signing_in(start, github(refuses="bad_verification_code")) as (_, server):
        assert Browser(server).sign_in(register(server))["error"] == "access_denied"


def test_a_github_token_that_was_revoked_ends_the_session(start: Start) -> None:
    with signing_in(start, github()) as (idp, server):
        tokens = tokens_of(server)
        idp.refuses = "bad_credentials"
        assert refresh(server, tokens).json()["error"] == "invalid_grant"
        assert status(server, tokens["access_token"]) == 401


@pytest.mark.parametrize(("organisations", "admitted"), [(["acme"], True), (["other"], False), ([], False)])
def test_groups_of_github_are_organisations(start: Start, organisations: list[str], admitted: bool) -> None:
    with signing_in(start, github(organisations=organisations), ALLOWED_GROUPS="acme") as (idp, server):
        assert ("code" in Browser(server).sign_in(register(server))) is admitted
        assert idp.authorizations[0]["scope"] == "read:user user:email read:org"


def test_okta_has_groups_at_its_userinfo_endpoint_only(start: Start) -> None:
    """https://developer.okta.com/docs/api/openapi/okta-oauth/guides/overview/#id-token (a "thin" ID token)"""
    quirks = {"kind": "okta", "path": "/oauth2/default", "claims": {"sub": "00u1"}}
    with provider(**quirks) as idp:
        idp.metadata = {"userinfo_endpoint": f"{idp.base}/userinfo"}
        idp.userinfo = {"sub": "00u1", "groups": ["staff"]}
        with start(idp, ALLOWED_GROUPS="staff") as server:
            assert caller_of(server, tokens_of(server)["access_token"])["claims"]["groups"] == ["staff"]
            idp.userinfo = {"sub": "somebody else", "groups": ["staff"]}
            assert Browser(server).sign_in(register(server))["error"] == "access_denied"


def test_auth0_s_issuer_ends_with_a_slash_and_its_claims_have_urls_as_names(start: Start) -> None:
    roles = "https://example.com/roles"
    quirks = {"kind": "auth0", "claims": {"sub": "auth0|1", roles: ["orders"]}}
    with provider(**quirks) as idp:
        idp.base += "/"
        idp.metadata = {name: f"{idp.base[:-1]}/{path}" for name, path in ENDPOINTS.items()}
        with start(idp, SCOPE_CLAIMS=roles, SUPPORTED_SCOPES="orders") as server:
            assert caller_of(server, tokens_of(server)["access_token"])["scopes"] == ["orders"]


ENDPOINTS = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}


def test_keycloak_has_roles_in_nested_claims_and_iss_in_its_answers(start: Start) -> None:
    quirks = {
        "kind": "keycloak",
        "path": "/realms/acme",
        "claims": {"sub": "f:1", "realm_access": {"roles": ["orders"]}, "typ": "ID"},
        "metadata": {"authorization_response_iss_parameter_supported": True},
    }
    with signing_in(start, quirks, SCOPE_CLAIMS="realm_access.roles", SUPPORTED_SCOPES="orders") as (idp, server):
        idp.answers = {"iss": idp.issuer}
        assert caller_of(server, tokens_of(server)["access_token"])["scopes"] == ["orders"]


def test_a_provider_without_offline_access_is_not_asked_for_it(start: Start) -> None:
    quirks = {"metadata": {"scopes_supported": ["openid", "email"]}, "has_refresh_tokens": False}
    with signing_in(start, quirks) as (idp, server):
        tokens = tokens_of(server)
        assert idp.authorizations[0]["scope"] == "openid profile email"
        assert refresh(server, tokens).status_code == 200
        assert idp.grants == ["authorization_code"]
