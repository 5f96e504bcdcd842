"""A key of each caller for the upstream: from the owner's function, or from a file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import ONE_ATTEMPT, Serve, add_fetch, config, wait_for
from stand_in import StandIn
from weather_station.production import upstream_credentials
from weather_station.production.caller import Caller, current_caller
from weather_station.production.config import ConfigError
from weather_station.production.registry import Runtime
from weather_station.production.sdk import ProductionServer
from weather_station.production.upstream import credentials_keys
from weather_station.production.upstream.errors import UpstreamError
from weather_station.server import create_server

PER_CALLER: dict[str, Any] = ONE_ATTEMPT | {"upstream_auth": "per_caller", "upstream_api_key_header": "X-Api-Key"}


@contextmanager
def calling(name: str) -> Iterator[None]:
    reset = current_caller.set(Caller(name))
    try:
        yield
    finally:
        current_caller.reset(reset)


@pytest.fixture
def asked() -> list[str]:
    """The callers that `keys_of_the_owner` was asked about."""
    return []


def server_with_function(api: StandIn, asked: list[str], keep_seconds: float = 0.0) -> ProductionServer:
    server = create_server(config(upstream_base_url=api.url, **PER_CALLER))

    async def key_of(caller: Caller) -> str | None:
        asked.append(caller.id)
        await asyncio.sleep(0)
        if caller.id == "eve":
            raise RuntimeError("the key store is down")
        return {"alice": "key-of-alice", "bob": "key-of-bob\n"}.get(caller.id)

    upstream_credentials(server, key_of, keep_seconds=keep_seconds)
    return server


async def get(runtime: Runtime, name: str) -> None:
    with calling(name):
        await runtime.upstream.get_json("/")


async def test_each_caller_has_the_key_that_the_function_returns(
    api: StandIn, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_TEST_KEY", "the-servers-own-key")
    async with server_with_function(api, asked).running() as runtime:
        await get(runtime, "alice")
        await get(runtime, "bob")
        with pytest.raises(UpstreamError, match="This caller has no credentials"):
            await get(runtime, "mallory")
        with pytest.raises(RuntimeError, match="key store"):
            await get(runtime, "eve")
        with pytest.raises(UpstreamError, match="outside of any call"):
            await runtime.upstream.get_json("/")
    assert [request.headers["x-api-key"] for request in api.requests] == ["key-of-alice", "key-of-bob"]
    assert asked == ["alice", "bob", "mallory", "eve"]


@pytest.mark.parametrize("in_query", [False, True], ids=["header", "query"])
@pytest.mark.parametrize("key", ["", " ", "\n", "\t \r\n", "\u2003"], ids=ascii)
async def test_a_blank_key_is_none(api: StandIn, key: str, *, in_query: bool) -> None:
    """A secret that holds only a line break must not become a request with empty credentials."""
    query = {"upstream_api_key_query": "key"} if in_query else {}
    server = create_server(config(upstream_base_url=api.url, **PER_CALLER | query))

    async def key_of(caller: Caller) -> str | None:
        return key

    upstream_credentials(server, key_of)
    async with server.running() as runtime:
        with pytest.raises(UpstreamError, match="This caller has no credentials"):
            await get(runtime, "alice")
    assert api.requests == []


@pytest.mark.parametrize("in_query", [False, True], ids=["header", "query"])
@pytest.mark.parametrize(
    "answer", [5, b"key", ["key"], GeneratorExit(), asyncio.CancelledError(), KeyError("key")], ids=repr
)
async def test_an_odd_answer_fails_the_request_before_it_is_sent(api: StandIn, answer: Any, *, in_query: bool) -> None:
    query = {"upstream_api_key_query": "key"} if in_query else {}
    server = create_server(config(upstream_base_url=api.url, **PER_CALLER | query))

    async def key_of(caller: Caller) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    upstream_credentials(server, key_of)
    async with server.running() as runtime:
        with pytest.raises((Exception, asyncio.CancelledError)):
            await get(runtime, "alice")
    assert api.requests == []


@pytest.mark.parametrize(("keep_seconds", "times"), [(0.0, 2), (60.0, 1)])
async def test_a_key_is_kept_as_long_as_the_owner_says(
    api: StandIn, asked: list[str], keep_seconds: float, times: int
) -> None:
    async with server_with_function(api, asked, keep_seconds).running() as runtime:
        await get(runtime, "alice")
        await get(runtime, "alice")
    assert asked == ["alice"] * times


async def test_without_keys_every_request_is_rejected(api: StandIn) -> None:
    server = create_server(config(upstream_base_url=api.url, **PER_CALLER))
    assert "UPSTREAM_KEYS_FILE or upstream_credentials()" in " ".join(server.registry.notices)
    async with server.running() as runtime:
        with pytest.raises(UpstreamError, match="not configured"):
            await get(runtime, "alice")
    assert api.requests == []


def test_a_changed_file_counts_without_a_restart_and_a_broken_one_changes_nothing(
    serve: Serve, api: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(credentials_keys, "CHECK_SECONDS", 0.02)
    file = tmp_path / "keys.toml"
    file.write_text('"127.0.0.1" = "first-key"\n')

    def key(tool: Any) -> str:
        tool()
        return api.requests[-1].headers["x-api-key"]

    with serve(add_fetch, upstream_base_url=api.url, upstream_keys_file=file, **PER_CALLER) as server:

        def fetch() -> object:
            return server.call("fetch", {"path": "/"})

        assert key(fetch) == "first-key"
        file.write_text('"127.0.0.1" = "second-key"\n')
        wait_for(lambda: key(fetch) == "second-key")
        for broken in ("", "'127.0.0.1' = 7", "secret-text without a key", "[table]\na = 'b'", "x" * 2_000_000):
            file.write_text(broken)
            wait_for(lambda: server.get("/health").json()["status"] == "degraded")
            assert key(fetch) == "second-key"
        file.write_text('"198.51.100.1" = "other-key"\n')
        wait_for(lambda: server.get("/health").json()["status"] == "healthy")
        assert fetch()
        assert len([request for request in api.requests if "x-api-key" not in request.headers]) == 0
        count = len(api.requests)
        server.call("fetch", {"path": "/"})
        assert len(api.requests) == count
    said = capfd.readouterr().err
    assert "cannot reload the callers' keys" in said
    assert "secret-text" not in said
    assert "second-key" not in said


@pytest.mark.parametrize("content", [None, "", "a = 1", "a = ", 'a = "x\\u0007"', 'a = " "'])
def test_an_unusable_file_stops_the_start(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="UPSTREAM_KEYS_FILE: "):
        create_server(config(upstream_keys_file=file, **PER_CALLER))


def test_a_file_and_a_function_exclude_each_other(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('a = "b"')
    server = create_server(config(upstream_keys_file=file, **PER_CALLER))

    async def key_of(caller: Caller) -> str | None:
        return None

    with pytest.raises(ValueError, match="UPSTREAM_KEYS_FILE is set"):
        upstream_credentials(server, key_of)
