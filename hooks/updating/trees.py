"""The three-way merge of a whole project: the old rendering, what its owner has committed, the new rendering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .git import LINK, File, Tree
from .merge import merge, same
from .split import Unplaced, carry


class Conflict(NamedTuple):
    """The three versions of a file that both sides changed in the same place."""

    base: File | None
    mine: File
    theirs: File
    places: int


@dataclass
class Outcome:
    """What has to be in the project after an update, as far as its owner had a part in it."""

    files: dict[str, File] = field(default_factory=dict)
    """Files that the owner had changed, merged."""
    untouched: dict[str, str] = field(default_factory=dict)
    """By path of a file that is as the new version has it, its path before."""
    absent: set[str] = field(default_factory=set)
    """Paths at which there is no file."""
    conflicts: dict[str, Conflict] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    """The old path of each edited file that has a new one."""
    removed: list[str] = field(default_factory=list)
    """Edited files that the new version does not have."""
    deleted: dict[str, str] = field(default_factory=dict)
    """New paths of files that the owner had deleted, by old path."""
    taken: dict[str, str] = field(default_factory=dict)
    """New paths, by old path of an edited file, at which the owner has a file of another kind."""
    carried: dict[str, tuple[list[str], int, list[Unplaced]]] = field(default_factory=dict)
    """By old path of an edited file that is several now: those, how many edits are in them, and the others."""
    linked: list[str] = field(default_factory=list)
    """Files that the owner had replaced with symbolic links, and that the new version changes."""


def merge_trees(
    old: Tree,
    mine: Tree,
    new: Tree,
    destinations: Callable[[str], list[str]],
    handed_over: Callable[[str], bool] = lambda _: False,
) -> Outcome:
    """Merge what the owner and the template changed in every file of the template.

    `destinations` says where an old path is in the new version. A path that is `handed_over` is the owner's alone
    from the new version on.
    """
    outcome = Outcome()
    origins = {path: destinations(path) for path in sorted(old)}
    for path, targets in origins.items():
        if path not in mine:
            _stays_deleted(outcome, path, targets, mine)
        elif not targets:
            if not handed_over(path):
                outcome.absent.add(path)
                outcome.removed += [] if _unchanged(old[path], mine[path]) else [path]
        else:
            outcome.absent |= {path} - set(targets) - set(new)
            if _unchanged(old[path], mine[path]):
                outcome.untouched |= dict.fromkeys(targets, path)
            elif len(targets) == 1:
                _merge(outcome, path, targets[0], old, mine, new)
            else:
                _split(outcome, path, targets, old, mine, new)
    for path in set(old) & set(new) - set(outcome.files):  # a new file that has the name of one that moved
        if path in mine and path not in origins[path] and not any(path in targets for targets in origins.values()):
            outcome.files[path] = new[path]
    made = {target for targets in origins.values() for target in targets}
    for path in sorted(set(new) & set(mine) - made - set(old)):
        if not _unchanged(mine[path], new[path]):
            _store(outcome, path, None, mine[path], new[path])
    for target in outcome.files:
        outcome.untouched.pop(target, None)
    return outcome


def _unchanged(one: File, other: File) -> bool:
    return one.mode == other.mode and same(one.content, other.content)


def _stays_deleted(outcome: Outcome, path: str, targets: list[str], mine: Tree) -> None:
    if len(targets) == 1 and targets[0] not in mine:
        outcome.absent.add(targets[0])
        if targets[0] != path:
            outcome.deleted[path] = targets[0]


def _merge(outcome: Outcome, path: str, target: str, old: Tree, mine: Tree, new: Tree) -> None:
    if target != path and target in mine and target not in old:
        outcome.taken[path] = target
        return
    if mine[path].mode == LINK != old[path].mode:
        outcome.files[path] = mine[path]
        outcome.absent |= {target} - {path}
        outcome.linked += [] if _unchanged(old[path], new[target]) else [path]
        return
    _store(outcome, target, old[path], mine[path], outcome.files.get(target, new[target]))
    if target != path:
        outcome.moved[target] = path


def _store(outcome: Outcome, target: str, base: File | None, mine: File, theirs: File) -> None:
    merged = merge(target, base.content if base else b"", mine.content, theirs.content)
    mode = theirs.mode if base and mine.mode == base.mode else mine.mode
    outcome.files[target] = File(merged.content, mode)
    if merged.conflicts:
        outcome.conflicts[target] = Conflict(base, mine, theirs, merged.conflicts)


def _split(outcome: Outcome, path: str, targets: list[str], old: Tree, mine: Tree, new: Tree) -> None:
    current: Mapping[str, File] = {target: outcome.files.get(target, new[target]) for target in targets}
    contents = {target: file.content for target, file in current.items()}
    changed, placed, unplaced = carry(path, old[path].content, mine[path].content, contents)
    outcome.files |= {target: File(content, current[target].mode) for target, content in changed.items()}
    outcome.carried[path] = (targets, placed, unplaced)
