"""Example texts for regular expressions.

Covers the syntax that pydantic's engine (Rust's `regex`) shares with ECMA-262: literals, classes, groups, alternatives,
repetition and anchors. The texts are candidates: the caller checks them with the engine itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_TEXT = 10_000
"""Characters; nested repetitions could make a text of any length."""

MAX_REPETITIONS = 500
REPETITIONS = (0, 1, 2, 3, 8, 16, 24, 32, 36, 40, 64)
"""Numbers of repetitions to try, where a pattern leaves the number open."""

CANDIDATES = "ab1A_- .:"
"""Characters that are tried for a negated class."""


class UnsupportedPatternError(ValueError):
    """The pattern has syntax of which no example can be made."""


def matching_texts(pattern: str, minimum_length: int = 0) -> list[str]:
    """Return texts that may match `pattern`, with more and more repetitions; none where it is not supported.

    Args:
        minimum_length: A number of repetitions to try as well.
    """
    try:
        parsed = _Parser(pattern).parse()
    except (UnsupportedPatternError, RecursionError):
        return []
    counts = dict.fromkeys((*REPETITIONS[:4], minimum_length, *REPETITIONS[4:]))
    texts: list[str] = []
    for count in counts:
        try:
            texts.append(parsed.example(min(count, MAX_REPETITIONS)))
        except (UnsupportedPatternError, RecursionError):
            continue
    return texts


# --- The parts of a pattern --------------------------------------------------------------------------------------


class _Part(Protocol):
    def example(self, repetitions: int) -> str:
        """Return a text that matches, with open repetitions made this many times where they allow it."""


@dataclass(frozen=True)
class _Text:
    text: str

    def example(self, repetitions: int) -> str:
        return self.text


@dataclass(frozen=True)
class _Class:
    """A set of characters: those between the ends of each range, and those of the predicates."""

    ranges: tuple[tuple[str, str], ...]
    predicates: tuple[Callable[[str], bool], ...]
    first: str
    """An example of the first part of the set."""
    negated: bool = False

    def example(self, repetitions: int) -> str:
        if not self.negated:
            return self.first
        for candidate in CANDIDATES:
            in_range = any(low <= candidate <= high for low, high in self.ranges)
            if not in_range and not any(predicate(candidate) for predicate in self.predicates):
                return candidate
        raise UnsupportedPatternError("a negated class")


@dataclass(frozen=True)
class _Sequence:
    parts: Sequence[_Part]

    def example(self, repetitions: int) -> str:
        text = "".join(part.example(repetitions) for part in self.parts)
        if len(text) > MAX_TEXT:
            raise UnsupportedPatternError("a long text")
        return text


@dataclass(frozen=True)
class _Repeat:
    part: _Part
    minimum: int
    maximum: int | None

    def example(self, repetitions: int) -> str:
        count = max(self.minimum, repetitions)
        count = min(count, MAX_REPETITIONS if self.maximum is None else min(self.maximum, MAX_REPETITIONS))
        return self.part.example(repetitions) * count


# --- The parser --------------------------------------------------------------------------------------------------


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


SHORTHAND: dict[str, tuple[str, Callable[[str], bool]]] = {
    "d": ("1", str.isdigit),
    "w": ("a", _is_word),
    "s": (" ", str.isspace),
    "D": ("a", lambda char: not char.isdigit()),
    "W": ("-", lambda char: not _is_word(char)),
    "S": ("-", lambda char: not char.isspace()),
}
"""An example and the predicate of each shorthand class, such as `\\d`."""

CONTROL_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}
ANCHOR_ESCAPES = "bBAzZ"
HEXADECIMAL_DIGITS = {"x": 2, "u": 4, "U": 8}

QUANTIFIER = re.compile(r"\{(\d*)(,?)(\d*)\}")
GROUP_START = re.compile(r"\?(?:[a-wyz]*(?:-[a-z]+)?:|P?<[A-Za-z_][\w.\[\]]*>)")
"""A group that captures nothing, possibly with flags, or that has a name. The flag x changes the syntax."""

FLAGS = re.compile(r"\?[a-wyz]*(?:-[a-z]+)?\)")
"""Flags for the rest of a group."""


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0

    def parse(self) -> _Part:
        part = self._alternatives()
        if self.position < len(self.pattern):
            raise UnsupportedPatternError("an unbalanced parenthesis")
        return part

    def _alternatives(self) -> _Part:
        """Read up to a closing parenthesis or the end, and return the first alternative."""
        first = self._sequence()
        while self._skip("|"):
            self._sequence()
        return first

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while self.position < len(self.pattern) and self._peek() not in "|)":
            part = self._atom()
            while (quantifier := self._quantifier()) is not None:
                part = _Repeat(part, *quantifier)
            parts.append(part)
        return _Sequence(parts)

    def _atom(self) -> _Part:
        char = self._next()
        if char in "^$":
            return _Text("")
        if char == ".":
            return _Text("a")
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape()
        if char in "*+?":
            raise UnsupportedPatternError("a quantifier without a part")
        return _Text(char)

    def _quantifier(self) -> tuple[int, int | None] | None:
        """Read a quantifier, if there is one, with the `?` that makes it lazy."""
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._peek())
        if bounds is not None:
            self.position += 1
        elif match := QUANTIFIER.match(self.pattern, self.position):
            low, comma, high = match.groups()
            if not low and not high:
                return None
            self.position = match.end()
            bounds = (int(low or 0), int(high) if high else None if comma else int(low))
        else:
            return None
        self._skip("?")
        return bounds

    def _group(self) -> _Part:
        if match := FLAGS.match(self.pattern, self.position):
            self.position = match.end()
            return _Text("")
        if self._peek() == "?":
            match = GROUP_START.match(self.pattern, self.position)
            if match is None:  # look-around, among others
                raise UnsupportedPatternError("a group of this kind")
            self.position = match.end()
        part = self._alternatives()
        if not self._skip(")"):
            raise UnsupportedPatternError("an unbalanced parenthesis")
        return part

    def _class(self) -> _Part:
        negated = self._skip("^")
        ranges: list[tuple[str, str]] = []
        predicates: list[Callable[[str], bool]] = []
        first = ""
        is_start = True
        while is_start or not self._skip("]"):
            is_start = False
            char = self._next()
            if char == "[":  # a nested class or a POSIX class, which ECMA-262 does not have
                raise UnsupportedPatternError("a class within a class")
            if char == "\\" and self._peek() in SHORTHAND:
                example, predicate = SHORTHAND[self._next()]
                predicates.append(predicate)
                first = first or example
                continue
            low = self._escaped_char() if char == "\\" else char
            high = self._range_end(low)
            ranges.append((low, high))
            first = first or low
        return _Class(tuple(ranges), tuple(predicates), first, negated)

    def _range_end(self, low: str) -> str:
        """Read `-z` of the range `a-z`; a character alone is a range of one."""
        following = self.pattern[self.position + 1 : self.position + 3]
        ends_class = following[:1] in ("]", "")
        is_shorthand = following[:1] == "\\" and following[1:] in SHORTHAND
        if self._peek() != "-" or ends_class or is_shorthand:
            return low
        self.position += 1
        char = self._next()
        high = self._escaped_char() if char == "\\" else char
        if high < low:
            raise UnsupportedPatternError("a range with its ends reversed")
        return high

    def _escape(self) -> _Part:
        char = self._peek()
        if char in SHORTHAND:
            self.position += 1
            example, predicate = SHORTHAND[char]
            return _Class((), (predicate,), example)
        if char and char in ANCHOR_ESCAPES:
            self.position += 1
            return _Text("")
        return _Text(self._escaped_char())

    def _escaped_char(self) -> str:
        """Read what follows a backslash and stands for one character."""
        char = self._next()
        if char in CONTROL_ESCAPES:
            return CONTROL_ESCAPES[char]
        if char in HEXADECIMAL_DIGITS:
            return self._code_point(HEXADECIMAL_DIGITS[char])
        if char.isalnum():  # back-references, Unicode properties, and what has no meaning
            raise UnsupportedPatternError(f"\\{char}")
        return char

    def _code_point(self, digits: int) -> str:
        pattern = rf"\{{([0-9A-Fa-f]{{1,8}})\}}|([0-9A-Fa-f]{{{digits}}})"
        match = re.compile(pattern).match(self.pattern, self.position)
        if match is None:
            raise UnsupportedPatternError("an incomplete escape")
        self.position = match.end()
        code = int(match[1] or match[2], 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise UnsupportedPatternError("a code point that is no character")
        return chr(code)

    def _peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise UnsupportedPatternError("an unexpected end")
        self.position += 1
        return char

    def _skip(self, char: str) -> bool:
        """Read `char` if it is next, and return whether it was."""
        if self._peek() != char:
            return False
        self.position += 1
        return True
