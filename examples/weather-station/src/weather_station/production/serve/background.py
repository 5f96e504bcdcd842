"""Jobs that the server runs at intervals, such as the refresh of a cache: measured, and finished before it stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Literal

import structlog
from opentelemetry import trace

from ..registry import Registry, Server, registry_of
from ..request import is_own_failure
from ..upstream.errors import UpstreamError

BUCKETS = (0.01, 0.1, 1.0, 10.0, 60.0, 600.0)
"""Upper bounds in seconds of a run's duration."""

FINISH_SECONDS = 4.0
"""Seconds after which a stopping server cancels a run: less than the five that each shutdown callback has."""

_tracer = trace.get_tracer(__name__)

log = structlog.stdlib.get_logger(__name__)


def every(
    server: Server,
    seconds: float,
    job: Callable[[], Awaitable[object]],
    *,
    name: str | None = None,
    replicas: Literal["one", "all"] = "one",
    without_redis: Literal["none", "all"] = "none",
) -> None:
    """Run `await job()` while the server runs: at its start, and `seconds` after the start of each run.

    Runs do not overlap; one that takes longer than `seconds` is followed at once by the next. A failure is logged, and
    the next run starts on schedule. Where replicas share a Redis, one of them runs the job, and another takes over when
    it is gone; a job that fills the memory of its process needs `replicas="all"`.

    Args:
        server: The server, in `register`.
        seconds: Interval between the starts of two runs.
        job: May use `upstream(server)`, and `run` of a dependency.
        name: Name for the metrics and the log, the function's own by default.
        replicas: Which replicas run the job where they share a Redis: `one` of them, or `all`.
        without_redis: Which replicas run a job of `one` replica while Redis does not answer: `none`, or `all`.

    Raises:
        ValueError: `seconds` is not positive, or a job has the name already.
    """
    registry = registry_of(server)
    name = name or str(getattr(job, "__name__", "job"))
    if not seconds > 0:
        raise ValueError(f"the interval of the job {name!r} must be more than 0 seconds")
    if name in registry.jobs:
        raise ValueError(f"a job named {name!r} runs already: give one of them another name")
    registry.jobs.add(name)
    made = Job(registry, name, seconds, job, all_replicas=replicas == "all", all_without_redis=without_redis == "all")
    registry.on_startup.append(made.start)
    registry.on_shutdown.append(made.stop)


class Job:
    """A job of one server."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        seconds: float,
        job: Callable[[], Awaitable[object]],
        *,
        all_replicas: bool,
        all_without_redis: bool,
    ) -> None:
        self._registry = registry
        self._name = name
        self._seconds = seconds
        self._job = job
        self._lease = None if all_replicas else registry.lease
        self._all_without_redis = all_without_redis
        # Prometheus itself sets the label `job`, to the name of the server.
        self._runs = registry.meter.counter(
            "mcp_background_runs_total", "Runs of the owner's jobs, by outcome.", ("job_name", "outcome")
        )
        for outcome in ("success", "error"):
            self._runs(name, outcome)
        self._duration = registry.meter.histogram(
            "mcp_background_run_seconds", "Duration of the runs of the owner's jobs.", ("job_name",), buckets=BUCKETS
        )(name)
        self._loops: list[asyncio.Task[None]] = []
        """The task of each running server; each in-process test client adds one."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._outage = False
        """Whether Redis did not answer the last time."""

    async def start(self) -> None:
        self._loops.append(asyncio.get_running_loop().create_task(self._repeat(), name=f"every {self._name}"))

    async def stop(self) -> None:
        """Let a running job finish, for at most `FINISH_SECONDS`, and start no other."""
        if not self._loops:
            return
        loop = self._loops.pop()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), FINISH_SECONDS)
        loop.cancel()
        await asyncio.wait([loop])
        if self._lease is not None and not self._outage:
            await self._lease(self._name, 0)  # another replica need not wait for its end

    async def _repeat(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._registry.draining:
            due = loop.time() + self._seconds
            if await self._runs_here() and not self._registry.draining:
                await self._run()
            await asyncio.sleep(max(0.0, due - loop.time()))

    async def _runs_here(self) -> bool:
        """Return whether this replica runs the job in this interval."""
        if self._lease is None:
            return True
        # Twice the interval: the replica with the lease renews it in time, and another takes over when that is gone.
        has_lease = await self._lease(self._name, 2 * self._seconds)
        if (has_lease is None) is not self._outage:
            self._outage = has_lease is None
            if self._outage:
                runs = "on every replica" if self._all_without_redis else "on no replica"
                log.warning("redis does not answer: the job runs " + runs, job=self._name)
            else:
                log.info("redis answers again: the job runs on one replica", job=self._name)
        return self._all_without_redis if has_lease is None else has_lease

    async def _keep_lease(self) -> None:
        while self._lease is not None:
            await asyncio.sleep(self._seconds / 2)
            await self._lease(self._name, 2 * self._seconds)

    async def _run(self) -> None:
        task = asyncio.current_task()
        started = perf_counter()
        outcome = "error"
        self._idle.clear()
        keeping = asyncio.create_task(self._keep_lease())
        try:
            with _tracer.start_as_current_span(self._name, record_exception=False):
                await self._job()
            outcome = "success"
        except BaseException as error:
            if not is_own_failure(error, task):
                outcome = "cancelled"
                raise
            if isinstance(error, UpstreamError):  # its text is complete: no traceback
                log.warning("background job failed", job=self._name, reason=str(error))
            else:
                log.error("background job failed", job=self._name, exc_info=error)
        finally:
            keeping.cancel()
            self._idle.set()
            self._runs(self._name, outcome).inc()
            self._duration.observe(perf_counter() - started)
