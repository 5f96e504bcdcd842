"""Edits of a file of which the new version has made several: each goes where its surroundings went, or is named."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from .merge import labelled, unix
from .outline import LABEL, Outline

CONTEXT = (3, 2, 1)
"""How many unchanged lines on both sides of an edit are looked for, the most first."""

ENOUGH = 2
"""So many lines that are not blank tell one place from another."""


class Hunk(NamedTuple):
    """One edit: lines of the old version, and what stands in their place."""

    start: int
    end: int
    lines: list[bytes]
    line: int
    """Where it is in the owner's file, counted from 1."""


class Unplaced(NamedTuple):
    """An edit that was not carried over."""

    line: int
    text: str
    places: int
    """In how many places its surroundings are."""


def carry(
    path: str, base: bytes, mine: bytes, targets: Mapping[str, bytes]
) -> tuple[dict[str, bytes], int, list[Unplaced]]:
    """Carry the edits between `base` and `mine` into those of the targets that have the lines around them once.

    Returns:
        The targets that changed, the number of edits that are in them, and the others.
    """
    old, new = unix(base), unix(mine)
    old_lines, outline = old.split(b"\n"), Outline(path, old.split(b"\n"))
    texts = {target: unix(content).split(b"\n") for target, content in targets.items()}
    outlines = {target: Outline(target, lines) for target, lines in texts.items()}
    placed: list[tuple[str, int, Hunk]] = []
    unplaced: list[Unplaced] = []
    for hunk in _hunks(path, old, new):
        places: list[tuple[str, int]] = []
        for context in CONTEXT:
            start, end = max(0, hunk.start - context), min(len(old_lines), hunk.end + context)
            wanted = old_lines[start:end]
            if sum(bool(line.strip()) for line in wanted) < ENOUGH:
                break
            scopes = [block.path for block in outline.of[start:end]]
            places = [
                (target, at + hunk.start - start)
                for target, lines in texts.items()
                for at in range(len(lines) - len(wanted) + 1)
                if lines[at : at + len(wanted)] == wanted
                and [block.path for block in outlines[target].of[at : at + len(wanted)]] == scopes
            ]
            if places:
                break
        if len(places) == 1:
            placed.append((*places[0], hunk))
        else:
            text = next((line for line in (*hunk.lines, *old_lines[hunk.start : hunk.end]) if line.strip()), b"")
            unplaced.append(Unplaced(hunk.line, text.decode(errors="replace").strip(), len(places)))
    for target, at, hunk in sorted(placed, key=lambda place: place[1], reverse=True):
        texts[target][at : at + hunk.end - hunk.start] = hunk.lines
    changed = {target: b"\n".join(texts[target]) for target in {target for target, _, _ in placed}}
    return changed, len(placed), unplaced


def _hunks(path: str, base: bytes, mine: bytes) -> list[Hunk]:
    one, other = labelled(path, base, mine)
    found = []
    for kind, start, end, at, stop in difflib.SequenceMatcher(a=one, b=other, autojunk=False).get_opcodes():
        old, new = ([line[LABEL:] for line in lines] for lines in (one[start:end], other[at:stop]))
        while old and new and old[0] == new[0]:  # of a block that is another one now
            del old[0], new[0]
            start, at = start + 1, at + 1
        while old and new and old[-1] == new[-1]:
            del old[-1], new[-1]
        if kind != "equal" and (old or new):
            found.append(Hunk(start, start + len(old), new, at + 1))
    return found
