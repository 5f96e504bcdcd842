"""Result budget: a result above MAX_RESULT_BYTES, or its policy's limit, becomes an error that says how to narrow.

What a handler returned is measured before it is converted, until it is certain to be too large; the result that is sent
is measured exactly. Images, audio and other binary content do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import Message
from mcp.server.mcpserver.resources import Resource
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, EmbeddedResource, TextContent, TextResourceContents
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

BLOCK = len('{"type":"text","text":""},')
"""Bytes around the text of a block of content."""

MESSAGE = len('{"role":"user","content":{"type":"text","text":""}},')
"""Bytes around the text of a message."""

SMALL = 2**64
"""Integers up to this one are not measured."""

is_content = is_subclass_of(*CONTENT, Message, Resource)
"""Whether a type is one of content, of which only texts count."""

is_scalar = is_subclass_of(Enum, Decimal, date, time, timedelta, UUID, PurePath, bytes, bytearray)
"""Whether the values of a type are short, or have a length: encoding them one by one takes microseconds each."""

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
        method = request.method
        if method == TOOLS_CALL:
            while isinstance(value, list | tuple) and len(value) == 1:  # can become a text without what is around it
                (value,) = value
            has_content = self.copies(request) != "structure" or isinstance(value, CallToolResult)
            self._require(request, lambda limit: (content_left if has_content else bytes_left)(value, limit))
        elif method == PROMPTS_GET:
            self._require(request, lambda limit: messages_left(value, limit))
        elif not isinstance(value, bytes):  # binary
            self._require(request, lambda limit: bytes_left(value, limit))

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


def content_left(value: Any, left: int) -> int:
    """Return `left` minus a lower bound of the text and structure that a tool's result becomes, as `bytes_left` does.

    Each item of a list, and of lists in it, becomes a block. Of a single block only the text counts.
    """
    left += BLOCK
    if isinstance(value, CallToolResult):
        left = _blocks_left(value.content, left)
        return bytes_left(value.meta, bytes_left(value.structured_content, left))
    return _blocks_left(value, left)


def _blocks_left(value: Any, left: int) -> int:
    if not isinstance(value, list | tuple):
        return bytes_left(value, left) - BLOCK
    for item in value:
        # Nothing is sent of an empty list and of None: they count, so that the work is bounded.
        if item is None:
            left -= 2
        else:
            left = _blocks_left(item, left) - (2 if isinstance(item, list | tuple) else 0)
        if left < 0:
            break
    return left


def messages_left(value: Any, left: int) -> int:
    """Return `left` minus a lower bound of the messages of a prompt, as `bytes_left` does."""
    for item in value if isinstance(value, list | tuple) else (value,):
        left -= MESSAGE
        if isinstance(item, dict):  # its content may be binary
            content = item.get("content")
            text = content.get("text") if isinstance(content, dict) else content
            left -= len(text) if isinstance(text, str) else 0
        else:
            left = bytes_left(item, left)
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
    kind = type(value)
    if is_content[kind]:
        return len(_text_of(value))
    if is_scalar[kind]:
        value = value.value if isinstance(value, Enum) else value
        return len(value) if isinstance(value, str | bytes | bytearray) else 0
    try:
        if contains_iterator(value):  # measuring would read it
            return 0
        # The container has counted two bytes for this item, of which one is for the comma or bracket beside it.
        return max(0, len(to_json(value, fallback=str)) - 1)
    except Exception:  # the conversion reports what is wrong
        return 0


def _text_of(content: Any) -> str:
    if isinstance(content, Message):
        content = content.content
    if isinstance(content, EmbeddedResource):
        content = content.resource
    return content.text if isinstance(content, TextContent | TextResourceContents) else ""
