"""The two stages of an update around Copier's own work."""

from __future__ import annotations

import re
import runpy
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from post_generate import ProjectError

from .apply import Links, apply
from .follow import Follower, move_into, moves_of, old_names
from .git import LINK, File, git, listing, read
from .rendering import FOLDER, Rendering, render, write
from .tables import PACKAGE, Tables
from .trees import Outcome, merge_trees

MIGRATIONS = "hooks/migrations"


class Update:
    """An update of one project from one version of the template to another."""

    def __init__(self, project: Path, template: Path, commit: str, answers_file: str) -> None:
        self.project = project
        self.template = template
        self.commit = commit
        self.answers_file = answers_file

    # --- What there is -----------------------------------------------------------------------------------------

    @cached_property
    def committed(self) -> dict[str, tuple[str, str]]:
        """The files of the last commit; Copier begins with a clean tree, so that this is what the owner has."""
        return listing(self.project, "HEAD")

    @cached_property
    def answers_before(self) -> dict[str, Any]:
        return self._answers(read(self.project, self.committed, [self.answers_file])[self.answers_file].content)

    @cached_property
    def answers_after(self) -> dict[str, Any]:
        return self._answers((self.project / self.answers_file).read_bytes())

    def _answers(self, content: bytes) -> dict[str, Any]:
        import yaml

        answers = dict(yaml.safe_load(content))
        if not answers.get("package_name"):
            raise ProjectError(
                f"{self.answers_file} has no package_name. Add a line with the name of the package under src/, and "
                "commit it."
            )
        return answers

    @property
    def before_package(self) -> str:
        """The name of the package in the last commit, as recorded."""
        return str(self.answers_before["package_name"])

    @property
    def after_package(self) -> str:
        return str(self.answers_after["package_name"])

    @cached_property
    def pending(self) -> list[dict[str, Any]]:
        """The namespaces of the migrations that the project has not had, oldest first."""
        had = git(self.template, "ls-tree", "--name-only", self.commit, f"{MIGRATIONS}/").decode().splitlines()
        found = sorted((self.template / MIGRATIONS).glob("v*.py"), key=_version)
        return [runpy.run_path(str(path)) for path in found if f"{MIGRATIONS}/{path.name}" not in had]

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.pending)

    @cached_property
    def sources(self) -> set[str]:
        """The paths that the new version may render."""
        found = (path.removesuffix(".jinja") for path in listing(self.template, "HEAD") if path.startswith(FOLDER))
        return {path[len(FOLDER) :] for path in found}

    @cached_property
    def copied(self) -> dict[str, File]:
        """What the new version makes in a copy: the files that are the owner's alone too."""
        return render(Rendering(self.template, "HEAD", self.answers_after, "copy"))[0]

    # --- Before ------------------------------------------------------------------------------------------------

    def before(self) -> None:
        """Reject what cannot be updated, rename answers, then call each migration's own `before`."""
        self._check()
        answers = self.project / self.answers_file
        for migration in self.pending:
            for old, new in migration.get("QUESTIONS", {}).items():
                text = answers.read_text(encoding="utf-8")
                if new and not re.search(rf"^{new}:", text, re.MULTILINE):
                    answers.write_text(re.sub(rf"^{old}:", f"{new}:", text, flags=re.MULTILINE), encoding="utf-8")
            if "before" in migration:
                migration["before"](self.project)

    def _check(self) -> None:
        """Reject a project that Copier would leave half updated.

        Raises:
            ProjectError: it is one; nothing has happened yet.
        """
        package = self.before_package
        if not any(path.startswith(f"src/{package}/") for path in self.committed):
            raise ProjectError(
                f"src/{package} is missing, the package that {self.answers_file} records. Give the folder that name "
                "again and commit it; then copier update --trust --data package_name=NEW renames it with all imports."
            )
        folders = {path[:at] for path in self.committed for at in range(len(path)) if path[at] == "/"}
        for source in sorted(self.sources):
            path = source.replace(PACKAGE, package)
            if path in folders:
                raise ProjectError(f"{path} is a folder, and the new version has a file of that name. Rename yours.")
            if self.links.follow(path) is None:
                raise ProjectError(f"{path} lies behind a symbolic link that leads out of the project.")

    # --- After -------------------------------------------------------------------------------------------------

    def after(self) -> None:
        """Merge what the owner had edited, seed what is new and the owner's, and follow what has another name."""
        old, new = render(
            Rendering(self.template, self.commit, self.answers_before, "update"),
            Rendering(self.template, "HEAD", self.answers_after, "update"),
        )
        for rendered in (old, new):
            rendered.pop(self.answers_file, None)
        places = {path: place for path in old | new if (place := self.links.follow(path))}
        contents = read(self.project, self.committed, places.values())
        mine = {path: contents[place] for path, place in places.items() if place in contents}
        there = {self.generic(path, self.after_package): path for path in new}

        def destinations(path: str) -> list[str]:
            found = self.tables.destinations(self.generic(path, self.before_package), there)
            return [there[target] for target in found]

        outcome = merge_trees(old, mine, new, destinations, self.handed_over)
        apply(self.project, outcome, mine, new, places.__getitem__)
        self.report(outcome, old)
        self.seed()
        for migration in self.pending:
            if "after" in migration:
                migration["after"](self.project, self.after_package)
        vanished = [path for path in old if self.generic(path, self.before_package) not in there]
        self.follow([path for path in vanished if not (self.project / path).exists()], outcome, new)
        for path, conflict in sorted(outcome.conflicts.items()):
            say("conflict", f"{path}: in {conflict.places} place{'s' if conflict.places > 1 else ''}")

    @cached_property
    def links(self) -> Links:
        linked = [path for path, (mode, _) in self.committed.items() if mode == LINK]
        contents = read(self.project, self.committed, linked)
        return Links({path: file.content.decode(errors="surrogateescape") for path, file in contents.items()})

    @staticmethod
    def generic(path: str, package: str) -> str:
        """A path as under template/, whatever the package is called."""
        return f"src/{PACKAGE}/{path.removeprefix(prefix)}" if path.startswith(prefix := f"src/{package}/") else path

    def handed_over(self, path: str) -> bool:
        """Whether a path that updates leave out is the owner's in the new version."""
        source = self.generic(path, self.before_package)
        return source in self.sources and source.replace(PACKAGE, self.after_package) in self.copied

    def seed(self) -> None:
        """Copy files that are new and the owner's, unless the project has or ever had them."""
        for source in self.tables.seeded:
            path = source.replace(PACKAGE, self.after_package)
            if path not in self.copied or (self.project / path).exists():
                continue
            names = {f"./{path}", f"./{source.replace(PACKAGE, self.before_package)}"}
            if not git(self.project, "log", "-1", "--format=%h", "HEAD", "--", *sorted(names)):
                write(self.project / path, self.copied[path])
                say("new", f"{path}, which is yours: updates never touch it")

    def follow(self, vanished: list[str], outcome: Outcome, new: dict[str, File]) -> None:
        """Bring the owner's files and imports to where the package and its modules are now, and list what is left."""
        renamed = self.before_package != self.after_package
        if renamed:
            old, now = self.project / "src" / self.before_package, self.project / "src" / self.after_package
            move_into(now, old)
            if old.exists():
                say("left", f"src/{old.name}: the names of its files are taken in src/{now.name}")
            say("renamed", f"src/{old.name} is src/{now.name} now, with your files")
        if not (vanished or renamed):
            return
        follower = Follower(self.project, new, [self.answers_file])
        moved = {
            target: self.generic(path, self.before_package).replace(PACKAGE, self.after_package)
            for target, path in outcome.moved.items()
        }
        moves = moves_of(self.tables, vanished, self.before_package, self.after_package)
        places = list(follower.rewrite_imports(moves, moved))
        told = [path for path in vanished if self.tables.knows(self.generic(path, self.before_package))]
        places += follower.mentions(old_names(told, self.before_package if renamed else ""))
        if lines := list(follower.shown(places)):
            say("by hand", "These lines name what is gone or has another name now, and were not changed:", *lines)

    def report(self, outcome: Outcome, old: dict[str, File]) -> None:
        """Say where edits are now, and which have no place."""
        for target, path in sorted(outcome.moved.items()):
            say("moved", f"{path} is {target} now; your edits are in it")
        for path, (targets, placed, unplaced) in sorted(outcome.carried.items()):
            say(
                "split",
                f"{path} is {' and '.join(targets)} now; {placed} of your {placed + len(unplaced)} edits are in them",
            )
            for line, text, count in unplaced:
                say(
                    "",
                    f"{path}:{line}: {text}",
                    f"    {'in several places' if count else 'in no place'} of the new files",
                )
            if unplaced:
                say("", f"all of your edits: {self.edits(path, old[path])}")
        for path in outcome.removed:
            kept = f"{path}, which you had edited; git still has it: git show HEAD:./{path}"
            say("removed", kept, self.tables.reason(self.generic(path, self.before_package)))
        for path, target in sorted(outcome.taken.items()):
            say(
                "removed",
                f"{path}, which you had edited: {target}, its new path, is another file of yours",
                self.show(path),
            )
        for path, target in sorted(outcome.deleted.items()):
            say("left out", f"{target}, since you had deleted {path}, which it was")
        for path in outcome.linked:
            say("left", f"{path}, which is a symbolic link of yours, without what the new version changes in it")

    def show(self, path: str) -> str:
        return f"git show HEAD:./{path}"

    def edits(self, path: str, base: File) -> str:
        """A command that shows what the owner had changed in a file of the old version."""
        name = git(self.project, "hash-object", "-w", "--stdin", stdin=base.content).decode().strip()
        return f"git diff {name[:12]} HEAD:./{path}"


def _version(path: Path) -> tuple[list[int], str]:
    """Orders migrations by the version in their names."""
    found = re.match(r"v(\d+(?:_\d+)*)", path.name)
    return [int(part) for part in found[1].split("_")] if found else [], path.name


def say(state: str, *lines: str) -> None:
    """Print lines, the first of them after a word."""
    for line in filter(None, lines):
        print(f"  {state:<12} {line}", file=sys.stderr)
        state = ""
