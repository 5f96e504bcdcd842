"""The two formats of a log line: JSON for log stores, and a console format for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import orjson

from ..terminal import block, json_text, one_line
from .redaction import shorten

MAX_LINE = 16_000
"""Bytes of a line. Docker's json-file driver splits longer ones at 16 KiB, and neither part is valid JSON."""

MAX_FIELD = 8192
"""Characters of one field of a line that had to be repaired."""

Format = Callable[[dict[str, Any]], bytes]
"""Returns the fields of a record as a line.

Raises:
    TypeError, ValueError: the format cannot represent a value.
"""


def as_json(fields: dict[str, Any]) -> bytes:
    """Return one JSON object and a line break; times are in UTC with `Z` (RFC 3339).

    Raises:
        TypeError: a text has a lone surrogate, or JSON has no type for a value.
    """
    line = orjson.dumps(fields, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    return line if line.isascii() and b"\x7f" not in line else json_text(line.decode()).encode()


class Console:
    """The console format: time of day, level, message and the other fields; a traceback on the lines below."""

    _COLOURS: Mapping[str, str] = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, fields: dict[str, Any]) -> bytes:
        rest = dict(fields)
        time, level, message = rest.pop("timestamp"), rest.pop("level"), rest.pop("message")
        del rest["severity"]
        rest["logger"] = rest.pop("logger")  # to the end: the least important field
        blocks = [block(str(rest.pop(name))) for name in ("exception", "stack") if name in rest]
        pairs = " ".join(f"{self._styled(key, '2')}={_console_value(value)}" for key, value in rest.items())
        start = f"{time:%H:%M:%S}.{time.microsecond // 1000:03d} {self._styled(f'{level:<8}', self._COLOURS[level])}"
        text = "\n".join((f"{start} {one_line(message)}  {pairs}", *blocks))
        return f"{text}\n".encode("utf-8", "backslashreplace")

    def _styled(self, text: str, style: str) -> str:
        text = one_line(text)
        return f"\x1b[{style}m{text}\x1b[0m" if self._colours else text


def _console_value(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    return one_line(value) if isinstance(value, str) and " " not in value else repr(value)


def bounded(fields: dict[str, Any], to_line: Format) -> bytes:
    """Return the line of `fields` in at most `MAX_LINE` bytes.

    Values that the format cannot represent are replaced by text. If the line is too long, values are cut further and
    further, and at last only the first fields are kept; `"shortened": true` marks such a line.
    """
    try:
        line = to_line(fields)
    except (TypeError, ValueError):
        fields = {_valid_utf8(key): _cut(value, MAX_FIELD) for key, value in fields.items()}
        line = to_line(fields)
    for limit in (4096, 1024, 256, 32):
        if len(line) <= MAX_LINE:
            return line
        line = to_line({key: _cut(value, limit) for key, value in fields.items()} | {"shortened": True})
    if len(line) <= MAX_LINE:
        return line
    first = list(fields.items())[:12]
    return to_line({key[:32]: _cut(value, 256) for key, value in first} | {"shortened": True})


def _cut(value: Any, limit: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, datetime)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return _valid_utf8(shorten(text, limit))


def _valid_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
