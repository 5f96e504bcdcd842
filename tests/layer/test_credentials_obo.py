"""Each caller's token for the upstream from Microsoft Entra ID.

The stand-in answers as documented in "Microsoft identity platform and OAuth 2.0 On-Behalf-Of flow". No tenant is asked.
"""

from __future__ import annotations

import json

import pytest
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.provider import AccessToken

from harness import ONE_ATTEMPT, config, opened
from stand_in import StandIn, respond
from token_endpoint import token_endpoint
from weather_station.production.caller import Caller, User
from weather_station.production.config import ConfigError
from weather_station.production.upstream.errors import UpstreamError
from weather_station.server import create_server

SCOPE = "api://orders/.default"
INTERACTION_REQUIRED = {
    "error": "interaction_required",
    "error_description": "AADSTS50079: Due to a configuration change made by your administrator, ...",
    "error_codes": [50079],
    "timestamp": "2017-05-01 22:43:20Z",
    "trace_id": "b72a68c3-0926-4b8e-bc35-3150069c2800",
    "correlation_id": "73d656cf-54b1-4eb2-b429-26d8165a52d7",
    "claims": '{"access_token":{"polids":{"essential":true,"values":["9ab03e19-ed42-4168-b6b7-7001fb3e933a"]}}}',
}


async def test_a_callers_token_is_exchanged_with_the_documented_parameters(api: StandIn) -> None:
    alice, bob = (
        User(AccessToken(token=f"token-of-{name}", client_id=name, scopes=[]), Caller(name))
        for name in ("alice", "bob")
    )
    with token_endpoint() as endpoint:
        settings = endpoint.settings(upstream_scope=SCOPE, upstream_client_auth="post")
        async with opened(api.url, **(ONE_ATTEMPT | settings)) as runtime:
            reset = auth_context_var.set(alice)
            try:
                await runtime.upstream.get_json("/")
                endpoint.answers = [respond(400, json.dumps(INTERACTION_REQUIRED).encode())]
                auth_context_var.set(bob)
                with pytest.raises(UpstreamError, match="has to sign in again") as caught:
                    await runtime.upstream.get_json("/")
            finally:
                auth_context_var.reset(reset)
        assert endpoint.forms[0] == {
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "client_id": "mcp-server",
            "client_secret": "secret:of the+client",
            "assertion": "token-of-alice",
            "scope": SCOPE,
            "requested_token_use": "on_behalf_of",
        }
        assert "AADSTS" not in str(caught.value)
    assert [request.headers["authorization"] for request in api.requests] == ["Bearer minted-token-0123456789-1"]


def test_a_missing_scope_stops_the_start() -> None:
    with token_endpoint() as endpoint, pytest.raises(ConfigError, match="UPSTREAM_SCOPE: must be set"):
        create_server(config(**endpoint.settings()))
