"""Rate limit that all replicas share, in Redis: the token bucket of `rate_limit` as a script that uses Redis's clock.

When Redis fails, is unreachable or hangs, `RATE_LIMIT_ON_STORE_FAILURE` decides: each process limits in its own memory
(local), every call is admitted (open), or every call is rejected (closed).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from functools import lru_cache
from typing import Any, NamedTuple

import structlog

from ..config import without_credentials
from ..redis_connections import pool
from ..registry import HealthPart, Probe, Registry
from ..request import REJECTED, CallNext, MCPRequest, Result, give_error
from . import rate_limit
from .rate_limit import Limiter, LocalBuckets, Rate, TakePermits, Tiers, health_fields, limit_messages

TIMEOUT_SECONDS = 0.05
"""Longest time that a call waits for Redis."""

EXTRA_LOOP_TURNS = 12
"""Turns of the event loop to wait for a reply beyond the timeout.

A reply that has arrived needs up to this many turns to reach its call. In a burst of calls one turn may take longer
than the timeout; without the extra turns a busy process would be mistaken for an outage of Redis.
"""

CONNECTION_TIMEOUT_SECONDS = 1.0
"""Time after which a connection that does not reply is closed, and a start continues without Redis."""

RETRY_INTERVAL_SECONDS = 1.0
"""Time after a failure during which Redis is not used; then one call tries it again."""

LOG_INTERVAL_SECONDS = 60.0
"""Least time between two log lines about an outage."""

SCRIPT = """
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at, ticks = now, 0
local bucket = redis.call('GET', KEYS[1])
if bucket then
  local stored_at, stored_ticks = string.match(bucket, '^(%d+) (%d+)$')
  full_at, ticks = tonumber(stored_at), tonumber(stored_ticks)
  if full_at < now then
    full_at, ticks = now, 0
  elseif full_at >= now + window then
    full_at, ticks = now + window, 0
  end
end
local new_at, new_ticks = full_at + math.floor(cost / limit), ticks + cost % limit
if new_ticks >= limit then
  new_at, new_ticks = new_at + 1, new_ticks - limit
end
if cost == 0 or new_at > now + window or (new_at == now + window and new_ticks > 0) then
  return {0, full_at - now, ticks}
end
redis.call('SET', KEYS[1], string.format('%.0f %.0f', new_at, new_ticks), 'PXAT', math.floor(new_at / 1000) + 1)
return {1, new_at - now, new_ticks}
"""
"""Lua script that spends a permit. KEYS: the bucket. ARGV: limit, window and cost in ticks (0 only reads the debt).

