"""Two replicas under a steady load lose no call while their upstream, Redis and the collector fail, and one restarts.

A short form by default. `SOAK_SECONDS=600 SOAK_RATE=600 pytest -m acceptance -n0 tests/test_soak.py` runs the long one:
the faults keep their share of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from .live_servers import HEADERS, LOCAL, Project, Server, free_port, make_project, status, tool_call
from .support import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.acceptance,
    pytest.mark.skipif(sys.platform != "linux", reason="reads memory and file descriptors from /proc"),
]

SECONDS = float(os.environ.get("SOAK_SECONDS", "20"))
RATE = float(os.environ.get("SOAK_RATE", "40"))
"""Calls a second over both replicas."""

POOLED = 60
"""Connections to Redis and upstream that a server may keep for later: what is beyond has leaked."""

ANSWER_SECONDS = 20.0
"""A call without an answer for so long is lost."""


class Upstream(BaseHTTPRequestHandler):
    """Answers the number that it is asked for, or 503 while `broken`."""

    protocol_version = "HTTP/1.1"
    broken = False

    def do_GET(self) -> None:
        number = parse_qs(urlsplit(self.path).query).get("number", ["0"])[0]
        body = b"{}" if Upstream.broken else json.dumps({"number": int(number)}).encode()
        self.send_response(503 if Upstream.broken else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def upstream() -> Iterator[int]:
    Upstream.broken = False
    with ThreadingHTTPServer((LOCAL, 0), Upstream) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@dataclass
class Load:
    """A steady load over the replicas that say they are ready, and what came of every call."""

    ports: list[int]
    ready: set[int] = field(default_factory=set)
    outcomes: list[tuple[float, str, str]] = field(default_factory=list)
    """When each call began, its tool, and its outcome."""
    under_way: dict[int, float] = field(default_factory=dict)
    """When each call began that has no outcome yet."""
    problems: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """The share of the time that is over."""
        return (time.monotonic() - self.started) / SECONDS

    async def run(self) -> None:
        watching = asyncio.create_task(self._watch())
        calls: set[asyncio.Task[None]] = set()
        self.started = time.monotonic()
        for number in range(int(SECONDS * RATE)):
            await asyncio.sleep(max(0.0, self.started + number / RATE - time.monotonic()))
            call = asyncio.create_task(self._call(number))
            calls.add(call)
            call.add_done_callback(calls.discard)
        if calls:
            await asyncio.wait(calls, timeout=ANSWER_SECONDS + 5)
        watching.cancel()

    async def _watch(self) -> None:
        """As a balancer does: only replicas whose /readyz answers 200 get calls."""
        while True:
            for port in self.ports:
                response = await asyncio.to_thread(status, port, "/readyz")
                (self.ready.add if response == 200 else self.ready.discard)(port)
            await asyncio.sleep(0.05)

    async def _call(self, number: int) -> None:
        at = self.under_way[number] = self.now()
        tool, arguments = ("fetch", {"number": number}) if number % 3 == 0 else ("echo", {"text": str(number)})
        ports = sorted(self.ready) or self.ports
        message = tool_call(tool, arguments, number)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                outcome = await self._post(ports[number % len(ports)], message)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            outcome = f"lost: {type(error).__name__}"
        self.outcomes.append((at, tool, outcome))
        del self.under_way[number]

    async def _post(self, port: int, message: dict[str, object]) -> str:
        body = json.dumps(message).encode()
        headers = HEADERS | {"host": f"{LOCAL}:{port}", "mcp-protocol-version": "2025-11-25", "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reader, writer = await asyncio.open_connection(LOCAL, port)
        try:
            writer.write(f"POST /mcp HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.read()).decode()
        finally:
            writer.close()
        if not answer.startswith("HTTP/1.1 200"):
            return f"not answered: {answer[:60]!r}"
        response = json.loads(answer.partition("\r\n\r\n")[2])
        if response["id"] != message["id"]:
            self.problems.append(f"{message} was answered with {response}")
        result = response["result"]
        text = result["content"][0]["text"]
        if result.get("isError"):
            return f"error: {text}"
        if text != str(message["id"]):
            self.problems.append(f"{message} was answered with {response}")
        return "success"

    def during(self, begin: float, end: float) -> Counter[str]:
        """The outcomes of the calls that began in this phase."""
        return Counter(outcome for at, _, outcome in self.outcomes if begin <= at < end)


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(template, tmp_path_factory.mktemp("soak") / "project", "extra")


def test_no_call_is_lost_during_failures(project: Project, tmp_path: Path, figure: Callable[[str], None]) -> None:
    redis, collector = free_port(), free_port()
    with contextlib.ExitStack() as running:
        start = running.enter_context
        settings = {
            "BASE_URL": f"http://{LOCAL}:{start(upstream())}",
            "REDIS_URL": f"redis://{LOCAL}:{redis}/0",
            "OTEL_EXPORTER_ENDPOINT": f"http://{LOCAL}:{collector}",  # nobody is there, all the time
            "MAX_RETRIES": 1,
            "RETRY_DELAY_SECONDS": 0.05,
            "CIRCUIT_RECOVERY_TIMEOUT": SECONDS / 40,
        }
        store = contextlib.ExitStack()
        start(store)
        store.enter_context(project.redis(tmp_path / "redis.log", redis))
        stays = start(project.serving(tmp_path / "stays.log", **settings))
        second = contextlib.ExitStack()
        start(second)
        restarts = second.enter_context(project.serving(tmp_path / "restarts.log", **settings))
        load = Load([stays.port, restarts.port])
        thread = threading.Thread(target=lambda: asyncio.run(load.run()))
        thread.start()
        before = descriptors_at_rest(stays, load)
        at(load, 0.20)
        ended(load, 0.19)
        memory = stays.memory_mb()
        Upstream.broken = True
        at(load, 0.35)
        Upstream.broken = False
        at(load, 0.45)
        store.close()
        at(load, 0.60)
        store.enter_context(project.redis(tmp_path / "redis.log", redis))
        at(load, 0.70)
        ended(load, 0.69)
        exit_status = restarts.terminate()
        second.close()
        second.enter_context(project.serving(tmp_path / "restarts.log", **(settings | {"PORT": restarts.port})))
        thread.join(SECONDS + ANSWER_SECONDS + 30)
        assert not thread.is_alive()
        grown = stays.memory_mb() - memory
        wait_for(lambda: stays.descriptors() <= before + POOLED, lambda: f"{before}, then {stays.descriptors()}")
        logs = stays.log() + restarts.log()

    outcomes = Counter(outcome for _, _, outcome in load.outcomes)
    assert load.problems == []
    assert len(load.outcomes) == int(SECONDS * RATE)
    assert [outcome for outcome in outcomes if outcome.startswith(("lost", "not answered"))] == [], outcomes
    assert exit_status == 0
    assert set(load.during(0.0, 0.19)) == {"success"}, load.during(0.0, 0.19)
    # While the upstream fails only its own tool does, and once the circuit has closed again nothing.
    failed = {tool for begun, tool, outcome in load.outcomes if 0.2 < begun < 0.35 and outcome != "success"}
    assert failed == {"fetch"}
    assert any("temporarily unavailable" in outcome for outcome in load.during(0.2, 0.45)), load.during(0.2, 0.45)
    # Without Redis each replica counts for itself: nobody notices.
    assert set(load.during(0.45, 0.69)) == {"success"}, load.during(0.45, 0.69)
    # Of a replica that stops, calls are refused until its balancer has seen the failing probe.
    late = load.during(0.69, 1.1)
    refused = sum(count for outcome, count in late.items() if "shutting down" in outcome)
    assert set(late) <= {"success", *(outcome for outcome in late if "shutting down" in outcome)}, late
    assert refused <= RATE, late
    assert grown < 8, f"{grown:.1f} MB more than after the first fifth"
    assert "Exception in ASGI application" not in logs
    figure(
        f"soak: {len(load.outcomes)} calls in {SECONDS:.0f} s, {outcomes['success']} good, {refused} refused by a "
        f"stopping replica, none lost; memory {grown:+.1f} MB"
    )


def at(load: Load, share: float) -> None:
    """Waits until `share` of the time is over."""
    while load.now() < share:
        time.sleep(0.02)


def ended(load: Load, share: float) -> None:
    """Waits until every call that began before `share` has its outcome, so that what happens now is none of it."""
    while any(begun < share for begun in [*load.under_way.values()]):
        time.sleep(0.005)


def descriptors_at_rest(server: Server, load: Load) -> int:
    """File descriptors while a few calls are under way: what later is more has leaked."""
    at(load, 0.1)
    return min(server.descriptors() for _ in itertools.repeat(None, 20))
