"""Text for a terminal: what would control the terminal, forge a line or reorder the text is escaped.

Names, upstream answers and messages of exceptions are in most texts that the server prints, so that each text passes
one of these functions on its way out.
"""

from __future__ import annotations

import os
import re
from typing import TextIO

_UNSAFE = (
    r"\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    r"\U000e0000-\U000e007f"
)
"""C1 and DEL, bidirectional and invisible formatting (not the joiners of scripts and emoji), and lone surrogates."""
_IN_LINE = re.compile(rf"[\x00-\x1f{_UNSAFE}]")
_IN_LINES = re.compile(rf"[\x00-\x08\x0b-\x1f{_UNSAFE}]")


def one_line(text: str) -> str:
    """Return `text` escaped, as one line."""
    return text if text.isprintable() else _IN_LINE.sub(_escaped, text)


def lines(text: str) -> str:
    """Return `text` escaped, except for line breaks and tabs."""
    return text if text.isprintable() else _IN_LINES.sub(_escaped, text)


def block(text: str) -> str:
    """Return the lines of `text` escaped and indented, so that none looks like a message of the server."""
    return "\n".join(f"  {one_line(line)}" for line in text.rstrip("\n").split("\n"))


def json_text(text: str) -> str:
    """Return the JSON `text` with the escapes of JSON, so that its value stays the same."""
    return text if text.isprintable() else _IN_LINES.sub(_json_escaped, text)


def coloured(stream: TextIO | None) -> bool:
    """Return whether to write colours: to a terminal, unless NO_COLOR (no-color.org) or TERM=dumb is set."""
    allowed = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return allowed and stream is not None and stream.isatty()


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _json_escaped(match: re.Match[str]) -> str:
    digits = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{digits[at : at + 4]}" for at in range(0, len(digits), 4))
