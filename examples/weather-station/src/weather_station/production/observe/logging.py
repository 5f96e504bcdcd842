"""Structured logs: every request and every log record as one redacted line on stderr.

Records of structlog, of the standard library (uvicorn, mcp, httpx2) and of Python's warnings go through one
`RecordWriter`. A record logged while a request is handled has the request's tool, client and id, and the ids of the
running span.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, WrappedLogger

from ..registry import Registry
from ..request import PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, CallNext, MCPRequest, Middleware, Result, current_request
from ..terminal import coloured
from . import plain_logging
from .access_log import AccessLog
from .log_formats import Console, Format, as_json, bounded
from .redaction import Redactor, class_name, configured_secrets
from .stderr import FLUSH_SECONDS, STDERR
from .throttle import Throttle

MAX_EXCEPTION = 8192
"""Characters of a traceback: half of them from its beginning, half from its end, where the exception is."""

MAX_REJECTED = 20
"""Lines in ten seconds about requests that are rejected for one reason."""

RESERVED_FIELDS = frozenset(("timestamp", "level", "severity", "logger", "message", "status"))
"""Fields with a meaning to log stores (Datadog takes `status` for the level). Other fields of these names get a `_`."""

METHOD_LEVELS = {"debug": 10, "warning": 30, "warn": 30, "error": 40, "exception": 40, "critical": 50, "fatal": 50}
"""Levels of structlog's methods; that of any other method is 20."""
LEVEL_NAMES = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}

