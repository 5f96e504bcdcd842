"""Brings the outcome of a merge into the project's folder and into git's index."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .git import LINK, File, Tree, git, split
from .merge import crlf, same, unix
from .rendering import on_disk, write
from .trees import Conflict, Outcome


class Links:
    """The symbolic links to folders that a project has committed, so that a path leads to where a file is."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self.targets = targets

    def follow(self, path: str) -> str | None:
        """Where a file is; None where a link leads out of the project."""
        for _ in range(40):
            folders = path.split("/")[:-1]
            linked = ("/".join(folders[: depth + 1]) for depth in range(len(folders)))
            link = next((folder for folder in linked if folder in self.targets), None)
            if link is None:
                return path
            target = posixpath.join(posixpath.dirname(link), self.targets[link])
            path = posixpath.normpath(posixpath.join(target, path[len(link) + 1 :]))
            if path.startswith(("../", "/")):
                return None
        return None


def apply(project: Path, outcome: Outcome, mine: Tree, new: Tree, place: Callable[[str], str]) -> None:
    """Write what was merged, take away what is to be absent, and mark conflicts.

    What nobody had changed was written by Copier; it is written again only where it did not arrive.
    """
    for path in outcome.absent:
        _remove(project, project / place(path))
    for path, file in outcome.files.items():
        _write(project / place(path), file)
    for path, before in outcome.untouched.items():
        there = on_disk(project / place(path))
        kept = there is not None and path == before and same(there.content, mine[before].content)
        if there is None or (kept and not same(mine[before].content, new[path].content)):
            _write(project / place(path), new[path])
    for path in {*outcome.files, *outcome.moved.values(), *outcome.removed, *outcome.carried}:
        rejected = project / f"{place(path)}.rej"
        if rejected.is_file() and not git(project, "ls-files", "--", f"./{place(path)}.rej"):
            rejected.unlink()
    _mark(project, {place(path): conflict for path, conflict in outcome.conflicts.items()}, map(place, outcome.files))
    _restore_line_ends(project)


def _write(path: Path, file: File) -> None:
    """Write a file unless it is there; its lines end as those of the file that is there."""
    there = on_disk(path)
    if there and file.mode != LINK != there.mode:
        if same(there.content, file.content) and there.mode == file.mode:
            return
        if crlf(there.content):
            file = file._replace(content=unix(file.content).replace(b"\n", b"\r\n"))
    write(path, file)


def _remove(project: Path, path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink()
        folder = path.parent
        while folder != project and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _restore_line_ends(project: Path) -> None:
    """Check out again what differs from the index in nothing but its line ends: Copier writes those of the template.

    git calls such a file modified as long as its size is another one, and shows no difference.
    """
    listed = ("--relative", "--name-only", "--diff-filter=M", "-z")
    touched = set(split(git(project, "diff-files", *listed)))
    if unchanged := sorted(touched - set(split(git(project, "diff", *listed)))):
        git(project, "checkout-index", "--force", "--index", "--", *unchanged)


def _mark(project: Path, conflicts: Mapping[str, Conflict], merged: Iterable[str]) -> None:
    """Have git's index say which files are in conflict, as after a merge; Copier may have said so of others."""
    unmerged = set(split(git(project, "diff", "--relative", "--name-only", "--diff-filter=U", "-z")))
    if settled := sorted(unmerged & set(merged) - conflicts.keys()):
        git(project, "reset", "--quiet", "--", *settled)
    prefix = os.fsdecode(git(project, "rev-parse", "--show-prefix").removesuffix(b"\n"))
    entries = []
    for path, (base, mine, theirs, _) in conflicts.items():
        entries.append(f"0 {'0' * 40}\t{prefix}{path}")
        for stage, file in enumerate((base, mine, theirs), start=1):
            if file:
                name = git(project, "hash-object", "-w", "--stdin", stdin=file.content).decode().strip()
                entries.append(f"{file.mode} {name} {stage}\t{prefix}{path}")
    if entries:
        git(project, "update-index", "-z", "--index-info", stdin=b"".join(os.fsencode(e) + b"\0" for e in entries))
