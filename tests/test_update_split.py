"""Edits of a file that a version splits are each in the right new file, in a conflict there, or reported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from updating.split import Carried, carry

OLD = '''\
"""Serving, and stopping."""

import asyncio
import os
import signal

NOTICE_SECONDS = 1.0
"""How long to accept."""

CLOSE_SECONDS = 3.0
"""How long to close."""

EXIT_SECONDS = 2.0
"""How long to exit."""

STREAM = b"stream"
"""The header of a stream."""

log = get_logger(__name__)


class Drain:
    """What is under way."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.calls = set()

    def opened(self) -> None:
        self.requests += 1
        self.settle()

    def answered(self) -> None:
        self.requests -= 1
        self.settle()


class Server:
    """Drains."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.stopping = None

    def stop(self) -> None:
        self.notice = 0.0
        self.app.draining = True


def bind(host: str, port: int) -> Socket:
    """A listening socket."""
    listener = Socket(host)
    try:
        listener.bind(port)
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def leave_within(seconds: float) -> None:
    """Ends the process."""
    wait(seconds)
    os.end(0)


def gone(value: int) -> int:
    """Is not in the new version."""
    doubled = 2 * value
    return doubled
'''

SERVE = '''\
"""Serving."""

import asyncio
import os
import signal

from .listen import bind

NOTICE_SECONDS = 1.0
"""Least time to accept."""

CLOSE_SECONDS = 3.0
"""Least time to close."""

EXIT_SECONDS = 2.0
"""Time limit of the exit."""

log = get_logger(__name__)


class Server:
    """Drains."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.stopping = None
        self.listener = bind()

    def stop(self) -> None:
        self.notice = 0.0
        self.app.draining = True


def exit_within(seconds: float) -> None:
    """End the process."""
    wait(seconds)
    os.end(0)
'''
DRAIN = '''\
"""Drain."""

import asyncio

log = get_logger(__name__)


