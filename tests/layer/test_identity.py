"""Identity: the caller of a request by its access token, else by its address."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver import Context
from starlette.requests import Request

from harness import Serve, config, text_of
from weather_station.production.caller import caller
from weather_station.production.config import ConfigError
from weather_station.production.inbound.identity import account_id, peer_address
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server


def request_from(peer: str | None, *forwarded: str) -> Request:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return Request({"type": "http", "client": peer and (peer, 1234), "headers": headers})


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller_id"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),  # not a trusted proxy
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.1",), "198.51.100.1"),  # what the client wrote itself
        ("10.0.0.1", ("6.6.6.6", "198.51.100.1"), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.1, 10.9.9.9",), "198.51.100.1"),
        ("10.0.0.1", ("10.3.3.3, 10.2.2.2",), "10.3.3.3"),
        ("10.0.0.1", ("198.51.100.1:51234",), "198.51.100.1"),
        ("10.0.0.1", ("[2a00:1450:4001:81b::200e]:443",), "2a00:1450:4001:81b::/64"),
        ("10.0.0.1", ("198.51.100.1, unknown",), "10.0.0.1"),
        ("10.0.0.1", ("198.51.100.1, _hidden, 10.2.2.2",), "10.2.2.2"),
        ("10.0.0.1", ("",), "10.0.0.1"),
        ("10.0.0.1", (",,",), "10.0.0.1"),
        ("::ffff:203.0.113.9", (), "203.0.113.9"),
        ("2a00:1450:4001:81b::1", (), "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81b:ffff::2", (), "2a00:1450:4001:81b::/64"),
        ("2a00:1450:4001:81c::1", (), "2a00:1450:4001:81c::/64"),
        ("fd00::1", (), "fd00::1"),
        ("fe80::1%eth0", (), "fe80::1"),
        ("::1", (), "::1"),
        (None, (), "unknown"),
        ("testclient", (), "unknown"),
    ],
)
def test_a_peer_is_identified_by_the_last_address_that_a_trusted_proxy_names(
    peer: str | None, forwarded: tuple[str, ...], caller_id: str
) -> None:
    assert peer_address(("10.0.0.0/8", "fd00:1::/32"))(request_from(peer, *forwarded)) == caller_id


def add_who(server: ProductionServer) -> None:
    async def who(ctx: Context[Any, Any]) -> str:
        return caller(ctx).id

    server.tool()(who)


def test_forwarded_addresses_count_on_a_running_server_only_from_a_trusted_proxy(serve: Serve) -> None:
    for trusted, caller_id in (("127.0.0.1", "198.51.100.7"), ("10.0.0.1", "127.0.0.1")):
        with serve(add_who, trusted_proxies=trusted) as server:
            assert text_of(server.call("who", x_forwarded_for="6.6.6.6, 198.51.100.7")) == caller_id


@pytest.mark.parametrize(
    "name", ["10.0.0.1", "::1", "2a00::/64", "stdio", "unknown", "account:stdio", "client:app", "https://a.example#x"]
)
def test_the_id_of_an_account_differs_from_every_id_of_a_peer(name: str) -> None:
    assert account_id(name) == f"account:{name}"
    assert account_id("alice") == "alice"


NAMES = st.lists(
    st.sampled_from(["account:", "client:", "token:", "https://a", "#", "stdio", "::1", "x"]), max_size=4
).map("".join)
ISSUERS = st.sampled_from(["", "https://a", "https://a/b", "http://x"])


@given(st.lists(st.tuples(NAMES, st.sampled_from(["", "client", "token"]), ISSUERS), unique=True, max_size=40))
def test_no_two_accounts_share_an_id(accounts: list[tuple[str, str, str]]) -> None:
    assert len({account_id(*account) for account in accounts}) == len(accounts)


@pytest.mark.parametrize("entry", ["10.0.0.300", "*"])
def test_an_invalid_trusted_proxy_stops_the_start_with_its_name(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(trusted_proxies=f"{entry},"))
    assert str(caught.value).startswith("TRUSTED_PROXIES: ")
    assert entry in str(caught.value)
