"""From every release, and from the last commit, each kind of project updates without a conflict and without a loss."""

from __future__ import annotations

import re
import shutil
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from updating.update import Update

from .owner_projects import ANSWER_SETS, NEXT, NOW, ORIGINS, TemplateHistory, edit_as_owner
from .releases import merged_migrations, questions_of, releases
from .support import (
    ANSWERS_FILE,
    OTHER_VALUES,
    answers,
    copier,
    copy_template,
    files,
    owners,
    path_with_uv,
    run,
    uv,
    without_user_owned,
)
from .template_repository import TemplateRepository, commit, edit, recorded

pytestmark = pytest.mark.slow

CASES = [
    pytest.param(origin, name, marks=[] if (origin, name) == (ORIGINS[0], "default") else pytest.mark.release)
    for origin in ORIGINS
    for name in ANSWER_SETS
]
"""Every origin with every set of answers; all but one run before a release."""

OTHERS = answers(
    **{question: answer for question, answer in OTHER_VALUES.items() if question != "package_name"},
    auth="jwt",
    log_level="WARNING",
    enable_metrics_tool=True,
    enable_retries=False,
    enable_circuit_breaker=False,
    rate_limit_backend="redis",
    rate_limit_preset="internal",
    telemetry_protocol="grpc",
    session_mode="stateful",
    response_mode="sse",
    python_version="3.12",
    include_kubernetes=True,
)
"""Answers that leave the files that `edit_as_owner` edits where they are; tests/test_migrations.py renames packages."""

MARKER = re.compile(r"^(<<<<<<<|>>>>>>>|=======$)", re.MULTILINE)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> TemplateHistory:
    return TemplateHistory(tmp_path_factory.mktemp("line"))


def lines_of(content: bytes | None) -> Counter[str]:
    return Counter((content or b"").decode().splitlines())


def lost_edits(base: Mapping[str, bytes], edited: Mapping[str, bytes], now: Mapping[str, bytes]) -> Iterator[str]:
    """What the owner did between `base` and `edited` and that is not in `now`, where files have moved neither."""
    tables = merged_migrations().tables
    for path in sorted(base.keys() | edited.keys()):
        if path == ANSWERS_FILE or base.get(path) == edited.get(path):
            continue
        generic = Update.generic(path, "weather_station")
        paths_by_generic = {Update.generic(path, "weather_station"): path for path in now}
        targets = [paths_by_generic[target] for target in tables.destinations(generic, paths_by_generic)]
        merged = b"\n".join(now[target] for target in targets)
        if path not in edited:
            yield from (f"{path} is there again, at {target}" for target in targets if len(targets) == 1)
        elif path not in base or owners(path) == ["user"]:
            if now.get(path) != edited[path]:
                yield f"{path} of the owner has changed"
        else:
            added = lines_of(edited[path]) - lines_of(base[path])
            removed = lines_of(base[path]) - lines_of(edited[path])
            yield from (f"{path} lost {history!r}" for history in added - lines_of(merged))
            yield from (f"{path} has {history!r} again" for history in removed if lines_of(merged)[history])


def conflicts(project: Path) -> list[str]:
    return [
        path for path, content in files(project).items() if path.endswith(".rej") or MARKER.search(content.decode())
    ]


@pytest.mark.parametrize(("origin", "name"), CASES)
def test_an_updated_project_without_edits_equals_a_new_one(
    history: TemplateHistory, tmp_path: Path, origin: str, name: str
) -> None:
    project = history.project(origin, name, tmp_path)
    before = files(project)
    history.update(project, NOW)
    now = files(project)
    fresh = history.fresh(NOW, project, tmp_path / "fresh")
    # What the owner's test_tools.py of 0.1.0 imports, and a new project lacks.
    shim = {path for path in ("tests/__init__.py", "tests/production/smoke.py") if path in now and path not in fresh}
    assert ("tests/production/smoke.py" in shim) == (b"production.smoke" in now["tests/test_tools.py"])
    for path in shim:
        del now[path]
    assert without_user_owned(now) == without_user_owned(fresh)
    seeded = {path for path in before if owners(path) == ["user"]}
    assert {path: now.get(path) for path in seeded} == {path: before[path] for path in seeded}


