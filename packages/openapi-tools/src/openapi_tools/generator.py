"""Generation of a project's files from an OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from .budget import DEFAULT_BUDGET, DEFAULT_TOTAL_BUDGET, keep_within_budget
from .cases import make_case
from .document import Document
from .examples import NoExampleError
from .fixed_headers import FixedHeader, find_fixed_headers
from .operations import READING_METHODS, Tool, find_operations
from .python_types import Type, reachable_models
from .recursion import cut_large_recursive_groups
from .report import Report, markdown_code
from .selection import select_operations
from .servers import problem_with_base_url, server_urls
from .source import document_module, models_module, module_title, tools_module
from .text import MAX_TITLE, single_line
from .tools import ToolReader

TESTS_PATH = "tests/test_openapi.py"
CASES_PATH = "tests/openapi.json"
REPORT_PATH = "docs/openapi-report.md"

PACKAGE_PLACEHOLDER = "my_server"
"""Name of the generated project's package in the files that every project gets."""

MODELS_MODULE = "_models"

MAX_SERVERS = 10
"""Servers that the description of a document has."""

KEY_VARIABLE = "the variable that UPSTREAM_API_KEY_ENV names"


@dataclass(frozen=True)
class Generated:
    """The result of a generation."""

    files: dict[str, str]
    """Content by path from the project's root."""
    report: Report
    operation_count: int
    """The number of operations in the document."""
    tools: list[Tool]
    credential_settings: list[str]
    """What to set for the credentials, a line for each security scheme."""
    tokens: dict[str, int]
    """About how many tokens each tool takes in the list of tools, by the tool's name."""


def generate(
    document: Document,
    package: str,
    selection: str = "",
    existing_modules: frozenset[str] = frozenset(),
    *,
    budget: int = DEFAULT_BUDGET,
    total_budget: int = DEFAULT_TOTAL_BUDGET,
    strict: bool = False,
    reads_only: bool = False,
    base_url: str = "",
    with_scopes: bool = False,
) -> Generated:
    """Return the files that give a project a tool for each selected operation.

    Args:
        document: The OpenAPI document.
        package: The import name of the project's package.
        selection: Patterns as in `selection.parse_selection`; empty for all operations that are not deprecated.
        existing_modules: Names of modules that the project's `tools` package has already.
        budget: How many tokens the schemas of one tool may have.
        total_budget: How many tokens all tools together may have.
        strict: Whether a response that does not match the document is an error of the tool.
        reads_only: Whether only operations become tools that change nothing, by their method.
        base_url: The `BASE_URL` of the server, which is compared with the servers of the document.
        with_scopes: Whether callers need the scopes of the document's security requirements.

    Raises:
        SelectionError: A pattern of the selection matches no operation.
    """
    report = Report()
    operations = find_operations(document, report)
    fixed_headers = find_fixed_headers(document, operations)
    if reads_only:
        operations = [operation for operation in operations if operation.method in READING_METHODS]
    selected = select_operations(operations, selection, report)
    reader = ToolReader(document, report, existing_modules, with_scopes=with_scopes)
    reader.parameters.fixed_headers = fixed_headers
    read = reader.read_all(selected)
    tools = [tool for tool, _ in read]
    for tool in tools:
        tool.strict = strict
    cut_large_recursive_groups(reader.schemas.models, report)
    sizes = keep_within_budget(tools, budget, report, total_budget)
    if problem := problem_with_base_url(document, base_url):
        report.add("base url", "#/servers", problem)
    credential_settings = reader.security.advice(KEY_VARIABLE)
    title = single_line(document.root.get("info").mapping.get("title"), MAX_TITLE) or "the API"

    files: dict[str, str] = {}
    if tools:
        folder = f"src/{package}/tools"
        group_by_module = {tool.module: group for tool, group in read}
        used_models = reachable_models(_types_of(tools))
        models = [model for model in reader.schemas.models if model in used_models]
        if models:
            files[f"{folder}/{MODELS_MODULE}.py"] = models_module(models, title)
        for module, group in group_by_module.items():
            module_tools = [tool for tool in tools if tool.module == module]
            files[f"{folder}/{module}.py"] = tools_module(module_tools, module_title(group, title))
        version = single_line(str(document.root.get("info").mapping.get("version", "")), 40)
        servers = [single_line(url, 200) for url in server_urls(document)[:MAX_SERVERS]]
        source = document_module(title, version, servers, _settable(reader.fixed_headers()))
        files[f"{folder}/{reader.document_module}.py"] = source
        files[TESTS_PATH] = _project_file("tool_tests.py").replace(PACKAGE_PLACEHOLDER, package)
        files[CASES_PATH] = json.dumps(_cases(tools, report), indent=1) + "\n"
    tokens = {tool.name: sizes.tokens(tool) for tool in tools}
    generated = Generated(files, report, len(operations), tools, credential_settings, tokens)
    files[REPORT_PATH] = _report_page(document, title, generated)
    return generated


def size_of(generated: Generated) -> str:
    """Return the tokens of all tools and of the largest ones."""
    tokens = sorted(((size, name) for name, size in generated.tokens.items()), reverse=True)
    total = sum(size for size, _ in tokens)
    largest = ", ".join(f"{name} {size:,}" for size, name in tokens[:3])
    return f"about {total:,} tokens" + (f" (the largest: {largest})" if len(tokens) > 1 else "")


def _settable(headers: Sequence[FixedHeader]) -> list[FixedHeader]:
    """Return the headers that have a value, or need one."""
    return [header for header in headers if header.value is not None or header.is_required]


def _types_of(tools: Sequence[Tool]) -> Iterator[Type]:
    """Yield the types of the tools' arguments and results."""
    for tool in tools:
        yield from (parameter.type for parameter in tool.parameters)
        if tool.body is not None:
            yield tool.body.type
        yield tool.response.type


def _cases(tools: Sequence[Tool], report: Report) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    for tool in tools:
        try:
            case = make_case(tool)
            cases.append(case)
        except (NoExampleError, RecursionError) as error:
            report.add("test", tool.pointer, f"no example can be made: {error}")
            continue
        arguments = [parameter.argument for parameter in tool.parameters]
        arguments += [tool.body.argument] if tool.body is not None else []
        if missing := [name for name in arguments if name not in case["arguments"]]:
            report.add("test", tool.pointer, f"called without {', '.join(missing)}: no example can be made")
    return cases


def _project_file(name: str) -> str:
    """Return the text of a file that every project gets, with `PACKAGE_PLACEHOLDER` as the package's name."""
    return resources.files(__package__).joinpath("project_files", name).read_text("utf-8")


def _report_page(document: Document, title: str, generated: Generated) -> str:
    """Return the page that says what the tools do not express of the document."""
    version = single_line(str(document.root.get("info").mapping.get("version", "")), 40)
    lines = [
        "# OpenAPI report",
        "",
        f"{markdown_code(title)}, version {markdown_code(version)}, OpenAPI 3.{document.version[1]}: "
        f"{generated.operation_count} operations, {len(generated.tools)} tools. The tools, their models and their "
        "tests are yours; updates do not change them.",
        "",
        f"A model reads the descriptions and schemas of all tools with every request: {size_of(generated)}.",
        "",
        "Parts of a document cannot be expressed in Python or sent by this server's client. They are listed here, each",
        "with its place in the document (a JSON pointer).",
        "",
    ]
    if generated.credential_settings:
        settings = [f"- {markdown_code(line)}" for line in generated.credential_settings]
        lines += ["## Credentials", "", *settings, ""]
    return "\n".join([*lines, generated.report.to_markdown()]).rstrip("\n") + "\n"