Returns whether a permit was spent (1 or 0), and the debt as whole microseconds and ticks. A bucket is stored as the
time at which it is full again, as microseconds and ticks, because one number would exceed the 53 bits that Lua's
numbers represent exactly. Its key expires at that time (PXAT: Redis 6.2). A time beyond the window means that the
clock was set back; the bucket is then treated as empty.
"""

log = structlog.stdlib.get_logger(__name__)


class StoreDownError(Exception):
    """Redis does not reply, or is not used for a while after a failure. The text has the reason and no credentials."""


class ScriptCall(NamedTuple):
    """One call of a script, and its result: its reply, or the reason why Redis did not reply."""

    script: str
    keys: Sequence[bytes]
    arguments: Sequence[int | str]
    result: asyncio.Future[list[int] | str]


class SharedBuckets:
    """The token buckets in Redis, over one connection.

    Calls that arrive while the connection is busy are sent together next, so a thousand simultaneous calls take a few
    round trips. When one call times out, all waiting calls fail, and Redis is not used for `RETRY_INTERVAL_SECONDS`.
    """

    def __init__(self, rate: Rate, url: str, prefix: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Prepare the connection, which is made by `open` or the first call.

        Args:
            prefix: What the keys begin with, as their hash tag.
            timeout: Longest time that a call waits, in seconds.

        Raises:
            ConfigError: `url` is not the URL of a Redis server.
        """
        # Imported here because it takes half a second, which a process without REDIS_URL saves.
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self.rate = rate
        connections = pool(
            url,
            prefix,
            "ConnectionPool",
            retry=Retry(NoBackoff(), 0),  # a call without a reply may have spent its permit
            protocol=2,  # RESP3 adds push messages, which are not replies
        )
        self._connection: Any = connections.connection_class(**connections.connection_kwargs)
        self._errors = (RedisError, OSError)
        self._prefix = f"{{{prefix}}}:rate_limit:"
        self._timeout = timeout
        self._sent: list[ScriptCall] = []
        self._queue: list[ScriptCall] = []
        self._sender: asyncio.Task[None] | None = None
        self._outage: str | None = None
        self._retry_at = 0.0
        self._logged_at: float | None = None

    async def open(self) -> None:
        """Connect and load the script; a failure is logged."""
        async with self._connection_use():
            await self._connect()
            await self._load_script(SCRIPT)

    async def spend(self, caller_id: str, cost: int = 1) -> int:
        """Spend `cost` permits and return 0, or spend none and return the microseconds until there are enough.

        Raises:
            StoreDownError
        """
        spent, debt = await self.take(caller_id, cost, self.rate)
        return 0 if spent else self.rate.wait(debt, cost)

    async def take(self, key: str, cost: int, rate: Rate) -> tuple[bool, int]:
        """Spend `cost` permits if there are enough; return whether they were spent, and the debt in ticks.

        Raises:
            StoreDownError
        """
        if cost > rate.limit:
            return False, await self._debt(key, rate)
        return await self._call_script(key, rate, cost * rate.window)

    async def remaining(self, key: str, rate: Rate | None = None) -> int:
        """Return how many permits there are, without spending one.

        Raises:
            StoreDownError
        """
        rate = rate or self.rate
        return rate.remaining(await self._debt(key, rate))

    async def _debt(self, key: str, rate: Rate) -> int:
        _, debt = await self._call_script(key, rate, 0)
        return debt

    async def ping(self) -> None:
        """Check that Redis replies.

        Raises:
            StoreDownError
        """
        await self._call_script("", self.rate, 0)

    async def close(self) -> None:
        """Close the connection; waiting calls fail, and a later call opens a new connection."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
        await self._connection.disconnect(nowait=True)

    async def _call_script(self, key: str, rate: Rate, cost: int) -> tuple[bool, int]:
        """Return whether the cost in ticks was spent, and the debt in ticks."""
        arguments = (rate.limit, rate.window, cost)
        spent, microseconds, ticks = await self.run(SCRIPT, [bucket_name(key, rate)], arguments)
        return spent == 1, microseconds * rate.limit + ticks

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[int | str]) -> list[int]:
        """Run a script; `keys` are the names after the prefix of all keys.

        Raises:
            StoreDownError
        """
        if self._outage is not None:
            now = time.monotonic()
            if now < self._retry_at:
                raise StoreDownError(self._outage)
            self._retry_at = now + RETRY_INTERVAL_SECONDS  # this call tries again; others fail without waiting for it
        loop = asyncio.get_running_loop()
        # Encoded here and always possible, because a failure while the batch is packed would fail its other calls too.
        names = [f"{self._prefix}{key}".encode(errors="surrogatepass") for key in keys]
        call = ScriptCall(script, names, arguments, loop.create_future())
        self._queue.append(call)
        if self._sender is None:
            # In an empty context: the task sends the calls of all callers, so it belongs to no request's trace.
            self._sender = loop.create_task(self._send_queue(), context=Context())
        timer = loop.call_later(self._timeout, self._check_timeout, call, EXTRA_LOOP_TURNS)
        try:
            result = await call.result
        finally:
            timer.cancel()
        if isinstance(result, str):
            raise StoreDownError(result)
        return result

    async def _send_queue(self) -> None:
        """Send batches until the queue is empty."""
        try:
            while self._queue:
                self._sent, self._queue = self._queue, []
                await self._send_batch(self._sent)
        finally:
            self._sender = None
            self._fail_waiting("the connection was closed")  # none waits, unless `close` has cancelled this task

    async def _send_batch(self, batch: list[ScriptCall]) -> None:
        async with self._connection_use():
            await self._connect()
            replies = await self._run_script(batch)
            in_time = False
            for call, reply in zip(batch, replies, strict=True):
                if not call.result.done():  # done: timed out or cancelled
                    call.result.set_result(reply)
                    in_time = True
            if in_time and self._outage is not None:
                self._outage = None
                log.info("redis answers again: the rate limits are shared")

    @asynccontextmanager
    async def _connection_use(self) -> AsyncIterator[None]:
        """Record a failure or timeout inside as an outage, and close the connection then."""
        try:
            async with asyncio.timeout(CONNECTION_TIMEOUT_SECONDS):
                yield
                return
        except TimeoutError:
            self._record_outage(f"no answer within {CONNECTION_TIMEOUT_SECONDS * 1000:g} ms")
        except self._errors as error:
            self._record_outage(f"{type(error).__name__}: {error}")
        await self._connection.disconnect(nowait=True)

    async def _connect(self) -> None:
        await self._connection.connect()  # does nothing if it is connected
        if await self._connection.can_read():  # closed by Redis, or a reply has arrived that nothing waits for
            await self._connection.disconnect(nowait=True)
            await self._connection.connect()

    async def _load_script(self, script: str) -> None:
        await self._connection.send_command("SCRIPT", "LOAD", script)
        await self._connection.read_response()

    async def _run_script(self, batch: list[ScriptCall]) -> list[list[int]]:
        """Return the replies to the calls of `batch`, in their order."""
        from redis.exceptions import NoScriptError

        commands = [("EVALSHA", _sha(call.script), len(call.keys), *call.keys, *call.arguments) for call in batch]
        await self._connection.send_packed_command(self._connection.pack_commands(commands))
        replies: list[list[int]] = []
        not_run: list[int] = []
        for index in range(len(batch)):
            try:
                replies.append(await self._connection.read_response())
            except NoScriptError:  # Redis was restarted; no permit was spent
                not_run.append(index)
                replies.append([])
        if not_run:
            for script in {batch[index].script for index in not_run}:
                await self._load_script(script)
            for index, reply in zip(not_run, await self._run_script([batch[i] for i in not_run]), strict=True):
                replies[index] = reply
        return replies

    def _check_timeout(self, call: ScriptCall, extra_turns: int) -> None:
        """Record an outage if `call` has no result after `extra_turns` more turns of the event loop."""
        if call.result.done():
            return
        if extra_turns:
            asyncio.get_running_loop().call_soon(self._check_timeout, call, extra_turns - 1)
        else:
            self._record_outage(f"no answer within {self._timeout * 1000:g} ms")

    def _record_outage(self, reason: str) -> None:
        now = time.monotonic()
        self._outage = reason
        self._retry_at = now + RETRY_INTERVAL_SECONDS
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_SECONDS:
            self._logged_at = now
            log.warning("redis does not answer: the rate limits are not shared", reason=reason)
        self._fail_waiting(reason)

    def _fail_waiting(self, reason: str) -> None:
        for call in (*self._sent, *self._queue):
            if not call.result.done():
                call.result.set_result(reason)
        self._queue.clear()


class SharedLimiter(Limiter):
    """A limiter that rejects requests while their limit cannot be checked, where that is set."""

    def __init__(
        self, registry: Registry, tiers: Tiers, take: TakePermits, local: LocalBuckets, store: SharedBuckets
    ) -> None:
        super().__init__(registry, tiers, local, take)
        self.store = store

    async def __call__(self, request: MCPRequest, call_next: CallNext) -> Result:
        try:
            return await super().__call__(request, call_next)
        except StoreDownError:
            seconds = math.ceil(RETRY_INTERVAL_SECONDS)
            request.fail("error", "RateLimitStoreDown")
            return give_error(
                request,
                REJECTED,
                f"The rate limit cannot be checked now, so the call was rejected. Try again in {seconds} seconds.",
                retry_after_seconds=seconds,
            )


@lru_cache
def _sha(script: str) -> str:
    """Return the name of a script in Redis."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def bucket_name(key: str, rate: Rate) -> str:
    """Return the name of a bucket, after the prefix."""
    return f"{rate.limit}/{rate.window}:{key}"


