"""Where features record what they do, whether or not metrics are collected.

A feature declares its own series through a `Meter` and binds each child once; `metrics.py` collects them, and
without it `NullMeter` costs one empty call.
"""

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
    """Each method declares a family and returns its children by label values, in the order of `labels`.

    Children are made at the first request for them and kept: bind them outside the hot path, and never from
    unbounded values. Declaring a family again returns the same one.

    Raises:
        ValueError: the name is declared already, with another type or other labels.
    """

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Counter]: ...

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Gauge]: ...

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]
    ) -> Callable[..., Histogram]: ...


class _Nothing:
    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...

    def observe(self, amount: float) -> None: ...


class NullMeter:
    """Records nothing."""

    _nothing = _Nothing()

    def counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Counter]:
        return lambda *values: self._nothing

    def gauge(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Callable[..., Gauge]:
        return lambda *values: self._nothing

    def histogram(
        self, name: str, documentation: str, labels: tuple[str, ...] = (), *, buckets: tuple[float, ...]
    ) -> Callable[..., Histogram]:
        return lambda *values: self._nothing
