"""Microseconds that each middleware adds to a call, in process: without a socket, the protocol and a tool.

Runs in the environment of a generated project: `python micro.py PACKAGE [REDIS_URL]`. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from importlib import import_module
from statistics import median
from types import SimpleNamespace
from typing import Any

import uvloop
from starlette.requests import Request

PACKAGE = sys.argv[1]
REDIS_URL = sys.argv[2] if len(sys.argv) > 2 else None
CALLS, REPEATS = 5000, 9

OFF = {
    f"enable_{name}": False
    for name in ("logging", "metrics", "rate_limiting", "telemetry", "retries", "circuit_breaker")
}
FEATURES: dict[str, dict[str, Any]] = {
    "errors": {},
    "timeout": {},
    "drain": {},
    "logging": {"enable_logging": True, "log_format": "json"},
    "metrics": {"enable_metrics": True},
    "rate_limit": {"enable_rate_limiting": True},
}
SCOPE = {"type": "http", "method": "POST", "path": "/mcp", "headers": [], "client": ("127.0.0.1", 50000)}


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


async def nothing(request: Any) -> None: ...


async def per_call(step: Any, request: Any, calls: int = CALLS) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        await step(request)
    return (time.perf_counter() - started) / calls * 1e6


async def above_nothing(step: Any, request: Any, calls: int = CALLS) -> float:
    """Return the median of the differences to an empty coroutine, measured in turns."""
    differences = []
    for _ in range(REPEATS):
        empty = await per_call(nothing, request, calls)
        differences.append(await per_call(step, request, calls) - empty)
    return median(differences)


async def measure() -> dict[str, float]:
    context: Any = SimpleNamespace(params={"name": "add", "arguments": {"a": 2, "b": 3}})
    caller = load("caller").Caller("client")
    call = {"method": "tools/call", "target": "add", "target_label": "add", "policy": load("policy").NO_POLICY}
    seen = {"context": context, "caller": caller, "request_id": "0123456789abcdef"}
    request = load("request").MCPRequest(**call, **seen, task=asyncio.current_task(), call_sdk=nothing)
    pipeline = load("inbound.pipeline")
    always_there = {"errors": pipeline.errors, "timeout": pipeline.timeout(60.0)}
    results = {}
    for name, settings in FEATURES.items():
        middleware = (always_there | server(**settings).registry.middleware)[name]
        results[name] = await above_nothing(lambda r, middleware=middleware: middleware(r, nothing), request)
    everything = {name: value for settings in FEATURES.values() for name, value in settings.items()}
    for name, settings in (("pipeline, every feature off", {}), ("pipeline, all but telemetry", everything)):
        registry = server(**settings).registry
        middleware = always_there | registry.middleware
        step = load("request").compose(pipeline.ORDER, middleware, nothing)
        results[name] = await above_nothing(step, request)
    results |= await upstream()
    results["identify the caller by address"] = identify()
    if REDIS_URL:
        redis_server = server(enable_rate_limiting=True, redis_url=REDIS_URL)
        middleware = redis_server.registry.middleware["rate_limit"]
        async with redis_server.running():
            await middleware(request, nothing)
            await asyncio.sleep(1.1)  # after a slow first connection the limiter does not use Redis for a second
            results["rate_limit, Redis (one round trip)"] = await above_nothing(
                lambda r: middleware(r, nothing), request, 500
            )
    return results | known_clients()


async def upstream() -> dict[str, float]:
    """Measure the middleware of the upstream client around an attempt that succeeds."""
    parts = server(enable_retries=True, enable_circuit_breaker=True).registry.upstream
    host = "api.example.com"
    request = load("upstream.client").UpstreamRequest(None, host, host, deadline=1e12, repeatable=True)
    results = {}
    for name in ("retry", "circuit_breaker"):
        middleware = parts.middleware[name]
        results[f"upstream {name}, success"] = await above_nothing(
            lambda r, middleware=middleware: middleware(r, nothing), request
        )
    return results


def identify() -> float:
    registry = server(enable_rate_limiting=True).registry
    request = Request(SCOPE)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(CALLS):
            registry.identify(request)
        times.append((time.perf_counter() - started) / CALLS * 1e6)
    return median(times)


def known_clients() -> dict[str, float]:
    """Measure a hit of the limiter beside other clients that it remembers."""
    limits = load("inbound.rate_limit")
    results = {}
    for clients in (1, 1_000, 100_000, 1_000_000):
        buckets = limits.Buckets(limits.Rate(10**9, 60 * 10**6))
        names = [f"client-{number}" for number in range(clients)]
        for name in names:
            buckets.spend(name)
        times = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            for _ in range(20_000):
                buckets.spend("client-0")
            times.append((time.perf_counter() - started) / 20_000 * 1e6)
        results[f"limiter hit, {clients:,} clients seen"] = median(times)
    return results


# Log lines are discarded: what is measured is the cost of making them.
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
print(json.dumps(uvloop.run(measure())))
