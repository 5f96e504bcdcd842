"""The limit: the SDK's `MCPServer` and nothing else, with the transport settings of the generated server."""

from __future__ import annotations

import os

import _tools
from _serve import JSON, serve
from mcp.server.mcpserver import MCPServer

server: MCPServer = MCPServer("bare", log_level="WARNING")
_tools.register(lambda function, name: server.add_tool(function, name=name))
stateful = os.environ.get("SESSION_MODE") == "stateful"
serve(server.streamable_http_app(stateless_http=not stateful, json_response=JSON))
