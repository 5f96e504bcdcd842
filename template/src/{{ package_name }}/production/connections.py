"""Whether what the server depends on answers: asked by `--check`, never while it serves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2

from .config import ProductionConfig, exports_traces, traces_endpoint

ANSWER_SECONDS = 5.0
"""How long each connection may take; all are asked at once."""

PORTS = {"http": 80, "https": 443, "redis": 6379, "rediss": 6379}


@dataclass(frozen=True, slots=True)
class Connection:
    """Something outside that the server uses."""

    target: str
    """Where it is, without credentials."""
    ask: Callable[[], Awaitable[object]]
    """Returns when it answers, raises with the reason when it does not."""


@dataclass(frozen=True, slots=True)
class Answer:
    target: str
    problem: str | None
    milliseconds: int


def of(config: ProductionConfig, features: tuple[str, ...]) -> dict[str, Connection]:
    """The connections that the configuration alone names, by what they are for; features add theirs."""
    upstream = config.upstream_base_url
    found = {"upstream": Connection(upstream, lambda: answers_http(upstream))}
    if "telemetry" in features and exports_traces(config):
        collector = traces_endpoint(config)
        ask = accepts if config.telemetry_protocol == "grpc" else answers_http
        found["traces"] = Connection(without_credentials(collector), lambda: ask(collector))
    return found


async def ask_all(connections: Mapping[str, Connection]) -> dict[str, Answer]:
    """Asks all at once; none takes longer than `ANSWER_SECONDS`."""
    answers = await asyncio.gather(*(_ask(connection) for connection in connections.values()))
    return dict(zip(connections, answers, strict=True))


async def _ask(connection: Connection) -> Answer:
    problem: str | None = None
    started = time.perf_counter()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await connection.ask()
    except TimeoutError:
        problem = f"no answer within {ANSWER_SECONDS:g} s"
    except Exception as error:
        problem = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(error).split())) or type(error).__name__
    return Answer(connection.target, problem, round((time.perf_counter() - started) * 1000))


async def answers_http(url: str) -> None:
    """Returns when something answers at `url` over HTTP, with whatever status: by its name, TLS and the proxies set.

    Raises:
        httpx2.HTTPError: nothing does.
    """
    async with httpx2.AsyncClient(timeout=ANSWER_SECONDS) as client:
        await client.head(url)


async def accepts(url: str) -> None:
    """Returns when the host and port of `url` accept a TCP connection; gRPC has no simpler question.

    Raises:
        OSError: they do not.
    """
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port or PORTS.get(parts.scheme, 0))
    writer.close()
    await writer.wait_closed()


def without_credentials(url: str) -> str:
    """`url` without user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
