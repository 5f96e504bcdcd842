"""Edits of a file that the new version splits: each is placed in its new file, in a conflict, or reported.

The blocks of the old version are matched with those of all new files, and the lines of matching blocks with each other.
A line has an image in a new file if its text is there once in the matching block, or is next to lines with images as in
the old version. An edit whose lines have one image is certain. Otherwise the lines between the nearest images above and
below it are a conflict; without such images in one new file, the edit is reported with the places that it could have.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from .alignment import edits
from .merge import AFTER, BEFORE, LAST, with_lf
from .outline import DEFINITION, MIN_SIMILARITY, Block, Outline, matching_blocks, outlines, similarity

Lines = list[bytes]


class Hunk(NamedTuple):
    """One edit: a range of lines of the old version, and the lines that replace it."""

    start: int
    end: int
    lines: list[bytes]
    line: int
    """The line number in the owner's file, counted from 1."""
    block: Block
    """The innermost block of the old version that contains all of its lines."""
    in_file: Mapping[str, list[bytes]]
    """`lines` by new file, with the imports as they are there."""


class Place(NamedTuple):
    """A line of a new file, counted from 0."""

    path: str
    line: int


class Change(NamedTuple):
    """Lines of a new file, from `place` on, and those that replace them."""

    place: Place
    length: int
    lines: list[bytes]


class Region(NamedTuple):
    """Lines between two lines with images: numbers in the old version, and in a new file, each without its end."""

    start: int
    end: int
    place: Place
    length: int


class Unplaced(NamedTuple):
    """An edit that was not carried over."""

    line: int
    text: str
    places: list[str]
    """`path:line` of the places that it could have."""


class Carried(NamedTuple):
    """The new files with the owner's edits of the old one."""

    contents: dict[str, bytes]
    """The changed files."""
    placed: int
    """The number of edits that are in them."""
    conflicts: dict[str, int]
    """The number of conflicts by path."""
    in_conflict: int
    """The number of edits that are in conflicts."""
    unplaced: list[Unplaced]


def carry(
    path: str,
    base: bytes,
    edited: bytes,
    targets: Mapping[str, bytes],
    relocated: Mapping[str, Sequence[bytes]] = MappingProxyType({}),
) -> Carried:
    """Place each edit between `base` and `edited` in the new files.

    Args:
        path: the path of the old file.
        base: the old version of the template.
        edited: the owner's version of it.
        targets: the contents of the new files by path.
        relocated: `base` and `edited` by path of a new file, with the imports of their lines as they are there.
    """
    old, new = (_lines(content) for content in (base, edited))
    before, after = outlines(path, old, new)
    versions = {target: [_lines(content) for content in relocated.get(target, (base, edited))] for target in targets}
    split = _Split(
        old,
        before,
        {target: _lines(content) for target, content in targets.items()},
        {target: lines for target, (lines, _) in versions.items()},
    )
    changes: list[Change] = []
    regions: dict[Region, list[Hunk]] = defaultdict(list)
    unplaced: list[tuple[Hunk, list[Place]]] = []
    pending = list(
        reversed(_hunks(old, before, new, after, {target: lines for target, (_, lines) in versions.items()}))
    )
    placed = in_conflict = 0
    while pending:
        hunk = pending.pop()
        places = split.places(hunk)
        if len(places) == 1 and split.is_certain(hunk):
            changes.append(places[0])
            placed += 1
        elif not hunk.lines and hunk.end - hunk.start > 1:  # deleted lines may have gone to several files
            pending += reversed(split.single_lines(hunk))
        elif not places and (region := split.region(hunk)):
            regions[region].append(hunk)
        else:
            unplaced.append((hunk, [change.place for change in places] or split.candidates(hunk)))
    conflicts: Counter[str] = Counter()
    for region, hunks in _united(regions):
        change, conflicting = split.resolve(region, hunks)
        changes.append(change)
        conflicts[change.place.path] += conflicting
        in_conflict += len(hunks) if conflicting else 0
        placed += 0 if conflicting else len(hunks)
    contents = {target: list(split.texts[target]) for target in sorted({change.place.path for change in changes})}
    for (target, line), count, lines in sorted(changes, reverse=True, key=lambda change: change.place):
        contents[target][line : line + count] = lines
    return Carried(
        {target: b"\n".join(lines) for target, lines in contents.items()},
        placed,
        {target: number for target, number in conflicts.items() if number},
        in_conflict,
        [split.unplaced(hunk, places, changes) for hunk, places in unplaced],
    )


