"""The default, the minimal and the everything project, each in its own environment: what its owner runs is green."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Built
from .support import run, uv

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["default", "minimal", "everything"])
def project(request: pytest.FixtureRequest, built: Callable[[str], Built]) -> Built:
    return built(request.param)


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_a_check_of_its_own_is_green(project: Built, command: list[str]) -> None:
    done = project.uv("run", "--no-sync", *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_own_tests_are_green_and_none_is_skipped(project: Built, figure: Callable[[str], None]) -> None:
    done = project.uv("run", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    summary = done.stdout.strip().splitlines()[-1]
    figure(f"tests of the {project.path.name} project: {summary}")
    assert re.search(r"\d+ passed", summary)
    assert "skipped" not in summary, done.stdout


def test_its_wheel_has_the_answers(project: Built, tmp_path: Path) -> None:
    done = run(uv(), "build", "--wheel", "--quiet", "--out-dir", tmp_path, cwd=project.path, UV_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = archive.namelist()
    assert "weather_station/production/answers.json" in content
    assert [
        name for name in content if not name.startswith(("weather_station/", "weather_station-0.1.0.dist-info/"))
    ] == []
