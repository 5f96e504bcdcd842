"""Limits by tier, cost and tenant on running servers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.requests import Request

from harness import HAS_METRICS, HEADERS, LEGACY, MODERN, Running, Serve, config, message, modern, text_of
from weather_station.production import policy
from weather_station.production.caller import Caller
from weather_station.production.config import ConfigError
from weather_station.production.policy import MAX_COST
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

DAY = 86_400
both_generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


def register(server: ProductionServer) -> None:
    """Add tools of several costs; the caller is the one that the header X-Caller describes: id, tier and tenant."""

    def identify(request: Request | None) -> Caller:
        assert request is not None
        name, tier, tenant = (request.headers.get("x-caller", "") + ",,").split(",")[:3]
        return Caller(name, subject=name, tier=tier or None, tenant=tenant or None)

    server.registry.identify = identify

    @server.tool()
    async def cheap() -> str:
        return "done"

    @policy(cost=5)
    @server.tool()
    async def dear() -> str:
        return "done"


def call(server: Running, version: str, caller: str, tool: str) -> dict[str, Any]:
    params = {"name": tool, "arguments": {}}
    content, headers = (message("tools/call", params), HEADERS) if version == LEGACY else modern("tools/call", params)
    response = server.client.post(server.url, json=content, headers={**headers, "x-caller": caller})
    result: dict[str, Any] = response.json()["result"]
    return result


def admitted(server: Running, version: str, caller: str, tool: str, calls: int) -> int:
    """Return how many of `calls` calls are admitted."""
    return sum(not call(server, version, caller, tool).get("isError") for _ in range(calls))


def limits(**settings: Any) -> dict[str, Any]:
    return {"rate_limit_requests": 12, "rate_limit_window_seconds": DAY, "redis_url": None, **settings}


@both_generations
def test_a_request_takes_the_permits_of_its_cost(serve: Serve, version: str) -> None:
    with serve(register, **limits()) as server:
        assert admitted(server, version, "a", "dear", 4) == 2
        result = call(server, version, "a", "dear")
        wait = result["_meta"]["retry_after_seconds"]
        assert text_of(result) == (
            f"Rate limit exceeded. 2 requests remaining. Try again in {wait} seconds. "
            f"This request counts as 5 of 12 in {DAY} seconds."
        )
        assert 3 * DAY / 12 - 60 < wait <= 3 * DAY / 12
        assert result["_meta"]["remaining"] == 2
        assert admitted(server, version, "a", "cheap", 4) == 2
        assert text_of(call(server, version, "a", "cheap")).startswith("Rate limit exceeded. 0 requests remaining. Try")


@both_generations
def test_each_tier_has_its_own_limit(serve: Serve, version: str) -> None:
    tiers = f"public=3/{DAY},internal=20/{DAY}"
    with serve(register, **limits(rate_limit_tiers=tiers)) as server:
        for caller, permitted in (("a,public", 3), ("b,internal", 20), ("c", 12), ("d,other", 12), ("e,public", 3)):
            assert admitted(server, version, caller, "cheap", 22) == permitted
        result = call(server, version, "f,public", "dear")
        assert text_of(result) == (
            f"Rate limit exceeded. This request counts as 5 of 3 in {DAY} seconds. It is never admitted."
        )
        assert "retry_after_seconds" not in result["_meta"]
        if HAS_METRICS:
            found = server.metrics().series("mcp_limit_rejections_total")
            assert {dict(labels)["tier"]: value for labels, value in found.items()} == {
                "public": 19 + 19 + 1,
                "internal": 2,
                "default": 10 + 10,
            }


@both_generations
def test_the_callers_of_a_tenant_share_a_limit_by_setting(serve: Serve, version: str) -> None:
    with serve(register, **limits(rate_limit_key="tenant")) as server:
        assert admitted(server, version, "a,,acme", "cheap", 8) == 8
        assert admitted(server, version, "b,,acme", "cheap", 8) == 4
        assert admitted(server, version, "acme", "cheap", 13) == 12
        assert admitted(server, version, "tenant:acme", "cheap", 13) == 12
    with serve(register, **limits()) as server:
        assert admitted(server, version, "a,,acme", "cheap", 13) == 12
        assert admitted(server, version, "b,,acme", "cheap", 13) == 12


def test_the_health_tool_reports_the_limit_of_the_tier(serve: Serve) -> None:
    with serve(register, **limits(rate_limit_tiers=f"internal=20/{DAY // 2}")) as server:
        call(server, LEGACY, "a,internal", "dear")
        fields = call(server, LEGACY, "a,internal", "health_check")["structuredContent"]["rate_limit"]
        assert fields == {"remaining": 14, "window_seconds": DAY // 2}


@pytest.mark.parametrize(
    "tiers", ["public", "public=0/60", "public=60", "=1/1", "public=1/86401", "public=9999999999/1", "a=1/1,a=2/1"]
)
def test_a_mistake_in_the_tiers_stops_the_start(tiers: str) -> None:
    with pytest.raises(ConfigError, match="RATE_LIMIT_TIERS"):
        create_server(config(rate_limit_tiers=tiers))


@pytest.mark.parametrize("cost", [0, -1, MAX_COST + 1, 1.5, "5", True])
def test_a_cost_is_a_positive_integer(cost: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="cost"):
        policy(cost=cost)


def test_the_messages_of_a_tier_are_limited_by_its_own_permits(serve: Serve) -> None:
    tiers = limits(rate_limit_requests=2, rate_limit_tiers=f"big=30/{DAY},small=1/{DAY}")
    with serve(register, **tiers) as server:
        assert admitted(server, LEGACY, "alice,big", "cheap", 35) == 30
        for caller, messages in (("bob,small", 10), ("carol", 20)):
            answers = [
                server.client.post(server.url, json=message("ping"), headers={**HEADERS, "x-caller": caller}).json()
                for _ in range(messages + 5)
            ]
            assert sum("result" in answer for answer in answers) == messages
