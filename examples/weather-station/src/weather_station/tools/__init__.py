"""The server's tools, one module each. This package is yours: updates of the template never change it."""

from typing import Any

from mcp.server.mcpserver import MCPServer

from ..production import register_modules


def register(server: MCPServer[Any]) -> None:
    """Call `register(server)` of every module in this package whose name does not begin with `_`."""
    register_modules(server, __name__)
