"""Single use in one process: true exactly once for each key until it expires, with bounded memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp.server.mcpserver import Context, MCPServer

from clocks import Clock
from harness import Serve, text_of
from weather_station.production import UpstreamError, once
from weather_station.production.inbound.single_use import SingleUseError, UsedKeys
from weather_station.production.sdk import ProductionServer


def add_use(server: ProductionServer) -> None:
    @server.tool()
    async def use(key: str, ctx: Context[Any, Any], seconds: float = 3600) -> bool:
        return await once(ctx, key, seconds=seconds)


async def test_of_simultaneous_calls_one_is_the_first() -> None:
    used = UsedKeys()
    first = await asyncio.gather(*(used.first_use("once", "key", 60) for _ in range(100)))
    assert sorted(first) == [False] * 99 + [True]
    assert await used.first_use("once", "\ud83d", 60)


async def test_a_key_is_new_again_when_it_has_expired_and_in_another_purpose() -> None:
    clock = Clock(0)
    used = UsedKeys(clock=clock)
    assert await used.first_use("once", "short", 1)
    assert await used.first_use("once", "long", 10)
    assert await used.first_use("other", "short", 10)
    clock.now = 1
    assert await used.first_use("once", "short", 1)
    assert not await used.first_use("once", "long", 10)
    assert not await used.first_use("other", "short", 10)
    clock.now = 10
    assert await used.first_use("once", "long", 10)


async def test_with_too_many_keys_a_new_one_fails_and_no_used_one_is_forgotten() -> None:
    clock = Clock(0)
    used = UsedKeys(max_keys=3, clock=clock)
    assert [await used.first_use("once", str(number), 10) for number in range(3)] == [True] * 3
    with pytest.raises(SingleUseError):
        await used.first_use("once", "3", 10)
    assert [await used.first_use("once", str(number), 10) for number in range(3)] == [False] * 3
    assert await used.first_use("other", "3", 10)
    clock.now = 10
    assert await used.first_use("once", "3", 10)


def test_a_tool_uses_a_key_once(serve: Serve) -> None:
    with serve(add_use) as server:
        for key in ("order-7", "", "x" * 100_000):
            assert [text_of(server.call("use", {"key": key})) for _ in range(2)] == ["true", "false"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
async def test_a_lifetime_must_be_positive(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        await once(MCPServer("other"), "key", seconds=seconds)


def test_an_owner_catches_it_as_an_upstream_error() -> None:
    assert issubclass(SingleUseError, UpstreamError)
