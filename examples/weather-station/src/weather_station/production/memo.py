"""The results of a function by its argument, where `functools.lru_cache` would take longer than all else around it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_RESULTS = 256


class Memo(dict[K, V]):
    """What `function` returned: `memo[argument]` calls it where that is not known.

    It keeps at most `max_results`, and forgets all for one more. A lookup takes a tenth of the time of `lru_cache`,
    which makes a tuple of an argument that is neither `str` nor `int`.
    """

    def __init__(self, function: Callable[[K], V], max_results: float = MAX_RESULTS) -> None:
        super().__init__()
        self._function = function
        self._max_results = max_results

    def __missing__(self, argument: K) -> V:
        result = self._function(argument)
        if len(self) >= self._max_results:
            self.clear()
        self[argument] = result
        return result
