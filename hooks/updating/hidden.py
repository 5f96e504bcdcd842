"""Files that an update would write and that git does not show as changed: ignored, untracked or skip-worktree."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from .git import LINK, File, git, read, run, split
from .merge import same
from .rendering import on_disk

IDENTITY = ("-c", "user.name=copier update", "-c", "user.email=copier@update.invalid")


def save(project: Path, committed: Mapping[str, tuple[str, str]], paths: Iterable[str]) -> None:
    """Save the project with its hidden files in a commit outside of all branches, if there are any.

    Args:
        committed: mode and object of each file of HEAD.
        paths: the paths that the new version may write.

    Raises:
        ProjectError: git failed.
    """
    if run(project, "rev-parse", "--verify", "--quiet", _reference(project)).returncode == 0:
        git(project, "update-ref", "-d", _reference(project))
    existing = {path: file for path in paths if (file := on_disk(project / path))}
    prefix = os.fsdecode(git(project, "rev-parse", "--show-prefix").removesuffix(b"\n"))
    names = _names(project, prefix, existing)
    changed = {path for path, name in names.items() if path not in committed or committed[path][1] != name}
    before = read(project, committed, changed)
    hidden = sorted(
        path for path in changed if path not in before or not same(before[path].content, existing[path].content)
    )
    if not hidden:
        return
    entries = [os.fsencode(f"{existing[path].mode} {names[path]}\t{prefix}{path}") + b"\0" for path in hidden]
    with tempfile.TemporaryDirectory(prefix="index.") as folder:
        index = str(Path(folder, "index"))
        git(project, "read-tree", "HEAD", GIT_INDEX_FILE=index)
        git(project, "update-index", "-z", "--index-info", stdin=b"".join(entries), GIT_INDEX_FILE=index)
        tree = git(project, "write-tree", GIT_INDEX_FILE=index).decode().strip()
    stored = git(project, *IDENTITY, "commit-tree", "-p", "HEAD", "-m", "Files that git does not show", tree)
    git(project, "update-ref", _reference(project), stored.decode().strip())


def saved(project: Path) -> tuple[str, list[str]]:
    """Return the commit with the owner's files before the update, and the paths of the hidden files in it."""
    done = run(project, "rev-parse", "--verify", "--quiet", f"{_reference(project)}^{{commit}}")
    commit = done.stdout.decode().strip()
    parent = run(project, "rev-parse", "--verify", "--quiet", f"{commit}^").stdout if commit else b""
    if not commit or parent != git(project, "rev-parse", "HEAD"):
        return "HEAD", []
    return commit[:12], split(git(project, "diff", "--relative", "--name-only", "-z", "HEAD", commit))


def _reference(project: Path) -> str:
    """Return the name of a git reference of this working tree and, in a larger repository, of this project."""
    prefix = git(project, "rev-parse", "--show-prefix")
    return f"refs/worktree/copier-update-{hashlib.sha256(prefix).hexdigest()[:12]}"


def _names(project: Path, prefix: str, existing: Mapping[str, File]) -> dict[str, str]:
    """Store each file in git, and return the names of the objects."""
    plain = [path for path, file in existing.items() if file.mode != LINK]
    listed = os.fsencode("".join(f"{prefix}{path}\n" for path in plain))
    stored = (
        git(project, "-c", "core.safecrlf=false", "hash-object", "-w", "--stdin-paths", stdin=listed).decode().split()
    )
    names = dict(zip(plain, stored, strict=True))
    for path in existing.keys() - names.keys():
        names[path] = git(project, "hash-object", "-w", "--stdin", stdin=existing[path].content).decode().strip()
    return names
