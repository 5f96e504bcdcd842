"""What the template asks, the variants worth testing, and ways to render them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar

import pytest
import yaml
from copier import _template
from copier._main import Worker
from jinja2 import Environment
from jinja2.nativetypes import NativeEnvironment

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE_PATHS = ("copier.yml", "template", "hooks", "packages")
"""What a template needs of this repository."""

ANSWERS_FILE = ".copier-answers.yml"
OWNERSHIP: dict[str, list[str]] = tomllib.loads((ROOT / "tests" / "ownership.toml").read_text("utf-8"))
"""Patterns of a project's paths by their owner: template, user, shared, and made by the hook."""

MADE_BY_THE_HOOK = tuple(OWNERSHIP["made"])

DEADLINE_SECONDS = 300
"""For one command; what takes longer hangs."""

Answers = dict[str, Any]
T = TypeVar("T")


@cache
def copier_yml() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text("utf-8"))
    return loaded


def questions() -> dict[str, dict[str, Any]]:
    """Every question that has an answer of its own, by name; computed values are none."""
    return {name: question for name, question in variables().items() if question.get("when") is not False}


def variables() -> dict[str, dict[str, Any]]:
    """Questions and computed values."""
    return {name: entry for name, entry in copier_yml().items() if not name.startswith("_")}


def choices(question: Mapping[str, Any]) -> list[Any]:
    """The values that a question accepts, or nothing where it accepts any."""
    given = question.get("choices", [])
    return list(given.values() if isinstance(given, dict) else given)


def answers(**data: Any) -> Answers:
    """`data`, for Copier, which would ignore a misspelt name silently.

    Raises:
        ValueError: the template asks no such question.
    """
    unknown = sorted(data.keys() - questions().keys())
    if unknown:
        raise ValueError(f"the template asks no question named {', '.join(unknown)}")
    return data


DEFAULT = answers(project_name="Weather Station")
MINIMAL = answers(project_name="Weather Station", profile="minimal")
EVERYTHING = answers(
    project_name="Weather Station",
    **{name: True for name, question in questions().items() if question["type"] == "bool"},
    rate_limit_backend="redis",
    telemetry_protocol="grpc",
    auth="token",
    session_mode="stateless",
)

