"""Public OpenAPI documents as projects: are they green, and are their own examples sent and returned unchanged?

    PYTHONPATH=packages/openapi-tools/src python -m tests.openapi_corpus FOLDER [--project PROJECT] [--results FILE]

Makes the tools of every document in FOLDER, one after the other, in one project that it renders and whose environment
it makes, or in PROJECT. Prints a line for each document and the sums. The exit status is 1 where a document is not
green. The documents are kept outside the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from openapi_tools import Document, DocumentError, generate
from openapi_tools.document import Node, UnresolvedReferenceError
from openapi_tools.media_types import without_parameters
from openapi_tools.operations import Operation, Tool, find_operations
from openapi_tools.report import Report

from .matrix import Project
from .support import ROOT, answers, copy_template, run, uv

PACKAGE = "weather_station"
GENERATOR = ROOT / "packages" / "openapi-tools" / "src"
API = {"upstream_base_url": "https://api.example.com", "openapi_spec": "openapi.json"}
GENERATED = ("tests/test_openapi.py", "tests/openapi.json", "docs/openapi-report.md", "openapi-tools.json")
CHECKS = {
    "lint": ("ruff", "check", "src", "tests"),
    "format": ("ruff", "format", "--check", "src", "tests"),
    "types": ("mypy",),
    "tests": ("pytest", "-q", "-p", "no:cacheprovider", "-p", "xdist", "--numprocesses=2", "tests/test_openapi.py"),
}
SUFFIXES = (".json", ".yaml", ".yml")


class Example(NamedTuple):
    """An example of the document itself."""

    tool: str
    pointer: str
    kind: str
    """`request`: a body; `argument`: a parameter; `response`: an answer."""
    argument: str
    value: Any
    status: int
    schema: Any
    """With the document's `components`, for an independent validator."""
    version: str


def examples_of(document: Document, tools: list[Tool]) -> Iterator[Example]:
    """Yield the examples of request bodies, parameters and answers in JSON."""
    operations = operations_of(document)
    for tool in tools:
        operation = operations[tool.pointer].node
        yield from _of_body(document, tool, operation)
        yield from _of_answers(document, tool, operation)


def operations_of(document: Document) -> dict[str, Operation]:
    """Return the operations of a document by their pointers, which are shortened where a path is long."""
    return {operation.node.pointer: operation for operation in find_operations(document, Report())}


def _of_body(document: Document, tool: Tool, operation: Node) -> Iterator[Example]:
    if tool.body is None or tool.body.kind != "json":
        return
    for media_type, media in document.media_types(document.resolve(operation.get("requestBody"))).items():
        if without_parameters(media_type) == without_parameters(tool.body.media_type):
            for pointer, value in _values(document, media):
                yield _example(document, tool, pointer, "request", tool.body.name, value, 200, media.get("schema"))


def _of_answers(document: Document, tool: Tool, operation: Node) -> Iterator[Example]:
    if tool.response.kind != "json":
        return
    for status, entry in operation.get("responses").entries():
        if re.fullmatch(r"2\d\d", status) and status not in ("204", "205"):
            response = document.resolve(entry)
            for media_type, media in document.media_types(response).items():
                if re.fullmatch(r"application/([\w.-]+\+)?json", media_type.partition(";")[0].strip().lower()):
                    for pointer, value in _values(document, media):
                        schema = media.get("schema")
                        yield _example(document, tool, pointer, "response", "", value, int(status), schema)


def _values(document: Document, media: Node) -> Iterator[tuple[str, Any]]:
    """Yield the examples of a media type, or else of its schema."""
    has_example = False
    if isinstance(media.value, dict) and "example" in media.value:
        has_example = True
        yield f"{media.pointer}/example", media.value["example"]
    for name, entry in media.get("examples").entries():
        try:
            example = document.resolve(entry)
        except UnresolvedReferenceError:
            continue
        if "value" in example.mapping:
            has_example = True
            yield f"{media.pointer}/examples/{name}", example.value["value"]
    schema = document.resolved_mapping(media.get("schema"))
    if not has_example and "example" in schema:
        yield f"{media.pointer}/schema/example", schema["example"]


