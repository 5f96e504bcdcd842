"""The changes between two versions of a file, whose lines are labelled with their blocks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from .outline import LABEL

EQUAL, BLANK, SIMILAR = 8, 2, 1
"""Weight of a pair of lines that are equal, that are both blank, and that begin alike."""


class Edit(NamedTuple):
    """Lines of the old version, and those of the new version in their place, each without its end."""

    start: int
    end: int
    new_start: int
    new_end: int


def edits(old: Sequence[bytes], new: Sequence[bytes]) -> list[Edit]:
    """Return the changes between two versions that keep the most lines, in order.

    `difflib` keeps the longest run of equal lines even where fewer lines are equal in all: with two edits near a line
    that the file has twice, it would take one of these lines for the other, and the edits for a move.
    """
    first, ends = 0, (len(old), len(new))
    while first < min(ends) and old[first] == new[first]:
        first += 1
    while first < min(ends) and old[ends[0] - 1] == new[ends[1] - 1]:
        ends = ends[0] - 1, ends[1] - 1
    counts = _counts(old[first : ends[0]], new[first : ends[1]])
    found: list[Edit] = []
    start, new_start = at, new_at = first, first
    while at < ends[0] or new_at < ends[1]:
        here, row = counts[at - first][new_at - first], counts[at - first]
        equal = at < ends[0] and new_at < ends[1] and old[at] == new[new_at]
        if equal and here == counts[at - first + 1][new_at - first + 1] + _weight(old[at]):
            if (start, new_start) != (at, new_at):
                found.append(Edit(start, at, new_start, new_at))
            at, new_at = at + 1, new_at + 1
            start, new_start = at, new_at
        elif at < ends[0] and here == counts[at - first + 1][new_at - first]:
            at += 1
        elif new_at < ends[1] and here == row[new_at - first + 1]:
            new_at += 1
        else:
            at, new_at = at + 1, new_at + 1
    if (start, new_start) != (at, new_at):
        found.append(Edit(start, at, new_start, new_at))
    return found


def _counts(old: Sequence[bytes], new: Sequence[bytes]) -> list[list[int]]:
    """Return the greatest total weight of pairs from a line of `old` and one of `new` to the ends, by both numbers."""
    texts = [line[LABEL:].strip() for line in new]
    equal: defaultdict[bytes, list[int]] = defaultdict(list)
    for at, line in enumerate(new):
        equal[line].append(at)

    @cache
    def similar(half: bytes) -> list[int]:
        return [at for at, text in enumerate(texts) if text.startswith(half)] if half else []

    counts = [[0] * (len(new) + 1)]
    for line in reversed(old):
        below = counts[-1]
        text, weight = line[LABEL:].strip(), _weight(line)
        paired = below.copy()
        for at in similar(text[: max(len(text) // 2, 3)]):
            paired[at] = max(paired[at], below[at + 1] + SIMILAR)
        for at in equal.get(line, ()):
            paired[at] = max(below[at], below[at + 1] + weight)
        paired.reverse()
        row = list(accumulate(paired, max))  # its loop is not in Python: the lines of a file are compared in pairs
        row.reverse()
        counts.append(row)
    counts.reverse()
    return counts


def _weight(line: bytes) -> int:
    return EQUAL if line[LABEL:].strip() else BLANK
