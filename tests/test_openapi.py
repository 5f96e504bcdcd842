"""The OpenAPI tool generator on whole projects: through Copier, through the hook's program and on its own."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import keyword
import os
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from openapi_tools.imports import IMPORTED_NAMES
from pydantic import BaseModel

from .matrix import Project
from .support import ROOT, copier, files, path_with_uv, run, uv
from .test_messages import stand_in_for_uv

PACKAGE = ROOT / "packages" / "openapi-tools"
DOCUMENTS = PACKAGE / "tests" / "documents"
PROGRAM = ROOT / "hooks" / "openapi.py"
GENERATED_BESIDE_TOOLS = ("tests/test_openapi.py", "tests/openapi.json", "docs/openapi-report.md", "openapi-tools.json")
TOOL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the tools of plain.yaml, made by Copier; a test of another document calls `remove_tools` first."""
    folder = tmp_path_factory.mktemp("openapi")
    shutil.copytree(DOCUMENTS, folder / "api")
    answers = {
        "project_name": "Pets",
        "upstream_base_url": "https://pets.example.com/v1",
        "upstream_api_key_env": "API_KEY",
        "openapi_spec": "api/plain.yaml",
    }
    data = [part for name, value in answers.items() for part in ("-d", f"{name}={value}")]
    completed = copier("copy", "--trust", "--defaults", "--quiet", *data, str(template), "project", cwd=folder)
    assert completed.returncode == 0, completed.stderr
    (folder / "copier.log").write_text(completed.stderr, "utf-8")
    return folder / "project"


def remove_tools(project: Path) -> None:
    tools = project / "src" / "pets" / "tools"
    for path in [*tools.glob("*.py"), *(project / name for name in GENERATED_BESIDE_TOOLS)]:
        if path.name != "__init__.py":
            path.unlink(missing_ok=True)


def run_hook_program(spec: str | Path, project: Path, *options: str) -> CompletedProcess[str]:
    return run(uv(), "run", "--script", PROGRAM, spec, project, *options, cwd=project)


def in_project(project: Path, *command: str) -> CompletedProcess[str]:
    return run(uv(), "run", "--no-sync", *command, cwd=project, UV_OFFLINE="1")


def assert_green(project: Path, *selection: str) -> dict[str, Any]:
    """Check the project's lint, format, types and tests, and return its tools as a client sees them."""
    for command in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["pytest", "-q", "-p", "no:cacheprovider", "tests/test_openapi.py", "tests/test_tools.py", *selection],
    ):
        completed = in_project(project, *command)
        assert completed.returncode == 0, completed.stdout[-6000:] + completed.stderr[-2000:]
        assert "skipped" not in completed.stdout
    Project(project).check_types()
    (project / "check.py").write_bytes((ROOT / "tests" / "in_project" / "openapi_client.py").read_bytes())
    completed = in_project(project, "python", "-W", "error", "-m", "check")
    (project / "check.py").unlink()
    assert completed.returncode == 0, completed.stderr[-6000:]
    tools: dict[str, Any] = json.loads(completed.stdout)
    assert all(map(TOOL_NAME.fullmatch, tools))
    return tools


@pytest.mark.slow
@pytest.mark.acceptance
def test_copier_makes_a_project_with_a_tool_for_each_operation(project: Path) -> None:
    log = (project.parent / "copier.log").read_text("utf-8")
    assert re.search(r"^  tools +\d+\.\d s  ok$", log, re.MULTILINE), log
    assert re.search(r"^  smoke test +\d+\.\d s  ok$", log, re.MULTILINE), log
    assert "    15 tools of 16 operations, in 3 modules" in log
    assert "deprecated" in log
    assert "UPSTREAM_API_KEY_HEADER=X-Api-Key" in log
    tools = assert_green(project)
    assert tools["list_pets"]["title"] == "List all pets"
    assert tools["list_pets"]["description"].startswith("Lists the pets,\nnewest first.\n\nThe response may be one")
    hints = {name: tools[name]["annotations"] for name in ("get_pet", "replace_pet", "delete_pet", "create_pet")}
    assert hints["get_pet"]["readOnlyHint"]
    for name in ("replace_pet", "delete_pet"):
        assert hints[name]["destructiveHint"]
        assert hints[name]["idempotentHint"]
    assert (hints["create_pet"]["readOnlyHint"], hints["create_pet"]["idempotentHint"]) == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param("modern", marks=pytest.mark.acceptance), pytest.param("hostile", marks=pytest.mark.release)],
)
def test_a_project_generated_from_a_document_passes_its_checks(project: Path, name: str) -> None:
    remove_tools(project)
    completed = run_hook_program(DOCUMENTS / f"{name}.yaml", project)
    assert completed.returncode == 0, completed.stderr
    assert "pwned" not in completed.stdout.replace("echo pwned", "")
    tools = assert_green(project)
    assert len(tools) > 5
    for tool in tools.values():
        text = f"{tool['title']}{tool['description']}"
        assert text.isprintable() or "\n" in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)


