"""An OpenAPI document and the files that it refers to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from .loading import MAX_DEPTH, DocumentError, LimitError, fetch, is_url, parse
from .swagger import to_openapi_3
from .text import single_line

MAX_FILES = 10_000
"""Greatest number of files of one document."""

MAX_TOTAL_BYTES = 512 * 1024 * 1024
"""Greatest size of all files of a document together."""

MAX_REFERENCES = 50
"""Greatest number of references that are followed one after the other."""


class UnresolvedReferenceError(DocumentError):
    """A `$ref` cannot be resolved."""

    def __init__(self, pointer: str, problem: str) -> None:
        super().__init__(f"{pointer}: {problem}")
        self.pointer = pointer
        self.problem = problem


class Node(NamedTuple):
    """A value of a document and its place."""

    value: Any
    pointer: str
    """A JSON pointer such as `#/paths/...`, with the file's name in front where it is not the document's first file."""
    source: str
    """The location of the file."""

    def child(self, key: str | int) -> Node:
        return Node(self.value[key], f"{self.pointer}/{escape_pointer(key)}", self.source)

    def get(self, key: str) -> Node:
        """Return the node at `key`; its value is None where there is none."""
        value = self.value.get(key) if isinstance(self.value, dict) else None
        return Node(value, f"{self.pointer}/{escape_pointer(key)}", self.source)

    def entries(self) -> Iterator[tuple[str, Node]]:
        """Yield the keys and nodes of an object, and nothing for another value."""
        if isinstance(self.value, dict):
            for key in self.value:
                yield str(key), self.child(key)

    def elements(self) -> Iterator[Node]:
        """Yield the nodes of an array, and nothing for another value."""
        if isinstance(self.value, list):
            for index in range(len(self.value)):
                yield self.child(index)

    @property
    def mapping(self) -> Mapping[str, Any]:
        """The value where it is an object, else an empty one."""
        return self.value if isinstance(self.value, dict) else {}

    def with_value(self, value: Any) -> Node:
        return Node(value, self.pointer, self.source)


class Document:
    """An OpenAPI document, whose further files are read when a reference leads to them."""

    def __init__(self, location: str, root: str | Path | None = None, headers: Mapping[str, str] | None = None) -> None:
        """Read the document at `location`, a path or an http(s) URL.

        Args:
            location: The path or URL.
            root: The folder that has all files of a document that is a file; its own folder by default.
            headers: Headers of the requests for a document behind a login; they are sent to its server only.

        Raises:
            DocumentError: The document cannot be read, exceeds a limit, or is neither OpenAPI 3 nor Swagger 2.0.
        """
        self.location = location if is_url(location) else str(Path(location).expanduser().resolve())
        self.folder = Path(self.location).parent if root is None else Path(root).expanduser().resolve()
        self._headers = headers
        self._bytes = 0
        self._files: dict[str, Any] = {}
        content = self._load(self.location)
        is_swagger = False
        if isinstance(content, dict) and re.fullmatch(r"2\.0(\.0)?", str(content.get("swagger", ""))):
            content = self._files[self.location] = to_openapi_3(content)
            is_swagger = True
        self.root = Node(content, "#", self.location)
        self.version = _openapi_version(content, location)
        self.has_part_styles = is_swagger or self.version >= (3, 1)
        """Whether the style of a property counts in a multipart body; OpenAPI 3.0 ignores it there."""

    def resolve(self, node: Node) -> Node:
        """Return `node`, or where it is a reference the node that it finally leads to.

        Raises:
            UnresolvedReferenceError: A reference does not lead to a value.
        """
        start = node
        for _ in range(MAX_REFERENCES):
            reference = node.mapping.get("$ref")
            if not isinstance(reference, str):
                return node
            node = self.follow(reference, node)
        raise UnresolvedReferenceError(start.pointer, "its $ref is circular")

    def resolved_mapping(self, node: Node) -> Mapping[str, Any]:
        """Return the object that `node` stands for, empty where it cannot be resolved."""
        return self.resolved_node(node).mapping

    def resolved_node(self, node: Node) -> Node:
        """Return the node that `node` stands for, one without a value where it cannot be resolved."""
        try:
            return self.resolve(node)
        except UnresolvedReferenceError:
            return node.with_value(None)

    def has_parts(self, node: Node) -> bool:
        """Return whether a schema describes objects or lists, which are not files."""
        seen: set[tuple[str, str]] = set()
        stack = [node]
        while stack:
            node = self.resolved_node(stack.pop())
            schema = node.mapping
            if (node.source, node.pointer) in seen or schema.get("format") in ("binary", "file"):
                continue
            seen.add((node.source, node.pointer))
            types = as_list(schema.get("type")) or [schema.get("type")]
            if schema.get("properties") or schema.get("items") or {"object", "array"} & {*map(str, types)}:
                return True
            for keyword in ("allOf", "oneOf", "anyOf"):
                stack += node.get(keyword).elements()
        return False

    def follow(self, reference: str, origin: Node) -> Node:
        """Return the node that the `$ref` at `origin` names.

        Raises:
            UnresolvedReferenceError: There is no such node, or it is in a file that must not be read.
            LimitError: The file of the node exceeds a limit.
        """
        file, _, fragment = reference.partition("#")
        source, pointer = origin.source, "#"
        if file:
            source = self._source_of(file, reference, origin)
        try:
            value = self._load(source)
        except LimitError:
            raise
        except DocumentError as error:
            raise UnresolvedReferenceError(origin.pointer, str(error)) from None
        if source != self.location:
            pointer = f"{source.rsplit('/', 1)[-1]}#"
        if fragment and not fragment.startswith("/"):
            raise UnresolvedReferenceError(origin.pointer, f"{reference!r} is not a JSON pointer")
        for part in fragment.split("/")[1:]:
            key = unescape_pointer(unquote(part))
            pointer += f"/{escape_pointer(key)}"
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                raise UnresolvedReferenceError(origin.pointer, f"{reference!r} does not exist")
        return Node(value, pointer, source)

    def media_types(self, node: Node) -> dict[str, Node]:
        """Return the media types of a request or response body; one may be a reference (OpenAPI 3.2).

        A name that lists several, separated by commas, stands for each of them.

        Raises:
            UnresolvedReferenceError: A reference does not lead to a value.
        """
        found: dict[str, Node] = {}
        for name, media in node.get("content").entries():
            parts = [part.strip() for part in name.split(",")]
            listed = parts if all("/" in part and '"' not in part for part in parts) else [name]
            found |= dict.fromkeys(listed, self.resolve(media))
        return found

    @cached_property
    def subtypes(self) -> dict[str, list[Node]]:
        """The schemas of the components whose `allOf` refers to another one, by the pointer of that."""
        subtypes_by_pointer: dict[str, list[Node]] = {}
        for _, node in self.root.get("components").get("schemas").entries():
            for part in node.get("allOf").elements():
                reference = part.mapping.get("$ref")
                if isinstance(reference, str) and reference.startswith("#/"):
                    subtypes_by_pointer.setdefault(reference, []).append(node)
        return subtypes_by_pointer

    def with_absolute_references(self, value: Any, source: str, depth: int = 0) -> Any:
        """Return `value`, which is of the file `source`, with the full location of the file in every `$ref`."""
        if depth > MAX_DEPTH:
            return value
        if isinstance(value, list):
            return [self.with_absolute_references(item, source, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        result = {key: self.with_absolute_references(item, source, depth + 1) for key, item in value.items()}
        reference = result.get("$ref")
        if isinstance(reference, str):
            file, hash_sign, fragment = reference.partition("#")
            location = _relative_location(source, file) if file else source
            result["$ref"] = f"{location}{hash_sign}{fragment}"
        return result

    def _source_of(self, file: str, reference: str, origin: Node) -> str:
        """Return the location of a file that a reference at `origin` names.

        A reference never leaves the document's folder or server: a document must not make the generator read other
        files of this machine or send requests elsewhere.

        Raises:
            UnresolvedReferenceError: The file is elsewhere, or the reference is neither a URL nor a path.
        """
        try:
            source = _relative_location(origin.source, file)
            is_elsewhere = is_url(source) and urlsplit(source)[:2] != urlsplit(self.location)[:2]
        except ValueError:
            raise UnresolvedReferenceError(origin.pointer, f"{reference!r} is neither a URL nor a path") from None
        if is_url(source) and not is_url(origin.source):
            problem = f"{reference!r} is a URL, which is not fetched for a document that is a file"
            raise UnresolvedReferenceError(origin.pointer, problem)
        if is_elsewhere:
            problem = f"{reference!r} is on another server than the document, which is not contacted"
            raise UnresolvedReferenceError(origin.pointer, problem)
        if not is_url(source) and not Path(source).is_relative_to(self.folder):
            problem = f"{reference!r} is outside the folder {self.folder}. Name the folder of all files with --root."
            raise UnresolvedReferenceError(origin.pointer, problem)
        return source

    def _load(self, location: str) -> Any:
        if location not in self._files:
            if len(self._files) >= MAX_FILES:
                raise LimitError(f"{self.location} refers to more than {MAX_FILES} files. Bundle it into one file.")
            content = fetch(location, self._headers)
            self._bytes += len(content)
            if self._bytes > MAX_TOTAL_BYTES:
                raise LimitError(f"{self.location} has more than {MAX_TOTAL_BYTES // 2**20} MiB in all its files")
            self._files[location] = parse(content, location)
        return self._files[location]


def escape_pointer(key: str | int) -> str:
    """Return a key as a part of a JSON pointer (RFC 6901), shortened and without line breaks."""
    text = str(key).replace("~", "~0").replace("/", "~1")
    return "".join(char if char.isprintable() else "?" for char in text[:200])


def unescape_pointer(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


def as_list(value: Any) -> list[Any]:
    """Return `value` where it is a list, else an empty one: some documents have `required: true` and the like."""
    return value if isinstance(value, list) else []


def _openapi_version(content: Any, location: str) -> tuple[int, int]:
    if not isinstance(content, dict):
        raise DocumentError(f"{location} is not an OpenAPI document: it is not an object")
    if "swagger" in content:
        raise DocumentError(
            f"{location} is Swagger {single_line(str(content['swagger']), 20)}; version 2.0 and OpenAPI 3 are supported"
        )
    match = re.match(r"3\.(\d+)", str(content.get("openapi", "")))
    if not match:
        raise DocumentError(f"{location}: /openapi is {content.get('openapi')!r}; versions 3.0 to 3.2 are supported")
    if not isinstance(content.get("paths", {}), dict):
        raise DocumentError(f"{location}: /paths is not an object")
    return 3, int(match[1])


def _relative_location(source: str, file: str) -> str:
    """Return the location of `file`, which a reference in the file `source` names."""
    if is_url(source):
        return urljoin(source, file)
    if is_url(file) or "://" in file:
        return file
    return str((Path(source).parent / unquote(file)).resolve())
