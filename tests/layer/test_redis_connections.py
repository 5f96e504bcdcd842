"""`REDIS_URL`: one server, Sentinel or a cluster, and passwords with any character."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from redis.asyncio import Redis

from store import running_store
from weather_station.production import redis_connections
from weather_station.production.config import ConfigError

PASSWORDS = ("pa[rt]", "a@b", "a:b/c?d#e", "50%", "%", "p w", "ü€", "100%25", "\\\"'`", "[::1]")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("place", ["h:7/2", "h", "[::1]:7/2?socket_timeout=3"])
def test_a_password_may_have_any_character(password: str, place: str) -> None:
    made = redis_connections.pool(f"redis://user:{password}@{place}", "tag").connection_kwargs
    assert (made["username"], made["password"]) == ("user", password.replace("%25", "%"))
    assert made["host"] in ("h", "::1")


@pytest.mark.parametrize("password", PASSWORDS)
def test_sentinel_and_cluster_take_the_same_passwords(password: str) -> None:
    for url in (f"redis+sentinel://:{password}@a,b:5/main/3", f"rediss+cluster://:{password}@a,b:5"):
        made = redis_connections.pool(url, "tag")
        assert made.connection_kwargs["password"] == password.replace("%25", "%")
        parsed = redis_connections.parse(url)
        assert parsed.hosts == (("a", {"sentinel": 26379, "cluster": 6379}[parsed.kind]), ("b", 5))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://a/main", {"kind": "sentinel", "master": "main", "hosts": (("a", 26379),)}),
        ("REDIS+SENTINEL://[::1],[::2]:5/ma%20in/1", {"master": "ma in", "hosts": (("::1", 26379), ("::2", 5))}),
        (
            "redis+sentinel://a/m?sentinel_username=s&sentinel_password=t",
            {"sentinel_login": {"username": "s", "password": "t"}},
        ),
        ("redis+cluster://a:1/", {"kind": "cluster", "hosts": (("a", 1),)}),
        ("rediss://a", {"kind": "", "hosts": ()}),
    ],
)
def test_the_parts_of_a_url(url: str, expected: Mapping[str, object]) -> None:
    parsed = redis_connections.parse(url)._asdict()
    assert {name: parsed[name] for name in expected} == expected


@pytest.mark.parametrize(
    "url",
    [
        "mysql://:{secret}@h",
        "{secret}",
        "redis://:{secret}@h:port",
        "redis://:{secret}@h/0?{secret}=1",
        "redis+sentinel://:{secret}@a:1",
        "redis+sentinel://:{secret}@a:70000/main",
        "redis+sentinel://:{secret}@,a/main",
        "redis+sentinel://:{secret}@a/main?sentinel_{secret}=1",
        "redis+cluster://:{secret}@a/0",
        "redis+cluster://:{secret}@a?sentinel_password={secret}",
        "redis+proxy://:{secret}@a",
        "unix+cluster://:{secret}@a?{secret}=1",
    ],
)
def test_a_wrong_url_is_explained_without_a_part_of_it(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        redis_connections.pool(url.replace("{secret}", "hunter2"), "tag")
    assert str(raised.value).startswith("REDIS_URL: ")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("options", ["", "?socket_timeout=5&socket_connect_timeout=5"])
async def test_a_task_that_waits_for_redis_ends_when_it_is_cancelled(options: str) -> None:
    """Whatever it waits for at that moment: a connection, the sending of its command, or the reply."""
    with running_store() as store:
        client = Redis(connection_pool=redis_connections.pool(f"{store.url}{options}", "tag"))
        cancelled = 0
        for steps in range(20):
            for _ in range(20):
                command = asyncio.ensure_future(client.set("key", "value"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if command.cancel():
                    await asyncio.wait([command])
                    assert command.cancelled()
                    cancelled += 1
        assert cancelled > 20
        await client.aclose()
        await client.connection_pool.disconnect()
