"""Turns JSON schemas, of OpenAPI 3.0 and 3.1, into the types that the models are written from.

A schema becomes two classes where a request and an answer have it: a request's model is as strict as the document, an
answer's takes what an API of a later version may add (unknown fields, new values of an enumeration), and properties
that are read-only or write-only are only where they belong.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic_core

from .document import Document, DocumentError, Node, listed
from .names import (
    MAX_FIELD_DESCRIPTION,
    MODEL_ATTRIBUTES,
    Namespace,
    clean,
    one_line,
    pascal,
    short_literal,
    snake,
)
from .report import Report

Mode = Literal["request", "answer"]

MAX_DEPTH = 60
MAX_VARIANTS = 60
MAX_CHOICES = 500

ANNOTATIONS = frozenset(
    """
    title description default example examples deprecated readOnly writeOnly xml externalDocs nullable discriminator
    $comment $schema $id $anchor $dynamicAnchor $defs definitions contentSchema
    """.split()
)
"""Keywords that say nothing about which values there are, or are read elsewhere."""

HANDLED = frozenset(
    """
    $ref type properties required additionalProperties items enum const allOf anyOf oneOf format minimum maximum
    exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern minItems maxItems prefixItems
    contentEncoding contentMediaType
    """.split()
)

RULES_FOR = {
    "uniqueItems": "array",
    "contains": "array",
    "minContains": "array",
    "maxContains": "array",
    "unevaluatedItems": "array",
    "minProperties": "object",
    "maxProperties": "object",
    "unevaluatedProperties": "object",
}
"""The type that a keyword is a rule for; on another one it says nothing."""


class Type(ABC):
    """A type of Python, to be annotated as `source` says: its classes are found at `prefix`."""

    @abstractmethod
    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str: ...


@dataclass(frozen=True)
class Anything(Type):
    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        return "Any"


@dataclass(frozen=True)
class Nothing(Type):
    """The value null."""

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        return "None"


@dataclass(frozen=True)
class Scalar(Type):
    kind: Literal["str", "int", "float", "bool"]
    limits: tuple[tuple[str, Any], ...] = ()
    """Arguments of pydantic's Field."""
    format: str = ""

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        arguments = [f"{name}={short_literal(value)}" for name, value in self.limits]
        if self.format:
            arguments.append(f'json_schema_extra={{"format": {short_literal(self.format)}}}')
        return f"Annotated[{self.kind}, Field({', '.join(arguments)})]" if arguments else self.kind

    def limit(self, name: str, default: Any = None) -> Any:
        return dict(self.limits).get(name, default)


@dataclass(frozen=True)
class Choice(Type):
    values: tuple[Any, ...]
    open: bool
    """Whether a later version of the API may have further ones."""

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        known = f"Literal[{', '.join(map(short_literal, self.values))}]"
        kinds = dict.fromkeys(type(value).__name__ for value in self.values)
        return " | ".join([known, *kinds]) if self.open else known


@dataclass(frozen=True)
class ListOf(Type):
    item: Type
    limits: tuple[tuple[str, Any], ...] = ()

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        plain = f"list[{self.item.source(prefix, within)}]"
        arguments = ", ".join(f"{name}={value}" for name, value in self.limits)
        return f"Annotated[{plain}, Field({arguments})]" if arguments else plain

    def limit(self, name: str, default: Any = None) -> Any:
        return dict(self.limits).get(name, default)


@dataclass(frozen=True)
class MapOf(Type):
    value: Type

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        return f"dict[str, {self.value.source(prefix, within)}]"


@dataclass(frozen=True)
class Union(Type):
    options: tuple[Type, ...]

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        found = dict.fromkeys(member.source(prefix, within) for member in members(self, within))
        if "Any" in found:
            return "Any"
        if "None" in found:  # last, as one reads it
            found["None"] = found.pop("None")
        return " | ".join(found)


@dataclass(eq=False)
class Alias(Type):
    """A named schema that is no class: written out where it is used."""

    target: Type | None = None
    cyclic: bool = False

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        if self.target is None or self in within:  # a list of itself, say: only a class could have a name for that
            self.cyclic = True
            return "Any"
        return self.target.source(prefix, (*within, self))