def _example(
    document: Document, tool: Tool, pointer: str, kind: str, argument: str, value: Any, status: int, schema: Node
) -> Example:
    version = f"{document.version[0]}.{document.version[1]}"
    components = document.root.mapping.get("components", {})
    return Example(tool.name, pointer, kind, argument, value, status, [schema.value, components], version)


def remove_tools(project: Path) -> None:
    for path in [*(project / "src" / PACKAGE / "tools").glob("*.py"), *(project / name for name in GENERATED)]:
        if path.name != "__init__.py":
            path.unlink(missing_ok=True)


def try_document(path: Path, project: Project) -> dict[str, Any]:
    """Return the figures of one document: what failed, and what became of its examples."""
    remove_tools(project.path)
    row: dict[str, Any] = {"document": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "failed": []}
    started = time.monotonic()
    try:
        document = Document(str(path))
        generated = generate(document, PACKAGE)
    except DocumentError as error:
        return row | {"failed": ["import"], "reason": str(error)}
    done = run(
        sys.executable,
        "-m",
        "openapi_tools",
        "--package",
        PACKAGE,
        "--output",
        project.path,
        "--format",
        path,
        cwd=project.path,
        PYTHONPATH=str(GENERATOR),
        UV=str(uv()),
    )
    row |= {"seconds": round(time.monotonic() - started, 1), "operations": generated.operation_count}
    row |= {"tools": len(generated.tools), "tokens": sum(generated.tokens.values())}
    row["skipped"] = generated.report.counts().get("skipped operation", 0)
    if done.returncode != 0:
        return row | {"failed": ["generate"], "reason": done.stderr[-500:]}
    if not generated.tools:
        return row
    for name, check in CHECKS.items():
        done = project.uv("run", "--no-sync", *check)
        if done.returncode != 0:
            row["failed"].append(name)
            row["reason"] = (done.stdout + done.stderr)[-1500:]
    return row | try_examples([*examples_of(document, generated.tools)], project)


def try_examples(examples: list[Example], project: Project) -> dict[str, Any]:
    """Call the tools with their examples in the project's environment, and return how many came through."""
    script = project.path / "check_examples.py"
    script.write_bytes((ROOT / "tests" / "in_project" / "openapi_examples.py").read_bytes())
    (project.path / "examples.json").write_text(json.dumps([example._asdict() for example in examples]), "utf-8")
    try:
        done = project.python("-m", "check_examples")
    finally:
        script.unlink()
        (project.path / "examples.json").unlink()
    if done.returncode != 0:
        return {"examples": {}, "misses": [f"the check of the examples failed: {done.stderr[-1500:]}"]}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def documents_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]


def prepared(path: Path | None, folder: Path) -> Project:
    """Return the project at `path`, or a new one in `folder`."""
    if path is not None:
        return Project(path)
    template = folder / "template"
    copy_template(template)
    project = Project.build(template, folder / "project", answers(**API))
    project.prepare_layer()
    done = run(uv(), "pip", "install", "--quiet", "openapi-schema-validator", cwd=project.path)
    assert done.returncode == 0, done.stderr
    return project


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--project", type=Path, help="a project of an earlier run, whose environment is used again")
    parser.add_argument("--results", type=Path, help="file that gets a JSON line for each document")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    totals: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        project = prepared(options.project, Path(folder))
        for path in documents_in(options.folder):
            row = try_document(path, project)
            rows.append(row)
            totals.update(row.get("examples", {}))
            shown = {key: value for key, value in row.items() if key not in ("sha256", "misses", "reason")}
            print(json.dumps(shown), flush=True)
            for miss in row.get("misses", [])[:10]:
                print(f"    {miss}")
            if row["failed"]:
                print(f"    {row.get('reason', '')}")
            if options.results:
                with options.results.open("a", encoding="utf-8") as results:
                    results.write(json.dumps(row) + "\n")
    failed = [row["document"] for row in rows if row["failed"]]
    tools = sum(row.get("tools", 0) for row in rows)
    print(f"{len(rows)} documents, {tools} tools, {len(failed)} not green: {', '.join(failed) or 'none'}")
    print(json.dumps(totals))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
