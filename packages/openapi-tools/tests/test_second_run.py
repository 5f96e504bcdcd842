"""A second run: what the owner has not changed follows the document, and everything else stays."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from document_builders import document_with, json_response, operation_with
from openapi_tools import cli
from openapi_tools.parts import fingerprint, joined, split

TOOLS = Path("src/package/tools")
THING = {"type": "object", "properties": {"id": {"type": "integer"}, "part": {"$ref": "#/components/schemas/Part"}}}
PART = {"type": "object", "properties": {"name": {"type": "string"}}}
EMPTY = {"200": {"description": "OK"}}


def api(**operations: dict[str, Any]) -> dict[str, Any]:
    """Return a document with a GET for each operation; by default each answers with a thing."""
    reference = {"$ref": "#/components/schemas/Thing"}
    paths = {
        f"/{name}": {
            "get": operation_with(operationId=name, tags=["Every"], responses=json_response(reference)) | fields
        }
        for name, fields in operations.items()
    }
    return document_with(paths, schemas={"Thing": THING, "Part": PART})


def run(project: Path, document: dict[str, Any], *options: str) -> int:
    path = project / "openapi.json"
    path.write_text(json.dumps(document))
    return cli.main([str(path), "--package", "package", "--output", str(project), *options])


def source(project: Path, name: str = "every") -> str:
    return (project / TOOLS / f"{name}.py").read_text()


def files(project: Path) -> dict[str, str]:
    paths = [path for path in project.rglob("*") if path.is_file() and path.name != "openapi.json"]
    paths.append(project / "tests" / "openapi.json")
    return {path.relative_to(project).as_posix(): path.read_text() for path in paths}


def edit(project: Path, old: str, new: str) -> None:
    text = source(project)
    assert text.count(old) == 1, text
    (project / TOOLS / "every.py").write_text(text.replace(old, new))


def fingerprints(project: Path, name: str) -> dict[str, str]:
    return {part: fingerprint(text) for part, text in split(source(project, name)).items()}


def test_the_same_document_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, api(one={}, two={})) == 0
    before = files(tmp_path)
    assert run(tmp_path, api(one={}, two={})) == 0
    assert files(tmp_path) == before
    assert "The operations are the same." in capsys.readouterr().out


def test_a_new_version_of_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, api(one={}, two={}, gone={})) == 0
    required = [{"name": "q", "in": "query", "required": True, "schema": {"type": "string"}}]
    second = api(one={"parameters": required}, two={}, new={})
    before = files(tmp_path)
    capsys.readouterr()
    assert run(tmp_path, second, "--diff") == 0
    shown = capsys.readouterr().out
    assert files(tmp_path) == before
    for line in (
        "added: GET /new (new)",
        "removed (breaking): GET /gone (gone)",
        "changed: GET /one (one): argument q is new and required (breaking)",
        "write src/package/tools/every.py",
    ):
        assert line in shown
    assert run(tmp_path, second) == 0
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert run(fresh, second) == 0
    for name in ("every", "_models"):
        assert fingerprints(tmp_path, name) == fingerprints(fresh, name)
    cases = json.loads((tmp_path / "tests/openapi.json").read_text())
    assert [case["tool"] for case in cases] == ["one", "two", "new"]


def test_edited_parts_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, api(one={"summary": "First"}, two={}, three={}, four={})) == 0
    edit(tmp_path, '"""First\n', '"""Mine: first\n')
    edit(tmp_path, "from typing import Any\n", "import os\nfrom typing import Any\n")
    parts = split(source(tmp_path))
    del parts["two"]
    parts["helper"] = "# of my own\ndef helper() -> str:\n    return os.sep\n"
    parts["register"] = parts["register"].replace('    add(server, two, "Two", READ_ONLY)\n', "    print(helper())\n")
    (tmp_path / TOOLS / "every.py").write_text(joined(parts))
    capsys.readouterr()
    second = api(one={"summary": "Erste"}, two={"summary": "Zwei"}, three={}, five={})
    assert run(tmp_path, second) == 0
    after = split(source(tmp_path))
    assert set(after) == {"", "one", "three", "five", "helper", "register"}
    assert '"""Mine: first' in after["one"]
    assert "# of my own" in after["helper"]
    assert "import os" in after[""]
    assert "print(helper())" in after["register"]
    assert "add(server, five" in after["register"]
    assert "two" not in after["register"]
    assert "four" not in after["register"]
    compile(source(tmp_path), "every.py", "exec")
    shown = capsys.readouterr().out
    assert "one: kept, since you have changed it; the document changed it too" in shown
    assert "two: not written, since you have deleted it" in shown
    assert run(tmp_path, second) == 0
    assert split(source(tmp_path)).keys() == after.keys()


def test_a_model_that_a_kept_tool_needs_stays(tmp_path: Path) -> None:
    assert run(tmp_path, api(one={}, two={"responses": EMPTY})) == 0
    edit(tmp_path, '"""One\n', '"""Mine\n')
    assert run(tmp_path, api(two={"responses": EMPTY})) == 0
    assert set(split(source(tmp_path))) == {"", "one", "two", "register"}
    assert set(split(source(tmp_path, "_models"))) == {"", "Thing", "Part"}


