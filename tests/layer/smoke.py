"""Start the server of a project as its hosts do, with the owner's tools, and fail on whatever does not work.

    cd PROJECT && uv run python PATH/smoke.py [--call TOOL ARGUMENTS --upstream DOCUMENTS]

`--upstream` is a JSON object with a document for each path, which a stand-in serves in place of the real API.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters

from harness import Process, environment, started, wait_for
from stand_in import stand_in

DEADLINE_SECONDS = 90.0
COMMAND = [sys.executable, "-m", "weather_station"]

Call = tuple[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--call", nargs=2, metavar=("TOOL", "ARGUMENTS"))
    parser.add_argument("--upstream", type=json.loads, default={})
    options = parser.parse_args()
    calls: list[Call] = [("health_check", {})]
    if options.call:
        calls.append((options.call[0], json.loads(options.call[1])))
    os.environ.update(NO_PROXY="*", no_proxy="*")
    with stand_in(options.upstream) as upstream, ThreadPoolExecutor() as both:
        settings: dict[str, object] = {"BASE_URL": upstream.url, "GEOCODING_URL": upstream.url, "METRICS_PORT": "0"}
        for done in [both.submit(transport, calls, settings) for transport in (over_http, over_stdio)]:
            done.result()


def over_http(calls: list[Call], settings: dict[str, object]) -> None:
    with started([*COMMAND, "--port", "0"], None, settings) as server, log_shown(server):
        wait_for(lambda: "/mcp" in server.log() or server.process.poll() is not None)
        url = re.search(r"http://[^/\s]+:\d+(?=/mcp)", server.log())
        require(url is not None, "the server logs its address")
        server.base = url[0] if url else ""
        for mode in ("legacy", "auto"):
            asyncio.run(talk(server.url, mode, calls))
        for probe in ("/livez", "/readyz", "/health"):
            status = httpx2.get(f"{server.base}{probe}", trust_env=False).status_code
            require(status == 200, f"{probe} responds with 200, not {status}")
        if sys.platform != "win32":  # there a process can only be killed
            server.signal()
            status = server.status()
            require(status == 0, f"SIGTERM ends the server with status 0, not {status}")


def over_stdio(calls: list[Call], settings: dict[str, object]) -> None:
    program, *arguments = COMMAND
    server = StdioServerParameters(
        command=program, args=[*arguments, "--transport", "stdio"], env=environment(**settings)
    )
    asyncio.run(talk(server, "legacy", calls))


async def talk(transport: str | StdioServerParameters, mode: str, calls: list[Call]) -> None:
    """Connect, list the tools and make the calls."""
    async with asyncio.timeout(DEADLINE_SECONDS), Client(transport, mode=mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        for name, arguments in calls:
            require(name in names, f"{name} is among the tools {names}")
            result = await client.call_tool(name, arguments)
            require(not result.is_error, f"{name} succeeds: {result.content}")


@contextmanager
def log_shown(server: Process) -> Iterator[None]:
    """Show what the server wrote to stderr if the block fails."""
    try:
        yield
    except BaseException:
        sys.stderr.write(server.log())
        raise


def require(condition: bool, expectation: str) -> None:
    if not condition:
        raise SystemExit(f"not as expected: {expectation}")


if __name__ == "__main__":
    main()
