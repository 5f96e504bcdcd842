"""The interface through which features and owners record metrics, and its implementation where none are collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Counter(Protocol):
    """A sum that only grows."""

    def inc(self, amount: float = 1) -> None:
        """Add `amount`.

        Raises:
            ValueError: it is negative.
        """


class Gauge(Protocol):
    """A value that goes up and down."""

    def set(self, value: float) -> None:
        """Set the current value."""


class Histogram(Protocol):
    """Counts of values by bucket, and their sum."""

    def observe(self, amount: float) -> None:
        """Record one value, in the unit of the metric's name."""


class Meter(Protocol):
    """Declares metrics.

    Each method returns a function from label values, in the order of `labels`, to the child with these values.
    Children are created on first use and kept: get them once, outside the hot path, and never for unbounded values.
    Declaring a metric again returns the same one.

    Args:
        buckets: Upper bounds in ascending order, in the unit of the name; infinity is added. Those of the first
            declaration count.

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
    """Records nothing, and checks no amounts."""

    def counter(self, *declaration: object, **options: object) -> Callable[..., _NullMetric]:
        return lambda *values: _NullMetric()

    gauge = histogram = counter
