"""Listening sockets and the connections that they accept."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness import HAS_METRICS, HEADERS, LAYER, LEGACY, MODERN, Serve, command, started, wait_for
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.connections import base_url, bind
from weather_station.production.serve.http_protocol import HttpProtocol


def record_connections(server: ProductionServer) -> None:
    """Serve at `/connections` which event loop runs, and TCP_NODELAY of each accepted connection by its port."""
    accepted: list[tuple[int, int]] = []
    connection_made = HttpProtocol.connection_made

    def record(self: HttpProtocol, transport: Any) -> None:
        connection_made(self, transport)
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as connection:
            option = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.append((connection.getsockname()[1], option))

    async def connections(request: Request) -> Response:
        return JSONResponse({"loop": type(asyncio.get_running_loop()).__module__, "accepted": accepted})

    setattr(HttpProtocol, "connection_made", record)  # noqa: B010 (mypy rejects an assignment to a method)
    server.registry.http.routes.append(Route("/connections", connections))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no uvloop for Windows")
@pytest.mark.parametrize("uvloop", [True, False])
def test_every_accepted_connection_has_nagles_algorithm_switched_off(tmp_path: Path, uvloop: bool) -> None:
    """A keep-alive call takes 44 ms more where the option is missing."""
    path = [str(LAYER)]
    if not uvloop:
        (tmp_path / "uvloop.py").write_text("raise ImportError('there is no uvloop')\n")
        path.insert(0, str(tmp_path))
    settings: dict[str, object] = {"PYTHONPATH": os.pathsep.join(path)} | ({"METRICS_PORT": 0} if HAS_METRICS else {})
    with started(command(f"{__name__}:record_connections", "--port", "0"), None, settings) as process:
        wait_for(lambda: '"serving"' in process.log() or " serving " in process.log())
        urls = re.findall(r"http://127\.0\.0\.1:\d+/(?:mcp|metrics)", process.log())
        ports = {int(url.rpartition(":")[2].partition("/")[0]) for url in urls}
        assert len(ports) == (2 if HAS_METRICS else 1)
        with httpx2.Client(trust_env=False) as client:
            for port in ports:
                client.get(f"http://127.0.0.1:{port}/metrics")
            (main,) = {url.removesuffix("/mcp") for url in urls if url.endswith("/mcp")}
            found = client.get(f"{main}/connections").json()
    assert found["loop"].startswith("uvloop" if uvloop else "asyncio")
    assert {port for port, _ in found["accepted"]} == ports
    assert all(option for _, option in found["accepted"]), found


def test_the_url_of_a_socket_has_an_ipv6_address_in_brackets() -> None:
    with bind("::1", 0) as listener:
        assert re.fullmatch(r"http://\[::1\]:\d+", base_url(listener))


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_a_server_without_sessions_takes_only_posts(serve: Serve, method: str) -> None:
    """A GET would be an idle stream."""
    with serve() as server:
        for version in (LEGACY, MODERN):
            headers = HEADERS | {"mcp-protocol-version": version}
            response = server.client.request(method, server.url, headers=headers)
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
