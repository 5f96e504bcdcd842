"""Every call and log record is one JSON object on one line of stderr, without secrets, and waits for no reader.

structlog's loggers, the standard library's (uvicorn, mcp, httpx2) and warnings share one pipeline. What is logged
inside a call bears the call's tool, client and request id, and the ids of the running span.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NoReturn

import orjson
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, WrappedLogger

from ..config import coloured
from ..registry import Registry
from ..request import CallNext, MCPRequest, Middleware, Result
from . import plain_logging
from .redaction import Redactor, configured_secrets, shorten

MAX_LINE = 16_000
"""Bytes of a line. Docker's json-file driver cuts a longer one at 16 KiB, and neither half is JSON."""
MAX_EXCEPTION = 8192
"""Characters of a traceback: its end, where the exception stands, and as much of its beginning."""
MAX_WAITING = 8 * 1024 * 1024
"""Bytes that wait while nobody reads stderr; further lines are dropped and counted."""
FLUSH_SECONDS = 1.0

RESERVED = frozenset(("timestamp", "level", "severity", "logger", "message", "status"))
"""Keys that mean something to log stores (Datadog takes `status` for the level): one's own gets a `_` behind it."""

LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "exception": 40, "critical": 50, "fatal": 50}

Renderer = Callable[[dict[str, Any]], bytes]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

_in_call: ContextVar[dict[str, Any] | None] = ContextVar("in_call", default=None)


def install(registry: Registry) -> None:
    config = registry.config
    console = config.log_format == "console" or (config.log_format == "auto" and os.isatty(2))
    pipeline = Pipeline(
        Redactor(configured_secrets(config)),
        Console(colours=coloured(sys.stderr)) if console else as_json,
        STDERR.write,
    )
    plain_logging.use(Handler(pipeline), [pipeline.from_structlog], config.log_level)
    _capture_what_python_prints()
    registry.middleware["logging"] = log_calls(pipeline, arguments=config.log_arguments)
    registry.on_shutdown.append(_flush)


def log_calls(pipeline: Pipeline, *, arguments: bool) -> Middleware:
    """One line for each call, when it has ended; `arguments` adds the call's, redacted."""
    logger = logging.getLogger(__name__)

    async def middleware(request: MCPRequest, call_next: CallNext) -> Result:
        context: dict[str, Any] = {
            "tool": request.target_label,
            "client_id": request.caller.id,
            "request_id": request.request_id,
        }
        token = _in_call.set(context)
        started = time.perf_counter()
        try:
            return await call_next(request)
        finally:
            level = 20 if request.status == "success" else 30
            if logger.isEnabledFor(level):
                fields: dict[str, Any] = {
                    "duration_ms": round((time.perf_counter() - started) * 1000, 3),
                    "outcome": request.status,
                }
                if request.error_type is not None:
                    fields["error_type"] = request.error_type
                if arguments:
                    fields["arguments"] = pipeline.redactor.value(request.arguments)
                pipeline.write(level, __name__, "tool call", fields)
            _in_call.reset(token)

    return middleware


