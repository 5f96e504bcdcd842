"""Requests per day and at the same time over replicas: exact, in one round trip, and free again after a kill."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from harness import DEADLINE_SECONDS, HEADERS, NO_TLS, config, http_process, message, running, text_of, wait_for
from quota_model import AgainstModel
from rate_limit_model import DAY
from store import Store, running_store
from test_rate_limit_tiers import register
from weather_station.production.config import about
from weather_station.production.inbound.caller_quota import Demand, LocalLimits
from weather_station.production.inbound.caller_quota_redis import SharedLimits
from weather_station.production.inbound.rate_limit import MICROSECONDS, LocalBuckets, Rate
from weather_station.production.inbound.rate_limit_redis import SharedBuckets
from weather_station.production.registry import Registry
from weather_station.production.sdk import ProductionServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="PyPI has no Redis server for Windows")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with running_store() as running:
        yield running


def shared(store: Store) -> SharedLimits:
    """Return the limits of one replica, which waits for Redis however busy the machine is."""
    buckets = SharedBuckets(Rate(1, MICROSECONDS), store.url, "server", timeout=DEADLINE_SECONDS)
    return SharedLimits(Registry(config(), about()), buckets, LocalLimits(LocalBuckets()))


def test_two_replicas_together_do_what_the_model_does(store: Store) -> None:
    with store.client() as client:

        class Here(AgainstModel):
            def __init__(self) -> None:
                super().__init__()
                client.flushall()
                self.loop = asyncio.Runner()
                self.replicas = [shared(store), shared(store)]

            async def admit(self, demand: Demand) -> Any:
                return await self.replicas[int(demand.request_id) % 2].admit(demand)

            def day_passes(self) -> None:
                for key in client.keys("*:day:*"):
                    day, used = client.get(key).split()
                    client.set(key, f"{int(day) - 1} {used}", keepttl=True)

            def lose(self, caller: str, request_id: str) -> None:
                key = f"{{server}}:rate_limit:running:{caller}"
                at = client.zscore(key, request_id)
                assert at > (time.time() + 3500) * MICROSECONDS
                client.zadd(key, {request_id: at - 2 * 3600 * MICROSECONDS})

            def teardown(self) -> None:
                for replica in self.replicas:
                    self.loop.run(replica._store.close())
                self.loop.close()

        run_state_machine_as_test(Here, settings=settings(max_examples=25, stateful_step_count=25))


async def test_many_callers_at_two_replicas_get_exactly_their_limits(store: Store) -> None:
    with store.client() as client:
        client.flushall()
    replicas = [shared(store), shared(store)]

    async def admitted(caller: int) -> tuple[int, int]:
        rate = Rate(1000, DAY * MICROSECONDS)
        demand = [
            Demand(f"c{caller}", f"c{caller}", 1 + number % 3, rate, 50 + caller, 0, str(number), 60)
            for number in range(80)
        ]
        taken = await asyncio.gather(*(replicas[number % 2].admit(each) for number, each in enumerate(demand)))
        return caller, sum(each.cost for each, outcome in zip(demand, taken, strict=True) if outcome.reason is None)

    for caller, total in await asyncio.gather(*map(admitted, range(16))):
        assert total == 50 + caller
    running = [Demand("c", "c", 1, Rate(1000, DAY * MICROSECONDS), 0, 7, f"r{number}", 60) for number in range(40)]
    taken = await asyncio.gather(*(replicas[number % 2].admit(each) for number, each in enumerate(running)))
    assert sum(outcome.reason is None for outcome in taken) == 7
    for replica in replicas:
        await replica._store.close()


async def test_a_request_is_one_round_trip(store: Store) -> None:
    replica = shared(store)
    await replica.admit(Demand("x", "x", 1, Rate(1000, MICROSECONDS), 100, 100, "first", 60))
    with store.client() as client:
        before = client.info("commandstats")
        await replica.admit(Demand("x", "x", 1, Rate(1000, MICROSECONDS), 100, 100, "second", 60))
        after = client.info("commandstats")
    assert after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"] == 1
    await replica._store.close()


def waits(server: ProductionServer) -> None:
    """Register a tool that never ends, and one that does."""

    @server.tool()
    async def hangs() -> str:
        await asyncio.Event().wait()
        return "never"

    @server.tool()
    async def quick() -> str:
        return "done"


def call(base: str, tool: str) -> dict[str, Any]:
    with httpx2.Client(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:
        content = message("tools/call", {"name": tool, "arguments": {}})
        answer: dict[str, Any] = client.post(f"{base}/mcp", json=content, headers=HEADERS).json()["result"]
    return answer


def test_the_places_of_a_killed_replica_are_free_after_timeout_and_grace(store: Store) -> None:
    with store.client() as client:
        client.flushall()
    limits = {
        "REDIS_URL": store.url,
        "MAX_CONCURRENT_PER_CALLER": 2,
        "TOOL_TIMEOUT_SECONDS": 3,
        "SHUTDOWN_GRACE_SECONDS": 1,
        "AUTH": "none",
        "ENABLE_METRICS": "false",
    }
    tools = "test_caller_quota_redis:waits"
    with http_process(tools, **limits) as one, http_process(tools, **limits) as other, store.client() as client:
        assert call(other.base, "quick").get("isError") is False
        threads = [threading.Thread(target=ignore, args=(one.base,), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        [name] = wait_for_places(client, 2)
        one.signal(signal.SIGKILL)
        one.status()
        rejected = call(other.base, "quick")
        if client.zcount(name, time.time() * MICROSECONDS, "+inf") == 2:  # on a slow machine they may be free by now
            assert "This caller has 2 requests running" in text_of(rejected)
        wait_for(lambda: call(other.base, "quick").get("isError") is False)


TIERS = {"public": 7, "internal": 23, "": 12}
"""What callers of each tier may have; those without one have the general limit."""

BY_TIER = {
    "permits": {"RATE_LIMIT_REQUESTS": 12, "RATE_LIMIT_TIERS": f"public=7/{DAY},internal=23/{DAY}"},
    "requests per day": {
        "RATE_LIMIT_REQUESTS": 1000,
        "RATE_LIMIT_DAILY": 12,
        "RATE_LIMIT_DAILY_TIERS": "public=7,internal=23",
    },
}


def patient(server: ProductionServer) -> None:
    """Register tools of several costs, and wait for Redis however busy the machine is."""
    register(server)
    limiter = server.registry.middleware["rate_limit"]
    limiter.store._timeout = DEADLINE_SECONDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("limits", BY_TIER.values(), ids=BY_TIER)
async def test_32_callers_at_two_servers_get_exactly_what_their_tiers_permit(
    store: Store, limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setenv(name, str(value))
    permits = limits["RATE_LIMIT_REQUESTS"]
    chosen = config(redis_url=store.url, rate_limit_window_seconds=DAY, rate_limit_requests=permits)
    costs = {"dear": 5, "cheap": 1}
    with store.client() as redis, running(chosen, patient) as one, running(chosen, patient) as other:
        redis.flushall()
        redis.config_resetstat()
        async with httpx2.AsyncClient(timeout=DEADLINE_SECONDS, trust_env=False, verify=NO_TLS) as client:

            async def cost_of(number: int, tier: str, index: int, tool: str) -> int:
                url = (one, other)[(index + number) % 2].url
                content = message("tools/call", {"name": tool, "arguments": {}})
                headers = HEADERS | {"x-caller": f"caller {number},{tier}"}
                result = (await client.post(url, json=content, headers=headers)).json()["result"]
                return 0 if result["isError"] else costs[tool]

            async def spent(number: int, tier: str) -> int:
                tools = ["dear", "cheap", "dear", "cheap", "dear", "cheap", *["cheap"] * 21]
                return sum(await asyncio.gather(*(cost_of(number, tier, *call) for call in enumerate(tools))))

            callers = [(number, [*TIERS][number % 3]) for number in range(32)]
            found = await asyncio.gather(*(spent(*caller) for caller in callers))
        scripts = redis.info("commandstats")["cmdstat_evalsha"]
    assert found == [TIERS[tier] for _, tier in callers]
    assert scripts["calls"] - scripts["failed_calls"] == 32 * 27, "one round trip a call, beside the first ones"


def ignore(base: str) -> None:
    try:
        call(base, "hangs")
    except (httpx2.HTTPError, KeyError):
        return


def wait_for_places(client: Any, number: int) -> list[str]:
    """Wait until so many requests run, and return the names of the sets of places."""
    found: list[str] = []

    def running() -> bool:
        found[:] = client.keys("*:running:*")
        return sum(int(client.zcard(key)) for key in found) == number

    wait_for(running)
    return found
