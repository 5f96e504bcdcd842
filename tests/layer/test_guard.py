"""Host and Origin guard: which requests may reach the MCP endpoint, and what web pages may read."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc
from ipaddress import IPv4Address
from typing import Any

import pytest

from harness import HEADERS, Serve, config
from raw_http import error_of, exchange
from weather_station.production.config import ConfigError, about
from weather_station.production.inbound import guard
from weather_station.production.inbound.guard import host_rule, origin_rule, resolves_to_loopback
from weather_station.production.registry import Registry
from weather_station.server import create_server

ELSEWHERE = "192.0.2.1"  # an address that others can reach; nothing listens there, the harness binds loopback
EVERYWHERE = str(IPv4Address(0))


# --- Host -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "host", "passes"),
    [
        ("", "127.0.0.1:8000", True),
        ("", "127.0.0.2", True),
        ("", "LocalHost:1", True),
        ("", "[::1]:8000", True),
        ("", "[0:0:0:0:0:0:0:1]", True),
        ("", "[::ffff:127.0.0.1]", True),
        ("", "evil.com", False),
        ("", "localhost.evil.com", False),
        ("", "127.0.0.1.evil.com", False),
        ("", "192.168.0.1", False),
        ("api.x", "api.x", True),
        ("api.x", "API.X:8443", True),
        ("api.x", "127.0.0.1", False),
        ("api.x", "api.x.evil.com", False),
        ("api.x", "api.xy", False),
        ("api.x:*", "api.x:8000", True),
        ("api.x:*", "api.x", True),
        ("api.x:*", "api.x:8000.evil.com", False),
        ("api.x:*", "api.x:*", False),
        ("api.x:8000", "api.x:8000", True),
        ("api.x:8000", "api.x:80", False),
        ("api.x:8000", "api.x", False),
        ("api.x:443", "api.x", True),
        ("a.x, b.x:1", "b.x:1", True),
        ("a.x, b.x:1", "b.x:2", False),
        ("[2001:db8::1]:8000", "[2001:DB8:0::1]:8000", True),
        ("[2001:db8::1]", "[2001:db8::2]", False),
        ("*", "anything at all", True),
        ("api.x", "", False),
        ("api.x", "api.x:", False),
        ("api.x", "api.x:99999", False),
        ("api.x", "user@api.x", False),
        ("api.x", "api.x/", False),
        ("api.x", "api.x ", False),
        ("api.x", "evil.com, api.x", False),
        ("api.x", "[api.x]", False),
        ("api.x", "api.x.", True),
        ("api.x", "API.X.:8443", True),
        ("api.x.", "api.x", True),
        ("", "localhost.:8000", True),
        ("api.x", "api.x..", False),
        ("api.x", ".", False),
        ("[2001:db8::1]", "[2001:db8::1].", False),
        ("api.x", "api.x\n", False),
        ("api.x", "\xe1pi.x", False),
    ],
)
def test_a_host_is_compared_as_a_whole(allowed: str, host: str, passes: bool) -> None:
    assert host_rule(config(allowed_hosts=allowed))(host.encode("latin-1")) is passes


def test_a_server_on_another_address_answers_for_every_host_without_allowed_hosts() -> None:
    assert host_rule(config(host=ELSEWHERE))(b"whatever.example")
    assert not host_rule(config(host=ELSEWHERE, allowed_hosts="api.x"))(b"whatever.example")


def test_a_wrong_host_gets_421_with_the_name_of_the_setting(serve: Serve) -> None:
    with serve() as server:
        response = server.post(server.request("health_check"), host="evil.com")
        assert response.status_code == 421
        assert "evil.com" in error_of(response)
        assert "ALLOWED_HOSTS" in error_of(response)
        assert server.post(server.request("health_check")).status_code == 200


@pytest.mark.parametrize("hosts", ["", "Host: localhost\nHost: evil.com\n", "Host: evil.com\nHost: localhost\n"])
def test_a_missing_or_repeated_host_gets_421(serve: Serve, hosts: str) -> None:
    with serve() as server:
        assert exchange(server, f"GET /mcp HTTP/1.1\n{hosts}Accept: */*").startswith(b"HTTP/1.1 421 ")


def test_the_cache_of_verdicts_does_not_keep_oversized_header_values() -> None:
    passed: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    async def send(message: Any) -> None: ...

    async def receive() -> Any: ...

    async def send_requests(first: int) -> None:
        for number in range(first, first + 50):
            host = b"%d.example:8000" % number + b"x" * 200_000
            for headers in ([(b"host", host)], [(b"host", b"127.0.0.1"), (b"origin", b"http://" + host)]):
                await edge({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)

    edge = guard.Guard(Registry(config(), about()), app)
    asyncio.run(send_requests(0))
    tracemalloc.start()
    asyncio.run(send_requests(50))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000
    assert passed == []


# --- Origin ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "bound", "origin", "host", "passes"),
    [
        ("", "127.0.0.1", "http://localhost:6274", "127.0.0.1:8000", True),
        ("", "127.0.0.1", "http://[::1]:6274", "127.0.0.1:8000", True),
        ("", "127.0.0.1", "https://evil.com", "127.0.0.1:8000", False),
        ("", "127.0.0.1", "http://localhost.evil.com", "127.0.0.1:8000", False),
        ("", "127.0.0.1", "null", "127.0.0.1:8000", False),
        ("", "127.0.0.1", "chrome-extension://localhost", "127.0.0.1:8000", False),
        ("", ELSEWHERE, "http://localhost:6274", "api.x", False),
        ("", ELSEWHERE, "https://api.x", "api.x", True),
        ("", ELSEWHERE, "https://api.x", "API.x:443", True),
        ("", ELSEWHERE, "https://api.x", "api.x:8000", False),
        ("", ELSEWHERE, "http://api.x:8000", "api.x:8000", True),
        ("", ELSEWHERE, "https://app.x", "api.x", False),
        ("https://app.x", ELSEWHERE, "https://app.x", "api.x", True),
        ("https://app.x", ELSEWHERE, "HTTPS://APP.x:443", "api.x", True),
        ("https://app.x", ELSEWHERE, "http://app.x", "api.x", False),
        ("https://app.x", ELSEWHERE, "https://app.x:8443", "api.x", False),
        ("https://app.x", ELSEWHERE, "https://app.x.evil.com", "api.x", False),
        ("https://app.x", ELSEWHERE, "https://app.x/", "api.x", False),
        ("https://app.x", ELSEWHERE, "https://api.x", "api.x", False),
        ("https://app.x:8443", ELSEWHERE, "https://app.x:8443", "api.x", True),
        ("http://localhost:*", ELSEWHERE, "http://localhost:6274", "api.x", True),
        ("chrome-extension://abc", ELSEWHERE, "chrome-extension://abc", "api.x", True),
        ("https://app.x", ELSEWHERE, "null", "api.x", False),
        ("*", ELSEWHERE, "null", "api.x", True),
    ],
)
def test_an_origin_is_compared_as_a_whole(allowed: str, bound: str, origin: str, host: str, passes: bool) -> None:
    rule = origin_rule(config(host=bound, allowed_origins=allowed))
    assert rule(origin.encode(), host.encode()) is passes


def test_a_wrong_origin_gets_403_with_the_name_of_the_setting_and_no_cors_headers(serve: Serve) -> None:
    with serve() as server:
        response = server.post(server.request("health_check"), origin="https://evil.com")
        assert response.status_code == 403
        assert "ALLOWED_ORIGINS" in error_of(response)
        assert "access-control-allow-origin" not in response.headers


def test_a_repeated_origin_gets_403(serve: Serve) -> None:
    with serve(allowed_origins="https://app.example.com") as server:
        once = "GET /mcp HTTP/1.1\nHost: localhost\nOrigin: https://app.example.com\n"
        assert not exchange(server, f"{once}Accept: */*").startswith(b"HTTP/1.1 403 ")
        assert exchange(server, f"{once}Origin: https://app.example.com\nAccept: */*").startswith(b"HTTP/1.1 403 ")


def test_an_allowed_web_page_may_send_a_preflight_and_read_every_response(serve: Serve) -> None:
    page = "https://app.example.com"
    with serve(allowed_origins=page, auth_tokens=None) as server:
        requested = {
            "origin": page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,mcp-protocol-version,mcp-param-region",
        }
        preflight = server.client.options(server.url, headers=requested)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == requested["access-control-request-headers"]
        for response in (
            server.post(server.request("health_check"), origin=page),
            server.client.post(server.url, content=b"{", headers=HEADERS | {"origin": page}),
        ):
            assert response.headers["access-control-allow-origin"] == page
            assert "mcp-session-id" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in server.post(server.request("health_check")).headers
        rejected = server.client.options(server.url, headers=requested | {"origin": "https://evil.com"})
        assert rejected.status_code == 403


@pytest.mark.parametrize(
    ("setting", "entry"),
    [
        ("allowed_hosts", "https://api.example.com"),
        ("allowed_hosts", "api.example.com/mcp"),
        ("allowed_hosts", "*.example.com"),
        ("allowed_hosts", "::1"),
        ("allowed_hosts", "api.example.com:99999"),
        ("allowed_origins", "app.example.com"),
        ("allowed_origins", "https://app.example.com/"),
        ("allowed_origins", "null"),
    ],
)
def test_an_invalid_entry_stops_the_start_with_its_name(setting: str, entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(**{setting: f"{entry},"}))
    assert str(caught.value).startswith(f"{setting.upper()}: ")
    assert entry in str(caught.value)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("127.1", True),
        ("::1", True),
        ("localhost", True),
        (EVERYWHERE, False),
        ("::", False),
        ("", False),
        ("0", False),
        (ELSEWHERE, False),
        ("2001:db8::1", False),
        ("no-such-host.invalid", False),
        ("x" * 300, False),
    ],
)
def test_an_address_is_loopback_only_if_no_other_machine_can_reach_it(host: str, loopback: bool) -> None:
    assert resolves_to_loopback(host) is loopback


def test_a_name_with_one_reachable_address_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*addresses: str) -> Any:
        return lambda *args, **options: [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found("127.0.1.1", "::1"))
    assert resolves_to_loopback("this-machine")
    monkeypatch.setattr(socket, "getaddrinfo", found("127.0.1.1", "192.168.1.5"))
    assert not resolves_to_loopback("this-machine")


def test_a_server_open_to_everyone_has_a_notice() -> None:
    def notices(**settings: Any) -> str:
        registry = Registry(config(**settings), about())
        guard.install(registry)
        return "\n".join(registry.notices)

    assert notices(auth="none") == ""
    assert "no authentication" in notices(auth="none", host=ELSEWHERE)
    assert "ALLOWED_HOSTS" in notices(auth="none", host=ELSEWHERE)
    assert "ALLOWED_HOSTS" not in notices(auth="none", host=ELSEWHERE, allowed_hosts="api.x")
    assert notices(auth="none", host=ELSEWHERE, transport="stdio") == ""
