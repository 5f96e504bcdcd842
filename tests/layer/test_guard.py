"""What may reach the MCP endpoint: hosts, origins, sizes and depths; and whom a request counts for."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
import tracemalloc
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.server.mcpserver import Context
from starlette.requests import Request

from weather_station.production import guard
from weather_station.production.app import (
    App,
    ProductionServer,
    production_of,
)
from weather_station.production.config import ConfigError, about
from weather_station.production.guard import (
    MAX_JSON_DEPTH,
    binds_loopback,
    deeper_than,
    host_rule,
    origin_rule,
)
from weather_station.production.identity import account, peer_address
from weather_station.server import create_server

from .harness import HEADERS, Running, config, text_of

ERAS = ("2025-11-25", "2026-07-28")
ELSEWHERE = "192.0.2.1"  # an address that others can reach; nothing listens there, the harness binds loopback
EVERYWHERE = str(IPv4Address(0))


def error_of(response: httpx2.Response) -> str:
    message = response.json()
    assert message["jsonrpc"] == "2.0"
    assert message["id"] is None
    text: str = message["error"]["message"]
    return text


def add_tools(server: ProductionServer) -> None:
    async def length(value: Any) -> int:
        return len(json.dumps(value))

    async def caller(ctx: Context[Any, Any]) -> str:
        return production_of(server).identify(ctx.request_context.request)

    server.tool()(length)
    server.tool()(caller)


def raw(server: Running, head: str, body: bytes = b"") -> bytes:
    """Sends these bytes and returns the first of the answer."""
    parts = urlsplit(server.base)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
        return connection.recv(65536)


# --- Header values --------------------------------------------------------------------------------------------------


def test_blanks_around_a_value_are_no_part_of_it(serve: Any) -> None:
    """RFC 9110, section 5.5."""
    with serve(add_tools) as server:
        body = call_body("2026-07-28", "1")
        headers = call_headers("2026-07-28") | {"host": "localhost", "content-length": str(len(body))}
        head = "".join(f"\n{name}: \t{value} \t" for name, value in headers.items())
        assert raw(server, f"POST /mcp HTTP/1.1{head}", body).startswith(b"HTTP/1.1 200 ")


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
        ("api.x", "api.x\n", False),
        ("api.x", "\xe1pi.x", False),
    ],
)
def test_a_host_is_allowed_as_a_whole_or_not_at_all(allowed: str, host: str, passes: bool) -> None:
    assert host_rule(config(allowed_hosts=allowed))(host.encode("latin-1")) is passes


def test_a_server_bound_elsewhere_answers_for_every_host_unless_told_which() -> None:
    assert host_rule(config(host=ELSEWHERE))(b"whatever.example")
    assert not host_rule(config(host=ELSEWHERE, allowed_hosts="api.x"))(b"whatever.example")


def test_a_wrong_host_gets_421_that_names_the_setting(serve: Any) -> None:
    with serve() as server:
        response = server.post(server.request("health_check"), host="evil.com")
        assert response.status_code == 421
        assert "evil.com" in error_of(response)
        assert "ALLOWED_HOSTS" in error_of(response)
        assert server.post(server.request("health_check")).status_code == 200


@pytest.mark.parametrize("hosts", ["", "Host: localhost\nHost: evil.com\n", "Host: evil.com\nHost: localhost\n"])
def test_no_host_or_two_get_421(serve: Any, hosts: str) -> None:
    with serve() as server:
        assert raw(server, f"GET /mcp HTTP/1.1\n{hosts}Accept: */*").startswith(b"HTTP/1.1 421 ")


def test_names_longer_than_any_are_not_kept() -> None:
    """Who keeps verdicts by the values of headers keeps what anybody sends."""
    passed = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope)

    async def send(message: Any) -> None: ...

    async def receive() -> Any: ...

    async def ask(first: int) -> None:
        for number in range(first, first + 50):
            host = b"%d.example:8000" % number + b"x" * 200_000
            for headers in ([(b"host", host)], [(b"host", b"127.0.0.1"), (b"origin", b"http://" + host)]):
                await edge({"type": "http", "method": "POST", "path": "/mcp", "headers": headers}, receive, send)

    edge = guard.Guard(config(), app)
    asyncio.run(ask(0))
    tracemalloc.start()
    asyncio.run(ask(50))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000
    assert passed == []


def test_probes_answer_whatever_their_host(serve: Any) -> None:
    with serve() as server:
        for path in ("/livez", "/readyz", "/health"):
            assert server.client.get(server.base + path, headers={"host": "10.1.2.3:8000"}).status_code == 200


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
def test_an_origin_is_allowed_as_a_whole_or_not_at_all(
    allowed: str, bound: str, origin: str, host: str, passes: bool
) -> None:
    rule = origin_rule(config(host=bound, allowed_origins=allowed))
    assert rule(origin.encode(), host.encode()) is passes


def test_a_wrong_origin_gets_403_that_names_the_setting_and_no_leave_to_read_it(serve: Any) -> None:
    with serve() as server:
        response = server.post(server.request("health_check"), origin="https://evil.com")
        assert response.status_code == 403
        assert "ALLOWED_ORIGINS" in error_of(response)
        assert "access-control-allow-origin" not in response.headers


def test_an_allowed_page_may_ask_before_it_calls_and_read_every_answer(serve: Any) -> None:
    page = "https://app.example.com"
    with serve(allowed_origins=page, auth_tokens=None) as server:
        asked = {
            "origin": page,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,mcp-protocol-version,mcp-param-region",
        }
        preflight = server.client.options(server.url, headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == page
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
        for response in (
            server.post(server.request("health_check"), origin=page),
            server.client.post(server.url, content=b"{", headers=HEADERS | {"origin": page}),
        ):
            assert response.headers["access-control-allow-origin"] == page
            assert "mcp-session-id" in response.headers["access-control-expose-headers"]
            assert response.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in server.post(server.request("health_check")).headers
        refused = server.client.options(server.url, headers=asked | {"origin": "https://evil.com"})
        assert refused.status_code == 403


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
        ("trusted_proxies", "10.0.0.300"),
        ("trusted_proxies", "*"),
    ],
)
def test_a_bad_entry_stops_the_start_with_a_line_that_names_it(setting: str, entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(**{setting: f"{entry},"}))
    assert str(caught.value).startswith(f"{setting.upper()}: ")
    assert entry in str(caught.value)


def test_a_flood_of_refusals_is_one_log_line_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def warning(self, event: str, **context: Any) -> None:
            lines.append(context)

    now = [0.0]
    monkeypatch.setattr(guard, "log", Log())
    monkeypatch.setattr(guard, "time", SimpleNamespace(monotonic=lambda: now[0]))
    refused = guard.RefusalLog()
    for _ in range(1000):
        refused("host is not allowed")
    assert [line["held_back"] for line in lines] == [0]
    now[0] += guard.QUIET_SECONDS
    refused("host is not allowed")
    assert [line["held_back"] for line in lines] == [0, 999]


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
def test_a_server_knows_whether_others_can_reach_it(host: str, loopback: bool) -> None:
    assert binds_loopback(host) is loopback


def test_a_name_with_one_address_that_others_can_reach_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*addresses: str) -> Any:
        return lambda *args, **options: [(0, 0, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found("127.0.1.1", "::1"))
    assert binds_loopback("this-machine")
    monkeypatch.setattr(socket, "getaddrinfo", found("127.0.1.1", "192.168.1.5"))
    assert not binds_loopback("this-machine")


def test_who_serves_everyone_is_told_so() -> None:
    def notices(**settings: Any) -> str:
        app = App(config(**settings), about())
        guard.install(app)
        return "\n".join(app.notices)

    assert notices(auth="none") == ""
    assert "no authentication" in notices(auth="none", host=ELSEWHERE)
    assert "ALLOWED_HOSTS" in notices(auth="none", host=ELSEWHERE)
    assert "ALLOWED_HOSTS" not in notices(auth="none", host=ELSEWHERE, allowed_hosts="api.x")
    assert notices(auth="none", host=ELSEWHERE, transport="stdio") == ""


# --- Size and depth -------------------------------------------------------------------------------------------------


def call_body(era: str, value: str) -> bytes:
    """A tools/call of `length` with this JSON text as its argument."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": era,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    head = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"length","_meta":'
    return f'{head}{json.dumps(meta)},"arguments":{{"value":{value}}}}}}}'.encode()


