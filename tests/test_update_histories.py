"""Generated histories of projects: edits, updates, interruptions and hidden files, in any order.

What a project has to be is known without the merge: each edit is made again, by the name of its block, in what the new
version is without it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from post_generate import GO_BACK

from .small_template import MARK, SmallTemplate, status, write
from .support import copier
from .template_repository import commit, git
from .test_migrations import update
from .test_update_safety import KILLS, shell
from .test_update_scenarios import BLOCKS, MIDDLE, NEW, OLD, rejection, with_edit

pytestmark = pytest.mark.slow

SAME = BLOCKS[0][1]
VERSIONS = {
    "1.0.0": BLOCKS,
    "2.0.0": [("a1", SAME), *BLOCKS[:6], *BLOCKS[7:]],
    "3.0.0": [("a0", SAME), ("a1", SAME), *BLOCKS[1:6], ("c1", SAME), *BLOCKS[7:]],
}
"""Blocks that are alike come, and b0 and b6 go: no edit is made there."""

EDITABLE = ("b1", "b2", "b3", "b4", "b5", "b7", "b8")
PAGES = ("docs/page.md", "docs/unedited.md", "AGENTS.md")


def files_of(version: str) -> dict[str, str]:
    made = {path: make(VERSIONS[version]) for path, (make, _) in MIDDLE.items()}
    return (OLD if version == "1.0.0" else NEW) | made


class Step(NamedTuple):
    """What happens before an update, and in it."""

    edits: Sequence[tuple[str, str]]
    """Paths and blocks."""
    deleted: Sequence[str]
    hidden: tuple[str, str] | None
    """An edit of which git shows nothing."""
    owner_files: str
    killed: str
    """Where an update is killed first: nowhere, in which stage, and whether the owner commits what is left."""


EDITS = st.tuples(st.sampled_from([*MIDDLE]), st.sampled_from(EDITABLE))
STEPS = st.builds(
    Step,
    st.lists(EDITS, max_size=6, unique=True),
    st.lists(st.sampled_from(PAGES), max_size=2, unique=True),
    st.none() | EDITS,
    st.sampled_from(["src/shop/tools/mine.py", "src/another/production/answers.json", "docs/mine.md", "x.rej"]),
    st.sampled_from(["", "", "before", "after", "after, committed", "after, committed, work on"]),
)


@dataclass
class Expected:
    """The expected state of the project, independent of the version."""

    edits: set[tuple[str, str]] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    owner_files: dict[str, str] = field(default_factory=dict)

    def check(self, project: Path, version: str) -> None:
        for path, text in files_of(version).items():
            if path in MIDDLE:
                for edited, block in self.edits:
                    text = with_edit(path, text, block) if edited == path else text
                assert (project / path).read_text("utf-8") == text, path
        assert [path for path in self.deleted if (project / path).exists()] == []
        assert {path: (project / path).read_text("utf-8") for path in self.owner_files} == self.owner_files
        assert not (project / MARK).exists()
        assert [path for path, state in status(project).items() if "U" in state] == []


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SmallTemplate:
    made = SmallTemplate(tmp_path_factory.mktemp("histories"))
    for version in VERSIONS:
        made.release(version, files_of(version), KILLS)
    return made


def edit(project: Path, path: str, block: str) -> None:
    (project / path).write_text(with_edit(path, (project / path).read_text("utf-8"), block), "utf-8")


def interrupted(project: Path, version: str, killed: str) -> None:
    """Kill an update, and undo it with the command that is printed."""
    stage, *then = killed.split(", ")
    copier("update", "--trust", "--defaults", f"--vcs-ref={version}", cwd=project, KILLED_IN=stage)
    if not then:
        shell(GO_BACK, project)
        return
    commit(project, "what is there")
    if len(then) > 1:
        write(project, {"docs/later.md": "Later.\n"})
        commit(project)
    (command,) = re.findall(r"^    (git re.*)$", rejection(project, version), re.MULTILINE)
    shell(command, project)


def run_history(template: SmallTemplate, root: Path, steps: Sequence[Step]) -> None:
    project, expected = template.copy("1.0.0", root / "project"), Expected()
    for version, step in zip([*VERSIONS][1:], steps, strict=False):
        for path, block in step.edits:
            if (path, block) not in expected.edits:
                expected.edits.add((path, block))
                edit(project, path, block)
        for path in step.deleted:
            expected.deleted.add(path)
            (project / path).unlink(missing_ok=True)
        expected.owner_files[step.owner_files] = f'"""{version}."""\n'
        write(project, {step.owner_files: expected.owner_files[step.owner_files]})
        commit(project)
        if step.killed:
            interrupted(project, version, step.killed)
        if step.hidden and step.hidden not in expected.edits:
            git("update-index", "--skip-worktree", step.hidden[0], cwd=project)
            expected.edits.add(step.hidden)
            edit(project, *step.hidden)
        update(project, version)
        expected.check(project, version)
        if step.hidden:
            git("update-index", "--no-skip-worktree", step.hidden[0], cwd=project)
        commit(project)


def test_a_history_keeps_every_edit_in_its_block(template: SmallTemplate, tmp_path: Path) -> None:
    """One that has everything; generated ones are in the release set."""
    first = Step([(path, "b7") for path in MIDDLE], ["AGENTS.md"], ("module.py", "b2"), "x.rej", "after, committed")
    second = Step([("page.md", "b1")], [], None, "src/another/production/answers.json", "after")
    run_history(template, tmp_path, [first, second])


@pytest.mark.release
def test_any_history_keeps_every_edit_in_its_block(template: SmallTemplate) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(STEPS, min_size=2, max_size=2))
    def check_history(steps: list[Step]) -> None:
        with tempfile.TemporaryDirectory(prefix="history.") as root:
            run_history(template, Path(root), steps)

    check_history()
