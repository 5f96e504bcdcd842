"""Shared projects, and the rule that no test is skipped on CI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from pytest_copier.plugin import CopierFixture

from .environments import shared_files
from .matrix import Project, outbound_pairs
from .render_many import compile_templates_once
from .support import (
    ROOT,
    TEMPLATE_PATHS,
    Answers,
    clean_environment,
    copy_template,
    files,
    variants,
    wait_for,
)
from .template_repository import replace_hook

collect_ignore = ["layer"]
"""The tests of the production layer run in the environment of a project, with a configuration of their own."""

FIGURE = "figure"

# Some shells and images set it. Each of the hundreds of servers that the tests start would compile all its imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


# --- The template --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template as a plain directory; tests must not change it."""
    directory = tmp_path_factory.mktemp("template")
    copy_template(directory)
    return directory


@pytest.fixture(scope="session")
def copier_template_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with an empty hook, for pytest-copier, whose `copy` and `update` always run the hook."""
    directory = tmp_path_factory.mktemp("root")
    copy_template(directory)
    replace_hook(directory)
    return directory


@pytest.fixture(scope="session")
def copier_template_paths() -> list[str]:
    """The paths of `copier_template_root` that pytest-copier copies."""
    return [*TEMPLATE_PATHS]


TEXT_FILES = (
    "{{ _copier_conf.answers_file }}.jinja",
    "README.md.jinja",
    "pyproject.toml.jinja",
    "server.json.jinja",
    "src/{{ package_name }}/production/answers.json.jinja",
)
"""Files that contain the text of an answer."""


@pytest.fixture(scope="session")
def small_template(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """The template with only the files of `TEXT_FILES`, which renders in a third of the time."""
    directory = tmp_path_factory.mktemp("small")
    shutil.copytree(template, directory, ignore=shutil.ignore_patterns("template"), dirs_exist_ok=True)
    for path in TEXT_FILES:
        target = directory / "template" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(template / "template" / path, target)
    return directory


# --- Rendered projects ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendering:
    """A rendered variant."""

    name: str
    data: Answers
    first: Path
    second: Path | None = None
    """The same answers, rendered by another process."""

    @cached_property
    def files(self) -> dict[str, bytes]:
        return files(self.first)


RENDERING_SECONDS = 900
"""Timeout of rendering all variants, in seconds."""

MAIN_VARIANTS = ("default", "minimal", "everything", "default-auth-jwt")
"""The variants that the quick tests use."""


class Renderings(Mapping[str, Rendering]):
    """Every variant by its name, rendered by pytest-copier when a test first asks for it.

    The workers of a session share the files. Iterating yields the main variants.
    """

    def __init__(self, template: Path, root: Path, copier: CopierFixture) -> None:
        self._template = template
        self._root = root
        self._copier = copier
        self._renderings: dict[str, Rendering] = {}

    def __getitem__(self, name: str) -> Rendering:
        if name not in self._renderings:
            data = variants()[name]
            first = self._root / "copier" / name
            make_once(first, lambda directory: self._copier.copy(directory, **data))
            self._renderings[name] = Rendering(name, data, first)
        return self._renderings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(MAIN_VARIANTS)

    def __len__(self) -> int:
        return len(MAIN_VARIANTS)

    @cached_property
    def main(self) -> list[Rendering]:
        """The main variants."""
        return [self[name] for name in MAIN_VARIANTS]

    @cached_property
    def main_twice(self) -> list[Rendering]:
        """The main variants; the second time another process renders them, from a plain directory."""
        second = self._root / "main"
        make_once(second, lambda root: render_many(self._template, [root], MAIN_VARIANTS))
        return [replace(self[name], second=second / name) for name in MAIN_VARIANTS]

    @cached_property
    def every(self) -> list[Rendering]:
        """All variants, rendered by two processes at once with different hash seeds."""
        every = self._root / "every"
        make_once(every, lambda root: render_many(self._template, [root / "1", root / "2"], [*variants()]))
        return [Rendering(name, data, every / "1" / name, every / "2" / name) for name, data in variants().items()]


@pytest.fixture(scope="session")
def renderings(
    template: Path, copier_template: Path, shared_directory: Path, sessionpatch: pytest.MonkeyPatch
) -> Renderings:
    """`renderings["minimal"]` is that variant; tests must not change its files."""
    return Renderings(template, shared_directory / "renderings", CopierFixture(copier_template, {}, sessionpatch))


@pytest.fixture(params=["main", pytest.param("every", marks=pytest.mark.release)])
def each_rendering(request: pytest.FixtureRequest, renderings: Renderings) -> Sequence[Rendering]:
    """The main variants, and for a release all of them."""
    return {"main": lambda: renderings.main, "every": lambda: renderings.every}[request.param]()


@pytest.fixture(params=[pytest.param("main", marks=pytest.mark.slow), pytest.param("every", marks=pytest.mark.release)])
def each_rendered_twice(request: pytest.FixtureRequest, renderings: Renderings) -> Sequence[Rendering]:
    """As `each_rendering`, each with the `second` rendering."""
    return {"main": lambda: renderings.main_twice, "every": lambda: renderings.every}[request.param]()


@pytest.fixture(scope="session")
def built(renderings: Renderings, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Project]:
    """`built("default")` is that variant's project with its environment; no test changes its files."""
    projects: dict[str, Project] = {}

    def build(variant: str) -> Project:
        if variant not in projects:
            path = tmp_path_factory.mktemp("built") / variant
            if variant in variants():
                shutil.copytree(renderings[variant].first, path)
                projects[variant] = Project.of(path)
            else:
                projects[variant] = Project.build(template, path, outbound_pairs()[variant])
        return projects[variant]

    return build


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(directory: Path, make: Callable[[Path], object]) -> None:
    """Make a directory in the first worker that needs it; the others wait.

    Args:
        directory: it exists as soon as it is complete.
        make: makes it at the path that it is given.
    """
    lock, partial, failed = (directory.with_name(f"{directory.name}.{end}") for end in ("lock", "partial", "failed"))
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.mkdir()
    except FileExistsError:
        wait_for(lambda: directory.exists() or failed.exists(), lambda: f"no {directory}", RENDERING_SECONDS)
        assert directory.exists(), failed.read_text("utf-8")
        return
    try:
        make(partial)
    except BaseException as error:
        failed.write_text(f"{type(error).__name__} while {directory} was made: {error}", "utf-8")
        raise
    partial.rename(directory)