def document_of_names() -> dict[str, Any]:
    """Return a document that has every name which Python, pydantic, the linter or an import has already, everywhere."""
    reserved = {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *dir(BaseModel), *dir(type(BaseModel))}
    names = sorted({*reserved, *IMPORTED_NAMES, *sys.stdlib_module_names, *"lOIx_", "timeout", "self", "cls", "test"})
    names += [
        "test_x",
        "Context",
        "Warning",
        "JsonValue",
        "mcp",
        "pydantic",
        "BaseModel",
        "nul",
        "CON",
        "tests",
        "body",
    ]
    schemas = {
        name: {"type": "object", "properties": {other: {"type": "string"} for other in names[number::40]}}
        for number, name in enumerate(names)
    }
    paths: dict[str, Any] = {}
    for number, name in enumerate(names):
        reference = {"$ref": f"#/components/schemas/{name}"}
        content = {"content": {"application/json": {"schema": reference}}}
        paths[f"/x{number}/{{{name}}}"] = {
            "post": {
                "operationId": name,
                "tags": [name if number % 4 == 0 else "common"],
                "parameters": [
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}},
                    *({"name": other, "in": "query", "schema": {"type": "integer"}} for other in names[number::60]),
                ],
                "requestBody": content,
                "responses": {"200": {"description": "OK", **content}},
            }
        }
    info = {"title": "Names", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


@pytest.mark.slow
@pytest.mark.release
def test_no_name_of_a_document_breaks_the_checks(project: Path) -> None:
    """Under the linter, the formatter and mypy, and in tests of a part of the tools."""
    remove_tools(project)
    path = project.parent / "names.json"
    path.write_text(json.dumps(document_of_names()), "utf-8")
    completed = run_hook_program(path, project)
    assert completed.returncode == 0, completed.stderr
    assert_green(project, "-k", "timeout or test or register or dict or con")


@pytest.mark.slow
@pytest.mark.acceptance
def test_an_existing_file_is_not_overwritten(project: Path) -> None:
    remove_tools(project)
    own = project / "src" / "pets" / "tools" / "_models.py"
    own.write_text('"""Written by the owner."""\n', "utf-8")
    before = files(project / "src")
    completed = run_hook_program(DOCUMENTS / "plain.yaml", project, "--only", "Pets")
    assert completed.returncode == 1
    assert "These files already exist and are not overwritten" in completed.stderr
    assert "src/pets/tools/_models.py" in completed.stderr
    assert files(project / "src") == before
    own.unlink()


@pytest.mark.slow
@pytest.mark.acceptance
def test_a_second_run_keeps_what_the_owner_has_changed(project: Path) -> None:
    remove_tools(project)
    assert run_hook_program(DOCUMENTS / "plain.yaml", project).returncode == 0
    module = project / "src" / "pets" / "tools" / "pets.py"
    edited = module.read_text("utf-8").replace('"""Lists the pets,', '"""Lists my pets,')
    module.write_text(edited, "utf-8")
    before = files(project)
    shown = run_hook_program(DOCUMENTS / "plain.yaml", project, "--diff", "--only", "Pets")
    assert files(project) == before
    assert "removed (breaking): GET /elsewhere" in shown.stdout
    assert run_hook_program(DOCUMENTS / "plain.yaml", project, "--only", "Pets").returncode == 0
    assert module.read_text("utf-8") == edited
    assert not (project / "src" / "pets" / "tools" / "elsewhere.py").exists()
    assert_green(project)


@pytest.mark.slow
@pytest.mark.release
def test_a_document_that_cannot_be_used_leaves_a_project_that_works(project: Path) -> None:
    remove_tools(project)
    broken = project.parent / "broken.yaml"
    broken.write_text("openapi: 3.0.0\npaths: {", "utf-8")
    hook = [sys.executable, str(ROOT / "hooks" / "post_generate.py"), "copy", str(project)]
    completed = run(*hook, f"--openapi={broken}", "--operations=GET /pets", cwd=project, PATH=path_with_uv())
    assert completed.returncode == 0, completed.stderr
    assert re.search(r"^  tools +\d+\.\d s  failed$", completed.stderr, re.MULTILINE), completed.stderr
    assert re.search(r"^  smoke test +\d+\.\d s  ok$", completed.stderr, re.MULTILINE), completed.stderr
    assert re.search(r"broken\.yaml is not valid YAML: line \d, column \d", completed.stderr)
    assert "To repeat it: cd " in completed.stderr
    broken.write_text("openapi: 3.0.0\npaths: {/pets: {get: {responses: {}}}}", "utf-8")
    again = re.findall(r"To repeat it: (cd .*)", completed.stderr)[-1]
    assert run("sh", "-c", again, cwd=project, PATH=path_with_uv()).returncode == 0
    assert (project / "src" / "pets" / "tools" / "pets.py").exists()


# --- The hook's program ---------------------------------------------------------------------------------------


def test_a_folder_that_is_no_project_of_the_template_is_reported(tmp_path: Path) -> None:
    completed = run(sys.executable, PROGRAM, "petstore.yaml", tmp_path, cwd=tmp_path)
    assert (completed.returncode, completed.stdout) == (1, "")
    assert "petstore.yaml: no tools were generated" in completed.stderr
    assert f"{tmp_path} has no src/*/production/answers.json" in completed.stderr


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_output_is_utf_8_where_the_locale_is_not(tmp_path: Path) -> None:
    answers = tmp_path / "src" / "pets" / "production" / "answers.json"
    answers.parent.mkdir(parents=True)
    answers.write_text("{}")
    scheme = "Schlüssel-キー"
    document = {
        "openapi": "3.1.0",
        "info": {"title": "T", "version": "1"},
        "paths": {"/x": {"get": {"responses": {"200": {"description": "ok"}}, "security": [{scheme: []}]}}},
        "components": {"securitySchemes": {scheme: {"type": "apiKey", "in": "header", "name": "X-Key"}}},
    }
    path = tmp_path / "document.json"
    path.write_text(json.dumps(document), "utf-8")
    formatter = str(stand_in_for_uv(tmp_path, fails_on=""))
    completed = run(sys.executable, PROGRAM, path, tmp_path, cwd=tmp_path, UV=formatter, PYTHONIOENCODING="cp1252")
    assert completed.returncode == 0, completed.stderr
    assert scheme in completed.stdout


def test_the_script_pins_the_tested_dependencies_of_the_package() -> None:
    pinned = re.search(r"^# dependencies = (\[.*\])$", PROGRAM.read_text("utf-8"), re.MULTILINE)
    assert pinned
    versions = dict(requirement.split("==") for requirement in json.loads(pinned[1]))
    package = tomllib.loads((PACKAGE / "pyproject.toml").read_text("utf-8"))["project"]
    assert {re.split("[>=<]", requirement)[0] for requirement in package["dependencies"]} == versions.keys()
    assert versions == {name: importlib.metadata.version(name) for name in versions}


# --- The package on its own -----------------------------------------------------------------------------------


@pytest.fixture
def package_alone(tmp_path: Path) -> Path:
    """A folder with the package at its path in the repository, and nothing else of the repository."""
    ignored = shutil.ignore_patterns(".venv", "__pycache__", ".*_cache")
    shutil.copytree(PACKAGE, tmp_path / "packages" / "openapi-tools", ignore=ignored)
    return tmp_path


def readme_command(containing: str) -> list[str]:
    """Return the arguments of uv of the command in the package's README that contains this text."""
    lines = (PACKAGE / "README.md").read_text("utf-8").splitlines()
    (command,) = (line for line in lines if line.startswith("uv run --project") and containing in line)
    return shlex.split(command)[1:]


@pytest.mark.slow
def test_the_readme_command_runs_with_the_package_alone(package_alone: Path) -> None:
    names = {"SPEC": str(DOCUMENTS / "plain.yaml"), "PROJECT": "project"}
    command = [names.get(word, word) for word in readme_command("SPEC")]
    completed = run(uv(), *command, cwd=package_alone)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.startswith("15 tools of 16 operations, in 3 modules\n")
    assert (package_alone / "project" / "src" / "my_server" / "tools" / "pets.py").exists()


@pytest.mark.slow
@pytest.mark.acceptance
def test_the_package_tests_run_with_the_package_alone(package_alone: Path) -> None:
    """All of them are imported; those of the command line run, since all run in this repository's suite as well."""
    completed = run(uv(), *readme_command("pytest"), "-k", "test_cli", cwd=package_alone)
    assert completed.returncode == 0, completed.stdout[-6000:] + completed.stderr[-2000:]
    assert re.search(r"\d+ passed, \d+ deselected in ", completed.stdout)
    lock = "packages/openapi-tools/uv.lock"
    assert (package_alone / lock).read_bytes() == (ROOT / lock).read_bytes()
