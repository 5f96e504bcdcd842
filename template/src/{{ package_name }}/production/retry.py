"""What failed for the moment is tried again: only where that is safe, never past the deadline, spread out in time.

stamina does the waiting; one hook here decides whether to try again, and after how long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from random import SystemRandom
from typing import Any, ParamSpec, TypeVar

import httpx2
import stamina
import structlog
from mcp.server.mcpserver import Context, MCPServer
from opentelemetry import trace
from stamina.instrumentation import RetryDetails, RetryHook, get_on_retry_hooks, set_on_retry_hooks

from .app import App, production_of
from .client import UpstreamError, UpstreamNext, UpstreamRequest
from .meter import Counter

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)
_random = SystemRandom()


def install(app: App) -> None:
    _leave_own_retries_to_us()
    app.upstream_links["retry"] = Retries(app)


def retry(
    where: MCPServer[Any] | Context[Any, Any], name: str, *, on: type[Exception] | tuple[type[Exception], ...]
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """A decorator that retries an async function, such as a database query, as the upstream's requests are retried.

    No attempt starts later than `REQUEST_TIMEOUT_SECONDS` after the first one; only `TOOL_TIMEOUT_SECONDS`
    interrupts one. Where retries are switched off, the function stays as it is.

    Args:
        where: The server, or the context of a call.
        name: What is asked, for the metric, the log and the span.
        on: After which exceptions to try again; the function must be safe to repeat after each of them. An
            `UpstreamError` decides for itself, so that an open circuit ends the retrying.
    """
    retries = production_of(where).upstream_links.get("retry")
    if not isinstance(retries, Retries):
        return lambda function: function

    def worth_it(error: Exception) -> bool:
        return error.may_retry if isinstance(error, UpstreamError) else isinstance(error, on)

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(function)
        async def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            return await retries.run(lambda: function(*args, **kwargs), name, worth_it, retries.deadline())

        return retried

    return decorate


class Retries:
    """How one server retries; called, it is the link of the upstream's client."""

    def __init__(self, app: App) -> None:
        config = app.config
        self.max_retries = config.max_retries
        self.delay_seconds = config.retry_delay_seconds
        self.max_delay_seconds = config.retry_max_delay_seconds
        self._total_seconds = config.request_timeout_seconds
        self._family = app.meter.counter(
            "mcp_upstream_retries_total", "Attempts that followed a failed one.", ("host",)
        )
        self._counters: dict[str, Counter] = {}

    async def __call__(self, request: UpstreamRequest, following: UpstreamNext) -> httpx2.Response:
        def worth_it(error: Exception) -> bool:
            return isinstance(error, UpstreamError) and error.may_retry

        return await self.run(lambda: following(request), request.group, worth_it, request.deadline)

    async def run(
        self, attempt: Callable[[], Awaitable[T]], name: str, worth_it: Callable[[Exception], bool], deadline: float
    ) -> T:
        """Awaits `attempt()` until it succeeds, is not worth another try, or the deadline leaves no time for one."""
        if name not in self._counters:
            self._counters[name] = self._family(name)
        failures = 0

        def decide(error: Exception) -> bool | float:
            nonlocal failures
            failures += 1
            retry_after = None
            if isinstance(error, UpstreamError):
                retry_after = error.retry_after
                if error.may_retry:
                    error.attempts = failures
            if failures > self.max_retries or not worth_it(error):
                return False
            wait = self.wait_seconds(failures, retry_after)
            if asyncio.get_running_loop().time() + wait >= deadline:
                return False
            self._report(name, failures, wait, error)
            return wait

        try:
            return await attempt()
        except Exception as error:
            first = error
        # stamina takes over only now: it costs more than all the rest, and most requests succeed at once.
        async for turn in stamina.retry_context(on=decide, attempts=None, timeout=None):
            with turn:
                if turn.num == 1:
                    raise first
                return await attempt()
        raise AssertionError("stamina neither returned nor raised")

    def deadline(self) -> float:
        """The end of a request that starts now, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._total_seconds

    def wait_seconds(self, failures: int, retry_after: float | None) -> float:
        """Full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter"), but never less than Retry-After."""
        ceiling = min(self.max_delay_seconds, self.delay_seconds * 2.0 ** (failures - 1))
        return max(_random.uniform(0, ceiling), retry_after or 0.0)

    def _report(self, name: str, failures: int, wait: float, error: Exception) -> None:
        _reported.set(id(error))
        self._counters[name].inc()
        # The text of other exceptions may hold what they were given: a connection string, a query.
        reason = error.problem if isinstance(error, UpstreamError) else type(error).__name__
        log.warning("trying again", host=name, failed_attempts=failures, wait_seconds=round(wait, 3), reason=reason)
        trace.get_current_span().add_event(
            "upstream.retry",
            {
                "server.address": name,
                "error.type": type(error).__name__,
                "retry.failed_attempts": failures,
                "retry.wait_seconds": wait,
            },
        )


_reported: ContextVar[int] = ContextVar("_reported", default=0)
"""The exception, by its id, whose retry this module has just reported."""


@dataclass(frozen=True)
class _OfOthers:
    """One of stamina's own reports, for all retries of this process but those that are reported here."""

    hook: RetryHook

    def __call__(self, details: RetryDetails) -> AbstractContextManager[None] | None:
        return None if _reported.get() == id(details.caused_by) else self.hook(details)


def _leave_own_retries_to_us() -> None:
    """stamina has one list of reports for the process, and would log each retry once more.

    The list cannot be avoided, so it is kept as it is for every other user of stamina.
    """
    hooks = get_on_retry_hooks()
    set_on_retry_hooks([hook if isinstance(hook, _OfOthers) else _OfOthers(hook) for hook in hooks])
