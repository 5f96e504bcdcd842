"""FastMCP's client: `python client_fastmcp.py URL TOKEN - CALLS` prints what came of the calls."""

from __future__ import annotations

import asyncio
import json
import sys

from fastmcp import Client


async def main(url: str, token: str, calls: int) -> None:
    async with Client(url, auth=token) as client:
        tools = [tool.name for tool in await client.list_tools()]
        results = await asyncio.gather(*(client.call_tool("echo", {"text": f"text {n}"}) for n in range(calls)))
        health = await client.call_tool("health_check", {})
        print(
            json.dumps(
                {
                    "version": None,
                    "tools": tools,
                    "answers": sorted(result.content[0].text for result in results),
                    "health": health.structured_content,
                }
            )
        )


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[4])))
