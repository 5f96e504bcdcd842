"""Values for the tests: arguments that a tool accepts and one that it refuses, what then arrives, and an answer.

What arrives is worked out here from the document, not by the code that the tools use, so that each proves the other.
"""

from __future__ import annotations

import base64
import json
import re
from re import _parser as regex  # type: ignore[attr-defined]  # a pattern's parts, public nowhere
from typing import Any
from urllib.parse import parse_qsl, quote

import pydantic_core

from .operations import Body, Operation, Parameter
from .schemas import Alias, Anything, Choice, ListOf, MapOf, Model, Nothing, Scalar, Type, Union, members

MAX_DEPTH = 12
FILE = b"a file\x00\xff"
TEXTS = {
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
TEXT = "a/b c&d=é"
"""It does not survive where something is not quoted."""


class NoExampleError(Exception):
    """No value could be made; the message says of what."""


def example(found: Type, *, depth: int = 0, full: bool = True, text: str = TEXT) -> Any:
    """A value of the type, as JSON has it; `full` gives its optional properties as well, at the first two levels.

    Raises:
        NoExampleError: of this type none can be made.
    """
    if depth > MAX_DEPTH:
        raise NoExampleError("it is nested too deep")
    match found:
        case Anything():
            return {"any": "value"}
        case Nothing():
            return None
        case Scalar(kind="bool"):
            return True
        case Scalar(kind="str"):
            return _text(found, text)
        case Scalar():
            return _number(found)
        case Choice():
            return found.values[0]
        case ListOf():
            most = found.limit("max_length", 2)
            least = max(found.limit("min_length", 0), min(most, 1 if depth else 2))  # two show what parts them
            if least > 100:
                raise NoExampleError(f"a list of {least} items")
            return [example(found.item, depth=depth + 1, full=full and depth < 1, text=text)] * least
        case MapOf():
            return {"key": example(found.value, depth=depth + 1, full=full and depth < 1, text=text)}
        case Model():
            return {
                each.wire: _files(each.type)
                if each.binary
                else example(each.type, depth=depth + 1, full=full and depth < 1, text=text)
                for each in found.properties
                if each.required or (full and depth < 2 and not _is_deep(each.type))
            }
        case Alias():
            if found.target is None or found.cyclic:
                return {"any": "value"}
            return example(found.target, depth=depth + 1, full=full, text=text)
        case Union():
            options = [each for each in members(found) if not isinstance(each, Nothing)]
            problem: NoExampleError | None = None
            for option in options:
                try:
                    return example(option, depth=depth + 1, full=full, text=text)
                except NoExampleError as error:
                    problem = error
            if problem is not None:
                raise problem
            return None
    raise NoExampleError(type(found).__name__)


def _files(found: Type) -> str | list[str]:
    return [_file()] if any(isinstance(each, ListOf) for each in members(found)) else _file()


def _file() -> str:
    return base64.b64encode(FILE).decode()


def _is_deep(found: Type) -> bool:
    return any(isinstance(each, Model) for each in members(found))


def _text(found: Scalar, text: str) -> str:
    least: int = found.limit("min_length", 0)
    most, pattern = found.limit("max_length", 10**6), found.limit("pattern")
    if pattern is None:
        value = TEXTS.get(found.format, text)
        cut: str = value.ljust(least, "x")[:most]
        return cut if cut.strip() or not least else "x" * least
    for value in (*TEXTS.values(), "a", "abc", "A", "1", "12", "x" * least, *_matching(pattern, least)):
        if least <= len(value) <= most and _fits(pattern, value):
            return value
    raise NoExampleError("a text of its pattern")


def _fits(pattern: str, value: str) -> bool:
    validator = pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=pattern))
    try:
        validator.validate_python(value)
    except pydantic_core.ValidationError:
        return False
    return True


def _matching(pattern: str, least: int) -> list[str]:
    """Texts that may match the pattern, from shorter to longer repetitions."""
    try:
        parsed = regex.parse(pattern)
    except (re.error, RecursionError, OverflowError):
        return []
    found: list[str] = []
    for repeat in dict.fromkeys((0, 1, 2, 3, least, 8, 16, 24, 32, 36, 40, 64)):
        try:
            found.append(_generated(parsed, min(repeat, 500)))
        except (NoExampleError, RecursionError):
            continue
    return found


def _generated(parsed: Any, repeat: int) -> str:
    made = ""
    for operator, argument in parsed:
        name = str(operator)
        if name == "LITERAL":
            made += chr(argument)
        elif name == "NOT_LITERAL":
            made += "a" if argument != ord("a") else "b"
        elif name == "ANY":
            made += "a"
        elif name == "IN":
            made += _of_class(argument)
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = argument
            made += _generated(inner, repeat) * min(max(int(low), repeat), int(high), 500)
        elif name == "SUBPATTERN":
            made += _generated(argument[-1], repeat)
        elif name == "ATOMIC_GROUP":
            made += _generated(argument, repeat)
        elif name == "BRANCH":
            made += _generated(argument[1][0], repeat)
        elif name != "AT":
            raise NoExampleError(name)
    return made


