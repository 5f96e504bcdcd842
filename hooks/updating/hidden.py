"""Files that git does not show as changed and an update would write: ignored, untracked or marked to be skipped."""

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
    """Save the project with those hidden files in a commit outside of all branches, if there are any.

    Args:
        committed: the files of HEAD.
        paths: what the new version may write.
    """
    if run(project, "rev-parse", "--verify", "--quiet", _reference(project)).returncode == 0:
        git(project, "update-ref", "-d", _reference(project))
    there = {path: file for path in paths if (file := on_disk(project / path))}
    prefix = os.fsdecode(git(project, "rev-parse", "--show-prefix").removesuffix(b"\n"))
    names = _names(project, prefix, there)
    changed = {path for path, name in names.items() if path not in committed or committed[path][1] != name}
    before = read(project, committed, changed)
    hidden = sorted(
        path for path in changed if path not in before or not same(before[path].content, there[path].content)
    )
    if not hidden:
        return
    entries = [os.fsencode(f"{there[path].mode} {names[path]}\t{prefix}{path}") + b"\0" for path in hidden]
    with tempfile.TemporaryDirectory(prefix="index.") as folder:
        index = str(Path(folder, "index"))
        git(project, "read-tree", "HEAD", GIT_INDEX_FILE=index)
        git(project, "update-index", "-z", "--index-info", stdin=b"".join(entries), GIT_INDEX_FILE=index)
        tree = git(project, "write-tree", GIT_INDEX_FILE=index).decode().strip()
    made = git(project, *IDENTITY, "commit-tree", "-p", "HEAD", "-m", "Files that git does not show", tree)
    git(project, "update-ref", _reference(project), made.decode().strip())


def saved(project: Path) -> tuple[str, list[str]]:
    """The commit that has what the owner had before the update, and the hidden files in it."""
    done = run(project, "rev-parse", "--verify", "--quiet", f"{_reference(project)}^{{commit}}")
    commit = done.stdout.decode().strip()
    parent = run(project, "rev-parse", "--verify", "--quiet", f"{commit}^").stdout if commit else b""
    if not commit or parent != git(project, "rev-parse", "HEAD"):
        return "HEAD", []
    return commit[:12], split(git(project, "diff", "--relative", "--name-only", "-z", "HEAD", commit))


def _reference(project: Path) -> str:
    """A name that belongs to this working tree and, in a larger repository, to this project."""
    prefix = git(project, "rev-parse", "--show-prefix")
    return f"refs/worktree/copier-update-{hashlib.sha256(prefix).hexdigest()[:12]}"


def _names(project: Path, prefix: str, there: Mapping[str, File]) -> dict[str, str]:
    """The object of each file, as git would store it."""
    plain = [path for path, file in there.items() if file.mode != LINK]
    listed = os.fsencode("".join(f"{prefix}{path}\n" for path in plain))
    made = (
        git(project, "-c", "core.safecrlf=false", "hash-object", "-w", "--stdin-paths", stdin=listed).decode().split()
    )
    names = dict(zip(plain, made, strict=True))
    for path in there.keys() - names.keys():
        names[path] = git(project, "hash-object", "-w", "--stdin", stdin=there[path].content).decode().strip()
    return names
