"""The template's releases, and the files and answers that an update from them would lose."""

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
    """Return the releases in tests/releases.toml, oldest first."""
    return [Release(**entry) for entry in tomllib.loads(LIST.read_text("utf-8")).get("release", [])]


def git(*arguments: str) -> str:
    """Run git in this repository and return its output.

    Raises:
        LookupError: git failed; for a shallow clone the message has the command to complete it.
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
    """Return the full hash of a commit of this repository.

    Raises:
        LookupError: the commit is missing.
    """
    return git("rev-parse", "--verify", f"{revision}^{{commit}}")


def previous_commit() -> str:
    """Return the commit before the tested state: HEAD if the template has uncommitted changes, else HEAD~1."""
    return commit_of("HEAD" if git("status", "--porcelain", "--", *TEMPLATE_PATHS) else "HEAD~1")


def plain(paths: list[str]) -> set[str]:
    """Return paths under template/ as migrations write them."""
    return {path.removeprefix("template/").removesuffix(".jinja") for path in paths}


def paths_of(commit: str) -> set[str]:
    return plain(git("ls-tree", "-r", "-z", "--name-only", commit, "template/").rstrip("\0").split("\0"))


def questions_of(commit: str) -> set[str]:
    config = load_interview(lambda path: git("show", f"{commit}:{path}"))
    return {name for name, entry in config.items() if not name.startswith("_") and is_question(entry)}


class Interview:
    """The questions of a version, and the answers that they accept."""

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
        """Return whether an answer is accepted together with the defaults of the other questions."""
        question = self.config[name]
        if question.get("choices"):
            return value in choices(question)
        values = self.defaults | REQUIRED_ANSWERS.get(name, {}) | {name: value}
        return not self.environment.from_string(question.get("validator", "")).render(values).strip()


REQUIRED_ANSWERS: dict[str, dict[str, Any]] = {"openapi_spec": {"upstream_base_url": "https://api.example.com"}}
"""Other answers that an answer to a question requires."""

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
"""Sample answers by type; a later version must accept each one that an earlier version accepted."""


def newly_rejected_answers(before: Interview, now: Interview, migrations: MergedMigrations) -> Iterator[str]:
    """Yield a sentence for each sample answer that `before` accepts and `now` rejects without a migration."""
    for name, question in before.config.items():
        new = migrations.questions.get(name, name)
        if name.startswith("_") or not is_question(question) or new is None or new not in now.config:
            continue
        for value in choices(question) or [*SAMPLES[question["type"]], before.defaults[name]]:
            current_value = migrations.answers.get(new, {}).get(value, value)
            if before.accepts(name, value) and not now.accepts(new, current_value) and new not in migrations.stricter:
                yield f"{new} no longer accepts {value!r}, and no migration handles that"


class MergedMigrations(NamedTuple):
    """The merged tables of all migrations."""

    tables: Tables
    questions: dict[str, str | None]
    answers: Mapping[str, Mapping[Any, Any]] = MappingProxyType({})
    stricter: Mapping[str, str] = MappingProxyType({})


def merged_migrations(folder: Path = ROOT / "hooks" / "migrations") -> MergedMigrations:
    migrations: list[Mapping[str, Any]] = [runpy.run_path(str(path)) for path in sorted(folder.glob("v*.py"))]
    merged: dict[str, dict[str, Any]] = {"QUESTIONS": {}, "ANSWERS": {}, "STRICTER": {}}
    for migration in migrations:
        for name, table in merged.items():
            table |= migration.get(name, {})
    return MergedMigrations(Tables(migrations), *merged.values())


def losses(
    paths_then: set[str],
    questions_then: set[str],
    paths_now: set[str],
    questions_now: set[str],
    migrations: MergedMigrations,
) -> Iterator[str]:
    """Yield a sentence for each removed path and question without a migration."""
    tables = migrations.tables
    for path in sorted(paths_then - paths_now):
        if owners(path_in_a_project(path)) == ["user"]:
            continue
        if not tables.describes(path):
            yield f"template/{path} was removed without a migration"
        for target in tables.moved.get(path, ()):
            if target not in paths_now and not tables.describes(target):
                yield f"template/{path} moved to {target}, which does not exist"
    for name in sorted(questions_then - questions_now):
        if name not in migrations.questions:
            yield f"the question {name} was removed without a migration"
        elif (new := migrations.questions[name]) and new not in questions_now:
            yield f"the question {name} was renamed to {new}, which does not exist"


def path_in_a_project(path: str) -> str:
    return path.replace("{{ package_name }}", "x")


def losses_since(release: Release) -> list[str]:
    """Return a sentence for each path, question and answer that an update from a release would silently lose."""
    now = plain([f"template/{path}" for path in files(ROOT / "template") if "__pycache__" not in path])
    migrations = merged_migrations()
    before = Interview(lambda path: git("show", f"{release.commit}:{path}"))
    return [
        *losses(paths_of(release.commit), questions_of(release.commit), now, set(questions()), migrations),
        *newly_rejected_answers(before, Interview(lambda path: (ROOT / path).read_text("utf-8")), migrations),
    ]
