"""The merge of one file keeps every edit at its place, in files that repeat themselves above all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from updating.merge import merge, merge_by_line, with_lf
from updating.outline import LABEL

from .line_places import Place, places

# --- Files of blocks that are nearly alike ---------------------------------------------------------------------

Block = tuple[str, tuple[int, ...]]
"""The name of a block, and its lines as numbers."""


def compose(blocks: Sequence[Block]) -> str:
    keys = ("restart: always", "read_only: true", "user: root", "init: true", "tty: true", "pid: host", "cpus: 1")
    parts = ["services:\n"]
    for name, lines in blocks:
        parts.append(f"  {name}:\n    image: same\n" + "".join(f"    {keys[line]}\n" for line in lines) + "\n")
    return "".join(parts)


def workflow(blocks: Sequence[Block]) -> str:
    parts = ["on: push\n\njobs:\n"]
    for name, lines in blocks:
        steps = "".join(f"      - run: step {line}\n        shell: bash\n" for line in lines)
        parts.append(f"  {name}:\n    runs-on: ubuntu-24.04\n    steps:\n      - uses: actions/checkout@v6\n{steps}\n")
    return "".join(parts)


def dashboard(blocks: Sequence[Block]) -> str:
    panels = []
    for number, (name, lines) in enumerate(blocks):
        members = "".join(f'      "member{line}": true,\n' for line in lines)
        grid = '      "gridPos": {\n        "h": 8,\n        "w": 12\n      },\n'
        panels.append(f'    {{\n{grid}      "id": {number},\n{members}      "title": "{name}"\n    }}')
    return '{\n  "panels": [\n' + ",\n".join(panels) + '\n  ],\n  "title": "All"\n}\n'


def tables(blocks: Sequence[Block]) -> str:
    return "\n".join(f"[tool.{name}]\n" + "".join(f"option{line} = true\n" for line in lines) for name, lines in blocks)


def module(blocks: Sequence[Block]) -> str:
    head = '"""Functions."""\n\nimport os\n'
    parts = []
    for name, lines in blocks:
        body = "".join(f"    call({line})\n" for line in lines)
        parts.append(
            f"\n\n@decorated\ndef {name}() -> None:\n    if os.name:\n        call(0)\n{body}    return None\n"
        )
    return head + "".join(parts)


def page(blocks: Sequence[Block]) -> str:
    return "# Page\n" + "".join(
        f"\n## {name}\n\nSee below.\n\n" + "".join(f"- Point {line}.\n" for line in lines) for name, lines in blocks
    )


KINDS: dict[str, Callable[[Sequence[Block]], str]] = {
    "docker-compose.yml": compose,
    "ci.yml": workflow,
    "dashboard.json": dashboard,
    "pyproject.toml": tables,
    "ruff.toml": tables,
    "module.py": module,
    "page.md": page,
}

NAMES = st.sampled_from([f"b{number}" for number in range(9)])
LINES = st.lists(st.integers(0, 6), max_size=5, unique=True).map(tuple)


class Case(NamedTuple):
    """The blocks of the old and the new version, and what the owner does, as (line, what)."""

    old: list[Block]
    new: list[Block]
    edits: list[tuple[float, str]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A block that is replaced with one that has its own lines counts as renamed: here the template does not."""
    old = draw(st.lists(st.tuples(NAMES, LINES), min_size=1, max_size=7, unique_by=lambda block: block[0]))
    grows = draw(st.booleans())
    new = [(name, draw(st.one_of(st.just(lines), LINES))) for name, lines in old if grows or draw(st.integers(0, 3))]
    if grows:
        for name, lines in draw(st.lists(st.tuples(NAMES, LINES), max_size=2, unique_by=lambda block: block[0])):
            if name not in {known for known, _ in old}:
                new.insert(draw(st.integers(0, len(new))), (name, lines))
    if draw(st.integers(0, 3)) == 0:
        new = draw(st.permutations(new))
    edit = st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["modify", "insert", "delete"]))
    return Case(old, new, draw(st.lists(edit, min_size=1, max_size=3)))


