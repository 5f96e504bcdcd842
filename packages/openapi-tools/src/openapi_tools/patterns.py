"""Translation of a document's patterns, which are ECMA-262 expressions, to those of pydantic's engine."""

from __future__ import annotations

import re

import pydantic_core

MAX_PATTERN = 1000

ASCII_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_"}
r"""`\d` and `\w` have ASCII characters only in ECMA-262; pydantic's engine takes those of all languages."""

IDENTITY_ESCAPES = frozenset("AzZaGQEhHRXyu")
"""Escapes that have another meaning in other languages: it is not known for which language a pattern was written."""


def translated_pattern(pattern: str) -> str | None:
    """Return the pattern for pydantic's engine, `None` where it has no equal there.

    It lacks look-around and back-references, and reads sets within brackets otherwise. A pattern that is printed with
    its delimiters, as in `/^a$/i`, would accept no value at all.
    """
    if not pattern or len(pattern) > MAX_PATTERN or re.fullmatch(r"/.+/[a-z]*", pattern) or "{," in pattern:
        return None
    parts: list[str] = []
    position, in_class = 0, False
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "\\":
            escaped = pattern[position : position + 1]
            position += 1
            if escaped in ASCII_CLASSES:
                parts.append(ASCII_CLASSES[escaped] if in_class else f"[{ASCII_CLASSES[escaped]}]")
            elif escaped.lower() in ASCII_CLASSES:
                if in_class:
                    return None
                parts.append(f"[^{ASCII_CLASSES[escaped.lower()]}]")
            elif escaped == "u" and re.match(r"[0-9A-Fa-f]{4}", pattern[position:]):
                parts.append(f"\\u{{{pattern[position : position + 4]}}}")
                position += 4
            elif escaped in IDENTITY_ESCAPES or escaped == "":
                return None
            elif escaped == "/":
                parts.append("/")
            else:
                parts.append("\\" + escaped)
        elif in_class and char in "[&~":
            parts.append("\\" + char)
        elif in_class and char == "-" and parts[-1] == "-":
            return None
        else:
            in_class = char != "]" if in_class else char == "["
            parts.append(char)
            if in_class and char == "[" and pattern[position : position + 1] == "^":
                parts.append("^")
                position += 1
            if in_class and len(parts) and pattern[position : position + 1] == "]" and parts[-1] in "[^":
                return None  # an empty set
    translated = "".join(parts)
    try:
        pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=translated))
    except pydantic_core.SchemaError:
        return None
    return translated
