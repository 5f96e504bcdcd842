"""Time that the upstream client adds to a successful request of bare httpx2: medians of interleaved requests.

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
from importlib import import_module
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter_ns
from typing import Any

import httpx2

try:
    from uvloop import run
except ImportError:  # Windows
    from asyncio import run

BODY = b'{"latitude": 38.7, "longitude": -9.1, "current": {"temperature_2m": 21.5, "wind_speed_10m": 12.3}}'
PARAMS = {"latitude": 38.7, "longitude": -9.1, "current": "temperature_2m"}
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


async def measure(package: str, base_url: str, requests: int, **settings: Any) -> tuple[list[float], list[float]]:
    config = import_module(f"{package}.production.config").ProductionConfig
    server = import_module(f"{package}.server").create_server(
        config(upstream_base_url=base_url, log_level="WARNING", **settings)
    )
    url = base_url + PATH
    bare: list[float] = []
    stack: list[float] = []
    async with server.running() as runtime, httpx2.AsyncClient() as client:
        upstream = runtime.upstream

        async def request_bare() -> None:
            started = perf_counter_ns()
            (await client.get(url, params=PARAMS)).json()
            bare.append((perf_counter_ns() - started) / 1000)

        async def request_stack() -> None:
            started = perf_counter_ns()
            await upstream.get_json(PATH, params=PARAMS)
            stack.append((perf_counter_ns() - started) / 1000)

        for number in range(requests + 100):
            for request in (request_bare, request_stack) if number % 2 else (request_stack, request_bare):
                await request()
    return bare[100:], stack[100:]  # the first ones warm up


def report(name: str, bare: list[float], stack: list[float]) -> None:
    above = [through - plain for plain, through in zip(bare, stack, strict=True)]
    low, _, high = quantiles(above, n=4)
    print(
        f"{name:<18} bare {median(bare):6.0f} µs   stack {median(stack):6.0f} µs   "
        f"above {median(stack) - median(bare):5.0f} µs   "
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
