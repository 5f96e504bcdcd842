"""Convert texts of a document for Python source.

A document is untrusted. Its texts reach the generated source only as identifiers (`identifiers`), as literals of ASCII
and Latin letters (`literal`) and as docstrings (`docstring`), each cut to a length.
"""

from __future__ import annotations

import re
import unicodedata

MAX_TOOL_DESCRIPTION = 1500
"""Characters; a model reads the descriptions of all tools with every request."""

MAX_FIELD_DESCRIPTION = 400
MAX_TITLE = 100
LITERAL_WIDTH = 84
DOCSTRING_WIDTH = 108

LATIN_LETTERS = frozenset(chr(code) for code in (*range(0xC0, 0xD7), *range(0xD8, 0xF7), *range(0xF8, 0x130)))
"""Letters beyond ASCII that are written as they are; every other character is escaped."""

UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Matches what controls a terminal, breaks a line or reorders its text."""


def clean_text(text: object, limit: int) -> str:
    """Return the readable part of a text, cut after a word to about `limit` characters.

    Control and format characters, such as bidirectional overrides, are removed. What is not a string gives "".
    """
    if not isinstance(text, str):
        return ""
    text = text[: 8 * limit].replace("\r\n", "\n").replace("\t", " ")
    readable = "".join(char for char in text if char in "\n " or unicodedata.category(char)[0] not in "CZ")
    lines = [re.sub(r" +", " ", line).strip() for line in readable.split("\n")]
    cleaned = re.sub(r"\n{2,}", "\n\n", "\n".join(lines)).strip()
    if len(cleaned) <= limit:
        return cleaned
    return cleaned[:limit].rsplit(None, 1)[0].rstrip(" ,;:.") + " ..."


def is_unicode(value: object) -> bool:
    """Return whether a value has no lone surrogate, which JSON can write and UTF-8 cannot."""
    return not (isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value))


def single_line(text: object, limit: int) -> str:
    """Return `clean_text` of `text` on one line."""
    return clean_text(" ".join(text[: 8 * limit].split()) if isinstance(text, str) else "", limit)


def printable(line: str) -> str:
    """Return `line` with what would control a terminal, break the line or reorder its text escaped."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), line)


def literal(value: object) -> str:
    """Return the source of a JSON value.

    Strings are in double quotes where possible, as the formatter writes them. A long string becomes several adjacent
    ones, so it needs brackets around it.
    """
    if isinstance(value, str):
        return " ".join(map(_quoted, _split_literal(value)))
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(str(key))}: {literal(item)}" for key, item in value.items()) + "}"
    raise TypeError(type(value).__name__)


def grouped_literal(value: object) -> str:
    """Return the source of a JSON value, with a string of several parts in parentheses."""
    source = literal(value)
    return f"({source})" if isinstance(value, str) and len(_split_literal(value)) > 1 else source


def docstring(text: str, indent: str) -> str:
    """Return the lines of a docstring with this text, which `clean_text` has returned."""
    lines = [part for line in text.split("\n") for part in _wrap_escaped(line, DOCSTRING_WIDTH - len(indent))]
    if len(lines) == 1:
        return f'{indent}"""{lines[0]}"""\n'
    body = "\n".join(f"{indent}{line}" if line else "" for line in lines[1:])
    return f'{indent}"""{lines[0]}\n{body}\n{indent}"""\n'


def _split_literal(text: str) -> list[str]:
    """Split `text` into parts whose literals fit on a line."""
    parts: list[str] = []
    part = ""
    for word in re.findall(r"\S{1,12}\s?|\s", text):
        if part and len(_quoted(part + word)) > LITERAL_WIDTH:
            parts.append(part)
            part = ""
        part += word
    return [*parts, part] if part or not parts else parts


def _quoted(text: str) -> str:
    inner = "".join(map(_escaped, text))
    if '"' not in text:
        return f'"{inner}"'
    if "'" not in text:
        return f"'{inner}'"
    return '"' + inner.replace('"', '\\"') + '"'


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if " " <= char <= "~" or char in LATIN_LETTERS:
        return char
    return char.encode("unicode_escape").decode()


def _wrap_escaped(line: str, width: int) -> list[str]:
    """Escape `line` for a docstring and wrap it at `width`; an escape sequence is never split."""
    lines: list[str] = []
    current = ""
    quote = '\\"' if '""' in line or line.endswith('"') else '"'
    for word in line.split(" "):
        pieces = [""]
        for char in word:
            escaped = quote if char == '"' else _escaped(char)
            if len(pieces[-1]) + len(escaped) > width:
                pieces.append("")
            pieces[-1] += escaped
        for piece in pieces:
            if current and len(current) + 1 + len(piece) > width:
                lines.append(current)
                current = piece
            else:
                current = f"{current} {piece}" if current else piece
    return [*lines, current]