class Pipeline:
    """The way of every record, from wherever it comes, to one line. Never raises."""

    def __init__(self, redactor: Redactor, render: Renderer, output: Callable[[bytes], object]) -> None:
        self.redactor = redactor
        self._render = render
        self._output = output

    def from_structlog(self, logger: WrappedLogger, method_name: str, event: EventDict) -> NoReturn:
        """structlog's only processor: it writes the line itself, which costs half of a chain of them."""
        level = LEVELS.get(method_name, 20)
        if logger.isEnabledFor(level):
            message = plain_logging.formatted(event.pop("event", ""), event.pop("positional_args", ()))
            exception = event.pop("exc_info", None)
            stack = event.pop("stack_info", None)
            fields = {**structlog.contextvars.get_contextvars(), **event}
            self.record(level, logger.name, message, fields, exception, stack)
        raise structlog.DropEvent

    def record(
        self, level: int, logger: str, message: str, fields: Mapping[str, Any], exception: object, stack: object = None
    ) -> None:
        """Writes what came from outside this module: redacted, and with `exception` as one text."""
        try:
            message = self.redactor.shortened(message)
            safe = self.redactor.value(fields) if fields else {}
            found = _exc_info(exception)
            if found is not None:
                safe["error_type"] = found[0].__qualname__
                safe["exception"] = self._long("".join(traceback.format_exception(*found)))
            if stack:
                safe["stack"] = self._long(stack if isinstance(stack, str) else "".join(traceback.format_stack()))
        except Exception as error:
            safe = {"logging_failed": type(error).__name__}
        self.write(level, logger, message, safe)

    def _long(self, text: str) -> str:
        # Redacted before it is cut where it will be seen: half a secret is one too.
        text = _ends(self.redactor.without_configured(text), 8 * MAX_EXCEPTION)
        return _ends(self.redactor.text(text), MAX_EXCEPTION)

    def write(self, level: int, logger: str, message: str, fields: dict[str, Any]) -> None:
        """Writes one line from values that are redacted and of JSON's types."""
        name = _LEVEL_NAMES.get(level) or _nearest(level)
        line: dict[str, Any] = {
            "timestamp": datetime.now(UTC),
            "level": name,
            "severity": name.upper(),
            "logger": logger,
            "message": message,
        }
        context = _in_call.get()
        if context is not None:
            line.update(context)
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            line["trace_id"] = f"{span.trace_id:032x}"
            line["span_id"] = f"{span.span_id:016x}"
        for key, value in fields.items():
            while key in line or key in RESERVED:
                key += "_"
            line[key] = value
        self._output(_bounded(line, self._render))


