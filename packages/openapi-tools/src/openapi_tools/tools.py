"""Read the operations of a document into tools."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from .document import Document, UnresolvedReferenceError, as_list
from .fixed_headers import FixedHeader
from .identifiers import (
    RESERVED_TOOLS,
    Namespace,
    function_name,
    module_name,
    pascal_case,
    shorten,
    snake_case,
    split_words,
)
from .loading import LimitError
from .operations import Operation, Parameter, Tool, UnknownFormError
from .parameters import ParameterReader
from .report import Report
from .request_bodies import RequestBodyReader
from .responses import ResponseReader
from .schemas import SchemaConverter
from .security import Security
from .text import MAX_TITLE, MAX_TOOL_DESCRIPTION, clean_text, single_line

PAGING_PARAMETERS = frozenset(
    """
    page per_page page_size pagesize page_number page_token pagetoken cursor offset limit starting_after ending_before
    after before next_token nexttoken continue marker start_cursor
    """.split()
)
"""Query parameters that usually select a page."""


DOCUMENT_MODULE = "openapi_document"
"""The module that describes the document to the server."""


class ToolReader:
    """Reads operations into tools; the names of tools, classes and modules are unique among all of them."""

    def __init__(
        self,
        document: Document,
        report: Report,
        existing_modules: frozenset[str] = frozenset(),
        *,
        with_scopes: bool = False,
    ) -> None:
        self.document = document
        self.report = report
        self.schemas = SchemaConverter(document, report)
        self.security = Security(document, report)
        self.parameters = ParameterReader(document, report, self.schemas, self.security.headers)
        self.request_bodies = RequestBodyReader(document, report, self.schemas)
        self.responses = ResponseReader(document, report, self.schemas)
        self._tool_names = Namespace(RESERVED_TOOLS)
        self._module_names = Namespace(existing_modules)
        self.document_module = self._module_names.claim(DOCUMENT_MODULE)
        self.with_scopes = with_scopes
        self._module_of_group: dict[str, str] = {}
        self._weak_ids: frozenset[str] = frozenset()

    def read_all(self, operations: Sequence[Operation]) -> list[tuple[Tool, str]]:
        """Return the tools, each with the group of its module; an operation that cannot be read is reported."""
        self._weak_ids = numbered_ids(operations)
        tools: list[tuple[Tool, str]] = []
        for operation, group in zip(operations, module_groups(operations), strict=True):
            try:
                tools.append((self.read(operation, group), group))
            except LimitError:
                raise
            except UnknownFormError as error:
                self.report.add("skipped operation", operation.node.pointer, str(error))
            except Exception as error:  # one operation that no rule expected must not stop the others
                text = f"it cannot be read: {type(error).__name__}: {single_line(str(error), 200)}"
                self.report.add("skipped operation", operation.node.pointer, text)
        self.request_bodies.parts.finish(tool for tool, _ in tools)
        return tools

    def fixed_headers(self) -> list[FixedHeader]:
        """Return the headers that are settings, as far as an operation needs them."""
        return [*{**self.parameters.used_headers, **self.security.further_headers}.values()]

    def read(self, operation: Operation, group: str) -> Tool:
        """Return the tool of an operation, in the module of its group."""
        name = self._claim_tool_name(operation)
        if group not in self._module_of_group:
            self._module_of_group[group] = self._module_names.claim(module_name(group))
        class_name = pascal_case(name, "Operation")
        path, parameters, headers = self.parameters.read(operation, class_name)
        body = self.request_bodies.read(operation, class_name)
        if body is not None:
            body.name = free_body_name(parameters)
        self._report_own_servers(operation)
        self.security.read(operation.node)
        summary = single_line(operation.node.mapping.get("summary"), MAX_TITLE)
        title = summary or single_line(name.replace("_", " "), MAX_TITLE).capitalize()
        return Tool(
            pointer=operation.node.pointer,
            method=operation.method,
            path=path,
            name=name,
            function=function_name(name),
            module=self._module_of_group[group],
            title=title,
            description=self._description(operation, title, parameters),
            parameters=parameters,
            body=body,
            response=self.responses.read(operation, class_name),
            headers=headers,
            scopes=self.security.scopes_of(operation.node) if self.with_scopes else (),
        )

    def _claim_tool_name(self, operation: Operation) -> str:
        by_path = plain_name(f"{operation.method} {operation.path}") or "operation"
        wanted = plain_name(operation.id) or by_path
        if operation.id in self._weak_ids:
            summary = single_line(operation.node.mapping.get("summary"), MAX_TITLE)
            tag = operation.tags[0] if operation.tags else ""
            wanted = plain_name(f"{tag} {summary}") if summary else by_path
            self.report.add("name", f"{operation.node.pointer}/operationId", f"{wanted}: its id differs in a number")
        name = self._tool_names.claim(wanted)
        if operation.id and name != wanted:
            text = f"{name}, since {wanted} is taken"
            self.report.add("name", f"{operation.node.pointer}/operationId", text)
        return name

    def _description(self, operation: Operation, title: str, parameters: Sequence[Parameter]) -> str:
        text = clean_text(operation.node.mapping.get("description"), MAX_TOOL_DESCRIPTION) or title
        paragraphs = [f"Deprecated. {text}" if operation.deprecated else text]
        sent = f"{operation.method} {single_line(operation.path, 200)}"
        if operation.method == "GET":
            paging = [
                parameter.argument
                for parameter in parameters
                if parameter.location == "query" and snake_case(parameter.api_name, "x") in PAGING_PARAMETERS
            ]
            if paging:
                paragraphs.append(f"The response may be one page of several, selected by {', '.join(paging)}.")
            if self._has_link_header(operation):
                paragraphs.append("The API names further pages in its Link header, which is part of the response.")
        return "\n\n".join([*paragraphs, sent])

    def _has_link_header(self, operation: Operation) -> bool:
        for status, response in operation.node.get("responses").entries():
            if not status.startswith("2"):
                continue
            try:
                headers = self.document.resolve(response).get("headers")
            except UnresolvedReferenceError:
                continue
            if any(name.lower() == "link" for name, _ in headers.entries()):
                return True
        return False

    def _report_own_servers(self, operation: Operation) -> None:
        """Report servers of an operation or path that are not those of the document."""
        own = operation.node.mapping.get("servers") or operation.path_item.mapping.get("servers")
        root = self.document.root.mapping.get("servers")
        if not own or server_urls(own) == server_urls(root):
            return
        path_items = [item for _, item in self.document.root.get("paths").entries() if item.mapping]
        if not root and all(item.value.get("servers") == own for item in path_items):
            return  # the document's only server, repeated at every path
        urls = ", ".join(str(server.get("url")) for server in as_list(own) if isinstance(server, dict))
        text = f"{operation.method} {single_line(operation.path, 100)}: {single_line(urls, 200)}"
        self.report.add("server", operation.node.pointer, text)


def numbered_ids(operations: Sequence[Operation]) -> frozenset[str]:
    """Return the operationIds that only a number tells apart, such as `delete`, `delete_1` and `delete_2`."""
    by_stem: dict[str, list[str]] = {}
    for operation in operations:
        by_stem.setdefault(re.sub(r"_?\d+$", "", operation.id), []).append(operation.id)
    return frozenset(
        each for stem, ids in by_stem.items() if len(ids) > 1 and any(f"{stem}_" in own for own in ids) for each in ids
    )


def plain_name(text: str) -> str:
    """Return `text` as the name of a tool, which no rule of Python restricts; "" where no letter or digit is left."""
    words = split_words(text)
    return shorten(f"x_{words}" if words[:1].isdigit() else words)


def free_body_name(parameters: Sequence[Parameter]) -> str:
    """Return the name of the argument that has the body, which no parameter has."""
    taken = {name for parameter in parameters for name in (parameter.name, parameter.argument)}
    return next(name for name in ("body", "request_body", *(f"body_{n}" for n in range(2, 999))) if name not in taken)


def server_urls(servers: Any) -> list[str]:
    """Return the servers' URLs without their schemes."""
    urls = [str(server.get("url")) for server in as_list(servers) if isinstance(server, dict)]
    return [re.sub(r"^https?:", "", url).rstrip("/") for url in urls]


def module_groups(operations: Sequence[Operation]) -> list[str]:
    """Return for each operation the name of the group whose tools share a module.

    It is the operation's first tag, else the first fixed part of its path after those that all paths share.
    """
    untagged = [path_parts(operation.path) for operation in operations if not operation.tags]
    shared = shared_prefix_length(untagged)

    def group(operation: Operation) -> str:
        if operation.tags:
            return operation.tags[0]
        own_parts = path_parts(operation.path)[shared:]
        fixed_parts = (part.split(".")[0] for part in own_parts if not part.startswith("{"))
        return next((part for part in fixed_parts if snake_case(part, "")), "operations")

    return [group(operation) for operation in operations]


def path_parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def shared_prefix_length(paths: Sequence[Sequence[str]]) -> int:
    """Return how many first parts several paths have in common, with at least one part of each left over."""
    length = 0
    if len(paths) > 1:
        while all(len(parts) > length + 1 for parts in paths) and len({parts[length] for parts in paths}) == 1:
            length += 1
    return length
