"""Upstream client: what it sends, where it sends it, and what a tool gets from it."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver.exceptions import ToolError

from harness import DEADLINE_SECONDS, HAS_METRICS, ONE_ATTEMPT, Serve, add_fetch, config, opened, text_of, wait_for
from stand_in import StandIn, hang, respond, stand_in
from weather_station.production.upstream import client
from weather_station.production.upstream.client import MAX_RETRY_AFTER, memory_of, parse_retry_after
from weather_station.production.upstream.errors import UpstreamResponseError, UpstreamTimeoutError
from weather_station.server import create_server


def test_a_response_reaches_the_tool_and_is_counted(api: StandIn, serve: Serve) -> None:
    api.behave(respond(body=b'{"answer": 42}'))
    with serve(add_fetch, upstream_base_url=f"{api.url}/api", **ONE_ATTEMPT) as server:
        assert server.call("fetch", {"path": "/thing"})["structuredContent"] == {"answer": 42}
        labels = {"host": api.host, "method": "GET", "outcome": "2xx"}
        assert server.metrics().value("mcp_upstream_requests_total", **labels) == (1 if HAS_METRICS else None)
    (request,) = api.requests
    assert (request.method, request.target) == ("GET", "/api/thing")
    assert request.headers["accept"].startswith("application/json")
    assert request.headers["user-agent"].startswith(server.registry.about.name)


async def test_a_redirect_on_the_same_origin_is_followed(api: StandIn) -> None:
    api.behave(respond(307, location="/moved"), respond())
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        response = await runtime.upstream.request("POST", "/old", json={"a": 1})
    assert response.status_code == 200
    assert [(request.method, request.target, request.body) for request in api.requests] == [
        ("POST", "/old", b'{"a":1}'),
        ("POST", "/moved", b'{"a":1}'),
    ]


@pytest.mark.parametrize(
    ("allowed", "url", "passes"),
    [
        ("127.0.0.2", "http://127.0.0.2:9/", True),
        ("127.0.0.2:9", "http://127.0.0.2:9/", True),
        ("127.0.0.2:9", "http://127.0.0.2:10/", False),
        ("127.0.0.2:443", "https://127.0.0.2/", True),
        ("127.0.0.2:443", "https://127.0.0.2:443/", True),
        ("127.0.0.2:443", "http://127.0.0.2/", False),
        ("127.0.0.2:80", "http://127.0.0.2/", True),
        ("[::1]:443", "https://[::1]/", True),
        ("[::1]:9", "http://[::1]:9/", True),
        ("[::1]:9", "http://[::1]:10/", False),
    ],
)
async def test_other_hosts_are_allowed_with_or_without_a_port(allowed: str, url: str, passes: bool) -> None:
    async with opened("http://127.0.0.1:9", upstream_allowed_hosts=allowed, **ONE_ATTEMPT) as runtime:
        with pytest.raises(ToolError) as raised:
            await runtime.upstream.request("GET", url)
    assert ("UPSTREAM_ALLOWED_HOSTS" not in str(raised.value)) is passes


async def test_a_compressed_response_is_decompressed(api: StandIn) -> None:
    api.behave(respond(body=gzip.compress(b'{"answer": 42}'), content_encoding="gzip"))
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        response = await runtime.upstream.request("GET", "/")
    assert response.json() == {"answer": 42}
    assert "content-encoding" not in response.headers
    assert response.headers["content-length"] == "14"


async def test_a_response_has_the_standard_reason_phrase(api: StandIn) -> None:
    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 hunter2\r\nContent-Length: 2\r\n\r\nok")

    api.behave(behave)
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        response = await runtime.upstream.request("GET", "/")
    assert (response.reason_phrase, response.text, response.is_closed) == ("OK", "ok", True)


async def test_the_deadline_interrupts_an_attempt(api: StandIn) -> None:
    api.behave(hang())
    async with opened(api.url, request_timeout_seconds=0.2, attempt_timeout_seconds=3600, **ONE_ATTEMPT) as runtime:
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError, match=r"did not answer within 0\.2 s"):
            await runtime.upstream.get_json("/")
        assert time.monotonic() - started >= 0.2


def test_a_cancelled_tool_closes_its_connection(api: StandIn, serve: Serve) -> None:
    api.behave(hang())
    with serve(add_fetch, upstream_base_url=api.url, tool_timeout_seconds=1, **ONE_ATTEMPT) as server:
        assert "did not finish within 1 seconds" in text_of(server.call("fetch", {"path": "/"}))
        assert len(api.requests) == 1
        wait_for(lambda: api.connections == 0)


# --- Where a request goes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["@evil.invalid/", ".evil.invalid", "//evil.invalid/x", ":1/x", "ftp://evil.invalid/"])
async def test_a_path_cannot_leave_its_host(path: str, api: StandIn) -> None:
    async with opened(f"{api.url}/v1", **ONE_ATTEMPT) as runtime:
        await runtime.upstream.get_json(path)
    assert api.requests[0].target.startswith("/v1/")


@pytest.mark.parametrize("url", ["http://user:password@127.0.0.1/", "http:///path", "https://127.0.0.1:99999/"])
async def test_a_malformed_url_is_rejected(url: str, api: StandIn) -> None:
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        with pytest.raises(ToolError, match=r"malformed|must have"):
            await runtime.upstream.get_json(url)


async def test_an_absolute_url_reaches_another_host(api: StandIn) -> None:
    with stand_in() as other:
        async with opened(api.url, **ONE_ATTEMPT) as runtime:
            await runtime.upstream.get_json(f"{other.url}/there", params={"a": "1 2"})
        assert [request.target for request in other.requests] == ["/there?a=1+2"]
    assert not api.requests


# --- What a request and its response carry --------------------------------------------------------------------------


async def test_all_parts_of_a_request_are_sent(api: StandIn) -> None:
    api.behave(respond(201, b"made", content_type="text/plain", x_id="7"))
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        response = await runtime.upstream.request(
            "post", "/things", params={"a": 1}, content="text", headers={"X-One": "1"}, idempotency_key="k1"
        )
    assert (response.status_code, response.text, response.headers["x-id"]) == (201, "made", "7")
    (request,) = api.requests
    assert (request.method, request.target, request.body) == ("POST", "/things?a=1", b"text")
    assert (request.headers["x-one"], request.headers["idempotency-key"]) == ("1", "k1")


@pytest.mark.parametrize("path", ["/x", "/x?", "/x?a=1", "/x?a=1#part?b=2", "/x#part", "/é?ü=%41"])
@pytest.mark.parametrize(
    "params", [None, {}, {"b": "1 2&é#?"}, {"b": [1, 2.5, True, None]}, {"b": []}, {"": "", "c": "[:]"}]
)
async def test_a_query_is_that_of_httpx2(path: str, params: dict[str, Any] | None, api: StandIn) -> None:
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        for _ in range(2):
            response = await runtime.upstream.request("GET", path, params=params)
    expected = httpx2.Request("GET", api.url + path, params=params).url
    assert response.request.url == expected
    assert [request.target for request in api.requests] == [expected.raw_path.decode()] * 2


async def test_forms_and_files_are_sent_again_by_a_retry(api: StandIn) -> None:
    form, files = {"name": "Ann Lee", "tag": ["a", "b"]}, {"scan": ("scan.txt", b"content", "text/plain")}
    async with opened(api.url, enable_circuit_breaker=False, retry_delay_seconds=0.001) as runtime:
        api.behave(respond(503), respond())
        if runtime.registry.upstream.middleware.get("retry") is None:
            api.behave(respond())
        await runtime.upstream.request("PUT", "/files", form=form, files=files)
    *_, first, last = api.requests if len(api.requests) > 1 else api.requests * 2
    assert first.body == last.body
    assert last.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="name"\r\n\r\nAnn Lee\r\n' in last.body
    assert b'filename="scan.txt"\r\nContent-Type: text/plain\r\n\r\ncontent\r\n' in last.body


async def test_a_form_is_url_encoded(api: StandIn) -> None:
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        await runtime.upstream.request("POST", "/forms", form={"name": "Ann Lee", "tag": ["a", "b"]})
    (request,) = api.requests
    assert request.body == b"name=Ann+Lee&tag=a&tag=b"
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_cookies_are_not_kept(api: StandIn) -> None:
    api.behave(respond(set_cookie="session=of-one-caller; Path=/"))
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        await runtime.upstream.get_json("/")
        await runtime.upstream.get_json("/")
    assert "cookie" not in api.requests[1].headers


def test_hosts_beyond_the_limit_share_a_label(api: StandIn, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_HOSTS", 2)
    with (
        stand_in() as second,
        stand_in() as third,
        serve(add_fetch, upstream_base_url=api.url, **ONE_ATTEMPT) as server,
    ):
        for url in (api.url, second.url, third.url, third.url):
            assert not server.call("fetch", {"path": f"{url}/"})["isError"]
        metrics = server.metrics()
        counts = {
            host: metrics.value("mcp_upstream_requests_total", host=host, method="GET", outcome="2xx")
            for host in (api.host, second.host, third.host, "other")
        }
    assert [*counts.values()] == ([1, 1, None, 2] if HAS_METRICS else [None] * 4)


async def test_a_server_can_run_more_than_once(api: StandIn) -> None:
    server = create_server(config(upstream_base_url=api.url))
    for _ in range(2):
        async with server.running() as runtime:
            assert await runtime.upstream.get_json("/") == {"ok": True}


# --- Retry-After ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 5000, MAX_RETRY_AFTER),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
    ],
)
def test_retry_after_is_parsed(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_retry_after_as_a_date_counts_from_now() -> None:
    date = datetime.now(UTC) + timedelta(hours=2)
    seconds = parse_retry_after(format_datetime(date, usegmt=True))
    assert seconds is not None
    assert 3600 < seconds <= 7200


def test_retry_after_is_parsed_without_an_exception_whatever_its_text() -> None:
    chance = random.Random(1)  # noqa: S311 (test data)
    words = ["Wed,", "21", "Oct", "2015", "99999", "07:28:00", "25:61:61", "GMT", "+9999", "-0000", "-", "0", ":", "\0"]
    for _ in range(5000):
        seconds = parse_retry_after(" ".join(chance.choices(words, k=chance.randint(0, 8))))
        assert seconds is None or seconds >= 0


async def test_a_request_has_a_timeout_of_its_own(api: StandIn) -> None:
    """It replaces that of the request and that of an attempt, whether they are shorter or longer."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await respond()(reader, writer)

    api.behave(late)
    async with opened(api.url, request_timeout_seconds=0.1, attempt_timeout_seconds=0.1, **ONE_ATTEMPT) as runtime:
        with pytest.raises(UpstreamTimeoutError, match=r"0\.1 s"):
            await runtime.upstream.request("GET", "/")
        assert (await runtime.upstream.request("GET", "/", timeout=DEADLINE_SECONDS)).status_code == 200
        assert await runtime.upstream.get_json("/", timeout=DEADLINE_SECONDS) is not None
    api.behave(hang())
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        with pytest.raises(UpstreamTimeoutError, match=r"0\.2 s"):
            await runtime.upstream.request("GET", "/", timeout=0.2)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
