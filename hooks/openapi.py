# /// script
# requires-python = ">=3.11"
# dependencies = ["pyyaml==6.0.3", "pydantic-core==2.50.4"]
# ///
"""Seeds a project's tools from an OpenAPI document of version 3.0 or 3.1.

    uv run hooks/openapi.py SPEC PROJECT [--only SELECTION]

SPEC is the path or the http(s) URL of a JSON or YAML document. SELECTION is a list of operationIds, tags, paths or
`METHOD /path`, with * for any text; all operations but the deprecated ones without it. The files are the owner's: none
that exists is written over. What cannot be expressed is told, and in full in docs/openapi-report.md.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

from openapi_seed.document import Document, DocumentError
from openapi_seed.operations import SelectionError
from openapi_seed.seed import REPORT, Seeded, seed

FORMAT_SECONDS = 300


class ProjectError(Exception):
    """The project cannot take the files; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", metavar="SPEC")
    parser.add_argument("project", metavar="PROJECT", type=Path)
    parser.add_argument("--only", metavar="SELECTION", default="")
    options = parser.parse_args()
    sys.setrecursionlimit(5000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # a pipe on Windows has no letters but the West's
    try:
        project = options.project.resolve()
        package = package_of(project)
        tools = project / "src" / package / "tools"
        taken = frozenset(path.stem for path in tools.iterdir()) if tools.is_dir() else frozenset[str]()
        seeded = seed(Document(options.spec), package, options.only, taken - {"__init__", "_api", "_models"})
        write(seeded, project)
        formatted(seeded, project)
    except (DocumentError, SelectionError, ProjectError) as error:
        print(f"{options.spec}: no tools were made.\n{error}", file=sys.stderr)
        return 1
    print(summary(seeded))
    return 0


def package_of(project: Path) -> str:
    """The name of the project's package.

    Raises:
        ProjectError: no package of the template is there.
    """
    for found in sorted((project / "src").glob("*/production/answers.json")):
        return found.parents[1].name
    raise ProjectError(f"{project}: src/*/production/answers.json is missing, so this is no project of the template")


def write(seeded: Seeded, project: Path) -> None:
    """Writes every file, or none.

    Raises:
        ProjectError: one of them exists, or a folder cannot be written to.
    """
    there = sorted(path for path in seeded.files if (project / path).exists())
    if there:
        listed = "\n".join(f"    {path}" for path in there[:20])
        raise ProjectError(f"These files exist, and what exists is yours. Move them away first:\n{listed}")
    try:
        for path, content in seeded.files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ProjectError(f"{error.filename} cannot be written: {error.strerror}") from None


def formatted(seeded: Seeded, project: Path) -> None:
    """Lets the project's own formatter lay the sources out.

    Raises:
        ProjectError: it does not run; the files are there all the same.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    sources = [path for path in seeded.files if path.endswith(".py")]
    if not sources:
        return
    command = [uv or "uv", "run", "ruff", "format", "--quiet", "--no-cache", *sources]
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        done = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=FORMAT_SECONDS,
            check=False,
        )
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        raise ProjectError(f"The files are written, but not formatted. Run uv run ruff format there.\n{problem}")


def summary(seeded: Seeded) -> str:
    """What was made and what was not, in a few lines."""
    modules = len({tool.module for tool in seeded.tools})
    lines = [f"{len(seeded.tools)} tools of {seeded.operations} operations, in {modules} modules"]
    lines += [f"  {number:5} {kind}" for kind, number in seeded.report.counts().items()]
    lines += [f"  credentials: {line}" for line in seeded.advice]
    return "\n".join([*lines, f"All of it: {REPORT}"])


if __name__ == "__main__":
    sys.exit(main())
