"""Listening sockets, and limits on the connections of clients: in all, and of one address."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Hashable
from typing import Protocol

from starlette.types import Scope

from ..caller import UNKNOWN, address_id, is_within, trusted_networks
from ..config import variable
from ..observe.rejections import Rejections
from ..registry import Registry

BACKLOG = 2048
"""Greatest number of connections that wait to be accepted."""

MAX_DESCRIPTORS = 65_536
"""The process raises its limit of file descriptors to this number, if the system allows it."""

SPARE_DESCRIPTORS = 256
"""File descriptors that are not for clients: the upstream, Redis, logs, files of the owner's."""

RESERVE = 32
"""Connections beyond the limits, for probes only."""


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


class Connection(Hashable, Protocol):
    client: tuple[str, int] | None
    """The address and port of the other side."""

    def drop(self) -> None:
        """Close the connection without an answer."""
        ...


class Connections:
    """The open connections of one listener.

    Beyond the limits there is a reserve, so that probes are answered while clients use all other connections. When it
    is full too, its oldest connection is dropped: a probe needs its connection for a moment only.
    """

    def __init__(self, registry: Registry, listener: str, limit: int, per_address: int | None = None) -> None:
        """Set the limits.

        Args:
            registry: Declares the metrics.
            listener: The metric's label.
            limit: Greatest number of connections.
            per_address: Greatest number from one address that is not in TRUSTED_PROXIES; `None` for any number.

        Raises:
            ConfigError: an entry of TRUSTED_PROXIES is neither an address nor a CIDR block.
        """
        self.rejected = Rejections(registry)
        self._limit = limit
        self._per_address = per_address
        self._trusted = trusted_networks(registry.config.trusted_proxies)
        self._open: dict[Connection, str | None] = {}
        self._by_address: Counter[str] = Counter()
        self._reserve: dict[Connection, None] = {}
        gauge = registry.meter.gauge("mcp_http_connections", "Open connections of clients.", ("listener",))
        self._gauge = gauge(listener)

    def add(self, connection: Connection) -> str | None:
        """Count a connection, and return the setting whose limit it exceeds, or `None`."""
        host = connection.client[0] if connection.client else UNKNOWN
        address = None if self._per_address is None or is_within(host, self._trusted) else address_id(host)
        setting = None
        if len(self._open) >= self._limit:
            setting = "max_http_connections"
        elif address is not None and self._by_address[address] >= (self._per_address or 0):
            setting = "max_http_connections_per_address"
        if setting is None:
            self._open[connection] = address
            if address is not None:
                self._by_address[address] += 1
            self._gauge.set(len(self._open))
            return None
        if len(self._reserve) >= RESERVE:
            scope: Scope = {"type": "http", "client": connection.client, "headers": []}
            self.rejected("connections", "too many connections", scope, setting=variable(setting))
            oldest = next(iter(self._reserve))
            del self._reserve[oldest]
            oldest.drop()
        self._reserve[connection] = None
        return variable(setting)

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection; one that is not counted is ignored."""
        self._reserve.pop(connection, None)
        address = self._open.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
        self._gauge.set(len(self._open))


def connection_limit(registry: Registry) -> int:
    """Return MAX_HTTP_CONNECTIONS, or fewer with a notice where the process may not open as many files.

    The process's limit of file descriptors, often 1,024, is first raised towards `MAX_DESCRIPTORS`.
    """
    limit = registry.config.max_http_connections
    if sys.platform == "win32":
        return limit
    import resource

    descriptors, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if descriptors != resource.RLIM_INFINITY and descriptors < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        descriptors = wanted
    if descriptors == resource.RLIM_INFINITY or descriptors - SPARE_DESCRIPTORS >= limit:
        return limit
    possible = max(1, descriptors - SPARE_DESCRIPTORS)
    registry.notices.append(
        f"at most {possible} client connections instead of MAX_HTTP_CONNECTIONS={limit}: the process may open "
        f"{descriptors} files (ulimit -n)"
    )
    return possible
