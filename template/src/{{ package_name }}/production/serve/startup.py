"""The log lines of a start, and `--check`: its report, and its probes of the server's dependencies."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import httpx2
import structlog

from ..caller import STDIO
from ..config import ConfigError, secret_texts, without_secrets
from ..environment import tls_context
from ..inbound.guard import DEFAULT_PORTS
from ..observe.health import HealthReport, report
from ..registry import Probe, Registry
from ..request import is_own_failure
from ..sdk import ProductionServer
from ..terminal import coloured, one_line
from ..upstream.errors import ungrouped
from .connections import base_url
from .http import ENDPOINT

PROBE_SECONDS = 5.0
"""Time limit of each probe."""

COLOURS = {"ok": "32", "warning": "33", "failed": "31"}
"""ANSI colour codes by the state of a row."""

log = structlog.stdlib.get_logger(__name__)


def url(listener: socket.socket) -> str:
    """Return the URL of the MCP endpoint behind a listening socket."""
    return f"{base_url(listener)}{ENDPOINT}"


def require_http_allowed(registry: Registry) -> None:
    """Run the features' start checks for HTTP.

    Raises:
        ConfigError: a feature forbids serving this configuration over HTTP; one line for each problem.
    """
    problems = [problem for start_check in registry.http.start_checks for problem in start_check()]
    if problems:
        raise ConfigError(problems)


def announce_when_started(registry: Registry, address: str) -> None:
    """Log the server's address and features, and its notices, after all other startup callbacks have passed."""

    async def announce() -> None:
        addresses = {name: urljoin(address, path) for name, path in registry.http.addresses.items()}
        log.info(
            "serving",
            server=registry.about.name,
            version=registry.about.version,
            transport=registry.config.transport,
            address=address,
            **addresses,
            features=sorted(registry.features),
        )
        for notice in registry.notices:
            log.warning(notice)

    registry.on_startup.append(announce)


class Row(NamedTuple):
    """A line of the report."""

    name: str
    text: str
    state: str = ""
    """A key of `COLOURS`, or nothing for plain information."""


async def check(server: ProductionServer) -> tuple[list[str], bool]:
    """Return the lines of the report, and whether the server is ready and all its dependencies are reachable.

    The startup callbacks run too, so that the report covers what they connect to.
    """
    registry = server.registry
    async with server.running():
        results = await run_probes(registry)
        health = await report(registry, STDIO)
    missing = health.auth_config.get(registry.config.upstream_api_key_env) == "missing"
    ready = health.status != "unhealthy" and not missing and not any(result.problem for result in results.values())
    rows = [*_server_rows(server), *_probe_rows(results), *_warning_rows(server, health)]
    status = "degraded" if health.status == "healthy" and not ready else health.status
    rows.append(Row("status", status, "failed" if not ready else "ok" if status == "healthy" else "warning"))
    width = max(len(row.name) for row in rows)
    colours = COLOURS if coloured(sys.stdout) else {}
    secrets = [*secret_texts(), *registry.secrets.latest]
    texts = [_with_colour(one_line(without_secrets(row.text, secrets)), colours.get(row.state)) for row in rows]
    return [f"{one_line(row.name):<{width}}  {text}" for row, text in zip(rows, texts, strict=True)], ready


def _server_rows(server: ProductionServer) -> Iterator[Row]:
    registry = server.registry
    config = registry.config
    yield Row("server", f"{registry.about.name} {registry.about.version}")
    yield Row("transport", "stdio" if config.transport == "stdio" else f"http on {config.host}:{config.port}")
    for name, address in registry.http.addresses.items():
        yield Row(name, address)
    yield Row("features", _comma_separated(sorted(registry.features)))
    yield from (Row(name, text) for name, text in _feature_rows(server) if name != "advice")
    yield Row("tools", _comma_separated(tool.name for tool in server.registered_tools()))
    yield Row("resources", _comma_separated(server.registered_resources()))
    yield Row("prompts", _comma_separated(server.registered_prompts()))


def _feature_rows(server: ProductionServer) -> Iterator[tuple[str, str]]:
    tools = server.registered_tools()
    for get_rows in server.registry.check_rows:
        yield from get_rows(tools)


def _probe_rows(results: Mapping[str, ProbeResult]) -> Iterator[Row]:
    for name, result in results.items():
        if result.problem is not None:
            yield Row(name, f"failed: {result.target}: {result.problem}", "failed")
        elif result.status is not None and result.status >= 400:  # usual for the base URL of an API
            text = f"reached: {result.target} answered {result.status} ({result.milliseconds} ms)"
            yield Row(name, text, "warning")
        else:
            yield Row(name, f"ok: {result.target} ({result.milliseconds} ms)", "ok")


def _warning_rows(server: ProductionServer, health: HealthReport) -> Iterator[Row]:
    for variable, state in health.auth_config.items():
        of_missing = "failed" if variable == server.registry.config.upstream_api_key_env else "warning"
        yield Row("variable", f"{variable} is {state}", "ok" if state == "configured" else of_missing)
    for notice in server.registry.notices:
        yield Row("notice", notice, "warning")
    yield from (Row(name, text, "warning") for name, text in _feature_rows(server) if name == "advice")
    for problem in health.problems:
        yield Row("problem", problem, "failed" if health.status == "unhealthy" else "warning")


def _with_colour(text: str, code: str | None) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code else text


def _comma_separated(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


class ProbeResult(NamedTuple):
    """The outcome of a probe."""

    target: str
    problem: str | None
    """Why the dependency is not reachable, or `None` if it is."""
    milliseconds: int
    status: int | None = None
    """Status of the response, where the probe is an HTTP request."""


async def run_probes(registry: Registry) -> dict[str, ProbeResult]:
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
                status = await _reach_http(probe.target)
                problem = f"answered {status}" if status >= 500 else None
            elif probe.check == "tcp":
                await _reach_tcp(probe.target)
            else:
                await probe.check()
    except TimeoutError:
        problem = f"no answer within {PROBE_SECONDS:g} s"
    except BaseException as error:
        if not is_own_failure(error, asyncio.current_task()):
            raise
        cause = ungrouped(error)[0]
        problem = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(cause).split())) or type(cause).__name__
    return ProbeResult(probe.target, problem, round((time.perf_counter() - started) * 1000), status)


async def _reach_http(url: str) -> int:
    """Return the status of the response of `url` to a HEAD request without credentials.

    Raises:
        httpx2.HTTPError: there is no response.
    """
    async with httpx2.AsyncClient(verify=tls_context(), timeout=PROBE_SECONDS) as client:
        return (await client.head(url)).status_code


async def _reach_tcp(url: str) -> None:
    """Open a TCP connection to the host and port of `url`, and close it.

    Raises:
        OSError: the connection failed.
    """
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme, 0))
    writer.close()
    await writer.wait_closed()
