"""A log record of every HTTP request: all at level DEBUG, a sample of them at INFO."""

from __future__ import annotations

import logging
import time
from random import SystemRandom

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..registry import Registry

MAX_PATH = 200
"""Characters of a path in the log."""

CLIENT_CLOSED = 499
"""The status, as nginx logs it, of a request whose client left before the response began."""

_random = SystemRandom()
logger = logging.getLogger(__name__)


class AccessLog:
    """ASGI middleware that logs method, path, status, duration and client address of requests when they have ended."""

    def __init__(self, registry: Registry, app: ASGIApp) -> None:
        self._app = app
        self._registry = registry
        self._sampling = registry.config.log_access_sampling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        level = logging.INFO if _random.random() < self._sampling else logging.DEBUG
        if scope["type"] != "http" or not logger.isEnabledFor(level):
            await self._app(scope, receive, send)
            return
        status = CLIENT_CLOSED
        started = time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except BaseException:
            status = 500 if status == CLIENT_CLOSED else status
            raise
        finally:
            fields = {
                "http_method": scope["method"],
                "path": scope["path"][:MAX_PATH],
                "http_status": status,
                "duration_ms": round((time.perf_counter() - started) * 1000, 3),
                "client_id": self._registry.identify(Request(scope)).id,
            }
            logger.log(level, "http request", extra=fields)
