"""The client side of a measurement: keeps N connections busy with one prepared request each, and times every answer.

Runs as a process of its own, one job a line of JSON on stdin, one result a line on stdout. It knows just enough of HTTP
to find the end of an answer, so that it costs some tens of microseconds a call and is never the bottleneck; the
measurement of a server that does nothing shows that.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any

try:
    from uvloop import run
except ImportError:  # Windows
    from asyncio import run

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PLACEHOLDER = b"255.255.255.255"
"""Stands in a request where each call gets another client's address, of the same length."""
SESSION = b"{session}"
"""Stands in a request where the connection's session goes."""


class Connection(asyncio.Protocol):
    """Sends the request, waits for its answer, and again, until the job is over."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._buffer = b""
        self._started = 0
        self._opening = job.opening
        self._session = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        if self._opening:
            self._transport.write(self._opening)
        else:
            self._send()

    def _send(self) -> None:
        request = self._job.next_request()
        if self._session:
            request = request.replace(SESSION, self._session)
        self._started = time.perf_counter_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not complete(self._buffer):
            return
        answer, self._buffer = self._buffer, b""
        if self._opening:
            self._opening = b""
            self._session = header(answer, b"mcp-session-id")
            self._send()
            return
        self._job.answered(time.perf_counter_ns() - self._started, answer)
        if self._job.over:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._job.closed(early=not self._job.over)


def complete(answer: bytes) -> bool:
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = header(answer[: head + 2], b"content-length")
    return len(answer) - head - 4 >= int(length) if length else answer.endswith(b"\r\n0\r\n\r\n")


def header(answer: bytes, name: bytes) -> bytes:
    """Return the value of a header, whose name the servers write in lower case; empty where it is missing."""
    at = answer.find(b"\r\n" + name + b": ")
    return answer[at + len(name) + 4 : answer.find(b"\r\n", at + 2)] if at >= 0 else b""


class Job:
    """One measurement; counts the calls between the end of the warm-up and the end of `seconds`."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.host, self.port = job["host"], job["port"]
        self.concurrency = job["concurrency"]
        self.seconds, self.warm_up = job["seconds"], job.get("warm_up", 0.0)
        self.calls_at_most = job.get("calls") or sys.maxsize
        self._request: bytes = job["request"].encode()
        self.opening: bytes = job.get("opening", "").encode()
        """The first request of each connection, which opens a session."""
        self._spread = PLACEHOLDER in self._request
        self._expected: bytes = job["expected"].encode()
        self._clients = 0
        self.latencies: list[int] = []
        self.wrong: list[str] = []
        self.over = False
        self._measuring = not self.warm_up
        self._calls = 0
        self._open = self.concurrency
        self._done = asyncio.Event()

    def next_request(self) -> bytes:
        if not self._spread:
            return self._request
        self._clients += 1
        n = self._clients
        address = b"1%02d.1%02d.1%02d.1%02d" % (n // 1_000_000 % 100, n // 10_000 % 100, n // 100 % 100, n % 100)
        return self._request.replace(PLACEHOLDER, address)

    def answered(self, nanoseconds: int, answer: bytes) -> None:
        self._calls += 1
        if self._measuring:
            self.latencies.append(nanoseconds)
        if self._expected not in answer and len(self.wrong) < 10:
            self.wrong.append(answer[:1000].decode("utf-8", "replace"))
        if self._calls >= self.calls_at_most:
            self.over = True

    def closed(self, *, early: bool) -> None:
        if early:
            self.wrong.append("the server closed a connection")
        self._open -= 1
        if not self._open:
            self._done.set()

    async def run(self) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        for _ in range(self.concurrency):
            await loop.create_connection(lambda: Connection(self), self.host, self.port)
        await asyncio.sleep(self.warm_up)
        self._measuring = True
        started, cpu = time.perf_counter(), time.process_time()
        done = asyncio.ensure_future(self._done.wait())
        await asyncio.wait((done,), timeout=self.seconds)
        elapsed, used = time.perf_counter() - started, time.process_time() - cpu
        measured = sorted(self.latencies)
        self.over = True
        await asyncio.wait((done,), timeout=30)
        done.cancel()
        return {
            "calls": len(measured),
            "all_calls": self._calls,
            "seconds": elapsed,
            "per_second": len(measured) / elapsed,
            "p50_us": quantile(measured, 0.50) / 1000,
            "p99_us": quantile(measured, 0.99) / 1000,
            "client_cpu": used / elapsed,
            "wrong": self.wrong,
        }


def quantile(ordered: list[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def main() -> None:
    cpus = [int(cpu) for cpu in sys.argv[1:]]
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    if resource:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand connections

    async def one(job: dict[str, Any]) -> dict[str, Any]:
        return await Job(job).run()

    for line in sys.stdin:
        print(json.dumps(run(one(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
