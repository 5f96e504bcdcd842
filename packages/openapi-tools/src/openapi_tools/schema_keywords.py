"""The keywords of a JSON schema (OpenAPI 3.0 and 3.1): which types, constraints and descriptions they give."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .media_types import is_media_type
from .python_types import Constraints
from .text import MAX_FIELD_DESCRIPTION, clean_text, single_line

MAX_EXAMPLE = 60
"""Characters of a default or an example in a description."""

MAX_VALUES = 400
"""Characters of the values of an enumeration in a description."""

ANNOTATIONS = frozenset(
    """
    title description default example examples deprecated readOnly writeOnly xml externalDocs nullable discriminator
    $comment $schema $id $anchor $dynamicAnchor $defs definitions contentSchema
    """.split()
)
"""Keywords that do not restrict the values, or are read elsewhere."""

CONVERTED = frozenset(
    """
    $ref type properties required additionalProperties items enum const allOf anyOf oneOf format minimum maximum
    exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength pattern minItems maxItems prefixItems
    contentEncoding contentMediaType
    """.split()
)
"""Keywords that the converted type expresses."""

KNOWN_KEYWORDS = CONVERTED | ANNOTATIONS

RESTRICTED_TYPE = {
    "uniqueItems": "array",
    "contains": "array",
    "minContains": "array",
    "maxContains": "array",
    "unevaluatedItems": "array",
    "minProperties": "object",
    "maxProperties": "object",
    "unevaluatedProperties": "object",
}
"""The type that a keyword restricts; beside another type it has no effect."""


def unchecked_keywords(schema: Mapping[str, Any]) -> list[str]:
    """Return the keywords that restrict the values and that no type expresses."""
    types = types_of(schema)
    unchecked = []
    for keyword in schema:
        restricted = RESTRICTED_TYPE.get(keyword)
        has_no_effect = restricted is not None and (restricted not in types or not schema[keyword])
        if not has_no_effect and keyword not in KNOWN_KEYWORDS and not keyword.startswith("x-"):
            unchecked.append(keyword)
    return unchecked


def types_of(schema: Mapping[str, Any]) -> list[str]:
    """Return the JSON types that a schema allows, inferred from its other keywords where it names none."""
    given = schema.get("type")
    if isinstance(given, list):
        return list(dict.fromkeys(map(str, given)))
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


def is_model(schema: Mapping[str, Any]) -> bool:
    """Return whether a merged schema becomes a class: an object with properties, and nothing else but null."""
    if any(isinstance(schema.get(keyword), list) and schema[keyword] for keyword in ("oneOf", "anyOf")):
        return False
    if "const" in schema or "enum" in schema or not schema.get("properties"):
        return False
    return isinstance(schema["properties"], dict) and types_of(schema) == ["object"]


def has_only_rules(schema: Any) -> bool:
    """Return whether a variant names no type, such as one that says only which properties are required."""
    return isinstance(schema, dict) and not any(
        key in schema for key in ("$ref", "type", "allOf", "oneOf", "anyOf", "enum", "const", "properties", "items")
    )


# --- Constraints -------------------------------------------------------------------------------------------------


def number_constraints(schema: Mapping[str, Any]) -> Constraints:
    constraints: dict[str, Any] = {}
    for inclusive, exclusive, keyword, exclusive_keyword in (
        ("ge", "gt", "minimum", "exclusiveMinimum"),
        ("le", "lt", "maximum", "exclusiveMaximum"),
    ):
        bound, exclusive_bound = schema.get(keyword), schema.get(exclusive_keyword)
        if is_number(exclusive_bound):  # a number in 3.1, a boolean in 3.0
            constraints[exclusive] = exclusive_bound
        elif is_number(bound):
            constraints[exclusive if exclusive_bound is True else inclusive] = bound
    step = schema.get("multipleOf")
    if isinstance(step, int | float) and is_number(step) and step > 0 and step == int(step):
        constraints["multiple_of"] = int(step)  # binary fractions have no exact multiples
    integers = "integer" in types_of(schema)
    return tuple(
        (name, int(value) if integers and value == int(value) else value) for name, value in constraints.items()
    )


def length_constraints(schema: Mapping[str, Any], minimum: str, maximum: str) -> Constraints:
    """Return the constraints on the length of a string or list, from these two keywords."""
    pairs: Constraints = (("min_length", schema.get(minimum)), ("max_length", schema.get(maximum)))
    return tuple((name, int(value)) for name, value in pairs if is_count(value))


def value_of_type(value: Any, types: Sequence[str]) -> Any:
    """Return a value of an enumeration as one of some JSON types, None where it cannot be one."""
    kinds = {"string": str, "integer": int, "number": int | float, "boolean": bool, "array": list, "object": dict}
    for name in types:
        if isinstance(value, kinds.get(name, ())) and (name == "boolean" or not isinstance(value, bool)):
            return value
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return int(value)
    if isinstance(value, int | float) and "string" in types:
        return json.dumps(value)
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return None
        return value_of_type(parsed, types) if isinstance(parsed, bool) or is_number(parsed) else None
    return None


def is_count(value: Any) -> bool:
    return is_number(value) and 0 <= value < 2**31 and bool(value == int(value))


def is_number(value: Any) -> bool:
    is_numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return is_numeric and math.isfinite(value) and abs(value) < 1e300


# --- Descriptions ------------------------------------------------------------------------------------------------


def description_of(schema: Mapping[str, Any]) -> str:
    """Return the description for the model: the document's, the default, which the API itself applies, and an example.

    Whether it is deprecated comes first.
    """
    parts = ["Deprecated."] if schema.get("deprecated") is True else []
    text = clean_text(schema.get("description") or schema.get("title"), MAX_FIELD_DESCRIPTION)
    additions = [("Default", schema.get("default")), ("Example", _example_of(schema))]
    shown = [f"Values: {single_line(values, MAX_VALUES)}"] if (values := _misfits_of(schema)) else []
    shown += [f"{label}: {plain}" for label, value in additions if (plain := _plain(value))]
    if text:
        parts.append(text if not shown or text[-1] in ".!?:" else f"{text}.")
    return " ".join([*parts, "; ".join(shown)] if shown else parts)


def _misfits_of(schema: Mapping[str, Any]) -> str:
    """Return the values of an enumeration that no type expresses.

    These are numbers with a fraction, lists and objects, and values of which none has the type of the enumeration, such
    as "0 (private)" for an integer.
    """
    values, types = [schema["const"]] if "const" in schema else schema.get("enum"), types_of(schema)
    if not isinstance(values, list):
        return ""
    is_expressed = all(value is None or isinstance(value, str | bool | int) for value in values)
    if is_expressed and not (types and all(value_of_type(value, types) is None for value in values)):
        return ""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values if value is not None]
    return ", ".join(texts)


def _example_of(schema: Mapping[str, Any]) -> Any:
    """Return the first example of a schema, parameter or media type, `None` where its values are enumerated."""
    if "enum" in schema or "const" in schema or schema.get("type") == "boolean":
        return None
    if schema.get("example") is not None:
        return schema["example"]
    examples = schema.get("examples")
    if isinstance(examples, Mapping):
        examples = [example.get("value") for example in examples.values() if isinstance(example, Mapping)]
    return examples[0] if isinstance(examples, list) and examples else None


def _plain(value: Any) -> str:
    """Return a text, number or boolean as it is shown in a description, "" for another value or a long text."""
    if isinstance(value, bool):
        return str(value).lower()
    text = single_line(str(value), 200) if isinstance(value, str | int | float) else ""
    return text if len(text) <= MAX_EXAMPLE else ""


def format_of(schema: Mapping[str, Any]) -> str:
    value = schema.get("format")
    return single_line(value, 40) if isinstance(value, str) and value not in ("binary", "byte") else ""


def file_media_type(schema: Mapping[str, Any]) -> str:
    """Return the media type of a property that is a file or a list of files, and "" for another one."""
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        schema = schema["items"]
    media_type = schema.get("contentMediaType")
    if schema.get("format") == "binary" or (media_type and not schema.get("contentEncoding")):
        usable = isinstance(media_type, str) and is_media_type(media_type)
        return str(media_type) if usable else "application/octet-stream"
    return ""
