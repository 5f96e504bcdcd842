"""Lines that the template moved and that the owner deleted: they do not come back at their new place.

For a comparison of lines, a move is a deletion and an insertion. The deletion is then the same on both sides, and the
insertion is the template's alone, so a merge takes it over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from .alignment import edits
from .outline import ENTRY, LABEL, Block

MOVED = b"moved".ljust(LABEL)
"""The label of a line of the new version that the owner deleted or moved elsewhere."""

WORD = re.compile(r"\w{3}")
"""Matches in a line that differs from most others; brackets and short keywords are in many places of a file."""

Lines = Sequence[bytes]
"""The lines of a version, labelled with their blocks."""


class Versions(NamedTuple):
    base: Lines
    edited: Lines
    updated: Lines


def restored_lines(versions: Versions, merged: Lines) -> set[bytes]:
    """Return the lines of the new version that a merge has more often than the edits of both sides allow.

    The owner deleted such a line, and it is at another place of its block or file, or has another value; or both sides
    moved it, and it is there twice.

    Args:
        versions: the three versions.
        merged: the lines of the merge that are in no conflict.
    """
    of_line = [Counter(map(_line, lines)) for lines in (*versions, merged)]
    of_text = [Counter(map(_text, lines)) for lines in (*versions, merged)]
    of_entry = [Counter(map(_entry, lines)) for lines in versions]
    found = set()
    for line in of_line[2].keys() & of_line[3].keys():
        text, entry = _text(line), _entry(line)
        base, edited, updated, in_merge = (count[line] for count in of_line)
        if updated >= base > 0:
            restored = bool(text) and in_merge > max(edited + updated - base, 0)
        elif base or edited or not WORD.search(text):
            restored = False
        else:
            restored = [count[text] for count in of_text] == [1, 0, 1, 1] or (
                entry is not None and [count[entry] for count in of_entry] == [1, 0, 1]
            )
        if restored:
            found.add(line)
    return found


def without_restored(versions: Versions, blocks: Sequence[Block], restored: set[bytes]) -> list[bytes]:
    """Return the new version without the restored lines that only moved in their block; others get the label `MOVED`.

    A block that the owner deleted is left out as a whole if it only moved; else all its lines are marked, since a line
    that the template adds to it would be in another block.

    Args:
        versions: the three versions.
        blocks: the block of each line of the new version.
        restored: the result of `restored_lines`.
    """
    base, edited, updated = versions
    inserted = {at for edit in edits(base, updated) for at in range(edit.new_start, edit.new_end)}
    moved = {_line(updated[at]) for at in inserted}
    deletions = (edit for edit in edits(base, edited) if edit.new_start == edit.new_end)
    deleted = Counter(line for edit in deletions for line in base[edit.start : edit.end])
    labels = {line[:LABEL] for line in base}
    kept_labels = {line[:LABEL] for line in edited}

    def is_gone(block: Block, text: str) -> bool:
        label = block.label.encode()
        return label not in kept_labels if label in labels else block.key in text or text in block.key

    left_out: set[int] = set()
    marked: set[int] = set()
    for at, line in enumerate(updated):
        if _line(line) not in restored or at in left_out | marked or (at not in inserted and _line(line) in moved):
            continue
        gone = [block for block in _with_ancestors(blocks[at]) if is_gone(block, _text(line))]
        if gone:
            numbers = [number for number, block in enumerate(blocks) if gone[-1] in _with_ancestors(block)]
            known = {updated[number][:LABEL] for number in numbers}
            before = [old for old in base if old[:LABEL] in known]
        else:
            numbers, before = [at], [old for old in base if old == line]
        lines = [updated[number] for number in numbers]
        only_moved = lines == before and not Counter(lines) - deleted and not set(lines) & set(edited)
        (left_out if only_moved else marked).update(numbers)
    return [MOVED + line[LABEL:] if at in marked else line for at, line in enumerate(updated) if at not in left_out]


def _with_ancestors(block: Block) -> Iterator[Block]:
    """Yield a block and those that contain it, up to the whole file, which is left out."""
    while block.parent:
        yield block
        block = block.parent


@lru_cache(maxsize=100_000)
def _line(line: bytes) -> bytes:
    """Return a line without the comma that depends on what follows it."""
    return line.rstrip().removesuffix(b",")


@lru_cache(maxsize=100_000)
def _text(line: bytes) -> str:
    return _line(line)[LABEL:].strip().decode(errors="surrogateescape")


@lru_cache(maxsize=100_000)
def _entry(line: bytes) -> tuple[bytes, str] | None:
    """Return the block of a line and the key of its entry, or None if it has no key."""
    entry = ENTRY.match(_text(line))
    return (line[:LABEL], entry[1].strip()) if entry else None