NAMING = re.compile(
    r'^(\w+:|import|"""|\}|  b\d|  "panels"|    \{|\[.*|@.*|def .*|#+ .*)|"title"|- (run|uses)|^    steps|^    if'
)
"""Lines that open a block or name it: what an edit of them means for the others is another test's."""


def edited(path: str, text: str, edits: list[tuple[float, str]]) -> str:
    """A file with edits, each of them unique: a comment behind a line or below it, or a line that is gone."""
    lines = text.split("\n")
    for number, (share, how) in enumerate(sorted(edits, reverse=True)):
        at = int(share * (len(lines) - 1))
        mark = f"<!-- {number} -->" if path.endswith(".md") else f"# mark {number}"
        if how == "insert":
            indent = re.match(" *", lines[at])
            lines.insert(at + 1, (indent[0] if indent else "") + mark)
        elif lines[at].strip() and not NAMING.search(lines[at]):
            lines[at : at + 1] = [f"{lines[at]}  {mark}"] if how == "modify" else []
    return "\n".join(lines)


def placed(path: str, text: str) -> Counter[tuple[Place, str]]:
    """Every line with its place. Commas are left out: they follow from what comes after."""
    lines = text.split("\n")
    return Counter(
        (place, line.strip().removesuffix(","))
        for place, line in zip(places(path, text), lines, strict=True)
        if line.strip() and not line.strip().startswith(("# mark", "<!--"))
    )


def outside(content: bytes) -> str:
    """Return what is in no conflict."""
    return re.sub(r"(?ms)^<{7} .*?^>{7} .*?$", "", content.decode())


def marks(text: str) -> set[str]:
    return set(re.findall(r"# mark \d|<!-- \d", text))


@pytest.mark.parametrize("path", KINDS)
@settings(deadline=None, max_examples=60)
@given(case=cases())
@example(case=Case([("b1", (1, 2)), ("b2", (1, 2, 3))], [("b2", (1, 2, 3))], [(0.2, "modify")]))
@example(case=Case([("b1", ()), ("b2", ())], [("b1", ()), ("b3", (1,)), ("b2", ())], [(0.9, "delete")]))
@example(
    case=Case(
        [("b0", ()), ("b1", ()), ("b2", (3, 4, 2, 0))],
        [("b0", ()), ("b1", ()), ("b2", (0, 1, 3, 2))],
        [(0.84375, "delete")],
    )
)
def test_every_line_keeps_its_place(path: str, case: Case) -> None:
    """The oracle knows nothing of the merge: lines by the block that a parser finds them in.

    Where nothing conflicts, each block has the template's lines, less those that the owner took away, with those that
    the owner added.
    """
    old, new = (KINDS[path](blocks) for blocks in (case.old, case.new))
    owner_text = edited(path, old, case.edits)
    try:
        before, updated, owners = placed(path, old), placed(path, new), placed(path, owner_text)
    except ValueError:  # the owner's edit left no file of its language
        return
    merged = merge(path, old.encode(), owner_text.encode(), new.encode())
    text = merged.content.decode()
    assert marks(owner_text) <= marks(text), "an edit is lost"
    assert bool(merged.conflicts) == ("<<<<<<<" in text)
    if merged.conflicts == 0:
        added, removed = owners - before, before - owners
        assert placed(path, text) == (updated - removed) + added


@pytest.mark.parametrize("path", KINDS)
@settings(deadline=None, max_examples=20)
@given(case=cases())
def test_changes_of_one_side_only_are_the_result(path: str, case: Case) -> None:
    old, new = (KINDS[path](blocks).encode() for blocks in (case.old, case.new))
    assert merge(path, old, old, new) == (new, 0)
    assert merge(path, old, new, old) == (new, 0)
    assert merge(path, old, new, new) == (new, 0)


# --- What the owner deletes or changes and the template moves ----------------------------------------------------


