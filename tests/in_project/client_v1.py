"""The Python SDK's client before 2.0: `python client_v1.py URL TOKEN - CALLS` prints what came of the calls."""

from __future__ import annotations

import json
import sys

import anyio
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def main(url: str, token: str, calls: int) -> None:
    answers: list[str] = []
    headers = {"authorization": f"Bearer {token}"}
    async with streamablehttp_client(url, headers=headers) as (read, write, _), ClientSession(read, write) as client:
        found = await client.initialize()
        tools = [tool.name for tool in (await client.list_tools()).tools]

        async def call(number: int) -> None:
            result = await client.call_tool("echo", {"text": f"text {number}"})
            answers.append(result.content[0].text)

        async with anyio.create_task_group() as group:
            for number in range(calls):
                group.start_soon(call, number)
        health = await client.call_tool("health_check", {})
        print(
            json.dumps(
                {
                    "version": found.protocolVersion,
                    "tools": tools,
                    "answers": sorted(answers),
                    "health": health.structuredContent,
                }
            )
        )


anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[4]))