OTHER_VALUES: Answers = {
    "project_name": "Ünïcode & Söhne: 100 % “quoted”",
    "project_description": "Says \"hello\", C:\\temp and {{ braces }} — # nothing: 'more'",
    "upstream_base_url": "https://api.example.com/v1",
    "project_slug": "a",
    "package_name": "a_package_whose_name_has_sixty_characters_the_most_there_are",
    "metrics_port": 9464,
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
"""A second value for each question that has neither choices nor a switch."""

NEEDS: dict[str, Answers] = {
    "enable_metrics_tool": {"enable_metrics": True},
    "openapi_spec": {"upstream_base_url": "https://api.example.com/v1"},
}
"""What an answer cannot be given without."""


def variants() -> dict[str, Answers]:
    """Default, minimal and everything, and each answer alone changed in the default and the minimal one.

    Free texts and numbers are changed in the default variant only: where their feature is off nothing reads them.
    """
    found = {"default": DEFAULT, "minimal": MINIMAL, "everything": EVERYTHING}
    for base_name, base in (("default", DEFAULT), ("minimal", MINIMAL)):
        for name, question in questions().items():
            for label, value in _alternatives(name, question, base):
                needed = NEEDS.get(name, {}) if value is not False else {}
                found[f"{base_name}-{name}-{label}"] = answers(**(base | needed | {name: value}))
    return found


def _alternatives(name: str, question: Mapping[str, Any], base: Answers) -> Iterator[tuple[str, Any]]:
    """Each value that differs from the one in `base`: the switch turned, the other choices, another text or number."""
    if question["type"] != "bool" and not choices(question):
        if base is DEFAULT:
            yield "other", OTHER_VALUES[name]
        return
    default = NativeEnvironment().from_string(str(question["default"])).render({"profile": "production"} | base)
    for value in choices(question) or (False, True):
        if str(value) != str(default):
            yield "".join(letter if letter.isalnum() else "_" for letter in str(value)), value


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would turn a tool towards this project, plus `changes`."""
    drop = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHASHSEED", "CI", "MCP_TEMPLATE_STRICT", "UV_OFFLINE")
    return {name: value for name, value in os.environ.items() if name not in drop} | changes


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with a clean environment; the caller judges its status."""
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
    """The uv that runs these tests, or the one on PATH."""
    found = os.environ.get("UV") or shutil.which("uv")
    assert found, "these tests need uv: run them with `uv run pytest`"
    return Path(found)


def wait_for(condition: Callable[[], T], what: Callable[[], object], seconds: float = 60.0) -> T:
    """What `condition()` returns as soon as that is true; until `seconds` have passed, then `what()` went wrong."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what()}"
        time.sleep(0.05)
    return found


def path_with_uv() -> str:
    """A PATH on which a person's `uv` is found, as the project's commands expect."""
    return os.pathsep.join([str(uv().parent), os.environ.get("PATH", "")])


def copier(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command line of Copier."""
    return run(sys.executable, "-m", "copier", *arguments, cwd=cwd, **environment)


def owners(path: str) -> list[str]:
    """Who claims a path of a project: exactly one, where tests/ownership.toml is right."""
    return [owner for owner, patterns in OWNERSHIP.items() if any(covers(pattern, path) for pattern in patterns)]


def covers(pattern: str, path: str) -> bool:
    """Whether a pattern means the path: `*` is a part of one name, a `/**` at the end everything below."""
    below, tail = (pattern.removesuffix("/**"), r"/.+") if pattern.endswith("/**") else (pattern, "")
    return bool(re.fullmatch(re.escape(below).replace(r"\*", r"[^/]*") + tail, path))


def copy_template(directory: Path) -> None:
    """Copies what the working tree has of the template into a directory that exists."""
    for name in TEMPLATE_PATHS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, directory / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", ".venv"))
        else:
            shutil.copy(source, directory / name)


def files(project: Path) -> dict[str, bytes]:
    """Every file of a project as rendered, by its path from the project's root with forward slashes."""
    return {
        path.relative_to(project).as_posix(): path.read_bytes()
        for path in sorted(project.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(project).parts
    }


def without_the_users(found: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of a project's files that an update may change."""
    return {path: content for path, content in found.items() if owners(path) != ["user"]}


def keep_compiled_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a rendering is compiling, and every rendering compiles the same sources to the same code."""
    compile_source: Any = Environment.compile
    compiled: dict[tuple[Any, ...], CodeType] = {}

    def compile_once(self: Environment, *source: Any) -> CodeType:
        key = (type(self), *source)
        if key not in compiled:
            compiled[key] = compile_source(self, *source)
        return compiled[key]

    monkeypatch.setattr(Environment, "compile", compile_once)


def keep_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update parses copier.yml six times; here each state of a file once."""
    load: Any = vars(_template)["load_template_config"]
    loaded: dict[tuple[Path, int, int], Any] = {}

    def load_once(path: Path) -> Any:
        state = path.stat()
        key = (path, state.st_mtime_ns, state.st_size)
        if key not in loaded:
            loaded[key] = load(path)
        return deepcopy(loaded[key])

    monkeypatch.setattr(_template, "load_template_config", load_once)


def render_only_what_is_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copier renders every part of every path, and before each the name of the answers file."""
    render: Any = vars(Worker)["_render_string"]
    answers_path: Any = vars(Worker)["answers_relpath"].fget

    def render_string(self: Worker, string: str, extra_context: Answers | None = None) -> str:
        return str(render(self, string, extra_context)) if "{" in string else string

    def answers_relpath(self: Worker) -> Path:
        plain = self.answers_file or self.template.answers_relpath
        return Path(answers_path(self)) if "{" in str(plain) else Path(plain)

    monkeypatch.setattr(Worker, "_render_string", render_string)
    monkeypatch.setattr(Worker, "answers_relpath", property(answers_relpath))


def ask_git_nothing_of_each_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each file that it writes, Copier asks git whether the file system knows modes: 200 processes in an update."""
    monkeypatch.setattr(Worker, "_sync_git_index_executable_bit", lambda *_: None)


def keep_checkouts(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """An update checks the template out five times; here each commit of each template once, below `directory`."""
    check_out: Any = vars(_template)["clone"]
    kept: dict[tuple[str, str], str] = {}

    def once(url: str, ref: str = "HEAD", location: str | None = None) -> str:
        if ref == "HEAD" or not Path(url).is_dir():
            return str(check_out(url, ref, location))
        found = run("git", "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", cwd=Path(url))
        if found.returncode != 0:
            return str(check_out(url, ref, location))
        key = (url, found.stdout.strip())
        if key not in kept:
            kept[key] = check_out(url, ref, tempfile.mkdtemp(dir=directory))
        return kept[key]

    monkeypatch.setattr(_template, "clone", once)
