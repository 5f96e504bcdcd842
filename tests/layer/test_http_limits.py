"""Limits of the HTTP edge: size and depth of a message, and the log of rejected requests."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from structlog.testing import capture_logs

from clocks import Clock
from harness import HAS_METRICS, HEADERS, INITIALIZE, LEGACY, MODERN, Serve, config
from raw_http import error_of, exchange
from weather_station.production.config import about
from weather_station.production.inbound.http_limits import MAX_JSON_DEPTH, deeper_than
from weather_station.production.observe import throttle
from weather_station.production.observe.rejections import Rejections
from weather_station.production.observe.throttle import LOG_INTERVAL_SECONDS
from weather_station.production.registry import Registry
from weather_station.production.sdk import ProductionServer

VERSIONS = (LEGACY, MODERN)
SCOPE = {"type": "http", "client": ("192.0.2.1", 1), "headers": []}


def add_length(server: ProductionServer) -> None:
    async def length(value: Any) -> int:
        return len(json.dumps(value))

    server.tool()(length)


def call_body(version: str, value: str) -> bytes:
    """Return a tools/call of `length` with this JSON text as its argument."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    head = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"length","_meta":'
    return f'{head}{json.dumps(meta)},"arguments":{{"value":{value}}}}}}}'.encode()


def call_headers(version: str) -> dict[str, str]:
    return HEADERS | {
        "content-type": "application/json",
        "mcp-protocol-version": version,
        "mcp-method": "tools/call",
        "mcp-name": "length",
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_body_above_the_limit_gets_413_and_one_at_the_limit_200(serve: Serve, version: str) -> None:
    with serve(add_length, max_request_bytes=4096) as server:
        padding = 4096 - len(call_body(version, '""'))
        at_limit = call_body(version, json.dumps("x" * padding))
        assert len(at_limit) == 4096
        for body in (at_limit, iter([at_limit[:100], at_limit[100:]])):
            assert server.client.post(server.url, content=body, headers=call_headers(version)).status_code == 200
        above = call_body(version, json.dumps("x" * (padding + 1)))
        for body in (above, iter([above[:100], above[100:]])):
            response = server.client.post(server.url, content=body, headers=call_headers(version))
            assert response.status_code == 413
            assert "4096 bytes" in error_of(response)
            assert "MAX_REQUEST_BYTES" in error_of(response)


def test_a_body_declared_too_large_gets_413_before_it_is_sent(serve: Serve) -> None:
    with serve() as server:
        head = "POST /mcp HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 4194305"
        assert exchange(server, head).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("version", VERSIONS)
def test_json_deeper_than_the_limit_gets_400_and_json_at_the_limit_200(serve: Serve, version: str) -> None:
    around = 3  # the message, params and arguments

    def nested(depth: int) -> bytes:
        return call_body(version, "[" * depth + "]" * depth)

    with serve(add_length, max_json_values=10_000_000) as server:

        def post(body: bytes) -> httpx2.Response:
            response: httpx2.Response = server.client.post(server.url, content=body, headers=call_headers(version))
            return response

        assert post(nested(MAX_JSON_DEPTH - around)).status_code == 200
        for depth in (MAX_JSON_DEPTH - around + 1, 100_000, 2_000_000):
            response = post(nested(depth))
            assert response.status_code == 400
            assert f"{MAX_JSON_DEPTH} levels" in error_of(response)
        assert post(call_body(version, json.dumps("[{" * 10_000 + '"\\'))).status_code == 200
        assert post(call_body(version, json.dumps([[], {}] * 10_000))).status_code == 200


async def test_the_client_of_the_sdk_shows_which_limit_was_exceeded(serve: Serve) -> None:
    deep: Any = []
    for _ in range(MAX_JSON_DEPTH):
        deep = [deep]
    with serve(add_length, max_request_bytes=4096) as server:
        async with Client(server.url) as client:
            with pytest.raises(MCPError, match=f"is nested deeper than {MAX_JSON_DEPTH} levels"):
                await client.call_tool("length", {"value": deep})
            with pytest.raises(MCPError, match="larger than 4096 bytes"):
                await client.call_tool("length", {"value": "x" * 5000})


def test_the_depth_is_the_one_that_a_parser_finds() -> None:
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
def test_the_depth_of_a_long_body_is_found_whatever_is_in_it(piece: bytes) -> None:
    """A search that takes more than linear time would take minutes."""
    body = piece * (500_000 // len(piece))
    level = deepest = 0
    inside = escaped = False
    for byte in body:
        if escaped:
            escaped = False
        elif inside and byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            inside = not inside
        elif not inside and byte in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif not inside and byte in b"]}":
            level -= 1
    assert deeper_than(MAX_JSON_DEPTH, body) is (deepest > MAX_JSON_DEPTH)


def test_a_flood_of_rejections_is_one_log_entry_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throttle, "time", clock)
    rejected = Rejections(Registry(config(), about()))
    with capture_logs() as log:
        for _ in range(1000):
            rejected("host", "host is not allowed", SCOPE)
        assert [entry["suppressed"] for entry in log] == [0]
        clock.now += LOG_INTERVAL_SECONDS
        rejected("host", "host is not allowed", SCOPE)
    assert [entry["suppressed"] for entry in log] == [0, 999]


def test_whitespace_around_a_header_value_is_ignored(serve: Serve) -> None:
    """RFC 9110, section 5.5."""
    with serve(add_length) as server:
        body = call_body(MODERN, "1")
        headers = call_headers(MODERN) | {"host": "localhost", "content-length": str(len(body))}
        head = "".join(f"\n{name}: \t{value} \t" for name, value in headers.items())
        assert exchange(server, f"POST /mcp HTTP/1.1{head}", body).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("zeros", [100, 5001])
def test_a_declared_length_of_many_digits_is_a_number(zeros: int, serve: Serve) -> None:
    """RFC 9110, section 8.6: digits, however many."""
    with serve(add_length) as server:
        body = call_body(MODERN, "1")
        headers = call_headers(MODERN) | {"host": "localhost", "content-length": "0" * zeros + str(len(body))}
        head = "".join(f"\n{name}: {value}" for name, value in headers.items())
        assert exchange(server, f"POST /mcp HTTP/1.1{head}", body).startswith(b"HTTP/1.1 200 ")
        head = head.replace(str(len(body)), "9" * 18)
        assert exchange(server, f"POST /mcp HTTP/1.1{head}").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("media_type", ["Application/JSON", "application/json; charset=utf-8", "APPLICATION/JSON ;x=y"])
def test_a_media_type_is_compared_without_case(media_type: str, version: str, serve: Serve) -> None:
    """RFC 9110, section 8.3.1."""
    with serve(add_length) as server:
        headers = call_headers(version) | {"content-type": media_type}
        assert server.client.post(server.url, content=call_body(version, "1"), headers=headers).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
def test_another_media_type_gets_415_as_a_json_rpc_error(media_type: str, serve: Serve) -> None:
    with serve(add_length) as server:
        headers = call_headers(MODERN) | {"content-type": media_type}
        response = server.client.post(server.url, content=call_body(MODERN, "1"), headers=headers)
        assert response.status_code == 415
        assert "application/json" in error_of(response)
        assert server.metrics().value("mcp_http_rejections_total", reason="media_type") == (1 if HAS_METRICS else None)


IDS = {
    "1.0": False,
    "1e0": False,
    "-0.5": False,
    "1e400": False,
    "null": False,
    "true": False,
    "false": False,
    "[1]": False,
    "[]": False,
    "{}": False,
    '{"id":1}': False,
    "9" * 5000: False,
    "9" * 30: True,
    "-5": True,
    "0": True,
    '""': True,
    '"1.0"': True,
    '"\\u00e4"': True,
}
"""By the id's text in JSON: whether it is a string or an integer."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("session_mode", ["stateless", "stateful"])
def test_a_request_is_never_taken_for_a_notification_because_of_its_id(
    serve: Serve, version: str, session_mode: str
) -> None:
    with serve(add_length, session_mode=session_mode) as server:
        headers = call_headers(version)
        if (version, session_mode) == (LEGACY, "stateful"):
            headers["mcp-session-id"] = server.post(INITIALIZE).headers["mcp-session-id"]
        for text, usable in IDS.items():
            for name in ('"id"', '"\\u0069d"'):
                body = call_body(version, "[]").replace(b'"id":1', f"{name}:{text}".encode())
                response = server.client.post(server.url, content=body, headers=headers)
                assert response.status_code == (200 if usable else 400), (text[:20], response.text)
                answer = json.loads(response.text.rpartition("data: ")[2])
                assert ("result" in answer) == usable
                assert answer["id"] == (json.loads(text) if usable else None)
        notification = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1, "id": 1}}
        assert server.client.post(server.url, json=notification, headers=headers).status_code == 202
