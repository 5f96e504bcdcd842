"""What the migrations say of files, modules and names, as data."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

PACKAGE = "{{ package_name }}"


class Tables:
    """The tables of all migrations that an update brings, oldest first; paths are those under template/."""

    def __init__(self, migrations: Iterable[Mapping[str, Any]] = ()) -> None:
        self.moved: dict[str, tuple[str, ...]] = {}
        """The new paths of each file that has one or several."""
        self.gone: dict[str, str] = {}
        """A sentence by path or pattern of files that have no new path."""
        self.seeded: list[str] = []
        self.names: dict[str, str] = {}
        """New places of what tools import, by old: `module:name`."""
        for migration in migrations:
            self.moved |= {old: (new,) for old, new in migration.get("MOVED", {}).items()}
            self.moved |= {old: tuple(new) for old, new in migration.get("SPLIT", {}).items()}
            self.gone |= migration.get("GONE", {})
            self.seeded += migration.get("SEEDED", ())
            self.names |= migration.get("NAMES", {})

    def destinations(self, path: str, there: Container[str], seen: frozenset[str] = frozenset()) -> list[str]:
        """Where a file of the old version is in the new one, after as many moves as there were.

        A path that has moved nowhere, or to paths that the answers leave out, is where it was, if it is there at all.
        """
        found: dict[str, None] = {}
        for target in self.moved.get(path, ()):
            if target == path or target in seen:
                found |= dict.fromkeys([target] if target in there else [])
            else:
                found |= dict.fromkeys(self.destinations(target, there, seen | {path}))
        return list(found) or ([path] if path in there else [])

    def knows(self, path: str) -> bool:
        """Whether a migration says what became of a path."""
        return path in self.moved or any(covers(pattern, path) for pattern in self.gone)

    def reason(self, path: str) -> str:
        """What takes the place of a removed file, by its own entry or the first pattern that covers it."""
        if path in self.gone:
            return self.gone[path]
        return next((reason for pattern, reason in self.gone.items() if covers(pattern, path)), "")

    def modules(self) -> Iterator[tuple[str, list[str]]]:
        """Each module that is no longer where it was, with its new places."""
        for old, new in self.moved.items():
            if (module := module_of(old)) is not None:
                yield module, [name for path in new if (name := module_of(path)) is not None]


def covers(pattern: str, path: str) -> bool:
    """Whether a pattern means a path: `*` is a part of one name, `**` any number of folders and names."""
    parts = re.split(r"(\*\*|\*)", pattern)
    return bool(re.fullmatch("".join({"**": ".+", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts), path))


def module_of(path: str) -> str | None:
    """The dotted name of a Python file of a project: below src/, or of its tests."""
    if not path.endswith((".py", ".pyi")):
        return None
    parts = path.rpartition(".")[0].removeprefix("src/").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) if parts and all(part.isidentifier() or part == PACKAGE for part in parts) else None