@pytest.mark.parametrize("path", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_line_that_the_template_moves_stays_as_the_owner_has_it(path: str, data: st.DataObject) -> None:
    """It is deleted at its new place too, or there is a conflict."""
    before = data.draw(st.lists(st.integers(0, 6), min_size=2, unique=True), label="before")
    added = data.draw(st.lists(st.integers(0, 6), max_size=2, unique=True), label="added")
    after = data.draw(st.permutations([*before, *(line for line in added if line not in before)]), label="after")
    old, new = (KINDS[path]([("b1", (1, 2)), ("b2", tuple(lines))]) for lines in (before, after))
    start = '"id": 1' if path == "dashboard.json" else "b2"
    (old_first, _, old_block), (new_first, _, new_block) = old.partition(start), new.partition(start)
    lines = [line for line in old_block.splitlines(keepends=True)[1:] if not NAMING.search(line)]
    line = data.draw(st.sampled_from([line for line in lines if old_block.count(line) == new_block.count(line) == 1]))
    mine = data.draw(st.sampled_from(["", line.replace("\n", "  # mine\n")]), label="mine")
    owner_text = old_first + start + old_block.replace(line, mine)
    merged = merge(path, old.encode(), owner_text.encode(), new.encode())
    if not merged.conflicts:
        assert merged.content.decode() == new_first + start + new_block.replace(line, mine)


@pytest.mark.parametrize("path", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_block_that_the_template_moves_stays_deleted(path: str, data: st.DataObject) -> None:
    """There is a conflict at most; and no line of the block is outside of it."""
    numbers = st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True).map(tuple)
    blocks: list[Block] = [(f"b{n}", data.draw(numbers)) for n in range(data.draw(st.integers(2, 5)))]
    gone = data.draw(st.sampled_from(blocks))
    moved = data.draw(st.permutations(blocks))
    if data.draw(st.booleans()):
        moved = [(name, data.draw(numbers)) if name == gone[0] else (name, lines) for name, lines in moved]

    def text(of: Sequence[Block]) -> str:
        """The blocks, with panels that keep their numbers."""
        names = iter(of)
        return re.sub(r'"id": \d', lambda _: f'"id": {next(names)[0][1:]}', KINDS[path](of))

    old, new = text(blocks), text(moved)
    owner_text = text([block for block in blocks if block is not gone])
    merged = merge(path, old.encode(), owner_text.encode(), new.encode())
    assert not re.search(rf"\b{gone[0]}\b", outside(merged.content))
    if not merged.conflicts:
        expected = text([block for block in moved if block[0] != gone[0]])
        assert sorted(merged.content.decode().replace(",", "").split()) == sorted(expected.replace(",", "").split())


@pytest.mark.parametrize("path", KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_line_that_one_side_moves_and_the_other_deletes_or_moves_is_there_once_at_most(
    path: str, data: st.DataObject
) -> None:
    """Whichever side moves it, within its block, to another one or with its block: a conflict is the most there is."""
    lines = data.draw(st.permutations(range(1, 7)), label="lines")
    blocks = [("b1", list(lines[:2])), ("b2", list(lines[2:4])), ("b3", list(lines[4:]))]
    line = lines[data.draw(st.integers(0, 5), label="line")]

    def moved(label: str) -> list[tuple[str, list[int]]]:
        order = data.draw(st.permutations(range(3)), label=f"{label} order")
        others = [(blocks[at][0], [other for other in blocks[at][1] if other != line]) for at in order]
        target = data.draw(st.sampled_from(others), label=f"{label} block")[1]
        target.insert(data.draw(st.integers(0, len(target)), label=f"{label} place"), line)
        return others

    deleted = [(name, [other for other in own if other != line]) for name, own in blocks]
    sides = [moved("first"), deleted if data.draw(st.booleans(), label="deleted") else moved("second")]
    if data.draw(st.booleans(), label="exchanged"):
        sides.reverse()
    old, mine, new, without = (
        KINDS[path]([(name, tuple(own)) for name, own in of]) for of in (blocks, *sides, deleted)
    )
    (text,) = set(old.split("\n")) - set(without.split("\n"))
    merged = merge(path, old.encode(), mine.encode(), new.encode())
    times = outside(merged.content).split("\n").count(text)
    assert times <= (text in mine.split("\n") and text in new.split("\n"))
    assert times or text not in new.split("\n") or text not in mine.split("\n") or merged.conflicts


TWO_TABLES = "[a]\nfirst = 1\nsecond = 2\n\n[b]\nthird = 3\nfourth = 4\n"


@pytest.mark.parametrize(
    ("new", "restored"),
    [
        ("[a]\nfirst = 1\n\n[b]\nthird = 3\nsecond = 2\nfourth = 4\n", "second = 2\n"),
        ("[a]\nsecond = 5\nfirst = 1\n\n[b]\nthird = 3\nfourth = 4\n", "second = 5\n"),
    ],
    ids=["to another block", "with another value"],
)
def test_a_deleted_line_that_the_template_moves_and_changes_is_a_conflict(new: str, restored: str) -> None:
    owner_text = TWO_TABLES.replace("second = 2\n", "")
    merged = merge("ruff.toml", TWO_TABLES.encode(), owner_text.encode(), new.encode())
    conflict = f"<<<<<<< before updating\n=======\n{restored}>>>>>>> after updating\n"
    assert merged == (new.replace(restored, conflict).encode(), 1)


def test_a_line_that_both_sides_move_is_not_there_twice() -> None:
    old, mine, new = ("".join(f"option{number} = true\n" for number in order) for order in ("12345", "51234", "12534"))
    merged = merge("ruff.toml", old.encode(), mine.encode(), new.encode())
    assert merged.conflicts == 1
    assert merge("ruff.toml", old.encode(), new.encode(), new.encode()) == (new.encode(), 0)


# --- Blocks that are renamed, replaced or exchanged --------------------------------------------------------------

PANELS: list[Block] = [("b1", (1, 2)), ("b2", (1, 2, 3)), ("b3", (1, 4, 5))]


def test_a_block_that_the_template_renames_keeps_its_edits() -> None:
    old = dashboard(PANELS)
    new = old.replace('"b2"', '"Renamed"')
    owner_text = old.replace('"id": 1', '"id": 77')
    assert merge("dashboard.json", old.encode(), owner_text.encode(), new.encode()) == (
        owner_text.replace('"b2"', '"Renamed"').encode(),
        0,
    )


def test_a_block_that_the_owner_renames_gets_what_the_template_changes_in_it() -> None:
    old = workflow([("lint", (1, 2)), ("tests", (1, 3)), ("image", (1, 2))])
    new = old.replace("step 3", "another step")
    owner_text = old.replace("  tests:", "  checks:")
    merged = merge("ci.yml", old.encode(), owner_text.encode(), new.encode())
    assert merged == (new.replace("  tests:", "  checks:").encode(), 0)


@pytest.mark.parametrize(
    ("path", "old", "new", "edit"),
    [
        (
            "dashboard.json",
            dashboard(PANELS),
            dashboard([PANELS[0], ("b9", (1, 2, 6)), PANELS[2]]),
            ('"id": 1,', '"id": 1, # mine'),
        ),
        (
            "ops/compose.yml",
            compose([("web", (0, 1)), ("cache", (0, 1)), ("jobs", (0, 2))]),
            compose([("web", (0, 1)), ("jobs", (0, 2)), ("mail", (0, 1))]),
            ("  cache:\n    image: same", "  cache:\n    image: mine"),
        ),
        (
            "pyproject.toml",
            tables([("mypy", (1, 2)), ("ruff", (1, 2)), ("uv", (1,))]),
            tables([("mypy", (1, 2, 3)), ("ruff", (1, 2, 3)), ("uv", (1,))]),
            ("[tool.ruff]\noption1 = true\noption2 = true\n", ""),
        ),
    ],
    ids=["a replaced panel", "a service that went while another came", "a table that the owner removed"],
)
def test_an_edit_of_a_removed_block_is_a_conflict(path: str, old: str, new: str, edit: tuple[str, str]) -> None:
    owner_text = old.replace(*edit)
    assert owner_text != old
    merged = merge(path, old.encode(), owner_text.encode(), new.encode())
    assert merged.conflicts == 1
    assert "mine" not in outside(merged.content)
    if "toml" in path:
        assert "[tool.ruff]" not in outside(merged.content)
        assert outside(merged.content).count("option3") == 1, "the new option is in another table"


# --- Line endings, encodings, and what is no text -----------------------------------------------------------------

OLD, EDITED, NEW = b"one\ntwo\nthree\nfour\nfive\n", b"one\n2\nthree\nfour\nfive\n", b"one\ntwo\nthree\nfour\n5\n"
BOTH = b"one\n2\nthree\nfour\n5\n"


def with_crlf(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("base", [OLD, with_crlf(OLD)])
@pytest.mark.parametrize("updated", [NEW, with_crlf(NEW)])
def test_line_endings_do_not_conflict_and_stay_as_the_owner_has_them(base: bytes, updated: bytes) -> None:
    assert merge("page.txt", base, EDITED, updated) == (BOTH, 0)
    assert merge("page.txt", base, with_crlf(EDITED), updated) == (with_crlf(BOTH), 0)
    assert merge("page.txt", base, with_crlf(OLD), updated) == (with_crlf(NEW), 0)


TOML = "[a]\none = 1\ntwo = 2\n\n[b]\none = 1\ntwo = 2\nthree = 3\n\n[c]\nfour = 4\n"


@pytest.mark.parametrize("table", ["a", "b", "c"])
@pytest.mark.parametrize("how", ["header", "table", "another"])
def test_a_line_of_the_template_stays_in_its_table(table: str, how: str) -> None:
    """Where the owner has removed that table, it is a conflict or left out."""
    updated = TOML.replace(f"[{table}]\n", f"[{table}]\nfive = 5\n")
    start = TOML.index(f"[{table}]\n")
    body = TOML[start:].partition("\n[")[0]
    owner_text = TOML.replace(
        body, {"header": body.partition("\n")[2], "table": "", "another": body.replace(f"[{table}]", "[mine]")}[how]
    )
    merged = merge("pyproject.toml", TOML.encode(), owner_text.encode(), updated.encode())
    text = merged.content.decode()
    assert merged.conflicts or f"[{table}]\nfive = 5\n" in text or "five" not in text


def test_a_few_lines_with_other_endings_are_no_conflict() -> None:
    owner_text = OLD.replace(b"two\n", b"zwei\n").replace(b"\n", b"\r\n").replace(b"four\r\n", b"four\n")
    merged = OLD.replace(b"two\n", b"zwei\n").replace(b"five", b"5")
    assert merge("page.txt", OLD, owner_text, NEW) == (merged.replace(b"\n", b"\r\n"), 0)


def test_a_changed_ending_of_one_line_counts_as_an_edit() -> None:
    owner_text = OLD.replace(b"two\n", b"two\r\n")
    assert merge("page.txt", OLD, owner_text, NEW) == (owner_text.replace(b"five", b"5"), 0)


def test_a_conflict_beside_a_line_with_another_ending_is_marked() -> None:
    old, mine, new = (OLD.replace(b"one\n", b"one\r\n").replace(b"two", word) for word in (b"two", b"mine", b"theirs"))
    expected = b"<<<<<<< before updating\nmine\n=======\ntheirs\n>>>>>>> after updating"
    assert merge("page.txt", old, mine, new) == (old.replace(b"two", expected), 1)


@pytest.mark.parametrize("letter", ["ä".encode("latin-1"), b"\xff", "ä".encode()])
def test_any_encoding_is_merged(letter: bytes) -> None:
    old, owner_text, new = (content.replace(b"three", letter) for content in (OLD, EDITED, NEW))
    assert merge("page.txt", old, owner_text, new) == (BOTH.replace(b"three", letter), 0)


def test_a_last_line_without_a_line_break_is_merged() -> None:
    assert merge("page.txt", OLD, EDITED.rstrip(), NEW.replace(b"5", b"five")).content == EDITED.rstrip()
    assert merge("page.txt", OLD.rstrip(), EDITED.rstrip(), OLD) == (EDITED, 0)


def test_a_binary_file_that_both_sides_change_is_a_conflict() -> None:
    assert merge("logo.png", b"\0old", b"\0mine", b"\0new") == (b"\0mine", 1)


def test_a_conflict_is_marked_as_copier_does() -> None:
    merged = merge("page.txt", OLD, OLD.replace(b"two", b"mine"), OLD.replace(b"two", b"theirs"))
    expected = b"one\n<<<<<<< before updating\nmine\n=======\ntheirs\n>>>>>>> after updating\nthree\nfour\nfive\n"
    assert merged == (expected, 1)


@given(
    st.lists(
        st.sampled_from([b"a\n", b"b\r\n", b"\n", b"\x0c\n", b"# x\n", b"\xff\xfe\n", b"- {\n", b"}\n"]), max_size=9
    )
)
@settings(deadline=None, max_examples=60)
def test_any_bytes_are_merged(lines: list[bytes]) -> None:
    text = b"".join(lines)
    for path in KINDS:
        assert merge(path, text, b"first\n" + text, text) == (b"first\n" + text, 0)
        assert b"first\n" in with_lf(merge(path, text, b"first\n" + text, text + b"last\n").content)


# --- Neighbouring lines of pyproject.toml --------------------------------------------------------------------------

CHANGED: dict[str, Callable[[str], list[str]]] = {
    "kept": lambda line: [line],
    "replaced": lambda line: [line + "'"],
    "removed": lambda line: [],
    "followed": lambda line: [line, line + "+"],
}
Change = st.tuples(st.booleans(), st.sampled_from(sorted(CHANGED)))
"""Which side changes a line, and how."""


@given(st.lists(Change, max_size=12))
@settings(deadline=None)
@example([(False, "followed")] * 10 + [(True, "removed")])
def test_changes_of_different_lines_are_all_in_the_merge(changes: list[tuple[bool, str]]) -> None:
    def text(*sides: bool) -> list[bytes]:
        """The lines, all of which have the same label."""
        lines = [
            CHANGED[how if side in sides else "kept"](f"{n:>{LABEL + 2}}") for n, (side, how) in enumerate(changes)
        ]
        return [line.encode() for changed in lines for line in changed]

    assert merge_by_line(text(), text(True), text(False)) == text(True, False)
    assert merge_by_line(text(), text(False), text(True)) == text(True, False)


@pytest.mark.parametrize(
    ("owner_text", "updated"), [("1x3", "1y3"), ("12a3", "12b3"), ("13", "1x3"), ("123a", "123b"), ("a123", "b123")]
)
def test_changes_of_the_same_line_are_a_conflict(owner_text: str, updated: str) -> None:
    base, one, other = ([letter.rjust(9).encode() for letter in text] for text in ("123", owner_text, updated))
    assert merge_by_line(base, one, other) is None
    assert merge_by_line(base, one, one) == one


PYPROJECT = """\
[project]
name = "shop"
version = "0.1.0"
description = "A server"
readme = "README.md"
"""


def test_changed_answers_next_to_the_owners_version_do_not_conflict() -> None:
    owner_text = PYPROJECT.replace("0.1.0", "1.4.2").replace("readme", 'license = "MIT"\nreadme')
    updated = PYPROJECT.replace('"shop"', '"store"').replace("A server", "Another")
    expected = owner_text.replace('"shop"', '"store"').replace("A server", "Another")
    assert merge("pyproject.toml", PYPROJECT.encode(), owner_text.encode(), updated.encode()) == (expected.encode(), 0)
    assert merge("other.toml", PYPROJECT.encode(), owner_text.encode(), updated.encode()).conflicts == 1


@pytest.mark.parametrize("path", ["pyproject.toml", "docker-compose.yml"])
@pytest.mark.parametrize("who", ["the owner", "the template"])
def test_a_line_that_one_side_adds_to_a_block_that_the_other_removes_is_a_conflict(path: str, who: str) -> None:
    """Files in which changes of two adjacent lines are no conflict otherwise."""
    old, longer, shorter = (
        KINDS[path]([("b1", (1,)), *([("b2", lines)] if lines else [])]) for lines in ((2,), (2, 3), ())
    )
    mine, new = (shorter, longer) if who == "the owner" else (longer, shorter)
    assert merge(path, old.encode(), mine.encode(), new.encode()).conflicts == 1


def test_a_line_of_pyproject_that_both_sides_change_is_a_conflict() -> None:
    owner_text, updated = (PYPROJECT.replace("A server", text) for text in ("Mine", "Theirs"))
    assert merge("pyproject.toml", PYPROJECT.encode(), owner_text.encode(), updated.encode()).conflicts == 1


COMPOSE = """\
services:
  server:
    deploy:
      resources:
        limits: {memory: 512M, pids: 256}
    networks: [default]
  jaeger:
    deploy:
      resources:
        limits: {memory: 512M, pids: 256}
    networks: [default]
"""


def test_limits_of_a_service_beside_its_changed_networks_do_not_conflict() -> None:
    """In docker-compose.yml, where each line is an entry; each stays in its service."""
    owner_text = COMPOSE.replace("512M", "777M", 1)
    updated = COMPOSE.replace("networks: [default]", "networks: [traces]")
    expected = owner_text.replace("networks: [default]", "networks: [traces]")
    assert merge("docker-compose.yml", COMPOSE.encode(), owner_text.encode(), updated.encode()) == (
        expected.encode(),
        0,
    )
    assert merge("other.yml", COMPOSE.encode(), owner_text.encode(), updated.encode()).conflicts == 1
    both = updated.replace("512M", "1G")
    assert merge("docker-compose.yml", COMPOSE.encode(), owner_text.encode(), both.encode()).conflicts == 1


# --- Files whose end is the owner's --------------------------------------------------------------------------------

ENV = "#HOST=127.0.0.1\n#PORT=8000\n"


@pytest.mark.parametrize("path", [".env.example", ".gitignore"])
@pytest.mark.parametrize("change", ["", "#HOST=0.0.0.0\n"], ids=["appended only", "edited as well"])
def test_lines_appended_by_both_sides_are_no_conflict(path: str, change: str) -> None:
    appended = "# The map's key\n#MAP_KEY=\n"
    edited = (change or "#HOST=127.0.0.1\n") + "#PORT=8000\n" + appended
    updated = ENV + "\n# Features\n#ENABLE_METRICS=true\n"
    expected = (change or "#HOST=127.0.0.1\n") + updated.removeprefix("#HOST=127.0.0.1\n") + appended
    merged = merge(path, ENV.encode(), edited.encode(), updated.encode())
    assert merged == (expected.encode(), 0)
    again = merge(path, updated.encode(), merged.content, (updated + "#NEW=1\n").encode())
    assert again == ((expected.removesuffix(appended) + "#NEW=1\n" + appended).encode(), 0)


def test_an_appended_line_may_end_like_the_last_line_of_the_template() -> None:
    merged = merge(".gitignore", b"*.log\n.venv/\n", b"*.log\n.venv/\nsub/.venv/\n", b"*.log\n.venv/\ndist/\n")
    assert merged == (b"*.log\n.venv/\ndist/\nsub/.venv/\n", 0)


def test_lines_below_the_moved_last_line_of_the_template_are_not_appended() -> None:
    """They are the template's, so it may delete them."""
    merged = merge(".gitignore", b"*.log\n.venv/\n", b".venv/\n*.log\n", b".venv/\n")
    assert merged.conflicts == 1
    assert "*.log" not in outside(merged.content)


def test_lines_appended_by_both_sides_of_another_file_are_a_conflict() -> None:
    assert merge("Dockerfile", b"FROM a\n", b"FROM a\nUSER b\n", b"FROM a\nUSER c\n").conflicts == 1
