"""Command line of the generator."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from .budget import DEFAULT_BUDGET, DEFAULT_TOTAL_BUDGET
from .document import Document
from .generator import MODELS_MODULE, REPORT_PATH, Generated, generate, size_of
from .loading import DocumentError
from .parameters import HEADER_NAME
from .project import (
    FormatError,
    ProjectError,
    existing_tool_modules,
    format_files,
    remove_files,
    write_files,
)
from .second_run import Plan, plan, recorded_state
from .selection import SelectionError
from .text import printable

PROGRAM = "openapi-tools"

RECURSION_LIMIT = 5000
"""Schemas nest, and types are converted and written recursively; Python's default of 1000 is too low for them."""

SHARED_MODULES = frozenset(("__init__", MODELS_MODULE))
"""Modules of `tools` that contain no tools; no tool module gets their names."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate the tools of a document into a project and return the exit status: 0, or 1 with a message."""
    options = parser().parse_args(arguments)
    sys.setrecursionlimit(RECURSION_LIMIT)
    write_utf8()
    project: Path = options.output.resolve()
    try:
        state = recorded_state(project)
        of_earlier_run = {Path(path).stem for path in (state or {}).get("parts", {})}
        existing = existing_tool_modules(project, options.package) - SHARED_MODULES - of_earlier_run
        generated = generate(
            Document(options.spec, options.root, dict(options.header)),
            options.package,
            options.only,
            existing,
            budget=options.budget,
            total_budget=options.total_budget,
            strict=options.strict,
            reads_only=options.reads_only,
            base_url=options.base_url,
            with_scopes=options.scopes,
        )
        planned = plan(generated, project, state)
        if not options.diff:
            write_files(planned.files, project, replace=state is not None)
            remove_files(planned.removed, project)
    except (DocumentError, SelectionError, ProjectError) as error:
        lines = str(error).split("\n") if isinstance(error, ProjectError) else [str(error)]
        say([f"{PROGRAM}: {options.spec}: no tools were generated.", *lines], sys.stderr)
        return 1
    if options.diff:
        say(differences(planned, first=state is None))
        return 0
    if options.format:
        try:
            format_files(planned.files, project)
        except FormatError as error:
            problem = f"{PROGRAM}: {options.spec}: the files are written, but not formatted."
            say([f"{problem} Run this in {project}: uv run ruff format", *str(error).split("\n")], sys.stderr)
            return 1
    if state is not None:
        say(differences(planned))
    say(summary(generated))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Generate typed MCP tools, models and tests from an OpenAPI document (3.0 to 3.2, or Swagger 2.0).",
    )
    arguments.add_argument("spec", metavar="SPEC", help="path or http(s) URL of a JSON or YAML document")
    arguments.add_argument(
        "--package", required=True, metavar="NAME", help="import name of the project's package, below its folder src"
    )
    arguments.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PROJECT",
        help="root folder of the project; what its owner has written or changed stays",
    )
    arguments.add_argument(
        "--only",
        default="",
        metavar="SELECTION",
        help="operationIds, tags, paths or 'METHOD /path', separated by commas or spaces, * for any text, "
        "! for those to leave out (default: all operations that are not deprecated)",
    )
    arguments.add_argument(
        "--diff", action="store_true", help="write nothing: say what a further run would change, and what breaks calls"
    )
    arguments.add_argument("--reads-only", action="store_true", help="only operations that change nothing, such as GET")
    arguments.add_argument(
        "--header",
        action="append",
        default=[],
        type=header,
        metavar="'NAME: VALUE'",
        help="header of the request for a document behind a login, sent to its server only; may be repeated",
    )
    arguments.add_argument(
        "--base-url",
        default="",
        metavar="URL",
        help="BASE_URL of the server, to compare it with the document's servers",
    )
    arguments.add_argument(
        "--scopes",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="require the scopes of the document's security requirements from callers (needs enable_authorization)",
    )
    arguments.add_argument(
        "--strict", action="store_true", help="make a response that does not match the document an error of the tool"
    )
    arguments.add_argument(
        "--budget",
        type=int,
        default=DEFAULT_BUDGET,
        metavar="TOKENS",
        help="size of one tool's schemas; what is deeper is any object (default: %(default)s)",
    )
    arguments.add_argument(
        "--total-budget",
        type=int,
        default=DEFAULT_TOTAL_BUDGET,
        metavar="TOKENS",
        help="size of all tools together, for which the largest ones are cut further (default: %(default)s)",
    )
    arguments.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="folder that has all files that the document refers to (default: the folder of the document)",
    )
    arguments.add_argument(
        "--format", action="store_true", help="format the generated sources with the project's ruff (uv run ruff)"
    )
    return arguments


def header(text: str) -> tuple[str, str]:
    """Return name and value of a header that is written as `Name: value`.

    Raises:
        argparse.ArgumentTypeError: `text` is not of that form.
    """
    name, colon, value = text.partition(":")
    if not colon or not HEADER_NAME.fullmatch(name.strip()) or not value.strip().isprintable():
        raise argparse.ArgumentTypeError("write it as 'Name: value'")
    return name.strip(), value.strip()


def write_utf8() -> None:
    """Write UTF-8 to stdout and stderr; a pipe on Windows has a legacy encoding otherwise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")


def say(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """Print lines, in which names of the document and of files are escaped, to stdout or another stream."""
    for line in lines:
        print(printable(line), file=stream)


def differences(planned: Plan, first: bool = False) -> list[str]:
    """Return what a further run changes, and which files it writes and removes."""
    lines = planned.lines or ([] if first else ["The operations are the same."])
    lines = [*lines, *(f"write {path}" for path in sorted(planned.files))]
    return [*lines, *(f"remove {path}" for path in planned.removed)]


def summary(generated: Generated) -> list[str]:
    """Return the lines of a summary of what was generated, and of how much was not."""
    modules = len({tool.module for tool in generated.tools})
    lines = [f"{len(generated.tools)} tools of {generated.operation_count} operations, in {modules} modules"]
    lines.append(f"  {size_of(generated)}")
    lines += [f"  {number:5} {kind}" for kind, number in generated.report.counts().items()]
    lines += [f"  {text}" for text in generated.report.texts("base url")]
    lines += [f"  credentials: {line}" for line in generated.credential_settings]
    lines += [f"  header {text}" for text in dict.fromkeys(generated.report.texts("header")) if "UPSTREAM" in text]
    return [*lines, f"Full report: {REPORT_PATH}"]
