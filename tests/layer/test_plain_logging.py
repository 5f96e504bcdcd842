"""Logs without the logging feature: plain lines on stderr."""

from __future__ import annotations

import contextlib
import logging
import os
import re

import pytest

from harness import Serve
from weather_station.production import get_logger
from weather_station.production.sdk import ProductionServer

log = get_logger("own.tool")


def tools(server: ProductionServer) -> None:
    async def talk() -> str:
        log.debug("too quiet")
        log.info("from %s", "structlog", note="two\nlines", count=3)
        logging.getLogger("own.library").warning("from the\n%s", "standard library")
        return ""

    async def crash() -> str:
        raise LookupError("nobody may read this")

    for tool in (talk, crash):
        server.tool()(tool)


def test_each_record_is_one_line_on_stderr(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(tools, enable_logging=False) as server:
        server.call("talk")
    captured = capfd.readouterr()

    assert captured.out == ""
    first, second = [line for line in captured.err.splitlines() if "own." in line]
    assert re.fullmatch(r"\d{4}-\S+Z INFO     own\.tool: from structlog note='two\\nlines' count=3", first)
    assert re.fullmatch(r"\d{4}-\S+Z WARNING  own\.library: from the\\nstandard library", second)


def test_the_traceback_of_an_exception_follows_its_line(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(tools, enable_logging=False) as server:
        server.call("crash")
    output = capfd.readouterr().err
    assert re.search(r" ERROR +\S+: .*\n  Traceback \(most recent call last\):\n", output)
    assert output.count("\n  LookupError: nobody may read this\n") == 1


def test_a_broken_stderr_fails_no_call(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, encoding="utf-8") as broken, monkeypatch.context() as patch:
        with serve(tools, enable_logging=False) as server:
            patch.setattr("sys.stderr", broken)
            assert not server.call("talk")["isError"]
            assert server.call("crash")["isError"]
        patch.undo()
        with contextlib.suppress(BrokenPipeError):
            broken.close()


def test_a_message_with_the_wrong_arguments_is_still_logged(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    with serve(enable_logging=False):
        log.warning("%d pears", "many")
    assert " own.tool: %d pears\n" in capfd.readouterr().err
