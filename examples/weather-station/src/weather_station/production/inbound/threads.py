"""Threads for tools, resources and prompts that are plain functions (`def`), in a bounded number.

A thread cannot be stopped. If its call has ended, because of the timeout or because the client has left, it counts
against the limit until the function returns; the SDK would start another thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, Literal

import anyio
import anyio.to_thread
from mcp.server.mcpserver.exceptions import ToolError

from ..caller import STDIO, current_caller
from ..json_values import listed
from ..registry import Registry
from ..request import current_request, max_items, reject


class Threads:
    """The threads of one server."""

    def __init__(self, registry: Registry) -> None:
        self._limit = registry.config.max_tool_threads
        self._free = asyncio.Semaphore(self._limit)
        self._share = registry.thread_share
        self._stuck: Counter[str | None] = Counter()
        """Threads that are stuck, by caller; `None` stands for the server itself."""
        self._gauge = registry.meter.gauge(
            "mcp_tool_threads_stuck", "Threads of plain functions that still run although their call has ended."
        )()

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        """Return an async function that runs `function` in a thread, as `run` does."""

        @wraps(function)
        async def in_thread(*args: Any, **kwargs: Any) -> Any:
            return await self.run(partial(function, *args, **kwargs))

        return in_thread

    async def run(self, function: Callable[[], Any]) -> Any:
        """Return the result of `function`, run in a thread; the context variables that it sets are kept.

        While all threads, or those of the caller, are stuck, return or raise the rejection of the request. While they
        are merely in use, wait.
        """
        caller = current_caller.get()
        caller_id = None if caller is None else caller.id
        if self._stuck.total() >= self._limit:
            return self._reject(f"All {self._limit} threads for plain functions (MAX_TOOL_THREADS)")
        if self._share and caller_id not in (None, STDIO) and self._stuck[caller_id] >= self._share.size:
            share = f"{self._share.size} threads for plain functions, a caller's share of MAX_TOOL_THREADS"
            return self._reject(f"{share} ({self._limit}),")
        release_share = await self._share.acquire() if self._share else lambda: None
        try:
            await self._free.acquire()
        except BaseException:
            release_share()
            raise

        def release() -> None:
            self._free.release()
            release_share()

        context = contextvars.copy_context()
        try:
            return await self._run(partial(context.run, function), release, caller_id)
        finally:
            for variable, value in context.items():
                if variable.get(None) is not value:
                    variable.set(value)

    async def _run(self, function: Callable[[], Any], give_back: Callable[[], None], caller_id: str | None) -> Any:
        state: Literal["waiting", "running", "ended"] = "waiting"
        lock = threading.Lock()
        loop = asyncio.get_running_loop()
        request = current_request.get()
        stuck = False

        def release() -> None:
            give_back()
            if stuck:
                self._count_stuck(caller_id, -1)

        def in_thread() -> tuple[Any, BaseException | None]:
            nonlocal state
            with lock:
                if state == "ended":
                    return None, None
                state = "running"
            try:
                return listed(function(), max_items(request)), None
            except BaseException as error:
                return None, error  # a future that has a GeneratorExit closes the coroutines that wait for it
            finally:
                with lock:
                    state = "ended"
                if not loop.is_closed():
                    loop.call_soon_threadsafe(release)

        try:
            result, error = await anyio.to_thread.run_sync(in_thread, limiter=anyio.CapacityLimiter(math.inf))
        finally:
            with lock:
                if state == "waiting":
                    release()
                    state = "ended"
                elif state == "running":
                    stuck = True
                    self._count_stuck(caller_id, 1)
        if error is None:
            return result
        try:
            raise error
        finally:
            del error  # refers to this frame

    def _count_stuck(self, caller_id: str | None, change: int) -> None:
        self._stuck[caller_id] += change
        if not self._stuck[caller_id]:
            del self._stuck[caller_id]
        self._gauge.set(self._stuck.total())

    def _reject(self, threads: str) -> Any:
        text = f"{threads} still run calls that were stopped. Try again later."
        request = current_request.get()
        if request is None:
            raise ToolError(text)
        return reject(request, "ThreadsStuck", text)
