"""Tools whose calls take long: one that reports progress, and one that is silent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def progress(ctx: Context[Any, Any], gate: str = "") -> str:
    """Reports its progress, and ends when `open_gate` is called."""
    gates[gate].clear()
    await ctx.report_progress(1, 2, "waiting")
    await gates[gate].wait()
    await ctx.report_progress(2, 2, "done")
    return "after progress"


async def open_gate(gate: str = "") -> str:
    """Lets `progress` end."""
    gates[gate].set()
    return "open"


async def silent(seconds: float) -> str:
    """Answers after some seconds without progress."""
    await asyncio.sleep(seconds)
    return "after silence"


def register(server: MCPServer[Any]) -> None:
    for tool in (progress, open_gate, silent):
        server.tool()(tool)
