"""Renderings that many tests read, and the rule that nothing is skipped on CI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

from .matrix import Project, outbound_pairs
from .support import (
    DEADLINE_SECONDS,
    ROOT,
    Answers,
    ask_git_nothing_of_each_file,
    clean_environment,
    copy_template,
    files,
    keep_checkouts,
    keep_compiled_sources,
    keep_configurations,
    render_only_what_is_a_template,
    variants,
    wait_for,
)

FIGURE = "figure"

collect_ignore = ["layer"]
"""Runs in the environments of generated projects (`tests/matrix.py`)."""

# Some shells and images set it. The suite starts some hundred servers, and each would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@dataclass(frozen=True)
class Rendering:
    """One variant, rendered twice in processes that share nothing."""

    name: str
    data: Answers
    first: Path
    second: Path

    @cached_property
    def files(self) -> dict[str, bytes]:
        return files(self.first)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a plain directory, which renders faster than a git repository. Nobody changes it."""
    directory = tmp_path_factory.mktemp("template")
    copy_template(directory)
    return directory


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """The template's files that repeat an answer's text, alone: rendering them is quick."""
    directory = tmp_path_factory.mktemp("words")
    shutil.copytree(template, directory, dirs_exist_ok=True)
    texts = ("project_name", "project_description", "project_slug", "_copier_answers", "rate_limit_preset")
    for path, content in files(directory / "template").items():
        if not (path.endswith(".jinja") and any(text in content.decode() for text in texts)):
            (directory / "template" / path).unlink()
    return directory


@pytest.fixture(scope="module")
def quickly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For tests that render much and do not measure."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        keep_compiled_sources(monkeypatch)
        keep_configurations(monkeypatch)
        render_only_what_is_a_template(monkeypatch)
        ask_git_nothing_of_each_file(monkeypatch)
        keep_checkouts(monkeypatch, tmp_path_factory.mktemp("checkouts"))
        yield


@pytest.fixture(scope="session")
def built(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Project]:
    """`built("default")` makes that variant's project once; the tests share it and leave its files alone."""

    @cache
    def build(variant: str) -> Project:
        data = (variants() | outbound_pairs())[variant]
        return Project.build(template, tmp_path_factory.mktemp("built") / variant, data)

    return build


@pytest.fixture(scope="session")
def renderings(template: Path, shared_directory: Path) -> Mapping[str, Rendering]:
    """Every variant, rendered twice: by two processes at once, with different hash seeds, into different places.

    The workers of a session share them: the first one that asks has them made, the others wait.
    """
    root = shared_directory / "variants"
    found = {name: Rendering(name, data, root / "1" / name, root / "2" / name) for name, data in variants().items()}
    try:
        root.mkdir()
    except FileExistsError:
        wait_for((root / "done").exists, lambda: "another worker has not rendered the variants", DEADLINE_SECONDS)
        return found
    orders = [
        {str(rendering.first): rendering.data for rendering in found.values()},
        {str(rendering.second): rendering.data for rendering in found.values()},
    ]
    workers = [_start_rendering(template, order, hash_seed=seed) for seed, order in enumerate(orders, start=1)]
    for worker in workers:
        _, errors = worker.communicate(timeout=DEADLINE_SECONDS)
        assert worker.returncode == 0, errors
    (root / "done").touch()
    return found


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that all workers of this session know."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


def _start_rendering(template: Path, order: Mapping[str, Answers], hash_seed: int) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.render_many"],
        cwd=ROOT,
        env=clean_environment(
            PYTHONHASHSEED=str(hash_seed), PATH=""
        ),  # Copier asks git about each file, if there is one
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert worker.stdin is not None
    json.dump({"template": str(template), "projects": order}, worker.stdin)
    worker.stdin.close()
    worker.stdin = None
    return worker


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """`figure("hook: 9.1 s")` has a measured figure printed at the end of the session."""
    return lambda text: record_property(FIGURE, text)


LONGEST_FIRST = ("test_projects.py", "test_soak.py", "test_ops_live.py")
"""A file is one worker's: begun last, these would leave the other worker idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.name) if item.path.name in LONGEST_FIRST else 99)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in (report for found in terminalreporter.stats.values() for report in found):
        if getattr(report, "when", None) == "call":
            for name, text in report.user_properties:
                if name == FIGURE:
                    terminalreporter.write_line(text)
    if skipped := skipped_on_ci(terminalreporter):
        terminalreporter.section("skipped, which CI does not allow", sep="=", red=True, bold=True)
        for nodeid in skipped:
            terminalreporter.write_line(nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and skipped_on_ci(reporter):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def skipped_on_ci(reporter: pytest.TerminalReporter) -> list[str]:
    """The tests and modules that were skipped, where that is a failure."""
    if not os.environ.get("CI"):
        return []
    return sorted({report.nodeid for report in reporter.stats.get("skipped", [])})
