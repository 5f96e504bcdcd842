"""Reads an OpenAPI document: from a file or a URL, JSON or YAML, with bounds, and follows its references."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import yaml

MAX_BYTES = 64 * 1024 * 1024
"""Of one document; the largest public ones have about a fifth of it."""

MAX_SECONDS = 60.0
"""For fetching one document."""

MAX_ALIASES = 10_000_000
"""Nodes that a YAML document has once its aliases are followed: few lines can mean billions."""

MAX_DEPTH = 200
MAX_FILES = 200
MAX_REFERENCES = 50
"""References in a row."""


class DocumentError(Exception):
    """The document cannot be used; the message names it, the place and what to do."""


class Node(NamedTuple):
    """A value of a document and where it is: `#/paths/...`, with the file's name in front where that is another one."""

    value: Any
    pointer: str
    source: str

    def child(self, key: str | int) -> Node:
        return Node(self.value[key], f"{self.pointer}/{escaped(key)}", self.source)

    def get(self, key: str) -> Node:
        """The value at `key`, or None, with its place."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return Node(value, f"{self.pointer}/{escaped(key)}", self.source)

    def entries(self) -> Iterator[tuple[str, Node]]:
        if isinstance(self.value, dict):
            for key in self.value:
                yield str(key), self.child(key)

    def each(self) -> Iterator[Node]:
        if isinstance(self.value, list):
            for index in range(len(self.value)):
                yield self.child(index)

    @property
    def mapping(self) -> Mapping[str, Any]:
        return self.value if isinstance(self.value, dict) else {}

    def replaced(self, value: Any) -> Node:
        return Node(value, self.pointer, self.source)


class Document:
    """An OpenAPI document with the files that it refers to."""

    def __init__(self, location: str) -> None:
        """Reads the document at `location`, a path or an http(s) URL.

        Raises:
            DocumentError: it cannot be read, or is no OpenAPI document of version 3.0 or 3.1.
        """
        self.location = location if _is_url(location) else str(Path(location).expanduser().resolve())
        self._files: dict[str, Any] = {}
        content = self._read(self.location)
        self.root = Node(content, "#", self.location)
        self.version = _version(content, location)

    def resolve(self, node: Node) -> Node:
        """What `node` stands for: itself, or the end of its references.

        Raises:
            DocumentError: a reference leads nowhere, or in a circle.
        """
        start = node
        for _ in range(MAX_REFERENCES):
            reference = node.mapping.get("$ref")
            if not isinstance(reference, str):
                return node
            node = self.follow(reference, node)
        raise DocumentError(f"{start.pointer}: its $ref leads in a circle")

    def follow(self, reference: str, origin: Node) -> Node:
        """The node that a `$ref` at `origin` means.

        Raises:
            DocumentError: it leads nowhere.
        """
        file, _, fragment = reference.partition("#")
        source, pointer = origin.source, "#"
        if file:
            source = urljoin(source, file) if _is_url(source) else _file(source, file)
            if _is_url(source) and not _is_url(origin.source):
                raise DocumentError(
                    f"{origin.pointer}: {reference!r} is on a server, which a file's $ref is not taken to"
                )
            if _is_url(source) and urlsplit(source)[:2] != urlsplit(self.location)[:2]:
                raise DocumentError(f"{origin.pointer}: {reference!r} is on another server, which is not asked")
            folder = Path(self.location).parent
            if not _is_url(source) and not Path(source).is_relative_to(folder):
                raise DocumentError(
                    f"{origin.pointer}: {reference!r} is outside the document's folder, which a $ref does not leave. "
                    "Bundle the document into one file first."
                )
        try:
            value = self._read(source)
        except DocumentError as error:
            raise DocumentError(f"{origin.pointer}: {error}") from None
        if source != self.location:
            pointer = f"{source.rsplit('/', 1)[-1]}#"
        if fragment and not fragment.startswith("/"):
            raise DocumentError(f"{origin.pointer}: {reference!r} is no JSON pointer")
        for part in fragment.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            pointer += f"/{escaped(key)}"
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise DocumentError(f"{origin.pointer}: {reference!r} is not there")
        return Node(value, pointer, source)

    def absolute(self, value: Any, source: str, depth: int = 0) -> Any:
        """`value` of the file `source` with every `$ref` naming its file in full."""
        if depth > MAX_DEPTH:
            return value
        if isinstance(value, list):
            return [self.absolute(each, source, depth + 1) for each in value]
        if not isinstance(value, dict):
            return value
        found = {key: self.absolute(each, source, depth + 1) for key, each in value.items()}
        reference = found.get("$ref")
        if isinstance(reference, str):
            file, hash_sign, fragment = reference.partition("#")
            whole = urljoin(source, file) if _is_url(source) else _file(source, file) if file else source
            found["$ref"] = f"{whole}{hash_sign}{fragment}"
        return found

    def _read(self, location: str) -> Any:
        if location not in self._files:
            if len(self._files) >= MAX_FILES:
                raise DocumentError(f"{self.location} refers to more than {MAX_FILES} files")
            self._files[location] = parse(fetch(location), location)
        return self._files[location]


def escaped(key: str | int) -> str:
    """A part of a JSON pointer (RFC 6901), on one line and of a bearable length."""
    text = str(key).replace("~", "~0").replace("/", "~1")
    return "".join(each if each.isprintable() else "?" for each in text[:200])


def listed(value: Any) -> list[Any]:
    """`value` where it is a list, as the specification wants; documents have `required: true` and the like instead."""
    return value if isinstance(value, list) else []


def fetch(location: str) -> bytes:
    """The bytes at a path or URL.

    Raises:
        DocumentError: it cannot be read, or is larger than `MAX_BYTES`.
    """
    try:
        if not _is_url(location):
            with Path(location).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        else:
            headers = {"User-Agent": "openapi-seed", "Accept": "*/*"}
            request = urllib.request.Request(location, headers=headers)  # noqa: S310 (http and https only)
            content, deadline = b"", time.monotonic() + MAX_SECONDS
            with urllib.request.urlopen(request, timeout=MAX_SECONDS) as response:  # noqa: S310 (http and https only)
                while len(content) <= MAX_BYTES and (part := response.read1(2**20)):
                    content += part
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"it did not arrive within {MAX_SECONDS:g} s")
    except (OSError, ValueError, HTTPException) as error:  # the last where something else than HTTP answers
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise DocumentError(f"{location} cannot be read: {reason}. Give the path or the URL of the document.") from None
    if len(content) > MAX_BYTES:
        raise DocumentError(f"{location} has more than {MAX_BYTES // 2**20} MiB")
    return content


def parse(content: bytes, location: str) -> Any:
    """The value of a JSON or YAML document.

    Raises:
        DocumentError: it is neither.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError(f"{location} is not UTF-8 (byte {error.start})") from None
    try:
        if text.lstrip().startswith(("{", "[")):
            try:
                return json.loads(text, parse_constant=_no_constant)
            except json.JSONDecodeError as error:
                problem = f"line {error.lineno}, column {error.colno}: {error.msg}"
                if not text.lstrip().startswith("{") or error.msg.startswith("Extra data"):
                    raise DocumentError(f"{location} is no JSON: {problem}") from None
        return _plain(yaml.load(text, Loader=_Loader))  # noqa: S506 (a safe loader, less its dates)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise DocumentError(f"{location} is no YAML: {place}{getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise DocumentError(f"{location} cannot be read: {error or type(error).__name__}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as JSON has it: dates, `yes` and `on` stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern if tag != "tag:yaml.org,2002:bool" else re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"))
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _plain(value: Any) -> Any:
    """`value` as JSON has it: keys are text, and no alias makes it endless.

    Raises:
        ValueError: it is too large or too deep once its aliases are followed, or has what JSON lacks.
    """
    left = MAX_ALIASES
    made: dict[int, Any] = {}

    def convert(each: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ValueError("too large")
        if isinstance(each, dict | list) and id(each) in made:
            return made[id(each)]
        if isinstance(each, dict):
            found: Any = {_key(key): convert(item, depth + 1) for key, item in each.items()}
        elif isinstance(each, list):
            found = [convert(item, depth + 1) for item in each]
        elif each is None or isinstance(each, str | int | float):
            if isinstance(each, float) and not math.isfinite(each):
                raise ValueError("a number that JSON lacks")
            return each
        else:
            raise ValueError(type(each).__name__)
        made[id(each)] = found
        return found

    return convert(value, 0)


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) or key is None else str(key)


def _version(content: Any, location: str) -> tuple[int, int]:
    if not isinstance(content, dict):
        raise DocumentError(f"{location} is no OpenAPI document: it is no object")
    if "swagger" in content:
        raise DocumentError(
            f"{location} is Swagger {content['swagger']}. Convert it to OpenAPI 3 first (swagger2openapi)."
        )
    match = re.match(r"3\.(\d+)", str(content.get("openapi", "")))
    if not match:
        raise DocumentError(f"{location}: /openapi is {content.get('openapi')!r}; 3.0 and 3.1 are read")
    if not isinstance(content.get("paths", {}), dict):
        raise DocumentError(f"{location}: /paths is no object")
    return 3, int(match[1])


def _is_url(location: str) -> bool:
    return location.lower().startswith(("http://", "https://"))


def _file(source: str, reference: str) -> str:
    if _is_url(reference) or "://" in reference:
        return reference
    return str((Path(source).parent / unquote(reference)).resolve())
