"""Time that passes only when a test says so."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest


class Clock:
    """A clock, and a stand-in of the module `time`; `now` is in the unit of whatever reads it."""

    def __init__(self, now: float = 0) -> None:
        self.now: Any = now

    def __call__(self) -> Any:
        return self.now

    def time(self) -> float:
        return float(self.now)

    def monotonic(self) -> float:
        return float(self.now)


def use_clock(monkeypatch: pytest.MonkeyPatch, of: Any, clock: Clock) -> None:
    """Make `clock` the default of the parameter `clock` of a class."""
    defaults = of.__init__.__kwdefaults__
    assert "clock" in defaults
    monkeypatch.setattr(of.__init__, "__kwdefaults__", defaults | {"clock": clock})


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while something runs, and jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._virtual = loop

    def select(self, timeout: float | None = None) -> Any:
        self._virtual.now += timeout or 0.0
        return super().select(0)
