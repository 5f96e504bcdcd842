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

TOKENS = "everything with tokens only"
DATA: dict[str, Answers] = {
    TOKENS: answers(**(EVERYTHING | {"auth": "token", "enable_auth_tokens": False}))
} | outbound_pairs()
"""Projects that are none of the variants."""

CREDENTIALS = {
    "default-upstream_auth-token_exchange": ("test_credentials_exchange.py",),
    "default-upstream_auth-per_caller": ("test_credentials_keys.py",),
    "default-upstream_auth-client_credentials": ("test_credentials_client.py",),
    "default-upstream_auth-entra_obo": ("test_credentials_obo.py",),
}
"""A project has one kind of credentials for the upstream; the tests of all of them are in the first."""

SELECTIONS: dict[str, tuple[str, ...]] = {
    "minimal": (),
    "everything": (),
    "default": QUICK,
    "default-auth-jwt": ("test_auth.py", "test_auth_jwt.py"),
    **CREDENTIALS,
    TOKENS: QUICK,
    **dict.fromkeys(outbound_pairs(), QUICK),
}
"""The tests that run in each project: `everything` has every module but those of the credentials."""

MARKS = {
    TOKENS: pytest.mark.acceptance,
    **dict.fromkeys([*CREDENTIALS][1:], pytest.mark.acceptance),
    **dict.fromkeys(outbound_pairs(), pytest.mark.release),
}


def parameters(*names: str) -> list[object]:
    return [pytest.param(name, marks=MARKS.get(name, ())) for name in names]


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


@pytest.mark.parametrize("name", parameters(*SELECTIONS))
def test_the_tests_of_the_layer_pass(
    prepared: Callable[[str], Project], name: str, figure: Callable[[str], None]
) -> None:
    figure(f"tests of the production layer in {name}: {prepared(name).check_layer(*SELECTIONS[name])}")


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("everything", "test_credentials_.*.py$"),
        ("default-upstream_auth-token_exchange", "test_(?!credentials_e).*.py$"),
    ],
)
def test_the_tests_of_the_layer_are_typed(prepared: Callable[[str], Project], name: str, absent: str) -> None:
    project = prepared(name)
    cache = project.path / ".mypy_cache"
    options = ("--config-file", str(LAYER / "mypy.ini"), "--cache-dir", str(cache), "--exclude", absent)
    done = project.python("-m", "mypy", *options, str(LAYER))
    assert done.returncode == 0, done.stdout + done.stderr
