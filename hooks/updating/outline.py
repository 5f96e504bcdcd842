"""Where the lines of a file stand: the block of each one, by indentation, heading or table.

Two files that repeat themselves have many equal lines, and a comparison of lines alone may take one for another: the
panels of a dashboard, the services of a compose file, the tables of pyproject.toml. `labels` gives each line of three
versions of a file a label of its block, so that equal lines of different blocks differ. No parser of the language is
involved: any text has an outline, and a wrong one costs at most a conflict.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

LABEL = 8
"""The length of a label."""

ALIKE = 0.5
"""The share that two blocks have to have in common to be one block that was renamed: of lines that no other has."""

DEFINITION = re.compile(r"(?:async )?((?:def|class) \w+)")
ENTRY = re.compile(r"[\"']?([\w.$/ -]+)[\"']?\s*[:=]")
IDENTITY = ('"title":', '"name":', '"uid":', '"refId":', '"id":')
"""Members by which an object of a JSON array is known, the best first: its opening line is the same for all.

Numbers come last, since Grafana's are given anew where a panel is inserted.
"""

HEADING = re.compile(r"(#{1,6})\s+(.+)")
FENCE = re.compile(r"\s*(```|~~~)")
TABLES = -2.0
"""The indentation of TOML's tables. Each is known by its name, however much it has in common with another."""

TABLE = re.compile(r"\[.+\]\s*(?:#.*)?$")


@dataclass(eq=False)
class Block:
    """Lines that belong together: one that opens them, what is indented below it, and what closes them."""

    key: str
    indent: float
    parent: Block | None = None
    children: list[Block] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """The numbers of its own lines, those of its children excepted."""
    texts: Counter[str] = field(default_factory=Counter)
    """Its lines and those of its children, without indentation."""
    label: str = ""

    @property
    def path(self) -> tuple[str, ...]:
        return (*self.parent.path, self.key) if self.parent else ()

    def open(self, key: str, indent: float) -> Block:
        child = Block(key, indent, self)
        self.children.append(child)
        return child


class Outline:
    """The blocks of one version of a file."""

    def __init__(self, path: str, lines: Sequence[bytes]) -> None:
        self.texts = [line.decode(errors="surrogateescape").rstrip().expandtabs(4) for line in lines]
        self.root = Block("", -1.0)
        self.of: list[Block] = [self.root] * len(lines)
        """The block of each line."""
        at = 0
        for section, end in self._sections(path):
            self._indented(section, at, end)
            at = end
        for block in self._blocks(self.root):
            self._identify(block)
        self._count(self.root)

    def _sections(self, path: str) -> Iterator[tuple[Block, int]]:
        """Each section, by Markdown's headings or TOML's tables, and where it ends; the whole of any other file."""
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
            self._place(start, section)
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
                blank = self._place_all(blank, outer)
                self._place(number, outer)
                continue
            while block is not section and (block.indent > indent or (block.indent == indent and not closes)):
                if block.indent == indent and block.key.startswith("@") and not blank:
                    block.key = _key(text)  # of what is decorated
                    break
                block = block.parent or section
            blank = self._place_all(blank, block)
            if block.indent < indent and self._opens(number, end, indent):
                outer, block = block, block.open(_key(text), indent)
                leading = number - 1
                while leading >= start and self.of[leading] is outer and self._leads(leading, indent):
                    outer.lines.remove(leading)
                    self._place(leading, block)
                    leading -= 1
            self._place(number, block)
        self._place_all(blank, section)

    def _leads(self, number: int, indent: float) -> bool:
        """Whether a line is a comment or decorator that belongs to the block which the next line opens."""
        text = self.texts[number]
        return bool(text) and text.lstrip()[0] in "@#" and _indent(text) == indent

    def _opens(self, number: int, end: int, indent: float) -> bool:
        for following in range(number + 1, end):
            if self.texts[following] and not _is_comment(self.texts[following]):
                return _indent(self.texts[following]) > indent
        return False

    def _place_all(self, numbers: list[int], block: Block) -> list[int]:
        for number in numbers:
            self._place(number, block)
        return []

    def _place(self, number: int, block: Block) -> None:
        self.of[number] = block
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
    """The indentation of a line; an item of a list is half a column deeper than the key that it belongs to."""
    stripped = text.lstrip()
    return len(text) - len(stripped) + (0.5 if stripped.startswith("- ") or stripped == "-" else 0.0)


