"""An upstream that keeps failing is left alone for a while, then probed by as few requests as configured.

Transitions are plain assignments without an await between a check and its consequence, so that the bounds hold under
any number of concurrent calls of one event loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import httpx2
import structlog
from mcp.server.mcpserver import Context, MCPServer

from .app import App, HealthPart, production_of
from .client import UpstreamError, UpstreamNext, UpstreamRequest, seconds_text

P = ParamSpec("P")
T = TypeVar("T")
State = Literal["closed", "half_open", "open"]

STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""In the order of their values in `mcp_circuit_state`."""

PROBING_SECONDS = 1.0
"""When to come back while probes are under way; their end cannot be known."""

log = structlog.stdlib.get_logger(__name__)


class CircuitOpenError(UpstreamError):
    """Nothing was sent, because too many requests in a row have failed; `retry_after` is when the next may be."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(
            f"Service temporarily unavailable: {name} has failed repeatedly",
            f"Try again in {seconds_text(retry_after)}.",
            host=name,
            retry_after=retry_after,
        )


class CircuitBreaker:
    """One circuit: closed, open or half-open.

    Every transition starts an era. A call belongs to the era that admitted it, and what comes of it counts in no
    other one.

    Args:
        name: What is behind it.
        failure_threshold: Consecutive failures that open it.
        recovery_timeout: Seconds from the opening to the first probe.
        half_open_requests: Probes at once, and successes that close it.
        clock: Monotonic seconds.
        on_transition: Gets the new state, once for each transition.
    """

    def __init__(
        self,
        name: str,
        *,
        failure_threshold: int,
        recovery_timeout: float,
        half_open_requests: int,
        clock: Callable[[], float] = time.monotonic,
        on_transition: Callable[[State], None] = lambda state: None,
    ) -> None:
        self.name = name
        self.state: State = "closed"
        self._failure_threshold = failure_threshold
        self._recovery_timeout = recovery_timeout
        self._half_open_requests = half_open_requests
        self._clock = clock
        self._on_transition = on_transition
        self._era = 0
        self._failures = 0
        self._opened_at = 0.0
        self._probes = 0
        self._successes = 0

    def admit(self) -> int:
        """Lets a call pass and returns its era, which `record` needs when the call has ended, however it ended.

        Raises:
            CircuitOpenError: it must not pass.
        """
        if self.state == "closed":
            return self._era
        if self.state == "open":
            left = self.seconds_left()
            if left > 0:
                raise CircuitOpenError(self.name, left)
            self._enter("half_open")
        if self._probes + self._successes >= self._half_open_requests:
            raise CircuitOpenError(self.name, PROBING_SECONDS)
        self._probes += 1
        return self._era

    def record(self, era: int, failed: bool | None) -> None:
        """What came of a call of `era`; None if it says nothing, as when the call was cancelled."""
        if era != self._era:
            return
        if self.state == "half_open":
            self._probes -= 1
            if failed:
                self._enter("open")
            elif failed is False:
                self._successes += 1
                if self._successes == self._half_open_requests:
                    self._enter("closed")
        elif failed:
            self._failures += 1
            if self._failures == self._failure_threshold:
                self._enter("open")
        elif failed is False:
            self._failures = 0

    def seconds_left(self) -> float:
        """How long an open circuit stays shut; 0 or less if its next call is a probe."""
        return self._opened_at + self._recovery_timeout - self._clock()

    def _enter(self, state: State) -> None:
        self.state = state
        self._era += 1
        self._failures = self._probes = self._successes = 0
        if state == "open":
            self._opened_at = self._clock()
        self._on_transition(state)


class Circuits:
    """The circuits of one server by name, each with its gauge, counters and log; called, it is the upstream's link."""

    def __init__(self, app: App) -> None:
        self._config = app.config
        self._state = app.meter.gauge(
            "mcp_circuit_state", "State of the circuit: 0 closed, 1 half-open, 2 open.", ("host",)
        )
        self._transitions = app.meter.counter(
            "mcp_circuit_transitions_total", "Changes of a circuit's state, by the new state.", ("host", "state")
        )
        self._circuits: dict[str, CircuitBreaker] = {}

    async def __call__(self, request: UpstreamRequest, following: UpstreamNext) -> httpx2.Response:
        circuit = self._circuits.get(request.group) or self.circuit(request.group)
        era = circuit.admit()
        failed: bool | None = None
        try:
            response = await following(request)
            failed = False
        except UpstreamError as error:
            failed = error.outage
            raise
        finally:
            circuit.record(era, failed)
        return response

    def circuit(self, name: str) -> CircuitBreaker:
        """The circuit of that name, made at the first use."""
        found = self._circuits.get(name)
        if found is None:
            found = self._circuits[name] = CircuitBreaker(
                name,
                failure_threshold=self._config.circuit_failure_threshold,
                recovery_timeout=self._config.circuit_recovery_timeout,
                half_open_requests=self._config.circuit_half_open_requests,
                on_transition=self._listener(name),
            )
        return found

    async def health(self, client_id: str) -> HealthPart:
        """Degraded while a circuit is not closed; readiness stays as it is."""
        return HealthPart(
            degraded=tuple(
                f"circuit {name} is {circuit.state.replace('_', '-')}"
                for name, circuit in self._circuits.items()
                if circuit.state != "closed"
            )
        )

    def _listener(self, name: str) -> Callable[[State], None]:
        gauge = self._state(name)
        gauge.set(STATES.index("closed"))
        counters = {state: self._transitions(name, state) for state in STATES}

        def changed(state: State) -> None:
            gauge.set(STATES.index(state))
            counters[state].inc()
            report = log.warning if state == "open" else log.info
            report("circuit changed", host=name, state=state)

        return changed


