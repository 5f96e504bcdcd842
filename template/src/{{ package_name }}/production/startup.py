"""What the operator reads when the server starts, and what `--check` reports."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import structlog

from . import tools
from .app import App, ProductionServer
from .config import ConfigError
from .health import report
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
        log.info(
            "serving",
            server=app.about.name,
            version=app.about.version,
            transport=app.config.transport,
            address=address,
            features=sorted(app.features),
        )
        for notice in app.notices:
            log.warning(notice)

    app.on_startup.append(announce)


async def check(server: ProductionServer) -> tuple[list[str], bool]:
    """The report of `--check` as lines, and whether the server is ready for traffic.

    The startup callbacks run, so that what tools connect to is tried as well.
    """
    app = server.production
    config = app.config
    async with server.running():
        found = await report(app, STDIO)
        names = [tool.name for tool in await server.list_tools()]
    rows = [
        ("server", f"{app.about.name} {app.about.version}"),
        ("transport", config.transport if config.transport == "stdio" else f"http on {config.host}:{config.port}"),
        ("features", _list(sorted(app.features))),
        ("tools", _list(names)),
        ("upstream", config.upstream_base_url),
        *(("variable", f"{name} is {state}") for name, state in found.auth_config.items()),
        *(("notice", notice) for notice in app.notices),
        *(("advice", text) for text in tools.advice(server._tool_manager.list_tools())),
        *(("problem", problem) for problem in found.problems),
        ("status", found.status),
    ]
    return [f"{name:<10} {value}" for name, value in rows], found.status != "unhealthy"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