class Drain:
    """What is under way."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.calls = set()

    def opened(self) -> None:
        self.requests = self.requests + 1
        self.settle()

    def answered(self) -> None:
        self.requests -= 1
        self.settle()
'''
LISTEN = '''\
"""Listen."""

import os

STREAM = b"stream"
"""The header of a stream."""


def bind(host: str, port: int) -> Socket:
    """Return a listening socket."""
    listener = Socket(host)
    try:
        listener.bind(port)
        listener.listen(4096)
    except OSError:
        listener.close()
        raise
    return listener
'''
NEW = {"serve.py": SERVE, "drain.py": DRAIN, "listen.py": LISTEN}


def carried(base: str, edited: str, targets: dict[str, str]) -> tuple[Carried, dict[str, str]]:
    """Return the result, and all new files after it."""
    path = f"old{Path(next(iter(targets))).suffix}"
    result = carry(path, base.encode(), edited.encode(), {name: text.encode() for name, text in targets.items()})
    return result, targets | {name: content.decode() for name, content in result.contents.items()}


def changed(text: str, *edits: tuple[str, str]) -> str:
    """Return a text with each edit, of a part that is in it once."""
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


Edit = tuple[str, str]

PLACED: dict[str, tuple[list[Edit], dict[str, list[Edit]]]] = {
    "a line between changed ones": (
        [("CLOSE_SECONDS = 3.0", "CLOSE_SECONDS = 7.7")],
        {"serve.py": [("CLOSE_SECONDS = 3.0", "CLOSE_SECONDS = 7.7")]},
    ),
    "several lines for one": (
        [("EXIT_SECONDS = 2.0\n", "EXIT_SECONDS = (\n    20\n)\n")],
        {"serve.py": [("EXIT_SECONDS = 2.0\n", "EXIT_SECONDS = (\n    20\n)\n")]},
    ),
    "two lines that moved together": (
        [('STREAM = b"stream"\n"""The header of a stream."""', 'STREAM = b"mine"\n"""Mine."""')],
        {"listen.py": [('STREAM = b"stream"\n"""The header of a stream."""', 'STREAM = b"mine"\n"""Mine."""')]},
    ),
    "two edits of two new files": (
        [('STREAM = b"stream"', 'STREAM = b"mine"'), ("self.calls = set()", "self.calls = []")],
        {
            "listen.py": [('STREAM = b"stream"', 'STREAM = b"mine"')],
            "drain.py": [("self.calls = set()", "self.calls = []")],
        },
    ),
    "a line that two blocks have": (
        [("        self.app = app\n        self.stopping", "        self.app = mine\n        self.stopping")],
        {"serve.py": [("        self.app = app\n", "        self.app = mine\n")]},
    ),
    "a line that two methods of a class have": (
        [("-= 1\n        self.settle()", "-= 1\n        self.settle(1)")],
        {"drain.py": [("-= 1\n        self.settle()", "-= 1\n        self.settle(1)")]},
    ),
    "an insertion": (
        [("        self.notice = 0.0\n", "        self.notice = 0.0\n        mine()\n")],
        {"serve.py": [("        self.notice = 0.0\n", "        self.notice = 0.0\n        mine()\n")]},
    ),
    "an insertion at the end of a block": (
        [("        raise\n    return listener\n", "        raise\n        mine()\n    return listener\n    mine()\n")],
        {
            "listen.py": [
                (
                    "        raise\n    return listener\n",
                    "        raise\n        mine()\n    return listener\n    mine()\n",
                )
            ]
        },
    ),
    "an insertion at the end of a file's last block": (
        [
            (
                "        self.requests -= 1\n        self.settle()\n",
                "        self.requests -= 1\n        self.settle()\n        mine()\n",
            )
        ],
        {
            "drain.py": [
                (
                    "        self.requests -= 1\n        self.settle()\n",
                    "        self.requests -= 1\n        self.settle()\n        mine()\n",
                )
            ]
        },
    ),
    "a decorator": (
        [("def bind(", "@mine\ndef bind(")],
        {"listen.py": [("def bind(", "@mine\ndef bind(")]},
    ),
    "a method between two": (
        [("    def answered(", "    def mine(self) -> None:\n        pass\n\n    def answered(")],
        {"drain.py": [("    def answered(", "    def mine(self) -> None:\n        pass\n\n    def answered(")]},
    ),
    "a deletion": ([("        listener.close()\n", "")], {"listen.py": [("        listener.close()\n", "")]}),
    "a function that was renamed": (
        [("    wait(seconds)\n", "    wait(2 * seconds)\n")],
        {"serve.py": [("    wait(seconds)\n", "    wait(2 * seconds)\n")]},
    ),
    "a line that the new version changes in the same way": (
        [("self.requests += 1", "self.requests = self.requests + 1")],
        {},
    ),
}


@pytest.mark.parametrize("kind", PLACED)
def test_an_edit_with_one_place_is_there_without_a_conflict(kind: str) -> None:
    edits, expected = PLACED[kind]
    result, now = carried(OLD, changed(OLD, *edits), NEW)
    assert now == {name: changed(text, *expected.get(name, [])) for name, text in NEW.items()}
    assert (result.conflicts, result.in_conflict, result.unplaced) == ({}, 0, [])
    assert result.placed >= 1


CONFLICTS: dict[str, tuple[list[Edit], str, str]] = {
    "a line that the new version changes": (
        [("listener.listen(2048)", "listener.listen(77)")],
        "listen.py",
        "listener.listen(77)",
    ),
    "an insertion beside a changed line": (
        [("CLOSE_SECONDS = 3.0\n", "CLOSE_SECONDS = 3.0\nMINE = 7\n")],
        "serve.py",
        "MINE = 7",
    ),
    "a changed line outside of a block": (
        [('"""How long to close."""', '"""Mine."""')],
        "serve.py",
        '"""Mine."""',
    ),
    "two edits of neighbouring lines, of which one changed": (
        [('NOTICE_SECONDS = 1.0\n"""How long to accept."""', 'NOTICE_SECONDS = 7.0\n"""Mine."""')],
        "serve.py",
        'NOTICE_SECONDS = 7.0\n"""Mine."""',
    ),
    "the name of a renamed function": (
        [("def leave_within(seconds: float)", "def leave_within(seconds: int)")],
        "serve.py",
        "def leave_within(seconds: int)",
    ),
    "both insert at the same place": (
        [("        self.stopping = None\n", "        self.stopping = None\n        self.mine = 7\n")],
        "serve.py",
        "        self.mine = 7",
    ),
}


@pytest.mark.parametrize("kind", CONFLICTS)
def test_an_edit_of_what_the_new_version_changes_is_a_conflict(kind: str) -> None:
    edits, name, text = CONFLICTS[kind]
    result, now = carried(OLD, changed(OLD, *edits), NEW)
    assert (result.placed, result.conflicts, result.in_conflict, result.unplaced) == (0, {name: 1}, 1, [])
    assert text in side(now[name], "before updating")
    assert {**now, name: side(now[name], "after updating")} == NEW
    assert len(now[name].split("<<<<<<<")[1].split(">>>>>>>")[0].split("\n")) < 15


REPORTED: dict[str, tuple[list[Edit], str, list[str]]] = {
    "a line that several new files have": (
        [("log = get_logger(__name__)", "log = mine(__name__)")],
        "log = mine(__name__)",
        ["drain.py:5", "serve.py:18"],
    ),
    "an import that several new files have": ([("import os\n", "")], "import os", ["listen.py:3", "serve.py:4"]),
    "an insertion between two new files": (
        [
            (
                "        self.settle()\n\n\nclass Server:",
                "        self.settle()\n\n\ndef mine() -> None:\n    pass\n\n\nclass Server:",
            )
        ],
        "def mine() -> None:",
        ["drain.py:21", "serve.py:21"],
    ),
    "an import": (
        [("import os\n", "import mine\nimport os\n")],
        "import mine",
        ["drain.py:3", "listen.py:3", "serve.py:3", "serve.py:4"],
    ),
    "a function that the new version does not have": (
        [("    doubled = 2 * value\n", "    doubled = 7 * value\n")],
        "doubled = 7 * value",
        [],
    ),
    "an appended function": (
        [("    return doubled\n", "    return doubled\n\n\ndef mine() -> None:\n    pass\n")],
        "def mine() -> None:",
        ["drain.py:23", "listen.py:20", "serve.py:39"],
    ),
}


@pytest.mark.parametrize("kind", REPORTED)
def test_an_edit_that_may_belong_to_several_files_or_to_none_is_reported(kind: str) -> None:
    edits, text, places = REPORTED[kind]
    edited = changed(OLD, *edits)
    result, now = carried(OLD, edited, NEW)
    assert now == NEW
    assert [(one.text, one.places) for one in result.unplaced] == [(text, places)]
    if text in edited:
        assert edited.split("\n")[result.unplaced[0].line - 1].strip() == text
    assert (result.placed, result.in_conflict) == (0, 0)


def side(text: str, name: str) -> str:
    """Return a text with one side of each conflict."""
    sides = {"before updating": 1, "after updating": 3}
    return re.sub(
        r"<<<<<<< [^\n]*\n(.*?)\|{7} [^\n]*\n(.*?)={7}\n(.*?)>{7} [^\n]*\n",
        lambda match: str(match[sides[name]]),
        text,
        flags=re.DOTALL,
    )


def test_a_deletion_of_lines_that_went_to_several_files_is_in_each() -> None:
    """Two constants with their blank lines, of which each new file has one."""
    old = "ONE = 1\nTWO = 2\nTHREE = 3\nFOUR = 4\n"
    new = {"a.py": "# a\nONE = 1\nTWO = 2\n", "b.py": "# b\nTHREE = 3\nFOUR = 4\n"}
    result, now = carried(old, "ONE = 1\nFOUR = 4\n", new)
    assert now == {"a.py": "# a\nONE = 1\n", "b.py": "# b\nFOUR = 4\n"}
    assert (result.conflicts, result.unplaced) == ({}, [])


def test_windows_line_endings_are_no_edit() -> None:
    """The new files have the template's line endings, as without an edit."""
    edited = changed(OLD, ("CLOSE_SECONDS = 3.0", "CLOSE_SECONDS = 7.7")).replace("\n", "\r\n")
    result, now = carried(OLD, edited, NEW)
    assert now == NEW | {"serve.py": changed(SERVE, ("CLOSE_SECONDS = 3.0", "CLOSE_SECONDS = 7.7"))}
    assert (result.placed, result.unplaced) == (1, [])


