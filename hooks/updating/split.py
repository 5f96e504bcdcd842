"""Edits of a file that the new version splits: each is placed in the new file that has its context, or reported."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from .merge import labelled_lines, with_lf
from .outline import LABEL, Outline

CONTEXT = (3, 2, 1)
"""Numbers of unchanged lines on each side of an edit to search for, in this order."""

MIN_CONTEXT_LINES = 2
"""The number of lines that are not blank that a context must have."""


class Hunk(NamedTuple):
    """One edit: a range of lines of the old version, and the lines that replace it."""

    start: int
    end: int
    lines: list[bytes]
    line: int
    """The line number in the owner's file, counted from 1."""


class Unplaced(NamedTuple):
    """An edit that was not carried over."""

    line: int
    text: str
    places: int
    """The number of places that have its context."""


def carry(
    path: str, base: bytes, edited: bytes, targets: Mapping[str, bytes]
) -> tuple[dict[str, bytes], int, list[Unplaced]]:
    """Place each edit between `base` and `edited` in the target that has its context exactly once.

    Returns:
        The changed targets, the number of placed edits, and the edits that were not placed.
    """
    old, new = with_lf(base), with_lf(edited)
    old_lines, outline = old.split(b"\n"), Outline(path, old.split(b"\n"))
    texts = {target: with_lf(content).split(b"\n") for target, content in targets.items()}
    outlines = {target: Outline(target, lines) for target, lines in texts.items()}
    placed: list[tuple[str, int, Hunk]] = []
    unplaced: list[Unplaced] = []
    for hunk in _hunks(path, old, new):
        places: list[tuple[str, int]] = []
        for context in CONTEXT:
            start, end = max(0, hunk.start - context), min(len(old_lines), hunk.end + context)
            context_lines = old_lines[start:end]
            if sum(bool(line.strip()) for line in context_lines) < MIN_CONTEXT_LINES:
                break
            scopes = [block.path for block in outline.block_of_line[start:end]]
            places = [
                (target, position + hunk.start - start)
                for target, lines in texts.items()
                for position in range(len(lines) - len(context_lines) + 1)
                if lines[position : position + len(context_lines)] == context_lines
                and [block.path for block in outlines[target].block_of_line[position : position + len(context_lines)]]
                == scopes
            ]
            if places:
                break
        if len(places) == 1:
            placed.append((*places[0], hunk))
        else:
            text = next((line for line in (*hunk.lines, *old_lines[hunk.start : hunk.end]) if line.strip()), b"")
            unplaced.append(Unplaced(hunk.line, text.decode(errors="replace").strip(), len(places)))
    for target, start, hunk in sorted(placed, key=lambda place: place[1], reverse=True):
        texts[target][start : start + hunk.end - hunk.start] = hunk.lines
    changed = {target: b"\n".join(texts[target]) for target in {target for target, _, _ in placed}}
    return changed, len(placed), unplaced


def _hunks(path: str, base: bytes, edited: bytes) -> list[Hunk]:
    one, other = labelled_lines(path, base, edited)
    hunks = []
    for kind, start, end, new_start, new_end in difflib.SequenceMatcher(a=one, b=other, autojunk=False).get_opcodes():
        old, new = ([line[LABEL:] for line in lines] for lines in (one[start:end], other[new_start:new_end]))
        while old and new and old[0] == new[0]:  # only the label differs: the block was replaced
            del old[0], new[0]
            start, new_start = start + 1, new_start + 1
        while old and new and old[-1] == new[-1]:
            del old[-1], new[-1]
        if kind != "equal" and (old or new):
            hunks.append(Hunk(start, start + len(old), new, new_start + 1))
    return hunks
