"""Answers and an update: what changes is named, what is gone has a migration, and what was edited by hand is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from post_generate import GO_BACK
from updating.changes import changes

from .small_template import SmallTemplate, write
from .template_repository import commit, edit, recorded
from .test_migrations import update
from .test_update_safety import shell
from .test_update_scenarios import NEW, OLD

pytestmark = pytest.mark.slow

LEVEL = """
level:
  type: str
  default: LOW
  choices: [{choices}]
  validator: "{validator}"

spec:
  type: str
  default: ""
  validator: "{{% if '?' in spec %}}No.{{% endif %}}"

"""
EXTRA = {"src/{{ package_name }}/production/extra.py": "EXTRA = 1\n", "docs/extra.md": "# Extra\n"}


def template(root: Path, migration: str = "") -> SmallTemplate:
    """Two versions, of which the second has no choice MIDDLE, and a question more."""
    made = SmallTemplate(root)
    config = made.template / "copier.yml"
    text = config.read_text("utf-8")
    config.write_text(text + LEVEL.format(choices="LOW, MIDDLE, HIGH", validator="").replace("No.", ""), "utf-8")
    made.release("1.0.0", OLD | EXTRA)
    more = "colour:\n  type: str\n  default: red\n"
    config.write_text(text + LEVEL.format(choices="LOW, HIGH", validator="") + more, "utf-8")
    made.release("2.0.0", NEW | EXTRA, migration)
    return made


def test_each_answer_that_an_update_changes_is_named_without_a_secret(tmp_path: Path) -> None:
    made = template(tmp_path / "template", 'STRICTER = {"spec": "Revoke the token."}\n')
    project = made.copy("1.0.0", tmp_path / "project", level="MIDDLE", spec="https://h/?token=hidden")
    output = update(project, "2.0.0", "--data", "extras=false").stderr
    assert 'changed      level="LOW", which was "MIDDLE"\n' in output
    assert 'changed      spec="", which was (a URL with credentials). Revoke the token.\n' in output
    assert "changed      extras=false, which was true\n" in output
    assert 'new answer   colour="red"\n' in output
    assert "hidden" not in output
    commit(project)
    output = update(project, "2.0.0").stderr
    assert "changed" not in output
    assert "new answer" not in output


def test_a_migration_says_what_becomes_of_an_answer(tmp_path: Path) -> None:
    made = template(tmp_path / "template", 'ANSWERS = {"level": {"MIDDLE": "HIGH"}}\n')
    project = made.copy("1.0.0", tmp_path / "project", level="MIDDLE")
    output = update(project, "2.0.0").stderr
    assert recorded(project)["level"] == "HIGH"
    assert 'changed      level="HIGH", which was "MIDDLE"\n' in output


def test_a_url_with_credentials_that_is_recorded_is_named(tmp_path: Path) -> None:
    made = template(tmp_path / "template")
    project = made.copy("1.0.0", tmp_path / "project", spec="https://ada:hidden@h/spec.json")
    output = update(project, "2.0.0").stderr
    assert (
        "by hand      spec in .copier-answers.yml contains credentials, and so does git's history: revoke them"
        in output
    )
    assert "hidden" not in output


@pytest.mark.parametrize("was", [True, pytest.param(False, marks=pytest.mark.release)])
def test_manually_edited_answers_are_reported_and_the_printed_command_repairs_them(tmp_path: Path, was: bool) -> None:
    made = template(tmp_path / "template")
    project = made.copy("1.0.0", tmp_path / "project", extras=was)
    now = str(not was).lower()
    edit(project / ".copier-answers.yml", f"extras: {str(was).lower()}", f"extras: {now}")
    commit(project, "by hand")
    write(project, {"src/shop/production/mine.py": "MINE = 1\n"})
    commit(project)
    output = update(project, "2.0.0").stderr
    assert ".copier-answers.yml does not match the files" in output
    assert f"{'without its answer' if was else 'missing'}: src/shop/production/extra.py" in output
    command = f"uvx copier update --trust --defaults --vcs-ref=:current: --data extras={now}"
    assert command in output

    shell(GO_BACK, project)
    edit(project / ".copier-answers.yml", f"extras: {now}", f"extras: {str(was).lower()}")
    commit(project)
    update(project, ":current:", "--data", f"extras={now}")
    assert (project / "src/shop/production/extra.py").exists() is not was
    commit(project)
    output = update(project, "2.0.0").stderr
    assert "does not match" not in output
    assert (project / "src/shop/production/mine.py").exists()


def test_files_that_the_owner_deleted_or_added_are_not_reported_as_edited_answers(tmp_path: Path) -> None:
    made = template(tmp_path / "template")
    project = made.copy("1.0.0", tmp_path / "project")
    (project / "src/shop/production/extra.py").unlink()
    write(project, {"src/shop/production/two.py": "EXTRA = 1\n"})
    commit(project)
    assert "does not match" not in update(project, "2.0.0").stderr


def test_the_changelog_sections_since_the_projects_version_are_shown(tmp_path: Path) -> None:
    made = SmallTemplate(tmp_path / "template")
    log = made.template / "CHANGELOG.md"
    part = "## [{0}] - date\n\n### Added\n\n- A.\n\n### What an update changes\n\n- By hand: {0}.\n\n"
    log.write_text("# Changelog\n\n" + part.format("1.0.0"), "utf-8")
    made.release("1.0.0", OLD)
    log.write_text("# Changelog\n\n" + part.format("2.0.0") + part.format("1.5.0") + part.format("1.0.0"), "utf-8")
    made.release("2.0.0", NEW)
    assert changes(made.template, "1.0.0") == (
        "[2.0.0] - date\n\n- By hand: 2.0.0.\n\n[1.5.0] - date\n\n- By hand: 1.5.0."
    )
    assert changes(made.template, "2.0.0") == ""
