"""What replicas share in Redis: single use and change events; what an outage of Redis does to both."""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import Context

from harness import DEADLINE_SECONDS, NO_TLS, Running, Serve, config, http_process, modern, result_of, text_of, wait_for
from rounds import ROUNDS, ask, post, rounds
from store import Store, running_store
from test_single_use import add_use
from weather_station.production.config import ConfigError, about
from weather_station.production.inbound import replicas_redis
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import startup
from weather_station.server import create_server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PyPI has no Redis server for Windows")

HASH_TAG = f"{{{about().name}}}:"
UNKNOWN_BEFORE = "Whether this was done before cannot be checked now, so it was not done. Trying again later may help."
SUBSCRIPTION = {
    "notifications": {"toolsListChanged": True, "promptsListChanged": True, "resourceSubscriptions": ["test://7"]}
}


@pytest.fixture
def store() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an answer may take longer than the server waits for it."""
    monkeypatch.setattr(replicas_redis, "TIMEOUT_SECONDS", DEADLINE_SECONDS)


def tools(server: ProductionServer) -> None:
    add_use(server)

    @server.resource("test://{number}")
    async def numbered(number: str) -> str:
        return number

    @server.tool()
    async def change(ctx: Context[Any, Any]) -> None:
        await ctx.notify_resource_updated("test://8")
        await ctx.notify_resource_updated("test://7")
        await ctx.notify_tools_changed()
        await ctx.notify_resources_changed()
        await ctx.notify_prompts_changed()


def use(server: Running, key: str = "key") -> str:
    return text_of(server.call("use", {"key": key}))


@contextmanager
def subscribed(url: str) -> Iterator[queue.Queue[str]]:
    """Subscribe, and yield the methods of the notifications that arrive, with the URI of a resource."""
    content, headers = modern("subscriptions/listen", SUBSCRIPTION)
    events: queue.Queue[str] = queue.Queue()

    def read(response: httpx2.Response) -> None:
        try:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    notification = json.loads(line.removeprefix("data: "))
                    events.put(notification.get("method", "") + notification.get("params", {}).get("uri", ""))
        except httpx2.HTTPError:
            return

    with (
        httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client,
        client.stream("POST", url, json=content, headers=headers) as response,
    ):
        assert response.status_code == 200
        reader = threading.Thread(target=read, args=(response,), daemon=True)
        reader.start()
        assert events.get(timeout=DEADLINE_SECONDS) == "notifications/subscriptions/acknowledged"
        yield events


def received(events: queue.Queue[str]) -> list[str]:
    """Return the notifications up to the last one of `change`."""
    methods = [events.get(timeout=DEADLINE_SECONDS)]
    while methods[-1] != "notifications/prompts/list_changed":
        methods.append(events.get(timeout=DEADLINE_SECONDS))
    return methods


CHANGES = [
    "notifications/resources/updatedtest://7",
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
]


def test_a_change_at_one_replica_reaches_the_subscribers_of_all_exactly_once(store: Store) -> None:
    module = f"{__name__}:tools"
    with (
        http_process(module, REDIS_URL=store.url) as first,
        http_process(module, REDIS_URL=store.url) as second,
        subscribed(first.url) as here,
        subscribed(second.url) as there,
    ):
        for url in (first.url, second.url):
            post(url, "tools/call", {"name": "change", "arguments": {}})
            assert (received(here), received(there)) == (CHANGES, CHANGES)


def test_of_simultaneous_calls_at_all_replicas_one_is_the_first(store: Store, serve: Serve) -> None:
    with serve(tools, redis_url=store.url) as first, serve(tools, redis_url=store.url) as second:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(use, [first, second] * 20))
        assert sorted(answers) == ["false"] * 39 + ["true"]
        assert text_of(first.call("use", {"key": "short", "seconds": 0.001})) == "true"
        wait_for(lambda: use(second, "short") == "true")


def test_a_used_state_is_used_at_every_replica(store: Store, serve: Serve) -> None:
    settings: dict[str, Any] = {"redis_url": store.url, "request_state_keys": "k" * 32, "rate_limit_requests": 2}
    with serve(rounds, **settings) as first, serve(rounds, **settings) as second:
        retry = ask(first.url, next(iter(ROUNDS)))
        assert "done" in str(post(second.url, *retry)), "without a permit"
        assert "done" in str(post(first.url, *retry)), "the second permit"
        for server in (first, second):
            assert "Rate limit exceeded" in str(post(server.url, *retry))


def test_every_key_has_the_server_s_hash_tag_and_expires(store: Store, serve: Serve) -> None:
    with serve(tools, redis_url=store.url) as server:
        use(server, "secret-key")
        use(server, "{other}")
        with store.client() as client:
            keys = client.keys("*")
            assert len(keys) >= 2
            for key in keys:
                assert key.startswith(HASH_TAG)
                assert client.pttl(key) > 0
                assert "secret-key" not in key


def test_in_an_outage_nothing_is_done_and_events_stay_within_the_replica(store: Store, serve: Serve) -> None:
    with serve(tools, redis_url=store.url) as first, serve(tools, redis_url=store.url) as second:
        assert use(first) == "true"
        store.kill()
        result = first.call("use", {"key": "other"})
        assert (result["isError"], text_of(result)) == (True, UNKNOWN_BEFORE)
        wait_for(lambda: "subscriptions" in str(first.get("/health").json()))
        with subscribed(first.url) as here, subscribed(second.url) as there:
            first.call("change")
            assert received(here) == CHANGES
            assert there.empty()
            store.start()
            wait_for(lambda: "subscriptions" not in str(second.get("/health").json()))
            assert use(first, "other") == "true"
            first.call("change")
            assert (received(here), received(there)) == (CHANGES, CHANGES)


def test_a_redis_that_hangs_fails_closed(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(tools, redis_url=store.url) as server:
        monkeypatch.setattr(replicas_redis, "TIMEOUT_SECONDS", 0.2)
        store.hang()
        try:
            assert text_of(server.call("use", {"key": "key"})) == UNKNOWN_BEFORE
        finally:
            store.resume()


def test_a_connection_without_answer_is_made_again(store: Store, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas_redis, "SILENCE_SECONDS", 0.2)
    with serve(tools, redis_url=store.url) as first, serve(tools, redis_url=store.url) as second:
        store.hang()
        wait_for(lambda: "subscriptions" in str(second.get("/health").json()))
        store.resume()
        wait_for(lambda: "subscriptions" not in str(second.get("/health").json()))
        with subscribed(second.url) as there:
            first.call("change")
            assert received(there) == CHANGES


@pytest.mark.parametrize("data", ["", "[]", "7", '{"origin": "x"}', '{"origin": "x", "kind": "Made up", "uri": null}'])
def test_a_message_that_is_no_event_is_ignored(store: Store, serve: Serve, data: str) -> None:
    with (
        serve(tools, redis_url=store.url) as first,
        serve(tools, redis_url=store.url) as second,
        subscribed(second.url) as there,
        store.client() as client,
    ):
        assert client.publish(f"{HASH_TAG}events", data) == 2
        first.call("change")
        assert received(there) == CHANGES


def test_change_events_are_advertised_where_they_are_shared(store: Store, serve: Serve) -> None:
    beyond: dict[str, Any] = {"host": "0.0.0.0", "auth": "none"}  # noqa: S104 (nothing listens there)
    with serve(tools, **beyond, redis_url=store.url) as server:
        content, headers = modern("server/discover")
        result = result_of(server.client.post(server.url, json=content, headers=headers))
        assert result["capabilities"]["resources"] == {"listChanged": True, "subscribe": True}


async def test_the_check_says_whether_redis_answers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(redis_url=store.url, rate_limit_backend="memory")
    lines, _ = await startup.check(create_server(settings))
    assert any(line.startswith("redis") and " ok: " in line for line in lines)
    await asyncio.to_thread(store.kill)
    monkeypatch.setattr(replicas_redis, "TIMEOUT_SECONDS", 0.1)
    lines, ready = await startup.check(create_server(settings))
    assert any(line.startswith("redis") and "failed: " in line for line in lines)
    assert not ready


def test_a_wrong_url_is_one_line_and_no_url_a_notice() -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(redis_url="http://user:pass@redis"))
    (problem,) = caught.value.problems
    assert problem.startswith("REDIS_URL: not the URL of a Redis server")
    notices = create_server(config(redis_url=None)).registry.notices
    assert "REDIS_URL is not set: used keys and change events stay within each process" in notices
