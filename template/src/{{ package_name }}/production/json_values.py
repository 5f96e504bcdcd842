"""Values for JSON: texts in valid Unicode, and only numbers that JSON has."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from itertools import islice
from typing import Any, TypeVar

from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from .memo import Memo

T = TypeVar("T")

INF_NAN_MODES = ("null", "strings")
"""Values of `ser_json_inf_nan` by which a model writes NaN and infinities in a form that JSON has."""

MAX_DIGITS = 4300
"""Digits of the longest integer that is sent: by default Python reads no longer one, and JavaScript reads infinity."""

LARGEST = 10**MAX_DIGITS
"""The least integer with more digits."""

DIGITS = b"0123456789"

NUMBERS = frozenset((int, float, bool, type(None)))
"""Types of values that are never containers or texts."""

is_iterator = Memo[type, bool](lambda kind: issubclass(kind, Iterator))
_contains_values = Memo[type, bool](
    lambda kind: issubclass(kind, (dict, list, tuple, Iterator, BaseModel)) or is_dataclass(kind)
)
_is_examined = Memo[type, bool](
    lambda kind: (
        issubclass(kind, (int, float, Decimal, dict, list, tuple, set, frozenset, BaseModel)) or is_dataclass(kind)
    )
)
"""Whether values of a type are or may contain numbers that JSON lacks or clients cannot read."""


class NonFiniteNumberError(ToolError):
    """A result has a number that clients cannot read.

    It is NaN or an infinity, which JSON lacks (RFC 8259, section 6), or an integer of more than `MAX_DIGITS` digits.
    """


def listed(value: Any, max_items: int | None = None) -> Any:
    """Return at most `max_items` of an iterator, which can be read only once, as a list; any other value as it is."""
    return [*islice(value, max_items)] if isinstance(value, Iterator) else value


def contains_iterator(value: Any) -> bool:
    """Return whether a value is or contains an iterator, which can be read only once.

    Raises:
        RecursionError: it contains itself.
    """
    kind = type(value)
    if not _contains_values[kind]:
        return False
    return is_iterator[kind] or any(map(contains_iterator, _items(value)))


def with_lists(value: T) -> T:
    """Return `value`, with a list in place of each iterator in it: a result is read twice, as text and as structure."""
    try:
        return _with_lists(value) if contains_iterator(value) else value
    except RecursionError:  # it contains itself: the conversion reports it
        return value


def _with_lists(value: Any) -> Any:
    value = listed(value)
    if isinstance(value, dict):
        return {key: _with_lists(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_with_lists, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_with_lists, value))
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: _with_lists(item) for name, item in value})
    if is_dataclass(value) and not isinstance(value, type):
        copied = copy.copy(value)
        for field in fields(value):
            object.__setattr__(copied, field.name, _with_lists(getattr(value, field.name)))
        return copied
    return value


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, BaseModel):
        return [*vars(value).values(), *(value.model_extra or {}).values()]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in fields(value)]
    return ()


def valid_unicode(value: Any) -> Any:
    """Return `value` with U+FFFD for each lone surrogate in its texts, keys included; `value` itself is unchanged."""
    if isinstance(value, Enum):
        replaced = valid_unicode(value.value)
        return value if replaced == value.value else replaced
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


def text_of_object(value: object) -> str:
    """Return the text of an object of a type that JSON lacks.

    Raises:
        TypeError: it is a coroutine or the like.
    """
    if isinstance(value, Awaitable | AsyncIterator):
        raise TypeError(f"the result has a {type(value).__name__} that nothing awaits")
    return str(value)


def encode(value: Any, *, indent: int | None = None) -> bytes:
    """Return the JSON of `value`, with U+FFFD for lone surrogates; an object of an unknown type is its `str`.

    Raises:
        NonFiniteNumberError: it has a number that JSON lacks.
        PydanticSerializationError: it cannot be encoded.
        TypeError: it has a coroutine or the like.
    """
    try:
        encoded = to_json(value, fallback=text_of_object, indent=indent)
    except (PydanticSerializationError, UnicodeError):
        # Before, since keys must be valid to be encoded; after, since serializers and `str` can make invalid texts.
        plain = to_jsonable_python(valid_unicode(value), fallback=text_of_object)
        encoded = to_json(valid_unicode(plain), indent=indent)
    if _has_constant(encoded) or b"null" in encoded:  # null: pydantic's form of NaN in a model
        require_finite(value)
    return encoded


def encode_message(value: Any) -> bytes:
    """Return the JSON of a message to the client, which never fails a call.

    It has U+FFFD for lone surrogates, null for numbers that JSON lacks, and the `str` of objects of other types.
    """
    try:
        return to_json(value, inf_nan_mode="null", fallback=str)
    except (PydanticSerializationError, UnicodeError):
        plain = to_jsonable_python(valid_unicode(value), fallback=str)
        return to_json(valid_unicode(plain), inf_nan_mode="null")


def sendable(value: T) -> T:
    """Return `value`, which consists of JSON types, with U+FFFD for lone surrogates.

    Raises:
        NonFiniteNumberError: it has NaN, an infinity, or an integer of more than `MAX_DIGITS` digits.
        PydanticSerializationError: it cannot be encoded.
    """
    return measured(value)[0]


def measured(value: T) -> tuple[T, int]:
    """Return what `sendable` returns, and the number of bytes of its JSON.

    Raises:
        NonFiniteNumberError: it has NaN, an infinity, or an integer of more than `MAX_DIGITS` digits.
        PydanticSerializationError: it cannot be encoded.
    """
    try:
        encoded = to_json(value, inf_nan_mode="constants")
    except PydanticSerializationError:
        value = valid_unicode(value)
        encoded = to_json(value, inf_nan_mode="constants")
    if _has_constant(encoded):
        require_finite(value)
    if len(encoded) > MAX_DIGITS and _has_digits(encoded) and (path := _long_number(value)) is not None:
        raise NonFiniteNumberError(f"The result has a number of more than {MAX_DIGITS} digits{path}.")
    return value, len(encoded)


def _has_constant(encoded: bytes) -> bool:
    """Return whether a JSON text has Python's words for numbers that JSON lacks; `find` takes half the time of `in`."""
    return encoded.find(b"NaN") >= 0 or encoded.find(b"Infinity") >= 0


