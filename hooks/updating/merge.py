"""The three-way merge of one file: the owner's edits since the last update, in the new version of the template."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from post_generate import ProjectError

from .alignment import edits
from .git import run
from .moved_lines import KEPT, MOVED, Versions, restored_lines, with_kept_lines, without_restored
from .outline import LABEL, outlines

BEFORE, LAST, AFTER = "before updating", "last update", "after updating"
"""The sides of a conflict, as Copier names them: the owner's, the old template's, the new template's."""

START_MARKER, END_MARKER = b"<<<<<<< " + BEFORE.encode(), b">>>>>>> " + AFTER.encode()
CONFLICT = re.compile(rb"^" + START_MARKER, re.MULTILINE)
MARKER = re.compile(rb"(?:<{7}|\|{7}|>{7})(?: |$)|={7}\r?$")

BY_LINE = ("pyproject.toml", "docker-compose.yml")
"""Files in which changes of two adjacent lines are no conflict: each line is an entry of its own.

For git, changes of adjacent lines are one change. In pyproject.toml the version, which the owner raises, is between the
name and the description, which are answers; in docker-compose.yml the limits of a service are beside its networks.
"""

APPENDED = (".env.example", ".gitignore")
"""Files whose end is the owner's: what the owner appended stays at the end, after what the template adds there."""


Change = tuple[int, int, tuple[bytes, ...]]
"""Start and end of lines of the old version, and the lines in their place."""


class Merged(NamedTuple):
    content: bytes
    conflicts: int = 0
    """The number of places that both sides changed; 1 for a binary file, of which `content` is the owner's."""


def merge(path: str, base: bytes, edited: bytes, updated: bytes) -> Merged:
    """Merge the owner's version and the template's new version of a file.

    Line endings are not compared: a version with mostly CRLF is treated as if all lines ended in LF. The result has
    the endings of most of the owner's lines.

    Args:
        path: selects the outline's rules, and `BY_LINE`.
        base: the old version of the template.
        edited: the owner's version of it.
        updated: the new version of the template.

    Raises:
        ProjectError: git cannot merge the file.
    """
    to_crlf, unchanged = has_crlf(edited), edited
    base, edited, updated = (with_lf(content) for content in (base, edited, updated))
    if updated in (base, edited):
        return Merged(unchanged)
    edited, appended = _split_appended(base, edited) if path in APPENDED else (edited, b"")
    if edited == base:
        merged = Merged(updated)
    elif any(b"\0" in content for content in (base, edited, updated)):
        return Merged(edited, conflicts=1)
    else:
        merged = _merge_lines_of(path, base, edited, updated)
    if appended:
        merged = merged._replace(content=merged.content.rstrip(b"\n") + b"\n" + appended)
    return merged._replace(content=merged.content.replace(b"\n", b"\r\n")) if to_crlf else merged


def _split_appended(base: bytes, edited: bytes) -> tuple[bytes, bytes]:
    """Return the owner's version up to the last line of `base`, and the lines that the owner appended after it.

    Nothing is appended where lines of `base` follow: then the owner moved its last line.
    """
    old = base.rstrip(b"\n").split(b"\n")
    lines = edited.split(b"\n")
    end = max((at + 1 for at, line in enumerate(lines) if line == old[-1]), default=len(lines))
    kept, appended = lines[:end], lines[end:]
    moved = (Counter(old) - Counter(kept)) & Counter(appended)
    if not any(line.strip() for line in appended) or any(line.strip() for line in moved):
        return edited, b""
    return b"\n".join([*kept, b""]), b"\n".join(appended)


def has_crlf(content: bytes) -> bool:
    """Return whether most lines of a text end in CRLF."""
    return content.count(b"\r\n") * 2 > content.count(b"\n") and b"\0" not in content


def with_lf(content: bytes) -> bytes:
    """Return the content with LF if most of its lines end in CRLF, else unchanged."""
    return content.replace(b"\r\n", b"\n") if has_crlf(content) else content


