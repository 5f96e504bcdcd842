"""Call every generated tool with a real client, which validates each result against the tool's published schema."""

import asyncio
import json
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

from mcp import Client

from tests.test_openapi import CASES, Handler, StandIn

PACKAGE = next(path for path in Path("src").iterdir() if (path / "production").is_dir()).name


async def main() -> dict[str, Any]:
    create_server = import_module(f"{PACKAGE}.server").create_server
    config = import_module(f"{PACKAGE}.production").ProductionConfig
    tools: dict[str, Any] = {}
    with StandIn(("127.0.0.1", 0), Handler) as api:
        threading.Thread(target=api.serve_forever, daemon=True).start()
        settings = config(upstream_base_url=f"http://127.0.0.1:{api.server_address[1]}", rate_limit_requests=10_000)
        async with Client(create_server(settings)) as client:
            for tool in (await client.list_tools()).tools:
                tools[tool.name] = tool.model_dump(mode="json", by_alias=True)
            for name, case in CASES.items():
                api.answer, api.requests = case["answer"], []
                result = await client.call_tool(name, case["arguments"])
                assert not result.is_error, (name, result.content)
                assert result.structured_content == case["answer"]["result"], name
        api.shutdown()
    return tools


if __name__ == "__main__":
    json.dump(asyncio.run(main()), sys.stdout)