def test_places_are_given_as_they_are_after_the_update() -> None:
    edits = [
        ("NOTICE_SECONDS = 1.0\n", "NOTICE_SECONDS = (\n    1.0\n)\n"),
        ("log = get_logger(__name__)", "log = mine()"),
    ]
    result, now = carried(OLD, changed(OLD, *edits), NEW)
    assert result.placed == 1
    for place in result.unplaced[0].places:
        name, _, line = place.partition(":")
        assert now[name].split("\n")[int(line) - 1] == "log = get_logger(__name__)"


def test_a_page_is_split_by_its_sections() -> None:
    old = "# Client\n\nFirst.\n\n## Retry\n\nAgain.\n\nSee below.\n\n## Breaker\n\nOpen.\n\nSee below.\n"
    new = {
        "retry.md": "# Retry\n\nNew.\n\n## Retry\n\nAgain.\n\nSee below.\n",
        "breaker.md": "# Breaker\n\nNew.\n\n## Breaker\n\nOpen.\n\nSee below.\n",
    }
    result, now = carried(old, changed(old, ("Open.", "Open, and mine."), ("Again.\n", "Again.\n\nMine.\n")), new)
    assert now == {
        "retry.md": changed(new["retry.md"], ("Again.\n", "Again.\n\nMine.\n")),
        "breaker.md": changed(new["breaker.md"], ("Open.", "Open, and mine.")),
    }
    assert (result.placed, result.unplaced) == (2, [])


