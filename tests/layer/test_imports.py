"""Imports between the modules of the package: no cycle, and the rule of the subpackages."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from harness import PROJECT

PACKAGE = PROJECT / "src" / "weather_station"
INDEPENDENT = ("observe", "upstream")
"""Subpackages that import neither of `FORBIDDEN`."""

FORBIDDEN = ("inbound", "serve")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    """Return the modules by name, without the owner's."""
    return {name_of(path): path for path in PACKAGE.rglob("*.py") if "tools" not in path.relative_to(PACKAGE).parts}


def imports(name: str, path: Path, modules: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules that a module imports anywhere: at its top, for types only, or inside a function."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            target = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                found = f"{target}.{alias.name}"
                yield found if found in modules else target
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Which module imports which others of the package."""
    modules = sources()
    return {
        name: {found for found in imports(name, path, modules) if found in modules} for name, path in modules.items()
    }


def test_no_modules_import_each_other_in_a_circle(graph: Mapping[str, set[str]]) -> None:
    assert len(graph) > 20
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("subpackage", INDEPENDENT)
def test_the_subpackage_imports_neither_inbound_nor_serve(graph: Mapping[str, set[str]], subpackage: str) -> None:
    production = f"{PACKAGE.name}.production"
    own = [name for name in graph if name.startswith(f"{production}.{subpackage}.")]
    assert own
    forbidden = tuple(f"{production}.{name}" for name in FORBIDDEN)
    found = {
        f"{name} imports {other}" for name in own for other in _reached(graph, name) if other.startswith(forbidden)
    }
    assert found == set()


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    """Return the modules that `start` imports, directly or through others."""
    reached: set[str] = set()
    pending = [start]
    while pending:
        new = graph[pending.pop()] - reached
        reached |= new
        pending += new
    return reached
