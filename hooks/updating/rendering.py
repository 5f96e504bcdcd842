"""Render a version of the template with Copier, into memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .git import EXECUTABLE, LINK, PLAIN, File, listing, read
from .tables import PACKAGE

FOLDER = "template/"
"""The part of the template's repository that is rendered."""

INTERVIEW = ("copier.yml", "interview/")
"""The other parts that Copier reads: the questions, and what they include."""

OPERATION = "_copier_operation"
RENDERED_AS = "rendered_as"
"""The name of the operation in the settings; Copier's own is `copy` except in an update of its own."""


class Rendering(NamedTuple):
    """What to render: a commit of the template, the answers, and the operation (`copy` or `update`)."""

    template: Path
    commit: str
    answers: Mapping[str, Any]
    operation: str
    only: Set[str] | None = None
    """The files of the template to render, by their paths under template/; all of them if None."""

    def sources(self) -> dict[str, tuple[str, str]]:
        """Return mode and object of each file that Copier reads, by its path in the template."""
        return {
            path: file
            for path, file in listing(self.template, self.commit).items()
            if path.startswith(INTERVIEW)
            or (path.startswith(FOLDER) and (self.only is None or source_of(path) in self.only))
        }

    def given(self) -> dict[str, Any]:
        """Return the answers to questions, without what Copier records beside them."""
        return {name: value for name, value in self.answers.items() if not name.startswith("_")}

    def files(self) -> dict[str, File]:
        """Return the rendered files."""
        with tempfile.TemporaryDirectory(prefix="rendering.", ignore_cleanup_errors=True) as folder:
            source, target = Path(folder, "source"), Path(folder, "project")
            sources = self.sources()
            for path, file in read(self.template, sources, sources).items():
                content = file.content
                if not path.startswith(FOLDER):
                    content = content.replace(OPERATION.encode(), RENDERED_AS.encode())
                write(source / path, File(content, file.mode))
            data = self.given() | {RENDERED_AS: self.operation}
            with without_git(), compiling_once():
                from copier import run_copy

                run_copy(str(source), target, data=data, defaults=True, skip_tasks=True, quiet=True)
            paths = {path.relative_to(target).as_posix(): on_disk(path) for path in target.rglob("*")}
            return {path: rendered for path, rendered in paths.items() if rendered}

    def files_given(self, other: Rendering, files: Mapping[str, File]) -> dict[str, File]:
        """Return the rendered files, given those of another version: only what differs in the template is rendered.

        With another interview or other answers every file may differ, so all are rendered.
        """
        own, others = self.sources(), other.sources()
        differing = {path for path in own.keys() | others.keys() if own.get(path) != others.get(path)}
        package = str(self.given()["package_name"])
        names = {source_of(path).replace(PACKAGE, package) for path in differing}
        if self.given() != other.given() or any(not name or "{" in name for name in names):
            return self.files()
        only = {source_of(path) for path in differing & own.keys()}
        rendered = self._replace(only=only).files() if only else {}
        return {path: file for path, file in files.items() if path not in names} | rendered


def source_of(path: str) -> str:
    """Return the path under template/ of a file of the template as it is in a project; empty for another file."""
    return path.removeprefix(FOLDER).removesuffix(".jinja") if path.startswith(FOLDER) else ""


def render(*wanted: Rendering) -> list[dict[str, File]]:
    """Return the files of each rendering; in parallel where processes can be forked, with one import of Copier."""
    with without_git():
        import copier  # noqa: F401
    if not hasattr(os, "fork"):
        return [rendering.files() for rendering in wanted]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(len(wanted), mp_context=get_context("fork")) as pool:
        return list(pool.map(Rendering.files, wanted))


@contextmanager
def without_git() -> Iterator[None]:
    """Hide git from Copier, which else would look for a repository and run git for each file that it writes."""
    path = os.environ.get("PATH")
    os.environ["PATH"] = ""
    try:
        yield
    finally:
        if path is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = path


@contextmanager
def compiling_once() -> Iterator[None]:
    """Compile each text once, and render none without an expression.

    Copier compiles each part of every path, and for each of these the name of the answers file, which has no expression
    here; and for each it collects all answers. That is two thirds of the time that it needs. A Copier whose internals
    have other names only takes longer.
    """
    from unittest.mock import patch

    from copier import _main
    from jinja2 import Environment

    compile_text = Environment.from_string
    compiled: dict[tuple[Environment, str], Any] = {}

    def from_string(environment: Environment, source: str, *arguments: Any, **named: Any) -> Any:
        if arguments or named:
            return compile_text(environment, source, *arguments, **named)
        if (environment, source) not in compiled:
            compiled[environment, source] = compile_text(environment, source)
        return compiled[environment, source]

    with ExitStack() as patches:
        patches.enter_context(patch.object(Environment, "from_string", from_string))
        worker = getattr(_main, "Worker", None)
        if render_string := getattr(worker, "_render_string", None):

            def render_text(self: Any, string: Any, *arguments: Any, **named: Any) -> Any:
                plain = isinstance(string, str) and "{" not in string
                return string if plain else render_string(self, string, *arguments, **named)

            path = property(lambda self: Path(self.answers_file or self.template.answers_relpath))
            patches.enter_context(patch.object(worker, "_render_string", render_text))
            patches.enter_context(patch.object(worker, "answers_relpath", path))
        yield


def on_disk(path: Path) -> File | None:
    """Return a file as git would store it, or None if there is none."""
    if path.is_symlink():
        return File(os.fsencode(os.readlink(path)), LINK)
    if not path.is_file():
        return None
    return File(path.read_bytes(), EXECUTABLE if path.stat().st_mode & 0o100 else PLAIN)


def write(path: Path, file: File) -> None:
    """Write a file, and replace an existing one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or file.mode == LINK:
        path.unlink(missing_ok=True)
    if file.mode == LINK:
        path.symlink_to(os.fsdecode(file.content))
        return
    path.write_bytes(file.content)
    mode = path.stat().st_mode
    if bool(mode & 0o100) != (file.mode == EXECUTABLE):
        path.chmod(mode | 0o111 if file.mode == EXECUTABLE else mode & ~0o111)