def install(registry: Registry) -> None:
    """Limit the calls of each caller: in Redis, or in memory if no Redis is configured.

    Raises:
        ConfigError: `REDIS_URL` is not the URL of a Redis server.
    """
    config = registry.config
    failures = registry.meter.counter(
        "mcp_rate_limit_store_failures_total", "Requests whose rate limit could not be checked in Redis."
    )()
    if config.rate_limit_backend == "memory":
        rate_limit.install(registry)
        return
    if config.redis_url is None:
        registry.notices.append("REDIS_URL is not set: each process keeps its rate limits in its own memory")
        rate_limit.install(registry)
        return
    tiers = Tiers(config)
    url = config.redis_url.get_secret_value()
    shared = SharedBuckets(tiers.default, url, registry.about.name)
    registry.on_startup.append(shared.open)
    registry.on_shutdown.append(shared.close)
    registry.health.probes["redis"] = Probe(without_credentials(url), shared.ping)
    policy = config.rate_limit_on_store_failure
    local = LocalBuckets()

    async def take(key: str, cost: int, rate: Rate) -> tuple[bool, int]:
        try:
            return await shared.take(key, cost, rate)
        except StoreDownError:
            failures.inc()
            if policy == "closed":
                raise
            return local.of(rate).take(key, cost) if policy == "local" else (True, 0)

    limit = SharedLimiter(registry, tiers, take, local, shared)

    async def health(caller_id: str) -> HealthPart:
        rate, key = tiers.current(caller_id)
        try:
            return HealthPart(health_fields(rate, await shared.remaining(key, rate)))
        except StoreDownError:
            fields = health_fields(rate, local.of(rate).remaining(key)) if policy == "local" else {}
            return HealthPart(fields, ("rate_limit_store",))

    registry.middleware["rate_limit"] = limit
    limit_messages(registry, tiers)
    registry.health.parts.append(health)
    if policy == "closed":
        registry.health.checks["redis"] = shared.ping