class _Split:
    """The old version of a file, the new files, and where each of its lines is in them."""

    def __init__(
        self, lines: Lines, outline: Outline, texts: Mapping[str, Lines], lines_in: Mapping[str, Lines]
    ) -> None:
        self.lines = lines
        self.lines_in = lines_in
        """`lines` by new file, with the imports as they are there."""
        self.outline = outline
        self.texts = texts
        self.outlines = {target: Outline(target, lines) for target, lines in self.texts.items()}
        self.path_of = {
            block: target for target, outline in self.outlines.items() for block in [outline.root, *outline.blocks()]
        }
        self.matches: dict[Block, list[Block]] = {}
        """The matching blocks in the new files; several if it is unknown which of them the old one is."""
        self._match_blocks()
        self.images: list[set[Place]] = [set() for _ in self.lines]
        self.claims: dict[Place, set[int]] = defaultdict(set)
        """The lines of the old version by image."""
        self._match_lines()

    # --- Blocks ------------------------------------------------------------------------------------------------

    def _match_blocks(self) -> None:
        roots = [outline.root for outline in self.outlines.values()]
        self.matches[self.outline.root] = roots
        self._match_children(self.outline.root, roots)
        matched = {block for blocks in self.matches.values() for block in blocks}
        rest = [block for block in self.path_of if block not in matched and _is_named(block)]
        for block in self.outline.blocks():  # a method may have become a function, and a section a page
            if block not in self.matches and _is_named(block):
                likeness = {other: similarity(block, other, set()) for other in rest if _alike(block, other)}
                self._match(block, [other for other, value in likeness.items() if value == max(likeness.values())])

    def _match_children(self, block: Block, others: list[Block]) -> None:
        children = [child for other in others for child in other.children]
        certain = {one: other for other, one in matching_blocks(block.children, children)}
        for child in block.children:
            equal = [other for other in children if (other.key, other.texts) == (child.key, child.texts)]
            if len(equal) > 1 and len(others) > 1:
                self._match(child, equal)
            elif child in certain:
                self._match(child, [certain[child]])
            else:
                self._match(child, [other for other in children if _alike(child, other)])

    def _match(self, block: Block, others: list[Block]) -> None:
        if others:
            self.matches[block] = others
            self._match_children(block, others)

    # --- Lines -------------------------------------------------------------------------------------------------

    def _match_lines(self) -> None:
        pairs = [pair for block, others in self.matches.items() for other in others for pair in self._own(block, other)]
        seen = set(pairs)
        while pairs:
            number, place = pairs.pop()
            for step in (-1, 1):  # the lines beside these, up to a blank line: the next paragraph may be another one
                pair = number + step, Place(place.path, place.line + step)
                if pair not in seen and self._correspond(*pair):
                    seen.add(pair)
                    pairs.append(pair)
        for number, place in seen:
            self.images[number].add(place)
            self.claims[place].add(number)

    def _own(self, block: Block, other: Block) -> Iterator[tuple[int, Place]]:
        """Yield the lines of two matching blocks, without those of their children, that both have once."""
        path = self.path_of[other]
        sides = [
            [(number, lines[number]) for number in sorted(of.lines) if lines[number].strip()]
            for of, lines in ((block, self.lines_in[path]), (other, self.texts[path]))
        ]
        if [text for _, text in sides[0]] == [text for _, text in sides[1]]:
            for (number, _), (line, _) in zip(*sides, strict=True):
                yield number, Place(path, line)
            return
        counts = [Counter(text for _, text in side) for side in sides]
        numbers = {text: number for number, text in sides[1]}
        for number, text in sides[0]:
            if counts[0][text] == counts[1][text] == 1:
                yield number, Place(path, numbers[text])

    def _correspond(self, number: int, place: Place) -> bool:
        texts = self.texts[place.path]
        return bool(
            0 <= number < len(self.lines)
            and 0 <= place.line < len(texts)
            and self.lines[number].strip()
            and self.lines_in[place.path][number] == texts[place.line]
            and self.outlines[place.path].block_of_line[place.line]
            in self.matches.get(self.outline.block_of_line[number], [])
        )

    # --- Edits -------------------------------------------------------------------------------------------------

    def places(self, hunk: Hunk) -> list[Change]:
        """Return each place that an edit has: one if it is certain."""
        old = self.lines[hunk.start : hunk.end]
        if not any(line.strip() for line in old):
            return list(self._between_neighbours(hunk))
        first = next(number for number in range(hunk.start, hunk.end) if self.lines[number].strip())
        return [
            Change(Place(path, start), len(old), hunk.in_file[path])
            for path, line in sorted(self.images[first])
            if (start := line - (first - hunk.start)) >= 0
            and self.texts[path][start : start + len(old)] == self.lines_in[path][hunk.start : hunk.end]
            and all(
                Place(path, start + number - hunk.start) in self.images[number]
                for number in range(hunk.start, hunk.end)
                if self.lines[number].strip()
            )
        ]

    def is_certain(self, hunk: Hunk) -> bool:
        """Return whether the lines of an edit, or those beside it, are no other line's images."""
        numbers = [number for number in range(hunk.start, hunk.end) if self.lines[number].strip()]
        if not numbers:
            first, last = self._span(hunk.block, self.outline, self.lines)
            neighbours = [self._neighbour(hunk, step)[0] for step in (-1, 1)]
            numbers = [number for number in neighbours if first <= number <= last]
        return all(len(self.claims[place]) == 1 for number in numbers for place in self.images[number])

    def _between_neighbours(self, hunk: Hunk) -> Iterator[Change]:
        """Yield the places of an edit that adds lines, or deletes blank ones, between two lines or a block's edges."""
        above, after = self._neighbour(hunk, -1)
        below, before = self._neighbour(hunk, 1)
        if (len(after) > 1 and above >= 0) or (len(before) > 1 and below < len(self.lines)):
            return  # beside lines that several files have, such as imports
        for path, start in sorted(after):
            for end in sorted(place.line for place in before if place.path == path):
                if start <= end and not any(line.strip() for line in self.texts[path][start:end]):
                    offset, count = hunk.start - above - 1, hunk.end - hunk.start
                    if end - start == below - above - 1:
                        yield Change(Place(path, start + offset), count, hunk.in_file[path])
                    elif not count:
                        yield Change(Place(path, min(start + offset, end)), 0, hunk.in_file[path])

    def _neighbour(self, hunk: Hunk, step: int) -> tuple[int, set[Place]]:
        """Return the next line of the block that is not blank, above or below, and the ends of its images.

        At the edge of the block: the number beyond it, and that edge of the matching blocks.
        """
        block = hunk.block
        first, last = self._span(block, self.outline, self.lines)
        number = hunk.start - 1 if step < 0 else hunk.end
        while first <= number <= last and not self.lines[number].strip():
            number += step
        if first <= number <= last:
            return number, {Place(path, line + (step < 0)) for path, line in self.images[number]}
        edges = set()
        for other in self.matches.get(block, []):
            path = self.path_of[other]
            start, end = self._span(other, self.outlines[path], self.texts[path])
            edges.add(Place(path, start if step < 0 else end + 1))
        return number, edges

    @staticmethod
    def _span(block: Block, outline: Outline, lines: list[bytes]) -> tuple[int, int]:
        return (block.first, block.last) if block is not outline.root else (0, len(lines) - 1)

    def single_lines(self, hunk: Hunk) -> list[Hunk]:
        """Return the deletion of several lines as one of each line that is not blank."""
        nothing: dict[str, Lines] = {path: [] for path in self.texts}
        return [
            Hunk(number, number + 1, [], hunk.line, self.outline.block_of_line[number], nothing)
            for number in range(hunk.start, hunk.end)
            if self.lines[number].strip()
        ]

    def region(self, hunk: Hunk) -> Region | None:
        """Return the lines around an edit up to the nearest ones with an image, if all of them are in one new file.

        Outside of blocks, an edit beside a line with an image is in that line's paragraph: the next one may have moved.
        """
        block = hunk.block
        while block not in self.matches and block.parent and block.parent is not self.outline.root:
            block = block.parent
        others = self.matches.get(block, [])
        if block is not self.outline.root and len(others) != 1:
            return None
        first, last = self._span(block, self.outline, self.lines)
        above, below = hunk.start - 1, hunk.end
        while above >= first and not (self.images[above] and self.lines[above].strip()):
            above -= 1
        while below <= last and not (self.images[below] and self.lines[below].strip()):
            below += 1
        start, end = self._image(above, first, last), self._image(below, first, last)
        if block is not self.outline.root:
            path = self.path_of[others[0]]
            start = Place(path, others[0].first - 1) if above < first else start
            end = Place(path, others[0].last + 1) if below > last else end
        if not start or not end:
            return None
        (path, before), (other_path, after) = start, end
        if path != other_path or before >= after:
            return None
        texts = self.texts[path]
        beside_images = above == hunk.start - 1, below == hunk.end
        if block is self.outline.root and beside_images == (True, False):
            below, after = (_paragraph_end(*of) for of in ((self.lines, hunk.end, below), (texts, before + 1, after)))
        elif block is self.outline.root and beside_images == (False, True):
            above = _paragraph_start(self.lines, above, hunk.start)
            before = _paragraph_start(texts, before, after)
        inside = range(before + 1, after)
        claims = {number for line in inside if texts[line].strip() for number in self.claims[Place(path, line)]}
        if not all(above < number < below for number in claims):
            return None
        partly = any(image.path == path for number in range(hunk.start, hunk.end) for image in self.images[number])
        beside = partly or any(beside_images)
        if block is self.outline.root and not (beside and any(texts[line].strip() for line in inside)):
            return None  # the lines may have moved to any file
        return Region(above + 1, below, Place(path, before + 1), len(inside))

    def _image(self, number: int, first: int, last: int) -> Place | None:
        """Return the only image of a line from `first` to `last`, if it is no other line's."""
        images = self.images[number] if first <= number <= last else set()
        return next((image for image in images if len(images) == len(self.claims[image]) == 1), None)

    def resolve(self, region: Region, hunks: Iterable[Hunk]) -> tuple[Change, bool]:
        """Return the change of a region that its edits make, and whether it is a conflict."""
        hunks = sorted(hunks, key=lambda hunk: hunk.start)
        start, end, (path, line), count = region
        lines, updated = self.lines_in[path], self.texts[path][line : line + count]
        while start < hunks[0].start and updated and lines[start] == updated[0]:
            start, line, updated = start + 1, line + 1, updated[1:]
        while end > hunks[-1].end and updated and lines[end - 1] == updated[-1]:
            end, updated = end - 1, updated[:-1]
        base = lines[start:end]
        edited = list(base)
        for hunk in reversed(hunks):
            edited[hunk.start - start : hunk.end - start] = hunk.in_file[path]
        place = Place(path, line)
        if updated in (base, edited):
            return Change(place, len(updated), edited), False
        marked = [
            b"<<<<<<< " + BEFORE.encode(),
            *edited,
            b"||||||| " + LAST.encode(),
            *base,
            b"=======",
            *updated,
            b">>>>>>> " + AFTER.encode(),
        ]
        return Change(place, len(updated), marked), True

    def candidates(self, hunk: Hunk) -> list[Place]:
        """Return the images of an edit's lines or, without any, of the lines beside it."""
        numbers = range(hunk.start, hunk.end)
        if places := {place for number in numbers if self.lines[number].strip() for place in self.images[number]}:
            return sorted(places)
        (_, above), (_, below) = self._neighbour(hunk, -1), self._neighbour(hunk, 1)
        return sorted({*(Place(path, max(line - 1, 0)) for path, line in above), *below})

    def unplaced(self, hunk: Hunk, places: Iterable[Place], changes: Iterable[Change]) -> Unplaced:
        """Describe an edit for the owner, with the places as they are after the changes."""
        offset = next((number for number, line in enumerate(hunk.lines) if line.strip()), None)
        deleted = self.lines[hunk.start : hunk.end]
        text = next((line for line in deleted if line.strip()), b"") if offset is None else hunk.lines[offset]
        shown = []
        for place in places:
            moved = sum(
                len(change.lines) - change.length
                for change in changes
                if change.place.path == place.path and change.place.line < place.line
            )
            shown.append(f"{place.path}:{place.line + moved + 1}")
        return Unplaced(hunk.line + (offset or 0), text.decode(errors="replace").strip(), shown)


