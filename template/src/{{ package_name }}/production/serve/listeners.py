"""HTTP servers on ports of their own, such as METRICS_PORT."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from ..config import ConfigError
from ..inbound.guard import ReportGuard
from ..registry import Listener, Registry
from .connections import Connections, base_url, bind
from .http import routing
from .http_protocol import EdgeConfig

MAX_CONNECTIONS = 64
"""Greatest number of connections to a listener."""


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
        self._server = _Server(EdgeConfig(application, connections, timeout_graceful_shutdown=1))
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