def call_headers(era: str) -> dict[str, str]:
    return HEADERS | {
        "content-type": "application/json",
        "mcp-protocol-version": era,
        "mcp-method": "tools/call",
        "mcp-name": "length",
    }


@pytest.mark.parametrize("era", ERAS)
def test_a_body_above_the_limit_gets_413_and_one_at_the_limit_an_answer(serve: Any, era: str) -> None:
    with serve(add_tools, max_request_bytes=4096) as server:
        padding = 4096 - len(call_body(era, '""'))
        at_limit = call_body(era, json.dumps("x" * padding))
        assert len(at_limit) == 4096
        for body in (at_limit, iter([at_limit[:100], at_limit[100:]])):
            assert server.client.post(server.url, content=body, headers=call_headers(era)).status_code == 200
        above = call_body(era, json.dumps("x" * (padding + 1)))
        for body in (above, iter([above[:100], above[100:]])):
            response = server.client.post(server.url, content=body, headers=call_headers(era))
            assert response.status_code == 413
            assert "4096 bytes" in error_of(response)
            assert "MAX_REQUEST_BYTES" in error_of(response)


def test_a_body_declared_too_large_is_refused_before_it_is_sent(serve: Any) -> None:
    with serve() as server:
        head = "POST /mcp HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 4194305"
        assert raw(server, head).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("era", ERAS)
