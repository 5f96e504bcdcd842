"""Updates with unusual git settings, links, line endings, and repositories."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from .small_template import SmallTemplate, status, write
from .support import copier, files
from .template_repository import commit, edit, git
from .test_merge import compose, dashboard, module, page, tables, workflow
from .test_migrations import update

pytestmark = pytest.mark.slow

PAGE = "# Page\n\nFirst.\n\n## Two\n\nSecond.\n\n## Three\n\nThird.\n"
OLD = {
    "AGENTS.md": PAGE,
    "README.md": "Seeded.\n",
    "docs/page.md": PAGE,
    "docs/unedited.md": PAGE,
    "docs/rendered.md.jinja": PAGE + "{{ package_name }}\n",
    "docs/deleted.md": PAGE,
    "src/{{ package_name }}/__init__.py": "",
    "src/{{ package_name }}/production/answers.json": '{"slug": "shop"}\n',
    "src/{{ package_name }}/production/__init__.py": "ONE = 1\n\n\nTWO = 2\n\n\nTHREE = 3\n",
}
NEW = {path: text.replace("Third.", "The third.").replace("THREE = 3", "THREE = 33") for path, text in OLD.items()}
MERGED = PAGE.replace("First.", "The first.  ").replace("Third.", "The third.")
"""With a space at the end, for the sake of git's settings."""

EDITED = ("AGENTS.md", "docs/page.md", "docs/rendered.md")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SmallTemplate:
    made = SmallTemplate(tmp_path_factory.mktemp("scenarios"))
    made.release("1.0.0", OLD)
    made.release("2.0.0", NEW)
    return made


@pytest.fixture
def project(template: SmallTemplate, tmp_path: Path) -> Path:
    """A project with edits, committed."""
    made = template.copy("1.0.0", tmp_path / "project")
    for path in EDITED:
        edit(made / path, "First.", "The first.  ")
    (made / "docs/deleted.md").unlink()
    commit(made)
    return made


def check(project: Path) -> None:
    """Every edit and every change of the new version is there."""
    for path in EDITED:
        expected = MERGED + ("shop\n" if "rendered" in path else "")
        assert (project / path).read_text("utf-8") == expected, path
    assert (project / "docs/unedited.md").read_text("utf-8") == NEW["docs/unedited.md"]
    assert not (project / "docs/deleted.md").exists()
    assert not [path for path in files(project) if path.endswith(".rej")]
    assert not [path for path, state in status(project).items() if "U" in state]