def require_finite(value: Any) -> None:
    """Raise `NonFiniteNumberError` where `value` has a number that JSON lacks."""
    if found := non_finite(value):
        raise NonFiniteNumberError(f"The result has {found}, which JSON does not have.")


def non_finite(value: Any) -> str | None:
    """Return the first number in `value` that is not finite, with its path, or `None`."""
    for path, item in _walk(value):
        if isinstance(item, Decimal) and not item.is_finite():
            item = float("nan" if item.is_nan() else item)
        if isinstance(item, float) and not math.isfinite(item):
            return json.dumps(item) + _place(path)
    return None


def _has_digits(encoded: bytes) -> bool:
    """Return whether a JSON text has more than `MAX_DIGITS` digits in a row, in a number or in a text.

    Among so many digits is one whose index is a multiple of their number: only those bytes are read.
    """
    for at in range(0, len(encoded), MAX_DIGITS + 1):
        if encoded[at : at + 1].isdigit():
            before, after = encoded[max(at - MAX_DIGITS, 0) : at], encoded[at : at + MAX_DIGITS + 1]
            left, right = len(before) - len(before.rstrip(DIGITS)), len(after) - len(after.lstrip(DIGITS))
            if left + right > MAX_DIGITS:
                return True
    return False


def _long_number(value: Any) -> str | None:
    """Return the place of the first integer in `value` that has more than `MAX_DIGITS` digits, or `None`."""
    found = (path for path, item in _walk(value) if isinstance(item, int) and not -LARGEST < item < LARGEST)
    return next(map(_place, found), None)


def _walk(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield `value` and what it contains, with their paths, except most values that are certainly sendable."""
    pending: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while pending:
        path, item = pending.pop()
        yield path, item
        children = [((*path, str(key)), child) for key, child in _children(item) if not _is_sendable(child)]
        pending.extend(children[::-1])


def _is_sendable(value: Any) -> bool:
    """Return whether a value is no container and no number that JSON lacks or clients cannot read."""
    kind = type(value)
    if kind is int:
        return bool(-LARGEST < value < LARGEST)
    if kind is float:
        return math.isfinite(value)
    return kind is bool or not _is_examined[kind]


def _place(path: tuple[str, ...]) -> str:
    return f" at {'.'.join(path)}" if path else ""


def _children(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, list | tuple | set | frozenset):
        return enumerate(value)
    if isinstance(value, BaseModel):
        # pydantic writes null, unless the model chose what it writes.
        if value.model_config.get("ser_json_inf_nan") in INF_NAN_MODES:
            return ()
        return (*value, *((name, getattr(value, name)) for name in type(value).model_computed_fields))
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value))
    return ()
