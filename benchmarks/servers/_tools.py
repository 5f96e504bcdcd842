"""The tools of every measured server: `add`, `measure`, and as many more as TOOLS says."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

TOOLS = int(os.environ.get("TOOLS", "1"))


async def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


async def measure(text: str, characters: int) -> str:
    """A text of as many characters."""
    return "x" * characters


def register(tool: Callable[..., Any]) -> None:
    """Registers with `tool(function, name)`."""
    tool(add, "add")
    tool(measure, "measure")
    for number in range(1, TOOLS):
        tool(add, f"add_{number}")
