"""One token of the server for all requests to the upstream (RFC 6749, section 4.4)."""

from __future__ import annotations

from harness import ONE_ATTEMPT, opened
from stand_in import StandIn
from token_endpoint import token_endpoint


async def test_all_callers_share_the_servers_token(api: StandIn) -> None:
    with token_endpoint() as endpoint:
        settings = endpoint.settings(upstream_scope="orders", upstream_resource="https://orders.example.com")
        async with opened(api.url, **(ONE_ATTEMPT | settings)) as runtime:
            await runtime.upstream.get_json("/")
            await runtime.upstream.get_json("/again")
        resource = {"scope": "orders", "resource": "https://orders.example.com"}
        assert endpoint.forms == [{"grant_type": "client_credentials"} | resource]
    sent = [request.headers["authorization"] for request in api.requests]
    assert sent == ["Bearer minted-token-0123456789-1"] * 2
