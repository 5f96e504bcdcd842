"""The project that receives the generated files: which names it uses, writing into it, its formatter."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

FORMAT_TIMEOUT_SECONDS = 300

MAX_LISTED_FILES = 20


class ProjectError(Exception):
    """The project cannot take the files; the message says why."""


class FormatError(Exception):
    """The files are written, but the project's formatter failed; the message has its output."""


def existing_tool_modules(project: Path, package: str) -> frozenset[str]:
    """Return the names of the modules in the project's `tools` package, and those that the package itself uses."""
    tools = project / "src" / package / "tools"
    if not tools.is_dir():
        return frozenset()
    modules = {path.stem for path in tools.iterdir()}
    try:
        tree = ast.parse((tools / "__init__.py").read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return frozenset(modules)
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return frozenset(modules | names)


def write_files(files: Mapping[str, str], project: Path, *, replace: bool = False) -> None:
    """Write `files` (content by relative path) into `project`.

    Args:
        files: Content by path.
        project: The root folder.
        replace: Whether files that exist are replaced; else there must be none.

    Raises:
        ProjectError: One of the files exists (then none is written), or a file cannot be written.
    """
    existing = [] if replace else sorted(path for path in files if (project / path).exists())
    if existing:
        lines = "\n".join(f"    {path}" for path in existing[:MAX_LISTED_FILES])
        raise ProjectError(f"These files already exist and are not overwritten. Move them away first:\n{lines}")
    try:
        for path, content in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ProjectError(f"{error.filename} cannot be written: {error.strerror}") from None


def remove_files(paths: Iterable[str], project: Path) -> None:
    """Remove files of `project`."""
    for path in paths:
        (project / path).unlink(missing_ok=True)


def format_files(files: Mapping[str, str], project: Path) -> None:
    """Format the Python files among `files` with the project's own ruff.

    Raises:
        FormatError: The formatter cannot be run or reports an error.
    """
    sources = [path for path in files if path.endswith(".py")]
    if not sources:
        return
    uv = os.environ.get("UV") or shutil.which("uv") or "uv"
    for command in (["check", "--fix-only", "--select", "F401,I001", "--exit-zero"], ["format"]):
        _run_ruff([uv, "run", "ruff", *command, "--quiet", "--no-cache", *sources], project)


def _run_ruff(command: list[str], project: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        completed = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=FORMAT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FormatError(str(error)) from None
    if completed.returncode != 0:
        raise FormatError(completed.stderr.strip())
