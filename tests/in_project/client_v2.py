"""The Python SDK's client from 2.0 on: `python client_v2.py URL TOKEN MODE CALLS` prints what came of the calls."""

from __future__ import annotations

import json
import sys

import anyio
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def main(url: str, token: str, mode: str, calls: int) -> None:
    answers: list[str] = []
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {token}"}, timeout=30, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
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
                    "version": client.protocol_version,
                    "tools": tools,
                    "answers": sorted(answers),
                    "health": health.structured_content,
                }
            )
        )


anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
