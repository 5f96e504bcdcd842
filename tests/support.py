"""The questions of the template, the tested variants of a project, and helpers for commands and files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE_PATHS = ("copier.yml", "interview", "template", "hooks", "packages")
"""The files and folders of this repository that belong to the template."""

DOCUMENTATION = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
"""The pages about the template: README.md, and those of docs/."""

ANSWERS_FILE = ".copier-answers.yml"
OWNERSHIP: dict[str, list[str]] = tomllib.loads((ROOT / "tests" / "ownership.toml").read_text("utf-8"))
"""Patterns of a project's paths by their owner: template, user, shared, and made by the hook."""

MADE_BY_THE_HOOK = tuple(OWNERSHIP["made"])

DEADLINE_SECONDS = 300
"""Timeout of a command in seconds."""

Answers = dict[str, Any]
T = TypeVar("T")


# --- The interview -------------------------------------------------------------------------------------------


def load_interview(read: Callable[[str], str]) -> dict[str, Any]:
    """Load copier.yml and the files that it includes, as Copier does.

    Args:
        read: returns the text of a file, given its path from the template's root.
    """

    class Loader(yaml.SafeLoader):
        """A subclass, so that the tag `!include` is known to this loader only."""

    def include(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        return yaml.load(read(str(loader.construct_scalar(node))), Loader)  # noqa: S506 (a subclass of SafeLoader)

    Loader.add_constructor("!include", include)
    documents = yaml.load_all(read("copier.yml"), Loader)
    return {name: entry for document in documents for name, entry in document.items()}


@cache
def interview() -> dict[str, Any]:
    """Return the settings, questions and computed values of the working tree."""
    return load_interview(lambda path: (ROOT / path).read_text("utf-8"))


def variables() -> dict[str, dict[str, Any]]:
    """Return the questions and the computed values."""
    return {name: entry for name, entry in interview().items() if not name.startswith("_")}


def is_question(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry is a question, not a computed value."""
    return entry.get("when") is not False


def questions() -> dict[str, dict[str, Any]]:
    """Return every question by name."""
    return {name: entry for name, entry in variables().items() if is_question(entry)}


def choices(question: Mapping[str, Any]) -> list[Any]:
    """Return the choices of a question; an empty list for a free answer."""
    given = question.get("choices", [])
    return list(given.values() if isinstance(given, dict) else given)


@cache
def environment() -> Environment:
    """Return a Jinja environment with the filters and the files that a template has in Copier."""
    return Environment(
        loader=FileSystemLoader(ROOT),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 (no HTML is made)
    )


def render_text(text: str, values: Mapping[str, Any]) -> str:
    """Render a text of copier.yml, such as a default or a validator."""
    return _compiled(text).render(values)


@cache
def _compiled(text: str) -> Template:
    return environment().from_string(text)


def evaluate(data: Answers) -> dict[str, Any]:
    """Return every answer and every computed value: `data`, and defaults for the rest."""
    values: dict[str, Any] = {}
    for name, entry in variables().items():
        value = data.get(name, entry["default"])
        if isinstance(value, str) and name not in data:
            value = render_text(value, values)
        values[name] = yaml.safe_load(value) if isinstance(value, str) and entry["type"] != "str" else value
    return values


def render_file(path: str, data: Answers) -> str:
    """Return a file of a project of these answers, rendered without Copier.

    Args:
        path: the file's path under template/, without `.jinja`.
    """
    values = evaluate(data)
    values["_copier_answers"] = {name: values[name] for name in questions()}
    return environment().get_template(f"template/{path}.jinja").render(values)


def excluded(data: Answers, operation: str = "copy") -> list[str]:
    """Return the patterns of the paths that a project of these answers does not get."""
    conf = {"dst_path": "a new folder", "answers_file": ANSWERS_FILE}
    values = evaluate(data) | {"_copier_operation": operation, "rendered_as": operation, "_copier_conf": conf}
    rendered = [render_text(entry, values) for entry in interview()["_exclude"]]
    return [line.strip() for text in rendered for line in text.splitlines() if line.strip()]


def answers(**data: Any) -> Answers:
    """Return `data` for Copier, which ignores a misspelt name silently.

    Raises:
        ValueError: there is no question of such a name.
    """
    unknown = sorted(data.keys() - questions().keys())
    if unknown:
        raise ValueError(f"the template asks no question named {', '.join(unknown)}")
    return data


# --- Variants of a project -----------------------------------------------------------------------------------

DEFAULT = answers(project_name="Weather Station")
MINIMAL = answers(project_name="Weather Station", profile="minimal")
EVERYTHING = answers(
    project_name="Weather Station",
    **{name: True for name, question in questions().items() if question["type"] == "bool"},
    rate_limit_backend="redis",
    telemetry_protocol="grpc",
    telemetry_signals="all",
    auth="jwt",
    session_mode="stateless",
)

OTHER_VALUES: Answers = {
    "project_name": "Ünïcode & Söhne: 100 % “quoted”",
    "project_description": "Says \"hello\", C:\\temp and {{ braces }} — # nothing: 'more'",
    "upstream_base_url": "https://api.example.com/v1",
    "project_slug": "a",
    "package_name": "a_package_whose_name_has_sixty_characters_the_most_there_are",
    "metrics_port": 9464,
    "max_result_bytes": 0,
    "rate_limit_requests": 7,
    "rate_limit_window_seconds": 3600,
    "max_retries": 0,
    "retry_delay_seconds": 0.25,
    "retry_max_delay_seconds": 5,
    "circuit_failure_threshold": 2,
    "circuit_recovery_timeout": 0.5,
    "circuit_half_open_requests": 3,
    "telemetry_endpoint": "https://collector.example.com:4318",
    "upstream_api_key_env": "API_KEY",
    "openapi_spec": "https://api.example.com/openapi.json",
    "openapi_operations": "pets, GET /pets/*",
}
"""A second value for each question that is neither a switch nor has choices."""

NEEDS: dict[str, Answers] = {
    "enable_metrics_tool": {"enable_metrics": True},
    "openapi_spec": {"upstream_base_url": "https://api.example.com/v1"},
}
"""For an answer, the others that it requires."""


@cache
def variants() -> dict[str, Answers]:
    """Return the default, minimal and everything variants, and the first two with each answer changed by itself.

    Free texts and numbers are changed in the default variant only: nothing reads them where their feature is off.
    """
    result = {"default": DEFAULT, "minimal": MINIMAL, "everything": EVERYTHING}
    for base_name, base in (("default", DEFAULT), ("minimal", MINIMAL)):
        for name, question in questions().items():
            for label, value in _alternatives(name, question, base):
                needed = NEEDS.get(name, {}) if value is not False else {}
                result[f"{base_name}-{name}-{label}"] = answers(**(base | needed | {name: value}))
    return result


def _alternatives(name: str, question: Mapping[str, Any], base: Answers) -> Iterator[tuple[str, Any]]:
    """Yield label and value of each answer other than that of `base`."""
    if question["type"] != "bool" and not choices(question):
        if base is DEFAULT:
            yield "other", OTHER_VALUES[name]
        return
    default = str(evaluate(base)[name])
    for value in choices(question) or (False, True):
        if str(value) != default:
            yield "".join(letter if letter.isalnum() else "_" for letter in str(value)), value


# --- Commands ------------------------------------------------------------------------------------------------


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment with `changes`, without variables that refer to this repository."""
    drop = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHASHSEED", "CI", "MCP_TEMPLATE_STRICT", "UV_OFFLINE")
    return {name: value for name, value in os.environ.items() if name not in drop} | changes


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment; the caller checks its exit status."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def uv() -> Path:
    """Return the path of the uv that runs these tests, or of the one on PATH."""
    path = os.environ.get("UV") or shutil.which("uv")
    assert path, "these tests need uv: run them with `uv run pytest`"
    return Path(path)


def path_with_uv() -> str:
    """Return a PATH on which the commands of a project find uv."""
    return os.pathsep.join([str(uv().parent), os.environ.get("PATH", "")])


def copier(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of Copier."""
    return run(sys.executable, "-m", "copier", *arguments, cwd=cwd, **environment)


def wait_for(condition: Callable[[], T], what: Callable[[], object], seconds: float = 60.0) -> T:
    """Return the first true value of `condition()`.

    Raises:
        AssertionError: it stayed false for `seconds`; the message has the value of `what()`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what()}"
        time.sleep(0.05)
    return value


# --- Files ---------------------------------------------------------------------------------------------------


def owners(path: str) -> list[str]:
    """Return the owners of a path of a project; tests/ownership.toml must give exactly one."""
    return [owner for owner, patterns in OWNERSHIP.items() if any(covers(pattern, path) for pattern in patterns)]


def covers(pattern: str, path: str) -> bool:
    """Return whether a pattern matches a path: `*` is a part of one name, `/**` at the end everything below."""
    below, tail = (pattern.removesuffix("/**"), r"/.+") if pattern.endswith("/**") else (pattern, "")
    return bool(re.fullmatch(re.escape(below).replace(r"\*", r"[^/]*") + tail, path))


def copy_template(directory: Path) -> None:
    """Copy the working tree's template into an existing directory."""
    for name in TEMPLATE_PATHS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", ".venv"))
        else:
            shutil.copy(source, directory / name)


def files(project: Path) -> dict[str, bytes]:
    """Return the content of every file of a project by its path, with forward slashes; without `.git`."""
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(project).parts
    }


def without_user_owned(content: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a project without the user-owned ones."""
    return {path: text for path, text in content.items() if owners(path) != ["user"]}
