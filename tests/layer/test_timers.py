"""The timer that many items share: each expires at its own time, unless it was removed."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from mcp.shared.exceptions import MCPError

from clocks import VirtualLoop
from weather_station.production.request import SharedTimer, Timer

pytestmark = pytest.mark.pure

SECONDS = 10


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


async def test_the_end_takes_back_what_cancelled_the_request() -> None:
    task = asyncio.current_task()
    assert task is not None
    timer = Timer(task, SharedTimer(SECONDS, Timer.expire))
    error = MCPError(-32800, "Request cancelled")
    timer.cancel(error)
    timer.cancel(MCPError(-32800, "again"))
    timer.expire()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(SECONDS)
    assert timer.error is error
    assert task.cancelling() == 2
    timer.end()
    assert task.cancelling() == 0
    timer.cancel(error)  # too late
    assert task.cancelling() == 0
