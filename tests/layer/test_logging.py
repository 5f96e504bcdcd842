"""Logs: what a running server writes to stderr."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import httpx2
import pytest
import structlog
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from opentelemetry import trace
from structlog.contextvars import bind_contextvars

from harness import (
    DEADLINE_SECONDS,
    HEADERS,
    NO_TOOLS,
    Serve,
    command,
    config,
    environment,
    log_lines,
    message,
    new_request,
    run_python,
    text_of,
)
from weather_station.production import get_logger
from weather_station.production.observe.log_formats import Console, as_json
from weather_station.production.observe.logging import RecordWriter, StdlibHandler, log_calls
from weather_station.production.observe.plain_logging import RootHandler
from weather_station.production.observe.redaction import MAX_TEXT, REDACTED, Redactor
from weather_station.production.observe.stderr import Stderr
from weather_station.production.request import MCPRequest, Result, current_request, reject
from weather_station.production.sdk import ProductionServer
from weather_station.production.terminal import coloured
from weather_station.server import create_server

Captured = pytest.CaptureFixture[str]

log = get_logger("own.tool")
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no poll: a blocked stderr blocks there")


def lines(capfd: Captured) -> list[dict[str, Any]]:
    """Return the lines on stderr, parsed; there are none on stdout."""
    captured = capfd.readouterr()
    assert captured.out == ""
    return log_lines(captured.err)


def calls(capfd: Captured) -> list[dict[str, Any]]:
    return [line for line in lines(capfd) if line["message"] == "tool call"]


def tools(server: ProductionServer) -> None:
    async def talk(note: str, ctx: Context[Any, Any]) -> str:
        log.info("from structlog", note=note)
        logging.getLogger("own.library").warning("from the %s", "standard library", extra={"note": note})
        await asyncio.create_task(_task(note))
        await to_thread.run_sync(lambda: log.info("from a thread", note=note))
        return note

    async def crash() -> str:
        raise LookupError("nobody may read this")

    async def fail() -> str:
        raise ToolError("the city is unknown")

    async def store(password: str, city: str) -> str:
        return city

    for tool in (talk, crash, fail, store):
        server.tool()(tool)


async def _task(note: str) -> None:
    log.info("from a task", note=note)


def test_a_call_is_one_json_object_on_one_line(serve: Serve, capfd: Captured) -> None:
    with serve() as server:
        server.call("health_check")
    (line,) = calls(capfd)

    assert list(line)[:5] == ["timestamp", "level", "severity", "logger", "message"]
    assert line["level"] == "info"
    assert line["severity"] == "INFO"
    assert line["logger"] == "weather_station.production.observe.logging"
    assert line["tool"] == "health_check"
    assert line["client_id"] == "127.0.0.1"
    assert re.fullmatch("[0-9a-f]{16}", line["request_id"])
    assert line["outcome"] == "success"
    assert line["duration_ms"] > 0
    assert "error_type" not in line


def test_every_line_inside_a_call_has_the_context_of_the_call(serve: Serve, capfd: Captured) -> None:
    with serve(tools) as server:
        server.call("talk", {"note": "first"})
        server.call("talk", {"note": "second"})
    found = lines(capfd)

    ids = [line["request_id"] for line in found if line["message"] == "tool call"]
    assert len(set(ids)) == 2
    for note, request_id in zip(("first", "second"), ids, strict=True):
        inside = [line for line in found if line.get("note") == note]
        assert [line["message"] for line in inside] == [
            "from structlog",
            "from the standard library",
            "from a task",
            "from a thread",
        ]
        assert {(line["tool"], line["client_id"], line["request_id"]) for line in inside} == {
            ("talk", "127.0.0.1", request_id)
        }
    assert all("tool" not in line for line in found if line["logger"].startswith("uvicorn"))


async def test_concurrent_calls_keep_their_contexts_apart(
    serve: Serve, http: httpx2.AsyncClient, capfd: Captured
) -> None:
    with serve(tools) as server:
        await asyncio.gather(*(server.acall(http, "talk", {"note": str(number)}) for number in range(20)))
    ids: dict[str, set[str]] = {}
    for line in lines(capfd):
        if "note" in line:
            ids.setdefault(line["note"], set()).add(line["request_id"])

    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == 20


def test_lines_have_the_ids_of_the_running_span(serve: Serve, capfd: Captured) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False))

    def register(server: ProductionServer) -> None:
        async def work() -> str:
            with trace.use_span(span):
                log.info("inside")
            return ""

        server.tool()(work)

    with serve(register) as server:
        server.call("work")
    (inside,) = [line for line in lines(capfd) if line["message"] == "inside"]
    assert inside["trace_id"] == f"{0xABC:032x}"
    assert inside["span_id"] == f"{0xDEF:016x}"


@pytest.mark.parametrize(
    ("tool", "logged_as", "outcome", "error_type"),
    [
        ("fail", "fail", "client_error", "ToolError"),
        ("crash", "crash", "error", "LookupError"),
        ("store", "store", "client_error", "InvalidArguments"),
        ("no such tool", "unknown", "client_error", "UnknownTool"),
    ],
)
def test_the_line_of_a_failed_call_has_its_status_and_error_type(
    serve: Serve, capfd: Captured, tool: str, logged_as: str, outcome: str, error_type: str
) -> None:
    with serve(tools) as server:
        server.call(tool)
    (line,) = calls(capfd)
    assert (line["tool"], line["level"]) == (logged_as, "warning")
    assert (line["outcome"], line["error_type"]) == (outcome, error_type)


async def test_a_rejected_call_is_a_warning_with_its_reason() -> None:
    async def handler(request: MCPRequest) -> Result:
        return reject(request, "RateLimited", "not now")

    output: list[bytes] = []
    middleware = log_calls(RecordWriter(Redactor(), as_json, output.append), arguments=False)
    request = new_request("tools/call", "talk", caller="alice")
    outer = current_request.set(request)
    await middleware(request, handler)
    current_request.reset(outer)
    (line,) = map(json.loads, output)
    assert (line["level"], line["outcome"], line["error_type"]) == ("warning", "rejected", "RateLimited")
    assert (line["client_id"], line["request_id"]) == ("alice", "0123456789abcdef")


async def test_a_call_that_a_draining_server_rejects_is_a_warning(capfd: Captured) -> None:
    server = create_server(config())
    async with Client(server) as client:
        server.registry.draining = True
        await client.call_tool("health_check")
    (line,) = calls(capfd)
    assert (line["level"], line["outcome"], line["error_type"]) == ("warning", "rejected", "Draining")


def test_the_line_of_a_request_has_the_fields_that_its_handler_bound(serve: Serve, capfd: Captured) -> None:
    def register(server: ProductionServer) -> None:
        @server.tool()
        async def order(number: int) -> str:
            bind_contextvars(order=number, headers={"authorization": "hunter2"}, outcome="mine", tool="mine")
            return "done"

        @server.resource("test://orders/{number}")
        async def read(number: int) -> str:
            bind_contextvars(order=number)
            raise ToolError("there is no such order")

        @server.tool()
        def order_in_a_thread(number: int) -> str:
            bind_contextvars(order=number)
            return "done"

        @server.resource("test://threads/{number}")
        def read_in_a_thread(number: int) -> str:
            bind_contextvars(order=number)
            raise ValueError(number)

        @server.resource("test://thread")
        def static_in_a_thread() -> str:
            bind_contextvars(order=11)
            return "done"

        @server.prompt()
        def prompt_in_a_thread() -> str:
            bind_contextvars(order=12)
            return "done"

    with serve(register) as server:
        server.call("order_in_a_thread", {"number": 9})
        server.post(message("resources/read", {"uri": "test://threads/10"}))
        server.post(message("resources/read", {"uri": "test://thread"}))
        server.post(message("prompts/get", {"name": "prompt_in_a_thread"}))
        assert [line["order"] for line in lines(capfd) if "outcome" in line] == [9, 10, 11, 12]
        server.call("order", {"number": 7})
        server.post(message("resources/read", {"uri": "test://orders/8"}))
        server.call("health_check")
    first, second, third = (line for line in lines(capfd) if "outcome" in line)
    assert (first["order"], first["headers"]) == (7, {"authorization": "[redacted]"})
    assert (first["outcome"], first["outcome_"]) == ("success", "mine")
    assert (first["tool"], first["tool_"]) == ("order", "mine")
    assert (second["order"], second["resource"], second["outcome"]) == (8, "test://orders/{number}", "client_error")
    assert "order" not in third


def test_an_unexpected_exception_is_logged_once_with_its_traceback(serve: Serve, capfd: Captured) -> None:
    with serve(tools) as server:
        text = text_of(server.call("crash"))
    found = lines(capfd)
    (line,) = [line for line in found if "nobody may read this" in json.dumps(line)]
    (call,) = [line for line in found if line["message"] == "tool call"]

    assert line["level"] == "error"
    assert line["error_type"] == "LookupError"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("LookupError: nobody may read this\n")
    assert line["request_id"] == call["request_id"]
    assert line["request_id"] in text
    assert "nobody" not in text


def test_arguments_are_logged_only_if_switched_on_and_without_secrets(serve: Serve, capfd: Captured) -> None:
    arguments = {"password": "hunter2", "city": "Bern"}
    with serve(tools) as server:
        server.call("store", arguments)
    assert not {"Bern", "hunter2"} & set(re.findall(r"\w+", json.dumps(lines(capfd))))

    with serve(tools, log_arguments=True) as server:
        server.call("store", arguments)
    (line,) = calls(capfd)
    assert line["arguments"] == {"password": REDACTED, "city": "Bern"}


def test_all_loggers_share_one_pipeline(serve: Serve, capfd: Captured) -> None:
    with serve(log_level="DEBUG") as server:
        logging.getLogger("somebody.else").warning("careful", extra={"api_key": "hunter2"})
        # These two log every request, with its whole URL and headers.
        logging.getLogger("httpx2").info("HTTP Request: GET https://api.example.com/things")
        logging.getLogger("httpcore2.http11").debug("send_request_headers.started")
        server.call("health_check")
    found = lines(capfd)

    by_logger = {line["logger"]: line for line in found}
    assert by_logger["somebody.else"]["api_key"] == REDACTED
    assert "uvicorn.error" in by_logger
    assert not {"httpx2", "httpcore2.http11"} & by_logger.keys()
    assert "color_message" not in json.dumps(found)


def test_the_level_applies_to_every_logger(serve: Serve, capfd: Captured) -> None:
    with serve(tools, log_level="WARNING") as server:
        server.call("talk", {"note": "quiet"})
        server.call("fail")
    found = lines(capfd)
    assert [line["message"] for line in found] == ["from the standard library", "tool call"]
    assert {line["level"] for line in found} == {"warning"}


def test_servers_made_one_after_the_other_do_not_log_twice(serve: Serve, capfd: Captured) -> None:
    for _ in range(3):
        create_server(config())
    with serve(tools) as server:
        server.call("talk", {"note": "once"})
    assert [line["message"] for line in lines(capfd)].count("from structlog") == 1
    assert sum(isinstance(handler, RootHandler) for handler in logging.getLogger().handlers) == 1


def test_calls_are_logged_only_by_a_server_with_logging_switched_on(serve: Serve, capfd: Captured) -> None:
    with serve(enable_logging=False) as server:
        server.call("health_check")
    assert "tool call" not in capfd.readouterr().err
    with serve() as server:
        server.call("health_check")
    assert calls(capfd)


def test_the_console_format_is_one_line_with_the_traceback_beneath(serve: Serve, capfd: Captured) -> None:
    with serve(tools, log_format="console") as server:
        server.call("crash")
    output = capfd.readouterr().err
    assert re.search(r"^\d\d:\d\d:\d\d\.\d{3} warning +tool call .*tool=crash .*outcome=error", output, re.MULTILINE)
    assert "\n  LookupError: nobody may read this\n" in output
    assert "\x1b" not in output  # stderr is no terminal here


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)],
)
def test_a_terminal_gets_colours_unless_they_are_switched_off(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert coloured(Terminal()) is expected
    assert not coloured(io.StringIO())
    assert not coloured(None)


def test_a_message_can_neither_forge_nor_colour_a_console_line() -> None:
    written: list[bytes] = []
    writer = RecordWriter(Redactor(), Console(colours=True), written.append)
    writer.write_record(20, "x", "one\n12:00:00.000 info     forged", {"note\x1b[31m": "two\n\x1b[31mthree"}, None)
    (line,) = written
    assert line.count(b"\n") == 1
    assert b"\x1b[31m" not in line.replace(b"\x1b[32minfo", b"")


# What each store reads without configuration, from its documentation.
STORES: dict[str, Callable[[dict[str, Any], bytes], bool]] = {
    # Dynamic date detection takes strict_date_optional_time; a field keeps the type it came with first, and a dot in
    # a key would make it an object.
    "Elasticsearch": lambda line, raw: (
        datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)
        and isinstance(line["duration_ms"], float)
        and not any("." in key for key in line)
    ),
    # `timestamp` in ISO 8601, `severity` or `level`, `message` and `trace_id` are read; `status` would be the level,
    # and `host`, `source` and `service` would replace what the agent knows.
    "Datadog": lambda line, raw: (
        line["severity"] in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
        and isinstance(line["message"], str)
        and not {"status", "host", "source", "service", "date", "date_time"} & line.keys()
    ),
    # Looks for the time in a line's first 128 characters (MAX_TIMESTAMP_LOOKAHEAD), and breaks lines at line breaks.
    "Splunk": lambda line, raw: b'"timestamp":"20' in raw[:128] and raw.count(b"\n") == 1,
    # Discovers the fields of JSON lines up to 1 MB, the first 200 of them.
    "CloudWatch": lambda line, raw: raw.startswith(b"{") and len(raw) < 2**20 and len(line) < 200,
    # One object a line; `severity` is one of LogSeverity's names, `message` is the line that is shown.
    "Google Cloud": lambda line, raw: line["severity"] == line["level"].upper() and isinstance(line["message"], str),
    # The json-file driver cuts lines after 16 KiB.
    "Docker": lambda line, raw: len(raw) <= 16 * 1024,
}


@pytest.mark.parametrize("store", STORES)
def test_log_stores_parse_a_call_without_configuration(serve: Serve, capfd: Captured, store: str) -> None:
    with serve(tools, log_arguments=True) as server:
        server.call("talk", {"note": "Zürich\n\u2028" * 20_000})
    raw = next(f"{line}\n" for line in capfd.readouterr().err.split("\n") if '"tool call"' in line)
    assert STORES[store](json.loads(raw), raw.encode())
    assert re.search(r'"timestamp":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"', raw)


def written(act: Callable[[RecordWriter], object], redactor: Redactor | None = None) -> dict[str, Any]:
    """Return the one line that `act` writes."""
    output: list[bytes] = []
    act(RecordWriter(redactor or Redactor(), as_json, output.append))
    (raw,) = output
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") == 1
    assert len(raw) <= 16 * 1024
    line: dict[str, Any] = json.loads(raw)
    return line


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (2**80, str(2**80)),
        (10**5000, "<integer of 16610 bits>"),
        (b"\x00\xff", "b'\\x00\\xff'"),
        ("\ud800", "\\ud800"),
        ("x" * 10_000, "x" * MAX_TEXT + "... (10000 characters)"),
        ({1: {2}, None: ()}, {"1": [2], "None": []}),
        (ValueError("token=hunter2"), "ValueError('token=[redacted]')"),
        (Broken(), "<Broken that cannot be shown: RuntimeError>"),
        (timedelta(seconds=1), "datetime.timedelta(seconds=1)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_of_any_type_is_shown(value: object, shown: object) -> None:
    assert written(lambda writer: writer.write_record(20, "x", "m", {"value": value}, None))["value"] == shown


def test_a_structure_that_contains_itself_is_cut_off() -> None:
    value: list[Any] = [1]
    value.append({"again": value})
    line = written(lambda writer: writer.write_record(20, "x", "m", {"value": value}, None))
    assert line["value"] == [1, {"again": [1, {"again": [1, {"again": [1, "..."]}]}]}]


@pytest.mark.parametrize("count", [5, 50, 900])
def test_a_long_line_is_shortened(count: int) -> None:
    fields = {f"field{number}": "é" * 4000 for number in range(count)}
    line = written(lambda writer: writer.write_record(20, "x", "m", fields, None))
    assert line["shortened"] is True
    assert (line["message"], line["field0"][:10]) == ("m", "é" * 10)


def test_a_long_traceback_keeps_both_ends() -> None:
    def deeper(depth: int) -> None:
        if depth:
            even(depth - 1)
        raise RecursionError("the end " + "x" * 50_000)

    def even(depth: int) -> None:
        deeper(depth)

    try:
        deeper(400)
    except RecursionError as error:
        caught = error
    line = written(lambda writer: writer.write_record(40, "x", "m", {}, caught))
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("x\n")


@pytest.mark.parametrize("length", [8, 17, 50, 1000])
def test_a_secret_at_the_place_where_a_text_is_cut_is_redacted(length: int) -> None:
    hidden = "0123456789" * 100
    many = hidden[:length] * (200_000 // length)

    def act(writer: RecordWriter) -> None:
        writer.write_record(40, "x", many, {"field": many}, ValueError(many))

    assert "01234" not in json.dumps(written(act, Redactor([hidden[:length]])) | {"timestamp": ""})


def test_fields_cannot_replace_those_of_the_line() -> None:
    fields = {"message": "forged", "severity": "DEBUG", "status": 200, "timestamp": 0, "plain": 1}
    line = written(lambda writer: writer.write_record(40, "x", "true", fields, None))
    assert (line["message"], line["severity"], line["status_"]) == ("true", "ERROR", 200)
    assert (line["message_"], line["timestamp_"], line["plain"]) == ("forged", 0, 1)
    assert "status" not in line


def test_a_message_with_the_wrong_arguments_is_still_logged(serve: Serve, capfd: Captured) -> None:
    with serve():
        log.warning("%d pears", "many")
        log.warning("%(n)d plums", {"n": 3})
    assert {"%d pears", "3 plums"} <= {line["message"] for line in lines(capfd)}
    record = logging.makeLogRecord({"name": "own", "levelno": 30, "msg": "%d apples", "args": ("many",)})
    assert written(lambda writer: StdlibHandler(writer).handle(record))["message"] == "%d apples"


texts = st.text(max_size=20) | st.sampled_from(["\ud800", "a\nb", "\u2028", "x" * 20_000, "é" * 9_000])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.binary(max_size=20)
    | st.dates()
    | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.pure
@given(texts, st.dictionaries(texts, values, max_size=6))
def test_any_message_with_any_fields_is_one_line(message: str, fields: dict[str, Any]) -> None:
    line = written(lambda writer: writer.write_record(20, "any", message, fields, None))
    assert line["level"] == "info"
    assert line["logger"] == "any"


failing: ContextVar[BaseException | None] = ContextVar("failing", default=None)
"""What the methods of the owner's classes raise."""


