"""Bounds on the work that wrong arguments of a tool cause.

The SDK parses JSON inside string arguments, and renders every error that pydantic collects: one for each wrong value.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from pydantic import ValidationError

from ..json_values import NUMBERS
from .http_limits import MAX_JSON_DEPTH, deeper_than, more_values_than
from .pipeline import MAX_VALIDATION_ERRORS, problems_of

MAX_WEIGHT = 100
"""Arguments up to this weight are left to the SDK, see `_weight`."""

HEAD = 20
"""Elements of each container that are validated again where the list of all errors is too long."""


def problems_with(metadata: FuncMetadata, arguments: Mapping[str, Any], max_values: int) -> str | None:
    """Return what is wrong with large arguments; `None` if they are valid, small, or a validator crashes.

    Args:
        metadata: The tool's parameters.
        arguments: The arguments as the client sent them.
        max_values: Greatest number of JSON values and member names in a string that is parsed as JSON.
    """
    weight = 1
    for name, value in arguments.items():
        is_long = isinstance(value, str) and len(value) > MAX_WEIGHT
        if is_long and not _is_text(metadata, name) and (problem := _problem_with_json(value, max_values)):
            return f"{name}: {problem}"
        weight += 1 + len(name) // 100 + (1 if type(value) in NUMBERS else _weight(value))
    if weight <= MAX_WEIGHT:
        return None
    try:
        metadata.validate_arguments(dict(arguments))
    except ValidationError as error:
        if error.error_count() > MAX_VALIDATION_ERRORS and (first := _first_problems(metadata, arguments)) is not None:
            return problems_of(first, error.error_count())
        return problems_of(error)
    except Exception:
        return None  # the SDK meets the same exception, and reports it as a crash
    return None


def _weight(value: Any) -> int:
    """Return the number of JSON values, and one more for each hundred characters."""
    if isinstance(value, str):
        return 1 + len(value) // 100
    if isinstance(value, dict):
        return 1 + sum(map(_weight, value)) + sum(map(_weight, value.values()))
    return 1 + sum(map(_weight, value)) if isinstance(value, list) else 1


def _is_text(metadata: FuncMetadata, name: str) -> bool:
    """Return whether the parameter is a string only, which the SDK does not parse as JSON."""
    fields = metadata.arg_model.model_fields
    found = [field for key, field in fields.items() if name in (key, field.alias)]
    return all(field.annotation is str for field in found)


def _problem_with_json(text: str, max_values: int) -> str | None:
    text = text.strip()
    if text[:1] not in ("[", "{") or text[-1] not in "]}":
        return None
    body = text.encode("utf-8", "surrogatepass")
    if more_values_than(max_values, body):
        return f"The JSON in it has more than {max_values} values and member names (MAX_JSON_VALUES)"
    if deeper_than(MAX_JSON_DEPTH, body):
        return f"The JSON in it is nested deeper than {MAX_JSON_DEPTH} levels"
    return None


def _first_problems(metadata: FuncMetadata, arguments: Mapping[str, Any]) -> ValidationError | None:
    """Return the problems at the beginning of each container, `None` if there are none."""
    try:
        metadata.arg_model.model_validate(_head(metadata.pre_parse_json(dict(arguments))))
    except ValidationError as error:
        return error if error.error_count() <= MAX_VALIDATION_ERRORS else None
    return None


def _head(value: Any, limit: int = HEAD) -> Any:
    if isinstance(value, dict):
        return {name: _head(item, limit // 2) for name, item in islice(value.items(), limit)}
    return [_head(item, limit // 2) for item in value[:limit]] if isinstance(value, list) else value
