"""One schema from several: a schema with its `$ref` and `allOf` resolved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .document import Document, Node, UnresolvedReferenceError
from .report import Report
from .schema_keywords import is_number

MAX_MERGE_DEPTH = 60


def merged_schema(node: Node, document: Document, report: Report, base: Mapping[str, Any] | None = None) -> Node | None:
    """Return the schema at `node` without `$ref` and `allOf` at its top, combined with `base`; None where it is empty.

    The node keeps its place. Values that come from another file have absolute references.
    """
    parts = [*_parts(node, document, report, ())]
    if base is not None:
        parts.insert(0, dict(base))
    if not parts:
        return None
    merged: dict[str, Any] = {}
    for part in parts:
        merged = merge(merged, part)
    return node.with_value(merged)


def _parts(node: Node, document: Document, report: Report, enclosing: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield what the schema at `node` is made of, the parts that it refers to before its own keywords."""
    schema = node.value
    if not isinstance(schema, dict):
        return
    place = f"{node.source}{node.pointer}"
    if place in enclosing or len(enclosing) > MAX_MERGE_DEPTH:
        report.add("schema", node.pointer, "its allOf or $ref contains itself, which is left out")
        return
    if isinstance(schema.get("$ref"), str):
        try:
            yield from _parts(document.resolve(node), document, report, (*enclosing, place))
        except UnresolvedReferenceError as error:
            report.add_unresolved("reference", node, error)
    own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    for part in node.get("allOf").elements():
        yield from _parts(part, document, report, (*enclosing, place))
    if "$ref" not in schema or document.version >= (3, 1):  # in 3.0 keywords beside a reference are ignored
        is_first_file = node.source == document.location
        yield own if is_first_file else document.with_absolute_references(own, node.source)


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema for the values that fit both; where it cannot be expressed, the second one's keyword."""
    merged = dict(first)
    for key, value in second.items():
        if key not in merged:
            merged[key] = value
            continue
        present = merged[key]
        both_lists = isinstance(value, list) and isinstance(present, list)
        both_numbers = is_number(value) and is_number(present)
        if key == "properties" and isinstance(value, dict) and isinstance(present, dict):
            merged[key] = merge_properties(present, value)
        elif key == "required" and both_lists:
            merged[key] = [*present, *(name for name in value if name not in present)]
        elif key == "enum" and both_lists:
            merged[key] = [item for item in present if item in value] or value
        elif key in ("minimum", "minLength", "minItems") and both_numbers:
            merged[key] = max(value, present)
        elif key in ("maximum", "maxLength", "maxItems") and both_numbers:
            merged[key] = min(value, present)
        elif key == "nullable":
            merged[key] = value is True or present is True
        elif key in ("oneOf", "anyOf") and both_lists:
            merged[key] = value if present == value else [*present, *value]
        elif key == "additionalProperties" and (value is True or present is False):
            continue
        else:
            merged[key] = value
    return merged


def merge_properties(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of both; a property of both has to fit both of its schemas."""
    merged = dict(first)
    for name, value in second.items():
        present = merged.get(name)
        if name in merged and present != value and isinstance(value, dict) and isinstance(present, dict):
            merged[name] = {"allOf": [present, value]}
        else:
            merged[name] = value
    return merged
