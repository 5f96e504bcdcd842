"""The entry that makes an MCP client use this server, as that client's own configuration file has it.

The shapes are those of the clients' documentation in November 2026: Claude Desktop knows local commands only, so that
`mcp-remote` brings it to a URL; Claude Code, VS Code and Cursor know both. No secret is printed: where one belongs
stands what the client fills in, its own input or a variable of the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..config import ANSWERS, ConfigError, ProductionConfig
from .http import ENDPOINT

PACKAGE = __package__.partition(".")[0]
BEYOND = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (what a client on this machine calls such a server)


class Client(NamedTuple):
    """How one client is configured."""

    file: str
    """Where the entry goes."""
    servers: str
    """The key above it."""
    secret: Callable[[str], str]
    """What stands for the secret of an environment variable's name."""
    typed: bool
    """Whether an entry names its transport."""


def _input_id(variable: str) -> str:
    return variable.lower().replace("_", "-")


CLIENTS: Mapping[str, Client] = {
    "claude-code": Client(".mcp.json", "mcpServers", lambda name: f"${{{name}}}", typed=True),
    "claude-desktop": Client("claude_desktop_config.json", "mcpServers", lambda name: f"<{name}>", typed=False),
    "cursor": Client(".cursor/mcp.json", "mcpServers", lambda name: f"${{env:{name}}}", typed=False),
    "vscode": Client(".vscode/mcp.json", "servers", lambda name: f"${{input:{_input_id(name)}}}", typed=True),
}


def entry(name: str, config: ProductionConfig, *, transport: str) -> dict[str, Any]:
    """The configuration file of the client `name` with this server as its only one.

    Raises:
        ConfigError: over HTTP the port is to be chosen by the system, so that nobody knows it.
    """
    client, slug = CLIENTS[name], str(ANSWERS["slug"])
    if transport == "stdio":
        kind, server, secrets = "stdio", _command(), _upstream_key(config, client)
        if secrets:
            server["env"] = secrets
    else:
        token = f"{slug.upper().replace('-', '_')}_TOKEN"
        secrets = {token: client.secret(token)} if config.auth == "token" else {}
        if name == "claude-desktop":
            kind, server = "stdio", _bridge(_url(config), secrets)
        else:
            kind, server = "http", {"url": _url(config)}
            if secrets:
                server["headers"] = {"Authorization": f"Bearer {secrets[token]}"}
    if client.typed:
        server = {"type": kind, **server}
    document: dict[str, Any] = {client.servers: {slug: server}}
    if name == "vscode" and secrets:
        document = {"inputs": [_input(variable) for variable in secrets], **document}
    return document


def _command() -> dict[str, Any]:
    """Starts this very installation, wherever the client runs and whatever is on its PATH."""
    script = Path(sys.executable).with_name(str(ANSWERS["slug"]) + (".exe" if sys.platform == "win32" else ""))
    options = ["--transport", "stdio"]
    if script.exists():
        return {"command": str(script), "args": options}
    return {"command": sys.executable, "args": ["-m", PACKAGE, *options]}


def _bridge(url: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    arguments = ["-y", "mcp-remote", url]
    if url.startswith("http://"):
        arguments.append("--allow-http")
    if not secrets:
        return {"command": "npx", "args": arguments}
    # Without a blank in the argument, which Claude Desktop on Windows does not escape.
    (variable, placeholder), *_ = secrets.items()
    header = ["--header", f"Authorization:${{{variable}}}"]
    return {"command": "npx", "args": [*arguments, *header], "env": {variable: f"Bearer {placeholder}"}}


def _upstream_key(config: ProductionConfig, client: Client) -> dict[str, str]:
    name = config.upstream_api_key_env
    return {name: client.secret(name)} if name else {}


def _input(variable: str) -> dict[str, Any]:
    return {"type": "promptString", "id": _input_id(variable), "description": variable, "password": True}


def _url(config: ProductionConfig) -> str:
    if config.port == 0:
        raise ConfigError(["PORT: 0 lets the system choose, so that no client can be told; set it with --port"])
    host = BEYOND.get(config.host, f"[{config.host}]" if ":" in config.host else config.host)
    return f"http://{host}:{config.port}{ENDPOINT}"
