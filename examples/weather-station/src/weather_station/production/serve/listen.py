"""Listening sockets, and uvicorn's configuration."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from .connections import Connections
from .http_protocol import EdgeConfig

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
        workers=1,  # given, so that uvicorn does not read WEB_CONCURRENCY
        headers=[("x-content-type-options", "nosniff")],
        proxy_headers=False,
        **options,
    )


def routing(routes: Sequence[BaseRoute]) -> Starlette:
    """Return an application with these routes, without redirects, which would repeat the Host header."""
    starlette = Starlette(routes=routes)
    starlette.router.redirect_slashes = False
    return starlette
