"""The production layer in projects with their own environments: the tests in tests/layer pass, and are typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Renderings
from .matrix import LAYER, QUICK, Project, outbound_pairs
from .support import EVERYTHING, Answers, answers

pytestmark = pytest.mark.slow

JWT = "everything with JWT"
DATA: dict[str, Answers] = {JWT: answers(**(EVERYTHING | {"auth": "jwt"}))} | outbound_pairs()
"""Projects that are none of the variants."""

SELECTIONS: dict[str, tuple[str, ...]] = {
    "minimal": (),
    "everything": (),
    "default": ("test_rate_limit.py", "test_telemetry.py"),
    "default-auth-jwt": ("test_auth.py", "test_auth_jwt.py"),
}
"""The tests that run in each project: `everything` has every module but those that the others are here for."""

WHOLE = ("default", JWT, *outbound_pairs())
"""Projects in which all tests run that depend on the project."""


@pytest.fixture(scope="module")
def prepared(
    renderings: Renderings, template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Project]:
    """`prepared("default")` is that project with an environment of its own, in which the layer's tests can run."""
    projects: dict[str, Project] = {}

    def prepare(name: str) -> Project:
        if name not in projects:
            path = tmp_path_factory.mktemp("layer") / "project"
            if name in DATA:
                project = Project.build(template, path, DATA[name])
            else:
                shutil.copytree(renderings[name].first, path)
                project = Project.of(path)
            project.prepare_layer()
            projects[name] = project
        return projects[name]

    return prepare


@pytest.mark.parametrize(
    ("name", "selection"),
    [
        *SELECTIONS.items(),
        *(pytest.param(name, QUICK, marks=pytest.mark.release, id=f"{name}, whole") for name in WHOLE),
    ],
)
def test_the_tests_of_the_layer_pass(
    prepared: Callable[[str], Project], name: str, selection: tuple[str, ...], figure: Callable[[str], None]
) -> None:
    figure(f"tests of the production layer in {name}: {prepared(name).check_layer(*selection)}")


@pytest.mark.parametrize(
    ("name", "absent"),
    [("everything", "auth_jwt"), pytest.param(JWT, "auth_token", marks=pytest.mark.release)],
)
def test_the_tests_of_the_layer_are_typed(prepared: Callable[[str], Project], name: str, absent: str) -> None:
    project = prepared(name)
    cache = project.path / ".mypy_cache"
    options = ("--config-file", str(LAYER / "mypy.ini"), "--cache-dir", str(cache), "--exclude", f"test_{absent}.py$")
    done = project.python("-m", "mypy", *options, str(LAYER))
    assert done.returncode == 0, done.stdout + done.stderr
