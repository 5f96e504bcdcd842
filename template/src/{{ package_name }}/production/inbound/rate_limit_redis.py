"""All replicas that share a Redis share one limit for each client, and none of them waits for a Redis that is gone.

The bucket is that of `rate_limit`, in one script on the Redis server and by its clock. When Redis fails, is out of
reach or hangs, `RATE_LIMIT_ON_STORE_FAILURE` decides: each process limits for itself (local), every call passes (open)
or none does (closed).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, NamedTuple

import structlog

from ..config import ConfigError, variable, without_credentials
from ..registry import HealthPart, Probe, Registry
from ..request import CallNext, MCPRequest, Result, fail
from .rate_limit import Buckets, Quota, install_in_memory, limiting, status

TIMEOUT_SECONDS = 0.05
"""The longest that a call waits for Redis, whatever state it is in."""

LATE_TURNS = 12
"""How many turns of the event loop there are between a question, behind another batch, and its answer.

A burst of calls makes each turn longer than `TIMEOUT_SECONDS`: then the loop is late, not Redis.
"""

GIVE_UP_SECONDS = 1.0
"""When a connection without an answer is closed. So long the start waits too; then the server starts without Redis."""

PAUSE_SECONDS = 1.0
"""How long after a failure Redis is left alone; then one call tries it again."""

LOG_SECONDS = 60.0
"""How often an outage is logged, at most."""

SCRIPT = """
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local full, part = now, 0
local known = redis.call('GET', KEYS[1])
if known then
  local at, rest = string.match(known, '^(%d+) (%d+)$')
  full, part = tonumber(at), tonumber(rest)
  if full < now then
    full, part = now, 0
  elseif full >= now + window then
    full, part = now + window, 0
  end
end
local after, after_part = full + math.floor(cost / limit), part + cost % limit
if after_part >= limit then
  after, after_part = after + 1, after_part - limit
end
if cost == 0 or after > now + window or (after == now + window and after_part > 0) then
  return {0, full - now, part}
end
local value = string.format('%.0f %.0f', after, after_part)
redis.call('SET', KEYS[1], value, 'PXAT', math.floor(after / 1000) + 1)
return {1, after - now, after_part}
"""
"""KEYS: the client's bucket. ARGV: limit, window, and the cost in ticks (the window, or 0 to look only).

