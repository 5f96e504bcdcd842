"""The operations of a document, and the tools made of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .document import Document, Node, UnresolvedReferenceError, as_list
from .media_types import BodyKind
from .python_types import Type
from .report import Report
from .text import is_unicode

METHODS = ("get", "head", "options", "query", "put", "delete", "post", "patch")

READING_METHODS = ("GET", "HEAD", "OPTIONS", "QUERY")
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

Location = Literal["path", "query", "header", "cookie"]


class UnknownFormError(Exception):
    """A required part of a request consists of parts, and its media type does not say how these are written."""


@dataclass(frozen=True)
class Operation:
    """An operation as it stands in the document."""

    node: Node
    path_item: Node
    method: str
    path: str

    @property
    def id(self) -> str:
        value = self.node.mapping.get("operationId")
        return value if isinstance(value, str) else ""

    @property
    def tags(self) -> list[str]:
        return [tag for tag in as_list(self.node.mapping.get("tags")) if isinstance(tag, str)]

    @property
    def deprecated(self) -> bool:
        return self.node.mapping.get("deprecated") is True


@dataclass
class Parameter:
    name: str
    """The name of the function's parameter."""
    argument: str
    """The name of the tool's argument: the API's, where a host accepts it."""
    api_name: str
    location: Location
    type: Type
    required: bool
    description: str
    style: str
    explode: bool
    allow_reserved: bool = False
    is_json: bool = False
    """Whether the value is sent as JSON, rather than in a style."""
    placeholder: str = ""
    """The name in the place of a path parameter."""


@dataclass
class RequestBody:
    kind: BodyKind
    media_type: str
    type: Type
    required: bool
    description: str
    property_styles: dict[str, str] = field(default_factory=dict)
    """How the properties of a form are written: `form`, `flat`, `space` or `pipe` (these are not exploded), `deep`
    (deepObject) or `json`. Those of a multipart body are `flat`, `space` or `pipe`."""
    files: dict[str, str] = field(default_factory=dict)
    """The media types of the properties that are files; `*` stands for all of an object without declared ones."""
    part_types: dict[str, str] = field(default_factory=dict)
    """The media types of other properties of a multipart body."""
    name: str = "body"
    """The name of the function's parameter, and of the tool's argument."""

    @property
    def argument(self) -> str:
        return self.name


@dataclass
class Response:
    """The response to a successful request, as the document describes it."""

    kind: Literal["json", "lines", "text", "binary", "nothing"]
    """What the document describes; the tool goes by what the API sends. `lines` are JSON values, one on each line."""
    status: int
    type: Type
    """The type of the JSON value, or of the value on each line."""
    accept: str = ""
    """The Accept header to send; empty for the client's own."""
    may_be_empty: bool = False


@dataclass
class Tool:
    """The description of a tool, from which its source and test are written."""

    pointer: str
    method: str
    path: str
    """With `{placeholder}` in the place of each path parameter, and the rest quoted."""
    name: str
    function: str
    """The name of the function, which differs from the tool's where Python or the linter do not accept that."""
    module: str
    title: str
    description: str
    parameters: list[Parameter]
    body: RequestBody | None
    response: Response
    strict: bool = False
    """Whether a response that does not match the document is an error."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that always have the same value, and so are not arguments."""
    scopes: tuple[str, ...] = ()
    """Scopes that a caller of the tool needs."""

    def parameters_in(self, location: Location) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.location == location]


def find_operations(document: Document, report: Report) -> list[Operation]:
    """Return every operation that can become a tool, in the document's order."""
    operations: list[Operation] = []
    for path, entry in document.root.get("paths").entries():
        if path.startswith("x-"):
            continue
        if not path.startswith("/") or path.startswith("//") or "\\" in path or not is_unicode(path):
            text = "its path does not begin with one slash, or has characters that no path has"
            report.add("skipped operation", entry.pointer, text)
            continue
        try:
            path_item = document.resolve(entry)
        except UnresolvedReferenceError as error:
            report.add_unresolved("skipped operation", entry, error)
            continue
        nodes = {method.upper(): path_item.get(method) for method in METHODS}
        nodes |= additional_operations(path_item, report)
        operations += [Operation(node, path_item, method, path) for method, node in nodes.items() if node.mapping]
        if "trace" in path_item.mapping:
            text = "TRACE returns the request with its credentials to the caller"
            report.add("skipped operation", f"{path_item.pointer}/trace", text)
        for _, node in path_item.entries():
            if node.mapping.get("callbacks"):
                text = "the API sends these requests, not the server"
                report.add("skipped operation", f"{node.pointer}/callbacks", text)
    for _, webhook in document.root.get("webhooks").entries():
        report.add("skipped operation", webhook.pointer, "the API sends these requests, not the server")
    positions = {pointer: number for number, pointer in enumerate(_pointers_in_order(document))}
    return sorted(operations, key=lambda operation: positions.get(operation.node.pointer, 0))


def additional_operations(path_item: Node, report: Report) -> dict[str, Node]:
    """Return the operations of a path item by methods beyond the usual ones (OpenAPI 3.2)."""
    operations: dict[str, Node] = {}
    for method, node in path_item.get("additionalOperations").entries():
        if re.fullmatch(r"[A-Za-z-]{1,40}", method) and method.lower() not in (*METHODS, "trace", "connect"):
            operations[method] = node
        else:
            text = "its method is not valid here: it has a field of its own, or is not a token"
            report.add("skipped operation", node.pointer, text)
    return operations


def _pointers_in_order(document: Document) -> Iterator[str]:
    """Yield the pointers of the operations as the document orders them, where path and operation are in one place."""
    for _, path_item in document.root.get("paths").entries():
        yield from (node.pointer for key, node in path_item.entries() if key in METHODS)
        yield from (node.pointer for _, node in path_item.get("additionalOperations").entries())