def members(found: Type, within: tuple[Type, ...] = ()) -> list[Type]:
    """The types that a union is made of, named unions included; of any other type itself."""
    if isinstance(found, Union):
        return [member for option in found.options for member in members(option, within)]
    if isinstance(found, Alias) and isinstance(found.target, Union | Alias) and found not in within:
        return members(found.target, (*within, found))
    return [found]


@dataclass
class Property:
    name: str
    wire: str
    type: Type
    required: bool
    description: str = ""
    binary: str = ""
    """The media type of a file that the model writes as base64."""


@dataclass(eq=False)
class Model(Type):
    """A class."""

    name: str
    description: str = ""
    properties: list[Property] = field(default_factory=list)
    closed: bool = False
    """Whether it refuses further properties."""
    mode: Mode = "answer"
    pointer: str = ""
    named: bool = False
    """Whether the document has it under a name of its own."""

    def source(self, prefix: str = "", within: tuple[Type, ...] = ()) -> str:
        return prefix + self.name


def models_in(found: Type, within: tuple[Type, ...] = ()) -> Iterable[Model]:
    if isinstance(found, Model):
        yield found
    elif isinstance(found, ListOf):
        yield from models_in(found.item, within)
    elif isinstance(found, MapOf):
        yield from models_in(found.value, within)
    elif isinstance(found, Union):
        for option in found.options:
            yield from models_in(option, within)
    elif isinstance(found, Alias) and found.target is not None and found not in within:
        yield from models_in(found.target, (*within, found))


def optional(found: Type) -> Type:
    return found if any(isinstance(each, Nothing) for each in members(found)) else Union((found, Nothing()))


def nullable(found: Type) -> bool:
    return any(isinstance(each, Nothing | Anything) for each in members(found))


