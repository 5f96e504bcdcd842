"""Reachability probes of the server's dependencies, which `--check` runs."""

from __future__ import annotations

import asyncio
import re
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2

from ..registry import Probe, Registry

PROBE_SECONDS = 5.0
"""Time limit of each probe."""

DEFAULT_PORTS = {"http": 80, "https": 443}


class ProbeResult(NamedTuple):
    """The outcome of a probe."""

    target: str
    problem: str | None
    """Why the dependency is not reachable, or `None` if it is."""
    milliseconds: int
    status: int | None = None
    """Status of the response, where the probe is an HTTP request."""


async def run_all(registry: Registry) -> dict[str, ProbeResult]:
    """Run the probe of the upstream and those of the features concurrently, and return the outcomes by name."""
    probes = {"upstream": Probe(registry.config.upstream_base_url, "http"), **registry.health.probes}
    results = await asyncio.gather(*(_run(probe) for probe in probes.values()))
    return dict(zip(probes, results, strict=True))


async def _run(probe: Probe) -> ProbeResult:
    problem: str | None = None
    status: int | None = None
    started = time.perf_counter()
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            if probe.check == "http":
                status = await reach_http(probe.target)
                problem = f"answered {status}" if status >= 500 else None
            elif probe.check == "tcp":
                await reach_tcp(probe.target)
            else:
                await probe.check()
    except TimeoutError:
        problem = f"no answer within {PROBE_SECONDS:g} s"
    except Exception as error:
        problem = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(error).split())) or type(error).__name__
    return ProbeResult(probe.target, problem, round((time.perf_counter() - started) * 1000), status)


async def reach_http(url: str) -> int:
    """Return the status of the response of `url` to a HEAD request without credentials.

    Raises:
        httpx2.HTTPError: it does not answer.
    """
    async with httpx2.AsyncClient(timeout=PROBE_SECONDS) as client:
        return (await client.head(url)).status_code


async def reach_tcp(url: str) -> None:
    """Return if the host and port of `url` accept a TCP connection.

    Raises:
        OSError: they do not.
    """
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme, 0))
    writer.close()
    await writer.wait_closed()
