"""Count and log of requests and connections that are rejected before they reach the pipeline."""

from __future__ import annotations

from typing import Any, Literal, get_args

import structlog
from starlette.requests import Request
from starlette.types import Scope

from ..registry import Registry
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
    """Counts and audits rejections, and logs at most one per `LOG_INTERVAL_SECONDS` with the number of the others."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        rejections = registry.meter.counter(
            "mcp_http_rejections_total", "HTTP requests and connections rejected before an MCP request.", ("reason",)
        )
        self._counters = {reason: rejections(reason) for reason in get_args(Reason)}
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
        if self._registry.audit is not None:
            fields = {"error_type": reason, "reason": text, **context}
            self._registry.audit.record("http", "rejected", Request(scope), **fields)
        suppressed = self._throttle.admit()
        if suppressed is not None:
            client_id = self._registry.identify(Request(scope)).id
            log.warning("request rejected", reason=text, suppressed=suppressed, client_id=client_id, **context)
