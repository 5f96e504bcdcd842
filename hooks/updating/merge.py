"""The three-way merge of one file: what its owner changed since the last update, in what the template has now."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from post_generate import ProjectError

from .git import run
from .outline import LABEL, labels

BEFORE, LAST, AFTER = "before updating", "last update", "after updating"
"""The sides of a conflict, as Copier names them: the owner's, the old template's, the new template's."""

CONFLICT = re.compile(rb"^<<<<<<< " + BEFORE.encode(), re.MULTILINE)
MARKER = re.compile(rb"(?:<{7}|\|{7}|>{7})(?: |$)|={7}$")

BY_LINE = ("pyproject.toml",)
"""Files in which changes of two neighbouring lines are no conflict.

To git two changes are one where no line stands between them. In pyproject.toml the version, which the owner raises,
stands between the name and the description, which are answers.
"""


class Merged(NamedTuple):
    content: bytes
    conflicts: int = 0
    """How many places both sides changed; for a file that is no text the content is the owner's, and one conflict."""


def merge(path: str, base: bytes, mine: bytes, theirs: bytes) -> Merged:
    """Merge what the owner and the template changed in `base`.

    Line endings are no change: a version of which most lines end in CRLF is compared as if all ended in LF. The result
    has the endings that most of the owner's lines have.
    """
    dos, as_it_is = crlf(mine), mine
    base, mine, theirs = (unix(content) for content in (base, mine, theirs))
    if theirs in (base, mine):
        return Merged(as_it_is)
    if mine == base:
        merged = Merged(theirs)
    elif any(b"\0" in content for content in (base, mine, theirs)):
        return Merged(mine, conflicts=1)
    else:
        merged = _merge_lines_of(path, base, mine, theirs)
    return merged._replace(content=merged.content.replace(b"\n", b"\r\n")) if dos else merged


def crlf(content: bytes) -> bool:
    """Whether most lines of a text end in CRLF."""
    return content.count(b"\r\n") * 2 > content.count(b"\n") and b"\0" not in content


def unix(content: bytes) -> bytes:
    """The content with LF, if most of its lines end in CRLF."""
    return content.replace(b"\r\n", b"\n") if crlf(content) else content


def same(one: bytes, other: bytes) -> bool:
    """Whether two contents are equal but for their line endings."""
    return unix(one) == unix(other)


def _merge_lines_of(path: str, *versions: bytes) -> Merged:
    sides = labelled(path, *versions)
    if path in BY_LINE and (by_line := merge_by_line(*sides)) is not None:
        return Merged(b"\n".join(line[LABEL:] for line in by_line))
    with tempfile.TemporaryDirectory(prefix="merge.") as folder:
        base, mine, theirs = (Path(folder, name) for name in ("base", "mine", "theirs"))
        for file, side in zip((base, mine, theirs), sides, strict=True):
            file.write_bytes(b"".join(line + b"\n" for line in side))
        names = [part for name in (BEFORE, LAST, AFTER) for part in ("-L", name)]
        done = run(Path.cwd(), "merge-file", "--stdout", *names, str(mine), str(base), str(theirs))
    if not 0 <= done.returncode < 128:
        raise ProjectError(f"{path} cannot be merged: {done.stderr.decode(errors='replace').strip()}")
    merged = [line if MARKER.match(line) else line[LABEL:] for line in done.stdout.removesuffix(b"\n").split(b"\n")]
    content = b"\n".join(merged)
    return Merged(content, len(CONFLICT.findall(content)))


def labelled(path: str, *versions: bytes) -> list[list[bytes]]:
    """The lines of versions of a file, each after the label of its block."""
    lines = [content.split(b"\n") for content in versions]
    return [
        [label + line for label, line in zip(of_version, texts, strict=True)]
        for of_version, texts in zip(labels(path, *lines), lines, strict=True)
    ]


def merge_by_line(base: Sequence[bytes], one: Sequence[bytes], other: Sequence[bytes]) -> list[bytes] | None:
    """`base` with the changes of both sides, or None where both change a line, or add at the same place."""
    changes = {
        (start, end, tuple(side[new_start:new_end]))
        for side in (one, other)
        for kind, start, end, new_start, new_end in difflib.SequenceMatcher(
            a=base, b=side, autojunk=False
        ).get_opcodes()
        if kind != "equal"
    }
    merged: list[bytes] = []
    done, added = 0, -1
    for start, end, lines in sorted(changes):
        if start < done or start == end == added:
            return None
        merged += base[done:start]
        merged += lines
        done, added = end, end if start == end else -1
    return merged + list(base[done:])
