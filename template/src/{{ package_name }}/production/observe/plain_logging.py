"""Plain logs on stderr where the logging feature is absent or off, and what both ways of logging share.

Nothing is written to stdout, which carries the protocol over stdio.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ..config import secret_texts, without_secrets
from ..terminal import block, one_line
from .throttle import LibraryFilter

REQUEST_LOGGERS = ("httpcore2", "httpx2", "mcp.server.streamable_http", "mcp.server.streamable_http_manager")
"""Loggers that log every request with its whole URL and headers: only their warnings are kept."""

LIFECYCLE_LOGGER = "uvicorn.error"
"""uvicorn's logger. It logs start and stop, which `serve` logs too: except at level DEBUG, only warnings are kept."""

_processors: list[Processor] = []
"""structlog's processors. Cached loggers keep this list, so it is changed in place."""


class RootHandler(logging.Handler):
    """Base of this package's handlers of the root logger. The next configuration replaces a handler of this type."""


class PlainHandler(RootHandler):
    """Writes a record as one line, with the traceback below, without the secrets of the environment."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets = secret_texts()

    def emit(self, record: logging.LogRecord) -> None:
        time = datetime.fromtimestamp(record.created, UTC)
        message = format_message(record.msg, record.args)
        lines = [one_line(f"{time:%Y-%m-%dT%H:%M:%S}Z {record.levelname:<8} {record.name}: {message}")]
        if record.exc_info and record.exc_info[0] is not None:
            lines.append(block("".join(traceback.format_exception(*record.exc_info))))
        if record.stack_info:
            lines.append(block(record.stack_info))
        if sys.stderr is None:  # a process without a console, such as pythonw
            return
        with contextlib.suppress(OSError, ValueError):  # stderr is closed: the call that logged must not fail
            sys.stderr.write(without_secrets("\n".join(lines), self._secrets) + "\n")


def configure(level: str) -> None:
    """Log records of at least `level` as plain lines to stderr."""
    use(PlainHandler(), [structlog.stdlib.filter_by_level, _as_record], level)


def use(handler: RootHandler, processors: Iterable[Processor], level: str) -> None:
    """Log through `handler` and structlog's `processors`, in place of an earlier configuration by this function."""
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, RootHandler)]:
        root.removeHandler(earlier)
    handler.addFilter(LibraryFilter())
    root.addHandler(handler)
    root.setLevel(level)
    for name in REQUEST_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    lifecycle_level = root.level if root.level <= logging.DEBUG else max(logging.WARNING, root.level)
    logging.getLogger(LIFECYCLE_LOGGER).setLevel(lifecycle_level)
    _processors[:] = processors
    structlog.configure(
        processors=_processors,
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def format_message(message: object, arguments: object) -> str:
    """Return `message % arguments` as the standard library does, or `message` alone where they do not fit."""
    try:
        if isinstance(arguments, tuple) and len(arguments) == 1 and isinstance(arguments[0], dict):
            arguments = arguments[0]
        return str.__str__(str(message) % arguments if arguments else str(message))
    except BaseException as error:  # raised by a method of what is logged; nothing is awaited here
        if issubclass(type(message), str):
            return str.__str__(cast("str", message))
        return f"message that cannot be shown: {type(error).__name__}"


def _as_record(logger: WrappedLogger, method_name: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    """Return the arguments of the standard library's method: the message followed by the fields, and its options."""
    message = format_message(event.pop("event", ""), event.pop("positional_args", ()))
    options = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return (" ".join((message, *(f"{key}={value!r}" for key, value in event.items()))),), options
