"""References in the owner's files to modules, files and a package that were renamed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from .git import Tree, git, split
from .imports import ModuleContext, Moves, rewrite
from .merge import same
from .rendering import on_disk, write
from .tables import PACKAGE, Tables, module_of

MAX_SIZE = 1_000_000
"""Maximum size in bytes of a file that is searched for old names."""

MAX_SHOWN = 100
"""Maximum number of characters of a line that is printed."""


def move_into(new: Path, old: Path) -> None:
    """Move the contents of folder `old` into `new`, except files of which `new` has one of the same name."""
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


class ReferenceUpdater:
    """Rewrites imports in the owner's files, and finds other lines with an old name."""

    def __init__(self, project: Path, new: Tree, skipped: Iterable[str]) -> None:
        self.project = project
        listed = split(git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "."))
        paths = sorted(set(listed) - set(skipped))
        self.owned = [path for path in paths if self._is_edited(path, new)]

    def _is_edited(self, path: str, new: Tree) -> bool:
        """Return whether a text file differs from the template's."""
        existing = self.project / path
        if existing.is_symlink() or not existing.is_file() or existing.stat().st_size > MAX_SIZE:
            return False
        content = existing.read_bytes()
        return b"\0" not in content and (path not in new or not same(content, new[path].content))

    def rewrite_imports(self, moves: Moves) -> Iterator[tuple[str, int]]:
        """Rewrite the imports of all Python files; yield path and line number of those that could not be rewritten."""
        for path in self.owned:
            if (context := context_of(path)) is not None:
                content = (self.project / path).read_bytes()
                rewritten = rewrite(content, context, moves)
                if rewritten.content != content:
                    existing = on_disk(self.project / path)
                    if existing:
                        write(self.project / path, existing._replace(content=rewritten.content))
                yield from ((path, line) for line in rewritten.unresolved)

    def mentions(self, pattern: re.Pattern[str] | None) -> Iterator[tuple[str, int]]:
        """Yield path and line number of each line of the owner's files that matches."""
        for path in self.owned if pattern else ():
            for number, line in enumerate(self._lines(path), start=1):
                if pattern and pattern.search(line):
                    yield path, number

    def with_text(self, places: Iterable[tuple[str, int]]) -> Iterator[str]:
        """Yield each place with the text of its line."""
        for path, number in sorted(set(places)):
            yield f"{path}:{number}: {self._lines(path)[number - 1].strip()[:MAX_SHOWN]}"

    def _lines(self, path: str) -> list[str]:
        text = (self.project / path).read_bytes().decode(errors="replace")
        return re.split(r"\r\n|\r|\n", text)


def moves_of(tables: Tables, vanished: Iterable[str], before: str, after: str) -> Moves:
    """Return the moved modules and names, under the package's old name and its new one.

    Args:
        vanished: paths of the old version that no longer exist.
        before: the package's old name.
        after: the package's new name.
    """
    modules: dict[str, str | None] = {module: None for path in vanished if (module := module_of(path))}
    modules |= {module: new[0] if len(new) == 1 else None for module, new in tables.modules()}
    new_modules: dict[str, str | None] = {before: after} if before != after else {}
    names: dict[str, str] = {}
    for package in (before, after):
        for module, new in modules.items():
            new_modules[module.replace(PACKAGE, package)] = new and new.replace(PACKAGE, after)
        for name, place in tables.names.items():
            names[name.replace(PACKAGE, package)] = place.replace(PACKAGE, after)
    return Moves(new_modules, names)


def old_names(vanished: Iterable[str], package: str = "") -> re.Pattern[str] | None:
    """Return a pattern of the old names of files, as paths and as modules, and of the package's old name.

    None if there is nothing to search for.
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


def context_of(path: str) -> ModuleContext | None:
    """Return the package that the relative imports of a Python file are relative to; None for another file."""
    if (module := module_of(path)) is None:
        return None
    return ModuleContext(module if path.endswith(("/__init__.py", "/__init__.pyi")) else module.rpartition(".")[0])
