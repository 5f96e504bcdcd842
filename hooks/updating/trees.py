"""The three-way merge of a whole project: the old rendering, what its owner has committed, the new rendering."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .git import LINK, File, Tree
from .merge import merge, same
from .split import Carried, carry


class Relocation(Protocol):
    def __call__(self, path: str, target: str, /, *contents: bytes) -> Sequence[bytes]: ...


class Conflict(NamedTuple):
    """The three versions of a file that both sides changed in the same place."""

    base: File | None
    committed: File
    updated: File
    places: int


@dataclass
class Outcome:
    """What the project must contain after an update, for the files of the template."""

    files: dict[str, File] = field(default_factory=dict)
    """Content of new files, and merged content of files that the owner had changed."""
    untouched: set[str] = field(default_factory=set)
    """Paths of the new version's files that the owner had not changed."""
    absent: set[str] = field(default_factory=set)
    """Paths that must not exist."""
    conflicts: dict[str, Conflict] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    """Old path by new path of each edited file that moved."""
    removed: list[str] = field(default_factory=list)
    """Edited files that the new version does not have."""
    deleted: dict[str, str] = field(default_factory=dict)
    """New path by old path of each file that moved and that the owner had deleted."""
    occupied: dict[str, str] = field(default_factory=dict)
    """New path by old path of each edited file that could not move, because the owner has a file there."""
    split_files: dict[str, tuple[list[str], Carried]] = field(default_factory=dict)
    """The new paths, and where the edits are, by old path of each edited file that was split."""
    links: list[str] = field(default_factory=list)
    """Files that the owner had replaced with symbolic links, and that the new version changes."""


def merge_trees(
    old: Tree,
    committed: Tree,
    new: Tree,
    destinations: Callable[[str], list[str]],
    becomes_owned: Callable[[str], bool] = lambda _: False,
    relocated: Relocation = lambda _path, _target, *contents: contents,
) -> Outcome:
    """Merge what the owner and the template changed in every file of the template.

    Args:
        old: the rendering of the version that the project came from.
        committed: the owner's files.
        new: the rendering of the new version.
        destinations: returns the new paths of an old path.
        becomes_owned: returns whether a path is user-owned in the new version.
        relocated: returns versions of a file of the old path with their imports as they are at the new one.

    Raises:
        ProjectError: git cannot merge a file.
    """
    outcome = Outcome()
    destinations_by_path = {path: destinations(path) for path in sorted(old)}
    for path, targets in destinations_by_path.items():
        if path not in committed:
            _keep_deleted(outcome, path, targets, committed)
        elif not targets:
            if not becomes_owned(path):
                outcome.absent.add(path)
                outcome.removed += [] if _unchanged(old[path], committed[path]) else [path]
        else:
            outcome.absent |= {path} - set(targets) - set(new)
            if _unchanged(old[path], committed[path]):
                outcome.untouched |= set(targets)
            elif len(targets) == 1:
                _merge(outcome, path, targets[0], old, committed, new, relocated)
            else:
                _split(outcome, path, targets, old, committed, new, relocated)
    for path in set(old) & set(new) - set(outcome.files):  # a new file with the name of one that moved
        if (
            path in committed
            and path not in destinations_by_path[path]
            and not any(path in targets for targets in destinations_by_path.values())
        ):
            outcome.files[path] = new[path]
    destinations_of_old = {target for targets in destinations_by_path.values() for target in targets}
    for path in sorted(set(new) & set(committed) - destinations_of_old - set(old)):
        if not _unchanged(committed[path], new[path]):
            _store(outcome, path, None, committed[path], new[path])
    for path in new.keys() - committed.keys() - outcome.absent - outcome.untouched - outcome.files.keys():
        outcome.files[path] = new[path]
    outcome.untouched -= outcome.files.keys()
    return outcome


def _unchanged(one: File, other: File) -> bool:
    return one.mode == other.mode and same(one.content, other.content)


def _keep_deleted(outcome: Outcome, path: str, targets: list[str], committed: Tree) -> None:
    if len(targets) == 1 and targets[0] not in committed:
        outcome.absent.add(targets[0])
        if targets[0] != path:
            outcome.deleted[path] = targets[0]


def _merge(
    outcome: Outcome, path: str, target: str, old: Tree, committed: Tree, new: Tree, relocated: Relocation
) -> None:
    if target != path and target in committed and target not in old:
        outcome.occupied[path] = target
        return
    if committed[path].mode == LINK != old[path].mode:
        outcome.files[path] = committed[path]
        outcome.absent |= {target} - {path}
        outcome.links += [] if _unchanged(old[path], new[target]) else [path]
        return
    base, owner_file = old[path], committed[path]
    if target != path:
        outcome.moved[target] = path
        contents = relocated(path, target, base.content, owner_file.content)
        base, owner_file = (
            file._replace(content=content) for file, content in zip((base, owner_file), contents, strict=True)
        )
    _store(outcome, target, base, owner_file, outcome.files.get(target, new[target]))


def _store(outcome: Outcome, target: str, base: File | None, committed: File, updated: File) -> None:
    merged = merge(target, base.content if base else b"", committed.content, updated.content)
    mode = updated.mode if base and committed.mode == base.mode else committed.mode
    outcome.files[target] = File(merged.content, mode)
    if merged.conflicts:
        outcome.conflicts[target] = Conflict(base, committed, updated, merged.conflicts)


def _split(
    outcome: Outcome, path: str, targets: list[str], old: Tree, committed: Tree, new: Tree, relocated: Relocation
) -> None:
    current: Mapping[str, File] = {target: outcome.files.get(target, new[target]) for target in targets}
    contents = {target: file.content for target, file in current.items()}
    base, edited = old[path].content, committed[path].content
    carried = carry(path, base, edited, contents, {target: relocated(path, target, base, edited) for target in targets})
    outcome.files |= {target: File(content, current[target].mode) for target, content in carried.contents.items()}
    for target, places in carried.conflicts.items():
        earlier = outcome.conflicts[target].places if target in outcome.conflicts else 0
        outcome.conflicts[target] = Conflict(old[path], committed[path], current[target], earlier + places)
    outcome.split_files[path] = (targets, carried)
