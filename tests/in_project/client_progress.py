"""The Python SDK's client, old or new: `python client_progress.py URL TOKEN MODE [SECONDS]` prints a call's progress.

The second half of the progress comes after the client has seen the first: it calls `open_gate` then. With SECONDS it
also calls a tool that is silent for so long.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager

import anyio

try:
    from mcp.client.client import Client
except ImportError:
    Client = None


@asynccontextmanager
async def connected(url: str, token: str, mode: str):
    headers = {"authorization": f"Bearer {token}"}
    if Client is None:
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        async with (
            streamablehttp_client(url, headers=headers) as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            yield client
    else:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        async with (
            httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http,
            Client(streamable_http_client(url, http_client=http), mode=mode) as client,
        ):
            yield client


async def main(url: str, token: str, mode: str, seconds: str = "") -> None:
    seen: list[tuple[float, str | None]] = []
    gate = {"gate": str(os.getpid())}
    async with connected(url, token, mode) as client, anyio.create_task_group() as group:

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            seen.append((progress, message))
            if progress == 1:
                group.start_soon(client.call_tool, "open_gate", gate)

        result = await client.call_tool("progress", gate, progress_callback=on_progress)
        if seconds:
            silent = await client.call_tool("silent", {"seconds": float(seconds)})
            assert silent.content[0].text == "after silence", silent
    print(json.dumps({"seen": seen, "text": result.content[0].text}))


anyio.run(main, *sys.argv[1:])
