"""Limits on the connections of clients: in all, and of one address."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Hashable
from typing import Protocol

from starlette.types import Scope

from ..caller import UNKNOWN, address_id, is_within, trusted_networks
from ..config import variable
from ..observe.rejections import Rejections
from ..registry import Registry

MAX_DESCRIPTORS = 65_536
"""The process raises its limit of file descriptors to this number, if the system allows it."""

SPARE_DESCRIPTORS = 256
"""File descriptors that are not for clients: the upstream, Redis, logs, files of the owner's."""

RESERVE = 32
"""Connections beyond the limits, for probes only."""


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


def raise_descriptor_limit() -> None:
    """Raise the process's limit of file descriptors towards `MAX_DESCRIPTORS`: it is often 1,024, a connection each."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connection_limit(registry: Registry) -> int:
    """Return MAX_HTTP_CONNECTIONS, or fewer with a notice where the process may not open as many files."""
    limit = registry.config.max_http_connections
    if sys.platform == "win32":
        return limit
    import resource

    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY or descriptors - SPARE_DESCRIPTORS >= limit:
        return limit
    possible = max(1, descriptors - SPARE_DESCRIPTORS)
    registry.notices.append(
        f"at most {possible} client connections instead of MAX_HTTP_CONNECTIONS={limit}: the process may open "
        f"{descriptors} files (ulimit -n)"
    )
    return possible
