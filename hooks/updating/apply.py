"""Write the outcome of a merge to the project's folder and to git's index."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .git import LINK, File, Tree, git, split
from .merge import has_crlf, same, with_lf
from .rendering import on_disk, write
from .trees import Conflict, Outcome


class Links:
    """The committed symbolic links to folders of a project, to resolve paths by."""

    def __init__(self, targets: Mapping[str, str]) -> None:
        self.targets = targets

    def resolve(self, path: str) -> str | None:
        """Return the path of a file without links; None if a link leads out of the project."""
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


def apply(project: Path, outcome: Outcome, new: Tree, resolve: Callable[[str], str]) -> None:
    """Write the files of the new version, merged with the owner's, delete absent ones, and mark conflicts."""
    for path in outcome.absent:
        _remove(project, project / resolve(path))
    for path, file in outcome.files.items():
        _write(project / resolve(path), file)
    for path in outcome.untouched:
        _write(project / resolve(path), new[path])
    for path in {*outcome.files, *outcome.moved.values(), *outcome.removed, *outcome.split_files}:
        rejected = project / f"{resolve(path)}.rej"
        if rejected.is_file() and not git(project, "ls-files", "--", f"./{resolve(path)}.rej"):
            rejected.unlink()
    _mark(
        project, {resolve(path): conflict for path, conflict in outcome.conflicts.items()}, map(resolve, outcome.files)
    )
    _restore_line_endings(project)


def _write(path: Path, file: File) -> None:
    """Write a file unless it exists unchanged; keep the line endings of the existing file."""
    existing = on_disk(path)
    if existing and file.mode != LINK != existing.mode:
        if same(existing.content, file.content) and existing.mode == file.mode:
            return
        if has_crlf(existing.content):
            file = file._replace(content=with_lf(file.content).replace(b"\n", b"\r\n"))
    write(path, file)


def _remove(project: Path, path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink()
        folder = path.parent
        while folder != project and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _restore_line_endings(project: Path) -> None:
    """Check out again each file that differs from the index only in its line endings: Copier writes answers with LF.

    While the size of such a file differs, git lists it as modified, without a difference.
    """
    listed = ("--relative", "--name-only", "--diff-filter=M", "-z")
    modified = set(split(git(project, "diff-files", *listed)))
    if only_line_ends := sorted(modified - set(split(git(project, "diff", *listed)))):
        git(project, "checkout-index", "--force", "--index", "--", *only_line_ends)


def _mark(project: Path, conflicts: Mapping[str, Conflict], merged: Iterable[str]) -> None:
    """Record in git's index which files are in conflict, as after a merge; Copier may have recorded others."""
    unmerged = set(split(git(project, "diff", "--relative", "--name-only", "--diff-filter=U", "-z")))
    if resolved := sorted(unmerged & set(merged) - conflicts.keys()):
        git(project, "reset", "--quiet", "--", *resolved)
    prefix = os.fsdecode(git(project, "rev-parse", "--show-prefix").removesuffix(b"\n"))
    entries = []
    for path, (base, committed, updated, _) in conflicts.items():
        entries.append(f"0 {'0' * 40}\t{prefix}{path}")
        for stage, file in enumerate((base, committed, updated), start=1):
            if file:
                name = git(project, "hash-object", "-w", "--stdin", stdin=file.content).decode().strip()
                entries.append(f"{file.mode} {name} {stage}\t{prefix}{path}")
    if entries:
        git(project, "update-index", "-z", "--index-info", stdin=b"".join(os.fsencode(e) + b"\0" for e in entries))