def _united(regions: Mapping[Region, list[Hunk]]) -> Iterator[tuple[Region, list[Hunk]]]:
    """Yield regions with their edits; those that share lines, as of a block and of one in it, become one."""
    united: list[tuple[Region, list[Hunk]]] = []
    for region, hunks in sorted(regions.items(), key=lambda item: (item[0].place, item[0].start)):
        if united:
            last, earlier = united[-1]
            end = last.place.line + last.length
            shared = region.place.line <= end and region.start <= last.end and last.start <= region.end
            if region.place.path == last.place.path and shared:
                count = max(end, region.place.line + region.length) - last.place.line
                both = Region(min(last.start, region.start), max(last.end, region.end), last.place, count)
                united[-1] = both, earlier + hunks
                continue
        united.append((region, hunks))
    yield from united


def _paragraph_end(lines: list[bytes], first: int, end: int) -> int:
    """Return the number of the first blank line from `first` on, at most `end`."""
    return next((number for number in range(first, end) if not lines[number].strip()), end)


def _paragraph_start(lines: list[bytes], first: int, end: int) -> int:
    """Return the number of the last blank line before `end`, at least `first`."""
    return next((number for number in range(end - 1, first, -1) if not lines[number].strip()), first)


def _is_named(block: Block) -> bool:
    """Return whether a block is a definition or a section, and no statement such as `try:`."""
    return bool(DEFINITION.match(block.key)) or (block.parent is not None and block.indent < 0)


