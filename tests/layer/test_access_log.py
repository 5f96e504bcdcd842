"""A log record of every HTTP request, at DEBUG or by sampling."""

from __future__ import annotations

from typing import Any

import pytest

from harness import Serve, log_lines, wait_for


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
