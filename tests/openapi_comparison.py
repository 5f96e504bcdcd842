"""The tools of OpenAPI documents called against a recording stand-in: ours, and those of FastMCP's `from_openapi`.

    PYTHONPATH=packages/openapi-tools/src python3 with_uv.py run python -m tests.openapi_comparison FOLDER [--table]

Generates the tools of every document in FOLDER in one project, calls each with the arguments of its case, and validates
every request against the document with openapi-core. FastMCP gets the same values and the same answers. Both libraries
are installed in environments of their own. Prints what was wrong, and the table of docs/openapi.md with `--table`.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from openapi_tools import Document, Generated, generate
from openapi_tools.generator import CASES_PATH
from openapi_tools.loading import fetch, parse

from .matrix import Project
from .openapi_corpus import PACKAGE, documents_in, operations_of, prepared, remove_tools
from .support import ROOT, run, uv

JUDGE = ("--with", "openapi-core==0.23.1")
FASTMCP = ("--with", "fastmcp==4.2.3")
SCRIPTS = ROOT / "tests" / "in_project"
UUID = "00000000-0000-4000-8000-000000000000"
"""A value for a header, whose type is usually a text."""

HEAD = (
    "| document | operations | no request | wrong | lost | kB | no request | wrong | lost | kB |",
    "|---|---|---|---|---|---|---|---|---|---|",
)
"""Of the table: first the figures of these tools, then FastMCP's."""


def calls_of(document: Document, generated: Generated, original: Any) -> dict[str, Any]:
    """Return what both are called with: the values by place, and the API's answer, for each operation."""
    cases = {case["tool"]: case for case in json.loads(generated.files.get(CASES_PATH, "[]"))}
    calls = []
    operations = operations_of(document)
    for tool in generated.tools:
        if tool.name not in cases:
            continue
        case = cases[tool.name]
        values: dict[str, Any] = {}
        for parameter in tool.parameters:
            if parameter.argument in case["arguments"]:
                values.setdefault(parameter.location, {})[parameter.api_name] = case["arguments"][parameter.argument]
        values.setdefault("header", {}).update(tool.headers)
        if tool.body is not None and tool.body.name in case["arguments"]:
            values["body"] = case["arguments"][tool.body.name]
        calls.append(
            {
                "tool": tool.name,
                "arguments": case["arguments"],
                "method": tool.method,
                "path": operations[tool.pointer].path,
                "values": values,
                "answer": case["answer"],
            }
        )
    return {"document": original, "calls": calls}


def headers_of(generated: Generated) -> str:
    """Return `UPSTREAM_HEADERS` with the headers that the document needs and gives no value."""
    (source,) = [text for name, text in generated.files.items() if re.search(r"/openapi_document\w*\.py$", name)] or [
        ""
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "headers":
            return ",".join(f"{name}:{UUID}" for name, value in ast.literal_eval(node.value).items() if value is None)
    return ""


def compare(path: Path, project: Project, folder: Path) -> list[dict[str, Any]]:
    """Return the figures of one document: ours, and FastMCP's."""
    remove_tools(project.path)
    document = Document(str(path))
    generated = generate(document, PACKAGE)
    for name, content in generated.files.items():
        (project.path / name).parent.mkdir(parents=True, exist_ok=True)
        (project.path / name).write_text(content, "utf-8")
    calls, ours, theirs = (folder / f"{name}.json" for name in ("calls", "ours", "fastmcp"))
    original = parse(fetch(str(path), None), str(path))
    calls.write_text(json.dumps(calls_of(document, generated, original)), "utf-8")
    converted = folder / "converted.json"  # the judge reads OpenAPI 3 only
    converted.write_text(json.dumps({"document": document.root.value}), "utf-8")
    script = SCRIPTS / "openapi_calls.py"
    settings = {"UPSTREAM_HEADERS": headers} if (headers := headers_of(generated)) else {}
    done = project.uv("run", "--no-sync", "python", script, "ours", calls, ours, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(uv(), "run", "--no-project", "--quiet", *FASTMCP, "python", script, "fastmcp", calls, theirs, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    judge = SCRIPTS / "openapi_judge.py"
    done = run(uv(), "run", "--no-project", "--quiet", *JUDGE, "python", judge, converted, ours, theirs, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def cells(figures: dict[str, Any]) -> str:
    """Return the cells of the table for one way."""
    if figures["error"]:
        return "not imported | | |"
    unsent = len(figures["none"]) + len(figures["several"])
    return f"{unsent} | {len(figures['wrong'])} | {len(figures['lost'])} | {figures['bytes'] // 1000:,}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--project", type=Path, help="a project of an earlier run, whose environment is used again")
    parser.add_argument("--table", action="store_true", help="print the table of docs/openapi.md")
    options = parser.parse_args()
    table = [*HEAD]
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = prepared(options.project, folder)
        for path in documents_in(options.folder):
            both = compare(path, project, folder)
            table.append(f"| {path.stem} | {both[0]['calls']} | {' | '.join(map(cells, both))} |")
            for way, figures in zip(("ours", "fastmcp"), both, strict=True):
                counts = {key: len(value) if isinstance(value, dict) else value for key, value in figures.items()}
                print(json.dumps({"document": path.name, "by": way} | counts), flush=True)
                for kind in ("none", "several", "wrong", "lost", "unjudged"):
                    for operation, text in [*figures[kind].items()][:10]:
                        print(f"    {kind}: {operation}: {text}")
                if way == "ours":
                    wrong += len(figures["none"]) + len(figures["wrong"]) + len(figures["lost"])
    if options.table:
        print("\n".join(table))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