CLASSES = {"CATEGORY_DIGIT": "1", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " ", "CATEGORY_NOT_DIGIT": "a"}


def _of_class(parts: Any) -> str:
    if str(parts[0][0]) == "NEGATE":
        for candidate in "a1A_- .:":
            if not any(_in_part(part, candidate) for part in parts[1:]):
                return candidate
        raise NoExampleError("NEGATE")
    for operator, argument in parts:
        if str(operator) == "LITERAL":
            return chr(argument)
        if str(operator) == "RANGE":
            return chr(argument[0])
        if str(operator) == "CATEGORY":
            return CLASSES.get(str(argument), "-")
    raise NoExampleError("IN")


def _in_part(part: Any, letter: str) -> bool:
    operator, argument = str(part[0]), part[1]
    if operator == "LITERAL":
        return chr(argument) == letter
    if operator == "RANGE":
        return bool(argument[0] <= ord(letter) <= argument[1])
    kinds = {"CATEGORY_DIGIT": letter.isdigit(), "CATEGORY_WORD": letter.isalnum() or letter == "_"}
    kinds |= {"CATEGORY_SPACE": letter.isspace()}
    return kinds.get(str(argument), True)


def _number(found: Scalar) -> int | float:
    whole = found.kind == "int"
    low, high = found.limit("ge", found.limit("gt")), found.limit("le", found.limit("lt"))
    step = found.limit("multiple_of")
    if step:
        start = -(-low // step) * step if low is not None else step
        value = start + step if found.limit("gt") == start else start
    elif low is not None:
        value = low + (1 if found.limit("gt") is not None else 0)
    elif high is not None:
        value = min(high - (1 if found.limit("lt") is not None else 0), 7)
    else:
        value = 7 if whole else 1.5
    over = high is not None and (value > high or (value == high and found.limit("lt") is not None))
    if over and low is not None and not whole and not step:
        value, over = (low + high) / 2, False
    if over:
        raise NoExampleError("a number within its bounds")
    return int(value) if whole else value


def refused(operation: Operation, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """`arguments` with one that its tool refuses, if there is any such."""
    candidates = [(each.name, each.type) for each in operation.parameters]
    for name, found in sorted(candidates, key=lambda item: -_limited(item[1])):
        for value in _wrong(found):
            return {**arguments, name: value}
    required = [each.name for each in operation.parameters if each.required]
    if operation.body is not None and operation.body.required:
        required.append(operation.body.name)
    if required:
        return {name: value for name, value in arguments.items() if name != required[0]}
    return None


def _limited(found: Type) -> int:
    return int(any(isinstance(each, Choice) or getattr(each, "limits", ()) for each in members(found)))


def _wrong(found: Type) -> list[Any]:
    options = members(found)
    if len([each for each in options if not isinstance(each, Nothing)]) > 1:
        return []
    option = next((each for each in options if not isinstance(each, Nothing)), Anything())
    match option:
        case Choice(open=False):
            return ["no such value"] if "no such value" not in option.values else []
        case Scalar(kind="str"):
            if option.limit("max_length", 10**6) < 10**5:
                return ["x" * (option.limit("max_length") + 1)]
            if option.limit("min_length", 0) > 0:
                return [""]
            return [{"no": "text"}]
        case Scalar(kind="bool"):
            return ["neither"]
        case Scalar():
            low, high = option.limit("ge", option.limit("gt")), option.limit("le", option.limit("lt"))
            return [low - 1] if low is not None else [high + 1] if high is not None else ["no number"]
        case ListOf() | MapOf() | Model():
            return [7]
    return []


# --- What arrives ------------------------------------------------------------------------------------------


def case(operation: Operation) -> dict[str, Any]:
    """One test: the tool, its arguments, what has to arrive, the answer, and arguments that are refused.

    Raises:
        NoExampleError: no arguments, or no answer, can be made.
    """
    arguments: dict[str, Any] = {}
    for each in operation.parameters:
        text = "a b" if each.location in ("header", "cookie") else TEXT
        arguments[each.name] = example(each.type, full=True, text=text)
    if operation.body is not None:
        arguments[operation.body.name] = _body_argument(operation.body)
    return {
        "tool": operation.name,
        "arguments": arguments,
        "request": {
            "method": operation.method,
            "path": _path(operation, arguments),
            "query": _whole_query(operation, arguments),
            "headers": {each.wire.lower(): _simple(arguments[each.name]) for each in operation.of("header")},
            "cookies": {each.wire: quote(_simple(arguments[each.name]), safe="") for each in operation.of("cookie")},
            "body": None if operation.body is None else _sent(operation.body, arguments[operation.body.name]),
        },
        "answer": _answered(operation),
        "refused": refused(operation, arguments),
    }


def _body_argument(body: Body) -> Any:
    if body.kind == "binary":
        return _file()
    return example(body.type, full=True)


def _path(operation: Operation, arguments: dict[str, Any]) -> str:
    path = operation.path.partition("?")[0]
    for each in operation.of("path"):
        path = path.replace(f"{{{each.name}}}", quote(_simple(arguments[each.name]), safe=""))
    return path


def _simple(value: Any) -> str:
    """OpenAPI's style simple, not exploded (RFC 6570, 3.2.2)."""
    if isinstance(value, list):
        return ",".join(map(_simple, value))
    if isinstance(value, dict):
        return ",".join(f"{key},{_simple(each)}" for key, each in value.items())
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(int(value) if _is_whole(value) else value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 1e15


def _whole_query(operation: Operation, arguments: dict[str, Any]) -> list[list[str]]:
    fixed = parse_qsl(operation.path.partition("?")[2], keep_blank_values=True)
    given = [pair for each in operation.of("query") for pair in _query(each, arguments[each.name])]
    return [*map(list, fixed), *given]


def _query(each: Parameter, value: Any) -> list[list[str]]:
    if each.in_json:
        return [[each.wire, json.dumps(value, ensure_ascii=False, separators=(",", ":"))]]
    if each.style == "deepObject":
        return [list(pair) for pair in _nested(each.wire, value)]
    return _styled(each.wire, value, each.explode, {"spaceDelimited": " ", "pipeDelimited": "|"}.get(each.style, ","))


def _styled(name: str, value: Any, explode: bool, separator: str) -> list[list[str]]:
    if isinstance(value, dict) and explode:
        return [[key, _simple(each)] for key, each in value.items()]
    if isinstance(value, list) and explode:
        return [[name, _simple(each)] for each in value]
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list):
        return [[name, separator.join(map(_simple, value))]] if value else []
    return [[name, _simple(value)]]


def _nested(name: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in _nested(f"{name}[{key}]", each)]
    if isinstance(value, list):
        return [pair for index, each in enumerate(value) for pair in _nested(f"{name}[{index}]", each)]
    return [(name, _simple(value))]


def _sent(body: Body, value: Any) -> dict[str, Any]:
    sent: dict[str, Any] = {"type": body.media_type, "kind": body.kind}
    if body.kind == "form":
        pairs: list[Any] = []
        for name, each in value.items():
            nested = isinstance(each, dict) or (isinstance(each, list) and any(_has_parts(part) for part in each))
            style = body.styles.get(name, "json" if nested else "form")
            if style == "deep":
                pairs += map(list, _nested(name, each))
            elif style == "json":
                pairs.append([name, json.dumps(each, ensure_ascii=False, separators=(",", ":"))])
            else:
                pairs += _styled(name, each, style == "form", ",")
        return sent | {"content": pairs}
    if body.kind == "multipart":
        parts: list[Any] = []
        for name, each in value.items():
            for part in each if isinstance(each, list) and not any(map(_has_parts, each)) else [each]:
                if name in body.files:
                    parts.append([name, {"base64": part}])
                else:
                    text = (
                        json.dumps(part, ensure_ascii=False, separators=(",", ":"))
                        if _has_parts(part)
                        else _simple(part)
                    )
                    parts.append([name, text])
        return sent | {"content": parts}
    return sent | {"content": value}


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_has_parts, value)))


def _answered(operation: Operation) -> dict[str, Any]:
    """What the stand-in says, and what the tool then gives."""
    answer = operation.answer
    status = answer.status if 200 <= answer.status < 300 else 200
    media = answer.media_type or {"json": "application/json", "text": "text/plain"}.get(
        answer.kind, "application/octet-stream"
    )
    if media == "*/*":
        media = "application/octet-stream"
    if answer.kind == "json":
        content = example(answer.type, full=True)
        whole = isinstance(answer.type, Model | MapOf) and not answer.may_be_empty
        result = content if whole else {"result": content}
        return {"status": status, "type": media, "content": content, "result": result}
    if answer.kind == "text":
        return {"status": status, "type": media, "text": "some text", "result": {"result": "some text"}}
    if answer.kind == "binary":
        result = {"media_type": media, "size": len(FILE), "base64": _file()}
        return {"status": status, "type": media, "base64": _file(), "result": result}
    return {"status": status, "result": {"status": status}}
