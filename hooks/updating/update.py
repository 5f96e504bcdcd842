"""The two stages of an update around Copier's own work."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from post_generate import ProjectError

from .answers import changes, migrate, secrets
from .apply import Links, apply
from .follow import Follower, move_into, moves_of, old_names
from .git import LINK, File, Tree, git, listing, read, run
from .hidden import save, saved
from .rendering import FOLDER, Rendering, render, write
from .tables import PACKAGE, Tables
from .trees import Outcome, merge_trees

MIGRATIONS = "hooks/migrations"
MARK = ".copier-update-unfinished"
"""A file that Copier writes into a project with the new version, and that the end of an update takes away."""


class Update:
    """An update of one project from one version of the template to another."""

    def __init__(self, project: Path, template: Path, commit: str, answers_file: str) -> None:
        self.project = project
        self.template = template
        self.commit = commit
        self.answers_file = answers_file
        self.owners = "HEAD"
        """The commit that has what the owner had before the update; Copier begins with a clean tree."""

    # --- What there is -----------------------------------------------------------------------------------------

    @cached_property
    def committed(self) -> dict[str, tuple[str, str]]:
        """The files that the owner had before the update."""
        return listing(self.project, self.owners)

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
        """Reject what cannot be updated, save what git does not show, bring answers up to date, then call `before`."""
        self._check()
        written = (source.replace(PACKAGE, self.before_package) for source in self.sources)
        save(self.project, self.committed, (place for path in written if (place := self.links.follow(path))))
        answers = self.project / self.answers_file
        for migration in self.pending:
            text = answers.read_text(encoding="utf-8")
            if (changed := migrate(text, migration)) != text:
                answers.write_text(changed, encoding="utf-8")
            if "before" in migration:
                migration["before"](self.project)

    def _check(self) -> None:
        """Reject a project that Copier would leave half updated.

        Raises:
            ProjectError: it is one; nothing has happened yet.
        """
        if MARK in self.committed:
            raise ProjectError(self._unfinished())
        package = self.before_package
        if not any(path.startswith(f"src/{package}/") for path in self.committed):
            raise ProjectError(
                f"src/{package} is missing, the package that {self.answers_file} records. Give the folder that name "
                "again and commit it; then this renames it with all imports:\n"
                "    uvx copier update --trust --defaults --vcs-ref=:current: --data package_name=NEW"
            )
        folders = {folder for path in self.committed for folder in _folders(path)}
        for source in sorted(self.sources):
            path = source.replace(PACKAGE, package)
            if path in folders:
                raise ProjectError(f"{path} is a folder, and the new version has a file of that name. Rename yours.")
            if self.links.follow(path) is None:
                raise ProjectError(f"{path} lies behind a symbolic link that leads out of the project.")

    def _unfinished(self) -> str:
        """What to do where an update was interrupted, and its owner has committed what it left."""
        said = f"An earlier update was interrupted, and what it left is committed ({MARK}). "
        added = git(self.project, "log", "--diff-filter=A", "-1", "--format=%h", "--", f"./{MARK}").decode().strip()
        if not added or run(self.project, "rev-parse", "--verify", "--quiet", f"{added}^").returncode != 0:
            return f"{said}This clone has no commit from before: git fetch --unshallow"
        if git(self.project, "rev-list", f"{added}..HEAD", "--", "."):
            undo = f"git revert --no-edit {added}"
        else:
            undo = f"git restore --source={added}^ --staged --worktree . && git commit -m 'Undo an update' -- ."
        return f"{said}Undo that, then update again:\n    {undo}\nThe commit {added} still has it then."

    # --- After -------------------------------------------------------------------------------------------------

    def after(self) -> None:
        """Merge what the owner had edited, seed what is new and the owner's, and follow what has another name."""
        self.owners, hidden = saved(self.project)
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

        moved = {target for path in mine if path in old for target in destinations(path)}
        left_out = set(self.left_out(old, new.keys() - old.keys() - moved))
        for path in left_out:
            del new[path]
        outcome = merge_trees(old, mine, new, destinations, self.handed_over)
        outcome.absent |= left_out
        apply(self.project, outcome, mine, new, places.__getitem__)
        self.report(outcome, old)
        for path in sorted(path for path, place in places.items() if place in hidden):
            say("kept", f"{path}, of which git shows no change, is merged; as it was: {self.show(path)}")
        self.seed()
        for migration in self.pending:
            if "after" in migration:
                migration["after"](self.project, self.after_package)
        vanished = [path for path in old if self.generic(path, self.before_package) not in there]
        self.follow([path for path in vanished if not (self.project / path).exists()], outcome, new)
        for path, conflict in sorted(outcome.conflicts.items()):
            say("conflict", f"{path}: in {conflict.places} place{'s' if conflict.places > 1 else ''}")
        self.report_answers()
        self.report_half_switched(old)
        (self.project / MARK).unlink(missing_ok=True)

    @cached_property
    def links(self) -> Links:
        linked = [path for path, (mode, _) in self.committed.items() if mode == LINK]
        contents = read(self.project, self.committed, linked)
        return Links({path: file.content.decode(errors="surrogateescape") for path, file in contents.items()})

    @staticmethod
    def generic(path: str, package: str) -> str:
        """A path as under template/, whatever the package is called."""
        return f"src/{PACKAGE}/{path.removeprefix(prefix)}" if path.startswith(prefix := f"src/{package}/") else path

    def left_out(self, old: Tree, new: Set[str]) -> Iterator[str]:
        """New files of folders of which the owner has deleted all that the old version had."""
        kept = {folder for path in self.committed for folder in _folders(path)}
        gone = {folder for path in old for folder in _folders(path)} - kept
        for path in sorted(new - self.committed.keys()):
            if folder := next((folder for folder in _folders(path) if folder in gone), None):
                say("left out", f"{path}, since you had deleted {folder}/")
                yield path

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
        slugs = [str(answers.get("project_slug", "")) for answers in (self.answers_before, self.answers_after)]
        slug = slugs[0] if slugs[0] != slugs[1] else ""
        if not (vanished or renamed or slug):
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
        if slug:  # in Python it may be the package's name
            found = follower.mentions(re.compile(rf"(?<![\w-]){re.escape(slug)}(?![\w-])"))
            places += [place for place in found if not place[0].endswith(".py")]
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
            kept = f"{path}, which you had edited; git still has it: {self.show(path)}"
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

    def report_answers(self) -> None:
        """Name every answer that is not as it was, and those that nobody should have recorded."""
        for state, text in changes(self.answers_before, self.answers_after, self.pending):
            say(state, text)
        for name in secrets(self.answers_after):
            say(
                "by hand",
                f"{name} in {self.answers_file} has credentials, which git's history has too: revoke them, and record "
                "a URL without.",
            )

    def report_half_switched(self, old: dict[str, File]) -> None:
        """Name modules that do not match the answers of the old version: these were edited without an update."""
        layer = f"src/{self.before_package}/production/"
        template = listing(self.template, self.commit)
        extra = [
            path
            for path, (_, name) in self.committed.items()
            if path.startswith(layer)
            and path not in old
            and template.get(f"{FOLDER}{self.generic(path, self.before_package)}", ("", ""))[1] == name
        ]
        absent = [path for path in old if path.startswith(layer) and path not in self.committed]
        if absent and git(self.project, "rev-parse", "--is-shallow-repository").strip() == b"false":
            absent = [path for path in absent if not git(self.project, "log", "-1", "--format=%h", "--", f"./{path}")]
        else:
            absent = []
        if not (extra or absent):
            return
        edited = self._last_change_of_answers()
        say(
            "by hand",
            f"{self.answers_file} does not match the files, so that features are half there: it was edited, and an "
            "update has to change an answer.",
            *(f"without its answer: {path}" for path in extra),
            *(f"missing: {path}" for path in absent),
            "Undo this update, set the answer back in that file, commit, then change it by an update:",
            f"    uvx copier update --trust --defaults --vcs-ref=:current: {edited or '--data NAME=VALUE'}",
        )

    def _last_change_of_answers(self) -> str:
        """The answers that the last commit which changed any gave, as options of an update."""
        import yaml

        path = f"./{self.answers_file}"
        last: dict[str, Any] = {}
        for commit in git(self.project, "log", "-50", "--format=%H", "--", path).decode().split():
            recorded = yaml.safe_load(run(self.project, "show", f"{commit}:{path}").stdout) or {}
            given = {
                name: value if isinstance(value, str) else json.dumps(value)
                for name, value in last.items()
                if not name.startswith("_") and name in recorded and recorded[name] != value
            }
            if given:
                return " ".join(f"--data {shlex.quote(f'{name}={value}')}" for name, value in given.items())
            last = recorded
        return ""

    def show(self, path: str) -> str:
        return f"git show {self.owners}:./{path}"

    def edits(self, path: str, base: File) -> str:
        """A command that shows what the owner had changed in a file of the old version."""
        name = git(self.project, "hash-object", "-w", "--stdin", stdin=base.content).decode().strip()
        return f"git diff {name[:12]} {self.owners}:./{path}"


def _folders(path: str) -> Iterator[str]:
    return (path[:at] for at in range(len(path)) if path[at] == "/")


def _version(path: Path) -> tuple[list[int], str]:
    """Orders migrations by the version in their names."""
    found = re.match(r"v(\d+(?:_\d+)*)", path.name)
    return [int(part) for part in found[1].split("_")] if found else [], path.name


def say(state: str, *lines: str) -> None:
    """Print lines, the first of them after a word."""
    for line in filter(None, lines):
        print(f"  {state:<12} {line}", file=sys.stderr)
        state = ""
