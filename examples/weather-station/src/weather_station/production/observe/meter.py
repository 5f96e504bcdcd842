"""The interface through which features and owners record metrics, and its implementation where none are collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Counter(Protocol):
    def inc(self, amount: float = 1) -> None: ...


class Gauge(Protocol):
    def set(self, value: float) -> None: ...


class Histogram(Protocol):
    def observe(self, amount: float) -> None: ...


class Meter(Protocol):
    """Declares metrics.

    Each method returns a function from label values, in the order of `labels`, to the child with these values.
    Children are created on first use and kept: get them once, outside the hot path, and never for unbounded values.
    Declaring a metric again returns the same one.

    Raises:
        ValueError: the name is declared already, with another type or other labels.
    """

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Counter]: ...

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Gauge]: ...

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]
    ) -> Callable[..., Histogram]: ...


class _NullMetric:
    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, amount: float) -> None: ...


class NullMeter:
    """Records nothing."""

    def counter(self, *declaration: object, **options: object) -> Callable[..., _NullMetric]:
        return lambda *values: _NullMetric()

    gauge = histogram = counter
