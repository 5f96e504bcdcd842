"""Ten owners' histories, recorded as patches in tests/owners/: commits over months on a project of release 0.1.0.

Each project is updated over every version one by one, and at once. Both ways have the same result, and everything that
the owner did is in it or named.
"""

from __future__ import annotations

import re
import shutil
from ast import literal_eval
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from .matrix import Project
from .owner_projects import NEXT, NOW, TemplateHistory
from .support import ROOT, files, without_user_owned
from .template_repository import commit, git
from .test_update_matrix import conflicts, lost_edits

pytestmark = pytest.mark.slow

PATCHES = {path.stem: path for path in sorted((ROOT / "tests" / "owners").glob("*.patch"))}
ANSWERS: Mapping[str, str] = {"cluster": "everything", "library": "minimal", "stateful": "mixed"}
"""The set of answers of an owner's project, where it is not `default`."""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> TemplateHistory:
    return TemplateHistory(tmp_path_factory.mktemp("owners"))


def project_of(history: TemplateHistory, owner: str, directory: Path) -> tuple[Path, dict[str, bytes]]:
    """Return the owner's project, and the files of the project as it was generated."""
    project = history.project("0.1.0", ANSWERS.get(owner, "default"), directory)
    base = files(project)
    git("am", "--quiet", "--keep-cr", "--committer-date-is-author-date", PATCHES[owner], cwd=project)
    return project, base


def only_imports(loss: str, edited: Mapping[str, bytes], now: Mapping[str, bytes]) -> bool:
    """Return whether a file of the owner's differs in its imports alone, which the migration rewrites and reports."""
    path = loss.removesuffix(" of the owner has changed")
    before, after = (set(version.get(path, b"").splitlines()) for version in (edited, now))
    return path in edited and all(b"import " in line for line in before ^ after)


def is_named(loss: str, messages: str) -> bool:
    """Return whether the update names an edit of a file that was split, which several of the new files could have."""
    path, _, text = loss.partition(" lost ")
    return bool(text) and bool(re.search(rf"{re.escape(path)}:\d+: {re.escape(literal_eval(text))}\n", messages))


def test_there_are_ten_owners() -> None:
    assert len(PATCHES) == 10
    assert ANSWERS.keys() <= PATCHES.keys()


@pytest.mark.release
@pytest.mark.parametrize("owner", [*PATCHES])
def test_one_update_has_the_result_of_many_and_loses_nothing(
    history: TemplateHistory, tmp_path: Path, capfd: pytest.CaptureFixture[str], owner: str
) -> None:
    project, base = project_of(history, owner, tmp_path)
    edited = files(project)
    stepwise = Path(shutil.copytree(project, tmp_path / "stepwise" / project.name))

    history.update(project, NEXT)
    assert conflicts(project) == []
    now, messages = files(project), capfd.readouterr().err
    losses = [loss for loss in lost_edits(base, edited, now) if not only_imports(loss, edited, now)]
    assert [loss for loss in losses if not is_named(loss, messages)] == []

    for version in (NOW, NEXT):
        history.update(stepwise, version)
        assert conflicts(stepwise) == []
        commit(stepwise)
    then = files(stepwise)
    assert now.keys() == then.keys()
    # A file of the owner's is seeded by the first version that has it.
    assert {path for path in without_user_owned(now) if now[path] != then[path]} == set()


@pytest.mark.release
@pytest.mark.parametrize("owner", [*PATCHES])
def test_the_tests_of_an_updated_project_are_green(
    history: TemplateHistory, tmp_path: Path, owner: str, figure: Callable[[str], None]
) -> None:
    path, _ = project_of(history, owner, tmp_path)
    history.update(path, NOW)
    figure(f"tests of {owner} after the update: {Project.of(path).check('tests')}")
