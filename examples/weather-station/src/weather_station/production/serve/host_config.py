"""The configuration that makes an MCP host application (Claude Desktop, VS Code) use this server.

The formats are those of the hosts' documentation in November 2026. Claude Desktop's file supports local commands only,
so its entry runs `mcp-remote` for a URL. The output contains placeholders instead of secrets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..config import ANSWERS, ConfigError, ProductionConfig
from ..terminal import json_text
from .http import ENDPOINT

PACKAGE = __package__.partition(".")[0]
LOCAL_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 (compared with HOST, not bound)
"""Addresses that reach a server on this machine whose HOST is a wildcard address."""


class Host(NamedTuple):
    """The configuration format of an MCP host application."""

    file: str
    """The file that contains the configuration."""
    servers: str
    """The key of the servers in it."""
    placeholder: Callable[[str], str]
    """Returns the placeholder of a secret, from the name of its environment variable."""
    typed: bool
    """Whether a server's entry names its transport."""


def _input_id(variable: str) -> str:
    return variable.lower().replace("_", "-")


HOSTS: Mapping[str, Host] = {
    "claude-code": Host(".mcp.json", "mcpServers", lambda name: f"${{{name}}}", typed=True),
    "claude-desktop": Host("claude_desktop_config.json", "mcpServers", lambda name: f"<{name}>", typed=False),
    "cursor": Host(".cursor/mcp.json", "mcpServers", lambda name: f"${{env:{name}}}", typed=False),
    "vscode": Host(".vscode/mcp.json", "servers", lambda name: f"${{input:{_input_id(name)}}}", typed=True),
}


def print_config(name: str, overrides: Mapping[str, Any]) -> list[str]:
    """Print the configuration for a host to stdout, and return a message that names its file.

    Raises:
        ConfigError: the configuration is not valid, or the transport is HTTP and the port is 0.
    """
    document = build(name, ProductionConfig.load(**overrides), transport=overrides.get("transport", "stdio"))
    sys.stdout.write(json_text(json.dumps(document, indent=2, ensure_ascii=False)) + "\n")
    return [f"put this into {HOSTS[name].file} (docs/hosts.md)"]


def build(name: str, config: ProductionConfig, *, transport: str) -> dict[str, Any]:
    """Return the content of the configuration file of the host `name`, with this server as the only one.

    Raises:
        ConfigError: the transport is HTTP and the port is 0.
    """
    host, slug = HOSTS[name], str(ANSWERS["slug"])
    if transport == "stdio":
        kind, server, secrets = "stdio", _command(), _upstream_key(config, host)
        if secrets:
            server["env"] = secrets
    else:
        token = f"{slug.upper().replace('-', '_')}_TOKEN"
        secrets = {token: host.placeholder(token)} if config.auth == "token" else {}
        if name == "claude-desktop":
            kind, server = "stdio", _mcp_remote_command(url(config), secrets)
        else:
            kind, server = "http", {"url": url(config)}
            if secrets:
                server["headers"] = {"Authorization": f"Bearer {secrets[token]}"}
    if host.typed:
        server = {"type": kind, **server}
    document: dict[str, Any] = {host.servers: {slug: server}}
    if name == "vscode" and secrets:
        document = {"inputs": [_vscode_input(variable) for variable in secrets], **document}
    return document


def _command() -> dict[str, Any]:
    """Return the command of this installation with absolute paths, independent of the host's folder and PATH."""
    script = Path(sys.executable).with_name(str(ANSWERS["slug"]) + (".exe" if sys.platform == "win32" else ""))
    options = ["--transport", "stdio"]
    if script.exists():
        return {"command": str(script), "args": options}
    return {"command": sys.executable, "args": ["-m", PACKAGE, *options]}


def _mcp_remote_command(url: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    arguments = ["-y", "mcp-remote", url]
    if url.startswith("http://"):
        arguments.append("--allow-http")
    if not secrets:
        return {"command": "npx", "args": arguments}
    # No space after the colon: Claude Desktop on Windows does not escape spaces in arguments.
    (variable, placeholder), *_ = secrets.items()
    header = ["--header", f"Authorization:${{{variable}}}"]
    return {"command": "npx", "args": [*arguments, *header], "env": {variable: f"Bearer {placeholder}"}}


def _upstream_key(config: ProductionConfig, host: Host) -> dict[str, str]:
    name = config.upstream_api_key_env
    return {name: host.placeholder(name)} if name else {}


def _vscode_input(variable: str) -> dict[str, Any]:
    return {"type": "promptString", "id": _input_id(variable), "description": variable, "password": True}


def url(config: ProductionConfig) -> str:
    """Return the URL at which a host reaches the server: the public one, or that on this machine.

    Raises:
        ConfigError: the port is 0.
    """
    if config.public_url is not None:
        return f"{config.public_url}{ENDPOINT}"
    if config.port == 0:
        raise ConfigError(["PORT: 0 lets the system choose a port, which the host cannot know; set one with --port"])
    address = LOCAL_ADDRESSES.get(config.host, f"[{config.host}]" if ":" in config.host else config.host)
    return f"http://{address}:{config.port}{ENDPOINT}"
