"""Reading a JSON or YAML document from a file or URL, with limits on size, time, depth and expanded aliases."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import yaml

MAX_BYTES = 64 * 1024 * 1024
"""Greatest size of one file; the largest public documents have about a fifth of it."""

FETCH_SECONDS = 60.0
"""Time limit for fetching one file."""

MAX_NODES = 10_000_000
"""Values of a YAML document once its aliases are expanded: a few lines of aliases can stand for billions."""

MAX_DEPTH = 200


class DocumentError(Exception):
    """The document cannot be used; the message names it, the place and what to do."""


class LimitError(DocumentError):
    """The document exceeds a limit of the generator. It is rejected as a whole, rather than read in part."""


def is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def fetch(location: str, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes at a path or http(s) URL, requested with `headers`.

    Raises:
        DocumentError: The bytes cannot be read, or exceed `MAX_BYTES`.
    """
    try:
        content = _download(location, headers or {}) if is_url(location) else _read_file(location)
    except (OSError, ValueError, HTTPException) as error:  # HTTPException: the server does not speak HTTP
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise DocumentError(f"{location} cannot be read: {reason}. Give the path or the URL of the document.") from None
    if len(content) > MAX_BYTES:
        raise LimitError(f"{location} has more than {MAX_BYTES // 2**20} MiB")
    return content


def _read_file(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _download(url: str, headers: Mapping[str, str]) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "openapi-tools", "Accept": "*/*"})  # noqa: S310 (http and https only)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # credentials, which no other server may get
    content, deadline = b"", time.monotonic() + FETCH_SECONDS
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:  # noqa: S310 (http and https only)
        while len(content) <= MAX_BYTES and (part := response.read1(2**20)):
            content += part
            if time.monotonic() > deadline:
                raise TimeoutError(f"it did not arrive within {FETCH_SECONDS:g} s")
    return content


def parse(content: bytes, location: str) -> Any:
    """Return the value of a JSON or YAML document; `location` is named in errors.

    Raises:
        DocumentError: `content` is neither.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{location} is not UTF-8 (byte {error.start})") from None
    start = text.lstrip()[:1]
    try:
        if start in ("{", "["):
            try:
                return json.loads(text, parse_constant=_reject_constant)
            except json.JSONDecodeError as error:
                # YAML's flow style begins like JSON, so that other errors are left to the YAML parser.
                if start == "[" or error.msg.startswith("Extra data"):
                    place = f"line {error.lineno}, column {error.colno}"
                    raise DocumentError(f"{location} is not valid JSON: {place}: {error.msg}") from None
        return _to_json_value(yaml.load(text, Loader=_CoreLoader), location)  # noqa: S506 (derived from the safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or error
        raise DocumentError(f"{location} is not valid YAML: {place}{problem}") from None
    except (RecursionError, ValueError) as error:
        raise DocumentError(f"{location} cannot be read: {error or type(error).__name__}") from None


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


class _CoreLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader with the types of YAML 1.2's core schema (section 10.3): 10:30 and 1_000 are texts, 0644 is 644.

    Merge keys (`<<`) are those of YAML 1.1, which many documents use.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = self.construct_scalar(node)
        if text[:2] in ("0o", "0x"):
            return int(text, 0)
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            return math.inf
        return float(text) if set(text.lower()) & {".", "e"} else int(text)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
    if _tag in ("int", "float"):
        _CoreLoader.add_constructor(f"tag:yaml.org,2002:{_tag}", _CoreLoader.construct_number)


def _to_json_value(value: Any, location: str) -> Any:
    """Return a YAML value as JSON has it: with text as keys, and finite.

    Raises:
        ValueError: The value is too large or too deep once its aliases are expanded, or JSON cannot express it.
    """
    remaining = MAX_NODES
    converted: dict[int, Any] = {}

    def convert(item: Any, depth: int) -> Any:
        nonlocal remaining
        remaining -= 1
        if remaining < 0 or depth > MAX_DEPTH:
            raise LimitError(f"{location}: it is too large or nested too deep")
        if isinstance(item, dict | list) and id(item) in converted:
            return converted[id(item)]
        if isinstance(item, dict):
            result: Any = {_to_json_key(key): convert(value, depth + 1) for key, value in item.items()}
        elif isinstance(item, list):
            result = [convert(value, depth + 1) for value in item]
        elif item is None or isinstance(item, str | int | float):
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError("it has a number that is not finite, which JSON does not have")
            return item
        else:
            raise ValueError(f"it has a value of type {type(item).__name__}, which JSON does not have")
        converted[id(item)] = result
        return result

    return convert(value, 0)


def _to_json_key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) or key is None else str(key)
