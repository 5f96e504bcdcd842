"""Measure the schemas that a language model reads, and cut the deepest objects of tools that exceed the budget."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from .operations import Parameter, RequestBody, Tool
from .python_types import (
    AnyType,
    EnumType,
    FileType,
    ListType,
    MapType,
    Model,
    NamedType,
    NullType,
    ScalarType,
    Type,
    flatten,
    models_in,
)
from .recursion import replace_models
from .report import Report

DEFAULT_BUDGET = 10_000
"""Default maximum size of one tool, in tokens."""

DEFAULT_TOTAL_BUDGET = 1_150_000
"""Default maximum size of all tools together, in tokens: a list of less than 5 MB."""

MIN_BUDGET = 300
"""Size of one tool, in tokens, below which nothing is cut for the total."""

CHARACTERS_PER_TOKEN = 4
"""The usual estimate for English and JSON; tokenizers differ by a fifth."""

MAX_LEVELS = 30
"""Maximum nesting of classes; pydantic reads them recursively."""

JSON_TYPES = {"str": "string", "int": "integer", "Number": "number", "bool": "boolean"}
KEYWORDS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": "pattern",
}


class Sizes:
    """Sizes of tools in tokens, as the server publishes them."""

    def __init__(self) -> None:
        self._of_model: dict[Model, int] = {}

    def tokens(self, tool: Tool) -> int:
        """Return the estimated size of a tool in the list of tools, in tokens: names, texts and schemas."""
        text = len(tool.name) + len(tool.title) + len(tool.description) + 200
        for part in arguments_of(tool):
            text += len(_json(type_schema(part.type) | _described(part.description))) + len(part.argument) + 4
        responses = _response_types(tool)
        text += sum(len(_json(type_schema(type_))) for type_ in responses)
        models = [level for types in (_argument_types(tool), responses) for level in _levels(types)]
        return (text + sum(self._size(model) for level in models for model in level)) // CHARACTERS_PER_TOKEN

    def forget(self, model: Model) -> None:
        """Measure a model again, whose properties have changed."""
        self._of_model.pop(model, None)

    def _size(self, model: Model) -> int:
        if model not in self._of_model:
            self._of_model[model] = len(_json(model_schema(model))) + len(model.name) + 4
        return self._of_model[model]


def keep_within_budget(
    tools: Sequence[Tool], budget: int, report: Report, total_budget: int = DEFAULT_TOTAL_BUDGET
) -> Sizes:
    """Replace the deepest objects of large tools with any object, level by level, and return the sizes.

    Where all tools together exceed `total_budget`, the maximum of one tool is lowered until they do not.
    """
    sizes = Sizes()
    before = {tool.name: sizes.tokens(tool) for tool in tools}
    cut: Counter[str] = Counter()
    maximum = budget
    while True:
        for tool in tools:
            cut[tool.name] += _cut_to(tool, maximum, sizes)
        after = {tool.name: sizes.tokens(tool) for tool in tools}
        if sum(after.values()) <= total_budget or maximum < MIN_BUDGET:
            break
        maximum = maximum * 4 // 5
    for tool in tools:
        tokens = after[tool.name]
        if cut[tool.name]:
            text = f"reduced from about {before[tool.name]:,} to {tokens:,} tokens"
            report.add("size", tool.pointer, f"{text}: {cut[tool.name]} types of objects in it accept any object")
        if tokens > budget:
            report.add("size", tool.pointer, f"it has about {tokens:,} tokens without any object to cut")
    if (total := sum(after.values())) > total_budget:
        report.add("size", "#/paths", f"all tools together have about {total:,} tokens: select fewer operations")
    return sizes


def _cut_to(tool: Tool, maximum: int, sizes: Sizes) -> int:
    """Cut the deepest objects of a tool until it has at most `maximum` tokens, and return how many types."""
    cut = 0
    tokens = sizes.tokens(tool)
    while True:
        sides = [(_levels(_argument_types(tool)), False), (_levels(_response_types(tool)), True)]
        levels, is_response = max(sides, key=lambda side: (len(side[0]), side[1]))
        if (tokens <= maximum and len(levels) <= MAX_LEVELS) or not levels:
            return cut
        cut += len(levels[-1])
        _cut(levels, tool, is_response, sizes)
        tokens = sizes.tokens(tool)


def arguments_of(tool: Tool) -> list[Parameter | RequestBody]:
    return [*tool.parameters, *([tool.body] if tool.body is not None else [])]


def _argument_types(tool: Tool) -> list[Type]:
    return [part.type for part in arguments_of(tool)]


def _response_types(tool: Tool) -> list[Type]:
    return [tool.response.type] if tool.response.kind in ("json", "lines") else []


def _levels(types: Iterable[Type]) -> list[list[Model]]:
    """Return the models that types refer to, by the number of models around them."""
    levels: list[list[Model]] = []
    seen: set[Model] = set()
    current = [model for type_ in types for model in models_in(type_)]
    while current := [model for model in dict.fromkeys(current) if model not in seen]:
        seen.update(current)
        levels.append(current)
        current = [reference for model in current for reference in model.referenced_models()]
    return levels


def _cut(levels: list[list[Model]], tool: Tool, is_response: bool, sizes: Sizes) -> None:
    """Replace the models of the deepest level where the level above refers to them."""
    replaced = frozenset(levels[-1])
    if len(levels) > 1:
        for model in levels[-2]:
            sizes.forget(model)
            for prop in model.properties:
                prop.type = replace_models(prop.type, replaced)
    elif is_response:
        tool.response.type = replace_models(tool.response.type, replaced)
    else:
        for part in arguments_of(tool):
            part.type = replace_models(part.type, replaced)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _described(description: str) -> dict[str, Any]:
    return {"description": description} if description else {}


def model_schema(model: Model) -> dict[str, Any]:
    """Return the JSON schema of a model, as the server publishes it."""
    properties = {prop.api_name: type_schema(prop.type) | _described(prop.description) for prop in model.properties}
    schema: dict[str, Any] = {**_described(model.description), "properties": properties, "type": "object"}
    if required := [prop.api_name for prop in model.properties if prop.required]:
        schema["required"] = required
    if model.forbids_extra:
        schema["additionalProperties"] = False
    return schema


def type_schema(type_: Type, enclosing: tuple[Type, ...] = ()) -> dict[str, Any]:
    """Return the JSON schema of a type, with references to models."""
    match type_:
        case AnyType():
            return {}
        case NullType():
            return {"type": "null"}
        case ScalarType():
            lengths = {"min_length": "minLength", "max_length": "maxLength"}
            schema = {(KEYWORDS | lengths)[name]: value for name, value in type_.constraints}
            return {"type": JSON_TYPES[type_.kind], **schema, **({"format": type_.format} if type_.format else {})}
        case EnumType():
            return {"enum": list(type_.values), "type": "string"}
        case FileType():
            return {"$ref": "#/$defs/UploadFile"}
        case ListType():
            lengths = {"min_length": "minItems", "max_length": "maxItems"}
            schema = {lengths[name]: value for name, value in type_.constraints}
            return {"items": type_schema(type_.item, enclosing), "type": "array", **schema}
        case MapType():
            value = type_schema(type_.value, enclosing)
            return {"type": "object", **({"additionalProperties": value} if value else {})}
        case Model():
            return {"$ref": f"#/$defs/{type_.name}"}
        case NamedType():
            if type_.target is None or type_ in enclosing:
                return {}
            return type_schema(type_.target, (*enclosing, type_))
    return {"anyOf": [type_schema(option, around) for option, around in flatten(type_, enclosing)]}
