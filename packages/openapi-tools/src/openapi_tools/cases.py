"""The cases of the generated tests: for each tool a call, the request it has to send, a response and the result.

The expected request is derived here from the document, independently of the code that the tools use to send it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote

from .examples import (
    EXAMPLE_FILE,
    EXAMPLE_FILE_BASE64,
    EXAMPLE_TEXT,
    NoExampleError,
    example_value,
    invalid_values,
    is_constrained,
)
from .media_types import without_parameters
from .operations import Parameter, RequestBody, Tool
from .python_types import AnyType, EnumType, FileType, ListType, NamedType, Type, UnionType, is_object, union_options

Pair = list[str]
"""Name and value, in the form that JSON has for a tuple."""

HEADER_TEXT = "a b"
"""An example of a header or cookie, which can only be ASCII."""

PATH_TEXT = "a b&c=é"
"""An example of a value in a path, which stays one segment."""

BINARY = "application/octet-stream"
SEPARATORS = {"spaceDelimited": " ", "pipeDelimited": "|"}
MAX_INTEGRAL_FLOAT = 2**53
"""Largest integral float that is written without a fraction."""


def make_case(tool: Tool) -> dict[str, Any]:
    """Return the case of a tool.

    Raises:
        NoExampleError: No arguments, or no response, can be made.
    """
    arguments = example_arguments(tool)
    body = tool.body
    return {
        "tool": tool.name,
        "arguments": arguments,
        "request": {
            "method": tool.method,
            "path": _expected_path(tool, arguments),
            "query": _expected_query(tool, arguments),
            "headers": {name.lower(): text for name, text in tool.headers.items()}
            | {name.lower(): text for name, text in _texts(tool.parameters_in("header"), arguments)},
            "cookies": {name: quote(text, safe="") for name, text in _texts(tool.parameters_in("cookie"), arguments)},
            "body": None if body is None or body.name not in arguments else _expected_body(body, arguments[body.name]),
        },
        "answer": _response_and_result(tool),
        "rejected": invalid_arguments(tool, arguments),
    }


def _texts(parameters: Iterable[Parameter], arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names and values of headers or cookies."""
    for parameter in parameters:
        value = arguments.get(parameter.argument)
        if value is None:
            continue
        if parameter.is_json:
            yield parameter.api_name, json.dumps(value, separators=(",", ":"))
        elif isinstance(value, dict) and parameter.explode and parameter.location == "header":
            yield parameter.api_name, ",".join(f"{key}={_part(item)}" for key, item in value.items())
        else:
            yield parameter.api_name, _simple(value)


def example_arguments(tool: Tool) -> dict[str, Any]:
    """Return valid arguments, with the optional ones that have a valid value."""
    arguments: dict[str, Any] = {}
    for parameter in tool.parameters:
        text = {"header": HEADER_TEXT, "cookie": HEADER_TEXT, "path": PATH_TEXT}.get(parameter.location, EXAMPLE_TEXT)
        type_ = _in_path(parameter.type) if parameter.location == "path" else parameter.type
        with suppress(*(() if parameter.required else (NoExampleError,))):
            arguments[parameter.argument] = example_value(type_, text=text)
    if tool.body is not None:
        with suppress(*(() if tool.body.required else (NoExampleError,))):
            arguments[tool.body.name] = _example_body(tool.body)
    return arguments


def _example_body(body: RequestBody) -> Any:
    if body.kind != "binary":
        return example_value(body.type)
    if not isinstance(body.type, FileType):
        return EXAMPLE_FILE_BASE64
    return {"base64": EXAMPLE_FILE_BASE64, "media_type": body.media_type.replace("*", "example")}


def _in_path(type_: Type) -> Type:
    """Return a type without those values of enumerations that cannot be in a path."""
    if isinstance(type_, ListType):
        return replace(type_, item=_in_path(type_.item))
    if isinstance(type_, UnionType):
        return UnionType(tuple(map(_in_path, type_.options)))
    if isinstance(type_, NamedType) and type_.target is not None and not type_.is_recursive:
        return _in_path(type_.target)
    if not isinstance(type_, EnumType):
        return type_
    fitting = tuple(value for value in type_.values if str(value).strip(".") and not set(str(value)) & set("/\\%"))
    return replace(type_, values=fitting or type_.values)


