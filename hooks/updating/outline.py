"""The outline of a file: the block of each line, by indentation, heading or table.

Files with repeated blocks have many equal lines, such as the panels of a dashboard, the services of a compose file and
the tables of pyproject.toml, and a comparison of lines alone may confuse them. `outlines` gives the blocks of three
versions of a file labels, by which equal lines of different blocks differ. No parser of the language is involved: any
text has an outline, and a wrong one costs at most a conflict.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LABEL = 8
"""The length of a label, in characters."""

MIN_SIMILARITY = 0.5
"""Minimum share of their unique lines that two blocks have in common to count as one renamed block, 0 to 1."""

DEFINITION = re.compile(r"(?:async )?((?:def|class) \w+)")
ENTRY = re.compile(r"[\"']?([\w.$/ -]+)[\"']?\s*[:=]")
IDENTITY = ('"title":', '"name":', '"uid":', '"refId":', '"id":')
"""Members that identify an object of a JSON array, the most reliable first: all objects have the same opening line.

Numbers come last, since Grafana renumbers panels when one is inserted.
"""

HEADING = re.compile(r"(#{1,6})\s+(.+)")
FENCE = re.compile(r"\s*(```|~~~)")
TABLES = -2.0
"""The indentation of TOML's tables, which are identified by name only, however similar they are."""

TABLE = re.compile(r"\[.+\]\s*(?:#.*)?$")


@dataclass(eq=False)
class Block:
    """Lines that belong together: an opening line, the lines indented below it, and closing ones."""

    key: str
    indent: float
    parent: Block | None = None
    children: list[Block] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The numbers of its own lines, without those of its children."""
    texts: Counter[str] = field(default_factory=Counter)
    """Its lines and those of its children, without indentation."""
    label: str = ""

    @property
    def first(self) -> int:
        """The number of its first line."""
        return min([*self.lines, *(child.first for child in self.children)])

    @property
    def last(self) -> int:
        """The number of its last line."""
        return max([*self.lines, *(child.last for child in self.children)])

    def open(self, key: str, indent: float) -> Block:
        child = Block(key, indent, self)
        self.children.append(child)
        return child


class Outline:
    """The blocks of one version of a file."""

    def __init__(self, path: str, lines: Sequence[bytes]) -> None:
        self.texts = [line.decode(errors="surrogateescape").rstrip().expandtabs(4) for line in lines]
        self.root = Block("", -1.0)
        self.block_of_line: list[Block] = [self.root] * len(lines)
        """The block of each line."""
        start = 0
        for section, end in self._sections(path):
            self._indented(section, start, end)
            start = end
        for block in self.blocks():
            self._identify(block)
        self._count(self.root)

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks but the whole file, each before its children."""
        return self._blocks(self.root)

    def _sections(self, path: str) -> Iterator[tuple[Block, int]]:
        """Yield each section and its end line, by Markdown's headings or TOML's tables; else the whole file."""
        kind = path.rpartition(".")[2].lower()
        section, fenced = self.root, False
        for number, text in enumerate(self.texts):
            if kind == "md":
                fenced ^= bool(FENCE.match(text))
                if (heading := HEADING.match(text)) and not fenced:
                    yield section, number
                    level = len(heading[1]) - 10.0
                    while section.parent and section.indent >= level:
                        section = section.parent
                    section = section.open(heading[2], level)
            elif kind == "toml" and TABLE.match(text):
                yield section, number
                section = self.root.open(text.partition("]")[0], TABLES)
        yield section, len(self.texts)

    def _indented(self, section: Block, start: int, end: int) -> None:
        """Place the lines of a section by their indentation."""
        block, blank = section, list[int]()
        if section.parent:  # its heading
            self._add_line(start, section)
            start += 1
        for number in range(start, end):
            text = self.texts[number]
            if not text:
                blank.append(number)
                continue
            indent, closes = _indent(text), text.lstrip()[0] in ")]}"
            if _is_comment(text):  # its indentation ends no block
                outer = block
                while outer is not section and outer.indent >= indent:
                    outer = outer.parent or section
                blank = self._add_lines(blank, outer)
                self._add_line(number, outer)
                continue
            while block is not section and (block.indent > indent or (block.indent == indent and not closes)):
                if block.indent == indent and block.key.startswith("@") and not blank:
                    block.key = _key(text)  # the key of what is decorated
                    break
                block = block.parent or section
            blank = self._add_lines(blank, block)
            if block.indent < indent and self._opens(number, end, indent):
                outer, block = block, block.open(_key(text), indent)
                leading = number - 1
                while (
                    leading >= start
                    and self.block_of_line[leading] is outer
                    and self._belongs_to_next_block(leading, indent)
                ):
                    outer.lines.remove(leading)
                    self._add_line(leading, block)
                    leading -= 1
            self._add_line(number, block)
        self._add_lines(blank, section)

    def _belongs_to_next_block(self, number: int, indent: float) -> bool:
        """Return whether a line is a comment or decorator of the block that the next line opens."""
        text = self.texts[number]
        return bool(text) and text.lstrip()[0] in "@#" and _indent(text) == indent

    def _opens(self, number: int, end: int, indent: float) -> bool:
        """Return whether the line after `number` is indented deeper."""
        for later in range(number + 1, end):
            if self.texts[later] and not _is_comment(self.texts[later]):
                return _indent(self.texts[later]) > indent
        return False

    def _add_lines(self, numbers: list[int], block: Block) -> list[int]:
        for number in numbers:
            self._add_line(number, block)
        return []

    def _add_line(self, number: int, block: Block) -> None:
        self.block_of_line[number] = block
        block.lines.append(number)

    def _blocks(self, block: Block) -> Iterator[Block]:
        for child in block.children:
            yield child
            yield from self._blocks(child)

    def _identify(self, block: Block) -> None:
        if block.key in ("{", "- {"):
            texts = [self.texts[number].strip() for number in block.lines]
            members = (text for name in IDENTITY for text in texts if text.startswith(name))
            block.key += next(members, "").removesuffix(",")

    def _count(self, block: Block) -> Counter[str]:
        block.texts = Counter(self.texts[number].strip() for number in block.lines)
        for child in block.children:
            block.texts += self._count(child)
        return block.texts


