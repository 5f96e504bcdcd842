"""The operations of a document, and the tools that they become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .document import Document, Node, UnresolvedReferenceError, as_list
from .media_types import BodyKind
from .python_types import Type
from .report import Report

METHODS = ("get", "head", "options", "put", "delete", "post", "patch")

Location = Literal["path", "query", "header", "cookie"]


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
    """The name of the tool's argument."""
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


@dataclass
class RequestBody:
    kind: BodyKind
    media_type: str
    type: Type
    required: bool
    description: str
    property_styles: dict[str, str] = field(default_factory=dict)
    """How the properties of a form are written: `form`, `flat` (not exploded), `deep` (deepObject) or `json`."""
    files: dict[str, str] = field(default_factory=dict)
    """The media types of the properties that are files, which the model gives in base64."""
    name: str = "body"
    """The name of the tool's argument."""


@dataclass
class Response:
    kind: Literal["json", "text", "binary", "nothing"]
    status: int
    type: Type
    accept: str = ""
    """The Accept header, where the client's own will not do."""
    may_be_empty: bool = False


@dataclass
class Tool:
    """What the source of a tool and of its test is written from."""

    pointer: str
    method: str
    path: str
    """With `{argument}` in the place of each path parameter, and the rest quoted."""
    name: str
    module: str
    title: str
    description: str
    parameters: list[Parameter]
    body: RequestBody | None
    response: Response

    def parameters_in(self, location: Location) -> list[Parameter]:
        return [parameter for parameter in self.parameters if parameter.location == location]


def find_operations(document: Document, report: Report) -> list[Operation]:
    """Return every operation that can become a tool, in the document's order."""
    operations: list[Operation] = []
    for path, entry in document.root.get("paths").entries():
        if path.startswith("x-"):
            continue
        try:
            path_item = document.resolve(entry)
        except UnresolvedReferenceError as error:
            report.add_unresolved("skipped operation", entry, error)
            continue
        methods = [method for method in METHODS if isinstance(path_item.mapping.get(method), dict)]
        operations += [Operation(path_item.child(method), path_item, method.upper(), path) for method in methods]
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


def _pointers_in_order(document: Document) -> Iterator[str]:
    """Yield the pointers of the operations as the document orders them, where path and operation are in one place."""
    for _, path_item in document.root.get("paths").entries():
        yield from (node.pointer for key, node in path_item.entries() if key in METHODS)
