"""What a version of the template makes of answers, as Copier renders it, in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from .git import EXECUTABLE, LINK, PLAIN, File, listing, read

FOLDER = "template/"
"""The part of the template's repository that is rendered."""

OPERATION = "_copier_operation"
RENDERED_AS = "rendered_as"
"""The settings' name for the operation, in place of Copier's, which says `copy` wherever it is not updating itself."""


class Rendering(NamedTuple):
    """What to render: a commit of the template, answers, and whether as in a copy or in an update."""

    template: Path
    commit: str
    answers: Mapping[str, Any]
    operation: str

    def files(self) -> dict[str, File]:
        """The rendered files."""
        with tempfile.TemporaryDirectory(prefix="rendering.", ignore_cleanup_errors=True) as folder:
            source, target = Path(folder, "source"), Path(folder, "project")
            listed = listing(self.template, self.commit)
            for path, file in read(self.template, listed, listed).items():
                content = file.content
                if not path.startswith(FOLDER):
                    content = content.replace(OPERATION.encode(), RENDERED_AS.encode())
                write(source / path, File(content, file.mode))
            data = {name: value for name, value in self.answers.items() if not name.startswith("_")}
            with without_git():
                from copier import run_copy

                data[RENDERED_AS] = self.operation
                run_copy(str(source), target, data=data, defaults=True, skip_tasks=True, quiet=True)
            found = {path.relative_to(target).as_posix(): on_disk(path) for path in target.rglob("*")}
            return {path: rendered for path, rendered in found.items() if rendered}


def render(*wanted: Rendering) -> list[dict[str, File]]:
    """Each rendering's files; at once where a process can be forked, so that Copier is imported once."""
    with without_git():
        import copier  # noqa: F401
    if not hasattr(os, "fork"):
        return [rendering.files() for rendering in wanted]
    with ProcessPoolExecutor(len(wanted), mp_context=get_context("fork")) as pool:
        return list(pool.map(Rendering.files, wanted))


@contextmanager
def without_git() -> Iterator[None]:
    """Have Copier take a folder as it is, and ask git nothing of each file that it writes."""
    path = os.environ.get("PATH")
    os.environ["PATH"] = ""
    try:
        yield
    finally:
        if path is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = path


def on_disk(path: Path) -> File | None:
    """A file as git would store it, or None where there is none."""
    if path.is_symlink():
        return File(os.fsencode(os.readlink(path)), LINK)
    if not path.is_file():
        return None
    return File(path.read_bytes(), EXECUTABLE if path.stat().st_mode & 0o100 else PLAIN)


def write(path: Path, file: File) -> None:
    """Write a file in place of what is there."""
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
