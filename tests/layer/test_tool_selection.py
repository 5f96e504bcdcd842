"""Tools that the settings leave out are neither listed nor callable."""

from __future__ import annotations

from typing import Any

import pytest
from mcp_types import ToolAnnotations

from harness import HEADERS, LEGACY, MODERN, Serve, config, message, modern, text_of
from weather_station.production.config import StartError
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server


def register(server: ProductionServer) -> None:
    async def done() -> str:
        return "done"

    server.add_tool(done, "read_order", annotations=ToolAnnotations(read_only_hint=True))
    server.tool("write_order", annotations=ToolAnnotations(read_only_hint=False))(done)
    server.add_tool(done, "delete_order")


@pytest.mark.parametrize("version", [LEGACY, MODERN])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"read_order", "write_order", "delete_order", "health_check"}),
        ({"tools_allow": "*_order"}, {"read_order", "write_order", "delete_order"}),
        ({"tools_deny": "delete_*,health_check"}, {"read_order", "write_order"}),
        ({"tools_allow": "*_order", "tools_deny": "write_order"}, {"read_order", "delete_order"}),
        ({"read_only": True}, {"read_order", "health_check"}),
        ({"read_only": True, "tools_allow": "write_order,health_check"}, {"health_check"}),
        ({"health_tool": False}, {"read_order", "write_order", "delete_order"}),
    ],
)
def test_a_hidden_tool_is_neither_listed_nor_callable(
    serve: Serve, version: str, settings: dict[str, Any], expected: set[str]
) -> None:
    with serve(register, **settings) as server:

        def send(method: str, params: dict[str, Any]) -> dict[str, Any]:
            content, headers = (message(method, params), HEADERS) if version == LEGACY else modern(method, params)
            result: dict[str, Any] = server.client.post(server.url, json=content, headers=headers).json()["result"]
            return result

        names = {tool["name"] for tool in send("tools/list", {})["tools"]} - {"get_metrics"}
        assert names == expected
        for name in {"read_order", "write_order", "delete_order"} - expected:
            assert text_of(send("tools/call", {"name": name})) == f"Unknown tool: {name}"
            assert f'tool="{name}"' not in server.metrics().text
        for name in {"read_order", "write_order", "delete_order"} & expected:
            assert text_of(send("tools/call", {"name": name})) == "done"


@pytest.mark.parametrize("setting", ["tools_allow", "tools_deny"])
async def test_a_pattern_that_matches_no_tool_stops_the_start(setting: str) -> None:
    server = create_server(config(**{setting: "*_order,orders_*"}))
    register(server)
    with pytest.raises(StartError, match=rf"{setting.upper()}: 'orders_\*' matches no tool"):
        async with server.running():
            pass
