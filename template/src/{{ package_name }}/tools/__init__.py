"""The server's tools, a module each. This package is yours: updates of the template never touch it."""

from typing import Any

from mcp.server.mcpserver import MCPServer

from ..production import register_modules


def register(server: MCPServer[Any]) -> None:
    """Has every module here add its tools with a `register(server)` of its own; a leading _ hides one."""
    register_modules(server, __name__)
