"""JSON schemas of the types that tools from an OpenAPI document use, made from their annotations.

pydantic describes a type by way of its validator, which contains those of all types in it. For an API of a thousand
tools that takes a minute. Here each class is described once, and validators are built when a tool is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticUndefined

TYPES: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}

CONSTRAINTS: Mapping[type, tuple[str, str]] = {
    Ge: ("ge", "minimum"),
    Gt: ("gt", "exclusiveMinimum"),
    Le: ("le", "maximum"),
    Lt: ("lt", "exclusiveMaximum"),
    MultipleOf: ("multiple_of", "multipleOf"),
    MinLen: ("min_length", "min"),
    MaxLen: ("max_length", "max"),
}
"""Attribute of each constraint, and its keyword in a schema, for lengths without `Length` or `Items`."""

ALIASES = frozenset(("alias", "alias_priority", "validation_alias", "serialization_alias"))
DESCRIBED = (
    ALIASES
    | {"annotation", "default", "description", "json_schema_extra", "pattern"}
    | {attribute for attribute, _ in CONSTRAINTS.values()}
)
"""Attributes of a field that are described here; a field with another one is left to pydantic."""


class NotNull:
    """Removes null from the values of an optional type."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        return schema["schema"] if schema["type"] == "nullable" else schema


class UndescribedTypeError(Exception):
    """A type is none of those that generated tools use, so that only pydantic can describe it."""


class Described(BaseModel):
    """Base of classes that are described here: objects whose schema follows from their fields alone."""


class Definition:
    """The schema of a class, and the classes that it refers to."""

    def __init__(self, model: type[BaseModel]) -> None:
        if not model.__pydantic_fields_complete__:
            model.model_rebuild()  # a class of it was defined after it
        self.references: dict[str, type[Described]] = {}
        fields = model.model_fields.items()
        properties = {field.alias or name: _field_schema(field, self.references) for name, field in fields}
        self.schema: dict[str, Any] = {"properties": properties, "type": "object"}
        if required := [field.alias or name for name, field in fields if field.is_required()]:
            self.schema["required"] = required
        if model.__doc__:
            self.schema["description"] = cleandoc(model.__doc__)
        if model.model_config.get("extra") == "forbid":
            self.schema["additionalProperties"] = False


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of a class whose fields have types that generated tools use.

    Raises:
        UndescribedTypeError: a field has another type, or two classes have the same name.
    """
    definition = Definition(model)
    return definition.schema | _definitions(definition.references)


def type_schema(annotation: Any) -> dict[str, Any]:
    """Return the JSON schema of a type that generated tools use.

    Raises:
        UndescribedTypeError: it is another type, or two classes have the same name.
    """
    if isinstance(annotation, type) and issubclass(annotation, Described):
        definition = _definition(annotation)
        inner = _definitions(definition.references)
        if annotation.__name__ not in inner.get("$defs", {}):  # it does not contain itself
            return definition.schema | inner
    references: dict[str, type[Described]] = {}
    return _type_schema(annotation, references) | _definitions(references)


def _definitions(references: Mapping[str, type[Described]]) -> dict[str, Any]:
    """Return the schemas of these classes and of those that they refer to, as the member `$defs`."""
    found: dict[str, type[Described]] = {}
    missing = list(references.items())
    while missing:
        name, model = missing.pop()
        if found.setdefault(name, model) is not model:
            raise UndescribedTypeError(name)
        missing += [item for item in _definition(model).references.items() if found.get(item[0]) is not item[1]]
    return {"$defs": {name: _definition(model).schema for name, model in sorted(found.items())}} if found else {}


def _definition(model: type[Described]) -> Definition:
    """Return the definition of a class, which is made once."""
    definition = model.__dict__.get("__openapi_definition__")
    if not isinstance(definition, Definition):
        definition = Definition(model)
        type.__setattr__(model, "__openapi_definition__", definition)
    return definition


def _field_schema(field: FieldInfo, references: dict[str, type[Described]]) -> dict[str, Any]:
    extra = field.json_schema_extra
    is_described = field._attributes_set.keys() <= DESCRIBED and field.validation_alias == field.alias
    if not is_described or field.default not in (None, PydanticUndefined) or callable(extra):
        raise UndescribedTypeError(field)
    annotation: Any = field.annotation
    if any(isinstance(item, NotNull) for item in field.metadata):
        annotation = Union[tuple(option for option in get_args(annotation) if option is not NoneType)]  # noqa: UP007
    schema = _type_schema(annotation, references)
    for item in field.metadata:
        schema |= _constraint(item, schema)
    if field.description:
        schema["description"] = field.description
    return schema | (extra or {})


def _constraint(item: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword for an item of a field's metadata."""
    if isinstance(item, NotNull):
        return {}
    if type(item) in CONSTRAINTS:
        attribute, keyword = CONSTRAINTS[type(item)]
        if keyword in ("min", "max"):
            keyword += {"string": "Length", "array": "Items"}[schema["type"]]
        return {keyword: getattr(item, attribute)}
    if vars(item).keys() == {"pattern"}:
        return {"pattern": item.pattern}
    raise UndescribedTypeError(item)


def _type_schema(annotation: Any, references: dict[str, type[Described]]) -> dict[str, Any]:
    if annotation is Any:
        return {}
    if annotation in TYPES or annotation is None:
        return {"type": TYPES.get(annotation, "null")}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _field_schema(FieldInfo.from_annotation(annotation), references)
    if origin is Literal:
        kinds = {TYPES[type(value)] for value in arguments}
        kind = {"type": kinds.pop()} if len(kinds) == 1 else {}
        return kind | ({"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)})
    if origin in (UnionType, Union):
        return _union(arguments, references)
    if origin is list:
        return {"items": _type_schema(arguments[0], references), "type": "array"}
    if origin is dict and arguments[0] is str:
        values = _type_schema(arguments[1], references)
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if isinstance(annotation, type) and issubclass(annotation, Described):
        if references.setdefault(annotation.__name__, annotation) is not annotation:
            raise UndescribedTypeError(annotation)
        return {"$ref": f"#/$defs/{annotation.__name__}"}
    raise UndescribedTypeError(annotation)


def _union(types: tuple[Any, ...], references: dict[str, type[Described]]) -> dict[str, Any]:
    options: list[dict[str, Any]] = []
    for each in types:
        schema = _type_schema(each, references)
        options += [option for option in schema.get("anyOf", [schema]) if option not in options]
    if {"type": "number"} in options and {"type": "integer"} in options:
        options.remove({"type": "integer"})  # an integer is a number
    return dict(options[0]) if len(options) == 1 else {"anyOf": options}
