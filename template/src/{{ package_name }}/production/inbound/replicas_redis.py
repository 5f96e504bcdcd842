"""What replicas share in Redis: used keys (`once`), and the change events of `subscriptions/listen`.

While Redis does not answer, `once` raises and its action is not done; a change event reaches the subscribers of its own
process only.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any

import structlog
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from ..config import without_credentials
from ..redis_connections import pool
from ..registry import HealthPart, Probe, Registry
from ..upstream.errors import RETRY_LATER
from .single_use import SingleUseError, digest_of

TIMEOUT_SECONDS = 1.0
"""Longest time to wait for Redis."""

MAX_CONNECTIONS = 8
"""Greatest number of connections of a process, beside the one that receives change events."""

RETRY_INTERVAL_SECONDS = 1.0
"""Time after which a broken connection for change events is made again."""

SILENCE_SECONDS = 15.0
"""Time without a message after which that connection is tested: a host that has vanished closes none."""

LISTS = {kind.__name__: kind() for kind in (ToolsListChanged, PromptsListChanged, ResourcesListChanged)}
"""Change events without a value, by their name in a message."""

log = structlog.stdlib.get_logger(__name__)


class StoreDownError(Exception):
    """Redis does not answer; the text has the reason and no credentials."""


class SharedState(InMemorySubscriptionBus):
    """Used keys and change events in Redis. All keys and the channel of a server have the same hash tag."""

    def __init__(self, url: str, name: str) -> None:
        """Prepare the connections.

        Args:
            name: Name of the server, the hash tag.

        Raises:
            ConfigError: `url` is not the URL of a Redis server.
        """
        # Imported here because it takes half a second, which a process without REDIS_URL saves.
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        super().__init__()
        connections = pool(
            url,
            name,
            max_connections=MAX_CONNECTIONS + 1,
            timeout=None,  # `_answer` has a timeout
            retry=Retry(NoBackoff(), 0),  # a command without an answer may have been done
            protocol=2,
        )
        self._redis: Any = Redis(connection_pool=connections)
        self._errors = (RedisError, OSError)
        self._prefix = f"{{{name}}}"
        self._channel = f"{self._prefix}:events"
        self._origin = os.urandom(8).hex()
        self._receiving: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._outage_logged = False

    async def first_use(self, purpose: str, key: str, seconds: float) -> bool:
        """Return whether `key` is new, and remember it for `seconds`.

        Raises:
            SingleUseError: Redis does not answer; the key may be remembered.
        """
        name = f"{self._prefix}:{purpose}:{digest_of(key).hex()}"
        try:
            async with self._answer():
                return bool(await self._redis.set(name, "", nx=True, px=max(1, round(seconds * 1000))))
        except StoreDownError:
            problem = "Whether this was done before cannot be checked now, so it was not done"
            raise SingleUseError(problem, RETRY_LATER, host="redis") from None

    async def publish(self, event: ServerEvent) -> None:
        """Deliver `event` to the subscribers of all replicas, of this one even if Redis does not answer."""
        await super().publish(event)
        uri = event.uri if isinstance(event, ResourceUpdated) else None
        message = json.dumps({"origin": self._origin, "kind": type(event).__name__, "uri": uri})
        with suppress(StoreDownError):
            async with self._answer():
                await self._redis.publish(self._channel, message)

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            StoreDownError
        """
        async with self._answer():
            await self._redis.ping()

    async def open(self) -> None:
        """Begin to receive the events of other replicas; a failure is logged and tried again."""
        if self._receiving is None:
            # In an empty context: the task belongs to no request.
            self._receiving = asyncio.get_running_loop().create_task(self._receive(), context=Context())
            with suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await self._connected.wait()

    async def close(self) -> None:
        """Close all connections."""
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])
            self._receiving = None
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def health(self, caller_id: str) -> HealthPart:
        """Return whether events of other replicas arrive."""
        return HealthPart(degraded=() if self._connected.is_set() else ("subscriptions",))

    @asynccontextmanager
    async def _answer(self) -> AsyncIterator[None]:
        """Turn a failure of Redis, or an answer that takes too long, into `StoreDownError`."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                yield
        except TimeoutError:
            raise self._failed(f"no answer within {TIMEOUT_SECONDS * 1000:g} ms") from None
        except self._errors as error:
            raise self._failed(f"{type(error).__name__}: {error}") from None
        self._outage_logged = False

    def _failed(self, reason: str) -> StoreDownError:
        if not self._outage_logged:  # once in an outage: clients can cause many failures
            self._outage_logged = True
            log.warning("redis does not answer: change events and used keys are not shared", reason=reason)
        return StoreDownError(reason)

    async def _receive(self) -> None:
        """Deliver the events of other replicas to the subscribers of this one, for ever."""
        while True:
            try:
                async with self._redis.pubsub() as events:
                    async with self._answer():
                        await events.subscribe(self._channel)
                    await self._receive_from(events)
            except StoreDownError:
                pass
            except (*self._errors, TimeoutError) as error:
                self._failed(f"{type(error).__name__}: {error}")
            finally:
                self._connected.clear()
            await asyncio.sleep(RETRY_INTERVAL_SECONDS)

    async def _receive_from(self, events: Any) -> None:
        tested = False
        while True:
            message = await events.get_message(timeout=SILENCE_SECONDS)
            if message is None:
                if tested:
                    raise TimeoutError(f"no answer within {SILENCE_SECONDS:g} s")
                await events.ping()
            elif message["type"] == "subscribe":
                self._connected.set()
            elif message["type"] == "message":
                await self._deliver(message["data"])
            tested = message is None

    async def _deliver(self, data: bytes) -> None:
        try:
            fields = json.loads(data)
            if fields["origin"] == self._origin:
                return
            kind, uri = fields["kind"], fields["uri"]
            event = ResourceUpdated(str(uri)) if kind == ResourceUpdated.__name__ else LISTS[kind]
        except (ValueError, KeyError, TypeError):  # of another version of this server, or not of one
            log.warning("a change event in redis cannot be read", channel=self._channel)
            return
        await super().publish(event)


def install(registry: Registry) -> None:
    """Share used keys and change events in Redis, or keep them in each process if no Redis is configured.

    Raises:
        ConfigError: `REDIS_URL` is not the URL of a Redis server.
    """
    if registry.config.redis_url is None:
        registry.notices.append("REDIS_URL is not set: used keys and change events stay within each process")
        return
    url = registry.config.redis_url.get_secret_value()
    shared = SharedState(url, registry.about.name)
    registry.first_use = shared.first_use
    registry.server_arguments = {**registry.server_arguments, "subscriptions": shared}
    registry.on_startup.append(shared.open)
    registry.on_shutdown.append(shared.close)
    registry.health.parts.append(shared.health)
    registry.health.probes["redis"] = Probe(without_credentials(url), shared.ping)
