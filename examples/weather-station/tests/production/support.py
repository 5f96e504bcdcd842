"""Shared tools, and functions that read metrics and logs."""

import json
from typing import Any

import pytest
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from weather_station.production import caller, get_logger, upstream
from weather_station.production.features import FEATURES
from weather_station.production.sdk import ProductionServer
from weather_station.production.testing import Server

SECRET = "hunter2-of-the-upstream"  # noqa: S105 (must not show anywhere)
HOST = "127.0.0.1:"
"""Beginning of the host label of every stand-in."""


def tools(server: ProductionServer) -> None:
    async def echo(text: str) -> str:
        get_logger("tools").info("echoing", length=len(text))
        return text

    async def fetch(path: str, ctx: Context, method: str = "GET") -> int:
        return (await upstream(ctx).request(method, path)).status_code

    async def crash() -> str:
        raise RuntimeError(f"password={SECRET}")

    async def who(ctx: Context) -> dict[str, Any]:
        sender = caller(ctx)
        return {"id": sender.id, "client": sender.client, "scopes": sorted(sender.scopes)}

    for tool in (echo, fetch, crash, who):
        server.tool()(tool)


def text(result: CallToolResult) -> str:
    """Return the text that the model reads."""
    return "\n".join(getattr(block, "text", "") for block in result.content)


def sample(server: Server, name: str, **labels: str) -> float | None:
    """Return the value of a sample on /metrics; None if there is none."""
    for line in server.get("/metrics").text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(f'{key}="{label}"' in series for key, label in labels.items()):
            return float(value)
    return None


def assert_sample(server: Server, expected: float, name: str, **labels: str) -> None:
    """Assert the value of a sample on /metrics, in projects that have metrics."""
    if "metrics" in FEATURES:
        assert sample(server, name, **labels) == expected, server.get("/metrics").text


def log_lines(capfd: pytest.CaptureFixture[str], message: str = "") -> list[dict[str, Any]]:
    """Return the lines of the JSON log since the last call of this function, those with `message` only if given.

    Audit records, which are on stderr too, have no message.
    """
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    return [line for line in lines if "message" in line and message in ("", line["message"])]