def configure(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Set what the user's own configuration of git would."""
    for variable, text in (("COUNT", "1"), ("KEY_0", name), ("VALUE_0", value)):
        monkeypatch.setenv(f"GIT_CONFIG_{variable}", text)


@pytest.mark.parametrize(
    "setting",
    [
        "apply.whitespace=error",
        "core.autocrlf=true",
        "core.autocrlf=input",
        "core.eol=crlf",
        "core.quotePath=true",
        "diff.noprefix=true",
        "merge.conflictStyle=zdiff3",
        "status.showUntrackedFiles=no",
    ],
)
def test_an_update_works_with_any_git_settings(project: Path, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(monkeypatch, *setting.split("="))
    if setting == "core.autocrlf=true":  # a checkout as on Windows
        shutil.rmtree(project / "docs")
        git("checkout", "--quiet", ".", cwd=project)
        assert b"\r\n" in (project / "docs/page.md").read_bytes()
    output = update(project, "2.0.0").stderr
    check(project)
    assert "conflict" not in output
    assert set(status(project)) == {
        ".copier-answers.yml",
        *EDITED,
        "docs/unedited.md",
        "src/shop/production/__init__.py",
    }


def test_a_tracked_file_in_the_global_ignore_file_is_updated(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ignored").write_text("AGENTS.md\ndocs/\n", "utf-8")
    configure(monkeypatch, "core.excludesFile", str(tmp_path / "ignored"))
    update(project, "2.0.0")
    check(project)


def test_line_endings_that_the_owner_has_committed_stay(project: Path) -> None:
    (project / ".gitattributes").write_text("* -text\n", "utf-8")
    for path in ("docs/page.md", "docs/unedited.md"):
        content = (project / path).read_bytes()
        (project / path).write_bytes(content.replace(b"\n", b"\r\n"))
    commit(project)
    output = update(project, "2.0.0").stderr
    assert (project / "docs/page.md").read_bytes() == MERGED.replace("\n", "\r\n").encode()
    assert "conflict" not in output


def test_a_file_behind_a_symbolic_link_is_updated(project: Path) -> None:
    (project / "docs").rename(project / "pages")
    (project / "docs").symlink_to("pages")
    commit(project)
    update(project, "2.0.0")
    check(project)
    assert (project / "docs").is_symlink()
    assert (project / "pages/page.md").read_text("utf-8") == MERGED


def test_a_link_in_place_of_a_file_stays(project: Path) -> None:
    (project / "AGENTS.md").rename(project / "CLAUDE.md")
    (project / "AGENTS.md").symlink_to("CLAUDE.md")
    commit(project)
    output = update(project, "2.0.0").stderr
    assert os.readlink(project / "AGENTS.md") == "CLAUDE.md"
    assert "The first." in (project / "CLAUDE.md").read_text("utf-8")
    assert "left         AGENTS.md, which is a symbolic link of yours" in output


def test_a_mode_that_the_owner_changed_stays(project: Path) -> None:
    for path in ("docs/unedited.md", "docs/page.md"):
        (project / path).chmod(0o755)
    commit(project)
    update(project, "2.0.0")
    check(project)
    assert [(project / path).stat().st_mode & 0o111 for path in ("docs/unedited.md", "docs/page.md")] == [0o111, 0o111]


def test_a_file_of_the_owner_at_the_path_of_a_new_file_is_a_conflict(template: SmallTemplate, tmp_path: Path) -> None:
    made = SmallTemplate(tmp_path / "more")
    made.release("1.0.0", OLD)
    made.release("2.0.0", {**NEW, "docs/mine.md": "# Theirs\n", "docs/same.md": "# Same\n"})
    project = made.copy("1.0.0", tmp_path / "project")
    write(project, {"docs/mine.md": "# Mine\n", "docs/same.md": "# Same\n"})
    commit(project)
    output = update(project, "2.0.0").stderr
    text = (project / "docs/mine.md").read_text("utf-8")
    assert text == "<<<<<<< before updating\n# Mine\n=======\n# Theirs\n>>>>>>> after updating\n"
    assert "conflict     docs/mine.md: in 1 place" in output
    assert "docs/same.md" not in status(project)


def test_files_that_become_user_owned_stay(tmp_path: Path) -> None:
    made = SmallTemplate(tmp_path / "template")
    made.release("1.0.0", OLD)
    edit(made.template / "copier.yml", "    /README.md\n", "    /README.md\n    /AGENTS.md\n    /docs/unedited.md\n")
    made.release("2.0.0", NEW)
    project = made.copy("1.0.0", tmp_path / "project")
    edit(project / "AGENTS.md", "First.", "The first.")
    commit(project)
    output = update(project, "2.0.0").stderr
    assert (project / "AGENTS.md").read_text("utf-8") == PAGE.replace("First.", "The first.")
    assert (project / "docs/unedited.md").read_text("utf-8") == PAGE
    assert "removed" not in output


def test_files_that_the_new_version_excludes_are_removed(tmp_path: Path) -> None:
    """Copier leaves those that the new settings exclude, edited or not."""
    made = SmallTemplate(tmp_path / "template")
    made.release("1.0.0", OLD)
    edit(
        made.template / "copier.yml",
        "    {%- if not extras %}\n",
        "    docs/page.md\n    AGENTS.md\n    {%- if not extras %}\n",
    )
    made.release("2.0.0", NEW)
    project = made.copy("1.0.0", tmp_path / "project")
    edit(project / "AGENTS.md", "First.", "The first.")
    commit(project)
    output = update(project, "2.0.0").stderr
    assert not (project / "AGENTS.md").exists()
    assert not (project / "docs/page.md").exists()
    assert "removed      AGENTS.md, which you had edited" in output
    assert "docs/page.md" not in output


# --- What is rejected before anything has happened -----------------------------------------------------------------


def rejected(project: Path) -> str:
    """Commit, and return what an update says that fails, and that changes nothing."""
    commit(project)
    return rejection(project, "2.0.0")


def rejection(project: Path, version: str) -> str:
    """What an update of a committed project says that fails, and that changes nothing."""
    before = files(project)
    done = copier("update", "--trust", "--defaults", f"--vcs-ref={version}", cwd=project)
    assert done.returncode != 0
    assert files(project) == before
    _, found, output = done.stderr.partition("\nFAILED to update, and nothing has changed: ")
    assert found, done.stderr
    assert "Traceback" not in output
    return output


def test_a_package_that_was_renamed_by_hand_is_rejected(project: Path) -> None:
    (project / "src/shop").rename(project / "src/store")
    output = rejected(project)
    assert "src/shop is missing, the package that .copier-answers.yml records" in output
    assert "uvx copier update --trust --defaults --vcs-ref=:current: --data package_name=NEW" in output


def test_a_package_that_is_not_recorded_is_rejected(project: Path) -> None:
    edit(project / ".copier-answers.yml", "package_name: shop\n", "")
    assert ".copier-answers.yml has no package_name" in rejected(project)


def test_a_folder_at_the_path_of_a_file_is_rejected(project: Path) -> None:
    (project / "AGENTS.md").unlink()
    write(project, {"AGENTS.md/mine.md": "Mine.\n"})
    assert "AGENTS.md is a folder, and the new version has a file of that name" in rejected(project)


def test_a_link_out_of_the_project_is_rejected(project: Path, tmp_path: Path) -> None:
    (project / "docs").rename(tmp_path / "docs")
    (project / "docs").symlink_to("../docs")
    assert "is behind a symbolic link to a place outside the project" in rejected(project)


def test_another_generated_package_is_left_alone(template: SmallTemplate, project: Path, tmp_path: Path) -> None:
    """The package is the one that the answers record, not the first below src/."""
    other = template.copy("1.0.0", tmp_path / "other", package_name="another")
    shutil.copytree(other / "src/another", project / "src/another")
    write(project, {"src/shop/tools/mine.py": "MINE = 1\n"})
    commit(project)
    update(project, "2.0.0")
    check(project)
    assert not [path for path in status(project) if "another" in path or "mine" in path]


# --- Files that repeat themselves -----------------------------------------------------------------------------------

BLOCKS = [(f"b{number}", tuple(range(7))) for number in range(9)]
MIDDLE = {
    "docker-compose.yml": (compose, "init: true"),
    "ci.yml": (workflow, "run: step 3"),
    "dashboard.json": (dashboard, '"member3": true'),
    "settings.toml": (tables, "option3 = true"),
    "module.py": (module, "call(3)"),
    "page.md": (page, "Point 3."),
}
"""By path: what makes the file, and a line in the middle of each block."""


def with_edit(path: str, text: str, block: str = "b7") -> str:
    """A file with an edit in a block."""
    lines, line = text.split("\n"), MIDDLE[path][1]
    at = next(number for number, content in enumerate(lines) if re.search(rf"\b{block}\b", content))
    while line not in lines[at]:
        at += -1 if path.endswith(".json") else 1
    lines[at] = lines[at].replace("true", "mine") if "true" in line else f"{lines[at]} # mine"
    return "\n".join(lines)


def test_an_edit_of_one_block_stays_in_it(tmp_path: Path) -> None:
    """Seven lines are the same in all blocks, and new blocks stand before: Copier would patch a neighbour."""
    made = SmallTemplate(tmp_path / "template")
    made.release("1.0.0", {path: make(BLOCKS) for path, (make, _) in MIDDLE.items()} | OLD)
    new = [("a1", BLOCKS[0][1]), ("a2", BLOCKS[0][1]), *BLOCKS[:6], *BLOCKS[7:]]
    made.release("2.0.0", {path: make(new) for path, (make, _) in MIDDLE.items()} | NEW)
    project = made.copy("1.0.0", tmp_path / "project")
    for path in MIDDLE:
        (project / path).write_text(with_edit(path, (project / path).read_text("utf-8")), "utf-8")
    commit(project)
    update(project, "2.0.0")
    fresh = made.copy("2.0.0", tmp_path / "fresh")
    for path in MIDDLE:
        assert (project / path).read_text("utf-8") == with_edit(path, (fresh / path).read_text("utf-8")), path


# --- Deleted folders and changed names --------------------------------------------------------------------------


def test_a_folder_that_the_owner_deleted_stays_deleted(tmp_path: Path) -> None:
    """Also where a later version has new files in it, and not where the owner has kept one."""
    made = SmallTemplate(tmp_path / "template")
    made.release("1.0.0", OLD | {"ops/grafana/one.json": "{}\n", "ops/rules/one.yml": "a: 1\n"})
    later = {
        "ops/grafana/two.json": "{}\n",
        "ops/rules/two.yml": "b: 1\n",
        "ops/README.md": "# Ops\n",
        "more/new.md": "\n",
    }
    made.release("2.0.0", NEW | {"ops/grafana/one.json": "{}\n", "ops/rules/one.yml": "a: 1\n"} | later)
    project = made.copy("1.0.0", tmp_path / "project")
    shutil.rmtree(project / "ops/grafana")
    commit(project)
    output = update(project, "2.0.0").stderr
    assert not (project / "ops/grafana").exists()
    assert "left out     ops/grafana/two.json, since you had deleted ops/grafana/" in output
    assert {path for path in later if (project / path).exists()} == {path for path in later if "grafana" not in path}


def test_a_changed_slug_is_applied_and_remaining_mentions_are_listed(tmp_path: Path) -> None:
    made = SmallTemplate(tmp_path / "template")
    config = made.template / "copier.yml"
    edit(config, "extras:\n", "project_slug:\n  type: str\n  default: my-shop\n\nextras:\n")
    slug = {"pyproject.toml.jinja": '[project]\nname = "{{ project_slug }}"\nversion = "0"\n\n[tool.mine]\n'}
    made.release("1.0.0", OLD | slug | {"README.md.jinja": "uv run {{ project_slug }}\n"})
    made.release("2.0.0", NEW | slug | {"README.md.jinja": "uv run {{ project_slug }}\n"})
    project = made.copy("1.0.0", tmp_path / "project")
    edit(project / "pyproject.toml", 'version = "0"', 'version = "7"')
    write(project, {"deploy.sh": "docker run my-shop\ndocker run my-shop-2\n", "src/shop/tools/mine.py": "# my-shop\n"})
    commit(project)
    output = update(project, "2.0.0", "--data", "project_slug=store").stderr
    assert '[project]\nname = "store"\nversion = "7"\n' in (project / "pyproject.toml").read_text("utf-8")
    _, _, listed = output.partition("by hand      ")
    lines = [line.strip() for line in listed.splitlines()[1:] if line.startswith(" " * 15)]
    assert lines == ["README.md:1: uv run my-shop", "deploy.sh:1: docker run my-shop"]