class Schemas:
    """Converts the schemas of one document, each named one once for each mode."""

    def __init__(self, document: Document, report: Report) -> None:
        self.document = document
        self.report = report
        self.models: list[Model] = []
        self._names = Namespace(
            ("Any", "Annotated", "Literal", "Field", "ConfigDict", "ApiModel"),
            joint="",
        )
        self._known: dict[tuple[str, str, Mode], Type] = {}
        self._alike: dict[tuple[str, Mode], Model] = {}
        """By the text of a schema: a document that has its references written out has each many times."""
        self._depth = 0

    def type_of(self, node: Node, name: str, mode: Mode) -> Type:
        """The type of the schema at `node`; `name` is for its class where it has none of its own."""
        if self._depth >= MAX_DEPTH:
            self.report.add(
                "schema", node.pointer, f"nested more than {MAX_DEPTH} levels deep, so any value is accepted"
            )
            return Anything()
        self._depth += 1
        try:
            return self._type_of(node, name, mode)
        finally:
            self._depth -= 1

    def _type_of(self, node: Node, name: str, mode: Mode) -> Type:
        schema = node.value
        if not isinstance(schema, dict):
            if schema is False:
                self.report.add("schema", node.pointer, "no value fits the schema false; any value is accepted")
            elif schema is not True and schema is not None:
                self.report.add("schema", node.pointer, "no schema, so any value is accepted")
            return Anything()
        if isinstance(schema.get("$ref"), str):
            return self._reference(node, name, mode)
        merged = self._merged(node, ())
        if merged is None:
            return Anything()
        return self._converted(merged, name, mode)

    def _reference(self, node: Node, name: str, mode: Mode) -> Type:
        beside = {key for key in node.value if key not in ANNOTATIONS and key != "$ref" and not key.startswith("x-")}
        if beside and self.document.version >= (3, 1):
            merged = self._merged(node, ())
            return Anything() if merged is None else self._converted(merged, name, mode)
        try:
            target = self.document.resolve(node)
        except DocumentError as error:
            self.report.add("reference", node.pointer, str(error).removeprefix(f"{node.pointer}: "))
            return Anything()
        return self._or_null(self._referenced(target, name, mode), node)

    def _referenced(self, target: Node, name: str, mode: Mode) -> Type:
        key = (target.source, target.pointer, mode)
        if key not in self._known:
            alias = self._known[key] = Alias()
            last = target.pointer.rsplit("/", 1)[-1].replace("~1", "/").replace("~0", "~")
            own = last if "/schemas/" in target.pointer or "#" in target.pointer[1:] else name
            # The class is known before its properties are, so that they can be of that class.
            self._known[key] = self._named(target, own or name, mode, alias, key)
            alias.target = self._known[key]
        found = self._known[key]
        return found.target if isinstance(found, Alias) and isinstance(found.target, Model | Scalar) else found

    def _named(self, target: Node, name: str, mode: Mode, alias: Alias, key: tuple[str, str, Mode]) -> Type:
        merged = self._merged(target, ())
        if merged is None:
            return Anything()
        if _is_model(merged.value):
            model = self._model(merged, name, mode)
            model.named = True
            alias.target = self._known[key] = model
            self._fill(model, merged, name, mode)
            return self._or_null(model, merged)
        return self._converted(merged, name, mode)

    def _converted(self, node: Node, name: str, mode: Mode) -> Type:
        """The type of a schema whose references and allOf are merged already."""
        schema = node.value
        self._unchecked(node)
        for keyword in ("oneOf", "anyOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                return self._or_null(self._variants(node, keyword, name, mode), node)
        if "const" in schema:
            return self._choice([schema["const"]], node, mode)
        if isinstance(schema.get("enum"), list):
            return self._or_null(self._choice(schema["enum"], node, mode), node)
        kinds = _kinds(schema)
        if not kinds:
            return Anything()
        return self._or_null(_union([self._of_kind(kind, node, name, mode) for kind in kinds]), node)

    def _or_null(self, found: Type, node: Node) -> Type:
        return optional(found) if node.value.get("nullable") is True else found

    def _of_kind(self, kind: str, node: Node, name: str, mode: Mode) -> Type:
        schema = node.value
        strict = mode == "request"
        match kind:
            case "null":
                return Nothing()
            case "boolean":
                return Scalar("bool")
            case "integer" | "number":
                limits = _number_limits(schema) if strict else ()
                return Scalar("int" if kind == "integer" else "float", limits)
            case "string":
                return Scalar("str", self._string_limits(node) if strict else (), _format(schema))
            case "array":
                return self._array(node, name, mode)
            case "object":
                if isinstance(schema.get("properties"), dict) and schema["properties"]:
                    alike = (json.dumps([schema, node.source], sort_keys=True), mode)
                    if alike not in self._alike:
                        model = self._alike[alike] = self._model(node, name, mode)
                        self._fill(model, node, name, mode)
                    return self._alike[alike]
                extra = schema.get("additionalProperties")
                if isinstance(extra, dict) and extra:
                    return MapOf(self.type_of(node.child("additionalProperties"), f"{name}Value", mode))
                return MapOf(Anything())
        self.report.add(
            "schema", node.pointer, f"type {one_line(str(kind), 40)!r} is unknown, so any value is accepted"
        )
        return Anything()

    def _array(self, node: Node, name: str, mode: Mode) -> Type:
        schema = node.value
        item: Type = Anything()
        if isinstance(schema.get("prefixItems"), list) and schema["prefixItems"]:
            self.report.add("schema", node.pointer, "prefixItems: each item may be of any of the types")
            places = [*node.child("prefixItems").each()]
            if isinstance(schema.get("items"), dict):
                places.append(node.child("items"))
            item = _union([self.type_of(place, f"{name}Item", mode) for place in places])
        elif isinstance(schema.get("items"), dict):
            item = self.type_of(node.child("items"), f"{name}Item", mode)
        limits = ((to, schema.get(of)) for to, of in (("min_length", "minItems"), ("max_length", "maxItems")))
        kept = tuple((to, int(value)) for to, value in limits if _is_count(value)) if mode == "request" else ()
        return ListOf(item, kept)

    def _model(self, node: Node, name: str, mode: Mode) -> Model:
        wanted = pascal(name, "Model")
        made = Model(
            self._names.take(f"{wanted}Input" if mode == "request" else wanted), mode=mode, pointer=node.pointer
        )
        made.description = clean(node.value.get("description"), MAX_FIELD_DESCRIPTION)
        made.closed = mode == "request" and node.value.get("additionalProperties") is False
        self.models.append(made)
        return made

    def _fill(self, model: Model, node: Node, name: str, mode: Mode) -> None:
        schema = node.value
        names = Namespace(MODEL_ATTRIBUTES)
        required = {each for each in listed(schema.get("required")) if isinstance(each, str)}
        properties = schema.get("properties")
        places = dict(node.get("properties").entries())
        for wire, place in places.items():
            about = self._about(place)
            if about.get("readOnly" if mode == "request" else "writeOnly") is True:
                continue
            found = self.type_of(place, f"{pascal(name, 'Model')}{pascal(wire, 'Field')}", mode)
            model.properties.append(
                Property(
                    name=names.take(snake(wire, "field")),
                    wire=wire,
                    type=found,
                    required=wire in required,
                    description=described(about, found),
                    binary=binary_type(about) if mode == "request" else "",
                )
            )
        for wire in sorted(required - set(properties or {})):
            model.properties.append(Property(names.take(snake(wire, "field")), wire, Anything(), True))
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and extra and places:
            self.report.add(
                "schema", node.pointer, "additionalProperties beside properties: any value is accepted there"
            )

    def _about(self, place: Node) -> Mapping[str, Any]:
        """What a property's schema says of it, its own words before those of what it refers to."""
        try:
            resolved = self.document.resolve(place).mapping
        except DocumentError:
            resolved = {}
        return {**resolved, **{key: value for key, value in place.mapping.items() if key != "$ref"}}

    def _variants(self, node: Node, keyword: str, name: str, mode: Mode) -> Type:
        schema = node.value
        places = [*node.child(keyword).each()]
        base = {
            key: value for key, value in schema.items() if key not in ("oneOf", "anyOf", "discriminator", "nullable")
        }
        shaping = {key for key in base if key in HANDLED}
        if keyword == "oneOf" and isinstance(schema.get("anyOf"), list):
            self.report.add("schema", node.pointer, "anyOf beside oneOf is not checked")
        if all(_only_rules(place.value) for place in places):  # such as: one of these properties is required
            self.report.add("schema", node.pointer, f"{keyword} of rules without types is not checked")
            return self._converted(node.replaced(base), name, mode)
        if len(places) > MAX_VARIANTS:
            self.report.add(
                "schema", node.pointer, f"{keyword} of more than {MAX_VARIANTS} schemas: any value is accepted"
            )
            return Anything()
        found: list[Type] = []
        for number, place in enumerate(places, start=1):
            title = place.mapping.get("title")
            own = f"{name}{pascal(title, 'Option')}" if isinstance(title, str) else f"{name}Option{number}"
            if shaping and not (shaping <= {"type"} and not isinstance(base.get("type"), list)):
                merged = self._merged(place, (), base)
                found.append(Anything() if merged is None else self._converted(merged, own, mode))
            else:
                found.append(self.type_of(place, own, mode))
        return _union(found)

    def _choice(self, values: list[Any], node: Node, mode: Mode) -> Type:
        fit = [value for value in values if isinstance(value, str | bool | int) and value is not None]
        found: list[Type] = []
        if any(value is None for value in values):
            found.append(Nothing())
        rest = [value for value in values if value is not None and not isinstance(value, str | bool | int)]
        if len(fit) > MAX_CHOICES:
            self.report.add("schema", node.pointer, f"an enumeration of more than {MAX_CHOICES} values is not checked")
            found.insert(0, _union([Scalar(_SCALARS[type(value)]) for value in fit[:1]]))
        elif rest:
            self.report.add("schema", node.pointer, "an enumeration of numbers, lists or objects is not checked")
            found.insert(0, Anything())
        elif fit:
            unique: dict[tuple[type, Any], Any] = {(type(value), value): value for value in fit}
            found.insert(0, Choice(tuple(unique.values()), open=mode == "answer" and len(unique) > 1))
        return _union(found) if found else Anything()

    def _string_limits(self, node: Node) -> tuple[tuple[str, Any], ...]:
        schema = node.value
        found: list[tuple[str, Any]] = []
        for to, of in (("min_length", "minLength"), ("max_length", "maxLength")):
            if _is_count(schema.get(of)):
                found.append((to, int(schema[of])))
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and pattern:
            if usable_pattern(pattern):
                found.append(("pattern", pattern))
            else:
                self.report.add("pattern", f"{node.pointer}/pattern", "not checked")
        return tuple(found)

    def _unchecked(self, node: Node) -> None:
        """Reports the keywords that make a rule which no type expresses."""
        kinds = _kinds(node.value)
        for keyword in node.value:
            about = RULES_FOR.get(keyword)
            if about and (about not in kinds or not node.value[keyword]):
                continue
            if keyword not in HANDLED and keyword not in ANNOTATIONS and not keyword.startswith("x-"):
                self.report.add("schema", node.pointer, f"{one_line(keyword, 40)} is not checked")

    # --- One schema of many ---------------------------------------------------------------------------------

    def _merged(self, node: Node, within: tuple[str, ...], base: dict[str, Any] | None = None) -> Node | None:
        """The schema at `node` as one without `$ref` and `allOf` at its top, together with `base`.

        Its places are those of the parts: a value that came from elsewhere keeps a `$ref` where it had one.
        """
        parts = [*self._parts(node, within)]
        if base is not None:
            parts.insert(0, base)
        if not parts:
            return None
        whole: dict[str, Any] = {}
        for part in parts:
            whole = _together(whole, part)
        return node.replaced(whole)

    def _parts(self, node: Node, within: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        schema = node.value
        if not isinstance(schema, dict):
            return
        where = f"{node.source}{node.pointer}"
        if where in within or len(within) > MAX_DEPTH:
            self.report.add("schema", node.pointer, "it is made of itself, which is left out")
            return
        if isinstance(schema.get("$ref"), str):
            try:
                yield from self._parts(self.document.resolve(node), (*within, where))
            except DocumentError as error:
                self.report.add("reference", node.pointer, str(error).removeprefix(f"{node.pointer}: "))
        own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
        for part in node.get("allOf").each():
            yield from self._parts(part, (*within, where))
        if "$ref" not in schema or self.document.version >= (3, 1):
            yield self._at_home(own, node)

    def _at_home(self, schema: dict[str, Any], node: Node) -> dict[str, Any]:
        """`schema` with its references into other files made absolute, as it is read from another place now."""
        at_home = node.source == self.document.location
        return schema if at_home else self.document.absolute(schema, node.source)


_SCALARS: dict[type, Literal["str", "int", "float", "bool"]] = {str: "str", bool: "bool", int: "int", float: "float"}


def described(schema: Mapping[str, Any], found: Type) -> str:
    """A description for the model: the document's, and the default, which the API itself applies."""
    text = clean(schema.get("description") or schema.get("title"), MAX_FIELD_DESCRIPTION)
    default = schema.get("default")
    if default is not None and isinstance(default, str | int | float | bool):
        shown = one_line(str(default).lower() if isinstance(default, bool) else str(default), 60)
        text = f"{text}{'' if not text or text.endswith('.') else '.'} Default: {shown}".strip() if shown else text
    return text


def binary_type(schema: Mapping[str, Any]) -> str:
    """The media type of a part that is a file, empty where it is none."""
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        schema = schema["items"]
    media = schema.get("contentMediaType")
    if schema.get("format") == "binary" or (media and not schema.get("contentEncoding")):
        usable = isinstance(media, str) and is_media_type(media)
        return str(media) if usable else "application/octet-stream"
    return ""


def is_media_type(text: str) -> bool:
    name, _, sub = text.partition("/")
    return text.isascii() and all(part and all(c.isalnum() or c in "!#$&^_.+-" for c in part) for part in (name, sub))


def usable_pattern(pattern: str) -> bool:
    """Whether the engine of pydantic knows it: it has no look-around and no back-references."""
    if len(pattern) > 1000:
        return False
    try:
        pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=pattern))
    except pydantic_core.SchemaError:
        return False
    return True