@contextlib.contextmanager
def raising(error: BaseException) -> Iterator[None]:
    token = failing.set(error)
    try:
        yield
    finally:
        failing.reset(token)


def fail(*arguments: object) -> Any:
    if (error := failing.get()) is not None:
        raise error
    return None


METHODS = (
    *("__str__", "__repr__", "__eq__", "__len__", "__bool__", "__iter__", "__getitem__", "__format__"),
    *("__int__", "__float__", "__index__", "__fspath__", "items", "keys", "values", "isoformat", "lower", "value"),
)


class Metaclass(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in ("__name__", "__qualname__", "__mro__"):
            fail()
        return super().__getattribute__(name)

    def __eq__(cls, other: object) -> bool:
        fail()
        return cls is other

    __hash__ = type.__hash__


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """Return a value of a class of which some methods raise."""
    base, arguments = draw(
        st.sampled_from(
            [
                (object, ()),
                (str, ("token=hunter2",)),
                (bytes, (b"x",)),
                (int, (2**70,)),
                (float, (1.5,)),
                (dict, ({"a": 1, "tokens": 2},)),
                (list, ([1, ("cookie", "x")],)),
                (tuple, (("token", "x"),)),
                (set, ({1},)),
                (date, (2026, 1, 1)),
                (ValueError, ("x",)),
            ]
        )
    )
    members: dict[str, Any] = dict.fromkeys(draw(st.sets(st.sampled_from(METHODS), max_size=6)), fail)
    if draw(st.booleans()):
        members["__class__"] = property(draw(st.sampled_from([fail, lambda self: str, lambda self: Decimal])))
    members["__hash__"] = object.__hash__  # a key needs one
    metaclass = draw(st.sampled_from([type, type, Metaclass]))
    return metaclass("Own", (base,), members)(*arguments)


class BrokenEnum(Enum):
    A = b"\xff"
    value = property(fail)


@dataclasses.dataclass
class BrokenFields:
    a: int = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "a":
            fail()
        return super().__getattribute__(name)


broken_values = st.recursive(
    broken() | st.builds(lambda: BrokenEnum.A) | st.builds(lambda: BrokenFields()) | st.integers() | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(st.sampled_from(["token", "city"]), inner)
        | st.lists(st.tuples(texts | broken(), inner), max_size=3).map(dict)
    ),
    max_leaves=6,
)
failures = st.sampled_from(
    [ValueError("x"), SystemExit(3), KeyboardInterrupt(), RecursionError(), asyncio.CancelledError()]
)


