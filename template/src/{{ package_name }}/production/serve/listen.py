"""Listening sockets, and uvicorn's configuration."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
        **options,
    )
