"""One edit at every line of every file that a version changes: none is misplaced or lost.

The merge is called as in an update, on trees that Copier rendered; some hundred of the edits go through real updates.
Where an edit belongs is known by parsers of each language (`line_places.py`), which the merge does not use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import yaml
from copier import run_copy
from updating.merge import merge

from .line_places import Place, places
from .owner_projects import change_everything
from .releases import releases
from .support import ANSWERS_FILE, DEFAULT, files, owners
from .template_repository import TemplateRepository, commit, update

pytestmark = pytest.mark.slow

NOW, NEXT = "90.0.0", "91.0.0"
MIGRATED = {"max_result_bytes": 0}
"""Answers that a migration records."""

KINDS = ("modify", "insert", "delete")
SAMPLE = ("docker-compose.yml", "pyproject.toml", "docs/auth.md")
STRIDE = 25
"""So many lines are between two edits that are merged at once; where they conflict, fewer are."""


@dataclass(frozen=True)
class Trees:
    """What the last release and two later versions make of the default answers."""

    repository: TemplateRepository
    versions: dict[str, dict[str, str]]

    def changed(self, version: str) -> Iterator[tuple[str, str, str]]:
        """Path, old text and new text of the template's files that a version changes."""
        old, new = self.versions[releases()[-1].version], self.versions[version]
        for path in sorted(old.keys() & new.keys()):
            if old[path] != new[path] and path != ANSWERS_FILE and owners(path) != ["user"]:
                yield path, old[path], new[path]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Trees:
    root = tmp_path_factory.mktemp("brute force")
    repository = TemplateRepository.empty(root)
    release = releases()[-1]
    repository.load_revision(release.commit)
    repository.release(release.version)
    repository.load_working_tree()
    repository.release(NOW)
    change_everything(repository.template)
    repository.release(NEXT)
    versions = {}
    data = DEFAULT
    for version in (release.version, NOW, NEXT):
        project = root / version
        source = str(repository.template)
        run_copy(source, project, data=data, vcs_ref=version, defaults=True, skip_tasks=True, quiet=True)
        versions[version] = {path: content.decode() for path, content in files(project).items()}
        recorded = yaml.safe_load(versions[version][ANSWERS_FILE])
        data = {name: value for name, value in recorded.items() if not name.startswith("_")} | MIGRATED
    return Trees(repository, versions)


@dataclass
class Count:
    """The number of edits by outcome."""

    merged: int = 0
    conflicts: int = 0
    far: int = 0
    """Conflicts of an edit such that the template changes no line beside it, nor beside a line that it moves."""
    unknown: int = 0
    """Edits that cannot be judged: they cause a syntax error, or move other lines."""
    wrong: list[str] = field(default_factory=list)


def edited(path: str, lines: Sequence[str], at: Sequence[int], kind: str) -> str:
    """A file with an edit at each of some lines."""
    made = list(lines)
    for line in sorted(at, reverse=True):
        mark = f"<!-- edit {line} -->" if path.endswith(".md") else f"# edit {line}."
        if kind == "modify":
            made[line] += f"  {mark}"
        elif kind == "insert":
            indent = re.match(r"\s*", made[line])
            made.insert(line + 1, (indent[0] if indent else "") + mark)
        else:
            del made[line]
    return "\n".join(made)


def has_edit(text: str, line: int) -> bool:
    """Return whether a text has the edit of a line, and not only one whose number begins with the same digits."""
    return re.search(rf"\bedit {line}\b", text) is not None


