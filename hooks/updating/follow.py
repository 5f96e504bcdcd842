"""What the owner's files say of modules, files and the package that have another name now."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .git import Tree, git, split
from .imports import Here, Moves, rewrite
from .merge import same
from .rendering import on_disk, write
from .tables import PACKAGE, Tables, module_of

MAX_SIZE = 1_000_000
"""Bytes of a file that is searched for old names."""

MAX_SHOWN = 100
"""Characters of a line that is shown."""


def move_into(new: Path, old: Path) -> None:
    """Move what is in one folder into another, except where that has a file of the same name."""
    if not old.is_dir():
        return
    for entry in sorted(old.iterdir()):
        target = new / entry.name
        if entry.name == "__pycache__":
            shutil.rmtree(entry)
        elif not target.exists():
            new.mkdir(parents=True, exist_ok=True)
            entry.rename(target)
        elif target.is_dir():
            move_into(target, entry)
    if not any(old.iterdir()):
        old.rmdir()


class Follower:
    """Rewrites the owner's imports, and finds what else of the owner's has an old name."""

    def __init__(self, project: Path, new: Tree, skipped: Iterable[str]) -> None:
        self.project = project
        listed = split(git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "."))
        paths = sorted(set(listed) - set(skipped))
        self.modules = {part for path in paths if (module := module_of(path)) for part in _parts(module)}
        self.owned = [path for path in paths if self._has_a_hand_in(path, new)]

    def _has_a_hand_in(self, path: str, new: Tree) -> bool:
        """Whether a file is not as the template has it."""
        there = self.project / path
        if there.is_symlink() or not there.is_file() or there.stat().st_size > MAX_SIZE:
            return False
        content = there.read_bytes()
        return b"\0" not in content and (path not in new or not same(content, new[path].content))

    def rewrite_imports(self, moves: Moves, moved: Mapping[str, str]) -> Iterator[tuple[str, int]]:
        """Rewrite the imports of all Python files; yields the places of those that could not be.

        `moved` has the former path of each file that an update has moved with edits: its own imports are relative to
        that.
        """
        for path in self.owned:
            if (module := module_of(path)) is not None:
                here = Here(_package(path, module), self._former(moved.get(path, path)), self.modules.__contains__)
                content = (self.project / path).read_bytes()
                rewritten = rewrite(content, here, moves)
                if rewritten.content != content:
                    there = on_disk(self.project / path)
                    if there:
                        write(self.project / path, there._replace(content=rewritten.content))
                yield from ((path, line) for line in rewritten.left)

    def _former(self, path: str) -> str:
        return _package(path, module_of(path) or "")

    def mentions(self, pattern: re.Pattern[str] | None) -> Iterator[tuple[str, int]]:
        """The places in which the owner's files have a text."""
        for path in self.owned if pattern else ():
            for number, line in enumerate(self._lines(path), start=1):
                if pattern and pattern.search(line):
                    yield path, number

    def shown(self, places: Iterable[tuple[str, int]]) -> Iterator[str]:
        """Each place with its line."""
        for path, number in sorted(set(places)):
            yield f"{path}:{number}: {self._lines(path)[number - 1].strip()[:MAX_SHOWN]}"

    def _lines(self, path: str) -> list[str]:
        text = (self.project / path).read_bytes().decode(errors="replace")
        return re.split(r"\r\n|\r|\n", text)


def moves_of(tables: Tables, vanished: Iterable[str], before: str, after: str) -> Moves:
    """Where modules and names are now, under the package's old name and its new one."""
    modules: dict[str, str | None] = {module: None for path in vanished if (module := module_of(path))}
    modules |= {module: new[0] if len(new) == 1 else None for module, new in tables.modules()}
    found: dict[str, str | None] = {before: after} if before != after else {}
    names: dict[str, str] = {}
    for package in (before, after):
        for module, new in modules.items():
            found[module.replace(PACKAGE, package)] = new and new.replace(PACKAGE, after)
        for name, place in tables.names.items():
            names[name.replace(PACKAGE, package)] = place.replace(PACKAGE, after)
    return Moves(found, names)


def old_names(vanished: Iterable[str], package: str = "") -> re.Pattern[str] | None:
    """What names a file that is no longer where it was, by path or as a module; and the package's old name.

    None where there is nothing to look for.
    """
    names = {rf"(?<!\w){re.escape(package)}(?!\w)"} if package else set()
    for path in vanished:
        parts = path.split("/")
        inner = parts[2:] if parts[0] == "src" else parts
        if module := module_of("/".join(inner)):
            names.add(rf"(?<!\w){re.escape(module)}(?!\w)")
            names.add(rf"(?<![\w-]){re.escape('/'.join(inner))}(?!\w)")
        else:
            names.add(rf"(?<![\w-])(?:{re.escape('/'.join(parts[:-1]))}/)?{re.escape(parts[-1])}(?!\w)")
    return re.compile("|".join(sorted(names))) if names else None


def _package(path: str, module: str) -> str:
    """The package that a module's relative imports begin in."""
    return module if path.endswith(("/__init__.py", "/__init__.pyi")) else module.rpartition(".")[0]


def _parts(module: str) -> Iterator[str]:
    while module:
        yield module
        module = module.rpartition(".")[0]
