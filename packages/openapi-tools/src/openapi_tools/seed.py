"""From a document to the files of a project."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .circles import cut_circles
from .document import Document
from .examples import NoExampleError, case
from .names import MAX_TITLE, one_line
from .operations import Operation, Reader, found_in, module_names, selected
from .report import Report, code
from .schemas import Anything, Type
from .source import models_module, module_title, reachable, tools_module

TESTS = "tests/test_openapi.py"
CASES = "tests/openapi.json"
REPORT = "docs/openapi-report.md"


@dataclass(frozen=True)
class Seeded:
    files: dict[str, str]
    """Content by path from the project's root."""
    report: Report
    operations: int
    """How many the document has."""
    tools: list[Operation]
    advice: list[str]
    """What to set for the credentials."""


def seed(document: Document, package: str, selection: str = "", taken: frozenset[str] = frozenset()) -> Seeded:
    """The files that give the project `package` a tool for each selected operation.

    Args:
        taken: Names of modules that the project's `tools/` has already.

    Raises:
        SelectionError: a part of the selection means nothing.
    """
    report = Report()
    found = found_in(document, report)
    chosen = selected(found, selection, report)
    reader = Reader(document, report, taken)
    tools = reader.read_all(chosen)
    title = one_line(document.root.get("info").mapping.get("title"), MAX_TITLE) or "the API"
    cut_circles(reader.schemas.models, report)
    advice = reader.security.advice("the variable that UPSTREAM_API_KEY_ENV names")

    folder = f"src/{package}/tools"
    groups = dict(zip((each.module for each in tools), module_names(chosen), strict=True))
    kept = reachable(
        found for tool in tools for found in (*(each.type for each in tool.parameters), _body(tool), tool.answer.type)
    )
    models = [model for model in reader.schemas.models if model in kept]
    files: dict[str, str] = {}
    if tools:
        files[f"{folder}/_api.py"] = _seeded("api.py")
        if models:
            files[f"{folder}/_models.py"] = models_module(models, title)
        for module in dict.fromkeys(each.module for each in tools):
            own = [each for each in tools if each.module == module]
            files[f"{folder}/{module}.py"] = tools_module(own, module_title(groups[module], title))
        files[TESTS] = _seeded("tool_tests.py")
        files[CASES] = json.dumps(_cases(tools, report), indent=1) + "\n"
    files[REPORT] = _report(document, title, len(found), tools, advice, report)
    return Seeded(files, report, len(found), tools, advice)


def _body(tool: Operation) -> Type:
    return tool.body.type if tool.body is not None else Anything()


def _cases(tools: list[Operation], report: Report) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    for tool in tools:
        try:
            cases.append(case(tool))
        except (NoExampleError, RecursionError) as error:
            report.add("test", tool.pointer, f"no example can be made: {error}")
    return cases


def _seeded(name: str) -> str:
    return resources.files(__package__).joinpath("project_files", name).read_text("utf-8")


def _report(
    document: Document, title: str, operations: int, tools: list[Operation], advice: list[str], report: Report
) -> str:
    """The page that says what became of the document."""
    version = one_line(str(document.root.get("info").mapping.get("version", "")), 40)
    lines = [
        "# From the OpenAPI document",
        "",
        f"{code(title)}, version {code(version)}, OpenAPI 3.{document.version[1]}: {operations} operations, "
        f"{len(tools)} tools. The tools, their models and their tests are yours; updates leave them alone.",
        "",
        "Some things of a document cannot be said in Python, or not be done by this server's client. They are listed",
        "here, each with its place in the document (a JSON pointer).",
        "",
    ]
    if advice:
        lines += ["## Credentials", "", *(f"- {code(line)}" for line in advice), ""]
    return "\n".join([*lines, report.sections()]).rstrip("\n") + "\n"
