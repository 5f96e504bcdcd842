"""What `copier update` keeps, brings and removes. The hook is replaced by one that only writes down that it ran."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from copier import _main

from .conftest import Rendering
from .support import (
    ANSWERS_FILE,
    ROOT,
    Answers,
    copier,
    files,
    interview,
    questions,
    render_text,
    variables,
    variants,
    without_user_owned,
)
from .template_repository import TemplateRepository, commit, git, recorded

pytestmark = pytest.mark.slow

RECORDER = """\
with open({log!r}, "a", encoding="utf-8") as log:
    import json
    log.write(json.dumps([sys.argv[1], os.environ.get("STAGE"), os.getcwd()]) + "\\n")\
"""

ANSWERS_TEMPLATE = "{{ _copier_conf.answers_file }}.jinja"
SWITCHES = [name for name in questions() if name.startswith("enable_")]
FEATURES = {
    *(name for name, question in questions().items() if question["type"] == "bool"),
    *("auth", "rate_limit_backend", "telemetry_protocol"),
}
"""The answers that bring and remove files, one feature each."""


@dataclass
class Recording(TemplateRepository):
    """A workshop whose hook writes down that it ran."""

    @property
    def log(self) -> Path:
        return self.root / "hook.log"

    def runs(self) -> list[list[str | None]]:
        """The operation, the stage of a migration and the folder of each run of the hook."""
        return [json.loads(line) for line in self.log.read_text("utf-8").splitlines()] if self.log.exists() else []


@pytest.mark.parametrize(
    ("folder", "rendered"),
    [
        ("/tmp/copier._main.old_copy.ab12", "interview/update"),  # noqa: S108
        ("/tmp/copier._main.new_copy.ab12/services/shop", "interview/update"),  # noqa: S108
        ("/home/me/copier/new_copy", "template"),
    ],
)
def test_copier_renders_only_the_answers_into_its_temporary_copies(folder: str, rendered: str) -> None:
    answers_only = render_text(variables()["answers_only"]["default"], {"_copier_conf": {"dst_path": folder}})
    assert render_text(interview()["_subdirectory"], {"answers_only": answers_only == "True"}) == rendered
    source = inspect.getsource(_main.Worker._apply_update)
    assert all(f'prefix=f"{{__name__}}.{name}_copy."' in source for name in ("old", "new"))
    assert [path.name for path in (ROOT / "interview/update").iterdir()] == [ANSWERS_TEMPLATE]
    answers_file = (ROOT / "template" / ANSWERS_TEMPLATE).read_text("utf-8")
    assert (ROOT / "interview/update" / ANSWERS_TEMPLATE).read_text("utf-8") == answers_file


@pytest.fixture
def repository(tmp_path: Path) -> Recording:
    return Recording.from_working_tree(tmp_path, RECORDER.format(log=str(tmp_path / "hook.log")))


def test_the_hook_runs_once_on_copy_and_once_on_update_and_never_in_a_temporary_copy(repository: Recording) -> None:
    project = repository.copy()
    assert repository.runs() == [["copy", "task", str(project)]]
    repository.release("1.1.0")
    repository.update(project)
    assert repository.runs() == [["copy", "task", str(project)], ["update", "after", str(project)]]


@pytest.mark.release
def test_answers_that_were_never_asked_are_recorded_and_kept(repository: Recording) -> None:
    project = repository.copy(max_retries=7, python_version="3.12")
    assert recorded(project).keys() - {"_commit", "_src_path"} == questions().keys()
    repository.release("1.1.0")
    repository.update(project)
    assert (recorded(project)["max_retries"], recorded(project)["python_version"]) == (7, "3.12")
    repository.update(project, max_retries=2)
    assert (recorded(project)["max_retries"], recorded(project)["python_version"]) == (2, "3.12")


@pytest.mark.release
def test_an_answer_can_change_without_a_newer_version(repository: Recording) -> None:
    project = repository.copy()
    repository.release("1.1.0")
    options = ("--trust", "--defaults", "--vcs-ref=:current:", "--data=enable_retries=false")
    done = copier("update", *options, cwd=project)
    assert done.returncode == 0, done.stderr
    assert recorded(project)["_commit"] == "1.0.0"
    assert not (project / "src/weather_station/production/upstream/retry.py").exists()
    commit(project)
    repository.update(project)
    assert (recorded(project)["_commit"], recorded(project)["enable_retries"]) == ("1.1.0", False)


@pytest.mark.release
def test_each_feature_can_be_switched_off_and_on_again(
    repository: Recording, renderings: Mapping[str, Rendering]
) -> None:
    """One after another: the update that switches the next one brings the last one back."""
    project = repository.copy()
    first, asked = files(project), recorded(project)
    changes = {
        name: {question: value for question, value in data.items() if value != asked[question]}
        for name, data in variants().items()
        if name.startswith("default-")
    }
    changes = {name: changed for name, changed in changes.items() if changed.keys() <= FEATURES}
    assert {question for changed in changes.values() for question in changed} == FEATURES
    back: Answers = {}
    for name, changed in changes.items():
        repository.update(project, **(back | changed))
        now, fresh = without_user_owned(files(project)), without_user_owned(renderings[name].files)
        assert now.keys() == fresh.keys(), name
        assert [path for path in now if now[path] != fresh[path]] == [ANSWERS_FILE], name  # which names the commit
        back = {question: asked[question] for question in changed}
    repository.update(project, **back)
    assert files(project) == first


@pytest.mark.release
def test_all_features_can_be_switched_off_and_on_together(repository: Recording) -> None:
    project = repository.copy()
    first = files(project)
    off: Answers = dict.fromkeys(SWITCHES, False)
    repository.update(project, auth="none", **off)
    bare = files(project).keys()
    production = "src/weather_station/production"
    assert {f"{production}/inbound/auth.py", f"{production}/observe/metrics.py"} & bare == set()
    back: Answers = {name: recorded_default(name) for name in SWITCHES} | {"auth": "token"}
    repository.update(project, **back)
    assert files(project) == first


def recorded_default(name: str) -> bool:
    return name != "enable_metrics_tool"


def test_no_file_of_the_template_is_ignored_by_git(repository: Recording) -> None:
    """An ignore file under template/ would also apply to this repository, and files would be missing in projects."""
    there = {path for path in files(repository.template) if path != ".git"}
    assert set(git("ls-files", "-z", cwd=repository.template).split("\0")) - {""} == there
