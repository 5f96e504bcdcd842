"""Example values of types, valid and invalid ones, for the generated tests."""

from __future__ import annotations

import base64
import re
from typing import Any

import pydantic_core

from .pattern_examples import matching_texts
from .python_types import (
    AnyType,
    EnumType,
    FileType,
    ListType,
    MapType,
    Model,
    NamedType,
    NullType,
    Property,
    ScalarType,
    Type,
    UnionType,
    union_options,
    without_null,
)

MAX_DEPTH = 12
MAX_LIST = 100
MAX_TEXT = 100_000

EXAMPLE_FILE = b"a file\x00\xff"
EXAMPLE_FILE_BASE64 = base64.b64encode(EXAMPLE_FILE).decode()
EXAMPLE_TEXT = "a/b c&d=é"
"""A text that changes where something does not quote it."""

TEXT_BY_FORMAT = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00",
    "email": "ada@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/a?b=c&d",
    "url": "https://example.com/a?b=c&d",
    "uuid": "6f1d1c3e-8a53-4c0e-9d55-2f6f0c8c9b11",
}


class NoExampleError(Exception):
    """No example can be made of a type, which the message names."""


def example_value(type_: Type, *, text: str = EXAMPLE_TEXT, depth: int = 0, with_optional: bool = True) -> Any:
    """Return a valid value of a type, as JSON has it.

    Args:
        text: The value of a string that has neither format nor pattern.
        depth: The number of types around this one.
        with_optional: Whether optional properties are included, at the first two levels.

    Raises:
        NoExampleError: No value can be made.
    """
    if depth > MAX_DEPTH:
        raise NoExampleError("it is nested too deep")

    def inner(inner_type: Type, *, with_optional: bool = with_optional and depth < 1) -> Any:
        return example_value(inner_type, text=text, depth=depth + 1, with_optional=with_optional)

    match type_:
        case AnyType():
            return {"any": "value"}
        case NullType():
            return None
        case ScalarType(kind="bool"):
            return True
        case ScalarType(kind="str"):
            return _example_text(type_, text)
        case ScalarType():
            return _example_number(type_)
        case EnumType():
            return next((value for value in type_.values if value != ""), type_.values[0])
        case FileType():
            return {"base64": EXAMPLE_FILE_BASE64, "name": "a b.bin"}
        case ListType():
            length = _list_length(type_, depth)
            first = inner(type_.item) if length else None
            return [first if not index else _other_value(type_.item, first, index) for index in range(length)]
        case MapType():
            return {"key": inner(type_.value)}
        case Model():
            chosen = [
                prop
                for prop in type_.properties
                if prop.required or prop.kinds or (with_optional and depth < 2 and not _has_model(prop.type))
            ]
            values: dict[str, Any] = {}
            for prop in chosen:
                try:
                    values[prop.api_name] = kind if (kind := _kind(prop)) is not None else inner(prop.type)
                except NoExampleError:
                    if prop.required:
                        raise
            return values
        case NamedType():
            if type_.target is None or type_.is_recursive:
                return {"any": "value"}
            return inner(type_.target, with_optional=with_optional)
        case UnionType():
            problem: NoExampleError | None = None
            for option in without_null(type_):
                try:
                    return inner(option, with_optional=with_optional)
                except NoExampleError as error:
                    problem = error
            if problem is not None:
                raise problem
            return None
    raise NoExampleError(type(type_).__name__)


def _kind(prop: Property) -> str | None:
    """Return the value with which a discriminator's property selects its class, where its type allows one."""
    options = [option.target if isinstance(option, NamedType) else option for option in union_options(prop.type)]
    for value in prop.kinds:
        for option in options:
            if value in option.values if isinstance(option, EnumType) else option in (AnyType(), ScalarType("str")):
                return value
    return None


def _other_value(type_: Type, value: Any, number: int) -> Any:
    """Return a valid value other than `value`, as far as one is known: items of a list often have to be unique."""
    (option, *_) = without_null(type_) or [type_]
    if isinstance(option, NamedType) and option.target is not None and not option.is_recursive:
        return _other_value(option.target, value, number)
    match option:
        case EnumType():
            return option.values[number % len(option.values)]
        case ScalarType(kind="bool"):
            return number % 2 == 0
        case ScalarType(kind="str") if isinstance(value, str) and option.constraint("pattern") is None:
            other = _other_text(option, value, number)
            return other if len(other) <= option.constraint("max_length", MAX_TEXT) else value
        case ScalarType(kind="int" | "Number") if isinstance(value, int | float):
            step = option.constraint("multiple_of", 1)
            return next(
                (other for other in (value + number * step, value - number * step) if _fits(option, other)), value
            )
        case Model() if isinstance(value, dict):
            for prop in option.properties:
                if not prop.kinds and value.get(prop.api_name) not in (
                    None,
                    other := _other_value(prop.type, value.get(prop.api_name), number),
                ):
                    return {**value, prop.api_name: other}
    return value


