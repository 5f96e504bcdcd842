"""Interrupted updates, and files that git does not show as changed: nothing is lost, and an update can be undone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from post_generate import GO_BACK

from .small_template import MARK, SmallTemplate, status, write
from .support import ANSWERS_FILE, ROOT, copier, files, run
from .template_repository import commit, edit, git
from .test_migrations import update
from .test_update_scenarios import NEW, OLD, check, configure, rejected
from .test_update_scenarios import project as project

pytestmark = pytest.mark.slow

KILLS = """
import os, signal, sys
if os.environ.get("KILLED_IN") == sys.argv[1]:
    os.kill(os.getppid(), signal.SIGKILL)
    os._exit(1)
"""
"""A migration that kills Copier and itself: in the stage `after`, Copier has written the answers and no other file."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SmallTemplate:
    made = SmallTemplate(tmp_path_factory.mktemp("safety"))
    made.release("1.0.0", OLD)
    made.release("2.0.0", {**NEW, "docs/new.md": "# New\n"}, KILLS)
    return made


def shell(command: str, cwd: Path) -> None:
    done = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("later", [pytest.param(False, marks=pytest.mark.release), True])
def test_an_update_that_was_killed_and_committed_is_undone_by_the_command_it_names(project: Path, later: bool) -> None:
    before = files(project)
    killed = copier("update", "--trust", "--defaults", "--vcs-ref=2.0.0", cwd=project, KILLED_IN="after")
    assert killed.returncode != 0
    assert status(project).keys() == {MARK, ANSWERS_FILE}
    assert GO_BACK in (project / MARK).read_text("utf-8")
    commit(project, "what is there")
    if later:
        write(project, {"docs/later.md": "Mine.\n"})
    output = rejected(project)
    assert f"An earlier update was interrupted, and its incomplete result is committed ({MARK})" in output
    (command,) = re.findall(r"^    (git re.*)$", output, re.MULTILINE)
    assert command.startswith("git revert" if later else "git restore")
    shell(command, project)
    assert files(project) == before | ({"docs/later.md": b"Mine.\n"} if later else {})
    update(project, "2.0.0")
    check(project)
    assert MARK not in files(project)


@pytest.mark.parametrize("stage", [pytest.param("before", marks=pytest.mark.release), "after"])
def test_an_update_that_was_killed_is_undone_by_the_printed_command(project: Path, stage: str) -> None:
    before = files(project)
    copier("update", "--trust", "--defaults", "--vcs-ref=2.0.0", cwd=project, KILLED_IN=stage)
    shell(GO_BACK, project)
    assert files(project) == before
    assert status(project) == {}
    update(project, "2.0.0")
    check(project)


@pytest.mark.parametrize("how", ["ignored", "skip-worktree", "assume-unchanged", "hidden"])
def test_edits_that_git_does_not_show_are_merged_and_saved(
    project: Path, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "AGENTS.md"
    if how == "ignored":
        (tmp_path / "ignored").write_text("AGENTS.md\n", "utf-8")
        configure(monkeypatch, "core.excludesFile", str(tmp_path / "ignored"))
    if how == "hidden":
        configure(monkeypatch, "status.showUntrackedFiles", "no")
    if how in ("ignored", "hidden"):
        git("rm", "--quiet", "--cached", "AGENTS.md", cwd=project)
        git("commit", "--quiet", "--message", "AGENTS.md is not in git", cwd=project)
    else:
        git("update-index", f"--{how}", "AGENTS.md", cwd=project)
    edit(path, "Second.", "Second, and of this machine only.")
    edited = path.read_text("utf-8")
    output = update(project, "2.0.0").stderr
    assert path.read_text("utf-8") == edited.replace("Third.", "The third.")
    (commit_saved,) = re.findall(r"AGENTS.md, of which git shows no change; its former content: git (show \S+)", output)
    assert git(*commit_saved.split(), cwd=project) == edited


def test_a_file_that_git_does_not_show_and_that_the_new_version_brings_is_not_overwritten(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ignored").write_text("docs/new.md\n", "utf-8")
    configure(monkeypatch, "core.excludesFile", str(tmp_path / "ignored"))
    write(project, {"docs/new.md": "# Mine\n"})
    output = update(project, "2.0.0").stderr
    assert "# Mine\n" in (project / "docs/new.md").read_text("utf-8")
    assert "conflict     docs/new.md: in 1 place" in output
    (saved,) = re.findall(r"docs/new.md, of which git shows no change; .* git (show \S+)", output)
    assert git(*saved.split(), cwd=project) == "# Mine\n"


def test_undoing_an_update_leaves_the_rest_of_a_larger_repository_unchanged(
    template: SmallTemplate, tmp_path: Path
) -> None:
    root = tmp_path / "all"
    (root / "services").mkdir(parents=True)
    git("init", "--quiet", cwd=root)
    write(root, {"other/file.txt": "one\n"})
    project = template.copy("1.0.0", root / "services/shop")
    subprocess.run(["rm", "-rf", project / ".git"], check=True)  # noqa: S607
    edit(project / "docs/page.md", "Third.", "Mine.")
    commit(root)
    write(root, {"other/file.txt": "two\n", "other/new.txt": "new\n"})
    before = files(project)
    done = copier("update", "--trust", "--defaults", "--vcs-ref=2.0.0", cwd=project)
    assert "conflict     docs/page.md: in 1 place" in done.stderr, done.stderr
    shell(GO_BACK, project)
    assert files(project) == before
    assert (root / "other/file.txt").read_text("utf-8") == "two\n"
    assert (root / "other/new.txt").exists()
    assert os.listdir(root / "services") == ["shop"]


def test_recopying_over_an_interrupted_update_is_rejected(project: Path) -> None:
    """Copier renders only the answers while the mark is there."""
    program = ROOT / "hooks" / "post_generate.py"
    copier("update", "--trust", "--defaults", "--vcs-ref=2.0.0", cwd=project, KILLED_IN="after")
    write(project, {"src/shop/production/answers.json": "{}\n"})
    done = run(sys.executable, program, "copy", cwd=project, MCP_TEMPLATE_STRICT="1")
    assert done.returncode == 1
    assert f"an update of it was interrupted ({MARK})" in done.stderr
    assert GO_BACK in done.stderr
