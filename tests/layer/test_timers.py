"""The timer that many items share: each expires at its own time, unless it was removed."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from weather_station.production.request import SharedTimer

pytestmark = pytest.mark.pure

SECONDS = 10


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


def expirations(steps: list[tuple[int, str, int]]) -> list[tuple[float, int]]:
    """Return when which items expired; each step waits, then adds or removes an item."""
    found: list[tuple[float, int]] = []
    loop = VirtualLoop()
    timer = SharedTimer[int](SECONDS, lambda item: found.append((loop.time(), item)))

    async def run() -> None:
        for wait, what, item in steps:
            await asyncio.sleep(wait)
            if what == "add":
                timer.remove(item)
                timer.add(item)
            else:
                timer.remove(item)
        await asyncio.sleep(2 * SECONDS)

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return found


def expected(steps: list[tuple[int, str, int]]) -> list[tuple[float, int]]:
    """Return the same where each item has a timer of its own."""
    found: list[tuple[float, int]] = []
    ends: dict[int, float] = {}
    now = 0.0
    for wait, what, item in [*steps, (2 * SECONDS, "remove", -1)]:
        now += wait
        due = sorted((end, index, each) for index, (each, end) in enumerate(ends.items()) if end < now)
        for end, _, each in due:
            found.append((end, each))
            del ends[each]
        ends.pop(item, None)
        if what == "add":
            ends[item] = now + SECONDS
    return found


steps = st.lists(
    st.tuples(st.sampled_from((0, 1, 3, 7, 11)), st.sampled_from(("add", "remove")), st.integers(0, 4)), max_size=25
)


@given(steps)
def test_each_item_expires_at_its_own_time(steps: list[tuple[int, str, int]]) -> None:
    moments = {sum(wait for wait, *_ in steps[: end + 1]) for end in range(len(steps))}
    assume(not any(moment + SECONDS in moments for moment in moments))  # both at the same time: either may be first
    assert expirations(steps) == expected(steps)


def test_an_item_that_an_earlier_one_removes_does_not_expire() -> None:
    found: list[int] = []
    loop = VirtualLoop()

    def expire(item: int) -> None:
        found.append(item)
        timer.remove(item + 1)

    timer = SharedTimer[int](SECONDS, expire)

    async def run() -> None:
        for item in (1, 2, 3):
            timer.add(item)
        await asyncio.sleep(2 * SECONDS)

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    assert found == [1, 3]


def test_another_event_loop_has_a_timer_of_its_own() -> None:
    found: list[int] = []
    timer = SharedTimer[int](SECONDS, found.append)

    async def leave_one_running() -> None:
        timer.add(1)
        timer.remove(1)

    async def expire() -> None:
        timer.add(2)
        await asyncio.sleep(2 * SECONDS)

    for run in (leave_one_running, expire):
        loop = VirtualLoop()
        try:
            loop.run_until_complete(run())
        finally:
            loop.close()
    assert found == [2]
