"""The production layer in projects with their own environments: the tests in tests/layer pass, and are typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Renderings
from .matrix import LAYER, QUICK, Project, outbound_pairs
from .support import DEFAULT, EVERYTHING, Answers, answers

pytestmark = pytest.mark.slow

TOKENS = "everything with tokens only"
OPENAPI = "with an OpenAPI document"
SIGN_IN = "sign-in with audit"
API = {
    "project_name": "Weather Station",
    "upstream_base_url": "https://api.example.com",
    "openapi_spec": "openapi.json",
}
DATA: dict[str, Answers] = {
    TOKENS: answers(**(EVERYTHING | {"auth": "token"})),
    OPENAPI: answers(**API),
    SIGN_IN: answers(**DEFAULT, auth="oauth", enable_audit=True),
} | outbound_pairs()
"""Projects that are none of the variants."""

CREDENTIALS = {
    "default-upstream_auth-token_exchange": ("test_credentials_exchange.py",),
    "default-upstream_auth-per_caller": ("test_credentials_keys.py",),
    "default-upstream_auth-client_credentials": ("test_credentials_client.py",),
    "default-upstream_auth-entra_obo": ("test_credentials_obo.py",),
}
"""A project has one kind of credentials for the upstream; what all kinds share is tested in the first."""

FEWER = ("-m", "not release")
"""Leaves out the further cases that the release set runs in whole projects."""

SELECTIONS: dict[str, tuple[str, ...]] = {
    "minimal": (
        "test_cli.py",
        "test_config.py",
        "test_health.py",
        "test_imports.py",
        "test_pipeline.py",
        "test_plain_logging.py",
    ),
    "everything": FEWER,
    "default": (
        "-m",
        "not pure and not release",
        "test_auth.py",
        "test_auth_token.py",
        "test_rate_limit.py",
        "test_telemetry.py",
        "test_telemetry_session.py",
    ),
    "default-upstream_auth-token_exchange": CREDENTIALS["default-upstream_auth-token_exchange"],
    OPENAPI: ("test_openapi.py", "test_openapi_media_types.py"),
}
"""The tests that run in each project: `everything` has every module but those that the others are here for.

In the others run the modules whose result depends on the answers; all modules run in them for a release.
"""

COMPLETE_VARIANTS = ("minimal", "default", "everything", TOKENS, *outbound_pairs())
"""Projects in which all tests run that depend on the project, with each server as a new process."""


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
        *(pytest.param(*item, marks=pytest.mark.acceptance) for item in [*CREDENTIALS.items()][1:]),
        pytest.param(
            SIGN_IN,
            (
                "test_auth_oauth.py",
                "test_auth_oauth_clients.py",
                "test_auth_oauth_provider.py",
                "test_auth_oauth_redis.py",
            ),
            marks=pytest.mark.acceptance,
        ),
        pytest.param("default", ("test_direct.py",), marks=pytest.mark.release, id="default, random requests"),
        *(pytest.param(name, QUICK, marks=pytest.mark.release, id=f"{name}, whole") for name in COMPLETE_VARIANTS),
    ],
)
def test_the_tests_of_the_layer_pass(
    prepared: Callable[[str], Project],
    name: str,
    selection: tuple[str, ...],
    figure: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    complete = request.node.get_closest_marker("release") is not None
    last = prepared(name).check_layer(*selection, processes=3 if selection in (QUICK, FEWER) else 0, forks=not complete)
    figure(f"tests of the production layer in {name}: {last}")


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("everything", r"(credentials|auth_oauth)\w*"),
        pytest.param("default-upstream_auth-token_exchange", r"(?!credentials_exchange)\w+", marks=pytest.mark.release),
    ],
)
def test_the_tests_of_the_layer_are_typed(prepared: Callable[[str], Project], name: str, absent: str) -> None:
    absent = f"test_({absent}|openapi.*)|openapi_tools_under_test|sign_in_provider|store"
    assert_typed(prepared(name), LAYER, "--exclude", rf"({absent})\.py$")


DIRECT_PATH = "inbound/direct.py"
SDK_DIRECT = "sdk_direct.py"
MUTANTS = {
    "an envelope rule is dropped": (DIRECT_PATH, 'message.get("jsonrpc") != "2.0"', "False"),
    "a header rule is dropped": (DIRECT_PATH, 'headers.get(b"mcp-name") != name.encode()', "False"),
    "a kind of result is lost": (SDK_DIRECT, '"isError": fields["is_error"]', '"isError": False'),
    "the id is another one": (DIRECT_PATH, 'return b"%d" % request_id', 'return b"1"'),
    "a middleware is skipped": (SDK_DIRECT, "for item in self._inner:", "for item in ():"),
    "the pipeline is skipped": (SDK_DIRECT, "await pipeline.run(request)", "await handle(context)"),
    "a header may be there twice": (DIRECT_PATH, 'len(headers) != len(scope["headers"])', "False"),
    "a list is not renewed": (SDK_DIRECT, "_are_same(known.items, call.items)", "True"),
}
"""Faults of the direct path: the file, what stands in it, and what stands there instead."""


@pytest.mark.release
@pytest.mark.parametrize("fault", MUTANTS)
def test_the_comparison_with_the_sdk_finds_a_fault_of_the_direct_path(
    prepared: Callable[[str], Project], fault: str
) -> None:
    name, original, mutant = MUTANTS[fault]
    project = prepared("default")
    path = project.path / "src" / "weather_station" / "production" / name
    text = path.read_text("utf-8")
    assert text.count(original) == 1
    path.write_text(text.replace(original, mutant), "utf-8")
    try:
        with pytest.raises(AssertionError, match=r"FAILED test_direct\.py"):
            project.check_layer(
                "test_direct.py", *QUICK, "--maxfail=1", "--tb=no", "--assert=plain", "-k", "sdk or list"
            )
    finally:
        path.write_text(text, "utf-8")


@pytest.mark.release
@pytest.mark.parametrize("name", ["default", "everything"])
def test_all_tests_pass_without_the_direct_path(prepared: Callable[[str], Project], name: str) -> None:
    project = prepared(name)
    project.check("tests", DIRECT="false")
    project.check_layer(*QUICK, "--ignore=test_direct.py", processes=3, DIRECT="false")


@pytest.mark.release
def test_the_tests_of_the_sign_in_are_typed(prepared: Callable[[str], Project]) -> None:
    assert_typed(prepared(SIGN_IN), *LAYER.glob("*auth_oauth*.py"))


@pytest.mark.release
def test_the_tests_of_tools_from_openapi_are_typed(prepared: Callable[[str], Project]) -> None:
    assert_typed(prepared(OPENAPI), *LAYER.glob("*openapi*.py"))


@pytest.mark.release
def test_random_documents(prepared: Callable[[str], Project], figure: Callable[[str], None]) -> None:
    figure(f"documents made by chance: {prepared(OPENAPI).check_layer('test_openapi_serialisation.py')}")


def assert_typed(project: Project, *arguments: str | Path) -> None:
    project.check_types("--config-file", LAYER / "mypy.ini", *arguments)