def invalid_arguments(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `arguments` with one that the tool rejects, or without a required one; None if no such call is known."""
    for parameter in sorted(tool.parameters, key=lambda each: not is_constrained(each.type)):
        for value in invalid_values(parameter.type):
            return {**arguments, parameter.argument: value}
    required = [parameter.argument for parameter in tool.parameters if parameter.required]
    if tool.body is not None and tool.body.required:
        required.append(tool.body.name)
    if required:
        return {name: value for name, value in arguments.items() if name != required[0]}
    return None


# --- The request -------------------------------------------------------------------------------------------------


def _expected_path(tool: Tool, arguments: Mapping[str, Any]) -> str:
    path = tool.path.partition("?")[0]
    for parameter in tool.parameters_in("path"):
        expected = _path_value(parameter, arguments[parameter.argument])
        path = path.replace(f"{{{parameter.placeholder}}}", expected)
    return path


def _path_value(parameter: Parameter, value: Any) -> str:
    """Return a path parameter as RFC 6570 expands it, in its style."""

    def quoted(item: Any) -> str:
        return quote(_part(item), safe="")

    if parameter.is_json:
        return quote(_compact_json(value), safe="")
    name = quote(parameter.api_name, safe="")
    first, between, named = {"label": (".", ".", ""), "matrix": (";", ";", f"{name}=")}.get(
        parameter.style, ("", ",", "")
    )
    if isinstance(value, dict) and parameter.explode:
        return first + between.join(f"{quote(key, safe='')}={quoted(item)}" for key, item in value.items())
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list) and parameter.explode:
        return first + between.join(f"{named}{quoted(item)}" for item in value)
    return f"{first}{named}{','.join(map(quoted, value)) if isinstance(value, list) else quoted(value)}"


def _expected_query(tool: Tool, arguments: Mapping[str, Any]) -> list[Pair]:
    pairs = [list(pair) for pair in parse_qsl(tool.path.partition("?")[2], keep_blank_values=True)]
    for pair in pairs:
        for parameter in tool.parameters_in("path"):
            pair[1] = pair[1].replace(f"{{{parameter.placeholder}}}", _simple(arguments[parameter.argument]))
    for parameter in tool.parameters_in("query"):
        pairs += _query_pairs(parameter, arguments.get(parameter.argument))
    return pairs


def _query_pairs(parameter: Parameter, value: Any) -> list[Pair]:
    if value is None:
        return []
    if parameter.is_json:
        return [[parameter.api_name, _compact_json(value)]]
    if parameter.style == "deepObject":
        return _deep_object(parameter.api_name, value)
    return _form(parameter.api_name, value, parameter.explode, SEPARATORS.get(parameter.style, ","))


def _expected_body(body: RequestBody, value: Any) -> dict[str, Any]:
    if body.kind == "form":
        content = [pair for name, item in value.items() for pair in _form_field(body, name, item)]
    elif body.kind == "multipart":
        content = [part for name, item in value.items() for part in _multipart_parts(body, name, item)]
    elif body.kind == "binary" and isinstance(value, dict):
        return {"type": value["media_type"], "kind": body.kind, "content": value["base64"]}
    else:
        content = value
    return {"type": without_parameters(body.media_type), "kind": body.kind, "content": content}


def _form_field(body: RequestBody, name: str, value: Any) -> list[Pair]:
    is_nested = isinstance(value, dict) or (isinstance(value, list) and any(map(_contains_object, value)))
    style = body.property_styles.get(name, "json" if is_nested else "form")
    if style == "deep":
        return _deep_object(name, value)
    if style == "json":
        return [[name, _compact_json(value)]]
    return _form(name, value, style == "form", ",")


def _multipart_parts(body: RequestBody, name: str, value: Any) -> list[list[Any]]:
    if isinstance(value, list) and (style := body.property_styles.get(name)):
        separator = {"space": " ", "pipe": "|"}.get(style, ",")
        return [[name, separator.join(map(_part, value)), "text/plain"]]
    media_type = body.part_types.get(name, "")
    is_json = media_type.endswith("json")
    file_type = body.files.get(name, body.files.get("*", ""))
    is_list_of_parts = isinstance(value, list) and (
        bool(file_type) or not (is_json or any(map(_contains_object, value)))
    )
    parts: list[list[Any]] = []
    for item in value if is_list_of_parts else [value]:
        if file_type:
            parts.append([name, {**item, "media_type": file_type}])
        else:
            as_json = is_json or isinstance(item, list | dict)
            part_type = media_type or ("application/json" if as_json else "text/plain")
            parts.append([name, _compact_json(item) if as_json else _part(item), part_type])
    return parts


# --- Styles of OpenAPI -------------------------------------------------------------------------------------------


def _simple(value: Any) -> str:
    """Return a value in style simple, not exploded (RFC 6570, section 3.2.2)."""
    if isinstance(value, list):
        return ",".join(map(_part, value))
    if isinstance(value, dict):
        return ",".join(f"{key},{_part(item)}" for key, item in value.items())
    return _part(value)


def _part(value: Any) -> str:
    """Return a single value, or a part of a list or object; one that has parts itself is JSON."""
    if isinstance(value, list | dict):
        return _compact_json(value)
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_INTEGRAL_FLOAT:
        return str(int(value))
    return "" if value is None else json.dumps(value)


def _form(name: str, value: Any, explode: bool, separator: str) -> list[Pair]:
    if isinstance(value, dict) and explode:
        lists = {key: item if isinstance(item, list) else [item] for key, item in value.items()}
        return [[key, _part(item)] for key, items in lists.items() for item in items]
    if isinstance(value, list) and explode:
        return [[name, _part(item)] for item in value]
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list):
        return [[name, separator.join(map(_part, value))]] if value else []
    return [[name, _part(value)]]


def _deep_object(name: str, value: Any) -> list[Pair]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _deep_object(f"{name}[{key}]", item)]
    if isinstance(value, list):
        return [pair for index, item in enumerate(value) for pair in _deep_object(f"{name}[{index}]", item)]
    return [[name, _simple(value)]]


def _contains_object(value: Any) -> bool:
    """Return whether the value is an object, or a list with one in it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_contains_object, value)))


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


