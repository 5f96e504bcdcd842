"""A template in git, whose versions the tests make, and projects of it."""

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

PROGRAM = '\nif __name__ == "__main__":\n'


def git(*arguments: str | Path, cwd: Path) -> str:
    """Runs git, which has to succeed, and returns what it says."""
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(directory: Path, message: str = "change") -> None:
    git("add", "--all", cwd=directory)
    git("commit", "--quiet", "--allow-empty", "--message", message, cwd=directory)


@dataclass
class Workshop:
    """A template whose hook does nothing, in a repository of its own."""

    template: Path
    root: Path
    hook: str = "pass"
    """What the hook does when it is run; the real one makes an environment for each project."""

    @classmethod
    def empty(cls, root: Path, hook: str = "pass") -> Self:
        template = root / "template"
        template.mkdir(parents=True)
        git("init", "--quiet", cwd=template)
        return cls(template, root, hook)

    @classmethod
    def of_the_working_tree(cls, root: Path, hook: str = "pass", version: str = "1.0.0") -> Self:
        made = cls.empty(root, hook)
        made.take_the_working_tree()
        made.release(version)
        return made

    @classmethod
    def of(cls, folder: Path, root: Path, *more: str) -> Self:
        """Of a smaller template, which is quick, and these files of the whole one besides."""
        made = cls.empty(root)
        shutil.copytree(folder, made.template, dirs_exist_ok=True)
        for path in more:
            (made.template / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, made.template / path)
        made.replace_the_hook()
        made.release("1.0.0")
        return made

    def clear(self) -> None:
        if git("ls-files", cwd=self.template):
            git("rm", "-r", "--quiet", "--force", ".", cwd=self.template)

    def take_the_working_tree(self) -> None:
        self.clear()
        copy_template(self.template)
        self.replace_the_hook()

    def take(self, revision: str) -> None:
        """Takes what a commit of this repository has of the template."""
        self.clear()
        present = git("ls-tree", "--name-only", revision, *TEMPLATE_PATHS, cwd=ROOT).split()
        archive = subprocess.run(
            ["git", "archive", "--format=zip", revision, *present],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        with zipfile.ZipFile(io.BytesIO(archive.stdout)) as files:
            files.extractall(self.template)
        self.replace_the_hook()

    def replace_the_hook(self) -> None:
        path = self.template / "hooks" / "post_generate.py"
        functions, found, _ = path.read_text("utf-8").partition(PROGRAM)
        assert found
        path.write_text(f"{functions}{found}{indent(self.hook, '    ')}\n", "utf-8")

    def release(self, version: str = "") -> str:
        """Commits, and tags where a version is given; returns the commit."""
        commit(self.template)
        if version:
            git("tag", version, cwd=self.template)
        return git("rev-parse", "HEAD", cwd=self.template).strip()

    def copy(self, name: str | Path = "project", revision: str | None = None, **data: Any) -> Path:
        """A committed project of one version, the latest release unless told."""
        project = self.root / name
        data = answers(**{"project_name": "Weather Station"} | data)
        run_copy(str(self.template), project, data=data, vcs_ref=revision, defaults=True, unsafe=True, quiet=True)
        git("init", "--quiet", cwd=project)
        commit(project)
        return project

    def update(self, project: Path, revision: str | None = None, **data: Any) -> None:
        """Updates, and commits."""
        update(project, revision, **data)
        commit(project)


def update(project: Path, revision: str | None = None, **data: Any) -> None:
    """Updates to a version, the latest release unless told, and leaves the commit to the caller."""
    given = answers(**data)
    run_update(project, data=given, vcs_ref=revision, defaults=True, unsafe=True, overwrite=True, quiet=True)


def recorded(project: Path) -> Answers:
    found: Answers = yaml.safe_load((project / ANSWERS_FILE).read_text("utf-8"))
    return found


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    """Replaces a text that has to be there, everywhere or so many times."""
    text = path.read_text("utf-8")
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, count), "utf-8")
