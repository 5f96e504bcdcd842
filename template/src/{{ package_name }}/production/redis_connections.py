"""Connections to Redis, by `REDIS_URL`: to one server, to the master that Sentinel names, or to a node of a cluster.

All keys of this server have one hash tag, so they are in one slot, which one node has at any time. So a cluster and
Sentinel are handled alike: the address of that node is looked up before each connection, and a connection ends as soon
as its node replies that another node has the keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode

from .config import ConfigError

UNLIMITED = {"socket_timeout": None, "socket_connect_timeout": None}
"""Options of connections: whoever uses one has a timeout of its own. Those of redis-py are made with
`asyncio.wait_for`, which loses most cancellations in Python 3.11, so that a cancelled task would go on for ever."""

LOOKUP_SECONDS = 0.5
"""Longest time to wait for one Sentinel or node while the address is looked up; all are asked at once."""

ACCEPTED = (
    "redis://, rediss:// and unix:// URLs; redis+sentinel://host:26379,host/master and redis+cluster://host:6379,host, "
    "with rediss for TLS"
)

PORTS = {"sentinel": 26379, "cluster": 6379}


class InvalidURLError(ValueError):
    """`REDIS_URL` is not valid; the text has no part of it."""


class RedisURL(NamedTuple):
    """The parts of `REDIS_URL`."""

    single: str
    """The URL for redis-py; with Sentinel or a cluster its host is a placeholder."""
    kind: str
    """`sentinel`, `cluster`, or empty for a single server."""
    hosts: tuple[tuple[str, int], ...]
    """Addresses of the Sentinels, or of some nodes."""
    master: str
    """Name of the master for the Sentinels."""
    sentinel_login: Mapping[str, str]
    """User and password for the Sentinels, as `username` and `password`."""


def parse(url: str) -> RedisURL:
    """Return the parts of a URL. A password may contain any character; a `%` before two hex digits is written `%25`.

    Raises:
        InvalidURLError: it is no URL of these kinds.
    """
    scheme, separator, rest = url.strip().partition("://")
    transport, _, kind = scheme.lower().partition("+")
    if not separator or transport not in ("redis", "rediss", "unix") or (kind and kind not in PORTS):
        raise InvalidURLError("not the URL of a Redis server")
    login, at, place = rest.rpartition("@")
    user, colon, password = login.partition(":")
    # Quoted again, so that what reads the URL next agrees on where the password ends.
    login = f"{quote(unquote(user), safe='')}{colon}{quote(unquote(password), safe='')}{at}"
    if not kind:
        return RedisURL(f"{transport}://{login}{place}", "", (), "", {})
    place, _, query = place.partition("?")
    addresses, _, path = place.partition("/")
    master, _, database = path.partition("/") if kind == "sentinel" else ("", "", "")
    if kind == "sentinel" and not master:
        raise InvalidURLError("the name of the master is missing, such as in redis+sentinel://host:26379/mymaster")
    if kind == "cluster" and path:
        raise InvalidURLError("a cluster has no databases and no path")
    hosts = tuple(_address(text, PORTS[kind]) for text in addresses.split(","))
    options = parse_qsl(query, keep_blank_values=True)
    of_sentinel = {name.removeprefix("sentinel_"): value for name, value in options if name.startswith("sentinel_")}
    if (kind != "sentinel" and of_sentinel) or of_sentinel.keys() - {"username", "password"}:
        raise InvalidURLError("unknown options in the query")
    others = urlencode([(name, value) for name, value in options if not name.startswith("sentinel_")])
    single = f"{transport}://{login}localhost/{database}{'?' if others else ''}{others}"
    return RedisURL(single, kind, hosts, unquote(master), of_sentinel)


def _address(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default)
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidURLError("a host with or without a port is expected between the commas")
    return host, int(port)


def pool(url: str, tag: str, kind: str = "BlockingConnectionPool", **options: Any) -> Any:
    """Return a pool of redis-py for the server of a URL. Its `connection_class` can be used without the pool.

    Its connections wait without a limit: the caller has a timeout.

    Args:
        url: The value of `REDIS_URL`.
        tag: Hash tag of all keys.
        kind: Name of the pool's class.
        options: Arguments of the pool.

    Raises:
        ConfigError: the URL is not valid; the text has no part of it.
    """
    # Imported here because it takes half a second, which a process without REDIS_URL saves.
    from redis import asyncio as redis

    try:
        parsed = parse(url)
        made = getattr(redis, kind).from_url(parsed.single, **options)
        made.connection_kwargs |= UNLIMITED
        if parsed.kind:
            made.connection_kwargs["locate"] = Locator(parsed, tag, made.connection_kwargs).locate
            made.connection_class = _located(made.connection_class)
        made.make_connection()  # an option that it does not know is a TypeError
    except InvalidURLError as error:
        raise ConfigError([f"REDIS_URL: {error} (accepted: {ACCEPTED})"]) from None
    except (ValueError, TypeError):  # their texts may contain the password
        raise ConfigError([f"REDIS_URL: not the URL of a Redis server (accepted: {ACCEPTED})"]) from None
    return made


@cache
def _located(kind: type) -> type:
    """Return a subclass of a connection of redis-py that looks up the address before each connection."""
    from redis import exceptions

    moved = (exceptions.ReadOnlyError, exceptions.AskError, exceptions.ClusterDownError)  # MOVED is an AskError

    class LocatedConnection(kind):  # type: ignore[misc]
        """A connection to the node that has the keys."""

        def __init__(self, *, locate: Callable[[], Awaitable[tuple[str, int]]], **options: Any) -> None:
            super().__init__(**options)
            self._locate = locate

        async def _connect(self) -> None:
            self.host, self.port = await self._locate()
            await super()._connect()

        async def read_response(self, *arguments: Any, **options: Any) -> Any:
            try:
                return await super().read_response(*arguments, **options)
            except moved as error:
                await self.disconnect(nowait=True)
                raise exceptions.ConnectionError(f"another node has the keys now: {type(error).__name__}") from None

    return LocatedConnection


class Locator:
    """Looks up the node that has the keys of a hash tag.

    Args:
        url: Where to ask.
        tag: The hash tag.
        options: Arguments of the connections to the node, of which those for TLS count here too.
    """

    def __init__(self, url: RedisURL, tag: str, options: Mapping[str, Any]) -> None:
        self._url = url
        self._tag = tag
        login = {name: options.get(name) for name in ("username", "password")}
        self._options: dict[str, Any] = {**(url.sentinel_login if url.kind == "sentinel" else login), **UNLIMITED}
        self._options |= {name: value for name, value in options.items() if name.startswith("ssl")}
        self._options["ssl"] = url.single.startswith("rediss")

    async def locate(self) -> tuple[str, int]:
        """Return host and port of the node: the first answer counts.

        Raises:
            redis.exceptions.ConnectionError: no answer names one.
        """
        from redis import exceptions

        asking = [asyncio.create_task(self._ask(*host)) for host in self._url.hosts]
        try:
            for answer in asyncio.as_completed(asking):
                if found := await answer:
                    return found
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        asked = "Sentinel names a master" if self._url.kind == "sentinel" else "node of the cluster names a master"
        raise exceptions.ConnectionError(f"no {asked}")

    async def _ask(self, host: str, port: int) -> tuple[str, int] | None:
        from redis.asyncio import Redis
        from redis.exceptions import RedisError

        look_up = self._master if self._url.kind == "sentinel" else self._owner_of_slot
        client: Any = Redis(host=host, port=port, protocol=2, decode_responses=True, **self._options)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found: tuple[str, int] | None = await look_up(client, host)
                return found
        except (RedisError, OSError, TimeoutError):
            return None
        finally:
            await client.aclose()

    async def _master(self, client: Any, host: str) -> tuple[str, int] | None:
        found = await client.sentinel_get_master_addr_by_name(self._url.master)
        return None if found is None else (str(found[0]), int(found[1]))

    async def _owner_of_slot(self, client: Any, host: str) -> tuple[str, int] | None:
        slot = await client.execute_command("CLUSTER KEYSLOT", f"{{{self._tag}}}")
        for first, last, (address, port, *_), *_ in await client.execute_command("CLUSTER SLOTS"):
            if first <= slot <= last:
                return (str(address or host), int(port))
        return None
