"""Generates typed MCP tools, models and tests from an OpenAPI document."""

from .document import Document
from .generator import Generated, generate
from .loading import DocumentError
from .selection import SelectionError

__all__ = ["Document", "DocumentError", "Generated", "SelectionError", "generate"]
