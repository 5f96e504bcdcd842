"""What the template renames or removes loses nothing of its owner's: the example of hooks/migrations/README.md."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from updating.merge import merge_by_line as merge_lines

from .support import ROOT, Answers, files, owners, run
from .workshop import Workshop, commit, edit, git, recorded, update

pytestmark = pytest.mark.slow

GUARD = Path("src/weather_station/production/guard.py")
DOORMAN = GUARD.with_name("doorman.py")
OWN_LINE = "OF_MINE = 'a line of the owner'"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Version 1.0.0, the working tree; and 2.0.0, which renames and removes what the example says."""
    made = Workshop.of_the_working_tree(tmp_path_factory.mktemp("migrations"))
    template = made.template / "template"
    production = template / "src" / "{{ package_name }}" / "production"
    for old, new in ((production / "guard.py", "doorman.py"), (template / "docs" / "guard.md", "doorman.md")):
        text = old.read_text("utf-8")
        old.with_name(new).write_text(f"{text}\n# The last line of version 2.\n", "utf-8")
        old.unlink()
    (template / "docs" / "lifecycle.md").unlink()
    for path in [made.template / "copier.yml", *template.rglob("*.jinja")]:
        path.write_text(re.sub(r"\blog_level\b", "logging_level", path.read_text("utf-8")), "utf-8")
    (made.template / "hooks" / "migrations" / "v2_0_0_doorman.py").write_text(example(), "utf-8")
    made.release("2.0.0")
    return made


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "hooks/migrations/README.md").read_text("utf-8"), re.DOTALL)
    return str(code)


@pytest.fixture(scope="module")
def original(workshop: Workshop) -> Path:
    """A project of version 1 whose owner has changed what version 2 moves."""
    project = workshop.copy("original", revision="1.0.0", log_level="DEBUG")
    edit(project / GUARD, "\nimport ", f"\nimport this  # {OWN_LINE}\nimport ", count=1)
    for page in ("guard", "lifecycle"):
        path = project / "docs" / f"{page}.md"
        path.write_text(f"{OWN_LINE}\n\n{path.read_text('utf-8')}", "utf-8")
    (project / "src/weather_station/tools/mine.py").write_text("from ..production import get_logger\n", "utf-8")
    commit(project)
    return project


@pytest.fixture
def project(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "project"))


