"""Microseconds that each link of the chain adds to a call, in process: no socket, no protocol, no tool.

Runs in the generated project's environment: `python micro.py PACKAGE [REDIS_URL]`; prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib import import_module
from statistics import median
from typing import Any

import uvloop

PACKAGE = sys.argv[1]
REDIS_URL = sys.argv[2] if len(sys.argv) > 2 else None
CALLS, REPEATS = 5000, 9

OFF = {f"enable_{name}": False for name in ("logging", "metrics", "rate_limiting", "telemetry")}
FEATURES: dict[str, dict[str, Any]] = {
    "errors": {},
    "timeout": {},
    "drain": {},
    "logging": {"enable_logging": True, "log_format": "json"},
    "metrics": {"enable_metrics": True},
    "rate_limit": {"enable_rate_limiting": True},
}


def load(name: str) -> Any:
    return import_module(f"{PACKAGE}.production.{name}")


def server(**settings: Any) -> Any:
    base = {
        "rate_limit_requests": 10**9,
        "port": 0,
        "metrics_port": None,
        "enable_metrics_tool": False,
        "auth_tokens": None,
    }
    config = load("config").ProductionConfig(**(base | OFF | settings))
    return import_module(f"{PACKAGE}.server").create_server(config)


async def nothing(call: Any) -> None: ...


async def per_call(step: Any, call: Any, calls: int = CALLS) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        await step(call)
    return (time.perf_counter() - started) / calls * 1e6


async def above_nothing(step: Any, call: Any, calls: int = CALLS) -> float:
    """Median of the differences to an empty coroutine, measured in turns."""
    differences = []
    for _ in range(REPEATS):
        plain = await per_call(nothing, call, calls)
        differences.append(await per_call(step, call, calls) - plain)
    return median(differences)


async def measure() -> dict[str, float]:
    call = load("chain").Call("add", "add", {"a": 2, "b": 3}, None, "client", "0123456789abcdef")
    found = {}
    for name, settings in FEATURES.items():
        link = server(**settings).production.links[name]
        found[name] = await above_nothing(lambda call, link=link: link(call, nothing), call)
    chain = load("chain")
    for name, settings in (
        ("chain, every feature off", {}),
        ("chain, all but telemetry", {k: v for part in FEATURES.values() for k, v in part.items()}),
    ):
        whole = chain.compose(server(**settings).production.links, nothing)
        found[name] = await above_nothing(whole, call)
    if REDIS_URL:
        made = server(enable_rate_limiting=True, redis_url=REDIS_URL)
        link = made.production.links["rate_limit"]
        async with made.running():
            await link(call, nothing)
            await asyncio.sleep(1.1)  # had the first connection taken too long, Redis would be left alone for a second
            found["rate_limit, Redis (one round trip)"] = await above_nothing(
                lambda call: link(call, nothing), call, 500
            )
    return found | known_clients()


def known_clients() -> dict[str, float]:
    """A hit of the limiter beside so many other clients."""
    limits = load("rate_limit")
    found = {}
    for clients in (1, 1_000, 100_000, 1_000_000):
        buckets = limits.Buckets(limits.Quota(10**9, 60 * 10**6))
        names = [f"client-{number}" for number in range(clients)]
        for name in names:
            buckets.spend(name)
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            for _ in range(20_000):
                buckets.spend("client-0")
            times.append((time.perf_counter() - started) / 20_000 * 1e6)
        found[f"limiter hit, {clients:,} clients seen"] = median(times)
    return found


# Log lines go nowhere: what is left is the cost of making them.
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
print(json.dumps(uvloop.run(measure())))
