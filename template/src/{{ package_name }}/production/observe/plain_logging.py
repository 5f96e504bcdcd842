"""Every log record is a line on stderr, its traceback beneath, where the logging feature is absent or off.

stdout is the protocol's under stdio, so nothing here ever writes there.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

QUIET = ("httpcore2", "httpx2", "mcp.server.streamable_http", "mcp.server.streamable_http_manager")
"""Loggers that say something about every request, with whole URLs and headers in it: warnings only."""

REPEATS = "uvicorn.error"
"""Says of start and stop what `startup` and `lifecycle` have said: below warnings at DEBUG only."""

_processors: list[Processor] = []
"""What structlog runs. Loggers keep this very list from their first use on, so it is changed in place."""


class RootHandler(logging.Handler):
    """The root's handler of this package, known by its type, so that the next configuration finds and replaces it."""


class _Plain(RootHandler):
    def emit(self, record: logging.LogRecord) -> None:
        at = datetime.fromtimestamp(record.created, UTC)
        message = one_line(formatted(record.msg, record.args))
        lines = [f"{at:%Y-%m-%dT%H:%M:%S}Z {record.levelname:<8} {record.name}: {message}"]
        if record.exc_info and record.exc_info[0] is not None:
            lines += traceback.format_exception(*record.exc_info)
        if record.stack_info:
            lines.append(record.stack_info)
        if sys.stderr is None:  # where a process has no console at all
            return
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more: no reason to fail a call or a stop
            sys.stderr.write("\n".join(line.rstrip("\n") for line in lines) + "\n")


def one_line(text: str) -> str:
    """`text` with its line breaks and other control characters escaped: it can neither forge a line nor colour one."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def configure(level: str) -> None:
    """Logs from `level` on, to stderr. The last call of this or of the logging feature wins in the whole process."""
    use(_Plain(), [structlog.stdlib.filter_by_level, _as_record], level)


def use(handler: RootHandler, processors: Iterable[Processor], level: str) -> None:
    """Makes `handler` the root's, in place of an earlier one of this package, and `processors` structlog's."""
    root = logging.getLogger()
    for earlier in [found for found in root.handlers if isinstance(found, RootHandler)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.getLogger(REPEATS).setLevel(root.level if root.level <= logging.DEBUG else max(logging.WARNING, root.level))
    _processors[:] = processors
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def formatted(message: object, arguments: object) -> str:
    """`message % arguments` as the standard library does it, and still a message where that cannot be done."""
    if isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], dict):
        arguments = arguments[0]
    try:
        return str(message) % arguments if arguments else str(message)
    except Exception as error:
        return message if isinstance(message, str) else f"message that cannot be shown: {error.__class__.__name__}"


def _as_record(logger: WrappedLogger, method_name: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    message = formatted(event.pop("event", ""), event.pop("positional_args", ()))
    options = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return (" ".join((message, *(f"{key}={value!r}" for key, value in event.items()))),), options