def _indent(text: str) -> float:
    """Return the indentation of a line in columns; a list item counts half a column more than its key."""
    stripped = text.lstrip()
    return len(text) - len(stripped) + (0.5 if stripped.startswith("- ") or stripped == "-" else 0.0)


def _is_comment(text: str) -> bool:
    return text.lstrip().startswith("#")


def _key(text: str) -> str:
    """Return what identifies a block among its siblings, from its opening line."""
    stripped = text.strip()
    if definition := DEFINITION.match(stripped):
        return definition[1]
    if (entry := ENTRY.match(stripped)) and not stripped.startswith("- "):
        return entry[1]
    return stripped


def outlines(path: str, base: Sequence[bytes], *others: Sequence[bytes]) -> list[Outline]:
    """Return the outlines of `base` and of each other version; blocks that match have the same label.

    The last line, which is empty if a file ends in a line break, is in no block.
    """
    first = Outline(path, base)
    for number, block in enumerate([first.root, *first.blocks()]):
        block.label = f"{number:0{LABEL}x}"
    versions = [first]
    for lines in others:
        outline = Outline(path, lines)
        outline.root.label = first.root.label
        _copy_labels(first.root, outline.root)
        versions.append(outline)
    for outline in versions:
        outline.block_of_line[-1] = outline.root
    return versions


def _copy_labels(first: Block, block: Block) -> None:
    """Give the children of a block the labels of the matching ones in the first version, and new labels to the rest."""
    pairs = dict(matching_blocks(first.children, block.children))
    for child in block.children:
        if same := pairs.get(child):
            child.label = same.label
            _copy_labels(same, child)
        else:
            _label_new_block(child)


def _label_new_block(block: Block) -> None:
    """Label a block that the first version lacks; equal blocks of two later versions get equal labels."""
    content = repr((block.parent.label if block.parent else "", block.key, sorted(block.texts.items())))
    block.label = "n" + hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[: LABEL - 1]
    for child in block.children:
        _label_new_block(child)


def matching_blocks(first_blocks: Sequence[Block], later_blocks: Sequence[Block]) -> Iterator[tuple[Block, Block]]:
    """Yield each block of a later version with the matching block of the first.

    Blocks match, in this order: if they are the only ones with their key; if they are equal and both versions have the
    same number of them; if they are more similar to each other than to any other block. Lines that several blocks of a
    version have do not count: two panels of a dashboard share most of their lines.
    """
    old, new = list(first_blocks), list(later_blocks)
    for kind, single in ((_by_key, True), (_by_text, False)):
        groups: dict[object, tuple[list[Block], list[Block]]] = {}
        for side, blocks in enumerate((old, new)):
            for block in blocks:
                groups.setdefault(kind(block), ([], []))[side].append(block)
        matches = [
            pair for pair in groups.values() if len(pair[0]) == len(pair[1]) and (len(pair[0]) == 1 or not single)
        ]
        for olds, news in matches:
            yield from zip(news, olds, strict=True)
        old = [block for block in old if not any(block in olds for olds, _ in matches)]
        new = [block for block in new if not any(block in news for _, news in matches)]
    if not (old and new):
        return
    counts = [Counter(text for block in blocks for text in block.texts) for blocks in (first_blocks, later_blocks)]
    shared = {text for count in counts for text, times in count.items() if times > 1}
    similarities = {(one, other): similarity(one, other, shared) for one in new for other in old}
    for one in new:
        for other in old:
            likeness = similarities[one, other]
            rivals = [similarities[one, rival] for rival in old if rival is not other]
            rivals += [similarities[rival, other] for rival in new if rival is not one]
            if likeness >= MIN_SIMILARITY and all(rival < likeness for rival in rivals):
                yield one, other


def _by_key(block: Block) -> object:
    return block.key


def _by_text(block: Block) -> object:
    return block.key, frozenset(block.texts.items())


def similarity(one: Block, other: Block, shared: set[str]) -> float:
    """Return the share of their unique lines that two blocks have in common, 0 to 1."""
    if one.indent == TABLES and one.key != other.key:
        return 0.0
    texts = [
        Counter({text: times for text, times in block.texts.items() if text not in shared}) for block in (one, other)
    ]
    total = sum(sum(counted.values()) for counted in texts)
    return 2 * sum((texts[0] & texts[1]).values()) / total if total else 0.0
