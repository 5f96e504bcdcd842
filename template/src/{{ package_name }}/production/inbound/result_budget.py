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
from ..request import PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, Copies, MCPRequest
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
    registry.budget = Budget(registry)


class Budget:
    """The limit of results by their policies and by the settings, and the histogram of their sizes."""

    def __init__(self, registry: Registry) -> None:
        labels = ("mcp_method_name", "gen_ai_tool_name")
        text = "Text and structure of sent results in bytes."
        sizes = registry.meter.histogram("mcp_result_size_bytes", text, labels, buckets=SIZE_BUCKETS)
        self._sizes_of_tools = Memo[str, Histogram](lambda tool: sizes(TOOLS_CALL, tool), math.inf)  # registered only
        self._sizes_of_others = Memo[str, Histogram](lambda method: sizes(method, ""))
        self._default = registry.config.max_result_bytes
        self._text_copy = registry.config.result_text_copy
        self._registry = registry

    def limit(self, request: MCPRequest) -> int:
        """Return the bytes of text and structure that the result may have; 0 for no limit."""
        limit = request.policy.max_result_bytes
        return self._default if limit is None else limit

    def copies(self, request: MCPRequest) -> Copies:
        """Return which copies are sent of a result that has an output schema."""
        if request.context.protocol_version < STRUCTURED_SINCE:
            return "text"
        return "both" if self._text_copy else "structure"

    def check_returned(self, request: MCPRequest, value: Any) -> None:
        """Check what a handler returned, before it is converted.

        Raises:
            ResultTooLargeError: it is certain that the result is too large.
        """
        limit = self.limit(request)
        if not limit or request.method == PROMPTS_GET:
            return
        try:
            left = bytes_left(value, limit)
        except RecursionError:  # circular: the conversion reports it
            return
        if left < 0:
            raise self._too_large(request, limit)

    def check_sent(self, request: MCPRequest) -> None:
        """Check a result whose `result_bytes` are known, and record its size.

        Raises:
            ResultTooLargeError: it is too large.
        """
        method = request.method
        if method not in METHODS:
            return
        if 0 < (limit := self.limit(request)) < request.result_bytes:
            raise self._too_large(request, limit)
        size = self._sizes_of_tools[request.target_label] if method == TOOLS_CALL else self._sizes_of_others[method]
        size.observe(request.result_bytes)

    def _too_large(self, request: MCPRequest, limit: int) -> ResultTooLargeError:
        text = f"The result is larger than {limit} bytes, the most that this server sends. "
        is_tool = request.method == TOOLS_CALL
        names = self._registry.targets.arguments(request.target_label) if is_tool else ()
        if names:
            return ResultTooLargeError(f"{text}Ask for less with the arguments: {', '.join(names[:MAX_ARGUMENTS])}.")
        return ResultTooLargeError(f"{text}The same request will fail again.")


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
