"""The command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import openapi_tools
import pytest
from document_builders import DOCUMENTS
from openapi_tools import cli

SOURCES = Path(openapi_tools.__file__).parents[1]
TOOLS = Path("src/pets/tools")


def arguments(output: Path, *more: str, spec: str = "plain.yaml") -> list[str]:
    return [str(DOCUMENTS / spec), "--package", "pets", "--output", str(output), *more]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_files_are_written_and_summarized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(tmp_path)) == 0
    assert files_below(tmp_path) == {
        "src/pets/tools/_models.py",
        "src/pets/tools/openapi_document.py",
        "src/pets/tools/pets.py",
        "src/pets/tools/files_and_forms.py",
        "src/pets/tools/elsewhere.py",
        "tests/test_openapi.py",
        "tests/openapi.json",
        "docs/openapi-report.md",
        "openapi-tools.json",
    }
    output, errors = capsys.readouterr()
    assert output.startswith("15 tools of 16 operations, in 3 modules\n")
    assert "\n      1 deprecated\n" in output
    assert re.search(
        r"\n  credentials: key \(\d+ operations\): set the variable that UPSTREAM_API_KEY_ENV names", output
    )
    assert output.endswith("Full report: docs/openapi-report.md\n")
    assert errors == ""


def test_a_selection_limits_the_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments(tmp_path, "--only", "GET /pets")) == 0
    assert capsys.readouterr().out.startswith("1 tools of 16 operations, in 1 modules\n")


def test_no_file_is_overwritten_and_none_written_beside_one_that_exists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / TOOLS).mkdir(parents=True)
    (tmp_path / TOOLS / "_models.py").write_text("# own\n")
    assert cli.main(arguments(tmp_path)) == 1
    assert files_below(tmp_path) == {"src/pets/tools/_models.py"}
    assert (tmp_path / TOOLS / "_models.py").read_text() == "# own\n"
    errors = capsys.readouterr().err
    assert errors.startswith(f"openapi-tools: {DOCUMENTS / 'plain.yaml'}: no tools were generated.\n")
    assert "These files already exist and are not overwritten. Move them away first:\n" in errors
    assert errors.endswith("    src/pets/tools/_models.py\n")


HOSTILE = "a\x1b[31m\x9b2J\x07\r\nFORGED\u2028\u202e\x7f"


@pytest.mark.parametrize(
    ("document", "options"),
    [
        ({"openapi": HOSTILE}, []),
        ({"swagger": HOSTILE}, []),
        ({"openapi": "3.1.0", "paths": {f"/{HOSTILE}": {"get": {"operationId": HOSTILE, "tags": [HOSTILE]}}}}, []),
        (
            {"openapi": "3.1.0", "paths": {f"/{HOSTILE}": {"get": {"operationId": HOSTILE, "tags": [HOSTILE]}}}},
            ["--only", HOSTILE],
        ),
        (
            {
                "openapi": "3.1.0",
                "servers": [{"url": f"https://{HOSTILE}"}],
                "paths": {"/a": {"get": {"security": [{HOSTILE: []}], "parameters": [{"$ref": f"#/{HOSTILE}"}]}}},
                "components": {"securitySchemes": {HOSTILE: {"type": "http", "scheme": HOSTILE}}},
            },
            ["--base-url", HOSTILE],
        ),
        ({"openapi": "3.1.0", "paths": {"/a": {"get": {"responses": {"200": {"$ref": HOSTILE}}}}}}, ["--diff"]),
        ({"openapi": "3.1.0", "paths": {"/a": {"$ref": f"http://[{HOSTILE}"}, "/b": {"$ref": "\0.json"}}}, []),
    ],
)
def test_no_text_of_a_document_controls_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], document: dict[str, Any], options: list[str]
) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(document))
    for spec in ("spec.json", HOSTILE):
        cli.main([str(tmp_path / spec), "--package", "pets", "--output", str(tmp_path / "out"), *options])
        shown = "".join(capsys.readouterr())
        assert shown
        assert all(c.isprintable() or c == "\n" for c in shown), shown
        assert not [line for line in shown.split("\n") if line.startswith("FORGED")]


def test_a_module_that_exists_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / TOOLS).mkdir(parents=True)
    (tmp_path / TOOLS / "pets.py").write_text("# own\n")
    assert cli.main(arguments(tmp_path)) == 0
    assert (tmp_path / TOOLS / "pets.py").read_text() == "# own\n"
    assert (tmp_path / TOOLS / "pets_2.py").exists()


@pytest.mark.parametrize(
    ("spec", "more", "problem"),
    [
        ("none.yaml", [], "cannot be read: No such file or directory"),
        ("common.yaml", [], "/openapi is None"),
        ("plain.yaml", ["--only", "nothing"], "the selection 'nothing' matches no operation"),
    ],
)
def test_an_unusable_document_or_selection_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, more: list[str], problem: str
) -> None:
    assert cli.main(arguments(tmp_path, *more, spec=spec)) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("openapi-tools: ")
    assert "no tools were generated" in errors
    assert problem in errors
    assert files_below(tmp_path) == set()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src").write_text("a file, not a folder")
    assert cli.main(arguments(tmp_path)) == 1
    assert f"{tmp_path / 'src'}" in capsys.readouterr().err


def test_a_failing_formatter_is_reported_after_the_files_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV", str(tmp_path / "no-uv"))
    assert cli.main(arguments(tmp_path, "--format")) == 1
    assert (tmp_path / TOOLS / "pets.py").exists()
    errors = capsys.readouterr().err
    assert "the files are written, but not formatted" in errors
    assert "no-uv" in errors


@pytest.mark.slow
def test_the_same_document_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    program = (
        "import sys, json; from openapi_tools import Document, generate;"
        "print(json.dumps([generate(Document(path), 'p').files for path in sys.argv[1:]]))"
    )
    paths = [str(DOCUMENTS / f"{name}.yaml") for name in ("plain", "modern", "hostile")]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, *paths],
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(SOURCES)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2", "3")
    }
    (output,) = outputs
    assert [len(files) for files in json.loads(output)] == [8, 10, 13]


def test_the_package_runs_as_a_module() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "openapi_tools", "--help"],
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert completed.stdout.startswith("usage: openapi-tools ")
