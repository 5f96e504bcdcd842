"""The request body of an operation."""

from __future__ import annotations

from .document import Document, Node, UnresolvedReferenceError
from .media_types import (
    ANY,
    JSON,
    MULTIPART,
    YAML,
    BodyKind,
    body_kind,
    content_type,
    is_json,
    standard_name,
    without_parameters,
)
from .multipart import PartReader, style_of
from .operations import Operation, RequestBody, UnknownFormError
from .python_types import AnyType, FileType, ListType, MapType, ScalarType, is_object, union_options
from .report import Report
from .schemas import SchemaConverter
from .text import MAX_FIELD_DESCRIPTION, clean_text, single_line

KIND_ORDER = ("json", "form", "multipart", "lines", "text", "binary")
"""Which of several media types is sent."""

MAX_LISTED = 8
"""Media types that a description or finding names."""

METHODS_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS", "TRACE")


class RequestBodyReader:
    """Reads the request bodies of one operation after the other."""

    def __init__(self, document: Document, report: Report, schemas: SchemaConverter) -> None:
        self.document = document
        self.report = report
        self.schemas = schemas
        self.parts = PartReader(document, report, schemas)

    def read(self, operation: Operation, class_name: str) -> RequestBody | None:
        """Return the operation's body, or None where it has none.

        Raises:
            UnknownFormError: It is not known how the body is written.
        """
        given = operation.node.get("requestBody")
        if not given.mapping:
            return None
        try:
            node = self.document.resolve(given)
        except UnresolvedReferenceError as error:
            self.report.add_unresolved("request body", given, error)
            return None
        try:
            offered = self.document.media_types(node)
        except UnresolvedReferenceError as error:
            self.report.add_unresolved("request body", given, error)
            return None
        if not offered:
            self.report.add("request body", node.pointer, "it has no media type: left out")
            return None
        kinds = {name: kind for name, media in offered.items() if (kind := self._kind(name, media)) is not None}
        if "binary" in kinds.values():  # a text among several types of files is a file too
            kinds |= dict.fromkeys(
                [name for name, kind in kinds.items() if kind == "text" and self._is_file(offered[name])], "binary"
            )
        if not kinds:
            names = ", ".join(single_line(name, 60) for name in offered)
            text = f"its body has parts, and it is not known how they are written in {names}"
            if operation.method in METHODS_WITHOUT_BODY and node.mapping.get("required") is not True:
                self.report.add("request body", node.pointer, f"{text}: left out")
                return None
            raise UnknownFormError(text)
        media_type = min(kinds, key=lambda name: _preference(name, kinds[name]))
        kind, media = kinds[media_type], offered[media_type]
        if kind in ("json", "form", "multipart") and self._is_empty_object(node, media.get("schema")):
            return None
        body = RequestBody(
            kind=kind,
            media_type=content_type(media_type, kind),
            type=ScalarType("str"),
            required=node.mapping.get("required") is True,
            description=clean_text(node.mapping.get("description"), MAX_FIELD_DESCRIPTION),
        )
        others = [name for name in offered if name != media_type]
        if kind == "binary":
            files = [body.media_type, *(content_type(name, "binary") for name in others if kinds.get(name) == "binary")]
            others = [name for name in others if kinds.get(name) != "binary"]
            self._read_file(body, files)
        elif kind == "lines":
            item = media.get("itemSchema") if media.get("itemSchema").mapping else media.get("schema").get("items")
            body.type = ListType(self.schemas.convert(item, f"{class_name}Item", "request"))
        elif kind == "text":
            if body.media_type != "text/plain":
                body.description = f"{body.description} In {body.media_type}.".strip()
            if self.document.has_parts(media.get("schema")):
                text = f"{body.media_type} is written by the caller: its schema is not used"
                self.report.add("request body", media.pointer, text)
        else:
            self._read_schema(body, media, class_name)
        self._report_sending(operation, node, media_type, body)
        self._report_alternatives(operation, node, media_type, others)
        return body

    def _read_file(self, body: RequestBody, media_types: list[str]) -> None:
        """Read a body that is a file; its caller names the media type where the document has several."""
        body.description = f"{body.description} In base64.".strip()
        if len(media_types) > 1 or "*" in body.media_type:
            body.type = FileType()
            listed = ", ".join(single_line(name, 60) for name in media_types[:MAX_LISTED])
            more = " and others" if len(media_types) > MAX_LISTED else ""
            body.description = f"{body.description} Its media_type is one of {listed}{more}."

    def _kind(self, media_type: str, media: Node) -> BodyKind | None:
        """Return how a body is written, None where it is not known; for a range such as `*/*` its schema says it."""
        schema_node = media.get("schema")
        kind = body_kind(media_type, is_structured=self.document.has_parts(schema_node))
        if kind == "lines" and not (media.get("itemSchema").mapping or schema_node.get("items").mapping):
            return "text"
        if kind == "multipart" and (media.get("itemSchema").mapping or media.get("prefixEncoding").value):
            return None  # a sequence of parts without names (OpenAPI 3.2)
        if standard_name(media_type) not in (ANY, "application/*"):
            return kind
        if self._is_file(media):
            return "binary"
        return "text" if self.document.resolved_mapping(schema_node).get("type") == "string" else "json"

    def _is_file(self, media: Node) -> bool:
        """Return whether the schema describes a file, or there is none."""
        schema = self.document.resolved_mapping(media.get("schema"))
        return not schema or schema.get("format") in ("binary", "file") or bool(schema.get("contentEncoding"))

    def _report_sending(self, operation: Operation, node: Node, media_type: str, body: RequestBody) -> None:
        """Report where a body is sent in another way than the name of its media type says."""
        sent, shown = body.media_type, single_line(media_type, 60)
        if _differs_from_standard(media_type) and "*" not in media_type:
            self.report.add("request body", node.pointer, f"{shown!r} is not a registered media type: sent as {sent}")
        elif body.kind == "json" and (sent.startswith("text/plain") or YAML.fullmatch(without_parameters(sent))):
            self.report.add("request body", node.pointer, f"its parts are written as JSON in {sent}")
        elif body.kind == "multipart" and sent != MULTIPART:
            self.report.add("request body", node.pointer, f"the parts of {sent} have names, as in a form")

    def _report_alternatives(self, operation: Operation, node: Node, media_type: str, others: list[str]) -> None:
        if others:
            names = ", ".join(single_line(name, 60) for name in others[:MAX_LISTED])
            more = " and others" if len(others) > MAX_LISTED else ""
            text = f"sent as {single_line(media_type, 60)}, not as {names}{more}"
            self.report.add("request body", node.pointer, text)
        if operation.method in METHODS_WITHOUT_BODY:
            text = f"a body of {operation.method} has no defined meaning; it is sent"
            self.report.add("request body", node.pointer, text)

    def _read_schema(self, body: RequestBody, media: Node, class_name: str) -> None:
        """Convert the schema and the encoding of a body with parts."""
        body.type = self.schemas.convert(media.get("schema"), f"{class_name}Body", "request")
        if body.kind == "json":
            return
        if not all(map(is_object, union_options(body.type))):
            text = "a form has to be an object, so any properties are accepted"
            self.report.add("request body", media.pointer, text)
            body.type = MapType(AnyType())
        if body.kind == "form":
            body.property_styles = self._property_styles(media)
        else:
            self.parts.read(body, media)

    def _is_empty_object(self, body: Node, schema_node: Node) -> bool:
        """Return whether an optional body has no properties; some tools write one for every operation."""
        if body.mapping.get("required") is True:
            return False
        schema = self.document.resolved_mapping(schema_node)
        if schema.get("properties") != {}:
            return False
        allows_nothing = not schema.get("additionalProperties", True)
        says_nothing_else = set(schema) <= {"type", "properties"} and schema.get("type") == "object"
        return allows_nothing or says_nothing_else

    def _property_styles(self, media: Node) -> dict[str, str]:
        """Return the styles of a form's properties, as in `RequestBody.property_styles`."""
        styles: dict[str, str] = {}
        for name, encoding in media.get("encoding").entries():
            if style := style_of(encoding, self.report):
                styles[name] = style
            elif "contentType" in encoding.mapping:
                if is_json(str(encoding.mapping["contentType"])):
                    styles[name] = "json"
                elif self._has_parts(media, name):
                    shown = single_line(str(encoding.mapping["contentType"]), 60)
                    self.report.add("request body", encoding.pointer, f"lists and objects are JSON, not {shown}")
        return styles

    def _has_parts(self, media: Node, name: str) -> bool:
        """Return whether a property of a form is an object or list."""
        return self.document.has_parts(self.document.resolved_node(media.get("schema")).get("properties").get(name))


def _differs_from_standard(media_type: str) -> bool:
    return standard_name(media_type) != without_parameters(media_type)


def _preference(media_type: str, kind: BodyKind) -> tuple[bool, bool, int, bool]:
    """Return the sort key of a media type: those that show the caller the schema first, with a registered name."""
    has_schema = kind in ("json", "form", "multipart")
    return not has_schema, _differs_from_standard(media_type), KIND_ORDER.index(kind), media_type != JSON
