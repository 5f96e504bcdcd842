"""Dependencies beside the upstream API, such as a database, which are opened and closed with the server.

`Dependency.run` has what a request to the upstream has: a deadline, retries, a circuit breaker, the `mcp_upstream_*`
series with the dependency's name as the host, a client span, and an error for the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Generic, TypeVar, cast

import structlog
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from ..config import StartError
from ..registry import CallContext, Probe, Registry, Server, registry_of
from .attempts import attempt_metrics
from .errors import (
    RETRY_LATER,
    UpstreamConnectError,
    UpstreamError,
    UpstreamInterruptedError,
    UpstreamTimeoutError,
    Verdict,
    ungrouped,
)

R = TypeVar("R")
T = TypeVar("T")

METHOD = "run"
"""The label `method` of the series."""

_tracer = trace.get_tracer(__name__)

log = structlog.stdlib.get_logger(__name__)


class Dependency(Generic[T]):
    """A dependency of one server, made by `dependency`."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        *,
        opened_by: Callable[[], Awaitable[T]],
        close: Callable[[T], Awaitable[object]],
        ping: Callable[[T], Awaitable[object]],
        failures: tuple[type[Exception], ...],
        required: bool,
    ) -> None:
        self.name = name
        self.opened_by = opened_by
        self._registry = registry
        self._close = close
        self._ping = ping
        self._failures = failures
        self._required = required
        self._record = attempt_metrics(registry.meter)
        self._opened: list[T] = []
        """The open value, or nothing."""
        self._opening = asyncio.Lock()
        self._users = 0
        """Number of running servers; each in-process test client starts one."""

    @property
    def value(self) -> T:
        """What `open` returned, for use without deadline, retries and circuit breaker.

        Raises:
            UpstreamConnectError: the dependency is not open.
        """
        if not self._opened:
            raise self._unreachable()
        return self._opened[0]

    async def run(self, operation: Callable[[T], Awaitable[R]], *, repeatable: bool = False) -> R:
        """Return `await operation(value)`.

        An attempt takes at most `ATTEMPT_TIMEOUT_SECONDS`, all attempts `REQUEST_TIMEOUT_SECONDS`. A dependency that is
        not open is opened first. Exceptions that are no failures of the dependency pass unchanged.

        Args:
            operation: Uses the dependency.
            repeatable: Whether `operation` may run again after it failed: it only reads, or has the same effect twice.

        Raises:
            CircuitOpenError: the dependency has failed repeatedly.
            UpstreamError: it failed, could not be opened, or took too long. The model gets the text.
        """
        deadline = asyncio.get_running_loop().time() + self._registry.config.request_timeout_seconds

        async def attempt() -> R:
            return await self._admitted_attempt(operation, repeatable, deadline)

        try:
            if self._registry.upstream.retry is None:
                return await attempt()
            return cast("R", await self._registry.upstream.retry(attempt, self.name, self._may_retry, deadline))
        except UpstreamError as error:
            if self._is_own(error):
                log_error = log.warning if error.verdict is Verdict.FAILURE else log.info
                reason = type(error.__cause__).__name__ if error.__cause__ else error.problem
                log_error("dependency failed", host=self.name, reason=reason, attempts=error.attempts)
            raise

    async def ping(self) -> None:
        """Check that the dependency works, without retries and without circuit breaker.

        Raises:
            Exception: it does not work.
        """
        await self._ping(await self._value())

    async def start(self) -> None:
        """Startup callback: open the dependency.

        Raises:
            StartError: it cannot be opened, and is required.
        """
        self._users += 1
        if self._users > 1:
            return
        self._opening = asyncio.Lock()  # of this event loop
        try:
            await self.run(self._ping, repeatable=True)
        except UpstreamError as error:
            if self._required:
                cause = error.__cause__ or error
                reason = f"{type(cause).__name__}: {cause}".removesuffix(": ")
                raise StartError(f"cannot start: {self.name} does not work: {reason}") from error

    async def stop(self) -> None:
        """Shutdown callback: close the dependency."""
        self._users -= 1
        if self._users == 0 and self._opened:
            await self._close(self._opened.pop())

    def _may_retry(self, error: BaseException) -> bool:
        return isinstance(error, UpstreamError) and self._is_own(error) and error.may_retry

    def _is_own(self, error: UpstreamError) -> bool:
        """Return whether an error is this dependency's, and not of a request that the operation makes elsewhere."""
        return error.host == self.name

    async def _admitted_attempt(self, operation: Callable[[T], Awaitable[R]], repeatable: bool, deadline: float) -> R:
        """Make one attempt, if the circuit admits it."""
        if self._registry.upstream.circuit is None:
            return await self._measured_attempt(operation, repeatable, deadline)
        circuit = self._registry.upstream.circuit(self.name)
        generation = circuit.admit()
        verdict = Verdict.NEUTRAL
        try:
            result = await self._measured_attempt(operation, repeatable, deadline)
            verdict = Verdict.SUCCESS
            return result
        except UpstreamError as error:
            verdict = error.verdict if self._is_own(error) else Verdict.NEUTRAL
            raise
        finally:
            circuit.record(generation, verdict)

    async def _measured_attempt(self, operation: Callable[[T], Awaitable[R]], repeatable: bool, deadline: float) -> R:
        """Make one attempt, with its metrics and its span."""
        started = perf_counter()
        outcome = "exception"
        with _tracer.start_as_current_span(
            self.name,
            kind=SpanKind.CLIENT,
            attributes={"server.address": self.name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                result = await self._attempt(operation, repeatable, deadline)
                outcome = "success"
                return result
            except UpstreamError as error:
                outcome = error.outcome if self._is_own(error) else outcome
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", type(error.__cause__ or error).__name__)
                raise
            except asyncio.CancelledError:
                outcome = "cancelled"
                raise
            finally:
                self._record(self.name, METHOD, outcome, perf_counter() - started)

    async def _attempt(self, operation: Callable[[T], Awaitable[R]], repeatable: bool, deadline: float) -> R:
        config = self._registry.config
        now = asyncio.get_running_loop().time()
        ends = min(now + config.attempt_timeout_seconds, deadline)
        advice = RETRY_LATER if repeatable else "It may have been carried out: check before trying again."
        try:
            async with asyncio.timeout_at(ends):
                try:
                    value = await self._value()
                except Exception as error:
                    raise self._unreachable() from error
                return await operation(value)
        except TimeoutError as error:
            seconds = config.request_timeout_seconds if ends == deadline else config.attempt_timeout_seconds
            # If little time was left before the deadline, the timeout does not show that the dependency failed.
            brief = ends - now < min(config.attempt_timeout_seconds, config.request_timeout_seconds) / 2
            raise UpstreamTimeoutError(
                f"{self.name} did not answer within {seconds:g} s",
                advice,
                host=self.name,
                may_retry=repeatable,
                verdict=Verdict.NEUTRAL if brief else Verdict.FAILURE,
            ) from error
        except UpstreamError:
            raise
        except Exception as error:
            if not any(isinstance(single, self._failures) for single in ungrouped(error)):
                raise
            raise UpstreamInterruptedError(
                f"{self.name} failed", advice, host=self.name, may_retry=repeatable, verdict=Verdict.FAILURE
            ) from error

    async def _value(self) -> T:
        """Return the open value; calls that find none wait for one of them to open it."""
        if not self._opened:
            async with self._opening:
                if not self._opened:
                    self._opened.append(await self.opened_by())
        return self._opened[0]

    def _unreachable(self) -> UpstreamConnectError:
        return UpstreamConnectError(
            f"{self.name} cannot be reached", RETRY_LATER, host=self.name, may_retry=True, verdict=Verdict.FAILURE
        )


def dependency(
    where: Server | CallContext,
    name: str,
    *,
    open: Callable[[], Awaitable[T]],  # noqa: A002 (the word that goes with close and ping)
    close: Callable[[T], Awaitable[object]],
    ping: Callable[[T], Awaitable[object]],
    failures: type[Exception] | tuple[type[Exception], ...] = OSError,
    required: bool = True,
) -> Dependency[T]:
    """Declare a dependency in `register`; in a call, return the declared one.

    `--check` and the health report ping it.

    Args:
        where: The server, or the context of a call.
        name: Name of the dependency, for the metrics, the log, the span, and the model.
        open: Returns the value, such as a pool of connections, which replaces broken connections itself.
        close: Closes the value after the last call, within five seconds.
        ping: Raises if the dependency does not work.
        failures: Exceptions that mean that the dependency failed; a `TimeoutError` always does. Others, such as for a
            duplicate key, pass unchanged.
        required: Whether the server is useless without it: it does not start, and is not ready, while the dependency
            fails. Otherwise the server is degraded meanwhile, and the next use tries to open it.

    Raises:
        ValueError: another dependency has the name.
        RuntimeError: the server runs already, so that it is too late for a declaration.
    """
    registry = registry_of(where)
    declared = registry.upstream.dependencies.get(name)
    if isinstance(declared, Dependency):
        if _definition(declared.opened_by) != _definition(open):
            raise ValueError(f"a dependency named {name!r} is declared already, with another function to open it")
        return cast("Dependency[T]", declared)
    if registry.running:
        raise RuntimeError(f"the dependency {name!r} is not declared: call dependency() in register(server)")
    if name in registry.health.checks:
        raise ValueError(f"a readiness check named {name!r} is registered already")
    kinds = failures if isinstance(failures, tuple) else (failures,)
    made = Dependency(registry, name, opened_by=open, close=close, ping=ping, failures=kinds, required=required)
    registry.upstream.dependencies[name] = made
    registry.on_startup.append(made.start)
    registry.on_shutdown.append(made.stop)
    registry.health.checks[name] = made.ping
    if not required:
        registry.health.degrading.add(name)
    registry.health.probes[name] = Probe(name, made.ping)
    return made


def _definition(function: Callable[..., Any]) -> object:
    """Return an object that identifies the definition of a function, which may run several times."""
    return getattr(function, "__code__", function)
