"""What a function returned, by its argument."""

from __future__ import annotations

import math

import pytest

from weather_station.production.memo import MAX_RESULTS, Memo

pytestmark = pytest.mark.pure


def test_an_argument_is_asked_for_once() -> None:
    asked: list[bytes] = []

    def upper(argument: bytes) -> bytes:
        asked.append(argument)
        return argument.upper()

    memo = Memo(upper)
    assert [memo[argument] for argument in (b"a", b"b", b"a", b"a")] == [b"A", b"B", b"A", b"A"]
    assert asked == [b"a", b"b"]


def test_arguments_without_end_take_bounded_memory() -> None:
    memo: Memo[int, str] = Memo(str)
    assert [memo[number] for number in range(3 * MAX_RESULTS)] == [*map(str, range(3 * MAX_RESULTS))]
    assert len(memo) <= MAX_RESULTS
    unlimited: Memo[int, str] = Memo(str, math.inf)
    assert [unlimited[number] for number in range(3 * MAX_RESULTS)] == [*unlimited.values()]


def test_a_failure_is_not_kept() -> None:
    memo: Memo[str, int] = Memo(int)
    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            memo["x"]
    assert not memo
