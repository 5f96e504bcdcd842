"""Listening sockets, uvicorn's configuration, and HTTP servers on ports of their own."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from ..config import ConfigError
from ..inbound.guard import ReportGuard
from ..registry import Listener, Registry
from .connections import Connections
from .http_protocol import EdgeConfig

BACKLOG = 2048
"""Greatest number of connections that wait to be accepted."""

MAX_CONNECTIONS = 64
"""Greatest number of connections to a listener other than the server's."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # on Windows the option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def base_url(listener: socket.socket) -> str:
    """Return the URL of a listening socket on this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def uvicorn_config(application: ASGIApp, connections: Connections, **options: Any) -> EdgeConfig:
    """Return uvicorn's configuration for `application`, without uvicorn's own lifespan and logging."""
    return EdgeConfig(
        application,
        connections,
        lifespan="off",
        log_config=None,
        log_level=None,
        access_log=False,
        server_header=False,
        headers=[("x-content-type-options", "nosniff")],
        proxy_headers=False,
        **options,
    )


def routing(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application with these routes, without redirects: their address would repeat the Host header."""
    starlette = Starlette(routes=routes)
    starlette.router.redirect_slashes = False
    return starlette


def install(registry: Registry) -> None:
    """Serve the registered listeners while the server runs."""
    for listener in registry.http.listeners:
        server = ListenerServer(registry, listener)
        registry.on_startup.append(server.start)
        registry.on_shutdown.append(server.stop)


class ListenerServer:
    """Serves the routes of one listener on its port."""

    def __init__(self, registry: Registry, listener: Listener) -> None:
        self._registry = registry
        self._listener = listener
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind the port and serve.

        Raises:
            ConfigError: the port cannot be bound.
        """
        host, port, setting = self._registry.config.host, self._listener.port, self._listener.setting
        try:
            listening = bind(host, port)
        except OSError as error:
            problem = f"{setting}: cannot listen on {host}:{port}: {error.strerror}. Choose another port"
            raise ConfigError([problem]) from None
        application = ReportGuard(self._registry, routing(self._listener.routes))
        connections = Connections(self._registry, self._listener.name, MAX_CONNECTIONS)
        self._server = _Server(uvicorn_config(application, connections, timeout_graceful_shutdown=1))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        self._registry.http.addresses[self._listener.name] = f"{base_url(listening)}{self._listener.path}"

    async def stop(self) -> None:
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        self._server = self._serving = None


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the main server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
