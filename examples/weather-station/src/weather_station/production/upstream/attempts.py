"""Metrics of the attempts to get a response from an upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

import httpx2

from ..observe.meter import Counter, Histogram, Meter
from .client import METHODS, OTHER, UpstreamCallNext, UpstreamMiddleware, UpstreamRequest
from .errors import UpstreamError

LATENCY_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds."""


Record = Callable[[str, str, str, float], None]
"""Gets the labels `host`, `method` and `outcome` of an attempt, and its duration in seconds."""


def attempt_metrics(meter: Meter) -> Record:
    """Return the function that records attempts."""
    requests = meter.counter(
        "mcp_upstream_requests_total",
        "Attempts to get a response from an upstream, by outcome.",
        ("host", "method", "outcome"),
    )
    latency = meter.histogram(
        "mcp_upstream_latency_seconds",
        "Duration of attempts in seconds, including the response body.",
        ("host",),
        buckets=LATENCY_BUCKETS,
    )
    children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def record(host: str, method: str, outcome: str, seconds: float) -> None:
        key = (host, method, outcome)
        if key not in children:
            children[key] = (requests(*key), latency(host))
        count, duration = children[key]
        count.inc()
        duration.observe(seconds)

    return record


def recorder(meter: Meter) -> UpstreamMiddleware:
    """Return upstream middleware that records each attempt."""
    record = attempt_metrics(meter)

    async def middleware(request: UpstreamRequest, call_next: UpstreamCallNext) -> httpx2.Response:
        started = perf_counter()
        outcome = "error"
        try:
            response = await call_next(request)
            outcome = f"{response.status_code // 100}xx"
            return response
        except UpstreamError as error:
            outcome = error.outcome if error.status is None else f"{error.status // 100}xx"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            method = request.http.method
            label = method if method in METHODS else OTHER
            record(request.host_label, label, outcome, perf_counter() - started)

    return middleware
