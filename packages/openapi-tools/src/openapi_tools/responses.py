"""The responses of an operation, and what its tool returns of them."""

from __future__ import annotations

import re

from .document import Document, Node, UnresolvedReferenceError
from .media_types import accept_header, is_json, is_media_type, is_text
from .operations import Operation, Response
from .python_types import AnyType, ScalarType, Type, UnionType
from .report import Report
from .schemas import SchemaConverter
from .text import single_line


class ResponseReader:
    """Reads the responses of one operation after the other."""

    def __init__(self, document: Document, report: Report, schemas: SchemaConverter) -> None:
        self.document = document
        self.report = report
        self.schemas = schemas

    def read(self, operation: Operation, class_name: str) -> Response:
        """Return what the operation's tool expects when the request succeeds."""
        responses = operation.node.get("responses")
        successes = self._successes(responses)
        if not successes:
            return Response("nothing", 200, AnyType())
        may_be_empty = False
        texts: list[tuple[int, str]] = []
        json_types: dict[Type, tuple[int, str]] = {}
        """Status and media type, by type."""
        for status, entry in sorted(successes, key=lambda item: item[0]):
            try:
                node = self.document.resolve(entry)
            except UnresolvedReferenceError as error:
                self.report.add_unresolved("response", entry, error)
                continue
            content = dict(node.get("content").entries())
            if status in (204, 205) or operation.method == "HEAD" or not content:
                may_be_empty = True
            elif media_type := self._json_media_type(node, content):
                suffix = "Answer" if len(successes) == 1 else f"Answer{status}"
                type_ = self.schemas.convert(content[media_type].get("schema"), f"{class_name}{suffix}", "response")
                json_types.setdefault(type_, (status, media_type))
            else:
                texts.append((status, min(content, key=lambda name: (not is_text(name), name))))
        if json_types:
            return self._json_response(responses, json_types, texts, may_be_empty)
        if texts:
            return self._text_response(responses, *texts[0])
        return Response("nothing", successes[0][0], AnyType())

    def _successes(self, responses: Node) -> list[tuple[int, Node]]:
        """Return the status and node of each response of success, and report where there is none."""
        successes = [
            (int(status.lower().replace("xx", "00")), node)
            for status, node in responses.entries()
            if re.fullmatch(r"2(\d\d|XX|xx)", status)
        ]
        others = [status for status, _ in responses.entries() if not re.fullmatch(r"2(\d\d|XX|xx)", status)]
        if successes:
            return successes
        if "default" in others:
            return [(200, responses.get("default"))]
        if any(status.startswith("3") for status in others):
            text = "it responds with a redirect, which is followed on the same origin only: the tool returns the status"
        else:
            text = "it has no response with a status 2xx: the tool returns the status"
        self.report.add("response", responses.pointer, text)
        return []

    def _json_media_type(self, node: Node, content: dict[str, Node]) -> str:
        """Return the JSON media type of a response, "" where it has none."""
        media_types = [media_type for media_type in content if is_json(media_type)]
        if not media_types:
            return ""
        chosen = "application/json" if "application/json" in media_types else media_types[0]
        schema = content[chosen].get("schema").value
        if any(content[media_type].get("schema").value != schema for media_type in media_types):
            text = f"requested as {chosen}, not as the other JSON media types"
            self.report.add("response", node.pointer, text)
        return chosen

    def _json_response(
        self,
        responses: Node,
        json_types: dict[Type, tuple[int, str]],
        texts: list[tuple[int, str]],
        may_be_empty: bool,
    ) -> Response:
        status, media_type = next(iter(json_types.values()))
        for other_status, other in texts:
            kind = "text" if is_text(other) else "binary"
            text = f"{other_status} as {single_line(other, 60)} ({kind}) is treated as an error"
            self.report.add("response", responses.pointer, text)
        type_ = next(iter(json_types)) if len(json_types) == 1 else UnionType(tuple(json_types))
        return Response("json", status, type_, accept_header(media_type), may_be_empty)

    def _text_response(self, responses: Node, status: int, media_type: str) -> Response:
        accept = accept_header(media_type) or ("" if is_media_type(media_type) else "*/*")
        if is_text(media_type):
            return Response("text", status, ScalarType("str"), accept)
        text = f"{single_line(media_type, 60)} is returned in base64, which takes many tokens"
        self.report.add("response", responses.pointer, text)
        return Response("binary", status, ScalarType("str"), accept)
