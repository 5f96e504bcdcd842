"""Count and log of requests and connections that are rejected before they reach the pipeline."""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

import structlog

from .meter import Meter

LOG_INTERVAL_SECONDS = 10.0
"""Least time between two log lines about rejected requests, so that many requests do not flood the log."""

Reason = Literal[
    "body",
    "connections",
    "forbidden",
    "head",
    "host",
    "limited",
    "malformed",
    "media_type",
    "origin",
    "timeout",
    "unauthenticated",
    "unavailable",
]

log = structlog.stdlib.get_logger(__name__)


class Rejections:
    """Counts rejections, and logs at most one per `LOG_INTERVAL_SECONDS` with the number of those left out before."""

    def __init__(self, meter: Meter) -> None:
        rejections = meter.counter(
            "mcp_http_rejections_total", "HTTP requests and connections rejected before an MCP request.", ("reason",)
        )
        self._counters = {reason: rejections(reason) for reason in get_args(Reason)}
        self._held_back = 0
        self._next_line = 0.0

    def __call__(self, reason: Reason, text: str, **context: Any) -> None:
        """Record one rejection; `text` says for the log what is wrong, and `context` has further fields."""
        self._counters[reason].inc()
        now = time.monotonic()
        if now < self._next_line:
            self._held_back += 1
            return
        log.warning("request rejected", reason=text, held_back=self._held_back, **context)
        self._held_back, self._next_line = 0, now + LOG_INTERVAL_SECONDS
