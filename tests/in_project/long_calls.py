"""Tools whose calls take long: one that reports progress, and one that is silent."""

from __future__ import annotations

import asyncio
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

opened = asyncio.Event()


async def progress(ctx: Context[Any, Any]) -> str:
    """Reports its progress, and ends when `open_gate` is called."""
    opened.clear()
    await ctx.report_progress(1, 2, "waiting")
    await opened.wait()
    await ctx.report_progress(2, 2, "done")
    return "after progress"


async def open_gate() -> str:
    """Lets `progress` end."""
    opened.set()
    return "open"


async def silent(seconds: float) -> str:
    """Answers after some seconds without progress."""
    await asyncio.sleep(seconds)
    return "after silence"


def register(server: MCPServer[Any]) -> None:
    for tool in (progress, open_gate, silent):
        server.tool()(tool)