Returns whether the permit was taken, and the debt in whole microseconds and ticks. The bucket is the time at which it
is full again, as whole microseconds and ticks apart: together they would exceed the 53 bits that Lua's numbers hold
exactly. It expires when it is full (PXAT: Redis 6.2). A bucket beyond the window means that the clock was set back:
it counts as empty.
"""

SCRIPT_ID = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
"""By which EVALSHA names the script."""

log = structlog.stdlib.get_logger(__name__)


class StoreDownError(Exception):
    """Redis gave no answer, or is left alone after it gave none; the text says why, without credentials."""


class Question(NamedTuple):
    """A client's bucket, what to take out of it (a permit's cost in ticks, or 0), and where the answer goes.

    The answer is whether the permit was taken and the debt in ticks, or why there is none.
    """

    key: str
    cost: int
    answer: asyncio.Future[tuple[bool, int] | str]


class SharedBuckets:
    """The buckets in Redis, asked over one connection: what is asked while it is busy goes out together next.

    So a thousand calls at once cost a few round trips, and a Redis that is gone costs one attempt to connect. When one
    question has waited for `timeout`, and not for the event loop, none waits any longer, and a pause begins.
    """

    def __init__(self, quota: Quota, url: str, prefix: str, *, timeout: float = TIMEOUT_SECONDS) -> None:
        """Connects when it is opened, or at the first question. `timeout` is in seconds; keys begin with `prefix`.

        Raises:
            ValueError: `url` cannot be the URL of a Redis server. The text may repeat parts of it.
            TypeError: the same, for an unknown option in its query.
        """
        from redis.asyncio import ConnectionPool  # here: half a second that only those wait who have a Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        self.quota = quota
        pool = ConnectionPool.from_url(
            url,
            socket_connect_timeout=None,  # every use has a limit of its own
            socket_timeout=None,  # the same; this one is a wait_for, which in 3.11 may lose a cancellation
            retry=Retry(NoBackoff(), 0),  # a question that was not answered may have taken its permit
            protocol=2,  # what 3 adds, pushed messages, would have to be told from answers
        )
        self._connection: Any = pool.connection_class(**pool.connection_kwargs)  # without types of its own
        self._errors = (RedisError, OSError)
        self._prefix = f"{prefix}:rate_limit:{quota.limit}/{quota.window}:"
        self._timeout = timeout
        self._asked: list[Question] = []
        self._waiting: list[Question] = []
        self._asking: asyncio.Task[None] | None = None
        self._outage: str | None = None
        self._retry_at = 0.0
        self._logged_at: float | None = None

    async def open(self) -> None:
        """Connects and loads the script, so that the first call need not; logs why where that fails."""
        async with self._at_most(GIVE_UP_SECONDS):
            await self._connect()
            await self._load()

    async def spend(self, caller_id: str) -> int:
        """Takes a permit: returns 0, or the microseconds until there is one.

        Raises:
            StoreDownError
        """
        taken, debt = await self._debt(caller_id, self.quota.window)
        return 0 if taken else self.quota.wait(debt)

    async def remaining(self, caller_id: str) -> int:
        """How many permits the client has; takes none.

        Raises:
            StoreDownError
        """
        _, debt = await self._debt(caller_id, 0)
        return self.quota.remaining(debt)

    async def ping(self) -> None:
        """Returns when Redis answers a question.

        Raises:
            StoreDownError
        """
        await self._debt("", 0)

    async def close(self) -> None:
        """Closes the connection; who still waits is told so. A question afterwards opens a new one."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._connection.disconnect(nowait=True)

    async def _debt(self, caller_id: str, cost: int) -> tuple[bool, int]:
        if self._outage is not None:
            now = time.monotonic()
            if now < self._retry_at:
                raise StoreDownError(self._outage)
            self._retry_at = now + PAUSE_SECONDS  # this call tries, the others do not wait for it
        loop = asyncio.get_running_loop()
        question = Question(self._prefix + caller_id, cost, loop.create_future())
        self._waiting.append(question)
        if self._asking is None:
            self._asking = loop.create_task(self._ask(), context=Context())  # it works for all, in nobody's context
        timer = loop.call_later(self._timeout, self._late, question, LATE_TURNS)
        try:
            answer = await question.answer
        finally:
            timer.cancel()
        if isinstance(answer, str):
            raise StoreDownError(answer)
        return answer

    async def _ask(self) -> None:
        """Asks what is waiting, until nothing is."""
        try:
            while self._waiting:
                self._asked, self._waiting = self._waiting, []
                await self._answer(self._asked)
        finally:
            self._asking = None
            self._give_up("the connection was closed")  # nobody waits here, unless the task was stopped

    async def _answer(self, batch: list[Question]) -> None:
        async with self._at_most(GIVE_UP_SECONDS):
            await self._connect()
            answers = await self._evaluate(batch)
            in_time = False
            for question, (taken, whole, part) in zip(batch, answers, strict=True):
                if not question.answer.done():  # its call may be gone
                    question.answer.set_result((taken == 1, whole * self.quota.limit + part))
                    in_time = True
            if in_time and self._outage is not None:
                self._outage = None
                log.info("redis answers again: the rate limits are shared")

    @asynccontextmanager
    async def _at_most(self, seconds: float) -> AsyncIterator[None]:
        """Makes an outage of every failure inside, and closes the connection then."""
        try:
            async with asyncio.timeout(seconds):
                yield
                return
        except TimeoutError:
            self._failed(f"no answer within {seconds * 1000:g} ms")
        except self._errors as error:
            self._failed(f"{type(error).__name__}: {error}")
        await self._connection.disconnect(nowait=True)

    async def _connect(self) -> None:
        await self._connection.connect()  # does nothing where it is connected
        if await self._connection.can_read():  # Redis has closed it, or sent an answer that nobody waits for
            await self._connection.disconnect(nowait=True)
            await self._connection.connect()

    async def _load(self) -> None:
        await self._connection.send_command("SCRIPT", "LOAD", SCRIPT)
        await self._connection.read_response()

    async def _evaluate(self, batch: list[Question]) -> list[list[int]]:
        """The script's answers."""
        from redis.exceptions import NoScriptError

        limit, window = self.quota.limit, self.quota.window
        questions = [("EVALSHA", SCRIPT_ID, 1, question.key, limit, window, question.cost) for question in batch]
        await self._connection.send_packed_command(self._connection.pack_commands(questions))
        answers: list[list[int]] = []
        unanswered: list[int] = []
        for number in range(len(batch)):
            try:
                answers.append(await self._connection.read_response())
            except NoScriptError:  # Redis was restarted; no permit was taken
                unanswered.append(number)
                answers.append([])
        if unanswered:
            await self._load()
            again = await self._evaluate([batch[number] for number in unanswered])
            for number, answer in zip(unanswered, again, strict=True):
                answers[number] = answer
        return answers

    def _late(self, question: Question, turns: int) -> None:
        """Ends the wait, once the event loop has had `turns` more to bring an answer that is here already."""
        if question.answer.done():
            return
        if turns:
            asyncio.get_running_loop().call_soon(self._late, question, turns - 1)
        else:
            self._failed(f"no answer within {self._timeout * 1000:g} ms")

    def _failed(self, reason: str) -> None:
        now = time.monotonic()
        self._outage = reason
        self._retry_at = now + PAUSE_SECONDS
        if self._logged_at is None or now - self._logged_at >= LOG_SECONDS:
            self._logged_at = now
            log.warning("redis does not answer: the rate limits are not shared", reason=reason)
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """Tells all who wait."""
        for question in (*self._asked, *self._waiting):
            if not question.answer.done():
                question.answer.set_result(reason)
        self._waiting.clear()