def same(one: bytes, other: bytes) -> bool:
    """Return whether two contents are equal except for their line endings."""
    return with_lf(one) == with_lf(other)


def _merge_lines_of(path: str, *versions: bytes) -> Merged:
    lines_of = [content.split(b"\n") for content in versions]
    blocks_of = [outline.block_of_line for outline in outlines(path, *lines_of)]
    labelled = Versions(
        *(
            [block.label.encode() + line for block, line in zip(blocks, lines, strict=True)]
            for blocks, lines in zip(blocks_of, lines_of, strict=True)
        )
    )
    merged = _merge_labelled(path, labelled)
    if restored := restored_lines(labelled, [line for line, inside in _with_conflicts(merged) if not inside]):
        merged = _merge_labelled(path, labelled._replace(updated=without_restored(labelled, blocks_of[2], restored)))
    lines: list[bytes] = []
    for label, group in groupby(with_kept_lines(labelled, list(_with_conflicts(merged))), _label_of_conflict):
        content = [line if MARKER.match(line) else line[LABEL:] for line, _ in group]
        if label:
            owners, templates = (content, []) if label == KEPT else ([], content)
            content = [START_MARKER, *owners, b"=======", *templates, END_MARKER]
        lines += content
    text = b"\n".join(lines)
    return Merged(text, len(CONFLICT.findall(text)))


def _label_of_conflict(part: tuple[bytes, bool]) -> bytes:
    """Return `MOVED` or `KEPT` for a line with this label in no conflict of the merge, else nothing."""
    line, inside = part
    return line[:LABEL] if not inside and line[:LABEL] in (MOVED, KEPT) else b""


def _with_conflicts(merged: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each line of a merge, and whether it belongs to a conflict, as its markers do."""
    inside = False
    for line in merged:
        marker = MARKER.match(line)
        inside |= bool(marker)
        yield line, inside
        inside &= not (marker and line.startswith(b">"))


def _merge_labelled(path: str, versions: Versions) -> list[bytes]:
    if path in BY_LINE and (by_line := merge_by_line(*versions)) is not None:
        return by_line
    with tempfile.TemporaryDirectory(prefix="merge.") as folder:
        base, edited, updated = (Path(folder, name) for name in ("base", "edited", "updated"))
        for file, side in zip((base, edited, updated), versions, strict=True):
            file.write_bytes(b"".join(line + b"\n" for line in side))
        names = [part for name in (BEFORE, LAST, AFTER) for part in ("-L", name)]
        done = run(Path.cwd(), "merge-file", "--stdout", *names, str(edited), str(base), str(updated))
    if not 0 <= done.returncode < 128:
        raise ProjectError(f"{path} cannot be merged: {done.stderr.decode(errors='replace').strip()}")
    lines = done.stdout.removesuffix(b"\n").split(b"\n")
    return [line.rstrip(b"\r") if MARKER.match(line) else line for line in lines]  # git ends them as the line before


def merge_by_line(base: Sequence[bytes], one: Sequence[bytes], other: Sequence[bytes]) -> list[bytes] | None:
    """Return `base` with the changes of both sides.

    It is None if both change a line or add at the same place, or if one adds a line beside a block that the other
    removes: the line may belong to it.
    """
    by_side: list[list[Change]] = [
        [(start, end, tuple(side[new_start:new_end])) for start, end, new_start, new_end in edits(base, side)]
        for side in (one, other)
    ]
    for side, changes, others in ((one, by_side[0], by_side[1]), (other, by_side[1], by_side[0])):
        gone = {line[:LABEL] for line in base} - {line[:LABEL] for line in side}
        beside = {
            at
            for start, end, _ in changes
            if any(line[:LABEL] in gone for line in base[start:end])
            for at in (start, end)
        }
        if any(start == end in beside for start, end, _ in others):
            return None
    merged: list[bytes] = []
    done, added = 0, -1
    for start, end, lines in sorted({*by_side[0], *by_side[1]}):
        if start < done or start == end == added:
            return None
        merged += base[done:start]
        merged += lines
        done, added = end, end if start == end else -1
    return merged + list(base[done:])
