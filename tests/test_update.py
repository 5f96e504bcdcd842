"""What `copier update` keeps, brings and removes. The hook is replaced by one that only writes down that it ran."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy, run_update

from .conftest import copy_template
from .support import ANSWERS_FILE, answers, files, questions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickly")]

RECORDER = """
import json, os, sys
with open({log!r}, "a", encoding="utf-8") as log:
    log.write(json.dumps([sys.argv[1], os.environ.get("STAGE"), os.getcwd()]) + "\\n")
"""

SWITCHES = [name for name in questions() if name.startswith("enable_")]


def git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(directory: Path, message: str = "change") -> None:
    git("add", "--all", cwd=directory)
    git("commit", "--quiet", "--allow-empty", "--message", message, cwd=directory)


@dataclass
class Workshop:
    """A template in git, whose releases the tests make, and projects of it."""

    template: Path
    root: Path
    log: Path

    def release(self, version: str) -> None:
        commit(self.template)
        git("tag", version, cwd=self.template)

    def copy(self, **data: Any) -> Path:
        project = self.root / "project"
        data = answers(**{"project_name": "Weather Station"} | data)
        run_copy(str(self.template), project, data=data, defaults=True, unsafe=True, quiet=True)
        git("init", "--quiet", cwd=project)
        commit(project)
        return project

    def update(self, project: Path, **data: Any) -> None:
        """Updates and commits."""
        data = answers(**data)
        run_update(project, data=data, defaults=True, unsafe=True, overwrite=True, quiet=True)
        commit(project)

    def runs(self) -> list[list[str | None]]:
        """The operation, the stage of a migration and the folder of each run of the hook."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()] if self.log.exists() else []


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    template = tmp_path / "template"
    template.mkdir()
    copy_template(template)
    log = tmp_path / "hook.log"
    (template / "hooks" / "post_generate.py").write_text(RECORDER.format(log=str(log)), "utf-8")
    git("init", "--quiet", cwd=template)
    made = Workshop(template, tmp_path, log)
    made.release("1.0.0")
    return made


def recorded(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((project / ANSWERS_FILE).read_text("utf-8"))
    return found


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new), "utf-8")


def test_the_hook_runs_once_on_copy_and_once_on_update_and_never_in_a_temporary_copy(workshop: Workshop) -> None:
    project = workshop.copy()
    assert workshop.runs() == [["copy", "task", str(project)]]
    workshop.release("1.1.0")
    workshop.update(project)
    assert workshop.runs() == [["copy", "task", str(project)], ["update", "after", str(project)]]


def test_answers_that_were_never_asked_are_recorded_and_kept(workshop: Workshop) -> None:
    project = workshop.copy(max_retries=7, python_version="3.12")
    assert recorded(project).keys() - {"_commit", "_src_path"} == questions().keys()
    workshop.release("1.1.0")
    workshop.update(project)
    assert (recorded(project)["max_retries"], recorded(project)["python_version"]) == (7, "3.12")
    workshop.update(project, max_retries=2)
    assert (recorded(project)["max_retries"], recorded(project)["python_version"]) == (2, "3.12")


def test_features_leave_and_return(workshop: Workshop) -> None:
    project = workshop.copy()
    first = files(project)
    workshop.update(project, enable_retries=False)
    gone = first.keys() - files(project).keys()
    assert "src/weather_station/production/retry.py" in gone
    assert all(Path(path).stem.removeprefix("test_") == "retry" for path in gone)
    workshop.update(project, **dict.fromkeys(SWITCHES, False), auth="none")
    bare = files(project).keys()
    assert {"src/weather_station/production/auth.py", "src/weather_station/production/metrics.py"} & bare == set()
    back = {name: recorded_default(name) for name in SWITCHES} | {"auth": "token"}
    workshop.update(project, **back)
    assert files(project) == first


def recorded_default(name: str) -> bool:
    return name != "enable_metrics_tool"


def test_an_update_brings_what_is_new_and_leaves_what_is_yours(workshop: Workshop) -> None:
    project = workshop.copy()
    tools = project / "src" / "weather_station" / "tools"
    edit(project / "README.md", "# Weather Station", "# My Weather Station")
    edit(tools / "weather.py", '"""', '"""Mine. ')
    (tools / "mine.py").write_text("MINE = True\n", "utf-8")
    (project / "CHANGELOG.md").unlink()
    commit(project)
    yours = {path: content for path, content in files(project).items() if "/tools/" in path or path == "README.md"}

    production = workshop.template / "template" / "src" / "{{ package_name }}" / "production"
    edit(production / "meter.py", '"""', '"""New. ')
    for seeded in ("README.md.jinja", "CHANGELOG.md"):
        path = workshop.template / "template" / seeded
        path.write_text(path.read_text("utf-8") + "\nNews.\n", "utf-8")
    for tool in (workshop.template / "template" / "src" / "{{ package_name }}" / "tools").glob("*.py*"):
        tool.write_text(tool.read_text("utf-8") + "\n# News.\n", "utf-8")
    workshop.release("1.1.0")
    workshop.update(project)

    now = files(project)
    assert {path: now.get(path) for path in yours} == yours
    assert "CHANGELOG.md" not in now
    assert now["src/weather_station/production/meter.py"].startswith(b'"""New. ')
    assert recorded(project)["_commit"] == "1.1.0"


def test_an_unchanged_project_becomes_what_a_new_one_is(workshop: Workshop) -> None:
    project = workshop.copy()
    edit(workshop.template / "template" / "src" / "{{ package_name }}" / "production" / "meter.py", '"""', '"""New. ')
    workshop.release("1.1.0")
    workshop.update(project)
    updated = files(project)
    shutil.rmtree(project)
    assert files(workshop.copy()) == updated


def test_git_takes_every_file_of_the_template(workshop: Workshop) -> None:
    """An ignore file under template/ would rule this repository too, and lose files on the way to the user."""
    there = {path for path in files(workshop.template) if path != ".git"}
    assert set(git("ls-files", "-z", cwd=workshop.template).split("\0")) - {""} == there