def _other_text(type_: ScalarType, value: str, number: int) -> str:
    if type_.format not in TEXT_BY_FORMAT:
        return f"{value}{number}"
    if digits := re.search(r"\d(?=\D*$)", value):  # such as the last one of a date
        return f"{value[: digits.start()]}{(int(digits[0]) + number) % 2}{value[digits.end() :]}"
    return f"{value}{number}" if type_.format in ("uri", "url") else f"x{number}{value}"


def _fits(type_: ScalarType, value: Any) -> bool:
    """Return whether a number is within the bounds of a type."""
    checks = {"ge": value.__ge__, "gt": value.__gt__, "le": value.__le__, "lt": value.__lt__}
    return all(check(type_.constraint(name)) for name, check in checks.items() if type_.constraint(name) is not None)


def _list_length(type_: ListType, depth: int) -> int:
    minimum, maximum = type_.constraint("min_length", 0), type_.constraint("max_length")
    if maximum is not None and minimum > maximum:
        raise NoExampleError(f"a list of {minimum} to {maximum} items")
    wanted = 0 if depth > MAX_DEPTH // 2 else 1 if depth else 2  # two show the separator
    length: int = max(minimum, wanted if maximum is None else min(maximum, wanted))
    if length > MAX_LIST:
        raise NoExampleError(f"a list of {length} items")
    return length


def _has_model(type_: Type) -> bool:
    return any(isinstance(option, Model) for option in union_options(type_))


def _example_text(type_: ScalarType, text: str) -> str:
    minimum: int = type_.constraint("min_length", 0)
    maximum: int = type_.constraint("max_length", 10**6)
    pattern: str | None = type_.constraint("pattern")
    if minimum > MAX_TEXT:
        raise NoExampleError(f"a text of {minimum} characters")
    if minimum > maximum:
        raise NoExampleError(f"a text of {minimum} to {maximum} characters")
    if pattern is None:
        value = TEXT_BY_FORMAT.get(type_.format, text).ljust(minimum, "x")[:maximum]
        return value if value.strip() or not minimum else "x" * minimum
    candidates = (*TEXT_BY_FORMAT.values(), "a", "abc", "A", "1", "12", "x" * minimum)
    matching = [
        value
        for value in (*candidates, *matching_texts(pattern, minimum))
        if minimum <= len(value) <= maximum and _matches(pattern, value)
    ]
    if matching:
        return next((value for value in matching if value.strip()), matching[0])
    raise NoExampleError("a text that matches its pattern")


def _matches(pattern: str, value: str) -> bool:
    """Return whether pydantic, which checks the tools' arguments, accepts the value."""
    validator = pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=pattern))
    try:
        validator.validate_python(value)
    except pydantic_core.ValidationError:
        return False
    return True


def _example_number(type_: ScalarType) -> int | float:
    is_integer = type_.kind == "int"
    low, high, low_excluded, high_excluded = _bounds(type_)
    step = type_.constraint("multiple_of")
    if step:
        first = -(-low // step) * step if low is not None else step
        value = first + step if low_excluded and low == first else first
    elif low is not None:
        value = low + 1 if low_excluded else low
    elif high is not None:
        value = min(high - 1 if high_excluded else high, 7)
    else:
        value = 7 if is_integer else 1.5
    if high is not None and (value > high or (value == high and high_excluded)):
        if low is None or is_integer or step:
            raise NoExampleError("a number within its bounds")
        value = (low + high) / 2
    return int(value) if is_integer else value


def _bounds(type_: ScalarType) -> tuple[Any, Any, bool, bool]:
    """Return the lowest and highest value of a number, and whether each is excluded."""
    low, high = type_.constraint("ge", type_.constraint("gt")), type_.constraint("le", type_.constraint("lt"))
    return low, high, type_.constraint("gt") is not None, type_.constraint("lt") is not None


# --- Invalid values ----------------------------------------------------------------------------------------------


def invalid_values(type_: Type) -> list[Any]:
    """Return a value that a parameter of this type rejects, or none where no such value is known."""
    options = without_null(type_)
    if len(options) != 1:
        return []
    (option,) = options
    match option:
        case EnumType(is_open=False):
            return ["no such value"] if "no such value" not in option.values else []
        case ScalarType(kind="str"):
            maximum = option.constraint("max_length", 10**6)
            if maximum < 10**5:
                return ["x" * (maximum + 1)]
            return [""] if option.constraint("min_length", 0) > 0 else [{"no": "text"}]
        case ScalarType(kind="bool"):
            return ["neither"]
        case ScalarType():
            low, high, _, _ = _bounds(option)
            return [low - 1] if low is not None else [high + 1] if high is not None else ["no number"]
        case ListType() | MapType() | Model():
            return [7]
    return []


def is_constrained(type_: Type) -> bool:
    """Return whether the type restricts the values beyond their JSON type."""
    return any(
        isinstance(option, EnumType) or bool(getattr(option, "constraints", ())) for option in union_options(type_)
    )
