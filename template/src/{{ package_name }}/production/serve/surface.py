"""`--surface`: compare what clients rely on with a file of the tests, so that no tool changes unnoticed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config import ANSWERS, ConfigError, ProductionConfig
from ..policy import policy_of
from ..sdk import ProductionServer

PACKAGE = __package__.partition(".")[0]
FILE = Path("tests", "surface.json")

LOWER_BOUNDS = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
UPPER_BOUNDS = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")

Schema = Mapping[str, Any]


def surface(value: str, overrides: Mapping[str, Any]) -> int:
    """Compare the tools with the file, or write it; return the exit status.

    It is 1 if a client that used the recorded tools could fail with the present ones.

    Args:
        value: `check` or `accept`.
        overrides: Fields of the configuration.

    Raises:
        ConfigError: the configuration is not valid, or the file is not.
        StartError: the server cannot start.
    """
    # Not imported at the top: the server's features name this command.
    create_server: Callable[[ProductionConfig], ProductionServer] = import_module(f"{PACKAGE}.server").create_server
    now = recorded(create_server(ProductionConfig.load(**overrides)))
    accept = f"{ANSWERS['slug']} --surface accept"
    if value == "accept":
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(now, indent=2, sort_keys=True, ensure_ascii=False) + os.linesep, "utf-8")
        sys.stdout.write(f"wrote {len(now)} tools to {FILE}\n")
        return 0
    if not FILE.exists():
        sys.stdout.write(f"{FILE} does not exist, so nothing is compared; this writes it: {accept}\n")
        return 0
    try:
        before = json.loads(FILE.read_text("utf-8"))
        breaking, others = [*breaking_changes(before, now)], [*other_changes(before, now)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError([f"{FILE}: it was not written by {accept}"]) from None
    for text in (*breaking, *others):
        sys.stdout.write(f"{text}\n")
    if breaking or others:
        kind = "clients of these tools may fail" if breaking else "no client fails"
        sys.stdout.write(f"The tools differ from {FILE.name}; {kind}. To accept it: {accept}\n")
    return 1 if breaking else 0


def recorded(server: ProductionServer) -> dict[str, Any]:
    """Return what clients rely on, by tool: parameters, permission and hints."""
    found: dict[str, Any] = {}
    for tool in server.registered_tools():
        scopes = policy_of(tool.fn).scopes
        hints = tool.annotations.model_dump(by_alias=True, exclude_none=True) if tool.annotations else {}
        hints.pop("title", None)
        found[tool.name] = {
            "parameters": _without_texts(tool.parameters),
            "scopes": None if scopes is None else sorted(scopes),
            "hints": hints,
        }
    return found


def breaking_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the changes that can make a client fail, one line each."""
    for name, old in before.items():
        if name not in now:
            yield f"{name}: the tool is removed"
            continue
        new = now[name]
        for text in narrowed(old["parameters"], new["parameters"], old["parameters"], new["parameters"], ""):
            yield f"{name}: {text}"
        for what in ("scopes", "hints"):
            if old[what] != new[what]:
                yield f"{name}: {what} change from {_shown(old[what])} to {_shown(new[what])}"


def other_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield the changes that no client notices as a failure."""
    for name, new in now.items():
        if name not in before:
            yield f"{name}: the tool is new"
        elif before[name] != new and not [*breaking_changes({name: before[name]}, {name: new})]:
            yield f"{name}: its parameters accept more"


def narrowed(old: Schema, new: Schema, old_root: Schema, new_root: Schema, path: str, depth: int = 0) -> Iterator[str]:
    """Yield how the values that `new` accepts are fewer than those of `old`, as far as their keywords tell."""
    if depth > 20:  # a type that contains itself
        return
    old, new = _target(old, old_root), _target(new, new_root)
    here = path or "the arguments"
    accepted = _types(new, new_root)
    if "number" in accepted:
        accepted.add("integer")
    if accepted and (lost := (_types(old, old_root) or {"any value"}) - accepted):
        yield f"{here} no longer accepts {', '.join(sorted(lost))}"
        return
    if "enum" in new or "const" in new:
        values, former = _values(new), _values(old)
        gone = [value for value in former if value not in values] if former else ["other values"]
        if gone:
            yield f"{here} no longer accepts {', '.join(map(_shown, gone))}"
    for keyword in (*LOWER_BOUNDS, *UPPER_BOUNDS):
        sign = 1 if keyword in LOWER_BOUNDS else -1
        if keyword in new and (keyword not in old or sign * new[keyword] > sign * old[keyword]):
            yield f"{here}: {keyword} changes from {_shown(old.get(keyword))} to {_shown(new[keyword])}"
    for keyword in ("pattern", "format", "multipleOf"):
        if keyword in new and new[keyword] != old.get(keyword):
            yield f"{here}: {keyword} changes from {_shown(old.get(keyword))} to {_shown(new[keyword])}"
    properties = new.get("properties", {})
    for name in new.get("required", ()):
        if name not in old.get("required", ()):
            yield f"{_inside(path, name)} is required now"
    for name, inner in old.get("properties", {}).items():
        if name in properties:
            yield from narrowed(inner, properties[name], old_root, new_root, _inside(path, name), depth + 1)
        elif "properties" in new:
            yield f"{_inside(path, name)} is removed"
    if isinstance(new.get("items"), dict):
        yield from narrowed(old.get("items", {}), new["items"], old_root, new_root, f"{here}[]", depth + 1)


def _target(schema: Schema, root: Schema) -> Schema:
    """Return the schema that a reference leads to; for `X | None` that of X, marked as `nullable`."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return {**_target(options[0], root), "nullable": len(schema["anyOf"]) > 1}
    return schema


def _types(schema: Schema, root: Schema) -> set[str]:
    """Return the JSON types that a schema accepts; none if it does not say so."""
    if "anyOf" in schema:
        found = [_types(_target(option, root), root) for option in schema["anyOf"]]
        return set().union(*found) if all(found) else set()
    named = schema.get("type", ())
    types = {named} if isinstance(named, str) else {*named}
    return types | ({"null"} if types and schema.get("nullable") else set())


def _values(schema: Schema) -> list[Any]:
    return [schema["const"]] if "const" in schema else list(schema.get("enum", ()))


def _without_texts(schema: Any) -> Any:
    """Return a schema without its texts, which the model reads and no client checks."""
    if isinstance(schema, list):
        return [_without_texts(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for keyword, inner in schema.items():
        if keyword in ("properties", "$defs"):
            kept[keyword] = {name: _without_texts(part) for name, part in inner.items()}
        elif keyword not in ("title", "description", "examples", "default"):
            kept[keyword] = _without_texts(inner)
    return kept


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else f"parameter {name}"


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
