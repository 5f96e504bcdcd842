"""The check before a release says each thing that stands in the way, and only that."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from . import release as under_test
from . import releases as list_of_releases
from .releases import Release
from .support import ROOT, run
from .template_repository import commit, git

CHANGELOG = """\
# Changelog

## [Unreleased]

## [0.2.0] - 2026-12-31

### What an update changes

Nothing.

## [0.1.0] - 2026-11-22

First.
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of which 0.1.0 was released and 0.2.0 can be."""
    made = tmp_path / "repository"
    shutil.copytree(ROOT / "template" / "docs", made / "template" / "docs")
    shutil.copy(ROOT / "copier.yml", made)
    shutil.copytree(ROOT / "interview", made / "interview")
    (made / "CHANGELOG.md").write_text(CHANGELOG, "utf-8")
    git("init", "--quiet", "--initial-branch=main", cwd=made)
    commit(made)
    git("tag", "0.1.0", cwd=made)
    first = git("rev-parse", "HEAD", cwd=made).strip()
    commit(made, "the next one")
    for module in (under_test, list_of_releases):
        monkeypatch.setattr(module, "ROOT", made)
        monkeypatch.setattr(module, "releases", lambda: [Release("0.1.0", first)])
    return made


def output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["release", *arguments])
    return under_test.main(), capsys.readouterr().out


def test_a_valid_release_gets_its_commands(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    head = git("rev-parse", "HEAD", cwd=repository).strip()
    status, text = output(monkeypatch, capsys, "0.2.0", "--tested")
    assert status == 0, text
    assert f"git tag --annotate 0.2.0 --message 0.2.0 {head}" in text
    assert f'[[release]]\n    version = "0.2.0"\n    commit = "{head}"' in text
    assert git("tag", "--list", cwd=repository).split() == ["0.1.0"], "it only prints"


@pytest.mark.parametrize(("status", "line"), [(0, "git tag --annotate"), (1, "cannot be released: the tests fail")])
def test_the_tests_run_last(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int, line: str
) -> None:
    monkeypatch.setattr(under_test, "tests_pass", lambda: status == 0)
    exit_status, text = output(monkeypatch, capsys, "0.2.0")
    assert (exit_status, line in text) == (status, True)


def test_a_problem_is_reported_before_the_tests_run(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "notes.txt").write_text("not committed")
    monkeypatch.setattr(under_test, "tests_pass", lambda: pytest.fail("the tests ran"))
    status, text = output(monkeypatch, capsys, "0.2.0")
    assert status == 1
    assert "the tree is not clean: notes.txt" in text


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("0.1.0", "0.1.0 is not above the last release, 0.1.0"),
        ("0.0.9", "0.0.9 is not above the last release, 0.1.0"),
        ("v0.2.0", "a release has three numbers"),
        ("0.2.0rc1", "a release has three numbers"),
        ("next", "next is not a version"),
    ],
)
def test_a_wrong_version_is_named(repository: Path, version: str, line: str) -> None:
    assert any(line in problem for problem in under_test.problems_of_the_version(version))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("## [0.2.0] - 2026-12-31", "## [0.3.0] - 2026-12-31", "has no section ## [0.2.0]"),
        ("## [0.2.0] - 2026-12-31", "## [0.2.0]", "the heading of 0.2.0 has no date"),
        ("### What an update changes", "### Changed", "has no heading '### What an update changes'"),
        ("## [Unreleased]\n", "## [Unreleased]\n\n- More.\n", "entries under Unreleased"),
    ],
)
def test_a_changelog_that_is_not_ready_is_named(old: str, new: str, line: str) -> None:
    assert list(under_test.problems_of_the_changelog("0.2.0", CHANGELOG)) == []
    (problem,) = under_test.problems_of_the_changelog("0.2.0", CHANGELOG.replace(old, new))
    assert line in problem


def test_the_text_of_a_release_is_its_section(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output(monkeypatch, capsys, "0.2.0", "--notes") == (0, "### What an update changes\n\nNothing.\n")
    assert output(monkeypatch, capsys, "0.3.0", "--notes") == (1, "")


def test_another_branch_is_named(repository: Path) -> None:
    git("switch", "--quiet", "--create", "feature", cwd=repository)
    assert list(under_test.problems_of_the_tree()) == ["this is the branch feature; releases are made on main"]


@pytest.mark.slow
def test_a_tag_that_is_not_listed_and_a_release_without_its_tag_are_named(repository: Path) -> None:
    git("tag", "0.1.5", cwd=repository)
    assert list(under_test.problems_of_the_list()) == ["tests/releases.toml lacks the tag 0.1.5"]
    git("tag", "--delete", "0.1.5", "0.1.0", cwd=repository)
    (problem,) = under_test.problems_of_the_list()
    assert re.match(r"tests/releases.toml: 0.1.0 has no tag: git tag 0.1.0 [0-9a-f]{40}$", problem)
    git("tag", "0.1.0", cwd=repository)
    (problem,) = under_test.problems_of_the_list()
    assert problem.startswith("tests/releases.toml: 0.1.0 is tagged elsewhere")


def test_a_file_that_would_be_lost_is_named(repository: Path) -> None:
    (repository / "template" / "docs" / "auth.md").unlink()
    (problem,) = under_test.problems_of_the_list()
    assert problem == "template/docs/auth.md was removed without a migration"


@pytest.mark.slow
def test_a_release_on_another_branch_is_reported(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("switch", "--quiet", "--create", "aside", "0.1.0", cwd=repository)
    commit(repository, "aside")
    aside = git("rev-parse", "HEAD", cwd=repository).strip()
    git("tag", "0.1.1", cwd=repository)
    git("switch", "--quiet", "main", cwd=repository)
    monkeypatch.setattr(under_test, "releases", lambda: [*list_of_releases.releases(), Release("0.1.1", aside)])
    assert list(under_test.problems_of_the_list()) == ["tests/releases.toml: 0.1.1 is not an ancestor of this commit"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["tests.release", "tests.combinations"])
def test_the_commands_are_documented_and_start(module: str) -> None:
    assert f"python3 with_uv.py run python -m {module}" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    done = run(sys.executable, "-m", module, "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
