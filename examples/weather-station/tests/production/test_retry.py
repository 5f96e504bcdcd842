"""Retries: transient failures are retried where that is safe."""

from typing import Any

import pytest

from weather_station.production import retry
from weather_station.production.sdk import ProductionServer
from weather_station.production.testing import Api, Server

from .support import assert_sample, text, tools

FAST = {"retry_delay_seconds": 0.01, "retry_max_delay_seconds": 0.01, "circuit_failure_threshold": 100}


def test_a_transient_failure_is_retried_until_it_ends(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    api.on("GET", "/orders", status=503).then(drop=True).then(200)
    with Server(tools, upstream_base_url=api.url, max_retries=2, **FAST) as server:
        assert server.call("fetch", {"path": "/orders"}).structured_content == {"result": 200}
        assert_sample(server, 2, "mcp_upstream_retries_total")
    assert len(api.requests) == 3
    assert capfd.readouterr().err.count("retrying") == 2


@pytest.mark.parametrize(
    ("arguments", "status", "requests"),
    [
        ({"path": "/orders"}, 503, 3),
        ({"path": "/orders"}, 404, 1),
        ({"path": "/orders", "method": "POST"}, 503, 1),
        ({"path": "/orders", "method": "PUT"}, 503, 3),
    ],
)
def test_only_safe_requests_are_retried(arguments: dict[str, Any], status: int, requests: int, api: Api) -> None:
    api.on(arguments.get("method", "GET"), "/orders", status=status)
    with Server(tools, upstream_base_url=api.url, max_retries=2, **FAST) as server:
        result = server.call("fetch", arguments)
    assert f"answered {status}" in text(result)
    assert ("(3 attempts)" in text(result)) == (requests == 3)
    assert len(api.requests) == requests


def test_the_owners_functions_can_be_retried() -> None:
    attempts = 0

    def register(server: ProductionServer) -> None:
        @retry(server, "database", on=OSError)
        async def query() -> int:
            nonlocal attempts
            attempts += 1
            if attempts < 3:
                raise OSError("connection refused")
            return 42

        server.tool()(query)

    with Server(register, max_retries=2, **FAST) as server:
        assert server.call("query").structured_content == {"result": 42}
        assert_sample(server, 2, "mcp_upstream_retries_total", host="database")


def test_retry_after_beyond_the_deadline_ends_the_retries(api: Api) -> None:
    api.on("GET", "/orders", status=503, headers={"Retry-After": "3600"})
    with Server(tools, upstream_base_url=api.url, max_retries=2, **FAST) as server:
        assert "Try again in 3600 seconds." in text(server.call("fetch", {"path": "/orders"}))
    assert len(api.requests) == 1
