"""Calls in both protocol versions, and a server whose calls last until the test releases them."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness import HEADERS, INITIALIZE, NO_TLS, Process, message, result_of, until
from weather_station.production import on_shutdown
from weather_station.production.sdk import ProductionServer

Exchange = tuple[dict[str, Any], dict[str, str]]
"""A message and its headers."""

Protocol = Callable[[str, dict[str, Any]], Exchange]
"""Makes the message of a method with its parameters, in one protocol version."""

TOOLS = f"{__name__}:tools"


def legacy(method: str, params: dict[str, Any]) -> Exchange:
    return message(method, params), HEADERS


def open_session(
    url: str, capabilities: dict[str, Any] | None = None, *, headers: dict[str, str] = HEADERS
) -> dict[str, str]:
    """Open a session of a client with these capabilities, and return the header that belongs to it."""
    initialize = INITIALIZE | {"params": INITIALIZE["params"] | {"capabilities": capabilities or {}}}
    with httpx2.Client(trust_env=False, verify=NO_TLS) as client:
        response = client.post(url, json=initialize, headers=headers)
        session = {"mcp-session-id": response.headers["mcp-session-id"]}
        client.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers | session)
    return session


class ToolClient:
    """Calls tools in one of the protocol versions, in a session where the server has sessions."""

    def __init__(self, client: httpx2.AsyncClient, url: str, protocol: Protocol, session_mode: str) -> None:
        self._client = client
        self._url = url
        self._protocol = protocol
        self._session = open_session(url) if session_mode == "stateful" else {}

    async def __call__(self, tool: str, number: int = 1) -> dict[str, Any]:
        content, headers = self._protocol("tools/call", {"name": tool, "arguments": {"number": number}})
        response = await self._client.post(self._url, json=content | {"id": number}, headers=headers | self._session)
        return result_of(response)


def tools(server: ProductionServer) -> None:
    """Register tools that last until the test releases them, and the routes by which it does."""
    released = asyncio.Event()
    waiting = 0

    async def hold(number: int) -> int:
        nonlocal waiting
        waiting += 1
        try:
            await released.wait()
        finally:
            waiting -= 1
        return number

    def block(number: int) -> int:
        nonlocal waiting
        waiting += 1
        time.sleep(number)
        return number

    async def count(request: Request) -> Response:
        return JSONResponse(waiting)

    async def release(request: Request) -> Response:
        released.set()
        return JSONResponse(None)

    server.tool()(hold)
    server.tool()(block)
    server.registry.http.routes += [Route("/count", count), Route("/release", release)]
    for name in ("first", "last"):

        async def write(name: str = name) -> None:
            sys.stderr.write(f"<opened {name}, {waiting} calls>\n")

        on_shutdown(server, write)


class ServerWithHeldCalls:
    """A server in a process of its own, with the tools above, that a test stops while it holds calls."""

    def __init__(self, client: httpx2.AsyncClient, process: Process) -> None:
        self._client = client
        self.process = process

    async def get(self, path: str) -> httpx2.Response:
        return await self._client.get(f"{self.process.base}{path}")

    async def stop(self, number: signal.Signals, calls: int) -> None:
        """Send the signal once that many calls run, and return when the server waits for them."""

        async def all_run() -> bool:
            return bool((await self.get("/count")).json() == calls)

        async def drains() -> bool:
            return (await self.get("/readyz")).status_code == 503 and "draining" in self.process.log()

        await until(all_run)
        self.process.signal(number)
        await until(drains)
