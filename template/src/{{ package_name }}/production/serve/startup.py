"""What the operator reads when the server starts, and what `--check` reports."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urljoin

import structlog

from ..caller import STDIO
from ..config import ConfigError, coloured
from ..observe.health import HealthReport, report
from ..registry import Registry
from ..sdk import ProductionServer
from . import probes, tool_loader
from .http import ENDPOINT
from .listen import base_url
from .probes import ProbeResult

log = structlog.stdlib.get_logger(__name__)


def url(listener: socket.socket) -> str:
    """The endpoint's URL on this machine."""
    return f"{base_url(listener)}{ENDPOINT}"


def may_serve_http(registry: Registry) -> None:
    """Asks every feature whether this configuration may be served over HTTP.

    Raises:
        ConfigError: it may not; one line for each reason.
    """
    problems = [problem for start_check in registry.http.start_checks for problem in start_check()]
    if problems:
        raise ConfigError(problems)


def announce_when_started(registry: Registry, address: str) -> None:
    """Log what serves where, once all startup callbacks have passed."""

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


COLOURS = {"ok": "32", "warning": "33", "failed": "31"}


class Row(NamedTuple):
    """A line of the report."""

    name: str
    text: str
    state: str = ""
    """One of `COLOURS`; nothing where there is nothing to judge."""


async def check(server: ProductionServer) -> tuple[list[str], bool]:
    """The report of `--check` as lines, and whether the server is ready and all that it talks to answers.

    The startup callbacks run, so that what tools connect to is tried as well.
    """
    registry = server.registry
    async with server.running():
        results = await probes.run_all(registry)
        health = await report(registry, STDIO)
    good = health.status != "unhealthy" and not any(result.problem for result in results.values())
    rows = [*_server(server), *_probes(results), *_findings(server, health)]
    status = "degraded" if health.status == "healthy" and not good else health.status
    rows.append(Row("status", status, "failed" if not good else "ok" if status == "healthy" else "warning"))
    width = max(len(row.name) for row in rows)
    colours = COLOURS if coloured(sys.stdout) else {}
    return [f"{row.name:<{width}}  {_styled(row.text, colours.get(row.state))}" for row in rows], good


def _server(server: ProductionServer) -> Iterator[Row]:
    registry = server.registry
    config = registry.config
    yield Row("server", f"{registry.about.name} {registry.about.version}")
    http = f"http on {config.host}:{config.port}"
    yield Row("transport", config.transport if config.transport == "stdio" else http)
    for name, address in registry.http.addresses.items():
        yield Row(name, address)
    yield Row("features", _list(sorted(registry.features)))
    yield Row("tools", _list(tool.name for tool in server.registered_tools()))


def _probes(results: Mapping[str, ProbeResult]) -> Iterator[Row]:
    for name, result in results.items():
        if result.problem is None:
            yield Row(name, f"ok: {result.target} ({result.milliseconds} ms)", "ok")
        else:
            yield Row(name, f"failed: {result.target}: {result.problem}", "failed")


def _findings(server: ProductionServer, health: HealthReport) -> Iterator[Row]:
    for variable, state in health.auth_config.items():
        yield Row("variable", f"{variable} is {state}", "ok" if state == "configured" else "warning")
    for notice in server.registry.notices:
        yield Row("notice", notice, "warning")
    for text in tool_loader.advice(server.registered_tools()):
        yield Row("advice", text, "warning")
    for problem in health.problems:
        yield Row("problem", problem, "failed" if health.status == "unhealthy" else "warning")


def _styled(text: str, style: str | None) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
