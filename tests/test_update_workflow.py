"""The weekly workflow of a project: its pull request, its messages, and the owner's commits, which it keeps."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import Rendering
from .ops import ACTION, distinct, load, passes
from .support import ROOT, run
from .template_repository import commit

pytestmark = pytest.mark.skipif(os.name == "nt", reason="GitHub runs the steps with bash")


WORKFLOW = ROOT / "template/.github/workflows/update.yml"
BASH = ("bash", "-eo", "pipefail", "-c")


def script(job: dict[str, Any], name: str) -> str:
    (command,) = [step["run"] for step in job["steps"] if step.get("name") == name]
    return str(command)


def test_an_update_is_passed_between_the_jobs_as_a_patch(tmp_path: Path) -> None:
    """The template's code runs without a secret; what it changed arrives complete in the job with the secret."""
    jobs = load(WORKFLOW)["jobs"]
    assert jobs["update"]["permissions"] == {"contents": "read"}
    assert set(re.findall(r"secrets\.\w+", json.dumps(jobs["update"]))) == {"secrets.TEMPLATE_READ_TOKEN"}
    assert "uvx" not in json.dumps(jobs["pull-request"])

    updating, opening = tmp_path / "updating", tmp_path / "opening"
    passes("git", "init", "--quiet", updating, cwd=tmp_path)
    for name, content in {
        "kept.txt": b"one\ntwo\n",
        "gone.txt": b"x\n",
        "run.sh": b"echo\n",
        "a.bin": bytes(256),
        ".copier-answers.yml": b"_commit: '0.1.0'\n",
    }.items():
        (updating / name).write_bytes(content)
    commit(updating)
    passes("git", "clone", "--quiet", updating, opening, cwd=tmp_path)
    outputs = tmp_path / "outputs"
    outputs.touch()
    (tmp_path / "update").mkdir()
    runner = {"RUNNER_TEMP": str(tmp_path), "GITHUB_OUTPUT": str(outputs)}
    make, apply = script(jobs["update"], "Make a patch"), script(jobs["pull-request"], "Apply the patch")

    passes(*BASH, make, cwd=updating, **runner)
    assert not outputs.read_text("utf-8"), "nothing new is no pull request"
    (updating / "kept.txt").write_text("one \r\n<<<<<<< before\ntwo", "utf-8")
    (updating / "gone.txt").unlink()
    (updating / "run.sh").chmod(0o755)
    (updating / "a.bin").write_bytes(bytes(range(256)))
    (updating / ".github/workflows").mkdir(parents=True)
    (updating / ".github/workflows/new.yml").write_text("on: push\n", "utf-8")
    passes(*BASH, make, cwd=updating, **runner)
    assert outputs.read_text("utf-8") == "changed=true\n"
    assert (tmp_path / "update/version").read_text("utf-8") == "0.1.0\n"
    passes(*BASH, apply, cwd=opening, **runner)
    made, applied = (passes("git", "write-tree", cwd=place) for place in (updating, opening))
    assert applied == made


GH = """\
import json, os, pathlib, sys
store = pathlib.Path(os.environ["STORE"])
pulls = json.loads(store.read_text()) if store.exists() else []
command, options = sys.argv[1:3], dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
if command == ["pr", "list"]:
    found = [pull for pull in pulls if pull["state"] == options["--state"]]
    print(*(pull["title"] if "select" in options["--jq"] else 1 for pull in found), sep="\\n")
elif command[0] == "pr":
    body = pathlib.Path(options["--body-file"]).read_text()
    if command[1] == "create":
        pulls.append({})
    pulls[-1] |= {"state": "open", "title": options["--title"], "body": body}
    store.write_text(json.dumps(pulls))
"""
"""A stand-in for GitHub's command: its pull requests are in a file."""


