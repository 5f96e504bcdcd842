"""The tables of the migrations: moved, split and removed files, seeded files, and names."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

PACKAGE = "{{ package_name }}"


class Tables:
    """The tables of all migrations that an update brings, oldest first; paths are those under template/."""

    def __init__(self, migrations: Iterable[Mapping[str, Any]] = ()) -> None:
        self.moved: dict[str, tuple[str, ...]] = {}
        """New paths by old path of each file that was moved or split."""
        self.gone: dict[str, str] = {}
        """Explanation by path or pattern of removed files."""
        self.seeded: list[str] = []
        self.names: dict[str, str] = {}
        """New `module:name` by old, of names that tools import."""
        for migration in migrations:
            self.moved |= {old: (new,) for old, new in migration.get("MOVED", {}).items()}
            self.moved |= {old: tuple(new) for old, new in migration.get("SPLIT", {}).items()}
            self.gone |= migration.get("GONE", {})
            self.seeded += migration.get("SEEDED", ())
            self.names |= migration.get("NAMES", {})

    def destinations(self, path: str, available: Container[str], visited: frozenset[str] = frozenset()) -> list[str]:
        """Return the paths in the new version of a file of the old version, across any number of moves.

        A path that has not moved, or only to paths that are not `available`, stays, if it is `available`.
        """
        targets: dict[str, None] = {}
        for target in self.moved.get(path, ()):
            if target == path or target in visited:
                targets |= dict.fromkeys([target] if target in available else [])
            else:
                targets |= dict.fromkeys(self.destinations(target, available, visited | {path}))
        return list(targets) or ([path] if path in available else [])

    def describes(self, path: str) -> bool:
        """Return whether a migration has an entry for a path."""
        return path in self.moved or any(covers(pattern, path) for pattern in self.gone)

    def reason(self, path: str) -> str:
        """Return the explanation of a removed file, from its own entry or the first pattern that covers it, or `""`."""
        if path in self.gone:
            return self.gone[path]
        return next((reason for pattern, reason in self.gone.items() if covers(pattern, path)), "")

    def modules(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each module that was moved or split, with its new names."""
        for old, new in self.moved.items():
            if (module := module_of(old)) is not None:
                yield module, [name for path in new if (name := module_of(path)) is not None]


def covers(pattern: str, path: str) -> bool:
    """Return whether a pattern matches a path: `*` is a part of one name, `**` any number of folders and names."""
    parts = re.split(r"(\*\*|\*)", pattern)
    return bool(re.fullmatch("".join({"**": ".+", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts), path))


def module_of(path: str) -> str | None:
    """Return the dotted module name of a Python file below src/ or tests/, or None."""
    if not path.endswith((".py", ".pyi")):
        return None
    parts = path.rpartition(".")[0].removeprefix("src/").split("/")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts) if parts and all(part.isidentifier() or part == PACKAGE for part in parts) else None
