"""Runs the migrations of an update, so that none of the owner's work is lost where things have moved.

    python migrate.py before|after TEMPLATE COMMIT ANSWERS_FILE

TEMPLATE is the clone of the new version, COMMIT the version that the project came from, both as Copier gives them; the
project is the current folder. hooks/migrations/README.md says how a migration is written. A migration runs in the
update that brings it: where COMMIT lacks its file. No version number is compared, so a project that follows a branch,
or a template without tags, migrates like one that goes from release to release.

Left to itself Copier deletes a file that the template no longer has, with whatever the owner had changed in it. Here
the stage `after` merges his changes into the file's new place, and names each edited file that has none; the commit
before the update still has it. A package with a new name is such a move, of all its files: the owner's go along, and
imports follow. And it ends conflicts of pyproject.toml that are none: lines of both sides that are neighbours. Needs
Copier's interpreter: what he had changed shows against the old version, which is rendered again.
"""

from __future__ import annotations

import argparse
import difflib
import io
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from post_generate import GO_BACK, ProjectError, identity

FOLDER = "hooks/migrations"


class Migrations:
    """What an update has to carry over in one project."""

    def __init__(self, project: Path, template: Path, commit: str, answers_file: str) -> None:
        self.project = project
        self.template = template
        self.commit = commit
        self.answers_file = answers_file
        self.package = identity(project)[1]

    @cached_property
    def package_before(self) -> str:
        """The name that the package had in the last commit."""
        return str(self.answers_before["package_name"])

    @cached_property
    def answers_before(self) -> dict[str, Any]:
        import yaml

        return dict(yaml.safe_load(self.mine(self.answers_file)))

    @cached_property
    def pending(self) -> list[dict[str, Any]]:
        """The namespaces of the migrations that the project has not had, oldest first."""
        had = git(self.template, "ls-tree", "--name-only", self.commit, f"{FOLDER}/").decode().splitlines()
        found = sorted((self.template / FOLDER).glob("v*.py"))
        return [runpy.run_path(str(path)) for path in found if f"{FOLDER}/{path.name}" not in had]

    def before(self) -> None:
        """Renames answers, then calls each migration's own `before`."""
        answers = self.project / self.answers_file
        for migration in self.pending:
            for old, new in migration.get("QUESTIONS", {}).items():
                text = answers.read_text(encoding="utf-8")
                if new and not re.search(rf"^{new}:", text, re.MULTILINE):
                    answers.write_text(re.sub(rf"^{old}:", f"{new}:", text, flags=re.MULTILINE), encoding="utf-8")
            if "before" in migration:
                migration["before"](self.project)

    def after(self) -> None:
        """Merges edits into the new places of files, names those that have none, moves what is the owner's alone.

        Then it calls each migration's own `after`.
        """
        moved, reasons = dict[str, str](), dict[str, str]()
        for migration in self.pending:
            moved |= {self.path(old): self.path(new) for old, new in migration.get("MOVED", {}).items()}
            reasons |= {self.path(path): reason for path, reason in migration.get("GONE", {}).items()}
        for path in self.edited_and_gone():
            target = self.now(destination(path, moved))
            if target != path and (self.project / target).is_file():
                self.merge(path, target)
                say("moved", f"{path} is {target} now; your edits are in it")
            else:
                kept = f"git show HEAD:./{path}"
                say("removed", f"{path}, which you had edited; git still has it: {kept}", reasons.get(path, ""))
            (self.project / f"{path}.rej").unlink(missing_ok=True)
        if self.package != self.package_before:
            self.follow_the_package()
        self.part_neighbours("pyproject.toml")
        for migration in self.pending:
            if "after" in migration:
                migration["after"](self.project)

    def path(self, of_template: str) -> str:
        """What a path under template/ was in the project before the update."""
        return of_template.removesuffix(".jinja").replace("{{ package_name }}", self.package_before)

    def now(self, path: str) -> str:
        """The same in the package's new name, if it has one."""
        before = f"src/{self.package_before}/"
        return f"src/{self.package}/{path.removeprefix(before)}" if path.startswith(before) else path

    @cached_property
    def gone(self) -> list[str]:
        """The files that the update has removed."""
        listed = git(self.project, "diff", "--relative", "--name-only", "-z", "--diff-filter=D", "HEAD", "--", ".")
        return sorted(filter(None, listed.decode().split("\0")))

    def edited_and_gone(self) -> Iterator[str]:
        """Those of them that were the template's and that the owner had changed."""
        for path in self.gone:
            before = self.old / path
            if before.is_file() and before.read_bytes() != self.mine(path):
                yield path

    def mine(self, path: str) -> bytes:
        """A file as it was before the update, which starts from a clean commit only."""
        return git(self.project, "show", f"HEAD:./{path}")

    @cached_property
    def old(self) -> Path:
        """The removed files as the project's old version and old answers make them."""
        from copier import run_copy

        there = git(self.template, "ls-tree", "-r", "-z", "--name-only", self.commit, "template/").decode()
        wanted = [path for path in there.split("\0") if self.path(path[len("template/") :]) in self.gone]
        archive = git(self.template, "archive", "--format=zip", self.commit, "copier.yml", *wanted)
        root = Path(self.scratch.name)
        source, target = root / "source", root / "project"
        (source / "template").mkdir(parents=True)
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            files.extractall(source)
        data = {name: value for name, value in self.answers_before.items() if not name.startswith("_")}
        run_copy(str(source), target, data=data, defaults=True, skip_tasks=True, quiet=True)
        return target

    @cached_property
    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="migrate.", ignore_cleanup_errors=True)

    def merge(self, path: str, target: str) -> None:
        """Three-way: what the owner changed at `path`, in what the template now has at `target`."""
        with tempfile.TemporaryDirectory(dir=self.scratch.name) as folder:
            sides = {"before updating": self.mine(path), "last update": (self.old / path).read_bytes()}
            sides["after updating"] = (self.project / target).read_bytes()
            command = ["merge-file", "--stdout"]
            for label, content in sides.items():
                (Path(folder) / label).write_bytes(content)
                command += ["-L", label]
            done = subprocess.run(["git", *command, *sides], cwd=folder, capture_output=True, check=False)
            if done.returncode >= 128:
                reason = done.stderr.decode(errors="replace").strip()
                raise ProjectError(f"{path} cannot be merged into {target}: {reason}")
        (self.project / target).write_bytes(done.stdout)

    def follow_the_package(self) -> None:
        """Brings what the update left under the package's old name to the new one, and corrects the imports."""
        old, new = self.project / "src" / self.package_before, self.project / "src" / self.package
        move_into(new, old)
        imports = re.compile(rf"^([ \t]*(?:from|import)[ \t]+){self.package_before}(?![^\s.,;])".encode(), re.MULTILINE)
        listed = git(self.project, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py")
        for path in {self.project / name for name in listed.decode().split("\0") if name}:
            if path.is_file() and imports.search(text := path.read_bytes()):
                path.write_bytes(imports.sub(rb"\g<1>" + self.package.encode(), text))
        if old.exists():
            say("left", f"src/{self.package_before}: the names of its files are taken in src/{self.package}")
        say(
            "renamed",
            f"src/{self.package_before} is src/{self.package} now, with your files and all imports",
            f"what else of yours has the old name: git grep --untracked --word-regexp {self.package_before}",
        )

    def part_neighbours(self, path: str) -> None:
        """Merges a file in which git sees a conflict, if no line was changed on both sides.

        To git two changes are one where no line stands between them. In this file the version, which its owner raises,
        stands between the name and the description, which are answers.
        """
        if not git(self.project, "ls-files", "--unmerged", "--", path):
            return
        base, mine, theirs = (
            git(self.project, "show", f":{stage}:./{path}").splitlines(keepends=True) for stage in (1, 2, 3)
        )
        merged = merge_lines(base, mine, theirs)
        if merged is not None:
            (self.project / path).write_bytes(b"".join(merged))
            git(self.project, "reset", "--quiet", "--", path)


def merge_lines(base: list[bytes], one: list[bytes], other: list[bytes]) -> list[bytes] | None:
    """`base` with the changes of both sides, or None where both change a line, or add at the same place."""
    changes = {
        (start, end, tuple(side[new_start:new_end]))
        for side in (one, other)
        for kind, start, end, new_start, new_end in difflib.SequenceMatcher(
            a=base, b=side, autojunk=False
        ).get_opcodes()
        if kind != "equal"
    }
    merged: list[bytes] = []
    done, added = 0, -1
    for start, end, lines in sorted(changes):
        if start < done or start == end == added:
            return None
        merged += base[done:start] + list(lines)
        done, added = end, end if start == end else -1
    return merged + base[done:]


def move_into(new: Path, old: Path) -> None:
    """Moves what is in one folder into another, except where that has a file of the same name."""
    if not old.is_dir():
        return
    for entry in sorted(old.iterdir()):
        target = new / entry.name
        if entry.name == "__pycache__":
            shutil.rmtree(entry)
        elif not target.exists():
            new.mkdir(parents=True, exist_ok=True)
            entry.rename(target)
        elif target.is_dir():
            move_into(target, entry)
    if not any(old.iterdir()):
        old.rmdir()


def destination(path: str, moved: dict[str, str]) -> str:
    """Where a file is now, after as many moves as there were."""
    seen = {path}
    while path in moved and moved[path] not in seen:
        path = moved[path]
        seen.add(path)
    return path


def git(folder: Path, *arguments: str) -> bytes:
    """What git says.

    Raises:
        ProjectError: git failed; the message has its reason.
    """
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode != 0:
        raise ProjectError(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def say(state: str, *lines: str) -> None:
    for line in filter(None, lines):
        print(f"  {state:<12} {line}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stage", choices=("before", "after"))
    parser.add_argument("template", type=Path)
    parser.add_argument("commit")
    parser.add_argument("answers_file")
    options = parser.parse_args(arguments)
    try:
        migrations = Migrations(Path.cwd(), options.template, options.commit, options.answers_file)
        if options.stage == "before":
            migrations.before()
        else:
            migrations.after()
    except ProjectError as error:
        print(
            f"\nFAILED to migrate: {error}\nYour last commit has everything, and this goes back to it: {GO_BACK}\n",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
