"""A log record of every HTTP request, at DEBUG or by sampling."""

from __future__ import annotations

import logging
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from harness import DEADLINE_SECONDS, Serve, config, log_lines, wait_for
from weather_station.production.config import about
from weather_station.production.observe.access_log import AccessLog
from weather_station.production.registry import Registry


@pytest.mark.parametrize(
    ("settings", "level"),
    [({"log_level": "DEBUG"}, "debug"), ({"log_access_sampling": 1.0}, "info"), ({}, None)],
    ids=["debug", "sampling", "default"],
)
def test_every_http_request_has_a_record(
    settings: dict[str, Any], level: str | None, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = [("GET", "/livez", 200), ("GET", "/elsewhere?token=hidden", 404), ("POST", "/mcp", 421)]
    with serve(log_format="json", **settings) as server:
        capfd.readouterr()
        for method, path, status in expected:
            headers = {"host": "evil.example"} if status == 421 else {}
            assert server.client.request(method, f"{server.base}{path}", headers=headers).status_code == status
        output = ""

        def records() -> list[dict[str, Any]]:
            nonlocal output
            output += capfd.readouterr().err
            return [line for line in log_lines(output) if line["message"] == "http request"]

        wait_for(lambda: len(records()) == (len(expected) if level else 0))
        found = records()
    assert "hidden" not in str(found)
    if level:
        assert [(line["http_method"], line["path"], line["http_status"]) for line in found] == [
            (method, path.partition("?")[0], status) for method, path, status in expected
        ]
        assert {line["level"] for line in found} == {level}
        assert {line["client_id"] for line in found} == {"127.0.0.1"}


def test_a_client_that_leaves_while_it_sends_is_no_failure_of_the_server(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(log_format="json", log_access_sampling=1.0) as server:
        parts = urlsplit(server.base)
        head = f"POST /mcp HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        with socket.create_connection((str(parts.hostname), int(parts.port or 0)), DEADLINE_SECONDS) as connection:
            connection.sendall(head.encode() + b"Accept: application/json, text/event-stream\r\n\r\n{")
        output = ""

        def statuses() -> list[int]:
            nonlocal output
            output += capfd.readouterr().err
            return [line["http_status"] for line in log_lines(output) if line["message"] == "http request"]

        wait_for(statuses)
        assert statuses() == [499]


@pytest.mark.parametrize(("begins", "status"), [(False, 500), (True, 200)])
async def test_an_application_that_raises_is_a_failure_unless_its_response_has_begun(
    caplog: pytest.LogCaptureFixture, begins: bool, status: int
) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError

    async def ignore(*message: object) -> Any:
        """Do nothing."""

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("127.0.0.1", 1)}
    with caplog.at_level(logging.DEBUG), pytest.raises(LookupError):
        await AccessLog(Registry(config(), about()), fail)(scope, ignore, ignore)
    (record,) = [record for record in caplog.records if record.message == "http request"]
    assert record.__dict__["http_status"] == status
