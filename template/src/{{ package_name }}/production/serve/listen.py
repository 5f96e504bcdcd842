"""Listening sockets, uvicorn's configuration, and HTTP servers on ports of their own."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..config import ConfigError
from ..registry import Listener, Registry

BACKLOG = 2048
"""Greatest number of connections that wait to be accepted."""


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


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with TCP_NODELAY on every connection.

    uvicorn writes the head and the body of a response separately. Without TCP_NODELAY the body waits 40 ms for the
    client's delayed acknowledgement of the head. asyncio sets the option only on sockets with an explicit protocol
    number, which accepted sockets do not have on every platform.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        connection = transport.get_extra_info("socket")
        with suppress(OSError, TypeError):  # TypeError: uvloop, which sets the option itself
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)


def uvicorn_config(application: ASGIApp, **options: Any) -> uvicorn.Config:
    """Return uvicorn's configuration for `application`, without uvicorn's own lifespan and logging."""
    return uvicorn.Config(
        application,
        http=HttpProtocol,
        lifespan="off",
        log_config=None,
        log_level=None,
        access_log=False,
        server_header=False,
        workers=1,  # given, so that uvicorn does not read WEB_CONCURRENCY
        **options,
    )


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
        routes = list(self._listener.routes)
        self._server = _Server(uvicorn_config(Starlette(routes=routes), timeout_graceful_shutdown=1))
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
