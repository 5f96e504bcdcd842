"""Tools that show who the caller is, here and at the upstream."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context, MCPServer

from ..production import caller, upstream


async def who(ctx: Context) -> dict[str, Any]:
    """Return the caller."""
    sender = caller(ctx)
    return {"id": sender.id, "client": sender.client, "scopes": sorted(sender.scopes), "tier": sender.tier}


async def orders(ctx: Context) -> Any:
    """Return the orders of the caller."""
    return await upstream(ctx).get_json("/orders")


def register(server: MCPServer) -> None:
    server.tool()(who)
    server.tool()(orders)
