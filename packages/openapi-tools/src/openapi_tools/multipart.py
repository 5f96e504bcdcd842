"""The parts of multipart bodies: files, and parts with a media type of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .document import Document, Node
from .media_types import body_kind, is_media_type
from .operations import RequestBody, Tool
from .python_types import (
    FileType,
    ListType,
    MapType,
    Model,
    NamedType,
    ScalarType,
    Type,
    classes_of,
    reachable_models,
    union_of,
    union_options,
)
from .report import Report
from .schemas import SchemaConverter
from .text import single_line

PartTypes = tuple[tuple[str, Type, str], ...]
"""Properties whose value is another one in a part: name, type, and an addition to the description."""


class PartReader:
    """Reads the parts of multipart bodies, one operation after the other.

    A class of a schema may belong to a body in JSON too, where a file is a text. So the properties of the classes are
    changed by `finish`, once all operations are read.
    """

    def __init__(self, document: Document, report: Report, schemas: SchemaConverter) -> None:
        self.document = document
        self.report = report
        self.schemas = schemas
        self._changes: list[tuple[RequestBody, dict[Model, PartTypes]]] = []

    def read(self, body: RequestBody, media: Node) -> None:
        """Read which parts of a body are files, and the media types of all."""
        extra = self.document.resolved_node(media.get("schema")).get("additionalProperties")
        if isinstance(body.type, MapType) and (media_type := self.schemas.file_media_type(extra)):
            body.files["*"] = media_type
            body.type = MapType(_part_type(body.type.value, "file"))
        types: dict[str, tuple[str, str]] = {}
        """By name of the property: `text` or `file`, and the addition to its description."""
        for model in classes_of(body.type):
            for prop in model.properties:
                if prop.file_media_type:
                    body.files[prop.api_name] = prop.file_media_type
                    types[prop.api_name] = ("file", "")
        for name, encoding in media.get("encoding").entries():
            content_type = encoding.mapping.get("contentType")
            style = style_of(encoding, self.report) if self.document.has_part_styles else ""
            if style in ("flat", "space", "pipe") and name not in body.files:
                body.property_styles[name] = style
            elif isinstance(content_type, str) and is_media_type(content_type):
                if kind := self._kind_of_part(body, media, name, content_type):
                    types[name] = (kind, f" In {content_type}.")
                (body.files if name in body.files or kind == "file" else body.part_types)[name] = content_type
            elif content_type is not None:
                text = "its contentType is not one media type, so the client chooses it"
                self.report.add("request body", encoding.pointer, text)
            for header, node in encoding.get("headers").entries():
                text = f"the header {single_line(header, 60)} of a part is not sent"
                self.report.add("request body", node.pointer, text)
        changes: dict[Model, PartTypes] = {}
        for model in classes_of(body.type):
            found = [
                (prop.api_name, prop.type, *types[prop.api_name]) for prop in model.properties if prop.api_name in types
            ]
            changes[model] = tuple((name, _part_type(type_, kind), addition) for name, type_, kind, addition in found)
        self._changes.append((body, {model: parts for model, parts in changes.items() if parts}))

    def _kind_of_part(self, body: RequestBody, media: Node, name: str, content_type: str) -> str:
        """Return `text` or `file` for a part whose object or list its media type cannot write, else ""."""
        kind = body_kind(content_type, is_structured=True)
        schema = self.document.resolved_node(media.get("schema"))
        if name in body.files or kind == "json" or not self.document.has_parts(schema.get("properties").get(name)):
            return ""
        text = f"{content_type} is written by the caller: its schema is not used"
        self.report.add("request body", media.get("encoding").get(name).pointer, text)
        return "text" if kind == "text" else "file"

    def finish(self, tools: Iterable[Tool]) -> None:
        """Give the properties of all multipart bodies the types of their parts.

        A class that also belongs to something else stays as it is, and the body gets one of its own.
        """
        types: list[Type] = []
        for tool in tools:
            types += [parameter.type for parameter in tool.parameters]
            if tool.body is not None and tool.body.kind == "multipart":
                types += [prop.type for model in classes_of(tool.body.type) for prop in model.properties]
            elif tool.body is not None:
                types.append(tool.body.type)
        used = reachable_models(types)
        made: dict[tuple[Model, PartTypes], Model] = {}
        for body, changes in self._changes:
            own: dict[Model, Model] = {}
            for model, parts in changes.items():
                if (model, parts) not in made:
                    made[model, parts] = self.schemas.copy_of(model) if model in used else model
                    used.add(model)
                    _change(made[model, parts], parts)
                own[model] = made[model, parts]
            if any(model is not changed for model, changed in own.items()):
                options = [_target(option) for option in union_options(body.type)]
                body.type = union_of(
                    [own.get(option, option) if isinstance(option, Model) else option for option in options]
                )


def style_of(encoding: Node, report: Report) -> str:
    """Return the style of a form's property, as in `RequestBody.property_styles`, "" where it has none."""
    style, explode = encoding.mapping.get("style"), encoding.mapping.get("explode")
    if style not in (None, "form", "spaceDelimited", "pipeDelimited", "deepObject"):
        text = f"style {single_line(str(style), 40)!r} is not valid in this location: sent as form"
        report.add("request body", encoding.pointer, text)
    if style == "deepObject":
        return "deep"
    if style in ("spaceDelimited", "pipeDelimited") and explode is not True:
        return "space" if style == "spaceDelimited" else "pipe"
    if explode is False:
        return "flat"
    return "form" if style is not None else ""


def _part_type(type_: Type, kind: str) -> Type:
    if kind == "text":
        return ScalarType("str")
    is_list = any(isinstance(_target(option), ListType) for option in union_options(type_))
    return ListType(FileType()) if is_list else FileType()


def _change(model: Model, parts: PartTypes) -> None:
    by_name: Mapping[str, tuple[Type, str]] = {name: (type_, addition) for name, type_, addition in parts}
    for number, prop in enumerate(model.properties):
        if prop.api_name in by_name:
            type_, addition = by_name[prop.api_name]
            description = f"{prop.description}{addition}".strip()
            model.properties[number] = replace(prop, type=type_, description=description)


def _target(type_: Type) -> Type:
    while isinstance(type_, NamedType) and isinstance(type_.target, Model | ListType | NamedType):
        type_ = type_.target
    return type_
