"""The template's releases, and what of a release a project would lose in an update."""

from __future__ import annotations

import runpy
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from updating.tables import Tables

from .support import ROOT, TEMPLATE_PATHS, choices, files, is_question, load_interview, owners, questions

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
    return commit_of("HEAD" if git("status", "--porcelain", "--", *TEMPLATE_PATHS) else "HEAD~1")


def plain(paths: list[str]) -> set[str]:
    """Paths under template/, as migrations write them."""
    return {path.removeprefix("template/").removesuffix(".jinja") for path in paths}


def paths_of(commit: str) -> set[str]:
    return plain(git("ls-tree", "-r", "-z", "--name-only", commit, "template/").rstrip("\0").split("\0"))


def questions_of(commit: str) -> set[str]:
    config = load_interview(lambda path: git("show", f"{commit}:{path}"))
    return {name for name, entry in config.items() if not name.startswith("_") and is_question(entry)}


class Interview:
    """The questions of a version, and which answers they accept."""

    def __init__(self, read: Callable[[str], str]) -> None:
        self.config = load_interview(read)
        self.environment = Environment(
            loader=FunctionLoader(read),
            extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
            undefined=StrictUndefined,
            autoescape=False,  # noqa: S701 (no HTML is made)
        )
        self.defaults = {"project_name": "Weather Station"}
        for name, entry in self.config.items():
            if not name.startswith("_") and name not in self.defaults:
                value = entry.get("default", "")
                text = self.environment.from_string(value).render(self.defaults) if isinstance(value, str) else value
                self.defaults[name] = text if entry["type"] == "str" else yaml.safe_load(str(text))

    def accepts(self, name: str, value: Any) -> bool:
        """Whether an answer beside the defaults is accepted."""
        question = self.config[name]
        if question.get("choices"):
            return value in choices(question)
        values = self.defaults | BESIDE.get(name, {}) | {name: value}
        return not self.environment.from_string(question.get("validator", "")).render(values).strip()


BESIDE: dict[str, dict[str, Any]] = {"openapi_spec": {"upstream_base_url": "https://api.example.com"}}
"""Answers beside which others are looked at."""

SAMPLES: dict[str, Sequence[Any]] = {
    "bool": (True, False),
    "int": (0, 1, 2, 5, 60, 80, 100, 101, 1000, 3600, 8000, 9090, 65535, 86400, 10**6, 10**9),
    "float": (0, 0.1, 0.5, 1.0, 30.0, 60.0, 3600.0, 86400.0),
    "str": (
        "",
        "a",
        "my-server",
        "my_server",
        "x" * 60,
        "x" * 100,
        "x" * 300,
        "API_KEY",
        "http://localhost:8000",
        "https://api.example.com/v1/",
        "https://[::1]:8080/a%20b;c=(d),e",
        "https://api.example.com/openapi.json?format=json&version=3",
        "https://api.example.com/openapi.json?token=secret",
        "petstore.yaml",
        "../specs/pet store.json",
        "pets, GET /stores/*",
        "/pets/{id}",
        "Wetter, Zürich & Umgebung: 24 h!",
    ),
}
"""Answers of each type that an owner may have given; those which a question accepted have to stay accepted."""


def refusals(then: Interview, now: Interview, migrated_tables: Migrated) -> Iterator[str]:
    """Yield a sentence for each answer that was accepted, and that Copier would replace by the default."""
    for name, question in then.config.items():
        new = migrated_tables.questions.get(name, name)
        if name.startswith("_") or not is_question(question) or new is None or new not in now.config:
            continue
        for value in choices(question) or [*SAMPLES[question["type"]], then.defaults[name]]:
            kept = migrated_tables.answers.get(new, {}).get(value, value)
            if then.accepts(name, value) and not now.accepts(new, kept) and new not in migrated_tables.stricter:
                yield f"{new} does not accept {value!r} any more, and no migration says what becomes of it"


class Migrated(NamedTuple):
    """What the migrations in the working tree say of files, and of questions and their answers."""

    tables: Tables
    questions: dict[str, str | None]
    answers: Mapping[str, Mapping[Any, Any]] = MappingProxyType({})
    stricter: Mapping[str, str] = MappingProxyType({})


def migrated(folder: Path = ROOT / "hooks" / "migrations") -> Migrated:
    migrations: list[Mapping[str, Any]] = [runpy.run_path(str(path)) for path in sorted(folder.glob("v*.py"))]
    merged: dict[str, dict[str, Any]] = {"QUESTIONS": {}, "ANSWERS": {}, "STRICTER": {}}
    for migration in migrations:
        for name, table in merged.items():
            table |= migration.get(name, {})
    return Migrated(Tables(migrations), *merged.values())


def losses(
    paths_then: set[str],
    questions_then: set[str],
    paths_now: set[str],
    questions_now: set[str],
    migrated_tables: Migrated,
) -> Iterator[str]:
    """Yield a sentence for each path and question that an owner would lose without a message."""
    tables = migrated_tables.tables
    for path in sorted(paths_then - paths_now):
        if owners(path_in_a_project(path)) == ["user"]:
            continue
        if not tables.describes(path):
            yield f"template/{path} is gone, and no migration says where to"
        for target in tables.moved.get(path, ()):
            if target not in paths_now and not tables.describes(target):
                yield f"template/{path} moved to {target}, which is not there"
    for name in sorted(questions_then - questions_now):
        if name not in migrated_tables.questions:
            yield f"the question {name} is gone, and no migration says what becomes of its answer"
        elif (new := migrated_tables.questions[name]) and new not in questions_now:
            yield f"the question {name} became {new}, which is not asked"


def path_in_a_project(path: str) -> str:
    return path.replace("{{ package_name }}", "x")


def losses_since(release: Release) -> list[str]:
    """What updates from a release to the working tree would lose."""
    now = plain([f"template/{path}" for path in files(ROOT / "template") if "__pycache__" not in path])
    migrated_tables = migrated()
    then = Interview(lambda path: git("show", f"{release.commit}:{path}"))
    return [
        *losses(paths_of(release.commit), questions_of(release.commit), now, set(questions()), migrated_tables),
        *refusals(then, Interview(lambda path: (ROOT / path).read_text("utf-8")), migrated_tables),
    ]
