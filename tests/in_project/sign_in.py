"""The tools of callers.py; the documents of OAuth clients may lie on this machine."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

from ..production.inbound import auth_oauth_clients
from . import callers


def register(server: MCPServer) -> None:
    auth_oauth_clients.is_public = lambda address: True
    assert callers