@pytest.mark.parametrize(("origin", "name"), CASES)
def test_no_edit_of_the_owner_is_lost_or_conflicts(
    history: TemplateHistory, tmp_path: Path, origin: str, name: str, figure: Callable[[str], None]
) -> None:
    project = history.project(origin, name, tmp_path)
    base = files(project)
    edit_as_owner(project, starter=name != "minimal")
    edited = files(project)
    asked = recorded(project)

    history.update(project, NEXT)

    now = files(project)
    assert conflicts(project) == []
    assert list(lost_edits(base, edited, now)) == []
    answers_now = recorded(project)
    assert {question: answers_now[question] for question in asked if not question.startswith("_")} == {
        question: answer for question, answer in asked.items() if not question.startswith("_")
    }
    assert (answers_now["enable_caching"], answers_now["_commit"]) == (True, NEXT)
    fresh = history.fresh(NEXT, project, tmp_path / "fresh")
    deleted = [path for path in without_user_owned(base) if path not in edited]
    assert [path for path in without_user_owned(fresh) if path not in now] == deleted
    new = {path: lines_of(fresh[path]) - lines_of(base.get(path)) for path in without_user_owned(fresh) if path in now}
    assert [f"{path}: {history}" for path in new for history in new[path] - lines_of(now[path])] == []
    assert [path for path in new if not new[path] and not path.endswith("/answers.json")] == []
    pyproject = tomllib.loads(now["pyproject.toml"].decode())
    assert {"pyyaml>=6", "python-dateutil>=2.9", "typing-extensions>=4", "sniffio>=1.3"} <= {
        *pyproject["project"]["dependencies"]
    }
    assert {"time-machine>=2.16", "pytest-timeout>=2"} <= {*pyproject["dependency-groups"]["dev"]}
    assert pyproject["tool"]["ruff"]["lint"]["extend-ignore"] == ["E501"]

    if name == "mixed":
        commit(project)
        history.update(project, NEXT)
        assert files(project) == now, "a second update changes something"
    if (origin, name) == ([*ORIGINS][-1], [*ANSWER_SETS][-1]):
        projects = len(ORIGINS) * len(ANSWER_SETS)
        figure(f"{len(history.seconds)} updates of {projects} projects: {sum(history.seconds):.0f} s")


@pytest.mark.release
@pytest.mark.parametrize("origin", ORIGINS)
def test_changing_every_answer_loses_no_edit(history: TemplateHistory, tmp_path: Path, origin: str) -> None:
    project = history.project(origin, "default", tmp_path)
    base, known = files(project), questions_of(history.commits[origin])
    edit_as_owner(project, starter=True)
    edited = files(project)
    history.update(project, NEXT, **{question: answer for question, answer in OTHERS.items() if question in known})
    assert conflicts(project) == []
    assert list(lost_edits(base, edited, files(project))) == []
    assert recorded(project)["project_description"] == OTHERS["project_description"]


@pytest.mark.release
def test_an_updated_project_works_after_the_full_hook(
    history: TemplateHistory, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """From the last release to the working tree, by the real command line; minimal has the fewest tests to run."""
    start = time.perf_counter()
    template = TemplateRepository(shutil.copytree(history.repository.template, tmp_path / "template"), tmp_path)
    template.clear()
    copy_template(template.template)
    template.release("90.0.1")
    project = history.project(releases()[-1].version, "minimal", tmp_path)
    edit_as_owner(project, starter=True)
    edit(project / ANSWERS_FILE, str(history.repository.template), str(template.template))
    commit(project)

    done = copier(
        "update", "--trust", "--defaults", "--vcs-ref=90.0.1", cwd=project, PATH=path_with_uv(), MCP_TEMPLATE_STRICT="1"
    )
    assert done.returncode == 0, done.stderr
    updated = time.perf_counter()
    tests = run(uv(), "run", "--no-sync", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-2000:]
    figure(
        f"update with the whole hook: {updated - start:.1f} s; tests of the updated project: "
        f"{time.perf_counter() - updated:.1f} s, {tests.stdout.strip().splitlines()[-1]}"
    )
