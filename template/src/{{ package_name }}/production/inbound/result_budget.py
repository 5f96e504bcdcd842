"""Result budget: a result above MAX_RESULT_BYTES, or its policy's limit, becomes an error that says how to narrow.

What a handler returned is measured before it is converted, until it is certain to be too large; the result that is sent
is measured exactly. Images, audio and other binary content do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import Message
from mcp.server.mcpserver.resources import Resource
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent
from pydantic_core import to_json

from ..json_values import NUMBERS, contains_iterator
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

BLOCK_BYTES = {
    TOOLS_CALL: len('{"type":"text","text":""},'),
    PROMPTS_GET: len('{"role":"user","content":{"type":"text","text":""}},'),
}
"""By method: the bytes around the text of an item, where each one becomes content."""

SMALL = 2**64
"""Integers up to this one are not measured."""

is_uncounted = is_subclass_of(*CONTENT, Message, Resource, bytes)
"""Whether a type is one of content, of which only texts count, or of binary data."""

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
        block = BLOCK_BYTES.get(request.method, 0)
        if request.method == TOOLS_CALL and self.copies(request) == "structure":
            block = 0
            while isinstance(value, list | tuple) and len(value) == 1:  # can become a text without what is around it
                (value,) = value
        # Of a single block only the text is measured.
        self._require(
            request, lambda limit: blocks_left(value, limit + block, block) if block else bytes_left(value, limit)
        )

    def check_error(self, request: MCPRequest, error: MCPError) -> None:
        """Check the error that answers a request.

        Raises:
            ResultTooLargeError: it is too large.
        """
        self._require(request, lambda limit: bytes_left([error.error.message, error.error.data], limit))

    def _require(self, request: MCPRequest, left_of: Callable[[int], int]) -> None:
        limit = self.limit(request)
        if not limit or request.method not in METHODS:
            return
        try:
            left = left_of(limit)
        except RecursionError:  # circular: the conversion reports it
            return
        if left < 0:
            raise self._too_large(request, limit)

    def check_sent(self, request: MCPRequest) -> None:
        """Check a result whose `result_bytes` are known, and record its size, or that of the error in its place.

        Raises:
            ResultTooLargeError: it is too large.
        """
        method = request.method
        if method not in METHODS:
            return
        size = self._sizes_of_tools[request.target_label] if method == TOOLS_CALL else self._sizes_of_others[method]
        if 0 < (limit := self.limit(request)) < request.result_bytes:
            error = self._too_large(request, limit)
            if method == TOOLS_CALL:  # for which an error is a result
                size.observe(len(str(error)))
            raise error
        size.observe(request.result_bytes)

    def _too_large(self, request: MCPRequest, limit: int) -> ResultTooLargeError:
        text = f"The result is larger than {limit} bytes, the most that this server sends. "
        is_tool = request.method == TOOLS_CALL
        names = self._registry.targets.arguments(request.target_label) if is_tool else ()
        if names:
            return ResultTooLargeError(f"{text}Ask for less with the arguments: {', '.join(names[:MAX_ARGUMENTS])}.")
        return ResultTooLargeError(f"{text}The same request will fail again.")


def blocks_left(value: Any, left: int, block: int) -> int:
    """Return what `bytes_left` does, where each item of a list, and of lists in it, takes `block` bytes more."""
    if not isinstance(value, list | tuple):
        # A dict may be content with binary data.
        return left - 2 if block == BLOCK_BYTES[PROMPTS_GET] and isinstance(value, dict) else bytes_left(value, left)
    for item in value:
        left = blocks_left(item, left, block) - (0 if isinstance(item, list | tuple) else block)
        if left < 0:
            break
    return left


def bytes_left(value: Any, left: int) -> int:
    """Return `left` minus a lower bound of the bytes of `value` as JSON; stop as soon as that is below 0.

    The time depends on `left` and on the largest object that is neither a container nor a text.
    """
    kind = type(value)
    if kind in NUMBERS:
        return left - _digits(value) if kind is int else left
    if isinstance(value, str):
        return left - len(value)
    if isinstance(value, CallToolResult):
        return bytes_left(value.structured_content, left - sum(map(_size_of_object, value.content)))
    if not isinstance(value, CONTAINERS):
        return left - _size_of_object(value)
    left -= 2 * len(value)
    if left < 0:
        return left
    if isinstance(value, dict):
        left -= sum(len(key) + 3 for key in value if type(key) is str)  # with quotes and a colon
        value = value.values()
    for item in value:
        kind = type(item)
        if kind is str:
            left -= len(item)
        elif kind is int:
            left -= _digits(item)
        elif kind not in NUMBERS:
            left = bytes_left(item, left)
            if left < 0:
                break
    return left


def _digits(number: int) -> int:
    """Return a lower bound of the digits of a number beyond the first ones."""
    return 0 if -SMALL < number < SMALL else number.bit_length() * 3 // 10


def _size_of_object(value: Any) -> int:
    if is_uncounted[type(value)]:
        if isinstance(value, Message):
            value = value.content
        return len(value.text) if isinstance(value, TextContent) else 0
    try:
        if contains_iterator(value):  # measuring would read it
            return 0
        # The container has counted two bytes for this item, of which one is for the comma or bracket beside it.
        return max(0, len(to_json(value, fallback=str)) - 1)
    except Exception:  # the conversion reports what is wrong
        return 0