def _is_count(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 2**31 and bool(value == int(value))


def _number_limits(schema: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    found: dict[str, Any] = {}
    for to, of, strict in (("ge", "minimum", "exclusiveMinimum"), ("le", "maximum", "exclusiveMaximum")):
        bound, exclusive = schema.get(of), schema.get(strict)
        if _is_number(exclusive):  # 3.1
            found[to.replace("e", "t")] = exclusive
        elif _is_number(bound):
            found[to.replace("e", "t") if exclusive is True else to] = bound
    step = schema.get("multipleOf")
    if isinstance(step, int | float) and _is_number(step) and step > 0:
        found["multiple_of"] = step
    integers = "integer" in _kinds(schema)
    return tuple((to, int(value) if integers and value == int(value) else value) for to, value in found.items())


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) < 1e300
    )


def _format(schema: Mapping[str, Any]) -> str:
    found = schema.get("format")
    return one_line(found, 40) if isinstance(found, str) and found not in ("binary", "byte") else ""


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    """The types that a schema allows, guessed from its keywords where it names none."""
    given = schema.get("type")
    if isinstance(given, list):
        return [str(each) for each in dict.fromkeys(map(str, given))]
    if isinstance(given, str):
        return [given]
    if isinstance(schema.get("properties"), dict) or isinstance(schema.get("additionalProperties"), dict):
        return ["object"]
    if "items" in schema or "prefixItems" in schema:
        return ["array"]
    if any(key in schema for key in ("pattern", "minLength", "maxLength")):
        return ["string"]
    if schema.get("format") in ("date", "date-time", "uuid", "uri", "email", "binary"):
        return ["string"]
    return []


