"""The migration to 0.2.0 knows every module of 0.1.0 and every import that its pages taught."""

from __future__ import annotations

import re

import pytest
from updating.git import File
from updating.imports import ModuleContext, rewrite
from updating.references import moves_of
from updating.tables import PACKAGE, Tables
from updating.trees import merge_trees

from .releases import git, merged_migrations, paths_of, releases

PRODUCTION = f"src/{PACKAGE}/production"
UNMOVED = ("__init__", "config", "features")
LAST_FLAT = "04dedde6c37f26cc807f14b35f5f0b3d630e7809"
"""The last commit before the subpackages; some of its modules came after 0.1.0."""


@pytest.fixture(scope="module")
def tables() -> Tables:
    return merged_migrations().tables


@pytest.fixture(scope="module")
def commit() -> str:
    return releases()[0].commit


def test_every_module_of_the_production_layer_has_a_migration(tables: Tables, commit: str) -> None:
    known = paths_of(commit) | paths_of(LAST_FLAT)
    modules = [path for path in sorted(known) if re.fullmatch(rf"{re.escape(PRODUCTION)}/\w+\.py", path)]
    assert len(modules) > 25
    assert [path for path in modules if not tables.describes(path)] == [f"{PRODUCTION}/{name}.py" for name in UNMOVED]


def test_every_entry_names_a_file_of_an_earlier_version(tables: Tables, commit: str) -> None:
    assert tables.moved.keys() <= paths_of(commit) | paths_of(LAST_FLAT)


def test_modules_are_in_the_four_subpackages_or_beside_them(tables: Tables) -> None:
    places = {target.removeprefix(f"{PRODUCTION}/") for targets in tables.moved.values() for target in targets}
    modules = {place for place in places if place.endswith(".py")}
    outside = {
        module for module in modules if module.partition("/")[0] not in ("inbound", "upstream", "observe", "serve")
    }
    assert outside == {"registry.py", "request.py", "sdk.py"}


def test_an_edit_of_every_file_is_merged_or_reported(tables: Tables) -> None:
    """With trees in which each new file has the lines of its old one, and only the first of several has them."""
    text = "".join(f"line {number} of {{path}}\n" for number in range(12))
    old = {path: text.format(path=path) for path in tables.moved} | {"tests/production/test_guard.py": "GUARD = 1\n"}
    edited = {path: content.replace("line 6", "my line 6") for path, content in old.items()}
    edited["tests/production/test_guard.py"] = "GUARD = 2\n"
    new = {target: "Other.\n" for targets in tables.moved.values() for target in targets}
    new |= {targets[0]: old[path] + "The end.\n" for path, targets in tables.moved.items()}
    base, owners, updated = (
        {path: File(content.encode()) for path, content in tree.items()} for tree in (old, edited, new)
    )
    outcome = merge_trees(base, owners, updated, lambda path: tables.destinations(path, new))
    for path, targets in tables.moved.items():
        assert outcome.files[targets[0]].content.decode() == edited[path] + "The end.\n", path
    assert outcome.conflicts == {}
    assert outcome.removed == ["tests/production/test_guard.py"]
    assert "algorithms" in tables.reason("tests/production/test_guard.py")
    assert not any(carried.unplaced for _, carried in outcome.split_files.values())


def taught(commit: str) -> list[str]:
    """The Python of all pages of 0.1.0."""
    pages = [path for path in git("ls-tree", "-r", "--name-only", commit, "template/").split("\n") if ".md" in path]
    texts = [git("show", f"{commit}:{path}") for path in pages]
    return [code for text in texts for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


TOOL = """\
from __future__ import annotations

from typing import TYPE_CHECKING

from ..production import get_logger, upstream
from ..production.circuit_breaker import CircuitOpenError
from ..production.client import UpstreamStatusError, UpstreamTimeoutError

if TYPE_CHECKING:
    from ..production.app import ProductionServer
"""
REWRITTEN_TOOL = """\
from __future__ import annotations

from typing import TYPE_CHECKING

from ..production import CircuitOpenError, UpstreamStatusError, UpstreamTimeoutError, get_logger, upstream

if TYPE_CHECKING:
    from ..production.sdk import ProductionServer
"""
METER = """\
from ..production.app import production_of


def register(server):
    orders = production_of(server).meter.counter("orders_total", "Orders placed.", ("kind",))
"""
TEST = """\
import my_server.production.health
from my_server.production.client import UpstreamStatusError

from .production.smoke import stand_in

monkeypatch.setattr("my_server.production.client.Upstream", None)
assert my_server.production.health.install
"""


def test_the_imports_of_the_documentation_of_0_1_0_are_rewritten(tables: Tables, commit: str) -> None:
    moves = moves_of(tables, [], "my_server", "my_server")
    tool, test = (ModuleContext(name) for name in ("my_server.tools", "tests"))

    def rewritten(source: str, here: ModuleContext) -> str:
        result = rewrite(source.encode(), here, moves)
        assert result.unresolved == []
        return result.content.decode()

    assert rewritten(TOOL, tool) == REWRITTEN_TOOL
    assert rewritten(METER, tool) == METER.replace(".app import production_of", " import meter").replace(
        "production_of(server).meter", "meter(server)"
    )
    assert rewritten(TEST, test) == TEST.replace("production.health", "production.observe.health").replace(
        "production.client import", "production import"
    )
    codes = taught(commit)
    assert sum("..production" in code for code in codes) > 8
    for code in codes:
        rewritten(code, tool)
