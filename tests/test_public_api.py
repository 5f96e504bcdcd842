"""Code in the documentation imports only the public API: the names in `__all__` of the `production` package."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from copier import run_copy

from .support import DOCUMENTATION, EVERYTHING, ROOT, files

TESTING = "production.testing"
"""The one submodule that owners use, for their tests: its fixtures and their types."""

FIXTURES = {"Api", "Call", "Server", "api", "call", "server"}

BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text files of a project with every feature, by path."""
    directory = tmp_path_factory.mktemp("public-api") / "project"
    run_copy(
        str(template),
        directory,
        data=EVERYTHING | {"upstream_auth": "per_caller"},
        defaults=True,
        skip_tasks=True,
        quiet=True,
    )
    return {path: content.decode() for path, content in files(directory).items()}


@pytest.fixture(scope="module")
def public(project: Mapping[str, str]) -> frozenset[str]:
    """The names in `__all__` of the `production` package."""
    tree = ast.parse(project["src/weather_station/production/__init__.py"])
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return frozenset(names)


@pytest.fixture(scope="module")
def blocks(project: Mapping[str, str]) -> list[tuple[str, str]]:
    """Every Python code block of the documentation, with the path of its page."""
    pages = {f"template/docs/{path.name}": path.read_text("utf-8") for path in (ROOT / "template/docs").glob("*.md")}
    pages |= {path: text for path, text in project.items() if path.endswith(".md") and f"template/{path}" not in pages}
    pages |= {f"{path.name} of the template": path.read_text("utf-8") for path in DOCUMENTATION}
    assert {"README.md", "AGENTS.md", "template/docs/metrics.md", "docs/tools.md", "docs/deployment.md"} <= pages.keys()
    return [
        (page, textwrap.dedent(match["code"])) for page, text in sorted(pages.items()) for match in BLOCK.finditer(text)
    ]


def test_code_in_the_documentation_imports_only_the_public_api(
    blocks: list[tuple[str, str]], public: frozenset[str]
) -> None:
    assert len(blocks) >= 10
    assert [f"{page}: {problem}" for page, code in blocks for problem in problems(code, public)] == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from ..production import upstream", []),
        ("from weather_station.production import upstream", []),
        ("from production.testing import Api", []),
        ("from production.testing import create_server", ["create_server is no fixture of production.testing"]),
        ("from ..production import chain", ["chain is not exported by production"]),
        ("from ..production.upstream.errors import UpstreamError", ["production.upstream.errors is imported"]),
        ("import weather_station.production.config", ["production.config is imported"]),
        ("from weather_station.production import *", ["* is not exported by production"]),
        ("await upstream(ctx).get_json('/')", ["upstream is used but not imported"]),
        ("async def test_it(upstream): await upstream(1)", []),
        ("def (", ["not valid Python: invalid syntax"]),
    ],
)
def test_a_problem_in_a_block_is_found(code: str, expected: list[str]) -> None:
    assert list(problems(code, frozenset({"upstream"}))) == expected


def problems(code: str, public: frozenset[str]) -> Iterator[str]:
    """What a block imports beside the public API, and which public names it uses without importing them."""
    try:
        compiled = compile(code, "block", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        yield f"not valid Python: {error.msg}"
        return
    assert isinstance(compiled, ast.Module)
    bound, used = set[str](), set[str]()
    for node in ast.walk(compiled):
        match node:
            case ast.ImportFrom(module=module, names=aliases):
                bound.update(alias.asname or alias.name for alias in aliases)
                yield from _wrong_imports(module or "", [alias.name for alias in aliases], public)
            case ast.Import(names=aliases):
                bound.update((alias.asname or alias.name).partition(".")[0] for alias in aliases)
                for alias in aliases:
                    yield from _wrong_imports(alias.name, [], public)
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
    yield from (f"{name} is used but not imported" for name in sorted(used & public - bound))


def _wrong_imports(module: str, names: list[str], public: frozenset[str]) -> Iterator[str]:
    """What is wrong with the import of `names` from `module`, where that is the production package or a part of it."""
    parts = module.split(".")
    if "production" not in parts:
        return
    module = ".".join(parts[parts.index("production") :])
    if module == "production":
        yield from (f"{name} is not exported by production" for name in names if name not in public)
    elif module == TESTING:
        yield from (f"{name} is no fixture of {TESTING}" for name in names if name not in FIXTURES)
    else:
        yield f"{module} is imported"
