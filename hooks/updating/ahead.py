"""Renderings that a process of its own makes while Copier still works.

An update spends most of its time in Copier, on one processor, before the stage that needs both renderings. What the
new version renders is known before Copier has recorded its answers, unless the update changes one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .git import File
from .rendering import Rendering

FILE, LOCK = ".renderings", ".renderings.lock"
"""Files in Copier's clone of the template, which it deletes in the end."""


class Ahead(NamedTuple):
    """The renderings of both versions, with the answers that they were made with."""

    answers: Sequence[Mapping[str, Any]]
    files: Sequence[dict[str, File]]


def start(template: Path, old: Rendering, new: Rendering) -> None:
    """Start a process that renders both versions; none where processes cannot be forked.

    It holds a lock until it ends, whatever ends it. Its errors are not reported: without its result `after` renders,
    and meets the same error.
    """
    if not hasattr(os, "fork"):
        return
    import fcntl

    lock = os.open(template / LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if os.fork():
        os.close(lock)
        return
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # who reads the output of Copier need not wait for this process
            os.dup2(nothing, stream)
        updated = new.files()
        files = [
            {path: (file.content.decode("latin-1"), file.mode) for path, file in tree.items()}
            for tree in (old.files_given(new, updated), updated)
        ]
        unfinished = template / f"{FILE}.part"
        unfinished.write_text(json.dumps([[old.answers, new.answers], files]), encoding="utf-8")
        unfinished.replace(template / FILE)
    finally:
        os._exit(0)


def result(template: Path) -> Ahead | None:
    """Wait for the process, and return its result, or None if there is none."""
    if not (template / LOCK).exists():
        return None
    import fcntl

    with (template / LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    if not (template / FILE).exists():
        return None
    answers, files = json.loads((template / FILE).read_text(encoding="utf-8"))
    return Ahead(
        answers, [{path: File(text.encode("latin-1"), mode) for path, (text, mode) in tree.items()} for tree in files]
    )