def constants(*numbers: int) -> str:
    """Return a module of constants, each in a paragraph with the same text below it."""
    return "\n".join(f'CONSTANT{number} = 1\n"""A constant."""\n' for number in numbers)


def test_edits_beside_lines_that_a_file_has_often_are_as_many_as_were_made() -> None:
    """Found by Hypothesis with the seed 9583: three edits were placed as five, one of them beside another constant."""
    edits = [
        ('CONSTANT0 = 1\n"""A constant."""', 'CONSTANT0 = 1\n"""Mine."""'),
        ("CONSTANT1 = 1", "CONSTANT1 = 7"),
        ("CONSTANT2 = 1", "CONSTANT2 = 7"),
    ]
    new = {"one.py": constants(1, 2, 0), "two.py": constants(3)}
    result, now = carried(constants(0, 1, 2, 3), changed(constants(0, 1, 2, 3), *edits), new)
    assert now == new | {"one.py": changed(new["one.py"], *edits)}
    assert (result.placed, result.in_conflict, result.unplaced) == (3, 0, [])


def test_a_conflict_has_no_paragraph_that_moved_and_changed() -> None:
    """Found by Hypothesis with the seed 9583: the owner's side had CONSTANT1 a second time."""
    end = "\n\nclass Class2:\n    closed = True\n\n\n"
    new = {
        "one.py": constants(0).replace("A constant.", "New.") + end + constants(1).replace("= 1", "= 2"),
        "two.py": constants(3),
    }
    old = constants(0, 1) + end + constants(3)
    edited = changed(old, ('CONSTANT0 = 1\n"""A constant."""', 'CONSTANT0 = 1\n"""Mine."""'))
    result, now = carried(old, edited, new)
    assert (result.placed, result.conflicts, result.in_conflict, result.unplaced) == (0, {"one.py": 1}, 1, [])
    assert side(now["one.py"], "after updating") == new["one.py"]
    assert side(now["one.py"], "before updating") == changed(new["one.py"], ('"""New."""', '"""Mine."""'))