def install(registry: Registry) -> None:
    """Limits each client in Redis, or in memory where no Redis is configured.

    Raises:
        ConfigError: `REDIS_URL` is no URL of a Redis server.
    """
    config = registry.config
    failures = registry.meter.counter(
        "mcp_rate_limit_store_failures_total", "Tool calls about which Redis could not be asked."
    )()
    if config.rate_limit_backend == "memory":
        install_in_memory(registry)
        return
    if config.redis_url is None:
        registry.notices.append(f"{variable('redis_url')} is not set: each process keeps its rate limits in its own memory")
        install_in_memory(registry)
        return
    quota = Quota.of(config)
    try:
        shared = SharedBuckets(quota, config.redis_url.get_secret_value(), registry.about.name)
    except (ValueError, TypeError):  # their texts may contain the password
        raise ConfigError(
            [f"{variable('redis_url')}: not the URL of a Redis server (accepted: redis://, rediss:// and unix:// URLs)"]
        ) from None
    registry.on_startup.append(shared.open)
    registry.on_shutdown.append(shared.close)
    registry.health.probes["redis"] = Probe(without_credentials(config.redis_url.get_secret_value()), shared.ping)
    policy = config.rate_limit_on_store_failure
    local = Buckets(quota)

    async def spend(caller_id: str) -> int:
        try:
            return await shared.spend(caller_id)
        except StoreDownError:
            failures.inc()
            if policy == "closed":
                raise
            return local.spend(caller_id) if policy == "local" else 0

    limit = limiting(registry, quota, spend)

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        try:
            return await limit(request, call_next)
        except StoreDownError:
            seconds = math.ceil(PAUSE_SECONDS)
            return fail(
                request,
                "RateLimitStoreDown",
                f"The rate limit cannot be checked now, so the call was refused. Try again in {seconds} seconds.",
                retry_after_seconds=seconds,
            )

    async def health(caller_id: str) -> HealthPart:
        try:
            return HealthPart(status(quota, await shared.remaining(caller_id)))
        except StoreDownError as error:
            fields = status(quota, local.remaining(caller_id)) if policy == "local" else {}
            return HealthPart(fields, (f"rate limit store: {error} (policy {policy})",))

    registry.middleware["rate_limit"] = middleware
    registry.health.parts.append(health)
    if policy == "closed":
        registry.health.checks["redis"] = shared.ping