def test_a_module_without_operations_is_removed_unless_it_has_something_of_the_owner(tmp_path: Path) -> None:
    assert run(tmp_path, api(one={"tags": ["A"]}, two={"tags": ["B"]}, three={"tags": ["C"]})) == 0
    with (tmp_path / TOOLS / "b.py").open("a") as file:
        file.write("\n\ndef mine() -> None: ...\n")
    assert run(tmp_path, api(three={"tags": ["C"]})) == 0
    assert not (tmp_path / TOOLS / "a.py").exists()
    assert set(split(source(tmp_path, "b"))) == {"", "mine", "register"}


def test_another_selection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, api(one={}, two={}), "--only", "one") == 0
    capsys.readouterr()
    assert run(tmp_path, api(one={}, two={}), "--only", "two") == 0
    assert "def one" not in source(tmp_path)
    assert "removed (breaking): GET /one (one)" in capsys.readouterr().out


def test_formatting_does_not_count_as_a_change() -> None:
    text = 'def f(a: int, b: str = "x") -> None:\n    """Do it."""\n    return g(a, b)\n'
    formatted = "def f(\n    a: int,\n    b: str = 'x',\n) -> None:\n    '''Do it.'''\n    return g(\n        a, b)\n"
    assert fingerprint(text) == fingerprint(formatted)
    assert fingerprint(text) != fingerprint(text.replace("return g", "return g  # why\\\n    "))
    assert fingerprint(text) != fingerprint(text.replace("Do it", "Do that"))


def test_edits_in_a_project_of_0_1_0_are_found_with_git(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tools = tmp_path / TOOLS
    tools.mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    head = '"""Tools for all of T, generated from its OpenAPI document."""\n\nfrom ._api import call\n\n\n'
    (tools / "__init__.py").write_text('"""The tools."""\n')
    (tools / "_api.py").write_text('"""Requests of the tools."""\n\n\ndef call() -> None: ...\n')
    for name in ("every", "old", "edited"):
        (tools / f"{name}.py").write_text(f"{head}async def {name}() -> None:\n    return call()\n")
    (tools / "own.py").write_text('"""Mine."""\n')
    (tmp_path / "tests/test_openapi.py").write_text('"""Tests."""\n')
    (tmp_path / "tests/openapi.json").write_text("[]")
    author = ("-c", "user.name=x", "-c", "user.email=x@example.com")
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    with (tools / "edited.py").open("a") as file:
        file.write("\n\ndef mine() -> None: ...\n")
    assert run(tmp_path, api(one={}), "--diff") == 0
    assert "edited.py: kept with _api.py, which it uses, since you have changed it" in capsys.readouterr().out
    assert run(tmp_path, api(one={})) == 0
    assert "production.openapi import" in source(tmp_path)
    assert not (tools / "old.py").exists()
    assert "def mine" in source(tmp_path, "edited")
    assert (tools / "_api.py").exists()
    assert source(tmp_path, "own") == '"""Mine."""\n'


def as_earlier(project: Path) -> None:
    """Give the project the tests and cases of a version that called `rejected` `refused`, as it had made them."""
    cases, tests = project / "tests/openapi.json", project / "tests/test_openapi.py"
    cases.write_text(cases.read_text().replace('"rejected"', '"refused"'))
    text = tests.read_text().replace('case.get("rejected", case.get("refused"))', 'case["refused"]')
    tests.write_text(text)
    state = json.loads((project / "openapi-tools.json").read_text())
    state["parts"]["tests/openapi.json"] = {
        case["tool"]: fingerprint(json.dumps(case)) for case in json.loads(cases.read_text())
    }
    state["parts"]["tests/test_openapi.py"] = {
        name: fingerprint(part) for name, part in {"": split(text).get("", ""), **split(text)}.items()
    }
    (project / "openapi-tools.json").write_text(json.dumps(state))


@pytest.mark.parametrize("is_own", [False, True])
def test_cases_have_the_key_that_the_tests_of_the_project_read(tmp_path: Path, is_own: bool) -> None:
    number = {"name": "n", "in": "query", "schema": {"type": "integer"}}
    assert run(tmp_path, api(one={"parameters": [number]})) == 0
    as_earlier(tmp_path)
    tests = tmp_path / "tests/test_openapi.py"
    if is_own:
        tests.write_text(tests.read_text() + "\n\ndef test_mine() -> None:\n    assert CASES\n")
    assert run(tmp_path, api(one={"parameters": [number]}, two={"parameters": [number]})) == 0
    cases = json.loads((tmp_path / "tests/openapi.json").read_text())
    key = "refused" if is_own else "rejected"
    assert [[*case][-1] for case in cases] == [key, key]
    assert ('case["refused"]' in tests.read_text()) == is_own