def render_many(template: Path, roots: Sequence[Path], names: Sequence[str]) -> None:
    """Render these variants into each root, all roots at once, with different hash seeds."""
    workers = [
        _start_rendering(template, {str(root / name): variants()[name] for name in names}, hash_seed=seed)
        for seed, root in enumerate(roots, start=1)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=RENDERING_SECONDS)
        assert worker.returncode == 0, errors


def _start_rendering(template: Path, projects: Mapping[str, Answers], hash_seed: int) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.render_many"],
        cwd=ROOT,
        # Without a PATH there is no git: Copier would start it once for each file that it writes.
        env=clean_environment(PYTHONHASHSEED=str(hash_seed), PATH=""),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert worker.stdin is not None
    json.dump({"template": str(template), "projects": projects}, worker.stdin)
    worker.stdin.close()
    worker.stdin = None
    return worker


# --- The session ---------------------------------------------------------------------------------------------


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """`figure("hook: 9.1 s")` prints a measured figure at the end of the session."""
    return lambda text: record_property(FIGURE, text)


def pytest_configure() -> None:
    """Make the folder of shared files before the workers start, which inherit its name, and make renderings faster."""
    shared_files()
    compile_templates_once()


LONGEST_FIRST = (
    "test_layer.py",
    "test_projects.py",
    "test_openapi.py",
    "test_readme.py",
    "test_hook.py",
    "test_update_matrix.py",
    "test_ops_live.py",
    "test_fuzz.py",
    "test_soak.py",
    "test_sign_in.py",
)
"""Files to start first: one worker runs a whole file, so a long one at the end would leave the other idle."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, and count the tests of the other sets as slow, so that `not slow` is quick.

    Raises:
        pytest.UsageError: a test is in two sets; `-m acceptance` would run one that is for a release.
    """
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.name) if item.path.name in LONGEST_FIRST else 99)
    for item in items:
        if item.get_closest_marker("acceptance") or item.get_closest_marker("release"):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("acceptance") and item.get_closest_marker("release"):
            raise pytest.UsageError(f"{item.nodeid} is marked acceptance and release: a test belongs to one set")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
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


def skipped_on_ci(reporter: Any) -> list[str]:
    """Return the skipped tests and modules on CI, where skipping is a failure."""
    if not os.environ.get("CI"):
        return []
    return sorted({report.nodeid for report in reporter.stats.get("skipped", [])})
