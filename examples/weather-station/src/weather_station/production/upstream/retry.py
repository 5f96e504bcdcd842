"""Retries of transient failures, where repeating is safe and within the deadline, with full jitter."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache, wraps
from random import SystemRandom
from typing import ParamSpec, TypeVar

import httpx2
import structlog
from opentelemetry import trace

from ..config import ProductionConfig
from ..observe.meter import Meter
from ..registry import CallContext, Registry, Server, registry_of
from .client import UpstreamCallNext, UpstreamRequest
from .errors import UpstreamError, ungrouped

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.stdlib.get_logger(__name__)
_random = SystemRandom()


def install(registry: Registry) -> None:
    retries = Retries(registry.config, registry.meter)
    registry.upstream.middleware["retry"] = retries.middleware
    registry.upstream.retry = retries.run


def retry(
    where: Server | CallContext, name: str, *, on: type[Exception] | tuple[type[Exception], ...]
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Return a decorator that retries an async function, such as a database query, as requests to the upstream are.

    No attempt starts later than `REQUEST_TIMEOUT_SECONDS` after the first one. A running attempt is interrupted by
    `TOOL_TIMEOUT_SECONDS` only. Where retries are switched off, the function is not changed.

    Args:
        where: The server, or the context of a call.
        name: Name of the dependency for the metric, the log and the span.
        on: Exceptions after which repeating the function is safe. An `UpstreamError` decides with its `may_retry`
            instead, so that an open circuit ends the retries. Every exception of a group has to allow it.
    """
    registry = registry_of(where)
    if not registry.config.enable_retries:
        return lambda function: function
    retries = Retries(registry.config, registry.meter)

    def may_retry(error: BaseException) -> bool:
        return error.may_retry if isinstance(error, UpstreamError) else isinstance(error, on)

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(function)
        async def retried(*args: P.args, **kwargs: P.kwargs) -> T:
            deadline = asyncio.get_running_loop().time() + registry.config.request_timeout_seconds
            return await retries.run(lambda: function(*args, **kwargs), name, may_retry, deadline)

        return retried

    return decorate


class Retries:
    """The configured retry policy."""

    def __init__(self, config: ProductionConfig, meter: Meter) -> None:
        self.max_retries = config.max_retries
        self.delay_seconds = config.retry_delay_seconds
        self.max_delay_seconds = config.retry_max_delay_seconds
        documentation = "Attempts that followed a failed one."
        self._counter = cache(meter.counter("mcp_upstream_retries_total", documentation, ("host",)))

    async def middleware(self, request: UpstreamRequest, call_next: UpstreamCallNext) -> httpx2.Response:
        def may_retry(error: BaseException) -> bool:
            return isinstance(error, UpstreamError) and error.may_retry

        return await self.run(lambda: call_next(request), request.host_label, may_retry, request.deadline)

    async def run(
        self,
        attempt: Callable[[], Awaitable[T]],
        name: str,
        may_retry: Callable[[BaseException], bool],
        deadline: float,
    ) -> T:
        """Await `attempt()` until it succeeds, must not be repeated, or has no time for a retry before the deadline.

        Args:
            attempt: Makes one attempt.
            name: Name of the dependency for the metric, the log and the span.
            may_retry: Returns whether another attempt can succeed and is safe after an exception that is not a group.
            deadline: Time on the event loop's clock.

        Raises:
            Exception: the exception of the last attempt.
        """
        counter = self._counter(name)
        failed_attempts = 0
        while True:
            try:
                return await attempt()
            except Exception as error:
                failed_attempts += 1
                causes = ungrouped(error)
                retry_after = 0.0
                for cause in causes:
                    if isinstance(cause, UpstreamError):
                        retry_after = max(retry_after, cause.retry_after or 0.0)
                        if cause.may_retry:
                            cause.attempts = failed_attempts
                if failed_attempts > self.max_retries or not all(map(may_retry, causes)):
                    raise
                wait = self.wait_seconds(failed_attempts, retry_after)
                if asyncio.get_running_loop().time() + wait >= deadline:
                    raise
                counter.inc()
                _record_retry(name, failed_attempts, wait, causes[0])
            await asyncio.sleep(wait)

    def wait_seconds(self, failed_attempts: int, retry_after: float | None) -> float:
        """Return the seconds until the next attempt: with full jitter, but at least `retry_after`.

        Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
        """
        ceiling = min(self.max_delay_seconds, self.delay_seconds * 2.0 ** (failed_attempts - 1))
        return max(_random.uniform(0, ceiling), retry_after or 0.0)


def _record_retry(name: str, failed_attempts: int, wait: float, error: BaseException) -> None:
    """Log the retry and add it to the span."""
    # The text of another exception could contain a connection string or a query.
    reason = error.problem if isinstance(error, UpstreamError) else type(error).__name__
    log.warning("retrying", host=name, failed_attempts=failed_attempts, wait_seconds=round(wait, 3), reason=reason)
    trace.get_current_span().add_event(
        "upstream.retry",
        {
            "server.address": name,
            "error.type": type(error).__name__,
            "retry.failed_attempts": failed_attempts,
            "retry.wait_seconds": wait,
        },
    )
