"""Messages for people: each says what is wrong and what to do."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from copier import run_copy
from post_generate import GO_BACK, REVIEW

from .small_template import write
from .support import DEFAULT, OWNERSHIP, ROOT, copier, interview, run, uv
from .template_repository import TemplateRepository, commit, git
from .test_hook import steps, without_uv

PROGRAMS = [ROOT / "with_uv.py", *sorted((ROOT / "hooks").glob("*.py"))]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, small_template: Path) -> TemplateRepository:
    return TemplateRepository.from_folder(small_template, tmp_path_factory.mktemp("messages"))


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
def test_an_old_python_can_parse_the_program(program: Path) -> None:
    ast.parse(program.read_text("utf-8"), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("program", "arguments", "version", "line"),
    [
        ("with_uv.py", ["--version"], (3, 10, 13), "with_uv.py: Python 3.11 or later is needed; this is 3.10.13"),
        ("hooks/post_generate.py", ["update"], (3, 9, 18), "post_generate.py: Python 3.10 or later is needed; this is"),
    ],
)
def test_a_python_that_is_too_old_is_reported(
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
def test_a_copier_that_is_too_old_is_reported(repository: TemplateRepository, tmp_path: Path) -> None:
    code = (
        "import copier._template, packaging.version\n"
        "copier._template.copier_version = lambda: packaging.version.Version('9.18.2')\n"
        "from copier.__main__ import CopierApp\nCopierApp.run()"
    )
    done = run(sys.executable, "-c", code, "copy", "-T", "--defaults", repository.template, "x", cwd=tmp_path)
    assert done.returncode == 1
    assert "requires Copier version >= 9.19, while your version of Copier is 9.18.2" in last_line(done)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_git_the_project_is_made_and_says_that_it_cannot_be_updated(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    arguments = ("copy", "-T", "--defaults", str(repository.template), "weather-station")
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
def test_with_git_the_project_says_to_commit_it(repository: TemplateRepository, tmp_path: Path) -> None:
    done = copier("copy", "-T", "--defaults", str(repository.template), "weather-station", cwd=tmp_path)
    assert done.returncode == 0
    assert "Commit the project to git now" in done.stderr
    assert "git init && git add --all && git commit" in done.stderr
    assert "cannot be updated" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--trust",), ("--trust", "-q"), ("-T",)])
def test_a_copy_says_what_to_do_next(tmp_path: Path, options: tuple[str, ...]) -> None:
    repository = TemplateRepository.from_working_tree(tmp_path / "source", "print(sys.argv[-1], file=sys.stderr)")
    done = copier("copy", *options, "--defaults", str(repository.template), "weather-station", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("--skip-tasks" in done.stderr) is ("-T" in options)
    assert done.stderr.count("is in weather-station.") == 1
    assert done.stderr.count("    git init && git add --all && git commit") == 1
    assert ("Copying from template" in done.stderr) is ("-q" not in options)


@pytest.mark.slow
def test_a_repository_out_of_reach_is_named_with_the_reason(tmp_path: Path) -> None:
    done = copier("copy", "-T", "--defaults", "https://127.0.0.1:9/template.git", "x", cwd=tmp_path)
    assert done.returncode != 0
    assert "unable to access 'https://127.0.0.1:9/template.git/'" in last_line(done)
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_changes_that_are_not_committed_stop_an_update(repository: TemplateRepository) -> None:
    project = repository.copy("dirty")
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
def test_a_broken_server_is_the_last_message_of_an_update(project: Path, tmp_path: Path) -> None:
    """Copier ends with status 0 in any case."""
    write(project, {"tests/test_smoke.py": ""})
    done = hook(project, "update", UV=str(stand_in_for_uv(tmp_path, fails_on="run")))
    assert done.returncode == 0
    assert steps(done)["smoke test"] == "failed"
    _, _, message = done.stderr.partition("FAILED, the update is in your project, and this remains to be done:")
    assert "RuntimeError: on purpose" in message
    assert "To repeat it: cd" in message
    assert hook(project, "update", UV=str(stand_in_for_uv(tmp_path, "run")), CI="1").returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_after_an_update_that_works_the_next_step_is_named(project: Path, tmp_path: Path) -> None:
    done = hook(project, "update", UV=str(stand_in_for_uv(tmp_path, fails_on="")))
    assert done.returncode == 0
    assert done.stderr.endswith(
        f"Review the update, and commit it:\n{REVIEW}\nOr go back to your last commit: {GO_BACK}\n"
    )


def conflict(project: Path, path: str) -> None:
    """Leave a file as a merge does that found both sides changed."""
    text = (project / path).read_text("utf-8") if (project / path).exists() else ""
    write(project, {path: f"<<<<<<< before updating\n{text}=======\n{text}>>>>>>> after updating\n"})
    name = git("hash-object", "-w", path, cwd=project).strip()
    entries = "".join(f"100644 {name} {stage}\t{path}\n" for stage in (1, 2, 3))
    command = ["git", "update-index", "--index-info"]
    subprocess.run(command, cwd=project, input=f"0 {'0' * 40}\t{path}\n{entries}", text=True, check=True)


def test_conflicts_are_the_last_message_with_their_files_and_two_ways_to_continue(project: Path) -> None:
    conflict(project, "pyproject.toml")
    conflict(project, "tests/test_ö.py")
    write(project, {"tests/fixture.rej": "mine", "docs/fixture.md": "<<<<<<< before updating\n"})
    done = hook(project, "update")
    assert done.returncode == 0
    _, _, message = done.stderr.partition("FAILED, the update is in your project, and this remains to be done:")
    assert "The update conflicts with your edits in:\n\n    pyproject.toml\n    tests/test_ö.py\n\n" in message
    assert message.endswith(f"Or go back to your last commit: {GO_BACK}\n")


HOSTILE = "a\x1b[31m\x9b2J\x07\rFORGED\u2028\u202e\x7f\nFORGED"


def is_harmless(text: str) -> bool:
    """Return whether a text neither controls a terminal nor forges a line, and has what `HOSTILE` names."""
    forged = [line for line in text.split("\n") if line.startswith("FORGED")]
    return "FORGED" in text and not forged and all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_a_name_of_a_file_is_harmless_in_a_terminal(project: Path) -> None:
    git("config", "core.protectNTFS", "false", cwd=project)
    (project / os.fsdecode(HOSTILE.encode() + b"\xff")).write_text("")
    name = git("hash-object", "-w", "pyproject.toml", cwd=project).strip().encode()
    entries = b"".join(b"100644 %s %d\t%s\xff\0" % (name, stage, HOSTILE.encode()) for stage in (1, 2, 3))
    command = ["git", "update-index", "-z", "--index-info"]
    subprocess.run(command, cwd=project, input=entries, check=True)
    done = hook(project, "update")
    assert "The update conflicts with your edits in:" in done.stderr
    assert is_harmless(done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_the_output_of_a_program_is_harmless_in_a_terminal(project: Path, tmp_path: Path) -> None:
    program = tmp_path / "uv"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.buffer.write({HOSTILE.encode()!r})\nsys.exit(1)\n")
    program.chmod(0o755)
    assert is_harmless(hook(project, "update", UV=str(program)).stderr)


def test_the_url_of_a_template_is_harmless_in_a_terminal(project: Path) -> None:
    done = run(sys.executable, ROOT / "hooks" / "moved.py", f"file:///{HOSTILE}", project, cwd=project)
    assert done.returncode == 1
    assert all(c.isprintable() or c == "\n" for c in done.stderr)


def test_a_conflict_in_answers_json_is_reported(project: Path) -> None:
    conflict(project, "src/weather_station/production/answers.json")
    done = hook(project, "update")
    assert "edits in:\n\n    src/weather_station/production/answers.json\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_copier_prints_nothing_after_an_update() -> None:
    """It would come after the hook's result, whatever that is."""
    assert "_message_after_update" not in interview()


