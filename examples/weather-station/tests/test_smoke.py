"""Smoke test: start the server with its tools and tests/settings.env, over HTTP and over stdio."""

import sys

from mcp import Client

from weather_station.production.testing import Process


async def tools(url: str, mode: str) -> list[str]:
    async with Client(url, mode=mode) as client:
        return [tool.name for tool in (await client.list_tools()).tools]


async def test_the_server_starts_answers_and_stops() -> None:
    # Without grace time: else a stopping server waits a second for its load balancer.
    with Process(SHUTDOWN_GRACE_SECONDS=0) as http, Process("--transport", "stdio") as stdio:
        listed = await tools(http.url, "legacy")
        assert "health_check" in listed
        assert await tools(http.url, "auto") == listed
        assert http.get("/livez").json() == {"status": "alive"}
        assert http.get("/readyz").status_code in (200, 503)  # 503: a check of yours that cannot pass in tests
        assert http.get("/health").json()["status"] in ("healthy", "degraded", "unhealthy")
        http.terminate()
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        _, response = stdio.exchange(
            {"id": 0, "method": "initialize", "params": client},
            {"method": "notifications/initialized"},
            {"id": 1, "method": "tools/list"},
        )
        assert [tool["name"] for tool in response["result"]["tools"]] == listed
        assert http.exit_status() == 0 or sys.platform == "win32", http.log()
