"""The stages of an update before and after Copier's own."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any

from post_generate import GO_BACK, UNFINISHED_MARK, ProjectError, one_line, say

from .answers import changes, migrate, secrets
from .apply import Links, apply
from .git import LINK, File, Tree, git, listing, read, run
from .hidden import save, saved
from .imports import relocate
from .references import ReferenceUpdater, context_of, move_into, moves_of, old_names
from .rendering import FOLDER, Rendering, render, source_of, write
from .tables import PACKAGE, Tables
from .trees import Outcome, merge_trees

MIGRATIONS = "hooks/migrations"
UNFINISHED = f"""\
An update of this project has begun and has not ended.

To go back to the last commit, in the folder of this file:

    {GO_BACK}
"""


class Update:
    """An update of one project from one version of the template to another."""

    def __init__(self, project: Path, template: Path, commit: str, answers_file: str) -> None:
        self.project = project
        self.template = template
        self.commit = commit
        self.answers_file = answers_file
        self.updated: set[str] = set()
        """The files of the template that this update renders, by their paths under template/."""
        self.owner_commit = "HEAD"
        """The commit with the owner's files before the update; Copier requires a clean working tree."""

    # --- State -------------------------------------------------------------------------------------------------

    @cached_property
    def committed(self) -> dict[str, tuple[str, str]]:
        """Mode and object of each file that the owner had before the update, by path."""
        return listing(self.project, self.owner_commit)

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
        """The namespaces of the migrations that the project's version did not have, oldest first."""
        previous = git(self.template, "ls-tree", "--name-only", self.commit, f"{MIGRATIONS}/").decode().splitlines()
        migrations = sorted((self.template / MIGRATIONS).glob("v*.py"), key=_version)
        return [runpy.run_path(str(path)) for path in migrations if f"{MIGRATIONS}/{path.name}" not in previous]

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.pending)

    @cached_property
    def sources(self) -> set[str]:
        """The paths that the new version may render."""
        return {source for path in listing(self.template, "HEAD") if (source := source_of(path))}

    @cached_property
    def user_owned(self) -> dict[str, File]:
        """The files of a new copy of the new version that updates leave out."""
        only = self.sources - self.updated
        return render(Rendering(self.template, "HEAD", self.answers_after, "copy", only))[0]

    # --- Before ------------------------------------------------------------------------------------------------

    def before(self) -> None:
        """Reject what cannot be updated, save hidden files, migrate the answers, and call `before` of each migration.

        It leaves the mark of an unfinished update, with which Copier renders the answers alone.

        Raises:
            ProjectError: the project cannot be updated; nothing has changed.
        """
        self._check()
        written = (source.replace(PACKAGE, self.before_package) for source in self.sources)
        save(self.project, self.committed, (place for path in written if (place := self.links.resolve(path))))
        answers = self.project / self.answers_file
        for migration in self.pending:
            text = answers.read_text(encoding="utf-8")
            if (changed := migrate(text, migration)) != text:
                answers.write_text(changed, encoding="utf-8")
            if "before" in migration:
                migration["before"](self.project)
        (self.project / UNFINISHED_MARK).write_text(UNFINISHED, encoding="utf-8")

    def _check(self) -> None:
        """Reject a project that Copier would leave half updated.

        Raises:
            ProjectError: the project is one of these; nothing has changed.
        """
        if UNFINISHED_MARK in self.committed:
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
                raise ProjectError(
                    f"{path} is a folder, and the new version has a file of that name. Rename the folder."
                )
            if self.links.resolve(path) is None:
                raise ProjectError(f"{path} is behind a symbolic link to a place outside the project.")

    def _unfinished(self) -> str:
        """Return the instructions for a project in which the files of an interrupted update are committed."""
        message = f"An earlier update was interrupted, and its incomplete result is committed ({UNFINISHED_MARK}). "
        added = (
            git(self.project, "log", "--diff-filter=A", "-1", "--format=%h", "--", f"./{UNFINISHED_MARK}")
            .decode()
            .strip()
        )
        if not added or run(self.project, "rev-parse", "--verify", "--quiet", f"{added}^").returncode != 0:
            return f"{message}This clone has no commit from before: git fetch --unshallow"
        if git(self.project, "rev-list", f"{added}..HEAD", "--", "."):
            undo = f"git revert --no-edit {added}"
        else:
            undo = f"git restore --source={added}^ --staged --worktree . && git commit -m 'Undo an update' -- ."
        return f"{message}Undo that, then update again:\n    {undo}\nThe commit {added} still has it then."

    # --- After -------------------------------------------------------------------------------------------------

    def after(self) -> None:
        """Merge edited files, seed new user-owned files, run the migrations, and update references to renamed modules.

        Raises:
            ProjectError: git failed, or a file cannot be merged.
        """
        self.owner_commit, hidden = saved(self.project)
        old, new = render(
            Rendering(self.template, self.commit, self.answers_before, "update"),
            Rendering(self.template, "HEAD", self.answers_after, "update"),
        )
        for rendered in (old, new):
            rendered.pop(self.answers_file, None)
        places = {path: place for path in old | new if (place := self.links.resolve(path))}
        contents = read(self.project, self.committed, places.values())
        owner_files = {path: contents[place] for path, place in places.items() if place in contents}
        new_paths = {self.generic(path, self.after_package): path for path in new}
        self.updated = set(new_paths)

        def destinations(path: str) -> list[str]:
            targets = self.tables.destinations(self.generic(path, self.before_package), new_paths)
            return [new_paths[target] for target in targets]

        moved = {target for path in owner_files if path in old for target in destinations(path)}
        in_deleted_folders = set(self.in_deleted_folders(old, new.keys() - old.keys() - moved))
        for path in in_deleted_folders:
            del new[path]
        vanished = [path for path in old if self.generic(path, self.before_package) not in new_paths]
        moves = moves_of(self.tables, vanished, self.before_package, self.after_package)

        def relocated(path: str, target: str, *contents: bytes) -> Sequence[bytes]:
            former, package = context_of(path), context_of(target)
            return (former and package and relocate(contents, former, package, moves)) or contents

        outcome = merge_trees(old, owner_files, new, destinations, self.becomes_owned, relocated)
        outcome.absent |= in_deleted_folders
        apply(self.project, outcome, new, places.__getitem__)
        self.report(outcome, old)
        for path in sorted(path for path, place in places.items() if place in hidden):
            print_state("merged", f"{path}, of which git shows no change; its former content: {self.show(path)}")
        self.seed()
        for migration in self.pending:
            if "after" in migration:
                migration["after"](self.project, self.after_package)
        self.update_references([path for path in vanished if not (self.project / path).exists()], new)
        for path, conflict in sorted(outcome.conflicts.items()):
            print_state("conflict", f"{path}: in {conflict.places} place{'s' if conflict.places > 1 else ''}")
        self.report_answers()
        self.report_half_switched(old)
        (self.project / UNFINISHED_MARK).unlink(missing_ok=True)

    @cached_property
    def links(self) -> Links:
        links = [path for path, (mode, _) in self.committed.items() if mode == LINK]
        contents = read(self.project, self.committed, links)
        return Links({path: file.content.decode(errors="surrogateescape") for path, file in contents.items()})

    @staticmethod
    def generic(path: str, package: str) -> str:
        """Return a path as it is under template/, independent of the package's name."""
        return f"src/{PACKAGE}/{path.removeprefix(prefix)}" if path.startswith(prefix := f"src/{package}/") else path

    def in_deleted_folders(self, old: Tree, new: Set[str]) -> Iterator[str]:
        """Yield the new files of folders that the owner has deleted."""
        present = {folder for path in self.committed for folder in _folders(path)}
        deleted = {folder for path in old for folder in _folders(path)} - present
        for path in sorted(new - self.committed.keys()):
            if folder := next((folder for folder in _folders(path) if folder in deleted), None):
                print_state("left out", f"{path}, since you had deleted {folder}/")
                yield path

    def becomes_owned(self, path: str) -> bool:
        """Return whether a path that updates leave out is user-owned in the new version."""
        source = self.generic(path, self.before_package)
        return source in self.sources and source.replace(PACKAGE, self.after_package) in self.user_owned

    def seed(self) -> None:
        """Copy new user-owned files, except those that the project has or ever had."""
        for source in self.tables.seeded:
            path = source.replace(PACKAGE, self.after_package)
            if path not in self.user_owned or (self.project / path).exists():
                continue
            names = {f"./{path}", f"./{source.replace(PACKAGE, self.before_package)}"}
            if not git(self.project, "log", "-1", "--format=%h", "HEAD", "--", *sorted(names)):
                write(self.project / path, self.user_owned[path])
                print_state("new", f"{path}, which is yours: updates never touch it")

    def update_references(self, vanished: list[str], new: dict[str, File]) -> None:
        """Move the owner's files into a renamed package, rewrite imports, and list what was not rewritten."""
        renamed = self.before_package != self.after_package
        if renamed:
            source, target = (self.project / "src" / name for name in (self.before_package, self.after_package))
            move_into(target, source)
            if source.exists():
                print_state("left", f"src/{source.name}: src/{target.name} has files of the same names")
            print_state("renamed", f"src/{source.name} is src/{target.name} now, with your files")
        slugs = [str(answers.get("project_slug", "")) for answers in (self.answers_before, self.answers_after)]
        slug = slugs[0] if slugs[0] != slugs[1] else ""
        if not (vanished or renamed or slug):
            return
        updater = ReferenceUpdater(self.project, new, [self.answers_file])
        moves = moves_of(self.tables, vanished, self.before_package, self.after_package)
        places = list(updater.rewrite_imports(moves))
        described = [path for path in vanished if self.tables.describes(self.generic(path, self.before_package))]
        places += updater.mentions(old_names(described, self.before_package if renamed else ""))
        if slug:  # in Python it may be the package's name
            mentions = updater.mentions(re.compile(rf"(?<![\w-]){re.escape(slug)}(?![\w-])"))
            places += [place for place in mentions if not place[0].endswith(".py")]
        if lines := list(updater.with_text(places)):
            print_state("by hand", "These lines contain old names, and were not changed:", *lines)

    def report(self, outcome: Outcome, old: dict[str, File]) -> None:
        """Print which edited files were moved, split, removed or left out."""
        for target, path in sorted(outcome.moved.items()):
            print_state("moved", f"{path} is {target} now; your edits are in it")
        for path, (targets, carried) in sorted(outcome.split_files.items(), key=lambda split: split[0]):
            total = carried.placed + carried.in_conflict + len(carried.unplaced)
            print_state(
                "split",
                f"{path} is {' and '.join(targets)} now; {carried.placed} of your {total} edits are in them"
                + (f", {carried.in_conflict} in conflicts" if carried.in_conflict else ""),
            )
            for line, text, places in carried.unplaced:
                found = f"may belong to {' or '.join(places)}" if places else "its lines are in none of the new files"
                print_state("", f"{path}:{line}: {text}", f"    {found}")
            if carried.unplaced or carried.in_conflict:
                print_state("", f"all of your edits: {self.edits(path, old[path])}", f"your version: {self.show(path)}")
        for path in outcome.removed:
            removed = f"{path}, which you had edited; git still has it: {self.show(path)}"
            print_state("removed", removed, self.tables.reason(self.generic(path, self.before_package)))
        for path, target in sorted(outcome.occupied.items()):
            print_state(
                "removed",
                f"{path}, which you had edited: {target}, its new path, is another file of yours",
                self.show(path),
            )
        for path, target in sorted(outcome.deleted.items()):
            print_state("left out", f"{target}, since you had deleted {path}, which it was")
        for path in outcome.links:
            print_state(
                "left", f"{path}, which is a symbolic link of yours, without what the new version changes in it"
            )

    def report_answers(self) -> None:
        """Print each answer that the update changed, and each that contains credentials."""
        for state, text in changes(self.answers_before, self.answers_after, self.pending):
            print_state(state, text)
        for name in secrets(self.answers_after):
            print_state(
                "by hand",
                f"{name} in {self.answers_file} contains credentials, and so does git's history: revoke them, "
                "and record a URL without credentials.",
            )

    def report_half_switched(self, old: dict[str, File]) -> None:
        """Print the modules that do not match the old version's answers: these were edited without an update."""
        layer = f"src/{self.before_package}/production/"
        template = listing(self.template, self.commit)
        unexpected = [
            path
            for path, (_, name) in self.committed.items()
            if path.startswith(layer)
            and path not in old
            and template.get(f"{FOLDER}{self.generic(path, self.before_package)}", ("", ""))[1] == name
        ]
        missing = [path for path in old if path.startswith(layer) and path not in self.committed]
        if missing and git(self.project, "rev-parse", "--is-shallow-repository").strip() == b"false":
            missing = [path for path in missing if not git(self.project, "log", "-1", "--format=%h", "--", f"./{path}")]
        else:
            missing = []
        if not (unexpected or missing):
            return
        edited = self._last_change_of_answers()
        print_state(
            "by hand",
            f"{self.answers_file} does not match the files, so some features are incomplete: the file was edited, but "
            "only an update can change an answer.",
            *(f"without its answer: {path}" for path in unexpected),
            *(f"missing: {path}" for path in missing),
            "Undo this update, set the answer back in that file, commit, then change it by an update:",
            f"    uvx copier update --trust --defaults --vcs-ref=:current: {edited or '--data NAME=VALUE'}",
        )

    def _last_change_of_answers(self) -> str:
        """Return the answers changed by the last commit that changed any, as options of `copier update`."""
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
        """Return a command that prints a file as it was before the update."""
        return f"git show {self.owner_commit}:./{path}"

    def edits(self, path: str, base: File) -> str:
        """Return a command that shows the owner's edits of a file of the old version."""
        name = git(self.project, "hash-object", "-w", "--stdin", stdin=base.content).decode().strip()
        return f"git diff {name[:12]} {self.owner_commit}:./{path}"


def _folders(path: str) -> Iterator[str]:
    """Yield the folders above a path, outermost first."""
    return (path[:at] for at in range(len(path)) if path[at] == "/")


def _version(path: Path) -> tuple[list[int], str]:
    """Return the sort key of a migration: the version in its name, then the name."""
    version = re.match(r"v(\d+(?:_\d+)*)", path.name)
    return [int(part) for part in version[1].split("_")] if version else [], path.name


def print_state(state: str, *lines: str) -> None:
    """Print lines to stderr, the first one after the word `state`."""
    for line in filter(None, lines):
        say(f"  {state:<12} {one_line(line)}")
        state = ""
