"""A git repository with versions of a template, and projects generated from them."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, Self

import yaml
from copier import run_copy, run_update

from .support import ANSWERS_FILE, ROOT, TEMPLATE_PATHS, Answers, answers, copy_template

MAIN_BLOCK = '\nif __name__ == "__main__":\n'


def git(*arguments: str | Path, cwd: Path) -> str:
    """Run git, which has to succeed, and return its output."""
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(directory: Path, message: str = "change") -> None:
    """Commit everything in a directory."""
    git("add", "--all", cwd=directory)
    git("commit", "--quiet", "--allow-empty", "--message", message, cwd=directory)


def replace_hook(template: Path, statement: str = "pass") -> None:
    """Replace the hook of a template with one statement; the real hook creates an environment for each project."""
    path = template / "hooks" / "post_generate.py"
    functions, main_block, _ = path.read_text("utf-8").partition(MAIN_BLOCK)
    assert main_block
    path.write_text(f"{functions}{main_block}{indent(statement, '    ')}\n", "utf-8")


@dataclass
class TemplateRepository:
    """A git repository with a template whose hook is replaced."""

    template: Path
    root: Path
    hook: str = "pass"
    """The statement that the hook executes."""

    @classmethod
    def empty(cls, root: Path, hook: str = "pass") -> Self:
        template = root / "template"
        template.mkdir(parents=True)
        git("init", "--quiet", cwd=template)
        return cls(template, root, hook)

    @classmethod
    def from_working_tree(cls, root: Path, hook: str = "pass", version: str = "1.0.0") -> Self:
        repository = cls.empty(root, hook)
        repository.load_working_tree()
        repository.release(version)
        return repository

    @classmethod
    def from_folder(cls, folder: Path, root: Path, *more: str) -> Self:
        """Make version 1.0.0 of a smaller template and further files of the full one, given by their paths."""
        repository = cls.empty(root)
        shutil.copytree(folder, repository.template, dirs_exist_ok=True)
        for path in more:
            (repository.template / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, repository.template / path)
        replace_hook(repository.template, repository.hook)
        repository.release("1.0.0")
        return repository

    def clear(self) -> None:
        """Remove every file of the template."""
        if git("ls-files", cwd=self.template):
            git("rm", "-r", "--quiet", "--force", ".", cwd=self.template)

    def load_working_tree(self) -> None:
        """Replace the template with that of the working tree."""
        self.clear()
        copy_template(self.template)
        replace_hook(self.template, self.hook)

    def load_revision(self, revision: str) -> None:
        """Replace the template with that of a commit of this repository."""
        self.clear()
        existing = git("ls-tree", "--name-only", revision, cwd=ROOT).splitlines()
        archive = subprocess.run(
            ["git", "archive", "--format=zip", revision, *(path for path in TEMPLATE_PATHS if path in existing)],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
            files.extractall(self.template)
        replace_hook(self.template, self.hook)

    def release(self, version: str = "") -> str:
        """Commit, tag with the version if one is given, and return the commit."""
        commit(self.template)
        if version:
            git("tag", version, cwd=self.template)
        return git("rev-parse", "HEAD", cwd=self.template).strip()

    def copy(self, name: str | Path = "project", revision: str | None = None, **data: Any) -> Path:
        """Make and commit a project: of the latest release, unless a revision is given."""
        project = self.root / name
        data = answers(**{"project_name": "Weather Station"} | data)
        run_copy(str(self.template), project, data=data, vcs_ref=revision, defaults=True, unsafe=True, quiet=True)
        git("init", "--quiet", cwd=project)
        commit(project)
        return project

    def update(self, project: Path, revision: str | None = None, **data: Any) -> None:
        """Update and commit a project."""
        update(project, revision, **data)
        commit(project)


def update(project: Path, revision: str | None = None, **data: Any) -> None:
    """Update a project without a commit: to the latest release, unless a revision is given."""
    given = answers(**data)
    run_update(project, data=given, vcs_ref=revision, defaults=True, unsafe=True, overwrite=True, quiet=True)


def recorded(project: Path) -> Answers:
    """Return the recorded answers of a project, Copier's own `_commit` and `_src_path` among them."""
    recorded_answers: Answers = yaml.safe_load((project / ANSWERS_FILE).read_text("utf-8"))
    return recorded_answers


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replace a text that the file has to contain, everywhere or `count` times."""
    text = path.read_text("utf-8")
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, count), "utf-8")
