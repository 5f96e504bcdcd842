"""Helpers for large results: pages of a list, and links to resources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ResourceLink
from pydantic import BaseModel

from ..json_values import encode
from ..request import current_request

T = TypeVar("T")

MARGIN = 200
"""Bytes of a page without its items."""


class Page(BaseModel, Generic[T]):
    """A part of a list."""

    items: list[T]
    next_cursor: str | None = None
    """What the next call has to pass as its `cursor`; `None` on the last page."""


def page(items: Sequence[T], cursor: str | None, size: int = 100) -> Page[T]:
    """Return the part of `items` that begins at `cursor`: at most `size` items, fewer where the result has a limit.

    A page has at least one item, however large. The cursor is a position in `items`, so that every replica understands
    it.

    Args:
        items: The whole list, in the same order in each call.
        cursor: What the call got as its `cursor`; `None` or an empty text for the first page.
        size: Greatest number of items of a page; below 1 it is 1, so that a model that chooses it gets to the end.

    Raises:
        ToolError: the cursor is not one of this list.
    """
    start = int(cursor) if cursor and cursor.isascii() and cursor.isdigit() and len(cursor) < 20 else 0
    if cursor and not 0 < start < len(items):
        raise ToolError("The cursor is not valid. Pass the next_cursor of the previous page, or none at all.")
    request = current_request.get()
    left = ((request.budget.limit(request) if request and request.budget else 0) or math.inf) - MARGIN
    end = start
    for item in items[start : start + max(1, size)]:
        left -= len(encode(item)) + len(encode([[item]], indent=2))  # the structure, and the text
        if left < 0 and end > start:
            break
        end += 1
    return Page(items=list(items[start:end]), next_cursor=str(end) if end < len(items) else None)


def resource_link(
    uri: str,
    name: str | None = None,
    *,
    title: str | None = None,
    description: str | None = None,
    mime_type: str | None = None,
    size: int | None = None,
) -> ResourceLink:
    """Return a link to a resource, for the result of a tool: the client reads the content if it needs it.

    Args:
        uri: URI of the resource, as `server.resource` has it, with values in place of `{...}`.
        name: Its name; the last part of `uri` by default.
        title: Its name for people.
        description: What it is, for the model.
        mime_type: Media type of the content.
        size: Bytes of the content.
    """
    name = name or uri.rstrip("/").rpartition("/")[2]
    return ResourceLink(
        type="resource_link", uri=uri, name=name, title=title, description=description, mime_type=mime_type, size=size
    )
