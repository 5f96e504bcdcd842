"""Time that the upstream client adds to a successful request of bare httpx2: medians of interleaved requests.

Wall time, and CPU time of the event loop's thread, without the one that exports spans. Every request has a query of its
own, so that no parsed URL is used again.

    cd a-generated-project && uv run python path/to/benchmarks/outbound.py [--requests 2000]

The upstream is another process on loopback. Each round sends one request with bare httpx2 and one with `Upstream`, in
changing order, so that both have the same conditions. The first measurement is without telemetry; the second, where the
project has it, traces every request and exports the spans to a sink.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
from collections.abc import Awaitable, Mapping
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter_ns, thread_time_ns
from typing import Any

import httpx2

try:
    from uvloop import run
except ImportError:  # Windows
    from asyncio import run

BODY = b'{"latitude": 38.7, "longitude": -9.1, "current": {"temperature_2m": 21.5, "wind_speed_10m": 12.3}}'
PARAMS = {"latitude": 38.7, "current": "temperature_2m"}
PATH = "/v1/forecast"


class FixedResponse(asyncio.Protocol):
    """Sends the same response to every request, once its body has arrived."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
            )


def serve(listener: socket.socket) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(FixedResponse, sock=listener)
        await server.serve_forever()

    run(forever())


class Times:
    """Microseconds of each request."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    async def add(self, request: Awaitable[object]) -> None:
        wall, cpu = perf_counter_ns(), thread_time_ns()
        await request
        self.cpu.append((thread_time_ns() - cpu) / 1000)
        self.wall.append((perf_counter_ns() - wall) / 1000)


async def measure(package: str, base_url: str, requests: int, **settings: Any) -> tuple[Times, Times]:
    config = import_module(f"{package}.production.config").ProductionConfig
    server = import_module(f"{package}.server").create_server(
        config(upstream_base_url=base_url, log_level="WARNING", **settings)
    )
    url = base_url + PATH
    async with server.running() as runtime, httpx2.AsyncClient() as client:
        upstream = runtime.upstream

        async def request_bare(params: Mapping[str, Any]) -> None:
            (await client.get(url, params=params)).json()

        async def request_stack(params: Mapping[str, Any]) -> None:
            await upstream.get_json(PATH, params=params)

        for first, last in ((0, 100), (100, requests + 100)):  # the first ones warm up
            bare, stack = Times(), Times()
            turns = [(bare, request_bare), (stack, request_stack)]
            for number in range(first, last):
                for times, request in turns if number % 2 else reversed(turns):
                    await times.add(request(PARAMS | {"longitude": number / 100}))
    return bare, stack


def report(name: str, bare: Times, stack: Times) -> None:
    for kind in ("wall", "cpu"):
        plain, through = getattr(bare, kind), getattr(stack, kind)
        above = [more - less for less, more in zip(plain, through, strict=True)]
        low, _, high = quantiles(above, n=4)
        print(
            f"{name:<18} {kind:<4}   bare {median(plain):6.0f} µs   stack {median(through):6.0f} µs   "
            f"above {median(through) - median(plain):5.0f} µs   "
            f"(pairs: median {median(above):.0f}, quartiles {low:.0f} to {high:.0f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    (production,) = Path("src").glob("*/production")
    package = production.parts[1]
    listener = socket.create_server(("127.0.0.1", 0))
    base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(listener,), daemon=True)
    process.start()
    listener.close()
    try:
        features = import_module(f"{package}.production.features").FEATURES
        off = {"enable_telemetry": False} if "telemetry" in features else {}
        report("without telemetry", *run(measure(package, base_url, options.requests, **off)))
        if "telemetry" in features:
            traced = {"telemetry_endpoint": base_url}
            report("with telemetry", *run(measure(package, base_url, options.requests, **traced)))
    finally:
        process.terminate()


if __name__ == "__main__":
    main()
