"""A bound on the log lines that clients can cause, and the count of those that are left out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

LOG_INTERVAL_SECONDS = 10.0
"""The interval in which the number of lines is limited."""

LIBRARIES = (
    "anyio",
    "asyncio",
    "h11",
    "httptools",
    "mcp",
    "opentelemetry",
    "sse_starlette",
    "starlette",
    "uvicorn",
    "websockets",
)
"""Loggers, with those below them, of libraries that handle what arrives from clients."""

MAX_LINES = 5
"""Lines in an interval from one place in the code of a library."""


class Throttle:
    """Admits lines in each `LOG_INTERVAL_SECONDS`, and counts the others.

    Args:
        lines: Greatest number of lines in an interval.
        summarize: Gets the number of lines left out, where no later line reports it before the interval ends.
    """

    def __init__(self, lines: int, summarize: Callable[[int], object]) -> None:
        self._lines = lines
        self._summarize = summarize
        self._left = 0
        self._until = 0.0
        self._suppressed = 0
        self._timer: asyncio.TimerHandle | None = None

    def admit(self) -> int | None:
        """Return the number of lines left out before this one, or `None` if it has to be left out too."""
        now = time.monotonic()
        if now >= self._until:
            self._left, self._until = self._lines, now + LOG_INTERVAL_SECONDS
        if not self._left:
            self._suppressed += 1
            if self._timer is None:
                self._start_timer(self._until - now)
            return None
        self._left -= 1
        return self._take()

    def _take(self) -> int:
        suppressed, self._suppressed = self._suppressed, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return suppressed

    def _start_timer(self, seconds: float) -> None:
        try:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end_interval)
        except RuntimeError:  # a thread: the next line has the count
            self._timer = None

    def _end_interval(self) -> None:
        self._timer = None
        if suppressed := self._take():
            self._summarize(suppressed)


class LibraryFilter(logging.Filter):
    """Throttles the records of `LIBRARIES`, by the place in the code that they come from."""

    def __init__(self) -> None:
        super().__init__()
        self._throttles: dict[tuple[str, int], Throttle] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO or record.name.partition(".")[0] not in LIBRARIES:
            return True
        place = (record.name, record.lineno)
        throttle = self._throttles.get(place)
        if throttle is None:
            name, level = record.name, record.levelno
            logger = logging.getLogger(__name__)
            throttle = self._throttles[place] = Throttle(
                MAX_LINES, lambda count: logger.log(level, "lines of %s left out", name, extra={"suppressed": count})
            )
        suppressed = throttle.admit()
        if suppressed:
            record.suppressed = suppressed
        return suppressed is not None