def test_the_message_before_an_update_names_every_user_owned_file() -> None:
    message = interview()["_message_before_update"]
    paths = [pattern.removesuffix("**") for pattern in OWNERSHIP["user"]]
    assert [path for path in paths if path not in message] == []


@pytest.mark.parametrize("name", [name for name in interview() if name.startswith("_message_")])
def test_a_message_fits_a_wide_terminal(name: str) -> None:
    assert max(map(len, interview()[name].splitlines())) <= 120


@pytest.mark.slow
def test_an_update_without_quiet_completes(repository: TemplateRepository) -> None:
    """Copier renders the message before an update when no answer is known yet."""
    project = repository.copy("loud")
    done = copier("update", "--trust", "--defaults", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Your own files" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_variables_of_another_project_are_not_passed_to_uv(project: Path, tmp_path: Path) -> None:
    program = tmp_path / "uv"
    program.write_text(f"#!{sys.executable}\nimport os\nprint(*os.environ)\nraise SystemExit(1)\n", "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    kept = ("UV_CACHE_DIR", "UV_DEFAULT_INDEX", "UV_OFFLINE", "UV_PYTHON_INSTALL_DIR", "UV_INDEX_MINE_PASSWORD")
    dropped = (
        "UV_FROZEN",
        "UV_LOCKED",
        "UV_NO_DEV",
        "UV_NO_SYNC",
        "UV_PROJECT_ENVIRONMENT",
        "VIRTUAL_ENV",
        "PYTEST_ADDOPTS",
    )
    done = hook(project, "update", UV=str(program), **dict.fromkeys((*kept, *dropped), "1"))
    reached = set(done.stderr.split())
    assert set(kept) <= reached
    assert reached.isdisjoint(dropped)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
def test_without_the_tests_of_the_template_an_update_does_not_fail(project: Path, tmp_path: Path) -> None:
    assert not (project / "tests").exists(), "the small template has none"
    done = hook(project, "update", UV=str(stand_in_for_uv(tmp_path, fails_on="run")))
    assert "FAILED" not in done.stderr
    assert steps(done) == dict.fromkeys(("conflicts", "uv", "lock file", "environment"), "ok")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a first line of Unix")
@pytest.mark.parametrize(("there", "changed"), [(True, True), (True, False), (False, True)])
def test_an_update_adds_new_variables_to_an_environment_file_that_is_there(
    project: Path, tmp_path: Path, there: bool, changed: bool
) -> None:
    (package,) = (path for path in (project / "src").iterdir() if path.is_dir())
    env_file = f"src/{package.name}/production/serve/env_file.py"
    write(project, {".env.example": "HOST=\n", env_file: "", **({".env": "HOST=mine\n"} if there else {})})
    git("add", "--force", ".env.example", env_file, cwd=project)
    commit(project)
    if changed:
        write(project, {".env.example": "HOST=\nAUTH_TOKENS=\n"})
    done = hook(project, "update", UV=str(stand_in_for_uv(tmp_path, fails_on="nothing")))
    assert (steps(done).get(".env") == "ok") == (there and changed), done.stderr


# --- Where the template is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["https://ada:secret@host/t.git", "https://ghp_secret@host/t.git", "https://h/t?token=secret"]
)
def test_a_url_with_credentials_is_not_recorded(project: Path, url: str) -> None:
    edit_source(project, url)
    done = hook(project, "copy")
    assert done.returncode == 1, "Copier takes the project away"
    assert "FAILED: the template's URL has credentials" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.parametrize("url", ["https://host/t.git", "git@host:org/t.git", "ssh://git@host/t.git", "gh:org/t"])
def test_a_url_without_credentials_causes_no_message(project: Path, tmp_path: Path, url: str) -> None:
    edit_source(project, url)
    done = hook(project, "copy", UV=str(stand_in_for_uv(tmp_path, fails_on="")))
    assert "FAILED" not in done.stderr
    assert "path of this machine" not in done.stderr


def edit_source(project: Path, source: str | Path) -> None:
    answers = project / ".copier-answers.yml"
    text = "".join(line for line in answers.read_text("utf-8").splitlines(keepends=True) if "_src_path" not in line)
    answers.write_text(f"_commit: 1.0.0\n_src_path: {source}\n{text}", "utf-8")


@pytest.mark.slow
def test_a_path_of_this_machine_is_named_with_the_command_that_records_its_origin(
    project: Path, tmp_path: Path, repository: TemplateRepository
) -> None:
    """The command is tried: it looks for the project's commit there, and changes nothing where that is missing."""
    clone = tmp_path / "clone"
    git("clone", "--quiet", str(repository.template), str(clone), cwd=tmp_path)
    edit_source(project, clone)
    output = hook(project, "copy", UV=str(tmp_path / "none"), PATH=os.environ["PATH"]).stderr
    assert f"has a path of this machine, {clone}: others, and CI, cannot update from it." in output
    assert "docs/updating.md" in output, "the origin is a path too"

    git("remote", "set-url", "origin", repository.template.as_uri(), cwd=clone)
    output = hook(project, "copy", UV=str(tmp_path / "none"), PATH=os.environ["PATH"]).stderr
    (command,) = [line.partition(": ")[2] for line in output.splitlines() if "To record its origin" in line]
    moved = run("sh", "-c", command, cwd=tmp_path)
    assert moved.returncode == 0, moved.stderr
    before = (project / ".copier-answers.yml").read_text("utf-8")
    assert f"_src_path: '{repository.template.as_uri()}'\n" in before

    other = TemplateRepository.empty(tmp_path / "other").template
    for url, reason in (
        (other.as_uri(), "it has no copier.yml"),
        ((tmp_path / "none").as_uri(), "fatal: "),
        ("https://ada:secret@host/t.git", "the URL has credentials"),
    ):
        done = run(sys.executable, ROOT / "hooks" / "moved.py", url, project, cwd=tmp_path)
        assert done.returncode == 1
        assert reason in done.stderr
        assert done.stderr.startswith("FAILED, and nothing has changed: ")
        assert (project / ".copier-answers.yml").read_text("utf-8") == before
    write(other, {"copier.yml": "a: 1\n"})
    commit(other)
    done = run(sys.executable, ROOT / "hooks" / "moved.py", other.as_uri(), project, cwd=tmp_path)
    assert "it does not have 1.0.0" in done.stderr