@pytest.mark.pure
@given(broken_values, failures, st.sampled_from(["field", "token", "max_tokens"]))
def test_a_value_whose_methods_raise_fails_no_call_that_logs(value: Any, failure: BaseException, key: str) -> None:
    def with_structlog(writer: RecordWriter) -> None:
        with contextlib.suppress(structlog.DropEvent):
            writer.process_event(logging.getLogger("own"), "error", {"event": "m", key: value})

    def with_logging(writer: RecordWriter) -> None:
        logger = logging.Logger("own")
        logger.addHandler(StdlibHandler(writer))
        logger.error("m", extra={key: value})

    def as_message(writer: RecordWriter) -> None:
        fields = {"event": value, "positional_args": (value,), "exc_info": value, "stack_info": value}
        with contextlib.suppress(structlog.DropEvent):
            writer.process_event(logging.getLogger("own"), "error", fields)

    with raising(failure):
        for act in (with_structlog, with_logging):
            line = written(act)
            assert line["message"] == "m"
            assert key in line
            assert "logging_failed" not in line
        assert written(as_message)["level"] == "error"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (type("Own", (str,), {"__str__": fail})("x"), "<Own that cannot be shown: ValueError>"),
        (type("Own", (dict,), {"items": fail})(a=1), "<Own that cannot be shown: ValueError>"),
        (type("Own", (date,), {"isoformat": fail})(2026, 1, 1), "<Own that cannot be shown: ValueError>"),
        ({type("Own", (), {"__repr__": fail})(): 1}, {"<Own that cannot be shown: ValueError>": 1}),
        ({"token": type("Own", (), {"__eq__": fail, "__hash__": None})()}, {"token": REDACTED}),
        ([1, BrokenEnum.A], [1, "<BrokenEnum that cannot be shown: ValueError>"]),
    ],
)
def test_only_the_value_whose_method_raises_is_not_shown(value: object, shown: object) -> None:
    with raising(ValueError()):
        line = written(lambda writer: writer.write_record(20, "x", "m", {"value": value, "other": 1}, None))
        whole = Redactor().value(value)
    assert (line["value"], line["other"]) == (shown, 1)
    assert isinstance(whole, dict) is isinstance(value, dict)


