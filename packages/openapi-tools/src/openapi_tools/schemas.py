"""Conversion of JSON schemas, of OpenAPI 3.0 and 3.1, to Python types.

A schema becomes two classes where requests and responses have it. The request's model is as strict as the document. The
response's model accepts what a later version of the API may add: unknown fields and further values of an enumeration.
Read-only and write-only properties are only in the one where they belong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from .document import Document, Node, UnresolvedReferenceError, as_list, unescape_pointer
from .identifiers import MODEL_ATTRIBUTES, Namespace, pascal_case, snake_case
from .imports import MODELS_NAMES
from .patterns import translated_pattern
from .python_types import (
    AnyType,
    Direction,
    EnumType,
    ListType,
    MapType,
    Model,
    NamedType,
    NullType,
    Property,
    ScalarType,
    Type,
    classes_of,
    union_of,
    weight_of,
    with_null,
)
from .report import Report
from .schema_keywords import (
    ANNOTATIONS,
    CONVERTED,
    description_of,
    file_media_type,
    format_of,
    has_only_rules,
    is_model,
    length_constraints,
    number_constraints,
    types_of,
    unchecked_keywords,
    value_of_type,
)
from .schema_merging import merged_schema
from .text import MAX_FIELD_DESCRIPTION, clean_text, is_unicode, single_line

MAX_DEPTH = 20
"""Levels of lists, maps and unions within each other; an object begins anew, since it becomes a class."""

MAX_WEIGHT = 100
"""Types that one annotation has: alternatives within alternatives multiply."""

MAX_VARIANTS = 60
MAX_ENUM_VALUES = 500

SCALAR_KINDS: dict[type, Literal["str", "int", "bool"]] = {str: "str", bool: "bool", int: "int"}


class SchemaConverter:
    """Converts the schemas of one document; each named one becomes one type for each direction."""

    def __init__(self, document: Document, report: Report) -> None:
        self.document = document
        self.report = report
        self.models: list[Model] = []
        self._class_names = Namespace(MODELS_NAMES, separator="")
        self._discriminated: list[tuple[Type, str, tuple[str, ...]]] = []
        """Variants with the property that a discriminator names, and its values there."""
        self._by_place: dict[tuple[str, str, Direction], Type] = {}
        """The types of named schemas, by file, pointer and direction."""
        self._by_content: dict[tuple[str, Direction], Model] = {}
        """The models of inline schemas: documents without references repeat the same schema many times."""
        self._depth = 0
        self._is_adding = False
        self._pending: list[tuple[Model, Node, str]] = []
        """Classes whose properties are not converted yet, each with its schema and a name for those inside it."""

    def convert(self, node: Node, name: str, direction: Direction) -> Type:
        """Return the type of the schema at `node`; `name` is for its class, where the document gives it no name."""
        if self._depth >= MAX_DEPTH:
            text = f"nested more than {MAX_DEPTH} levels deep, so any value is accepted"
            self.report.add("schema", node.pointer, text)
            return AnyType()
        self._depth += 1
        try:
            type_ = self._convert(node, name, direction)
        finally:
            self._depth -= 1
        if weight_of(type_) > MAX_WEIGHT:
            text = f"more than {MAX_WEIGHT} types within each other, so any value is accepted"
            self.report.add("schema", node.pointer, text)
            type_ = AnyType()
        if self._depth == 0 and not self._is_adding:
            self._add_pending_properties()
        return type_

    def _add_pending_properties(self) -> None:
        """Convert the properties of the classes found so far, in a loop: chains of them are too long to recurse."""
        self._is_adding = True
        try:
            while self._pending:
                self._add_properties(*self._pending.pop(0))
        finally:
            self._is_adding = False
        for variant, name, values in self._discriminated:
            for model in classes_of(variant):
                _note_kind(model, name, values)
        self._discriminated.clear()

    def _convert(self, node: Node, name: str, direction: Direction) -> Type:
        schema = node.value
        if not isinstance(schema, dict):
            if schema is False:
                self.report.add("schema", node.pointer, "the schema false allows no value; any value is accepted")
            elif schema is not True and schema is not None:
                self.report.add("schema", node.pointer, "not a schema, so any value is accepted")
            return AnyType()
        if isinstance(schema.get("$ref"), str):
            return self._convert_reference(node, name, direction)
        merged = self._merge(node)
        return AnyType() if merged is None else self._convert_merged(merged, name, direction)

    def _merge(self, node: Node, base: Mapping[str, Any] | None = None) -> Node | None:
        return merged_schema(node, self.document, self.report, base)

    # --- Named schemas -------------------------------------------------------------------------------------------

    def _convert_reference(self, node: Node, name: str, direction: Direction) -> Type:
        siblings = {key for key in node.value if key not in ANNOTATIONS and key != "$ref" and not key.startswith("x-")}
        if siblings and self.document.version >= (3, 1):
            merged = self._merge(node)
            return AnyType() if merged is None else self._convert_merged(merged, name, direction)
        try:
            target = self.document.resolve(node)
        except UnresolvedReferenceError as error:
            self.report.add_unresolved("reference", node, error)
            return AnyType()
        return self._with_null_if_nullable(self._convert_target(target, name, direction), node)

    def _convert_target(self, target: Node, name: str, direction: Direction) -> Type:
        """Return the type of a schema that is referred to, converted at its first reference."""
        key = (target.source, target.pointer, direction)
        if key not in self._by_place:
            placeholder = self._by_place[key] = NamedType()
            last_key = unescape_pointer(target.pointer.rsplit("/", 1)[-1])
            has_own_name = "/schemas/" in target.pointer or "#" in target.pointer[1:]
            class_name = (last_key if has_own_name else name) or name
            self._by_place[key] = self._convert_named(target, class_name, direction, placeholder)
            placeholder.target = self._by_place[key]
        type_ = self._by_place[key]
        if isinstance(type_, NamedType) and isinstance(type_.target, Model | ScalarType):
            return type_.target
        return type_

    def _convert_named(self, target: Node, name: str, direction: Direction, placeholder: NamedType) -> Type:
        merged = self._merge(target)
        if merged is None:
            return AnyType()
        if not is_model(merged.value):
            return self._convert_merged(merged, name, direction)
        model = self._new_model(merged, name, direction)
        model.is_named = True
        # Known before its properties are converted, since they may refer to it.
        placeholder.target = self._by_place[(target.source, target.pointer, direction)] = model
        self._pending.append((model, merged, name))
        return self._with_null_if_nullable(self._with_subtypes(model, target, merged, direction), merged)

    def _with_subtypes(self, model: Model, target: Node, merged: Node, direction: Direction) -> Type:
        """Return the union of a model with a discriminator and the schemas that extend it."""
        discriminator = target.get("discriminator")
        subtypes = self.document.subtypes.get(target.pointer, []) if target.source == self.document.location else []
        if not isinstance(discriminator.mapping.get("propertyName"), str) or not subtypes:
            return model
        if len(subtypes) > MAX_VARIANTS:
            text = f"more than {MAX_VARIANTS} schemas extend it: only what they have in common is described"
            self.report.add("schema", target.pointer, text)
            return model
        types = [self._convert_target(subtype, model.name, direction) for subtype in subtypes]
        for subtype, type_ in zip(subtypes, types, strict=True):
            self._note_discriminator(discriminator, subtype.pointer, type_)
        return union_of([*types, model])

    # --- Merged schemas ------------------------------------------------------------------------------------------

    def _convert_merged(self, node: Node, name: str, direction: Direction, enclosing: tuple[str, ...] = ()) -> Type:
        """Return the type of a schema whose `$ref` and `allOf` are merged.

        Args:
            node: The schema.
            name: For its class.
            direction: Which model of it is wanted.
            enclosing: The variants whose merging has led here.
        """
        schema = node.value
        for keyword in unchecked_keywords(schema):
            self.report.add("schema", node.pointer, f"{single_line(keyword, 40)} is not checked")
        for keyword in ("oneOf", "anyOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                union = self._convert_variants(node, keyword, name, direction, enclosing)
                return self._with_null_if_nullable(union, node)
        if "const" in schema:
            return self._convert_enum([schema["const"]], node, direction)
        types = types_of(schema)
        values = self._values_of(node, types)
        if types and not all(value is None or isinstance(value, str | bool | int) for value in values):
            self.report.add("schema", node.pointer, "an enumeration of numbers, lists or objects is not checked")
        elif values:
            return self._with_null_if_nullable(self._convert_enum(values, node, direction), node)
        if not types:
            return AnyType()
        union = union_of([self._convert_json_type(json_type, node, name, direction) for json_type in types])
        return self._with_null_if_nullable(union, node)

    def _with_null_if_nullable(self, type_: Type, node: Node) -> Type:
        return with_null(type_) if node.value.get("nullable") is True else type_

    def _convert_json_type(self, json_type: str, node: Node, name: str, direction: Direction) -> Type:
        schema = node.value
        strict = direction == "request"
        match json_type:
            case "null":
                return NullType()
            case "boolean":
                return ScalarType("bool")
            case "integer":
                return ScalarType("int", number_constraints(schema) if strict else ())
            case "number":
                return ScalarType("Number", number_constraints(schema) if strict else ())
            case "string":
                return ScalarType("str", self._string_constraints(node) if strict else (), format_of(schema))
            case "array":
                return self._convert_array(node, name, direction)
            case "object":
                return self._convert_object(node, name, direction)
        shown = single_line(str(json_type), 40)
        self.report.add("schema", node.pointer, f"type {shown!r} is unknown, so any value is accepted")
        return AnyType()

    def _string_constraints(self, node: Node) -> tuple[tuple[str, Any], ...]:
        constraints = length_constraints(node.value, "minLength", "maxLength")
        pattern = node.value.get("pattern")
        if not isinstance(pattern, str) or not pattern:
            return constraints
        if (translated := translated_pattern(pattern)) is not None:
            return (*constraints, ("pattern", translated))
        self.report.add("pattern", f"{node.pointer}/pattern", "not checked")
        return constraints

    def _convert_array(self, node: Node, name: str, direction: Direction) -> Type:
        schema = node.value
        item: Type = AnyType()
        if isinstance(schema.get("prefixItems"), list) and schema["prefixItems"]:
            self.report.add("schema", node.pointer, "prefixItems: each item may be of any of the types")
            places = [*node.child("prefixItems").elements()]
            if isinstance(schema.get("items"), dict):
                places.append(node.child("items"))
            item = union_of([self.convert(place, f"{name}Item", direction) for place in places])
        elif isinstance(schema.get("items"), dict):
            item = self.convert(node.child("items"), f"{name}Item", direction)
        return ListType(item, length_constraints(schema, "minItems", "maxItems") if direction == "request" else ())

    def _convert_object(self, node: Node, name: str, direction: Direction) -> Type:
        schema = node.value
        if isinstance(schema.get("properties"), dict) and schema["properties"]:
            content = (json.dumps([schema, node.source], sort_keys=True), direction)
            if content not in self._by_content:
                model = self._by_content[content] = self._new_model(node, name, direction)
                self._pending.append((model, node, name))
            return self._by_content[content]
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and extra:
            return MapType(self.convert(node.child("additionalProperties"), f"{name}Value", direction))
        return MapType(AnyType())

    def _convert_variants(
        self, node: Node, keyword: str, name: str, direction: Direction, enclosing: tuple[str, ...]
    ) -> Type:
        """Return the union of the schemas of a `oneOf` or `anyOf`, each combined with the keywords beside it."""
        schema = node.value
        variants = [*node.child(keyword).elements()]
        base = {
            key: value for key, value in schema.items() if key not in ("oneOf", "anyOf", "discriminator", "nullable")
        }
        if keyword == "oneOf" and isinstance(schema.get("anyOf"), list):
            self.report.add("schema", node.pointer, "anyOf beside oneOf is not checked")
        if all(has_only_rules(variant.value) for variant in variants):  # such as: one of two properties is required
            self.report.add("schema", node.pointer, f"{keyword} of rules without types is not checked")
            return self._convert_merged(node.with_value(base), name, direction, enclosing)
        if len(variants) > MAX_VARIANTS:
            text = f"{keyword} of more than {MAX_VARIANTS} schemas, so any value is accepted"
            self.report.add("schema", node.pointer, text)
            return AnyType()
        converted_keywords = {key for key in base if key in CONVERTED}
        has_at_most_one_type = converted_keywords <= {"type"} and not isinstance(base.get("type"), list)
        options: list[Type] = []
        for number, variant in enumerate(variants, start=1):
            title = variant.mapping.get("title")
            suffix = pascal_case(title, "Option") if isinstance(title, str) else f"Option{number}"
            if has_at_most_one_type:
                options.append(self.convert(variant, f"{name}{suffix}", direction))
                continue
            content = f"{variant.source} {variant.value}"  # its pointer is another one each time it is merged
            if content in enclosing:
                self.report.add("schema", variant.pointer, f"this schema of a {keyword} contains itself: left out")
                continue
            merged = self._merge(variant, base)
            if merged is None:
                options.append(AnyType())
            else:
                options.append(self._convert_merged(merged, f"{name}{suffix}", direction, (*enclosing, content)))
        for variant, option in zip(variants, options, strict=False):
            if isinstance(reference := variant.mapping.get("$ref"), str):
                self._note_discriminator(node.get("discriminator"), reference, option)
        return union_of(options) if options else AnyType()

    def _note_discriminator(self, discriminator: Node, reference: str, variant: Type) -> None:
        """Note which values of the discriminator's property are for a variant, the schema at `reference`."""
        name, mapping = discriminator.mapping.get("propertyName"), discriminator.get("mapping").mapping
        if not isinstance(name, str) or not is_unicode(name):
            return
        schema = reference.rsplit("/", 1)[-1]
        values = tuple(str(value) for value, place in mapping.items() if str(place).rsplit("/", 1)[-1] == schema)
        self._discriminated.append((variant, name, tuple(filter(is_unicode, values)) or (schema,)))

    def _values_of(self, node: Node, types: Sequence[str]) -> list[Any]:
        """Return the values of an enumeration as its type has them, such as "1" for 1 where it is a string.

        Others are left out and reported; where none remains, the type alone counts.
        """
        given = as_list(node.value.get("enum"))
        values = [value_of_type(value, types) for value in given] if types else given
        misfits = [given[index] for index, value in enumerate(values) if value is None and given[index] is not None]
        if misfits:
            shown = single_line(", ".join(map(str, misfits)), 100)
            self.report.add("schema", node.pointer, f"values of the enumeration that are not of its type: {shown}")
        kept = [value for index, value in enumerate(values) if value is not None or given[index] is None]
        return [] if misfits and kept == [None] else kept

    def _convert_enum(self, values: list[Any], node: Node, direction: Direction) -> Type:
        if not all(is_unicode(value) for value in values if isinstance(value, str)):
            self.report.add("schema", node.pointer, "a value that is not valid Unicode is left out of the enumeration")
        scalars = [value for value in values if isinstance(value, str | bool | int) and is_unicode(value)]
        others = [value for value in values if value is not None and not isinstance(value, str | bool | int)]
        options: list[Type] = []
        if len(scalars) > MAX_ENUM_VALUES:
            text = f"an enumeration of more than {MAX_ENUM_VALUES} values is not checked"
            self.report.add("schema", node.pointer, text)
            options.append(ScalarType(SCALAR_KINDS[type(scalars[0])]))
        elif others:
            self.report.add("schema", node.pointer, "an enumeration of numbers, lists or objects is not checked")
            options.append(AnyType())
        elif scalars:
            unique = {(type(value), value): value for value in scalars}
            options.append(EnumType(tuple(unique.values()), is_open=direction == "response" and len(unique) > 1))
        if None in values:
            options.append(NullType())
        return union_of(options) if options else AnyType()

    # --- Classes -------------------------------------------------------------------------------------------------

    def _new_model(self, node: Node, name: str, direction: Direction) -> Model:
        class_name = pascal_case(name, "Model")
        model = Model(
            name=self._class_names.claim(f"{class_name}Input" if direction == "request" else class_name),
            description=clean_text(node.value.get("description"), MAX_FIELD_DESCRIPTION),
            forbids_extra=direction == "request" and node.value.get("additionalProperties") is False,
            direction=direction,
            pointer=node.pointer,
        )
        self.models.append(model)
        return model

    def file_media_type(self, node: Node, about: Mapping[str, Any] | None = None) -> str:
        """Return the media type of a value that is a file or a list of files, and "" for another one.

        Args:
            node: The schema.
            about: What the schema says with the siblings of its reference, where it has some.
        """
        seen: set[tuple[str, str]] = set()

        def find(node: Node, about: Mapping[str, Any] | None = None) -> str:
            resolved = self.document.resolved_node(node)
            schema = resolved.mapping if about is None else about
            if (resolved.source, resolved.pointer) in seen:
                return ""
            seen.add((resolved.source, resolved.pointer))
            if media_type := file_media_type(schema):
                return media_type
            if schema.get("type") == "array":
                return find(resolved.get("items"))
            for keyword in ("anyOf", "oneOf", "allOf"):
                options = [each for each in resolved.get(keyword).elements() if each.mapping.get("type") != "null"]
                found = [find(option) for option in options]
                if found and (all(found) or (keyword == "allOf" and any(found))):
                    return next(filter(None, found))
            return ""

        return find(node, about)

    def copy_of(self, model: Model) -> Model:
        """Return a class of its own with the properties of `model`."""
        copy = replace(model, name=self._class_names.claim(model.name), properties=list(model.properties))
        self.models.append(copy)
        return copy

    def _add_properties(self, model: Model, node: Node, name: str) -> None:
        """Convert the properties of the schema at `node` into fields of `model`."""
        schema = node.value
        names = Namespace(MODEL_ATTRIBUTES)
        required = {item for item in as_list(schema.get("required")) if isinstance(item, str)}
        places = dict(node.get("properties").entries())
        excluding_keyword = "readOnly" if model.direction == "request" else "writeOnly"
        kinds = self._kinds(node)
        for api_name, place in places.items():
            about = {**self.document.resolved_mapping(place), **_without_reference(place.mapping)}
            if about.get(excluding_keyword) is True:
                continue
            if not is_unicode(api_name):
                self.report.add("schema", place.pointer, "its name is not valid Unicode: left out")
                continue
            class_name = f"{pascal_case(name, 'Model')}{pascal_case(api_name, 'Field')}"
            model.properties.append(
                Property(
                    type=self.convert(place, class_name, model.direction),
                    name=names.claim(snake_case(api_name, "field")),
                    api_name=api_name,
                    required=api_name in required,
                    description=(description_of(about) + kinds.get(api_name, "")).strip(),
                    file_media_type=self.file_media_type(place, about) if model.direction == "request" else "",
                )
            )
        undeclared = [api_name for api_name in sorted(required) if api_name not in places]
        if undeclared:
            listed = single_line(", ".join(undeclared), 100)
            text = f"it requires what it does not declare, which is not checked: {listed}"
            self.report.add("schema", node.pointer, text)
        if model.direction == "request":
            for api_name in filter(is_unicode, undeclared):
                field_name = names.claim(snake_case(api_name, "field"))
                model.properties.append(Property(field_name, api_name, AnyType(), required=False))
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and extra and places:
            text = "additionalProperties beside properties: any value is accepted there"
            self.report.add("schema", node.pointer, text)

    def _kinds(self, node: Node) -> dict[str, str]:
        """Return, for the property that the discriminator names, a sentence on which value selects which schema."""
        discriminator = node.get("discriminator")
        name, mapping = discriminator.mapping.get("propertyName"), discriminator.get("mapping").mapping
        if not isinstance(name, str) or not mapping:
            return {}
        listed = ", ".join(f"{value} ({str(place).rsplit('/', 1)[-1]})" for value, place in [*mapping.items()][:40])
        return {name: f" Selects the schema: {clean_text(listed, MAX_FIELD_DESCRIPTION)}"}


def _note_kind(model: Model, name: str, values: tuple[str, ...]) -> None:
    """Let the property that a discriminator names, which a request needs, have the values that select this class."""
    if (
        model.direction == "request"
        and not model.forbids_extra
        and all(name != each.api_name for each in model.properties)
    ):
        names = Namespace([*MODEL_ATTRIBUTES, *(each.name for each in model.properties)])
        model.properties.append(
            Property(names.claim(snake_case(name, "field")), name, ScalarType("str"), required=False)
        )
    shown = " or ".join(single_line(value, 60) for value in values)
    for prop in model.properties:
        if prop.api_name == name:
            prop.kinds = values
            if not isinstance(prop.type, EnumType) and shown not in prop.description:
                prop.description = f"{prop.description} It is {shown} here.".strip()


def _without_reference(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != "$ref"}
