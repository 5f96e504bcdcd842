"""Count and log of requests and connections that are rejected before they reach the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import structlog
from starlette.requests import Request
from starlette.types import Scope

from ..caller import Caller, peer_caller
from .meter import Meter
from .throttle import Throttle

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
    """Counts rejections, and logs at most one per `LOG_INTERVAL_SECONDS` with the number of those left out before.

    Args:
        meter: Declares the metric.
        identify: Returns the caller of a request, for the log: its address, behind the trusted proxies.
    """

    def __init__(self, meter: Meter, identify: Callable[[Request | None], Caller] = peer_caller) -> None:
        rejections = meter.counter(
            "mcp_http_rejections_total", "HTTP requests and connections rejected before an MCP request.", ("reason",)
        )
        self._counters = {reason: rejections(reason) for reason in get_args(Reason)}
        self._identify = identify
        self._throttle = Throttle(1, lambda suppressed: log.warning("requests rejected", suppressed=suppressed))

    def __call__(self, reason: Reason, text: str, scope: Scope, **context: Any) -> None:
        """Record one rejection.

        Args:
            reason: The metric's label.
            text: What is wrong, for the log.
            scope: The request, as far as it is known.
            context: Further fields for the log.
        """
        self._counters[reason].inc()
        suppressed = self._throttle.admit()
        if suppressed is not None:
            client_id = self._identify(Request(scope)).id
            log.warning("request rejected", reason=text, suppressed=suppressed, client_id=client_id, **context)