def test_json_deeper_than_the_limit_gets_400_and_json_at_the_limit_an_answer(serve: Any, era: str) -> None:
    around = 3  # the message, params and arguments

    def nested(depth: int) -> bytes:
        return call_body(era, "[" * depth + "]" * depth)

    with serve(add_tools) as server:

        def post(body: bytes) -> httpx2.Response:
            response: httpx2.Response = server.client.post(server.url, content=body, headers=call_headers(era))
            return response

        assert post(nested(MAX_JSON_DEPTH - around)).status_code == 200
        for depth in (MAX_JSON_DEPTH - around + 1, 100_000, 2_000_000):
            response = post(nested(depth))
            assert response.status_code == 400
            assert f"{MAX_JSON_DEPTH} levels" in error_of(response)
        assert post(call_body(era, json.dumps("[{" * 10_000 + '"\\'))).status_code == 200
        assert post(call_body(era, json.dumps([[], {}] * 10_000))).status_code == 200


async def test_a_client_shows_its_user_which_limit_was_hit(serve: Any) -> None:
    deep: Any = []
    for _ in range(MAX_JSON_DEPTH):
        deep = [deep]
    with serve(add_tools, max_request_bytes=4096) as server:
        async with Client(server.url) as client:
            with pytest.raises(MCPError, match=f"nests deeper than {MAX_JSON_DEPTH} levels"):
                await client.call_tool("length", {"value": deep})
            with pytest.raises(MCPError, match="larger than 4096 bytes"):
                await client.call_tool("length", {"value": "x" * 5000})


def test_depth_is_what_a_parser_finds() -> None:
    def depth(of: Any) -> int:
        if not isinstance(of, dict | list):
            return 0
        return 1 + max(map(depth, of.values() if isinstance(of, dict) else of), default=0)

    parsed = 0
    for alphabet, longest in (('[]{}"\\,:', 5), ('[]"\\', 7)):  # every text of these characters up to that length
        for text in map("".join, itertools.chain(*(itertools.product(alphabet, repeat=n + 1) for n in range(longest)))):
            try:
                found = depth(json.loads(text))
            except ValueError:
                continue
            parsed += 1
            assert not deeper_than(found, text.encode()), text
            assert found == 0 or deeper_than(found - 1, text.encode()), text
    assert parsed > 100


@pytest.mark.parametrize("piece", [b"[", b"]", b'"', b'"\\', b'""', b'"\\"', b"[]", b'[{"a":"b"},', b"\\"])
def test_looking_for_depth_takes_time_in_proportion_to_the_body(piece: bytes) -> None:
    def seconds(size: int) -> float:
        body = piece * (size // len(piece))
        began = time.process_time()
        deeper_than(MAX_JSON_DEPTH, body)
        return time.process_time() - began

    seconds(1000)
    assert seconds(1_000_000) < 1.0  # a quadratic search would take minutes


# --- Identity -------------------------------------------------------------------------------------------------------


def request_from(peer: str | None, *forwarded: str) -> Request:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    return Request({"type": "http", "client": peer and (peer, 1234), "headers": headers})


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),  # not a proxy of ours: its word counts nothing
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
def test_a_peer_is_named_by_the_last_address_that_can_be_trusted(
    peer: str | None, forwarded: tuple[str, ...], client: str
) -> None:
    assert peer_address(("10.0.0.0/8", "fd00:1::/32"))(request_from(peer, *forwarded)) == client


def test_forwarded_addresses_count_on_a_running_server_only_from_a_trusted_proxy(serve: Any) -> None:
    for trusted, client in (("127.0.0.1", "198.51.100.7"), ("10.0.0.1", "127.0.0.1")):
        with serve(add_tools, trusted_proxies=trusted) as server:
            assert text_of(server.call("caller", x_forwarded_for="6.6.6.6, 198.51.100.7")) == client


@pytest.mark.parametrize("name", ["10.0.0.1", "::1", "2a00::/64", "stdio", "unknown", "account:stdio"])
def test_an_account_is_never_taken_for_a_peer(name: str) -> None:
    assert account(name) == f"account:{name}"
    assert account("alice") == "alice"