# --- Any file ----------------------------------------------------------------------------------------------------

SHARED_LINES = ("    call()", "    return None", "    if ready:\n        call()", "    # see below", "")
"""Lines that several definitions have, with what is indented below them."""


@dataclass(frozen=True)
class Part:
    """A part of a file that moves as a whole."""

    kind: str
    number: int
    lines: tuple[str, ...]

    @property
    def text(self) -> list[str]:
        body = [line for shared in self.lines for line in shared.split("\n")]
        while body and not body[-1]:
            body.pop()
        if self.kind == "constant":
            return [f"CONSTANT{self.number} = 1", '"""A constant."""', ""]
        if self.kind == "class":
            methods = [f"    {line}" if line else "" for line in ("def close(self):", *body, "    self.closed = True")]
            return ["", f"class Class{self.number}:", *methods, "", ""]
        if self.kind == "twin":
            return ["", "try:", *(body or ["    call()"]), "finally:", "    call()", "", ""]
        return ["", f"def function{self.number}():", *body, f"    return {self.number}", "", ""]


PARTS = st.lists(
    st.tuples(
        st.sampled_from(["constant", "function", "class", "twin"]),
        st.lists(st.sampled_from(SHARED_LINES), max_size=4, unique=True),
    ),
    min_size=2,
    max_size=8,
).map(lambda parts: [Part(kind, number, tuple(lines)) for number, (kind, lines) in enumerate(parts)])
HEAD = ['"""A module."""', "", "import os", ""]
TARGETS = ("one.py", "two.py", "three.py")


@dataclass
class Moved:
    """An old file, new ones that have its parts, and where each line of a part went."""

    old: list[str]
    new: dict[str, list[str]]
    places: dict[int, tuple[str, int]]
    parts: dict[int, Part]


@st.composite
def moved_parts(draw: st.DrawFn) -> Moved:
    parts = draw(PARTS)
    targets = draw(st.lists(st.sampled_from(TARGETS), min_size=len(parts), max_size=len(parts)))
    moved = Moved(list(HEAD), {name: list(HEAD) for name in TARGETS}, {}, {})
    starts = {}
    for part in parts:
        starts[part] = len(moved.old)
        moved.old += part.text
    for part, target in draw(st.permutations(list(zip(parts, targets, strict=True)))):
        for offset, line in enumerate(part.text):
            moved.places[starts[part] + offset] = target, len(moved.new[target])
            moved.parts[starts[part] + offset] = part
            moved.new[target].append(line)
    return moved