def _alike(one: Block, other: Block) -> bool:
    return one.key == other.key and similarity(one, other, set()) >= MIN_SIMILARITY


def _lines(content: bytes) -> Lines:
    return with_lf(content).split(b"\n")


def _hunks(base: Lines, before: Outline, edited: Lines, after: Outline, edited_in: Mapping[str, Lines]) -> list[Hunk]:
    """Return the edits of a file, of which the outlines have labels."""
    blocks = {block.label: block for block in [before.root, *before.blocks()]}
    one, other = (
        [block.label.encode() + line for block, line in zip(outline.block_of_line, lines, strict=True)]
        for outline, lines in ((before, base), (after, edited))
    )
    hunks = []
    for start, end, new_start, new_end in edits(one, other):
        old, new = base[start:end], edited[new_start:new_end]
        while old and new and old[0] == new[0]:  # only the label differs: the block was replaced
            del old[0], new[0]
            start, new_start = start + 1, new_start + 1
        while old and new and old[-1] == new[-1]:
            del old[-1], new[-1]
        if old or new:
            involved = [before.block_of_line[start + number] for number, line in enumerate(old) if line.strip()]
            for number, line in enumerate(new):
                if line.strip():
                    block = after.block_of_line[new_start + number]
                    while block.parent and block.label not in blocks:
                        block = block.parent
                    involved.append(blocks[block.label])
            in_file = {path: lines[new_start : new_start + len(new)] for path, lines in edited_in.items()}
            hunks.append(Hunk(start, start + len(old), new, new_start + 1, _common(involved) or before.root, in_file))
    return hunks


def _common(blocks: Iterable[Block]) -> Block | None:
    """Return the innermost block that contains all of these."""
    chains = []
    for block in blocks:
        chain = [block]
        while chain[-1].parent:
            chain.append(chain[-1].parent)
        chains.append(chain)
    return next((block for block in chains[0] if all(block in chain for chain in chains)), None) if chains else None
