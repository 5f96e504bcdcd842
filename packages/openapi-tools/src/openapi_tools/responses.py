"""The responses of an operation: the type that its tool publishes. The result follows the response that arrives."""

from __future__ import annotations

import re

from .document import Document, Node, UnresolvedReferenceError
from .media_types import accept_header, is_json, is_json_lines, is_media_type, is_text
from .operations import Operation, Response
from .python_types import AnyType, ListType, ScalarType, Type, UnionType
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
        """Return the response of the operation to a successful request."""
        responses = operation.node.get("responses")
        successes = self._successes(responses)
        may_be_empty = operation.method == "HEAD"
        lines = texts = ""
        json_types: dict[Type, tuple[int, str]] = {}
        """Status and media type, by type."""
        status_of: dict[str, int] = {}
        for status, entry in sorted(successes, key=lambda item: item[0]):
            try:
                node = self.document.resolve(entry)
                content = self.document.media_types(node)
            except UnresolvedReferenceError as error:
                self.report.add_unresolved("response", entry, error)
                continue
            if status in (204, 205) or operation.method == "HEAD" or not content:
                may_be_empty = True
                continue
            suffix = "Answer" if len(successes) == 1 else f"Answer{status}"
            if media_type := self._json_media_type(node, content):
                type_ = self.schemas.convert(content[media_type].get("schema"), f"{class_name}{suffix}", "response")
                json_types.setdefault(type_, (status, media_type))
            elif media_type := next((name for name in content if content[name].get("itemSchema").mapping), ""):
                type_ = self.schemas.convert(content[media_type].get("itemSchema"), f"{class_name}Item", "response")
                lines, status_of[media_type] = media_type, status
                item_type = type_
            else:
                media_type = min(content, key=lambda name: (not is_text(name), name))
                texts, status_of[media_type] = texts or media_type, status
        if json_types:
            status, media_type = next(iter(json_types.values()))
            type_ = next(iter(json_types)) if len(json_types) == 1 else UnionType(tuple(json_types))
            return Response("json", status, type_, accept_header(media_type), may_be_empty)
        if lines and is_json_lines(lines):
            return Response("lines", status_of[lines], ListType(item_type), accept_header(lines))
        if lines or texts:
            return self._text_response(responses, status_of[lines or texts], lines or texts)
        return Response("nothing", successes[0][0] if successes else 200, AnyType())

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
            text = "it responds with a redirect, which is followed on the same origin only; any response is returned"
        else:
            text = "it has no response with a status 2xx; any response is returned"
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

    def _text_response(self, responses: Node, status: int, media_type: str) -> Response:
        accept = accept_header(media_type) or ("" if is_media_type(media_type) else "*/*")
        if is_text(media_type):
            return Response("text", status, ScalarType("str"), accept)
        text = f"{single_line(media_type, 60)} is returned in base64, which takes many tokens"
        self.report.add("response", responses.pointer, text)
        return Response("binary", status, ScalarType("str"), accept)
