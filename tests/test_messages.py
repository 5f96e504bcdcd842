"""Messages for a person: what is wrong and what to do, whatever is missing, too old, changed or broken."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from copier import run_copy

from .support import DEFAULT, OWNERSHIP, ROOT, copier, interview, run, uv
from .test_hook import steps, without_uv
from .workshop import Workshop, commit, git

PROGRAMS = [ROOT / "with_uv.py", *sorted((ROOT / "hooks").glob("*.py"))]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, small_template: Path) -> Workshop:
    return Workshop.of(small_template, tmp_path_factory.mktemp("messages"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, small_template: Path) -> Path:
    """A project without an environment, which no test changes."""
    path = tmp_path_factory.mktemp("rendered") / "weather-station"
    run_copy(str(small_template), path, data=DEFAULT, defaults=True, skip_tasks=True, quiet=True)
    git("init", "--quiet", cwd=path)
    commit(path)
    return path


@pytest.fixture
def project(rendered: Path, tmp_path: Path) -> Path:
    """A committed project without an environment."""
    return Path(shutil.copytree(rendered, tmp_path / "weather-station"))


def last_line(done: CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def hook(project: Path, operation: str, **environment: str) -> CompletedProcess[str]:
    program = ROOT / "hooks" / "post_generate.py"
    return run(sys.executable, program, operation, project, cwd=project, **environment)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.name))
def test_a_python_too_old_can_read_the_program_far_enough_to_say_so(program: Path) -> None:
    ast.parse(program.read_text("utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("program", "arguments", "version", "line"),
    [
        ("with_uv.py", ["--version"], (3, 10, 13), "with_uv.py: Python 3.11 or later is needed; this is 3.10.13"),
        ("hooks/post_generate.py", ["update"], (3, 9, 18), "post_generate.py: Python 3.10 or later is needed; this is"),
    ],
)
def test_a_python_too_old_is_named(
    tmp_path: Path, program: str, arguments: list[str], version: tuple[int, ...], line: str
) -> None:
    number = ".".join(map(str, version))
    code = (
        f"import runpy, sys; sys.argv = {['x', *arguments]}; sys.version_info = {version}; sys.version = '{number} x'\n"
        f"runpy.run_path({str(ROOT / program)!r}, run_name='__main__')"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert line in last_line(done)
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_copier_too_old_says_which_is_needed(workshop: Workshop, tmp_path: Path) -> None:
    code = (
        "import copier._template, packaging.version\n"
        "copier._template.copier_version = lambda: packaging.version.Version('9.18.2')\n"
        "from copier.__main__ import CopierApp\nCopierApp.run()"
    )
    done = run(sys.executable, "-c", code, "copy", "-T", "--defaults", workshop.template, "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "requires Copier version >= 9.19, while your version of Copier is 9.18.2" in last_line(done)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_git_the_project_is_made_and_says_that_it_cannot_be_updated(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    arguments = ("copy", "-T", "--defaults", str(workshop.template), "weather-station")
    done = copier(*arguments, cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert done.returncode == 0
    assert "This project cannot be updated: git is missing on this machine" in done.stderr
    assert "Commit the project to git" not in done.stderr


@pytest.mark.slow
def test_without_git_a_url_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    arguments = ("copy", "-T", "--defaults", "https://example.com/template.git", "x")
    done = copier(*arguments, cwd=tmp_path, PATH=str(tmp_path / "bin"))
    assert done.returncode != 0
    assert "Local template must be a directory" in last_line(done)


@pytest.mark.slow
def test_with_git_the_project_says_to_commit_it(workshop: Workshop, tmp_path: Path) -> None:
    done = copier("copy", "-T", "--defaults", str(workshop.template), "weather-station", cwd=tmp_path)
    assert done.returncode == 0
    assert "Commit the project to git now" in done.stderr
    assert "cannot be updated" not in done.stderr


@pytest.mark.slow
def test_a_repository_out_of_reach_is_named_with_the_reason(tmp_path: Path) -> None:
    done = copier("copy", "-T", "--defaults", "https://127.0.0.1:9/template.git", "x", cwd=tmp_path)
    assert done.returncode != 0
    assert "unable to access 'https://127.0.0.1:9/template.git/'" in last_line(done)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_changes_that_are_not_committed_stop_an_update(workshop: Workshop) -> None:
    project = workshop.copy("dirty")
    (project / "README.md").write_text("half done")
    done = copier("update", "--trust", "--defaults", cwd=project)
    assert done.returncode == 1
    assert "Please commit or stash your local changes" in last_line(done)
    assert (project / "README.md").read_text() == "half done"


def test_without_a_python_that_is_new_enough_the_command_for_later_is_named(project: Path, tmp_path: Path) -> None:
    (tmp_path / "pythons").mkdir()
    none = {
        "UV_PYTHON_INSTALL_DIR": str(tmp_path / "pythons"),
        "UV_PYTHON_PREFERENCE": "only-managed",
        "UV_PYTHON_DOWNLOADS": "never",
    }
    done = hook(project, "copy", UV=str(uv()), **none)
    assert done.returncode == 0
    assert "WARNING: the project is complete but not checked" in done.stderr
    assert "No interpreter found" in done.stderr
    assert ">=3.11" in done.stderr
    assert f"Later: cd {project} && uv lock" in done.stderr


def test_after_an_update_without_uv_the_command_for_later_is_named(project: Path, tmp_path: Path) -> None:
    done = hook(project, "update", **without_uv(tmp_path))
    assert done.returncode == 0
    assert "WARNING: the project is updated but not checked: uv is not installed" in done.stderr
    assert f"Later: cd {project} && uv lock" in done.stderr


def stand_in_for_uv(directory: Path, fails_on: str) -> Path:
    """Write a uv that does nothing, and fails on one subcommand."""
    program = directory / "uv"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nif sys.argv[1] == {fails_on!r}:\n    sys.exit('RuntimeError: on purpose')\n",
        "utf-8",
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_a_server_that_an_update_broke_is_the_last_message(project: Path, tmp_path: Path) -> None:
    """Copier ends with status 0 in any case."""
    done = hook(project, "update", UV=str(stand_in_for_uv(tmp_path, fails_on="run")))
    assert done.returncode == 0
    assert steps(done)["smoke test"] == "failed"
    _, _, message = done.stderr.partition("FAILED, the update is in your project, and this is left to do:")
    assert "RuntimeError: on purpose" in message
    assert "To repeat it: cd" in message
    assert "Updated." not in done.stderr
    assert hook(project, "update", UV=str(stand_in_for_uv(tmp_path, "run")), CI="1").returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_after_an_update_that_works_the_next_step_is_named(project: Path, tmp_path: Path) -> None:
    done = hook(project, "update", UV=str(stand_in_for_uv(tmp_path, fails_on="")))
    assert done.returncode == 0
    assert last_line(done) == "Updated. Look at the change with git diff, run uv run pytest, then commit."


def test_conflicts_are_the_last_message_with_their_files_and_two_ways_to_continue(project: Path) -> None:
    (project / "pyproject.toml").write_text("<<<<<<< before updating\n=======\n>>>>>>> after updating\n", "utf-8")
    (project / "README.md.rej").write_text("a hunk", "utf-8")
    done = hook(project, "update")
    assert done.returncode == 0
    _, _, message = done.stderr.partition("FAILED, the update is in your project, and this is left to do:")
    assert "The update and your edits meet in:\n\n    README.md.rej\n    pyproject.toml\n" in message
    assert message.endswith("Or go back to your last commit: git reset --hard && git clean -fd\n\n")
    assert "Updated." not in done.stderr


def test_a_conflict_in_the_answers_themselves_is_one_too(project: Path) -> None:
    answers = project / "src" / "weather_station" / "production" / "answers.json"
    text = answers.read_text("utf-8")
    answers.write_text(f"<<<<<<< before updating\n{text}=======\n{text}>>>>>>> after updating\n", "utf-8")
    done = hook(project, "update")
    assert "meet in:\n\n    src/weather_station/production/answers.json\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_copier_prints_nothing_after_an_update() -> None:
    """It would come after the hook's result, whatever that is."""
    assert "_message_after_update" not in interview()


def test_the_message_before_an_update_names_all_that_is_the_users() -> None:
    message = interview()["_message_before_update"]
    paths = [pattern.removesuffix("**") for pattern in OWNERSHIP["user"]]
    assert [path for path in paths if path not in message] == []


@pytest.mark.parametrize("name", [name for name in interview() if name.startswith("_message_")])
def test_a_message_fits_a_wide_terminal(name: str) -> None:
    assert max(map(len, interview()[name].splitlines())) <= 120


@pytest.mark.slow
def test_an_update_that_is_not_quiet_gets_to_its_end(workshop: Workshop) -> None:
    """Copier renders the message before an update when no answer is known yet."""
    project = workshop.copy("loud")
    done = copier("update", "--trust", "--defaults", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Your own files" in done.stderr
