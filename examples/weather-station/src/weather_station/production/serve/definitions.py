"""Checks of the tools' definitions against what hosts and models accept; `--check` lists them as advice."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcp.server.mcpserver.tools import Tool

from ..inbound.results import BARE, CONTENT
from ..registry import Registry
from .tool_loader import has_schema, is_async

MAX_NAME = 64
"""Characters of a name together with the host's prefix (Claude's API and OpenAI's)."""

NAME = re.compile(r"[A-Za-z0-9_-]+")
"""Names that all hosts accept; the specification also allows a dot."""

MAX_DESCRIPTION = 1024
"""Characters of a function's description that OpenAI accepts."""

MAX_TOKENS = 10_000
"""Tokens of tools/list beyond which the list crowds out the conversation."""

CHARACTERS_PER_TOKEN = 4
"""A usual average of JSON and English."""

PARAMETER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Names of parameters that Claude's API accepts."""

REJECTED_AT_TOP = ("anyOf", "oneOf", "allOf", "enum", "not")
"""Keywords that OpenAI and Claude reject at the top of a schema."""


def install(registry: Registry) -> None:
    registry.check_rows.append(lambda tools: (("advice", text) for text in advice(tools, registry.about.name)))


def advice(tools: Sequence[Tool], server: str) -> Iterator[str]:
    """Yield what hosts or models may reject or misjudge, one line each.

    Args:
        tools: All tools.
        server: Name of the server, from which hosts make a prefix.
    """
    for tool in tools:
        yield from _function_advice(tool)
    for tool in tools:
        for text in _advice(tool, server):
            yield f"{tool.name}: {text}"
    tokens = tokens_of(tools)
    if tokens > MAX_TOKENS:
        yield f"tools/list has about {tokens} tokens, more than {MAX_TOKENS}: shorten descriptions or use TOOLS_ALLOW"


def tokens_of(tools: Sequence[Tool]) -> int:
    """Return about how many tokens a model reads for the definitions."""
    listed = [{"name": tool.name, "description": tool.description, "schema": tool.parameters} for tool in tools]
    return len(json.dumps(listed, separators=(",", ":"))) // CHARACTERS_PER_TOKEN


def _function_advice(tool: Tool) -> Iterator[str]:
    if not is_async(inspect.unwrap(tool.fn)):
        yield f"{tool.name} is a plain def: each call needs a thread; make it async def unless it blocks"
    if not tool.description.strip():
        yield f"{tool.name} has no docstring: the model gets no description of it"
    returned = inspect.signature(tool.fn, eval_str=True).return_annotation
    if returned is inspect.Signature.empty:
        yield f"{tool.name} has no return type: its results are text only, without an output schema"
    elif tool.output_schema is None and _is_undescribed(returned):
        name = inspect.formatannotation(returned)
        yield f"{tool.name} returns {name}, which has no JSON schema: its results are text only"


def _is_undescribed(returned: Any) -> bool:
    """Return whether a return type says nothing of the results."""
    if returned in BARE:
        return True
    return isinstance(returned, type) and not issubclass(returned, CONTENT) and not has_schema(returned)


def _advice(tool: Tool, server: str) -> Iterator[str]:
    prefixed = f"mcp__{server}__{tool.name}"  # as Claude Code does
    if len(prefixed) > MAX_NAME:
        yield f"its name is {len(prefixed)} characters long with the prefix of a host ({prefixed}): at most {MAX_NAME}"
    if not NAME.fullmatch(tool.name):
        yield "its name has other characters than letters, digits, _ and -, which some hosts reject"
    hints = tool.annotations
    if not (tool.title or (hints and hints.title)):
        yield "it has no title for people: server.tool(title=...)"
    if hints is None or (not hints.read_only_hint and hints.destructive_hint is None):
        missing_hint = "readOnlyHint" if hints is None or hints.read_only_hint is None else "destructiveHint"
        yield f"it has no {missing_hint}, so hosts take it for destructive: annotations=ToolAnnotations(...)"
    if len(tool.description) > MAX_DESCRIPTION:
        yield f"its description has {len(tool.description)} characters; OpenAI accepts {MAX_DESCRIPTION}"
    yield from _schema_advice(tool.parameters)


def _schema_advice(schema: Mapping[str, Any]) -> Iterator[str]:
    for keyword in REJECTED_AT_TOP:
        if keyword in schema:
            yield f"its schema has {keyword} at the top, which OpenAI and Claude reject"
    for name, parameter in schema.get("properties", {}).items():
        if not PARAMETER.fullmatch(name):
            yield f"the name of parameter {name} is rejected by Claude: 1 to 64 letters, digits, _, - and dots"
        if not (parameter.get("description") or _resolved(parameter, schema).get("description")):
            yield f"parameter {name} has no description: Annotated[..., Field(description=...)]"
    for path, part in _parts(schema, "arguments"):
        if part.get("type") == "array" and "items" not in part and "prefixItems" not in part:
            yield f"{path} is a list without a type of its items, which OpenAI and Gemini reject"
        if "prefixItems" in part:
            yield f"{path} is a tuple, which Gemini and OpenAI reject: use a list or a model"
    for name in _recursive(schema.get("$defs", {})):
        yield f"its type {name} contains itself, which Gemini rejects"


def _resolved(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    found: Mapping[str, Any] = root.get("$defs", {}).get(name, schema)
    return found


def _parts(schema: object, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a schema and those in it, with their places."""
    if isinstance(schema, list):
        for inner in schema:
            yield from _parts(inner, path)
    if not isinstance(schema, dict):
        return
    yield path, schema
    for keyword in ("properties", "$defs"):
        for name, inner in schema.get(keyword, {}).items():
            yield from _parts(inner, f"{path}.{name}" if keyword == "properties" else name)
    for keyword in ("items", "anyOf", "oneOf", "allOf", "additionalProperties"):
        yield from _parts(schema.get(keyword), f"{path}[]" if keyword == "items" else path)


def _recursive(definitions: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the definitions that refer to themselves, also through others."""
    refers = {
        name: {part["$ref"].removeprefix("#/$defs/") for _, part in _parts(schema, "") if "$ref" in part}
        for name, schema in definitions.items()
    }
    for name in refers:
        reached: set[str] = set()
        ahead = [name]
        while ahead:
            new = refers.get(ahead.pop(), set()) - reached
            reached |= new
            ahead += new
        if name in reached:
            yield name
