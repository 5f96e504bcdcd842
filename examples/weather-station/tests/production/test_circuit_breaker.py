"""Circuit breaker: requests to a failing upstream are rejected until a test request succeeds."""

import pytest
from mcp.server.mcpserver import Context

from weather_station.production import circuit_breaker
from weather_station.production.sdk import ProductionServer
from weather_station.production.testing import Api, Server, wait_for

from .support import assert_sample, text, tools

SETTINGS = {"max_retries": 0, "circuit_failure_threshold": 2, "circuit_half_open_requests": 1}


def test_an_open_circuit_sends_nothing(api: Api) -> None:
    host = api.url.removeprefix("http://")
    api.on("GET", "/orders", status=500)
    with Server(tools, upstream_base_url=api.url, circuit_recovery_timeout=3600, **SETTINGS) as server:
        for _ in range(2):
            assert "answered 500" in text(server.call("fetch", {"path": "/orders"}))
        rejected = text(server.call("fetch", {"path": "/orders"}))
        assert rejected.startswith(f"Service temporarily unavailable: {host} has failed repeatedly. Try again in 3")
        assert len(api.requests) == 2
        assert_sample(server, 2, "mcp_circuit_state", host=host)
        assert server.get("/health").json()["problems"] == ["circuit_open"]
        assert server.get("/readyz").status_code == 200


def test_a_test_request_that_succeeds_closes_the_circuit(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    api.on("GET", "/orders", status=500).then(500).then(200)
    with Server(tools, upstream_base_url=api.url, circuit_recovery_timeout=0.05, **SETTINGS) as server:
        wait_for(lambda: not server.call("fetch", {"path": "/orders"}).is_error)
        host = api.url.removeprefix("http://")
        assert_sample(server, 0, "mcp_circuit_state", host=host)
        for state in ("open", "half_open", "closed"):
            assert_sample(server, 1, "mcp_circuit_transitions_total", host=host, state=state)
    assert capfd.readouterr().err.count("circuit changed") == 3


def test_a_404_does_not_open_the_circuit(api: Api) -> None:
    with Server(tools, upstream_base_url=api.url, circuit_recovery_timeout=60, **SETTINGS) as server:
        for _ in range(5):
            assert "answered 404" in text(server.call("fetch", {"path": "/orders"}))


def test_a_circuit_breaker_guards_other_dependencies() -> None:
    def register(server: ProductionServer) -> None:
        async def query(ctx: Context) -> str:
            async with circuit_breaker(ctx, "database", failures=OSError):
                raise OSError("connection refused")

        server.tool()(query)

    with Server(register, circuit_recovery_timeout=60, **SETTINGS) as server:
        for _ in range(2):
            assert text(server.call("query")).startswith("Error executing tool query")
        assert "database has failed repeatedly" in text(server.call("query"))
        assert_sample(server, 2, "mcp_circuit_state", host="database")