def text_of(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


@settings(deadline=None, max_examples=60, derandomize=True)
@given(moved_parts(), st.data())
def test_a_changed_line_is_in_the_new_file_that_has_its_part_or_reported(moved: Moved, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from([number for number in moved.places if moved.old[number]]))
    edited = [line + "  # mine" if number == at else line for number, line in enumerate(moved.old)]
    result, now = carried(
        text_of(moved.old), text_of(edited), {name: text_of(lines) for name, lines in moved.new.items()}
    )
    target, line = moved.places[at]
    expected = {name: list(lines) for name, lines in moved.new.items()}
    if result.placed:
        expected[target][line] += "  # mine"
    else:
        assert [one.line for one in result.unplaced] == [at + 1]
        assert moved.parts[at].kind in ("twin", "constant"), "a named definition is certain"
        assert "CONSTANT" not in moved.old[at]
    assert now == {name: text_of(lines) for name, lines in expected.items()}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(moved_parts(), st.data())
def test_a_deleted_line_is_deleted_in_the_new_file_that_has_its_part_or_reported(
    moved: Moved, data: st.DataObject
) -> None:
    kept_blocks = [number for number in moved.places if moved.old[number] and not moved.old[number].endswith(":")]
    at = data.draw(st.sampled_from(kept_blocks))
    result, now = carried(
        text_of(moved.old),
        text_of(moved.old[:at] + moved.old[at + 1 :]),
        {name: text_of(lines) for name, lines in moved.new.items()},
    )
    target, line = moved.places[at]
    assert bool(result.placed) != bool(result.unplaced)
    kept = {name: text_of(lines) for name, lines in moved.new.items()}
    lines = moved.new[target]
    assert now == (kept | {target: text_of(lines[:line] + lines[line + 1 :])} if result.placed else kept)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(moved_parts(), st.data())
def test_an_inserted_line_is_beside_the_same_line_or_in_a_conflict_or_reported(
    moved: Moved, data: st.DataObject
) -> None:
    at = data.draw(st.sampled_from(sorted(moved.places)))
    indent = data.draw(st.sampled_from(["", re.match(" *", moved.old[at])[0]]))  # type: ignore[index]
    edited = [*moved.old[: at + 1], f"{indent}mine()", *moved.old[at + 1 :]]
    result, now = carried(
        text_of(moved.old), text_of(edited), {name: text_of(lines) for name, lines in moved.new.items()}
    )
    assert {name: side(text, "after updating").replace(f"{indent}mine()\n", "") for name, text in now.items()} == {
        name: text_of(lines) for name, lines in moved.new.items()
    }
    assert sum(text.count("mine()") for text in now.values()) == (not result.unplaced)
    if not (result.unplaced or result.in_conflict):
        assert result.placed
        target = next(name for name, text in now.items() if "mine()" in text)
        line = next(number for number, text in enumerate(now[target].split("\n")) if "mine()" in text)
        origins = {place: number for number, place in moved.places.items()}
        above = next((origins.get((target, n)) for n in range(line - 1, -1, -1) if moved.new[target][n]), None)
        below = next(
            (origins.get((target, n)) for n in range(line, len(moved.new[target])) if moved.new[target][n]), None
        )
        old_above = next((n for n in range(at, -1, -1) if moved.old[n]), None)
        old_below = next((n for n in range(at + 1, len(moved.old)) if moved.old[n]), None)
        assert above == old_above or below == old_below


@settings(deadline=None, max_examples=60, derandomize=True)
@given(moved_parts(), st.data())
def test_no_edit_is_lost_or_doubled_where_the_new_version_changes_lines_too(moved: Moved, data: st.DataObject) -> None:
    numbers = st.sets(st.sampled_from([number for number in moved.places if moved.old[number]]), max_size=4)
    ours, theirs = data.draw(numbers), data.draw(numbers)
    edited = [f"{line}  # mine {number}." if number in ours else line for number, line in enumerate(moved.old)]
    old = {name: list(lines) for name, lines in moved.new.items()}
    for number in theirs:
        target, line = moved.places[number]
        moved.new[target][line] += "  # new"
    result, now = carried(
        text_of(moved.old), text_of(edited), {name: text_of(lines) for name, lines in moved.new.items()}
    )
    reported = {one.line - 1 for one in result.unplaced}
    owner_side = {name: side(text, "before updating").replace("  # new", "") for name, text in now.items()}
    for number, (target, line) in moved.places.items():
        if f"# mine {number}." in owner_side[target]:
            old[target][line] = edited[number]
        elif number in ours:
            assert any(one <= number < one + 12 for one in reported)
    assert owner_side == {name: text_of(lines) for name, lines in old.items()}
    assert sum(text.count("# new") for text in now.values()) == len(theirs)


@pytest.mark.release
@pytest.mark.parametrize(
    "property_of_any_file",
    [
        test_a_changed_line_is_in_the_new_file_that_has_its_part_or_reported,
        test_a_deleted_line_is_deleted_in_the_new_file_that_has_its_part_or_reported,
        test_an_inserted_line_is_beside_the_same_line_or_in_a_conflict_or_reported,
        test_no_edit_is_lost_or_doubled_where_the_new_version_changes_lines_too,
    ],
)
def test_properties_hold_for_many_more_files(property_of_any_file: Any) -> None:
    """With another seed each time, which Hypothesis prints on a failure."""
    check = given(moved_parts(), st.data())(property_of_any_file.hypothesis.inner_test)
    settings(deadline=None, max_examples=1_500)(check)()
