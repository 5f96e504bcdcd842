"""HTTP servers on ports of their own."""

from __future__ import annotations

import socket

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness import config
from weather_station.production.config import ConfigError, about
from weather_station.production.registry import Listener, Registry
from weather_station.production.serve.listeners import ListenerServer


async def test_a_listener_serves_its_routes_until_it_stops() -> None:
    async def hello(request: Request) -> Response:
        return JSONResponse("hello")

    registry = Registry(config(), about())
    server = ListenerServer(registry, Listener("admin", "ADMIN_PORT", 0, "/hello", (Route("/hello", hello),)))
    await server.start()
    url = registry.http.addresses["admin"]
    async with httpx2.AsyncClient(trust_env=False) as client:
        assert (await client.get(url)).json() == "hello"
        assert (await client.get(f"{url}/elsewhere")).status_code == 404
        await server.stop()
        with pytest.raises(httpx2.ConnectError):
            await client.get(url)


async def test_a_port_that_is_taken_is_an_error_with_the_name_of_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ListenerServer(Registry(config(), about()), Listener("admin", "ADMIN_PORT", port, "/", ()))
        with pytest.raises(ConfigError, match=rf"^ADMIN_PORT: cannot listen on 127\.0\.0\.1:{port}: .*another port$"):
            await server.start()
        await server.stop()
