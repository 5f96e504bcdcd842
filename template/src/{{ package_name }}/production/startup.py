"""What the operator reads when the server starts, and what `--check` reports."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urljoin

import structlog

from . import connections, tools
from .app import App, ProductionServer
from .config import ConfigError, coloured
from .connections import Answer
from .health import HealthReport, report
from .http import ENDPOINT
from .identity import STDIO

log = structlog.stdlib.get_logger(__name__)


def url(listener: socket.socket) -> str:
    """The endpoint's URL on this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{ENDPOINT}"


def may_serve_http(app: App) -> None:
    """Asks every feature whether this configuration may be served over HTTP.

    Raises:
        ConfigError: it may not; one line for each reason.
    """
    problems = [problem for start_check in app.start_checks for problem in start_check()]
    if problems:
        raise ConfigError(problems)


def prepare(app: App, address: str) -> None:
    """Takes what serving needs; once all startup callbacks have passed, the log says what serves where.

    Raises:
        ConfigError: something that serving needs, such as a port, cannot be had.
    """
    for take in app.before_start:
        take()

    async def announce() -> None:
        where = {"address": address}
        if app.metrics_address is not None:
            where["metrics"] = urljoin(address, app.metrics_address)
        log.info(
            "serving",
            server=app.about.name,
            version=app.about.version,
            transport=app.config.transport,
            **where,
            features=sorted(app.features),
        )
        for notice in app.notices:
            log.warning(notice)

    app.on_startup.append(announce)


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
    app = server.production
    async with server.running():
        asked = connections.of(app.config, app.features) | app.connections
        answers = await connections.ask_all(asked)
        found = await report(app, STDIO)
    good = found.status != "unhealthy" and not any(answer.problem for answer in answers.values())
    rows = [*_server(server), *_connections(answers), *_findings(server, found)]
    status = "degraded" if found.status == "healthy" and not good else found.status
    rows.append(Row("status", status, "failed" if not good else "ok" if status == "healthy" else "warning"))
    width = max(len(row.name) for row in rows)
    colours = COLOURS if coloured(sys.stdout) else {}
    return [f"{row.name:<{width}}  {_styled(row.text, colours.get(row.state))}" for row in rows], good


def _server(server: ProductionServer) -> Iterator[Row]:
    app = server.production
    config = app.config
    yield Row("server", f"{app.about.name} {app.about.version}")
    http = f"http on {config.host}:{config.port}"
    yield Row("transport", config.transport if config.transport == "stdio" else http)
    if app.metrics_address is not None:
        yield Row("metrics", app.metrics_address)
    yield Row("features", _list(sorted(app.features)))
    yield Row("tools", _list(tool.name for tool in server.registered_tools()))


def _connections(answers: Mapping[str, Answer]) -> Iterator[Row]:
    for name, answer in answers.items():
        if answer.problem is None:
            yield Row(name, f"ok: {answer.target} ({answer.milliseconds} ms)", "ok")
        else:
            yield Row(name, f"failed: {answer.target}: {answer.problem}", "failed")


def _findings(server: ProductionServer, found: HealthReport) -> Iterator[Row]:
    for variable, state in found.auth_config.items():
        yield Row("variable", f"{variable} is {state}", "ok" if state == "configured" else "warning")
    for notice in server.production.notices:
        yield Row("notice", notice, "warning")
    for text in tools.advice(server.registered_tools()):
        yield Row("advice", text, "warning")
    for problem in found.problems:
        yield Row("problem", problem, "failed" if found.status == "unhealthy" else "warning")


def _styled(text: str, style: str | None) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
