"""Starts this server as its clients do, over HTTP and over stdio, and says what does not hold.

    uv run python -m tests.production.smoke [--call TOOL ARGUMENTS --upstream ANSWERS]

Exit status 0 when all holds. `--upstream` answers the tool's requests in place of the real API: a JSON object with a
JSON body for each path.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx2
from mcp import Client, StdioServerParameters

from harness import Process, command, environment, http_process

DEADLINE_SECONDS = 90.0

Call = tuple[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--call", nargs=2, metavar=("TOOL", "ARGUMENTS"))
    parser.add_argument("--upstream", type=json.loads, default={})
    options = parser.parse_args()
    calls: list[Call] = [("health_check", {})]
    if options.call:
        calls.append((options.call[0], json.loads(options.call[1])))
    os.environ.update(NO_PROXY="*", no_proxy="*")  # all of this stays on this machine
    with stand_in(options.upstream) as upstream, ThreadPoolExecutor() as both:
        settings = {"BASE_URL": upstream, "GEOCODING_URL": upstream, "METRICS_PORT": "0"}
        for done in [both.submit(transport, calls, settings) for transport in (over_http, over_stdio)]:
            done.result()


def over_http(calls: list[Call], settings: dict[str, str]) -> None:
    with http_process(**settings) as server, log_of(server):
        for mode in ("legacy", "auto"):  # the handshake of 2025 and the discovery of 2026
            asyncio.run(talk(server.url, mode, calls))
        for probe in ("/livez", "/readyz", "/health"):
            status = httpx2.get(f"{server.base}{probe}", trust_env=False).status_code
            require(status == 200, f"{probe} answers 200, not {status}")
        if sys.platform != "win32":  # there a process can only be killed
            server.signal()
            status = server.status(DEADLINE_SECONDS)
            require(status == 0, f"SIGTERM ends the server with status 0, not {status}")


def over_stdio(calls: list[Call], settings: dict[str, str]) -> None:
    program, *arguments = command(None, "--transport", "stdio")
    server = StdioServerParameters(command=program, args=arguments, env=environment(**settings))
    asyncio.run(talk(server, "legacy", calls))


async def talk(transport: str | StdioServerParameters, mode: str, calls: list[Call]) -> None:
    """Connects, lists the tools and makes the calls."""
    async with asyncio.timeout(DEADLINE_SECONDS), Client(transport, mode=mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        for name, arguments in calls:
            require(name in names, f"{name} is among the tools {names}")
            result = await client.call_tool(name, arguments)
            require(not result.is_error, f"{name} succeeds: {result.content}")


@contextmanager
def stand_in(answers: dict[str, Any]) -> Iterator[str]:
    """An HTTP server that answers each path with its JSON, and everything else with 404; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            body = json.dumps(answers.get(path, {"error": f"no answer for {path}"})).encode()
            self.send_response(200 if path in answers else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def log_of(server: Process) -> Iterator[None]:
    """Shows what the server wrote to stderr when something does not hold."""
    try:
        yield
    except BaseException:
        sys.stderr.write(server.log())
        raise


def require(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"does not hold: {what}")


if __name__ == "__main__":
    main()