# --- The response ------------------------------------------------------------------------------------------------


def _response_and_result(tool: Tool) -> dict[str, Any]:
    """Return the response of the stand-in for the API, and the structured content that the tool returns for it."""
    response = tool.response
    status = response.status if 200 <= response.status < 300 else 200
    if tool.method == "HEAD":
        return {"status": status, "result": {"status": status}}
    defaults = {"json": "application/json", "lines": "application/jsonl", "text": "text/plain"}
    default = defaults.get(response.kind, BINARY)
    media_type = response.accept if response.accept not in ("", "*/*") else default
    if response.kind == "json":
        content = example_value(response.type)
        result = content if is_plain_object(response.type) else {"result": content}
        return {"status": status, "type": media_type, "content": content, "result": result}
    if response.kind == "lines":
        content = example_value(response.type)
        text = "".join(f"{json.dumps(item)}\n" for item in content)
        return {"status": status, "type": media_type, "text": text, "result": {"result": content}}
    if response.kind == "text":
        return {"status": status, "type": media_type, "text": "some text", "result": {"result": "some text"}}
    if response.kind == "binary":
        result = {"media_type": media_type, "size": len(EXAMPLE_FILE), "base64": EXAMPLE_FILE_BASE64}
        return {"status": status, "type": media_type, "base64": EXAMPLE_FILE_BASE64, "result": result}
    return {"status": status, "result": {"status": status}}


def is_plain_object(type_: Type) -> bool:
    """Return whether values of the type are always objects, or of any kind: then they are not wrapped."""
    options = union_options(type_)
    return all(is_object(option) for option in options) or any(isinstance(option, AnyType) for option in options)
