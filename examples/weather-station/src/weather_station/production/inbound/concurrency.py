"""Concurrency limits: the requests of one tool, resource or prompt that run at the same time in this process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable

from ..registry import Registry
from ..request import TOOLS_CALL, CallNext, MCPRequest, Result, reject

RETRY_AFTER_SECONDS = 1
"""Seconds after which a rejected request should be sent again; a running one may end at any time."""


def install(registry: Registry) -> None:
    """Reject requests beyond the `concurrency` of their target's policy."""
    registry.policy_fields.add("concurrency")
    running: defaultdict[tuple[str, str], int] = defaultdict(int)

    def middleware(request: MCPRequest, call_next: CallNext) -> Awaitable[Result]:
        limit = request.policy.concurrency
        return call_next(request) if limit is None else limited(request, call_next, limit)

    async def limited(request: MCPRequest, call_next: CallNext, limit: int) -> Result:
        key = (request.method, request.target_label)
        if running[key] >= limit:
            what = f"Tool {request.target}" if request.method == TOOLS_CALL else request.target or request.method
            text = (
                f"Concurrency limit exceeded. {what} handles {limit} requests at a time. "
                f"Try again in {RETRY_AFTER_SECONDS} seconds."
            )
            return reject(request, "ConcurrencyLimited", text, retry_after_seconds=RETRY_AFTER_SECONDS, limit=limit)
        running[key] += 1
        try:
            return await call_next(request)
        finally:
            running[key] -= 1

    registry.middleware["concurrency"] = middleware
