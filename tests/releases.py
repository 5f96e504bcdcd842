"""The template's releases, and what of a release a project would lose in an update."""

from __future__ import annotations

import runpy
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from updating.tables import Tables

from .support import OWNERSHIP, ROOT, covers, files, owners, questions

LIST = ROOT / "tests" / "releases.toml"


class Release(NamedTuple):
    version: str
    commit: str


@cache
def releases() -> list[Release]:
    """All of tests/releases.toml, oldest first."""
    return [Release(**entry) for entry in tomllib.loads(LIST.read_text("utf-8")).get("release", [])]


def git(*arguments: str) -> str:
    """What git says of this repository.

    Raises:
        LookupError: it fails; the message says what to do where the clone is shallow.
    """
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    if done.returncode == 0:
        return done.stdout.strip()
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if shallow.stdout.strip() == "true":
        raise LookupError(
            f"This clone is shallow and lacks a commit that is needed ({' '.join(arguments)}): git fetch --unshallow "
            "--tags. On GitHub: actions/checkout with fetch-depth: 0."
        )
    raise LookupError(f"git {' '.join(arguments)}: {done.stderr.strip()}")


def commit_of(revision: str) -> str:
    """The full hash of a commit of this repository.

    Raises:
        LookupError: there is none; the message says what to do.
    """
    return git("rev-parse", "--verify", f"{revision}^{{commit}}")


def previous_commit() -> str:
    """The last commit before what is being tested: HEAD where files are changed, else the one before it."""
    return commit_of("HEAD" if git("status", "--porcelain", "--", "copier.yml", "template", "hooks") else "HEAD~1")


def plain(paths: list[str]) -> set[str]:
    """Paths under template/, as migrations write them."""
    return {path.removeprefix("template/").removesuffix(".jinja") for path in paths}


def paths_of(commit: str) -> set[str]:
    return plain(git("ls-tree", "-r", "-z", "--name-only", commit, "template/").rstrip("\0").split("\0"))


def questions_of(commit: str) -> set[str]:
    config = yaml.safe_load(git("show", f"{commit}:copier.yml"))
    return {name for name, entry in config.items() if not name.startswith("_") and entry.get("when") is not False}


class Migrated(NamedTuple):
    """What the migrations of the working tree speak of."""

    tables: Tables
    questions: dict[str, str | None]


def migrated(folder: Path = ROOT / "hooks" / "migrations") -> Migrated:
    modules: list[Mapping[str, Any]] = [runpy.run_path(str(path)) for path in sorted(folder.glob("v*.py"))]
    questions = {old: new for names in modules for old, new in names.get("QUESTIONS", {}).items()}
    return Migrated(Tables(modules), questions)


def losses(
    paths_then: set[str], questions_then: set[str], paths_now: set[str], questions_now: set[str], told: Migrated
) -> Iterator[str]:
    """What an owner would lose without a word: a sentence for each."""
    tables = told.tables
    for path in sorted(paths_then - paths_now):
        if owners(path_in_a_project(path)) == ["user"]:
            continue
        if not tables.knows(path):
            yield f"template/{path} is gone, and no migration says where to"
        for target in tables.moved.get(path, ()):
            if target not in paths_now and not tables.knows(target):
                yield f"template/{path} moved to {target}, which is not there"
    for path in sorted(paths_now - paths_then):
        if owned_by_name(path) and path not in tables.seeded:
            yield f"template/{path} is new and the owner's, and no migration seeds it"
    for name in sorted(questions_then - questions_now):
        if name not in told.questions:
            yield f"the question {name} is gone, and no migration says what becomes of its answer"
        elif (new := told.questions[name]) and new not in questions_now:
            yield f"the question {name} became {new}, which is not asked"


def owned_by_name(path: str) -> bool:
    """Whether a file is the owner's by itself, and not as one of a folder."""
    patterns = [pattern for pattern in OWNERSHIP["user"] if not pattern.endswith("**")]
    return any(covers(pattern, path_in_a_project(path)) for pattern in patterns)


def path_in_a_project(path: str) -> str:
    return path.replace("{{ package_name }}", "x")


def losses_since(release: Release) -> list[str]:
    """What updates from a release to the working tree would lose."""
    now = plain([f"template/{path}" for path in files(ROOT / "template") if "__pycache__" not in path])
    return list(losses(paths_of(release.commit), questions_of(release.commit), now, set(questions()), migrated()))
