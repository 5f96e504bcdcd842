"""Projects, each in its own environment: what their owner runs is green, and they start."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from .matrix import CHECKS, Project, outbound_pairs
from .support import EVERYTHING, answers, run, uv

pytestmark = pytest.mark.slow


VARIANTS = ("default", "minimal", "everything")
TOKENS = "everything with tokens only"


@pytest.fixture(scope="module")
def make(
    built: Callable[[str], Project], template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Project]:
    """`make("default")` returns that project, which is built once."""

    @cache
    def build(name: str) -> Project:
        if name != TOKENS:
            return built(name)
        data = answers(**(EVERYTHING | {"auth": "token", "enable_auth_tokens": False}))
        return Project.build(template, tmp_path_factory.mktemp("tokens") / name, data)

    return build


@pytest.fixture(
    scope="module",
    params=[
        *VARIANTS,
        pytest.param(TOKENS, marks=pytest.mark.release),
        *(pytest.param(name, marks=pytest.mark.release) for name in outbound_pairs()),
    ],
)
def project(request: pytest.FixtureRequest, make: Callable[[str], Project]) -> Project:
    return make(request.param)


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "start"])
def test_a_project_passes_its_check(project: Project, check: str, figure: Callable[[str], None]) -> None:
    last = project.check(check)
    if check == "tests":
        figure(f"{check} of the {project.path.name} project: {last}")


@pytest.mark.parametrize(
    "name",
    # The tests of a project start it too, and those of the READMEs start the default project.
    [
        "everything",
        *(pytest.param(name, marks=pytest.mark.release) for name in (*VARIANTS[:2], TOKENS, *outbound_pairs())),
    ],
)
def test_a_project_starts(make: Callable[[str], Project], name: str) -> None:
    make(name).check("start")


def test_the_wheel_contains_the_answers(project: Project, tmp_path: Path) -> None:
    done = run(uv(), "build", "--wheel", "--quiet", "--out-dir", tmp_path, cwd=project.path, UV_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = archive.namelist()
    assert "weather_station/production/answers.json" in content
    assert [
        name for name in content if not name.startswith(("weather_station/", "weather_station-0.1.0.dist-info/"))
    ] == []


@pytest.mark.release
def test_the_templates_tests_do_not_load_the_owners_tools(make: Callable[[str], Project], tmp_path: Path) -> None:
    """Owners' tools may need a database or names that a test uses too."""
    project = make("default")
    for name in ("src", "tests", "pyproject.toml", ".env.example"):
        source = project.path / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    for path in (tmp_path / "src/weather_station/tools").glob("*.py"):
        path.write_text("raise RuntimeError('the tools were loaded')\n")
    python = project.path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/production")
    done = run(python, *tests, cwd=tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert done.returncode == 0, done.stdout
