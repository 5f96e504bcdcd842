"""The cases of the generated tests: for each tool a call, the request it has to send, a response and the result.

The expected request is derived here from the document, independently of the code that the tools use to send it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote

from .examples import (
    EXAMPLE_FILE,
    EXAMPLE_FILE_BASE64,
    EXAMPLE_TEXT,
    example_value,
    invalid_values,
    is_constrained,
)
from .operations import Parameter, RequestBody, Tool
from .python_types import is_object

Pair = list[str]
"""Name and value, in the form that JSON has for a tuple."""

HEADER_TEXT = "a b"
"""An example of a header or cookie, which can only be ASCII."""

BINARY = "application/octet-stream"
SEPARATORS = {"spaceDelimited": " ", "pipeDelimited": "|"}
MAX_INTEGRAL_FLOAT = 1e15
"""Up to here a whole number of type float is written without a fraction."""


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
            "headers": {each.api_name.lower(): _simple(arguments[each.name]) for each in tool.parameters_in("header")},
            "cookies": {
                each.api_name: quote(_simple(arguments[each.name]), safe="") for each in tool.parameters_in("cookie")
            },
            "body": None if body is None else _expected_body(body, arguments[body.name]),
        },
        "answer": _response_and_result(tool),
        "refused": invalid_arguments(tool, arguments),
    }


def example_arguments(tool: Tool) -> dict[str, Any]:
    """Return valid arguments, the optional ones included."""
    arguments: dict[str, Any] = {}
    for parameter in tool.parameters:
        text = HEADER_TEXT if parameter.location in ("header", "cookie") else EXAMPLE_TEXT
        arguments[parameter.name] = example_value(parameter.type, text=text)
    if tool.body is not None:
        is_file = tool.body.kind == "binary"
        arguments[tool.body.name] = EXAMPLE_FILE_BASE64 if is_file else example_value(tool.body.type)
    return arguments


def invalid_arguments(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `arguments` with one that the tool rejects, or without a required one; None where neither is known."""
    for parameter in sorted(tool.parameters, key=lambda each: not is_constrained(each.type)):
        for value in invalid_values(parameter.type):
            return {**arguments, parameter.name: value}
    required = [parameter.name for parameter in tool.parameters if parameter.required]
    if tool.body is not None and tool.body.required:
        required.append(tool.body.name)
    if required:
        return {name: value for name, value in arguments.items() if name != required[0]}
    return None


# --- The request -------------------------------------------------------------------------------------------------


def _expected_path(tool: Tool, arguments: Mapping[str, Any]) -> str:
    path = tool.path.partition("?")[0]
    for parameter in tool.parameters_in("path"):
        path = path.replace(f"{{{parameter.name}}}", quote(_simple(arguments[parameter.name]), safe=""))
    return path


def _expected_query(tool: Tool, arguments: Mapping[str, Any]) -> list[Pair]:
    pairs = [list(pair) for pair in parse_qsl(tool.path.partition("?")[2], keep_blank_values=True)]
    for parameter in tool.parameters_in("query"):
        pairs += _query_pairs(parameter, arguments[parameter.name])
    return pairs


def _query_pairs(parameter: Parameter, value: Any) -> list[Pair]:
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
    else:
        content = value
    return {"type": body.media_type, "kind": body.kind, "content": content}


def _form_field(body: RequestBody, name: str, value: Any) -> list[Pair]:
    is_nested = isinstance(value, dict) or (isinstance(value, list) and any(map(_contains_object, value)))
    style = body.property_styles.get(name, "json" if is_nested else "form")
    if style == "deep":
        return _deep_object(name, value)
    if style == "json":
        return [[name, _compact_json(value)]]
    return _form(name, value, style == "form", ",")


def _multipart_parts(body: RequestBody, name: str, value: Any) -> list[list[Any]]:
    is_list_of_parts = isinstance(value, list) and not any(map(_contains_object, value))
    parts: list[list[Any]] = []
    for item in value if is_list_of_parts else [value]:
        if name in body.files:
            parts.append([name, {"base64": item}])
        else:
            parts.append([name, _compact_json(item) if _contains_object(item) else _simple(item)])
    return parts


# --- Styles of OpenAPI -------------------------------------------------------------------------------------------


def _simple(value: Any) -> str:
    """Return a value in style simple, not exploded (RFC 6570, section 3.2.2)."""
    if isinstance(value, list):
        return ",".join(map(_simple, value))
    if isinstance(value, dict):
        return ",".join(f"{key},{_simple(item)}" for key, item in value.items())
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < MAX_INTEGRAL_FLOAT:
        return str(int(value))
    return "" if value is None else json.dumps(value)


def _form(name: str, value: Any, explode: bool, separator: str) -> list[Pair]:
    if isinstance(value, dict) and explode:
        return [[key, _simple(item)] for key, item in value.items()]
    if isinstance(value, list) and explode:
        return [[name, _simple(item)] for item in value]
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list):
        return [[name, separator.join(map(_simple, value))]] if value else []
    return [[name, _simple(value)]]


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
    """Return what the stand-in for the API answers, and the structured content that the tool returns then."""
    response = tool.response
    status = response.status if 200 <= response.status < 300 else 200
    default = {"json": "application/json", "text": "text/plain"}.get(response.kind, BINARY)
    media_type = BINARY if response.accept == "*/*" else response.accept or default
    if response.kind == "json":
        content = example_value(response.type)
        is_structured = is_object(response.type) and not response.may_be_empty
        result = content if is_structured else {"result": content}  # the SDK wraps what is not always an object
        return {"status": status, "type": media_type, "content": content, "result": result}
    if response.kind == "text":
        return {"status": status, "type": media_type, "text": "some text", "result": {"result": "some text"}}
    if response.kind == "binary":
        result = {"media_type": media_type, "size": len(EXAMPLE_FILE), "base64": EXAMPLE_FILE_BASE64}
        return {"status": status, "type": media_type, "base64": EXAMPLE_FILE_BASE64, "result": result}
    return {"status": status, "result": {"status": status}}