async def test_a_timeout_that_is_no_duration_is_a_mistake_of_the_tool(api: StandIn, seconds: float) -> None:
    async with opened(api.url, **ONE_ATTEMPT) as runtime:
        with pytest.raises(ValueError, match="timeout="):
            await runtime.upstream.request("GET", "/", timeout=seconds)


MANY_VALUES = {
    "objects": b'{"a":1},',
    "empty objects": b"{},",
    "empty arrays": b"[],",
    "nested arrays": b"[[[]]],",
    "numbers": b"1.5,",
    "texts": b'"ab",',
    "objects of objects": b'{"a":{"b":{}}},',
}


@pytest.mark.parametrize("kind", MANY_VALUES)
async def test_a_response_whose_values_take_too_much_memory_is_rejected_before_it_is_parsed(
    kind: str, api: StandIn
) -> None:
    """The shapes of which little text takes the most memory; ten times the limit is 10 MB here."""
    item = MANY_VALUES[kind]
    limit = 1_000_000
    body = b"[" + item * ((limit - 3) // len(item)) + b"0]"
    tracemalloc.start()
    value = json.loads(body)
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del value
    api.behave(respond(body=body))
    async with opened(api.url, max_response_bytes=limit, **ONE_ATTEMPT) as runtime:
        if memory_of(body) > client.MAX_GROWTH * limit:
            with pytest.raises(UpstreamResponseError, match="whose values take more than 10 times MAX_RESPONSE_BYTES"):
                await runtime.upstream.get_json("/")
        else:
            await runtime.upstream.get_json("/")
            assert memory < 1.5 * client.MAX_GROWTH * limit
    assert memory < 1.5 * memory_of(body)


async def test_brackets_in_texts_take_no_memory(api: StandIn) -> None:
    limit = 100_000
    code = 'fn() { [a, b, "c\\\\"]; } ' * 2
    text = json.dumps({"code": ["{}[],{}" * 1000 + code] * 12})
    assert memory_of(text.encode()) > client.MAX_GROWTH * limit
    api.behave(respond(body=text.encode()))
    async with opened(api.url, max_response_bytes=limit, **ONE_ATTEMPT) as runtime:
        assert await runtime.upstream.get_json("/") == json.loads(text)