def test_configured_secrets_are_never_logged(serve: Serve, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "upstream-hunter2")
    with serve(upstream_api_key_env="UPSTREAM_KEY", redis_url="redis://:redis%20hunter2@127.0.0.1:9/0"):
        log.info("with upstream-hunter2 and redis hunter2 and redis%20hunter2")
        log.error("failed", exc_info=ValueError("upstream-hunter2"))
    output = json.dumps(lines(capfd))
    assert output.count(REDACTED) == 4
    assert "hunter2" not in output


@posix
def test_an_unread_stderr_delays_no_call_and_no_probe() -> None:
    with subprocess.Popen(
        command(NO_TOOLS, "--port", "0"), env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            base = None
            while base is None:
                base = re.search(r"http://[^/\s]+:\d+(?=/mcp)", process.stderr.readline().decode())
            with httpx2.Client(base_url=base[0], timeout=DEADLINE_SECONDS, trust_env=False) as client:
                content = message("tools/call", {"name": "health_check"})
                for _ in range(500):  # a pipe holds 64 KiB, some 250 lines
                    assert client.post("/mcp", json=content, headers=HEADERS).status_code == 200
                assert client.get("/livez").status_code == 200
            process.terminate()
            found = log_lines(process.stderr.read().decode())
            assert sum(line["message"] == "tool call" for line in found) == 500
            assert process.wait(DEADLINE_SECONDS) == 0
        finally:
            process.kill()


@posix
def test_unread_lines_wait_in_order_and_those_beyond_the_limit_are_dropped_and_counted() -> None:
    reading, writing = os.pipe()
    stderr = Stderr(writing)
    # 64 KiB fit into the pipe, 8 MiB wait, the rest is dropped.
    sent = [json.dumps({"message": f"{number:06d}" + "x" * 3000}).encode() + b"\n" for number in range(4000)]
    for line in sent:
        stderr.write(line)
    assert not stderr.flush(0.01)

    received: list[dict[str, Any]] = []

    def read() -> None:
        with os.fdopen(reading, "rb") as pipe:
            received.extend(json.loads(line) for line in pipe)

    reader = threading.Thread(target=read)
    reader.start()
    assert stderr.flush(DEADLINE_SECONDS)
    stderr.write(b'{"message":"after"}\n')
    assert stderr.flush(DEADLINE_SECONDS)
    os.close(writing)
    reader.join(DEADLINE_SECONDS)
    *kept, lost, after = received
    assert [line["message"][:6] for line in kept] == [f"{number:06d}" for number in range(len(kept))]
    assert 8 * 2**20 // 3020 <= len(kept) < 4000
    assert lost["dropped"] == 4000 - len(kept)
    assert after["message"] == "after"


@posix
def test_a_closed_stderr_causes_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stderr = Stderr(writing)
    stderr.write(b"x\n")
    stderr.write(b"x" * (select.PIPE_BUF + 1))
    assert stderr.flush(DEADLINE_SECONDS)
    os.close(writing)


def test_warnings_and_unhandled_exceptions_become_lines() -> None:
    code = """
import threading, warnings
from weather_station.production.config import ProductionConfig
from weather_station.server import create_server

def crash():
    raise RuntimeError("in a thread: token=hunter2")

create_server(ProductionConfig())
warnings.warn("an old way")
thread = threading.Thread(target=crash)
thread.start()
thread.join()
raise LookupError("at the top")
"""
    done = run_python(code)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.stdout == ""
    assert [line.get("error_type") for line in found] == [None, "RuntimeError", "LookupError"]
    assert found[0]["logger"] == "py.warnings"
    assert [line["level"] for line in found[1:]] == ["critical", "critical"]
    assert "hunter2" not in done.stderr