class Handler(plain_logging.RootHandler):
    """Brings the standard library's records into the pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline

    def handle(self, record: logging.LogRecord) -> bool:
        # Without the lock of `Handler.handle`: the pipeline needs none.
        passed = bool(self.filter(record))
        if passed:
            self.emit(record)
        return passed

    def emit(self, record: logging.LogRecord) -> None:
        message = plain_logging.formatted(record.msg, record.args)
        extra = {key: value for key, value in record.__dict__.items() if key not in _OF_EVERY_RECORD}
        self._pipeline.record(record.levelno, record.name, message, extra, record.exc_info, record.stack_info)


_OF_EVERY_RECORD = frozenset(
    # `color_message` is uvicorn's second copy of its message.
    (*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message")
)

_LEVEL_NAMES = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}


def _nearest(level: int) -> str:
    return _LEVEL_NAMES[min(50, max(10, level // 10 * 10))]


def _exc_info(given: object) -> ExcInfo | None:
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    found = given if isinstance(given, tuple) else sys.exc_info() if given else (None,)
    return found if isinstance(found[0], type) else None


def _ends(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - limit} characters)\n{text[-half:]}"


def as_json(line: dict[str, Any]) -> bytes:
    """`line` as one JSON object and a newline; times in UTC with `Z`.

    Raises:
        TypeError: a text has a lone surrogate, or a value is not JSON's.
    """
    return orjson.dumps(line, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


class Console:
    """For people: the time of day, level and message, then the rest; a traceback beneath."""

    _COLOURS: Mapping[str, str] = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, line: dict[str, Any]) -> bytes:
        rest = dict(line)
        at, level, message = rest.pop("timestamp"), rest.pop("level"), rest.pop("message")
        del rest["severity"]
        rest["logger"] = rest.pop("logger")  # who says it is the last one wants to know
        below = [str(rest.pop(name)) for name in ("exception", "stack") if name in rest]
        words = " ".join(f"{self._style(key, '2')}={_plain(value)}" for key, value in rest.items())
        first = f"{at:%H:%M:%S}.{at.microsecond // 1000:03d} {self._style(f'{level:<8}', self._COLOURS[level])}"
        text = "\n".join((f"{first} {plain_logging.one_line(message)}  {words}", *below))
        return f"{text}\n".encode("utf-8", "backslashreplace")

    def _style(self, text: str, style: str) -> str:
        text = plain_logging.one_line(text)
        return f"\x1b[{style}m{text}\x1b[0m" if self._colours else text


def _plain(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ",".join(value)
    return plain_logging.one_line(value) if isinstance(value, str) and " " not in value else repr(value)


def _bounded(line: dict[str, Any], render: Renderer) -> bytes:
    """`line` rendered in at most `MAX_LINE` bytes, whatever is in it."""
    try:
        rendered = render(line)
    except (TypeError, ValueError):
        line = {_utf8(key): _cut(value, MAX_EXCEPTION) for key, value in line.items()}
        rendered = render(line)
    for limit in (4096, 1024, 256, 32):
        if len(rendered) <= MAX_LINE:
            return rendered
        rendered = render({key: _cut(value, limit) for key, value in line.items()} | {"shortened": True})
    if len(rendered) <= MAX_LINE:
        return rendered
    first = dict(list(line.items())[:12])
    return render({key[:32]: _cut(value, 256) for key, value in first.items()} | {"shortened": True})


def _cut(value: Any, limit: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, datetime)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    return _utf8(shorten(text, limit))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class Stderr:
    """Writes whole lines to stderr and never waits: what its reader does not take at once waits in a bounded queue.

    A pipe that nobody reads blocks its writer after 64 KiB, and with it every call and probe of the server. So a line
    is written at once only where `poll` says that it cannot block, which holds up to `PIPE_BUF` bytes (POSIX: such a
    write is atomic too). Without `poll`, as on Windows, it is written in any case.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._poll = _poll(descriptor)

    def write(self, line: bytes) -> None:
        with self._changed:
            if self._poll is None:
                _write_all(self._descriptor, line)
            elif self._waiting or len(line) > select.PIPE_BUF or not self._poll.poll(0):
                self._enqueue(line)
            else:
                self._write_now(line)

    def flush(self, seconds: float) -> bool:
        """Waits until nothing waits any more, at most `seconds`; returns whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    @property
    def waits(self) -> bool:
        """Whether lines wait for the reader."""
        return bool(self._waiting)

    def _write_now(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
        except BlockingIOError:
            written = 0
        except OSError:  # closed: there is nowhere left to say so
            return
        if written < len(line):
            self._enqueue(line[written:])

    def _enqueue(self, line: bytes) -> None:
        if self._bytes + len(line) > MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(line)
        self._bytes += len(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._drain, name="stderr", daemon=True)
            self._thread.start()
            atexit.register(self.flush, FLUSH_SECONDS)
        self._changed.notify_all()

    def _drain(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                line = self._waiting[0]
            _write_all(self._descriptor, line)
            with self._changed:
                self._waiting.popleft()
                self._bytes -= len(line)
                if not self._waiting and self._dropped:
                    self._enqueue(_lines_lost(self._dropped))
                    self._dropped = 0
                self._changed.notify_all()


def _poll(descriptor: int) -> select.poll | None:
    if sys.platform == "win32":
        return None
    found = select.poll()
    found.register(descriptor, select.POLLOUT)
    return found


def _write_all(descriptor: int, line: bytes) -> None:
    """Writes `line` whole and waits as long as that takes; gives up where stderr is closed."""
    ready = _poll(descriptor)
    while line:
        try:
            line = line[os.write(descriptor, line) :]
        except BlockingIOError:  # a parent process made the pipe non-blocking
            if ready is not None:
                ready.poll()
        except OSError:
            return


def _lines_lost(count: int) -> bytes:
    return as_json(
        {
            "timestamp": datetime.now(UTC),
            "level": "warning",
            "severity": "WARNING",
            "logger": __name__,
            "message": "log lines were dropped: nobody read stderr",
            "dropped": count,
        }
    )


STDERR = Stderr(2)
"""The process has one, however many servers."""


async def _flush() -> None:
    if STDERR.waits:
        await asyncio.to_thread(STDERR.flush, FLUSH_SECONDS)


def _capture_what_python_prints() -> None:
    """Warnings and unhandled exceptions become lines too, unless somebody else takes care of them."""
    logging.captureWarnings(True)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _unhandled
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _unhandled_in_thread


def _unhandled(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
    else:
        logging.getLogger(__name__).critical("unhandled exception", exc_info=(kind, error, where))


def _unhandled_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        logging.getLogger(__name__).critical(
            "unhandled exception in a thread", exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
        )