def _is_model(schema: Mapping[str, Any]) -> bool:
    """Whether a merged schema is an object with properties, and nothing else but null."""
    if any(isinstance(schema.get(keyword), list) and schema[keyword] for keyword in ("oneOf", "anyOf")):
        return False
    if "const" in schema or "enum" in schema or not schema.get("properties"):
        return False
    return isinstance(schema["properties"], dict) and _kinds(schema) == ["object"]


def _only_rules(schema: Any) -> bool:
    """Whether a variant says only which properties are required, or excluded."""
    return isinstance(schema, dict) and not any(
        key in schema for key in ("$ref", "type", "allOf", "oneOf", "anyOf", "enum", "const", "properties", "items")
    )


def _union(found: Sequence[Type]) -> Type:
    unique = list(dict.fromkeys(found))
    return unique[0] if len(unique) == 1 else Union(tuple(unique))


def _together(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A schema for values that fit both (allOf)."""
    whole = dict(one)
    for key, value in other.items():
        if key not in whole:
            whole[key] = value
        elif key == "properties" and isinstance(value, dict) and isinstance(whole[key], dict):
            whole[key] = _both_properties(whole[key], value)
        elif key == "required" and isinstance(value, list) and isinstance(whole[key], list):
            whole[key] = [*whole[key], *(each for each in value if each not in whole[key])]
        elif key == "enum" and isinstance(value, list) and isinstance(whole[key], list):
            whole[key] = [each for each in whole[key] if each in value] or value
        elif key in ("minimum", "minLength", "minItems") and _is_number(value) and _is_number(whole[key]):
            whole[key] = max(value, whole[key])
        elif key in ("maximum", "maxLength", "maxItems") and _is_number(value) and _is_number(whole[key]):
            whole[key] = min(value, whole[key])
        elif key == "nullable":
            whole[key] = value is True or whole[key] is True
        elif key in ("oneOf", "anyOf") and isinstance(value, list) and isinstance(whole[key], list):
            whole[key] = [*whole[key], *value] if whole[key] != value else value
        elif key == "additionalProperties" and (value is True or whole[key] is False):
            continue
        else:
            whole[key] = value
    return whole


def _both_properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(one)
    for name, value in other.items():
        if name in found and found[name] != value and isinstance(value, dict) and isinstance(found[name], dict):
            found[name] = {"allOf": [found[name], value]}
        else:
            found[name] = value
    return found