def migrate(workshop: Workshop, project: Path, stage: str, version: str = "1.0.0") -> str:
    """What the command of copier.yml says, which has to succeed."""
    program = workshop.template / "hooks" / "migrate.py"
    done = run(sys.executable, program, stage, workshop.template, version, ".copier-answers.yml", cwd=project)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_owners_edits_survive(workshop: Workshop, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    update(project, "2.0.0")
    now = files(project)
    for moved in (DOORMAN.as_posix(), "docs/doorman.md"):
        text = now[moved].decode()
        assert OWN_LINE in text
        assert text.endswith("# The last line of version 2.\n")
        assert "<<<<<<<" not in text
    assert {GUARD.as_posix(), "docs/guard.md", "docs/lifecycle.md"} & now.keys() == set()
    assert recorded(project)["logging_level"] == "DEBUG"
    assert now["src/weather_station/tools/mine.py"] == b"from ..production import logger_for\n"

    said = capfd.readouterr().err
    assert f"moved        {GUARD} is {DOORMAN} now; your edits are in it" in said
    assert (
        "removed      docs/lifecycle.md, which you had edited; git still has it: git show HEAD:./docs/lifecycle.md"
        in said
    )
    assert "docs/health.md has it now." in said

    migrate(workshop, project, "before")
    migrate(workshop, project, "after")
    assert files(project) == now, "a second run changes something"

    commit(project)
    workshop.update(project, revision="2.0.0")
    assert files(project) == now, "a second update changes something"


def test_edits_that_meet_the_templates_leave_markers(workshop: Workshop, project: Path) -> None:
    path = project / "docs" / "guard.md"
    path.write_text(path.read_text("utf-8").rstrip() + "\nThe last line of the owner.\n", "utf-8")
    commit(project)
    update(project, "2.0.0")
    text = (project / "docs" / "doorman.md").read_text("utf-8")
    assert re.findall(r"^[<>]{7} .*$", text, re.MULTILINE) == ["<<<<<<< before updating", ">>>>>>> after updating"]
    assert "The last line of the owner." in text


def test_what_nobody_had_edited_moves_without_a_word(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    project = workshop.copy("untouched", revision="1.0.0")
    workshop.update(project, revision="2.0.0")
    assert "moved  " not in capfd.readouterr().err
    updated = files(project)
    shutil.rmtree(project)
    fresh = files(workshop.copy("untouched", revision="2.0.0"))
    assert fresh == updated


def test_a_project_that_had_a_migration_does_not_get_it_again(workshop: Workshop, project: Path) -> None:
    """Later an owner may have files of the old names himself."""
    workshop.update(project, revision="2.0.0")
    (project / GUARD).write_text("MINE = 1\n", "utf-8")
    (project / "docs" / "lifecycle.md").write_text("Mine.\n", "utf-8")
    (project / "src/weather_station/tools/again.py").write_text("import get_logger\n", "utf-8")
    commit(project)
    before = files(project)
    workshop.update(project, revision="2.0.0")
    assert files(project) == before


def test_an_edited_file_whose_feature_is_switched_off_is_named(
    workshop: Workshop, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    retry = "src/weather_station/production/retry.py"
    edit(project / retry, '"""', f'"""{OWN_LINE}. ', count=1)
    commit(project)
    update(project, "1.0.0", enable_retries=False)
    said = capfd.readouterr().err
    assert f"removed      {retry}, which you had edited; git still has it" in said
    assert said.count("removed  ") == 1
    assert OWN_LINE in git("show", f"HEAD:./{retry}", cwd=project)


def test_a_commit_that_the_template_lacks_is_said(workshop: Workshop, project: Path) -> None:
    program = workshop.template / "hooks" / "migrate.py"
    done = run(sys.executable, program, "after", workshop.template, "0.0.9", ".copier-answers.yml", cwd=project)
    assert done.returncode == 1
    assert "FAILED to migrate: git ls-tree" in done.stderr
    assert "0.0.9" in done.stderr
    assert "this goes back to it: git reset --hard && git clean -fd\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("changed", [{}, {"package_name": "forecast"}], ids=["files moved", "package renamed"])
def test_the_way_back_that_the_messages_name_ends_where_the_update_began(project: Path, changed: Answers) -> None:
    before = files(project)
    for _ in range(2):  # Copier would refuse to begin again where something were left
        update(project, "2.0.0", **changed)
        assert files(project) != before
        git("reset", "--quiet", "--hard", cwd=project)
        git("clean", "--quiet", "-fd", cwd=project)
        assert files(project) == before


def test_a_package_with_a_new_name_has_all_of_its_owners_work(
    workshop: Workshop, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    package = project / "src/weather_station"
    (package / "database").mkdir()
    (package / "database/__init__.py").touch()
    (package / "database/query.sql").write_text("select 'weather_station'\n", "utf-8")
    (package / "production/__pycache__").mkdir(exist_ok=True)
    (package / "production/__pycache__/guard.pyc").write_bytes(b"")
    (package / "tools/mine.py").write_text("import weather_station.database\nimport weather_stations\n", "utf-8")
    test = project / "tests" / "test_mine.py"
    test.write_text("def test_mine():\n    from weather_station import database\n", "utf-8")
    commit(project)
    weather, seeded = (package / "tools/weather.py").read_bytes(), (project / "tests/test_tools.py").read_text("utf-8")

    update(project, "1.0.0", package_name="forecast")
    now = files(project)
    assert not package.exists()
    assert now["src/forecast/tools/weather.py"] == weather
    assert now["src/forecast/tools/mine.py"] == b"import forecast.database\nimport weather_stations\n"
    assert now["src/forecast/database/query.sql"] == b"select 'weather_station'\n"
    assert now["tests/test_mine.py"] == b"def test_mine():\n    from forecast import database\n"
    assert now["tests/test_tools.py"].decode() == seeded.replace("weather_station", "forecast")
    assert OWN_LINE in now["src/forecast/production/guard.py"].decode()
    assert b"weather_station" not in b"".join(now[path] for path in now if owners(path) == ["template"])
    said = capfd.readouterr().err
    assert f"moved        {GUARD} is src/forecast/production/guard.py now; your edits are in it" in said
    assert "renamed      src/weather_station is src/forecast now, with your files and all imports" in said
    search = re.search(r"old name: git (.*)", said)
    assert search
    found = git(*search[1].split(), cwd=project).splitlines()
    assert {line.partition(":")[0] for line in found} == {"README.md", "src/forecast/database/query.sql"}

    migrate(workshop, project, "after")
    assert files(project) == now, "a second run changes something"
    commit(project)
    workshop.update(project, "1.0.0")
    assert files(project) == now, "a second update changes something"


def test_a_package_with_a_new_name_meets_files_that_move(workshop: Workshop, project: Path) -> None:
    workshop.update(project, "2.0.0", package_name="forecast")
    assert OWN_LINE in (project / "src/forecast/production/doorman.py").read_text("utf-8")
    assert not (project / "src/weather_station").exists()


def test_what_has_its_new_place_taken_stays_and_is_named(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "src/forecast/tools").mkdir(parents=True)
    (project / "src/forecast/tools/mine.py").write_text("ANOTHER = 1\n", "utf-8")
    mine = project / "src/weather_station/tools/mine.py"
    text = mine.read_bytes()
    commit(project)
    update(project, "1.0.0", package_name="forecast")
    assert (project / "src/forecast/tools/mine.py").read_text("utf-8") == "ANOTHER = 1\n"
    assert mine.read_bytes() == text
    assert "left         src/weather_station: " in capfd.readouterr().err


def test_in_a_folder_of_a_larger_repository_edits_survive_too(
    workshop: Workshop, original: Path, tmp_path: Path
) -> None:
    project = tmp_path / "many" / "servers" / "weather"
    shutil.copytree(original, project, ignore=lambda _, names: {".git"} & set(names))
    git("init", "--quiet", cwd=tmp_path / "many")
    commit(tmp_path / "many")
    workshop.update(project, revision="2.0.0")
    assert OWN_LINE in (project / DOORMAN).read_text("utf-8")
    assert {path.name for path in (tmp_path / "many").iterdir()} == {".git", "servers"}


# --- Neighbours in pyproject.toml ----------------------------------------------------------------------------

CHANGED: dict[str, Callable[[str], list[str]]] = {
    "kept": lambda line: [line],
    "replaced": lambda line: [line + "'"],
    "removed": lambda line: [],
    "followed": lambda line: [line, line + "+"],
}
Change = st.tuples(st.booleans(), st.sampled_from(sorted(CHANGED)))
"""Which side changes a line, and how."""


@given(st.lists(Change, max_size=12))
def test_changes_of_different_lines_are_all_in_the_merge(changes: list[tuple[bool, str]]) -> None:
    def text(*sides: bool) -> list[bytes]:
        lines = [CHANGED[how if side in sides else "kept"](f"{n}") for n, (side, how) in enumerate(changes)]
        return [line.encode() for changed in lines for line in changed]

    assert merge_lines(text(), text(True), text(False)) == text(True, False)
    assert merge_lines(text(), text(False), text(True)) == text(True, False)


@pytest.mark.parametrize(
    ("mine", "theirs"), [("1x3", "1y3"), ("12a3", "12b3"), ("13", "1x3"), ("123a", "123b"), ("a123", "b123")]
)
def test_changes_of_the_same_line_are_a_conflict(mine: str, theirs: str) -> None:
    base, one, other = ([letter.encode() for letter in text] for text in ("123", mine, theirs))
    assert merge_lines(base, one, other) is None
    assert merge_lines(base, one, one) == one


def test_answers_beside_the_version_of_the_owner_do_not_conflict(project: Path) -> None:
    pyproject = project / "pyproject.toml"
    edit(pyproject, 'version = "0.1.0"', 'version = "1.4.2"')
    edit(pyproject, 'readme = "README.md"', 'license = "MIT"\nreadme = "README.md"')
    commit(project)
    update(project, "1.0.0", project_slug="forecast", project_description="What the weather will be")
    expected = [
        "[project]",
        'name = "forecast"',
        'version = "1.4.2"',
        'description = "What the weather will be"',
        'license = "MIT"',
        'readme = "README.md"',
    ]
    assert pyproject.read_text("utf-8").splitlines()[: len(expected)] == expected
    assert git("ls-files", "--unmerged", cwd=project) == ""


def test_a_line_that_both_sides_change_stays_a_conflict(project: Path) -> None:
    pyproject = project / "pyproject.toml"
    edit(pyproject, 'description = "A production MCP server"', 'description = "Mine"')
    commit(project)
    update(project, "1.0.0", project_description="What the weather will be")
    text = pyproject.read_text("utf-8")
    assert re.findall(r"^[<>]{7} .*$", text, re.MULTILINE) == ["<<<<<<< before updating", ">>>>>>> after updating"]
    assert git("ls-files", "--unmerged", cwd=project) != ""