@dataclass
class Repository:
    """A bare repository, and the last steps of the workflow in fresh clones of it."""

    root: Path
    job: dict[str, Any]

    def __post_init__(self) -> None:
        passes("git", "init", "--quiet", "--bare", "--initial-branch=main", "origin", cwd=self.root)
        (self.root / "bin").mkdir()
        program = self.root / "bin" / "gh"
        program.write_text(f"#!{sys.executable}\n{GH}", "utf-8")
        program.chmod(0o755)
        clone = self.clone("first")
        (clone / "kept.txt").write_text("one\n", "utf-8")
        commit(clone)
        passes("git", "push", "--quiet", "origin", "HEAD:main", cwd=clone)

    def clone(self, name: str) -> Path:
        passes("git", "clone", "--quiet", "origin", name, cwd=self.root)
        return self.root / name

    @property
    def pulls(self) -> list[dict[str, str]]:
        return json.loads((self.root / "pulls").read_text("utf-8")) if (self.root / "pulls").exists() else []

    def close(self) -> None:
        (self.root / "pulls").write_text(json.dumps([pull | {"state": "closed"} for pull in self.pulls]), "utf-8")

    def branch(self) -> str:
        return passes("git", "show", "template-update:kept.txt", cwd=self.root / "origin")

    def run(self, name: str, version: str, text: str, update_output: str = "Updated.") -> str:
        """Bring a patch into a fresh clone, as the workflow does."""
        clone, update = self.clone(name), self.root / f"{name}-runner" / "update"
        update.mkdir(parents=True)
        (clone / "kept.txt").write_text(text, "utf-8")
        (update / "patch").write_text(passes("git", "diff", cwd=clone), "utf-8")
        passes("git", "checkout", "--quiet", ".", cwd=clone)
        (update / "version").write_text(f"{version}\n", "utf-8")
        (update / "output").write_text(update_output, "utf-8")
        runner = {"RUNNER_TEMP": str(update.parent), "STORE": str(self.root / "pulls"), "HAS_TOKEN": "true"}
        runner |= {"BASE": "main", "PATH": f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        steps = [script(self.job, step) for step in ("Apply the patch", "Open a pull request")]
        return "".join(passes(*BASH, step, cwd=clone, **runner) for step in steps)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    jobs = load(WORKFLOW)["jobs"]
    return Repository(tmp_path, jobs["pull-request"])


def test_the_pull_request_has_the_output_of_the_update_and_is_renewed(repository: Repository) -> None:
    repository.run("one", "0.2.0", "two\n", "conflict     docs/page.md: in 1 place\n  smoke test   failed")
    (pull,) = repository.pulls
    assert pull["title"] == "Update from the template to 0.2.0"
    assert "conflict     docs/page.md: in 1 place\n  smoke test   failed" in pull["body"]
    repository.run("two", "0.3.0", "three\n")
    (pull,) = repository.pulls
    assert (pull["title"], repository.branch()) == ("Update from the template to 0.3.0", "three\n")


def test_commits_that_others_have_pushed_to_the_pull_request_are_left_alone(repository: Repository) -> None:
    repository.run("one", "0.2.0", "two\n")
    owners = repository.clone("owner")
    passes("git", "switch", "--quiet", "template-update", cwd=owners)
    (owners / "kept.txt").write_text("resolved\n", "utf-8")
    commit(owners)
    passes("git", "push", "--quiet", cwd=owners)
    assert "has commits of others and is left alone" in repository.run("two", "0.3.0", "three\n")
    assert repository.branch() == "resolved\n"
    assert [pull["title"] for pull in repository.pulls] == ["Update from the template to 0.2.0"]


def test_a_closed_pull_request_stays_closed_until_the_next_release(repository: Repository) -> None:
    repository.run("one", "0.2.0", "two\n")
    repository.close()
    assert "was closed without merging" in repository.run("two", "0.2.0", "two\n")
    assert [pull["state"] for pull in repository.pulls] == ["closed"]
    repository.run("three", "0.3.0", "three\n")
    assert [pull["state"] for pull in repository.pulls] == ["closed", "open"]


@pytest.mark.parametrize(
    ("output", "status", "line"),
    [
        ("Downgrades are not supported.", 0, "::notice::This project comes from a commit after the latest release."),
        ("fatal: could not read Username", 1, "::error::The update failed, for the reason above. A private template"),
    ],
)
def test_an_update_that_cannot_be_made_says_why(tmp_path: Path, output: str, status: int, line: str) -> None:
    (tmp_path / "uvx").write_text(f"#!/bin/sh\necho '{output}'\nexit 1\n", "utf-8")
    (tmp_path / "uvx").chmod(0o755)
    jobs = load(WORKFLOW)["jobs"]
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    step = script(jobs["update"], "Update")
    done = run(*BASH, step, cwd=tmp_path, RUNNER_TEMP=str(tmp_path), PATH=path, READ_TOKEN="")
    assert done.returncode == status
    assert output in done.stdout
    assert line in done.stdout


def test_dependabot_leaves_alone_what_the_template_pins(each_rendering: Sequence[Rendering]) -> None:
    for rendering in distinct(each_rendering, ".github/"):
        folder = rendering.first / ".github"
        python, actions, *images = load(folder / "dependabot.yml")["updates"]
        assert python["versioning-strategy"] == "lockfile-only"
        workflows = [path.read_text("utf-8") for path in (folder / "workflows").glob("*.yml")]
        used = {action for text in workflows for action, _, _ in ACTION.findall(text)}
        assert {entry["dependency-name"] for entry in actions["ignore"]} == used
        assert actions["package-ecosystem"] == "github-actions"
        built = {"docker": "Dockerfile", "docker-compose": "docker-compose.yml"}
        expected = [name for name, path in built.items() if (rendering.first / path).exists()]
        assert [entry["package-ecosystem"] for entry in images] == expected
        for entry in images:  # so that only digests are left to update
            (ignored,) = entry["ignore"]
            assert ignored["dependency-name"] == "*"
            assert len(ignored["update-types"]) == 3
