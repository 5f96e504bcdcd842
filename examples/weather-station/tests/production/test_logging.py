"""Logs: one JSON object on a line of stderr for each call and record, with the call's context and without secrets."""

import json
import logging
import os
import sys

import pytest

from weather_station.production.observe import logging as log_module
from weather_station.production.observe.stderr import Stderr
from weather_station.production.testing import Server

from .support import SECRET, log_lines, tools


def test_a_call_is_one_line_and_its_log_lines_have_its_context(capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools) as server:
        log_lines(capfd)
        server.call("echo", {"text": "hello"})
        server.call("echo", {"text": [1]})
        server.call("no-such-tool")
        within, success, invalid, unknown = log_lines(capfd)
    assert (within["message"], within["logger"], within["length"]) == ("echoing", "tools", 5)
    assert {success["message"], invalid["message"], unknown["message"]} == {"tool call"}
    assert within["request_id"] == success["request_id"] != invalid["request_id"]
    assert (success["tool"], success["client_id"], success["outcome"]) == ("echo", "127.0.0.1", "success")
    assert (success["level"], success["severity"]) == ("info", "INFO")
    assert success["duration_ms"] > 0
    assert (invalid["outcome"], invalid["error_type"]) == ("client_error", "InvalidArguments")
    assert (invalid["level"], unknown["level"]) == ("warning", "warning")
    assert unknown["tool"] == "unknown"


def test_a_crash_has_its_traceback_without_the_secret(capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools) as server:
        request_id = server.call("crash").meta
        error, *_ = log_lines(capfd, "tool raised an unexpected exception")
    assert request_id
    assert error["request_id"] == request_id["request_id"]
    assert (error["tool"], error["error_type"], error["level"]) == ("crash", "RuntimeError", "error")
    assert 'raise RuntimeError(f"password=' in error["exception"]
    assert SECRET not in json.dumps(error)


@pytest.mark.parametrize("shown", [True, False])
def test_arguments_are_logged_on_request_only(shown: bool, capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools, log_arguments=shown) as server:
        server.call("echo", {"text": "token=abcdefgh"})
        (line,) = log_lines(capfd, "tool call")
    assert line.get("arguments") == ({"text": "token=[redacted]"} if shown else None)


def test_records_and_warnings_of_libraries_are_in_the_log(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_API_KEY", SECRET)
    with Server(tools, upstream_api_key_env="TEST_API_KEY") as server:
        server.get("/livez")
        logging.getLogger("library").warning("asked for %s", f"https://user:pw@example.com/?q={SECRET}")
        logging.getLogger("py.warnings").warning("deprecated")
        lines = {line["logger"]: line for line in log_lines(capfd)}
    assert lines["library"]["message"] == "asked for https://[redacted]@example.com/?q=[redacted]"
    assert lines["py.warnings"]["level"] == "warning"


def test_the_level_decides_what_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools, log_level="ERROR") as server:
        server.call("echo", {"text": "hello"})
        server.call("crash")
    assert {line["message"] for line in log_lines(capfd)} == {"tool raised an unexpected exception"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no poll for pipes")
def test_an_unread_log_does_not_block_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(log_module, "STDERR", Stderr(writer))
    with Server(tools, log_arguments=True) as server:
        for _ in range(40):  # 160 kB, more than a pipe takes
            assert not server.call("echo", {"text": "x" * 4000}).is_error
    os.close(reader)


def test_the_console_format_is_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools, log_format="console") as server:
        server.call("echo", {"text": "hello"})
    assert " tool call  method=tools/call tool=echo client_id=127.0.0.1 " in capfd.readouterr().err
