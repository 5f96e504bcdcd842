"""The hook, through the real command line of Copier: what it makes, what it says, and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from post_generate import Hook

from .conftest import Renderings
from .support import DEFAULT, MADE_BY_THE_HOOK, copier, copy_template, files, path_with_uv, run, uv

pytestmark = pytest.mark.slow

STEPS = ["uv", "lock file", "environment", ".env", "lint", "format", "smoke test"]
STEP = re.compile(r"^  (\S.*?) +(\d+\.\d) s  (ok|failed)$", re.MULTILINE)
NO_NETWORK = {
    "UV_INDEX_URL": "http://127.0.0.1:9/simple",
    "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
    "UV_NO_CONFIG": "1",
}


def copy(template: Path, directory: Path, *options: str, **environment: str) -> CompletedProcess[str]:
    """`copier copy --trust --defaults` of the default project into `directory`/project."""
    data = [part for name, value in DEFAULT.items() for part in ("-d", f"{name}={value}")]
    arguments = ["--trust", "--defaults", "--quiet", *options, *data, str(template), "project"]
    return copier("copy", *arguments, cwd=directory, **environment)


def steps(done: CompletedProcess[str]) -> dict[str, str]:
    return {name: state for name, _, state in STEP.findall(done.stderr)}


def tracked(project: Path) -> dict[str, bytes]:
    """What git would take of a project."""
    if not (project / ".git").exists():
        run("git", "init", "--quiet", cwd=project)
    listed = run("git", "ls-files", "-z", "--others", "--exclude-standard", cwd=project).stdout
    return {name: (project / name).read_bytes() for name in listed.split("\0") if name}


@pytest.fixture
def own_template(tmp_path: Path) -> Path:
    """A copy of the template that a test may break."""
    directory = tmp_path / "template"
    directory.mkdir()
    copy_template(directory)
    return directory


@pytest.mark.parametrize(("variant", "made"), [("default", True), ("minimal", False)])
def test_a_project_gets_an_environment_file_if_there_are_secrets(
    renderings: Renderings, variant: str, made: bool
) -> None:
    rendering = renderings[variant]
    hook = Hook(rendering.first)
    assert (b"=<random>" in rendering.files[".env.example"] or b":<random>" in rendering.files[".env.example"]) == made
    assert (".env" in [step.name for step in hook.steps("copy")]) == made
    assert ("--init-env" in hook.later()) == made


@pytest.mark.release  # the README's first commands, in the acceptance set, run the hook as well
def test_a_new_project_is_set_up_and_tested(template: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    done = copy(template, tmp_path)
    project = tmp_path / "project"
    assert done.returncode == 0, done.stderr
    assert steps(done) == dict.fromkeys(STEPS, "ok"), done.stderr
    figure("hook: " + ", ".join(f"{name} {seconds} s" for name, seconds, _ in STEP.findall(done.stderr)))
    figure(f"hook {re.findall(r'in all +[0-9.]+ s', done.stderr)[0]}")
    if os.name == "posix":
        assert stat.S_IMODE((project / ".env").stat().st_mode) == 0o600
    assert not re.search("[=:]<random>", (project / ".env").read_text("utf-8"))

    version = run(uv(), "run", "weather-station", "--version", cwd=project, UV_OFFLINE="1")
    assert (version.returncode, version.stdout) == (0, "weather-station 0.1.0\n")

    skipped = copier(
        "copy", "--skip-tasks", "--defaults", "-d", "project_name=Weather Station", str(template), "plain", cwd=tmp_path
    )
    assert skipped.returncode == 0, skipped.stderr
    made = tracked(project)
    assert made.pop("uv.lock")
    assert made == tracked(tmp_path / "plain") == files(tmp_path / "plain")
    assert [name for name in MADE_BY_THE_HOOK if (tmp_path / "plain" / name).exists()] == []


def test_without_network_the_project_stays_and_the_command_is_named(template: Path, tmp_path: Path) -> None:
    done = copy(template, tmp_path, UV_CACHE_DIR=str(tmp_path / "cache"), **NO_NETWORK)
    assert done.returncode == 0, done.stderr
    assert steps(done) == {"uv": "ok", "lock file": "failed"}
    assert "WARNING: the project is complete but not checked" in done.stderr
    assert "FAILED" not in done.stderr
    assert f"Later: cd {tmp_path / 'project'} && uv lock && uv sync" in done.stderr
    assert (tmp_path / "project" / "pyproject.toml").exists()


def test_without_uv_the_project_stays_and_the_command_is_named(template: Path, tmp_path: Path) -> None:
    done = copy(template, tmp_path, **without_uv(tmp_path))
    assert done.returncode == 0, done.stderr
    assert steps(done) == {"uv": "failed"}
    assert "uv is not installed (https://docs.astral.sh/uv/)" in done.stderr
    assert f"Later: cd {tmp_path / 'project'} && uv lock && uv sync" in done.stderr
    assert (tmp_path / "project" / "pyproject.toml").exists()


@pytest.mark.parametrize("variable", ["CI", pytest.param("MCP_TEMPLATE_STRICT", marks=pytest.mark.release)])
def test_on_ci_and_in_strict_mode_a_problem_ends_with_status_1(template: Path, tmp_path: Path, variable: str) -> None:
    environment = without_uv(tmp_path) | {variable: "1"}
    assert copy(template, tmp_path, "--no-cleanup", **environment).returncode != 0
    assert (tmp_path / "project" / "pyproject.toml").exists()


def without_uv(directory: Path) -> dict[str, str]:
    """An environment in which git is all there is."""
    folder = directory / "bin"
    folder.mkdir()
    git = shutil.which("git")
    assert git
    (folder / Path(git).name).symlink_to(git)
    return {"PATH": str(folder), "UV": ""}


def test_a_server_that_does_not_work_is_reported_with_evidence_and_kept(own_template: Path, tmp_path: Path) -> None:
    server = own_template / "template" / "src" / "{{ package_name }}" / "server.py"
    server.write_text(server.read_text("utf-8") + '\n\nimport os\nraise RuntimeError("broken on purpose")\n', "utf-8")
    done = copy(own_template, tmp_path)
    project = tmp_path / "project"
    assert done.returncode == 0, done.stderr
    assert steps(done) == dict.fromkeys(STEPS, "ok") | dict.fromkeys(["lint", "format", "smoke test"], "failed")
    assert "F401" in done.stderr
    assert "RuntimeError: broken on purpose" in done.stderr
    command = re.findall(r"To repeat it: (cd .*)", done.stderr)[-1]
    again = run("sh", "-c", command, cwd=tmp_path, PATH=path_with_uv())
    assert again.returncode != 0
    assert "broken on purpose" in again.stdout + again.stderr
    assert (project / ".venv").exists()


def test_an_update_that_conflicts_names_the_file(own_template: Path, tmp_path: Path) -> None:
    meter = "src/weather_station/production/observe/meter.py"
    git_all(own_template, "1.0.0")
    project = tmp_path / "project"
    assert copy(own_template, tmp_path, "--skip-tasks").returncode == 0
    write_first_line(project / meter, '"""Mine."""')
    git_all(project)
    write_first_line(
        own_template / "template" / meter.replace("weather_station", "{{ package_name }}"), '"""Theirs."""'
    )
    git_all(own_template, "1.1.0")

    done = copier("update", "--trust", "--defaults", "--quiet", cwd=project)
    assert done.returncode == 0, done.stderr
    assert steps(done) == {"conflicts": "failed"}
    assert "The update conflicts with your edits in:" in done.stderr
    assert re.search(rf"^    {meter}$", done.stderr, re.MULTILINE)
    assert '"""Mine."""' in (project / meter).read_text("utf-8")


def git_all(directory: Path, tag: str = "") -> None:
    """Commits everything, as a first commit where there is none, and tags it."""
    commands = [["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "change"]]
    for command in [*commands, *([["tag", tag]] if tag else [])]:
        done = run("git", *command, cwd=directory)
        assert done.returncode == 0, done.stderr


def write_first_line(path: Path, line: str) -> None:
    _, _, rest = path.read_text("utf-8").partition("\n")
    path.write_text(f"{line}\n{rest}", "utf-8")


def test_the_hook_imports_the_standard_library_only(template: Path) -> None:
    """Copier needs Python 3.10, and its environment has none of the project's libraries."""
    source = (template / "hooks" / "post_generate.py").read_text("utf-8")
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported <= sys.stdlib_module_names
