"""Headers that a server sends with each request, so that they are settings and not arguments of tools."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .document import Document, Node, UnresolvedReferenceError, as_list
from .operations import Operation

COVERAGE = 0.8
"""A header can be a setting if at least this share of the document's operations has it."""

CREDENTIAL_NAME = re.compile(
    r"(^|[-_])(api-?key|app-?key|application-?key|access-?key|secret|secret-?key|access-?token|auth-?token|password)$",
    re.IGNORECASE,
)
"""Names of headers with credentials, which no model may choose."""

SETTING_NAME = re.compile(
    r"version|organi[sz]ation|tenant|locale|language|(client|app|application)-?(id|name)$", re.IGNORECASE
)
"""Names of headers that are the same for all requests of a server."""


@dataclass(frozen=True)
class FixedHeader:
    """A header that is a setting."""

    name: str
    value: str | None = None
    """The document's value, if it has one."""
    is_secret: bool = False
    is_required: bool = False

    @property
    def setting(self) -> str:
        return "UPSTREAM_SECRET_HEADERS" if self.is_secret else "UPSTREAM_HEADERS"


def constant_value(document: Document, parameter: Node, *, with_default: bool = False) -> str | None:
    """Return the only value of a header, or with `with_default` the one that the API assumes, where it can be sent."""
    schema = document.resolved_mapping(parameter.get("schema"))
    values = as_list(schema.get("enum"))
    value: Any = schema.get("const", values[0] if len(values) == 1 else None)
    if value is None and with_default:
        value = schema.get("default")
    is_text = isinstance(value, str) and bool(value) and value.isascii() and value.isprintable()
    return value if is_text else None


def find_fixed_headers(document: Document, operations: Sequence[Operation]) -> dict[str, FixedHeader]:
    """Return the headers that are settings, by their names in lower case."""
    nodes: dict[str, list[Node]] = {}
    for operation in operations:
        for lower, node in {str(node.value["name"]).lower(): node for node in _headers(document, operation)}.items():
            nodes.setdefault(lower, []).append(node)
    fixed: dict[str, FixedHeader] = {}
    for lower, found in nodes.items():
        name = str(found[0].value["name"])
        values = {constant_value(document, node, with_default=True) for node in found}
        value = values.pop() if len(values) == 1 else None
        is_required = any(node.mapping.get("required") is True for node in found)
        is_everywhere = len(found) >= COVERAGE * len(operations)
        if CREDENTIAL_NAME.search(name):
            fixed[lower] = FixedHeader(name, is_secret=True, is_required=is_required)
        elif is_everywhere and (SETTING_NAME.search(name) or (is_required and value is not None)):
            fixed[lower] = FixedHeader(name, value, is_required=is_required or "version" in lower)
    return fixed


def _headers(document: Document, operation: Operation) -> Iterator[Node]:
    for owner in (operation.path_item, operation.node):
        yield from _header_parameters(document, owner.get("parameters").elements())


def _header_parameters(document: Document, entries: Iterable[Node]) -> Iterator[Node]:
    for entry in entries:
        try:
            node = document.resolve(entry)
        except UnresolvedReferenceError:
            continue
        if node.mapping.get("in") == "header" and isinstance(node.mapping.get("name"), str):
            yield node
