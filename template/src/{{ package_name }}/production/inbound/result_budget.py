"""Result budget: a result above MAX_RESULT_BYTES, or its policy's limit, becomes an error that says how to narrow.

What a handler returned is measured before it is converted, until it is certain to be too large; the result that is sent
is measured exactly. Images, audio and other binary content do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resources import Resource
from mcp_types import CallToolResult
from pydantic_core import to_json

from ..json_values import NUMBERS
from ..memo import Memo
from ..observe.meter import Histogram
from ..registry import Registry
from ..request import PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, MCPRequest
from .results import CONTENT, is_subclass_of

METHODS = (TOOLS_CALL, RESOURCES_READ, PROMPTS_GET)

SIZE_BUCKETS = (1_000.0, 10_000.0, 100_000.0, 1_000_000.0, 10_000_000.0)
"""Upper bounds in bytes."""

STRUCTURED_SINCE = "2025-06-18"
"""The first protocol version with structured results."""

CONTAINERS = (dict, list, tuple)

is_iterator = is_subclass_of(Iterator)
is_uncounted = is_subclass_of(*CONTENT, Resource, bytes)
"""Whether a type is one of content or binary data."""

MAX_ARGUMENTS = 10
"""Arguments of a tool that its error names."""


class ResultTooLargeError(ToolError):
    """A result has more bytes of text and structure than its limit."""


def install(registry: Registry) -> None:
    """Limit the size of results, and record the sizes of those that are sent."""
    registry.policy_fields.add("max_result_bytes")
    labels = ("mcp_method_name", "gen_ai_tool_name")
    text = "Text and structure of sent results in bytes."
    sizes = registry.meter.histogram("mcp_result_size_bytes", text, labels, buckets=SIZE_BUCKETS)
    of_tools = Memo[str, Histogram](lambda tool: sizes(TOOLS_CALL, tool), math.inf)  # registered ones only
    of_others = Memo[str, Histogram](lambda method: sizes(method, ""))
    default, text_copy = registry.config.max_result_bytes, registry.config.result_text_copy

    def prepare(request: MCPRequest) -> None:
        if request.method not in METHODS:
            return
        limit = request.policy.max_result_bytes
        request.max_result_bytes = limit = default if limit is None else limit
        if limit and request.method != PROMPTS_GET:
            request.check_result = check_result
        request.check_sent = check_sent
        if request.context.protocol_version < STRUCTURED_SINCE:
            request.copies = "text"
        elif not text_copy:
            request.copies = "structure"

    def check_result(request: MCPRequest, value: Any) -> None:
        try:
            left = bytes_left(value, request.max_result_bytes)
        except RecursionError:  # circular: the conversion reports it
            return
        if left < 0:
            raise _too_large(registry, request)

    def check_sent(request: MCPRequest) -> None:
        if 0 < request.max_result_bytes < request.result_bytes:
            raise _too_large(registry, request)
        size = of_tools[request.target_label] if request.method == TOOLS_CALL else of_others[request.method]
        size.observe(request.result_bytes)

    registry.preparations.append(prepare)


def bytes_left(value: Any, left: int) -> int:
    """Return `left` minus a lower bound of the bytes of `value` as JSON; stop as soon as that is below 0.

    The time depends on `left` and on the largest object that is neither a container nor a text.
    """
    kind = type(value)
    if kind in NUMBERS:
        return left
    if isinstance(value, str):
        return left - len(value)
    if not isinstance(value, CONTAINERS):
        if is_uncounted[kind]:
            return bytes_left(value.structured_content, left) if isinstance(value, CallToolResult) else left
        # The container has counted two bytes for this item, of which one is for the comma or bracket beside it.
        return left - max(0, _encoded_size(value) - 1)
    left -= 2 * len(value)
    if left < 0:
        return left
    for item in value.values() if isinstance(value, dict) else value:
        kind = type(item)
        if kind is str:
            left -= len(item)
        elif kind not in NUMBERS:
            left = bytes_left(item, left)
            if left < 0:
                break
    return left


def _encoded_size(value: Any) -> int:
    if is_iterator[type(value)]:
        raise TypeError(f"the result contains a {type(value).__name__}, which can be read only once: make it a list")
    try:
        return len(to_json(value, fallback=str))
    except Exception:  # the conversion reports what is wrong
        return 0


def _too_large(registry: Registry, request: MCPRequest) -> ResultTooLargeError:
    text = f"The result is larger than {request.max_result_bytes} bytes, the most that this server sends. "
    names = registry.targets.arguments(request.target_label) if request.method == TOOLS_CALL else ()
    if names:
        return ResultTooLargeError(f"{text}Ask for less with the arguments: {', '.join(names[:MAX_ARGUMENTS])}.")
    return ResultTooLargeError(f"{text}The same request will fail again.")