def _is_comment(text: str) -> bool:
    return text.lstrip().startswith("#")


def _key(text: str) -> str:
    """What a block is known by among its siblings, from the line that opens it."""
    stripped = text.strip()
    if definition := DEFINITION.match(stripped):
        return definition[1]
    if (entry := ENTRY.match(stripped)) and not stripped.startswith("- "):
        return entry[1]
    return stripped


def labels(path: str, base: Sequence[bytes], *others: Sequence[bytes]) -> list[list[bytes]]:
    """A label for each line of `base` and of other versions of the same file, equal where the block is the same.

    The last line, which is empty where a file ends in a line break, stands in no block.
    """
    first = Outline(path, base)
    for number, block in enumerate([first.root, *first._blocks(first.root)]):
        block.label = f"{number:0{LABEL}x}"
    outlines = [first]
    for lines in others:
        outline = Outline(path, lines)
        outline.root.label = first.root.label
        _recognise(first.root, outline.root)
        outlines.append(outline)
    for outline in outlines:
        outline.of[-1] = outline.root
    return [[block.label.encode() for block in outline.of] for outline in outlines]


def _recognise(known: Block, block: Block) -> None:
    """Give the children of a block the labels of the same ones in the first version, and new ones to the rest."""
    pairs = dict(_pairs(known.children, block.children))
    for child in block.children:
        if same := pairs.get(child):
            child.label = same.label
            _recognise(same, child)
        else:
            _name_anew(child)


def _name_anew(block: Block) -> None:
    """A block that the first version lacks: equal ones in two later versions get equal labels."""
    content = repr((block.parent.label if block.parent else "", block.key, sorted(block.texts.items())))
    block.label = "n" + hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[: LABEL - 1]
    for child in block.children:
        _name_anew(child)


def _pairs(known: Sequence[Block], given: Sequence[Block]) -> Iterator[tuple[Block, Block]]:
    """Blocks of a later version with the same ones of the first.

    The same are, in this order: the only ones of a key, equal ones of which both versions have the same number, and
    those that are more alike to each other than to any further one. Lines that several blocks of a version have make
    none alike: two panels of a dashboard share most of theirs.
    """
    old, new = list(known), list(given)
    for kind, single in ((_by_key, True), (_by_text, False)):
        groups: dict[object, tuple[list[Block], list[Block]]] = {}
        for side, blocks in enumerate((old, new)):
            for block in blocks:
                groups.setdefault(kind(block), ([], []))[side].append(block)
        found = [pair for pair in groups.values() if len(pair[0]) == len(pair[1]) and (len(pair[0]) == 1 or not single)]
        for olds, news in found:
            yield from zip(news, olds, strict=True)
        old = [block for block in old if not any(block in olds for olds, _ in found)]
        new = [block for block in new if not any(block in news for _, news in found)]
    if not (old and new):
        return
    counts = [Counter(text for block in blocks for text in block.texts) for blocks in (known, given)]
    shared = {text for count in counts for text, times in count.items() if times > 1}
    shares = {(one, other): _likeness(one, other, shared) for one in new for other in old}
    for one in new:
        for other in old:
            share = shares[one, other]
            rivals = [shares[one, rival] for rival in old if rival is not other]
            rivals += [shares[rival, other] for rival in new if rival is not one]
            if share >= ALIKE and all(rival < share for rival in rivals):
                yield one, other


def _by_key(block: Block) -> object:
    return block.key


def _by_text(block: Block) -> object:
    return block.key, frozenset(block.texts.items())


def _likeness(one: Block, other: Block, shared: set[str]) -> float:
    """The share of their own lines that two blocks have in common."""
    if one.indent == TABLES and one.key != other.key:
        return 0.0
    texts = [
        Counter({text: times for text, times in block.texts.items() if text not in shared}) for block in (one, other)
    ]
    total = sum(sum(counted.values()) for counted in texts)
    return 2 * sum((texts[0] & texts[1]).values()) / total if total else 0.0