class OneFile:
    """A file of which a version changes lines."""

    def __init__(self, path: str, old: str, new: str, count: Count) -> None:
        self.path, self.old, self.new, self.count = path, old, new, count
        self.lines = old.split("\n")[:-1] if old.endswith("\n") else old.split("\n")
        self.end = "\n" if old.endswith("\n") else ""
        self.places = places(path, old)
        self.before, self.after = self._placed(old), self._placed(new)
        names_by_version = (
            {name for place, _ in self.before for name in place},
            {name for place, _ in self.after for name in place},
        )
        self.renamed = names_by_version[0] ^ names_by_version[1]
        """Names that one version has alone: where one took the other's place, edits follow it."""
        self.plain_after = self._plain(self.after)
        self.near = {
            line
            for kind, start, end, _, _ in SequenceMatcher(
                None, self.lines, new.split("\n"), autojunk=False
            ).get_opcodes()
            if kind != "equal"
            for line in range(start - 1, end + 1)
        }

    def _placed(self, text: str) -> Counter[tuple[Place, str]]:
        lines = text.split("\n")
        return Counter(
            (place, line.strip().removesuffix(","))
            for place, line in zip(places(self.path, text), lines, strict=True)
            if line.strip()
        )

    def _plain(self, placed: Counter[tuple[Place, str]]) -> Counter[tuple[Place, str]]:
        plain: Counter[tuple[Place, str]] = Counter()
        for (place, line), times in placed.items():
            plain[tuple("*" if name in self.renamed else name for name in place), line] += times
        return plain

    def _beside_the_same(self, owner_text: str, merged: str, at: Sequence[int]) -> bool:
        """Whether each edit stands above or below the line that it stood above or below.

        Lines that only one version of the template has are passed over.
        """
        common_lines = {line.strip() for line in self.lines} & {line.strip() for line in self.new.split("\n")} - {""}
        beside = []
        for text in (owner_text, merged):
            lines = [line.strip() for line in text.split("\n")]
            lines = [line for line in lines if line in common_lines or re.search(r"\bedit \d", line)]
            place = {line: number for line in at for number, content in enumerate(lines) if has_edit(content, line)}
            framed = ["", *lines, ""]
            beside.append([(framed[place[line]], framed[place[line] + 2]) for line in at])
        return all(
            above == above_now or below == below_now
            for (above, below), (above_now, below_now) in zip(*beside, strict=True)
        )

    def check(self, kind: str) -> None:
        """Count the outcome of an edit at every line: of those that cause a syntax error alone, of others together."""
        invalid = {line for line in range(len(self.lines)) if kind == "delete" and not self._is_valid(kind, line)}
        for line in sorted(invalid):
            self._check(kind, [line])
        for offset in range(STRIDE):
            if edits := [line for line in range(offset, len(self.lines), STRIDE) if line not in invalid]:
                self._check(kind, edits)

    def _is_valid(self, kind: str, line: int) -> bool:
        try:
            places(self.path, edited(self.path, self.lines, [line], kind) + self.end)
        except ValueError:
            return False
        return True

    def _check(self, kind: str, at: list[int]) -> None:
        """Merge edits at once; half of them each where they cannot be judged together."""
        owner_text = edited(self.path, self.lines, at, kind) + self.end
        merged = merge(self.path, self.old.encode(), owner_text.encode(), self.new.encode())
        text = merged.content.decode()
        lost = [line for line in at if kind != "delete" and not has_edit(text, line)]
        if lost:
            self.count.wrong += [f"{self.path}:{line + 1}, {kind}: lost" for line in lost]
            return
        if merged.conflicts:
            if len(at) > 1:
                self._halve(kind, at)
            else:
                self.count.conflicts += 1
                self.count.far += not self._is_near(owner_text, at[0], kind)
            return
        try:
            owners, result = self._placed(owner_text), self._placed(text)
        except ValueError:
            owners, result = Counter(), None
        added, removed = owners - self.before, self.before - owners
        alone = sum(removed.values()) <= len(at) and sum(added.values()) <= len(at)
        if result is not None and alone:
            expected = (self.plain_after - self._plain(removed)) + self._plain(added)
            if self._plain(result) == expected and (kind == "delete" or self._beside_the_same(owner_text, text, at)):
                self.count.merged += len(at)
                return
        if len(at) > 1:
            self._halve(kind, at)
        elif result is None or not alone:
            self.count.unknown += 1
        else:
            self.count.wrong.append(f"{self.path}:{at[0] + 1}, {kind}: {self.lines[at[0]].strip()}")

    def _is_near(self, owner_text: str, at: int, kind: str) -> bool:
        """Return whether the template changes a line beside an edit, or beside one that the edit moves.

        Without the first line of a block, the block's other lines are in another block; without a bracket, all are.
        """
        if at in self.near:
            return True
        try:
            now = places(self.path, owner_text)
        except ValueError:
            return True
        if kind == "delete":
            now.insert(at, self.places[at])
        elif kind == "insert":
            del now[at + 1]
        moved = {line for line, (one, other) in enumerate(zip(self.places, now, strict=True)) if one != other}
        return not self.near.isdisjoint(moved)

    def _halve(self, kind: str, at: list[int]) -> None:
        self._check(kind, at[: len(at) // 2])
        self._check(kind, at[len(at) // 2 :])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "delete"])
def test_no_edit_of_the_sample_files_is_misplaced(trees: Trees, kind: str) -> None:
    """Files that repeat themselves; all files, and deletions, in the release set."""
    count = Count()
    for path, old, new in trees.changed(NEXT):
        if path in SAMPLE:
            OneFile(path, old, new, count).check(kind)
    assert count.merged > 100
    assert count.wrong == []


@pytest.mark.release
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [NOW, NEXT])
def test_no_edit_is_misplaced(trees: Trees, version: str, kind: str, figure: Callable[[str], None]) -> None:
    count = Count()
    for path, old, new in trees.changed(version):
        OneFile(path, old, new, count).check(kind)
    all_edits = count.merged + count.conflicts + count.unknown
    assert all_edits > 3000
    assert count.wrong == []
    figure(
        f"{version}, {kind}: {all_edits} edits, {count.conflicts / all_edits:.1%} conflict, "
        f"{count.far / all_edits:.2%} without a changed line beside them, {count.unknown} cannot be judged"
    )
    assert count.far / all_edits < 0.039, "more than on 0.1.0"
    assert count.unknown / all_edits < 0.2


@pytest.mark.release
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_update_gives_the_same_results_as_the_merge(trees: Trees, tmp_path: Path, kind: str) -> None:
    project = trees.repository.copy(tmp_path / "project", revision=releases()[-1].version)
    number, expected = 0, {}
    for path, old, new in trees.changed(NOW):
        lines = old.removesuffix("\n").split("\n")
        at = range(len(path) % STRIDE, len(lines), STRIDE)
        owner_text = edited(path, lines, at, kind) + ("\n" if old.endswith("\n") else "")
        (project / path).write_text(owner_text, "utf-8")
        expected[path] = merge(path, old.encode(), owner_text.encode(), new.encode()).content
        number += len(at)
    assert number > 300
    commit(project)
    update(project, NOW)
    now = files(project)
    assert [path for path, content in expected.items() if now.get(path) != content] == []
