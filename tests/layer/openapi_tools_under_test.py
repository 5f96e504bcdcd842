"""Tools generated from documents of the tests, registered in a server of the project and called in this process."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from mcp import Client
from mcp_types import CallToolResult
from mcp_types import Tool as PublishedTool
from openapi_tools import Document, Generated, generate

import weather_station
from weather_station.production.sdk import ProductionServer
from weather_station.production.testing import Api, ApiRequest, Call

KEY_VARIABLE = "KEY_OF_THE_API"
"""Names the variable of the API's key."""

_NUMBERS = count()


class Tools:
    """The tools of a document, and a stand-in for its API."""

    def __init__(self, document: Mapping[str, Any] | str, folder: Path, api: Api, **options: Any) -> None:
        spec = folder / "openapi.yaml"
        spec.write_text(document if isinstance(document, str) else json.dumps(document), "utf-8")
        self.api = api
        self.package = f"generated_{next(_NUMBERS)}"
        self.generated: Generated = generate(Document(str(spec)), "weather_station", **options)
        modules = folder / "packages" / self.package
        modules.mkdir(parents=True)
        (modules / "__init__.py").touch()
        for path, source in self.generated.files.items():
            if "/tools/" in path:
                (modules / Path(path).name).write_text(source, "utf-8")
        if str(modules.parent) not in weather_station.__path__:
            weather_station.__path__.append(str(modules.parent))
        importlib.invalidate_caches()
        self.server_call = Call(
            self._register, upstream_base_url=api.url, max_retries=0, upstream_api_key_env=KEY_VARIABLE
        )

    def _register(self, server: ProductionServer) -> None:
        for path in self.generated.files:
            if "/tools/" in path and not Path(path).name.startswith("_"):
                importlib.import_module(f"weather_station.{self.package}.{Path(path).stem}").register(server)

    async def published(self) -> dict[str, PublishedTool]:
        """Return the tools as a client sees them, by name."""
        async with Client(self.server_call.server) as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None) -> CallToolResult:
        """Call a tool, and return its result."""
        return await self.server_call(tool, arguments)

    async def sent(self, tool: str, arguments: Mapping[str, Any] | None = None) -> ApiRequest:
        """Call a tool, and return the only request that the API has got."""
        del self.api.requests[:]
        result = await self.call(tool, arguments)
        assert not result.is_error, result.content
        (request,) = self.api.requests
        return request

    def findings(self, kind: str) -> list[str]:
        return [finding.text for finding in self.generated.report.findings if finding.kind == kind]

    def forget(self) -> None:
        """Remove the modules from the interpreter."""
        for name in [name for name in sys.modules if name.startswith(f"weather_station.{self.package}")]:
            del sys.modules[name]


def document(paths: Mapping[str, Any], *, version: str = "3.1.0", **components: Any) -> dict[str, Any]:
    """Return a document with these paths and components."""
    info = {"title": "T", "version": "1"}
    return {"openapi": version, "info": info, "paths": dict(paths), "components": components}


def operation(name: str, **fields: Any) -> dict[str, Any]:
    """Return an operation that answers with anything."""
    responses = {"200": {"description": "OK", "content": {"application/json": {}}}}
    return {"operationId": name, "responses": responses} | fields


def parameter(name: str, schema: Any, location: str = "query", **fields: Any) -> dict[str, Any]:
    return {"name": name, "in": location, "schema": schema, "required": location == "path"} | fields


def body(schema: Any, media_type: str = "application/json", **fields: Any) -> dict[str, Any]:
    return {"required": True, "content": {media_type: {"schema": schema} | fields}}


def answer(schema: Any = None, media_type: str = "application/json", status: str = "200") -> dict[str, Any]:
    """Return the responses of an operation, with one."""
    return {status: {"description": "x", "content": {media_type: {} if schema is None else {"schema": schema}}}}