RECORD_ATTRIBUTES = frozenset(
    # `color_message` is uvicorn's second copy of its message.
    (*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message")
)
"""Attributes of a `LogRecord` that are not fields of the caller's `extra`."""

TARGET_FIELDS = {TOOLS_CALL: "tool", PROMPTS_GET: "prompt", RESOURCES_READ: "resource"}
"""The field that names the target of a request, by the request's method."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def install(registry: Registry) -> None:
    config = registry.config
    console = config.log_format == "console" or (config.log_format == "auto" and os.isatty(2))
    writer = RecordWriter(
        Redactor(configured_secrets(registry), registry.secrets),
        Console(colours=coloured(sys.stderr)) if console else as_json,
        STDERR.write,
        registry.log_sinks,
    )
    plain_logging.use(StdlibHandler(writer), [writer.process_event], config.log_level)
    _log_warnings_and_uncaught_exceptions()
    registry.middleware["logging"] = log_calls(writer, arguments=config.log_arguments)
    if config.log_access_sampling or config.log_level == "DEBUG":
        registry.http.wrappers.append(partial(AccessLog, registry))
    registry.on_shutdown.append(_flush)


def log_calls(writer: RecordWriter, *, arguments: bool) -> Middleware:
    """Return middleware that logs each request when it has ended, with its redacted arguments if `arguments` is set."""
    logger = logging.getLogger(__name__)
    throttles: dict[str | None, Throttle] = {}

    def left_out(reason: str | None, count: int) -> None:
        writer.write_line(logging.WARNING, __name__, "requests rejected", {"error_type": reason, "suppressed": count})

    def admit(reason: str | None) -> int | None:
        throttle = throttles.get(reason)
        if throttle is None:
            throttle = throttles[reason] = Throttle(MAX_REJECTED, partial(left_out, reason))
        return throttle.admit()

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        started = time.perf_counter_ns()
        try:
            return await call_next(request)
        finally:
            level = logging.INFO if request.status in ("success", "input_required") else logging.WARNING
            # Nothing else bounds how often a caller is rejected.
            suppressed = admit(request.error_type) if request.status == "rejected" else 0
            if suppressed is not None and logger.isEnabledFor(level):
                fields: dict[str, Any] = {
                    "duration_ms": (time.perf_counter_ns() - started) // 1000 / 1000,
                    "outcome": request.status,
                }
                if suppressed:
                    fields["suppressed"] = suppressed
                if request.error_type is not None:
                    fields["error_type"] = request.error_type
                if arguments and "arguments" in request.params:
                    fields["arguments"] = writer.redactor.value(request.params["arguments"])
                if bound := structlog.contextvars.get_contextvars():
                    for key, value in writer.redactor.value(bound).items():
                        fields[f"{key}_" if key in fields else key] = value
                writer.write_line(level, __name__, "tool call" if request.method == TOOLS_CALL else "request", fields)

    return middleware


class RecordWriter:
    """Redacts log records and writes each as one line. Never raises an exception."""

    def __init__(
        self,
        redactor: Redactor,
        to_line: Format,
        output: Callable[[bytes], object],
        sinks: Sequence[Callable[[int, Mapping[str, Any]], None]] = (),
    ) -> None:
        self.redactor = redactor
        self._sinks = sinks
        self._to_line = to_line
        self._output = output

    def process_event(self, logger: WrappedLogger, method_name: str, event: EventDict) -> NoReturn:
        """Write an event of structlog, as its only processor.

        Writing here and dropping the event costs half of a chain of processors that ends in a logger.
        """
        level = METHOD_LEVELS.get(method_name, 20)
        if logger.isEnabledFor(level):
            message = plain_logging.format_message(event.pop("event", ""), event.pop("positional_args", ()))
            exc_info = event.pop("exc_info", None)
            stack = event.pop("stack_info", None)
            fields = {**structlog.contextvars.get_contextvars(), **event}
            self.write_record(level, logger.name, message, fields, exc_info, stack)
        raise structlog.DropEvent

    def write_record(
        self, level: int, logger: str, message: str, fields: Mapping[str, Any], exc_info: object, stack: object = None
    ) -> None:
        """Redact a record and write it. `exc_info` and `stack` are what the standard library accepts."""
        try:
            message = self.redactor.shortened(message)
            redacted = self.redactor.value(fields) if fields else {}
            exception = _exception_info(exc_info)
            if exception is not None:
                redacted["error_type"] = self.redactor.value(exception[0].__qualname__)
                redacted["exception"] = self._redacted_trace("".join(traceback.format_exception(*exception)))
            if stack:
                text = stack if isinstance(stack, str) else "".join(traceback.format_stack())
                redacted["stack"] = self._redacted_trace(text)
        except BaseException as error:  # raised by a method of what was logged; nothing is awaited here
            redacted = {"logging_failed": class_name(error)}
        self.write_line(level, logger, message, redacted)

    def write_line(self, level: int, logger: str, message: str, fields: dict[str, Any]) -> None:
        """Write redacted values of JSON's types as one line, with the fields of the running request and span."""
        name = LEVEL_NAMES.get(level) or LEVEL_NAMES[min(50, max(10, level // 10 * 10))]
        line: dict[str, Any] = {
            "timestamp": datetime.now(UTC),
            "level": name,
            "severity": name.upper(),
            "logger": logger,
            "message": message,
        }
        if (request := current_request.get()) is not None:
            line["method"] = request.method
            if (target := TARGET_FIELDS.get(request.method)) is not None:
                line[target] = request.target_label
            line["client_id"], line["request_id"] = request.caller.id, request.request_id
        if (running := trace.get_current_span()) is not trace.INVALID_SPAN:
            span = running.get_span_context()
            if span.is_valid:
                line["trace_id"] = f"{span.trace_id:032x}"
                line["span_id"] = f"{span.span_id:016x}"
        for key, value in fields.items():
            while key in line or key in RESERVED_FIELDS:
                key += "_"
            line[key] = value
        self._output(bounded(line, self._to_line))
        for sink in self._sinks:
            sink(level, line)

    def _redacted_trace(self, text: str) -> str:
        if len(text) <= MAX_EXCEPTION:
            return self.redactor.text(text)
        half = MAX_EXCEPTION // 2
        left_out = f"... ({len(text) - MAX_EXCEPTION} characters)"
        return "\n".join((self.redactor.beginning(text, half), left_out, self.redactor.end(text, half)))


class StdlibHandler(plain_logging.RootHandler):
    """Passes the standard library's records to a `RecordWriter`."""

    def __init__(self, writer: RecordWriter) -> None:
        super().__init__()
        self._writer = writer

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of `logging.Handler.handle`, which the writer does not need.
        passed = bool(self.filter(record))
        if passed:
            self.emit(record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        message = plain_logging.format_message(record.msg, record.args)
        extra = {key: value for key, value in record.__dict__.items() if key not in RECORD_ATTRIBUTES}
        self._writer.write_record(record.levelno, record.name, message, extra, record.exc_info, record.stack_info)


def _exception_info(exc_info: object) -> ExcInfo | None:
    if isinstance(exc_info, BaseException):
        return type(exc_info), exc_info, exc_info.__traceback__
    info = exc_info if isinstance(exc_info, tuple) else sys.exc_info() if exc_info else (None,)
    return info if isinstance(info[0], type) else None


async def _flush() -> None:
    if not STDERR.flush(0):
        await asyncio.to_thread(STDERR.flush, FLUSH_SECONDS)


def _log_warnings_and_uncaught_exceptions() -> None:
    """Log warnings and uncaught exceptions, unless another hook than Python's own is set."""
    logging.captureWarnings(True)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
    else:
        logging.getLogger(__name__).critical("unhandled exception", exc_info=(kind, error, where))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        logging.getLogger(__name__).critical(
            "unhandled exception in a thread", exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
        )
