"""Tools for tests that look at a server from outside: one that answers what it gets, one that asks the upstream, and
some with arguments of many types."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel, Field

from ..production import upstream


class Place(BaseModel):
    name: str
    position: tuple[float, float] = (0.0, 0.0)
    tags: list[str] = []


async def echo(text: str, wait: Annotated[float, Field(ge=0, le=60)] = 0.0) -> str:
    """Answers `text` after `wait` seconds."""
    await asyncio.sleep(wait)
    return text


async def fetch(number: int, ctx: Context[Any, Any]) -> str:
    """Asks the upstream for a number."""
    found = await upstream(ctx).get_json("/numbers", params={"number": number})
    return str(found["number"])


async def many_types(
    count: int,
    share: float,
    flag: bool,
    kind: Literal["a", "b"],
    place: Place,
    numbers: list[int],
    table: dict[str, float],
    either: int | str | None = None,
) -> str:
    """Takes an argument of every type."""
    return f"{count} {share} {flag} {kind} {place.name} {len(numbers)} {len(table)} {either}"


async def crash(secret: str) -> str:
    """Fails in a way that nobody has thought of, with a secret in the exception's text."""
    raise RuntimeError(f"cannot use {secret}")


def register(server: MCPServer[Any]) -> None:
    for tool in (echo, fetch, many_types, crash):
        server.tool()(tool)