class CircuitGuard:
    """Puts calls of anything behind a circuit: `async with guard:`, or `@guard` on an async function."""

    def __init__(self, circuit: CircuitBreaker, failures: type[Exception] | tuple[type[Exception], ...]) -> None:
        self._circuit = circuit
        self._failures = failures
        self._eras: dict[asyncio.Task[Any] | None, list[int]] = {}
        """Of the blocks that tasks are in, the innermost last."""

    async def __aenter__(self) -> None:
        era = self._circuit.admit()
        self._eras.setdefault(asyncio.current_task(), []).append(era)

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        task = asyncio.current_task()
        if task not in self._eras:  # an async generator, closed by another task than the one that began it
            task = next(iter(self._eras))
        eras = self._eras[task]
        era = eras.pop()
        if not eras:
            del self._eras[task]
        self._circuit.record(era, self._failed(error))

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self:
                return await function(*args, **kwargs)

        return guarded

    def _failed(self, error: BaseException | None) -> bool | None:
        if error is None:
            return False
        if isinstance(error, UpstreamError):
            return error.outage
        return True if isinstance(error, self._failures) else None


def install(app: App) -> None:
    circuits = Circuits(app)
    app.upstream_links["circuit_breaker"] = circuits
    app.health.append(circuits.health)


def circuit_breaker(
    where: MCPServer[Any] | Context[Any, Any],
    name: str,
    *,
    failures: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> CircuitGuard:
    """The circuit `name` of this server, as an async context manager and a decorator of async functions.

    It has the configured numbers, and shows in the metrics, the log and `/health` as an upstream host's does. A timeout
    belongs inside it: one outside cancels the call, which says nothing about what is behind the circuit. Where circuit
    breakers are switched off, it lets every call pass.

    Args:
        where: The server, or the context of a call.
        name: What is behind it; the same name is the same circuit.
        failures: Exceptions that say that it is down. Any other neither opens nor closes the circuit.

    Raises:
        CircuitOpenError: on entry, while the circuit is open.
    """
    circuits = production_of(where).upstream_links.get("circuit_breaker")
    if not isinstance(circuits, Circuits):
        return CircuitGuard(_always_closed(name), failures)
    return CircuitGuard(circuits.circuit(name), failures)


def _always_closed(name: str) -> CircuitBreaker:
    return CircuitBreaker(name, failure_threshold=sys.maxsize, recovery_timeout=1, half_open_requests=1)
