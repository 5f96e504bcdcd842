"""Values for JSON: texts in valid Unicode, and only numbers that JSON has."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar

from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

T = TypeVar("T")

CONSTANTS = (b"NaN", b"Infinity")
"""Python's words for numbers that JSON lacks."""


class NonFiniteNumberError(ToolError):
    """NaN or an infinity in a result: JSON has no such number (RFC 8259, section 6)."""


def valid_unicode(value: Any) -> Any:
    """Return `value` with U+FFFD for each lone surrogate in its texts, keys included; `value` itself is unchanged."""
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {valid_unicode(key): valid_unicode(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(valid_unicode, value))
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(map(valid_unicode, value))
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: valid_unicode(item) for name, item in value})
    if not isinstance(value, type) and (is_dataclass(value) or getattr(type(value), "__annotations__", None)):
        copied = copy.copy(value)
        for name in [field.name for field in fields(value)] if is_dataclass(value) else getattr(value, "__dict__", ()):
            object.__setattr__(copied, name, valid_unicode(getattr(value, name)))
        return copied
    return value


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """Return the JSON of `value`, with U+FFFD for lone surrogates; an object of an unknown type is its `str`.

    Raises:
        NonFiniteNumberError: it has a number that JSON lacks.
        PydanticSerializationError: it cannot be encoded.
    """
    try:
        encoded = to_json(value, fallback=str, indent=indent)
    except PydanticSerializationError:
        encoded = to_json(valid_unicode(value), fallback=str, indent=indent)
    if any(word in encoded for word in (*CONSTANTS, b"null")):
        require_finite(value)
    return encoded


def sendable(value: T) -> T:
    """Return `value`, which consists of JSON types, with U+FFFD for lone surrogates.

    Raises:
        NonFiniteNumberError: it has a number that JSON lacks.
        PydanticSerializationError: it cannot be encoded.
    """
    try:
        encoded = to_json(value, inf_nan_mode="constants")
    except PydanticSerializationError:
        value = valid_unicode(value)
        encoded = to_json(value, inf_nan_mode="constants")
    if any(word in encoded for word in CONSTANTS):
        require_finite(value)
    return value


def require_finite(value: Any) -> None:
    """Raise `NonFiniteNumberError` where `value` has a number that JSON lacks."""
    if found := non_finite(value):
        raise NonFiniteNumberError(f"The result has {found}, which JSON does not have.")


def non_finite(value: Any) -> str | None:
    """Return the first number in `value` that is not finite, with its path, or `None`."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return json.dumps(item) + (f" at {'.'.join(path)}" if path else "")
        pending.extend([((*path, str(key)), child) for key, child in _children(item)][::-1])
    return None


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    if isinstance(value, BaseModel):
        # pydantic writes null, unless the model chose what it writes.
        return () if value.model_config.get("ser_json_inf_nan") in ("null", "strings") else value
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    return ()
