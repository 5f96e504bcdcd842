"""Circuit breakers: after consecutive failures requests are rejected for a time, then a few test requests are admitted.

Failures of one caller open a circuit for that caller only: what it requests can be the only thing that fails.

A check and the transition that follows from it have no `await` between them, so that the limits hold for any number of
concurrent calls in one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import httpx2
import structlog

from ..caller import current_caller
from ..config import ProductionConfig
from ..observe.meter import Meter
from ..registry import CallContext, HealthPart, Registry, Server, registry_of
from ..request import current_request
from .client import Circuit, UpstreamCallNext, UpstreamRequest
from .errors import UpstreamError, Verdict, seconds_text, ungrouped

P = ParamSpec("P")
T = TypeVar("T")
State = Literal["closed", "half_open", "open"]

STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""Each state's index is its value in `mcp_circuit_state`."""

HALF_OPEN_RETRY_SECONDS = 1.0
"""The `retry_after` of a call that is rejected while test requests run; when they will end is unknown."""

log = structlog.stdlib.get_logger(__name__)


class CircuitOpenError(UpstreamError):
    """The circuit admits no request, so none was sent. It may admit one after `retry_after` seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(
            f"Service temporarily unavailable: {name} has failed repeatedly",
            f"Try again in {seconds_text(retry_after)}.",
            host=name,
            retry_after=retry_after,
        )


class CircuitBreaker:
    """One circuit: closed, open or half-open.

    Every transition starts a new generation. The verdict of an attempt counts only in the generation that admitted it.
    A circuit that only one caller's failures have opened admits all other callers, until one of their attempts fails.

    Args:
        name: Name of the dependency.
        failure_threshold: Failed calls without a success between them that open the circuit.
        recovery_timeout: Seconds from opening to the first test request.
        half_open_requests: Number of concurrent test requests, and of successes that close the circuit.
        clock: Monotonic seconds.
        on_transition: Gets the new state after each transition.
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
        self._generation = 0
        self._failed: dict[object, str] = {}
        """The caller of each call that failed since the last success."""
        self._rejected_caller: str | None = None
        """The only caller that an open or half-open circuit rejects; `None` for all."""
        self._opened_at = 0.0
        self._test_requests = 0
        self._successes = 0

    def admit(self, caller: str = "") -> int:
        """Admit an attempt of a caller, and return the generation to pass to `record` when the attempt has ended.

        It is negative for a caller that an open circuit does not reject: its success does not count, its failure opens
        the circuit for all.

        Raises:
            CircuitOpenError: the circuit is open, or all test requests of a half-open circuit are running.
        """
        if self.state == "closed":
            return self._generation
        if self._rejected_caller not in (None, caller):
            return -self._generation
        if self.state == "open":
            remaining = self.seconds_left()
            if remaining > 0:
                raise CircuitOpenError(self.name, remaining)
            self._enter("half_open")
        if self._test_requests + self._successes >= self._half_open_requests:
            raise CircuitOpenError(self.name, HALF_OPEN_RETRY_SECONDS)
        self._test_requests += 1
        return self._generation

    def record(self, generation: int, verdict: Verdict, caller: str = "", call: object = None) -> None:
        """Count the verdict of an attempt.

        Args:
            generation: What `admit` returned.
            verdict: The outcome.
            caller: The caller that was admitted.
            call: Id of the call that the attempt belongs to: all attempts of a call are one failure. `None` if it
                belongs to no call.
        """
        if self.state != "closed" and generation == -self._generation:
            if verdict is Verdict.FAILURE:
                self._open(None)
        elif generation != self._generation:
            return
        elif self.state == "half_open":
            self._test_requests -= 1
            if verdict is Verdict.FAILURE:
                self._open(self._rejected_caller if caller == self._rejected_caller else None)
            elif verdict is Verdict.SUCCESS:
                self._successes += 1
                if self._successes == self._half_open_requests:
                    self._enter("closed")
        elif verdict is Verdict.SUCCESS:
            self._failed.clear()
        elif verdict is Verdict.FAILURE:
            self._failed.setdefault(object() if call is None else call, caller)
            if len(self._failed) == self._failure_threshold:
                callers = set(self._failed.values())
                self._open(callers.pop() if len(callers) == 1 else None)

    def seconds_left(self) -> float:
        """Return the seconds until an open circuit admits a test request; 0 or less if it does now."""
        return self._opened_at + self._recovery_timeout - self._clock()

    def _open(self, caller: str | None) -> None:
        """Open the circuit for one caller, or for all."""
        self._rejected_caller = caller
        self._opened_at = self._clock()
        self._enter("open")

    def _enter(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._test_requests = self._successes = 0
        self._failed.clear()
        self._on_transition(state)


class Circuits:
    """The circuits of one server by name, with their metrics and log."""

    def __init__(self, config: ProductionConfig, meter: Meter) -> None:
        self._config = config
        self._state = meter.gauge(
            "mcp_circuit_state", "State of the circuit: 0 closed, 1 half-open, 2 open.", ("host",)
        )
        self._transitions = meter.counter(
            "mcp_circuit_transitions_total", "Changes of a circuit's state, by the new state.", ("host", "state")
        )
        self._circuits: dict[str, CircuitBreaker] = {}

    async def middleware(self, request: UpstreamRequest, call_next: UpstreamCallNext) -> httpx2.Response:
        circuit = self.circuit(request.host_label)
        caller = _caller_id()
        generation = circuit.admit(caller)
        verdict = Verdict.NEUTRAL
        try:
            response = await call_next(request)
            verdict = Verdict.SUCCESS
        except UpstreamError as error:
            verdict = error.verdict
            raise
        finally:
            circuit.record(generation, verdict, caller, _call_id() or request.id)
        return response

    def circuit(self, name: str) -> CircuitBreaker:
        """Return the circuit of that name; the first use creates it."""
        circuit = self._circuits.get(name)
        if circuit is None:
            circuit = self._circuits[name] = CircuitBreaker(
                name,
                failure_threshold=self._config.circuit_failure_threshold,
                recovery_timeout=self._config.circuit_recovery_timeout,
                half_open_requests=self._config.circuit_half_open_requests,
                on_transition=self._transition_recorder(name),
            )
        return circuit

    async def health(self, caller_id: str) -> HealthPart:
        """Report as degraded that a circuit is not closed; which one is in the log and the metrics."""
        states = {circuit.state for circuit in self._circuits.values()}
        return HealthPart(degraded=tuple(f"circuit_{state}" for state in sorted(states - {"closed"})))

    def _transition_recorder(self, name: str) -> Callable[[State], None]:
        gauge = self._state(name)
        gauge.set(STATES.index("closed"))
        counters = {state: self._transitions(name, state) for state in STATES}

        def record(state: State) -> None:
            gauge.set(STATES.index(state))
            counters[state].inc()
            log_transition = log.warning if state == "open" else log.info
            log_transition("circuit changed", host=name, state=state)

        return record


class CircuitGuard:
    """A circuit as a context manager (`async with guard:`) and as a decorator of async functions (`@guard`)."""

    def __init__(self, circuit: Circuit, failure_types: type[Exception] | tuple[type[Exception], ...]) -> None:
        self._circuit = circuit
        self._failure_types = failure_types
        self._admitted: dict[asyncio.Task[Any] | None, list[tuple[int, str]]] = {}
        """Generation and caller of the blocks that each task has entered, the innermost last."""

    async def __aenter__(self) -> None:
        caller = _caller_id()
        generation = self._circuit.admit(caller)
        self._admitted.setdefault(asyncio.current_task(), []).append((generation, caller))

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        task = asyncio.current_task()
        if task not in self._admitted:  # an async generator that another task closes
            task = next(iter(self._admitted))
        admitted = self._admitted[task]
        generation, caller = admitted.pop()
        if not admitted:
            del self._admitted[task]
        self._circuit.record(generation, self._verdict(error), caller, _call_id())

    def __call__(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self:
                return await function(*args, **kwargs)

        return guarded

    def _verdict(self, error: BaseException | None) -> Verdict:
        """Return what the outcome says about the dependency: of a group, the worst that one of its exceptions says."""
        if error is None:
            return Verdict.SUCCESS
        verdicts = {self._verdict_of(single) for single in ungrouped(error)}
        return next(verdict for verdict in (Verdict.FAILURE, Verdict.NEUTRAL, Verdict.SUCCESS) if verdict in verdicts)

    def _verdict_of(self, error: BaseException) -> Verdict:
        if isinstance(error, UpstreamError):
            return error.verdict
        return Verdict.FAILURE if isinstance(error, self._failure_types) else Verdict.NEUTRAL


def _caller_id() -> str:
    """Return the id of the caller, empty for the server itself, such as in a background task."""
    caller = current_caller.get()
    return "" if caller is None else caller.id


def _call_id() -> str | None:
    """Return the id of the request that is being handled."""
    request = current_request.get()
    return None if request is None else request.request_id


def install(registry: Registry) -> None:
    circuits = Circuits(registry.config, registry.meter)
    registry.upstream.middleware["circuit_breaker"] = circuits.middleware
    registry.upstream.circuit = circuits.circuit
    registry.health.parts.append(circuits.health)


def circuit_breaker(
    where: Server | CallContext, name: str, *, failures: type[Exception] | tuple[type[Exception], ...] = Exception
) -> CircuitGuard:
    """Return the circuit `name` of this server, as an async context manager and a decorator of async functions.

    It has the configured thresholds, and metrics, log and `/health` treat it like the circuit of an upstream host. A
    timeout belongs inside it: one outside cancels the call, which counts neither as success nor as failure. Where
    circuit breakers are switched off, every call is admitted.

    Args:
        where: The server, or the context of a call.
        name: Name of the dependency; the same name is the same circuit.
        failures: Exceptions that count as failures of the dependency. Others neither open nor close the circuit.

    Raises:
        CircuitOpenError: on entry, while the circuit is open.
    """
    circuit = registry_of(where).upstream.circuit
    return CircuitGuard(_AlwaysClosed() if circuit is None else circuit(name), failures)


class _AlwaysClosed:
    """The circuit of every name where circuit breakers are switched off."""

    def admit(self, caller: str = "") -> int:
        return 0

    def record(self, generation: int, verdict: Verdict, caller: str = "", call: object = None) -> None: ...
