"""A tool with a list."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer


async def total(values: list[int]) -> int:
    """Return the sum of numbers."""
    return sum(values)


def register(server: MCPServer) -> None:
    server.tool()(total)
