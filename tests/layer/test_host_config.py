"""Host configuration: the printed entry makes a host reach this server, and holds no secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from pydantic import SecretStr

from harness import NO_TOOLS, command, copy_package, environment, http_process
from weather_station.__main__ import COMMANDS, SLUG, main
from weather_station.production.config import ProductionConfig
from weather_station.production.serve import host_config
from weather_station.production.serve.host_config import build

TOKEN = f"{SLUG.upper().replace('-', '_')}_TOKEN"
KEY_ID, TOKEN_ID = "api-key", TOKEN.lower().replace("_", "-")


def printed(*options: str, cwd: Path, **settings: object) -> dict[str, Any]:
    """Return what the command prints to stdout, all of which has to be JSON."""
    done = subprocess.run(
        command(NO_TOOLS, "--print-config", *options),
        cwd=cwd,
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=True,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.stderr.startswith(f"{SLUG}: put this into ")
    return document


def test_the_command_accepts_every_host() -> None:
    assert tuple(host_config.HOSTS) == COMMANDS["print_config"]["choices"]


async def test_the_printed_command_starts_this_server_from_any_folder(tmp_path: Path) -> None:
    """Without a PATH, as a host has it that was started from a desktop."""
    copy_package(tmp_path)
    server = printed("claude-desktop", cwd=tmp_path)["mcpServers"][SLUG]
    assert Path(server["command"]).is_absolute()
    home = {name: value for name, value in environment().items() if name != "PATH"}
    home["PYTHONPATH"] = str(tmp_path)
    parameters = StdioServerParameters(command=server["command"], args=server["args"], env=home, cwd=tmp_path)
    async with Client(parameters) as client:
        assert "health_check" in {tool.name for tool in (await client.list_tools()).tools}


async def test_the_printed_url_reaches_the_running_server(tmp_path: Path) -> None:
    with http_process() as server:
        port = server.base.rpartition(":")[2]
        document = printed("vscode", "--transport", "http", "--port", port, cwd=tmp_path)
        async with Client(document["servers"][SLUG]["url"]) as client:
            assert "health_check" in {tool.name for tool in (await client.list_tools()).tools}


def filled(name: str) -> str:
    """Return a placeholder that a host fills in."""
    return "${" + name + "}"


# The shapes of each host's documentation: code.claude.com/docs/en/mcp, modelcontextprotocol.io (Claude Desktop),
# cursor.com/docs/mcp, code.visualstudio.com/docs (MCP configuration reference); November 2026.
STDIO = {
    "claude-code": {"mcpServers": {SLUG: {"type": "stdio", "env": {"API_KEY": "${API_KEY}"}}}},
    "claude-desktop": {"mcpServers": {SLUG: {"env": {"API_KEY": "<API_KEY>"}}}},
    "cursor": {"mcpServers": {SLUG: {"env": {"API_KEY": "${env:API_KEY}"}}}},
    "vscode": {
        "inputs": [{"type": "promptString", "id": KEY_ID, "description": "API_KEY", "password": True}],
        "servers": {SLUG: {"type": "stdio", "env": {"API_KEY": filled("input:" + KEY_ID)}}},
    },
}
URL = "http://127.0.0.1:8000/mcp"
HTTP: dict[str, dict[str, Any]] = {
    "claude-code": {
        "mcpServers": {SLUG: {"type": "http", "url": URL, "headers": {"Authorization": "Bearer " + filled(TOKEN)}}}
    },
    "claude-desktop": {
        "mcpServers": {
            SLUG: {
                "command": "npx",
                "args": ["-y", "mcp-remote", URL, "--allow-http", "--header", "Authorization:" + filled(TOKEN)],
                "env": {TOKEN: f"Bearer <{TOKEN}>"},
            }
        }
    },
    "cursor": {"mcpServers": {SLUG: {"url": URL, "headers": {"Authorization": "Bearer " + filled("env:" + TOKEN)}}}},
    "vscode": {
        "inputs": [{"type": "promptString", "id": TOKEN_ID, "description": TOKEN, "password": True}],
        "servers": {
            SLUG: {"type": "http", "url": URL, "headers": {"Authorization": "Bearer " + filled("input:" + TOKEN_ID)}}
        },
    },
}


@pytest.mark.parametrize("name", host_config.HOSTS)
def test_over_stdio_the_host_provides_the_key_of_the_upstream(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret-of-the-upstream")
    document = build(name, ProductionConfig(upstream_api_key_env="API_KEY"), transport="stdio")
    server = next(iter(document[host_config.HOSTS[name].servers].values()))
    assert (server.pop("command"), server.pop("args")[-2:]) == (server_command(), ["--transport", "stdio"])
    assert document == STDIO[name]


def server_command() -> str:
    script = Path(sys.executable).with_name(SLUG + (".exe" if os.name == "nt" else ""))
    return str(script) if script.exists() else sys.executable


@pytest.mark.parametrize("name", host_config.HOSTS)
def test_over_http_the_host_provides_the_token(name: str) -> None:
    config = ProductionConfig(auth="token", auth_tokens=SecretStr("me:secret-of-a-client"), host="0.0.0.0")  # noqa: S104 (the image's)
    assert build(name, config, transport="http") == HTTP[name]


@pytest.mark.parametrize("name", host_config.HOSTS)
@pytest.mark.parametrize("auth", ["none", "jwt", "oauth"])
def test_without_static_tokens_the_entry_has_no_authorization(name: str, auth: Any) -> None:
    """With JWT and sign-in the host gets a token by itself, from the issuer that the server names."""
    document = json.dumps(build(name, ProductionConfig(auth=auth), transport="http"))
    assert URL in document
    assert "Authorization" not in document


@pytest.mark.parametrize("name", host_config.HOSTS)
def test_the_entry_has_the_public_url(name: str) -> None:
    config = ProductionConfig(auth="none", port=0, public_url="https://mcp.example.com/weather/")
    assert "https://mcp.example.com/weather/mcp" in json.dumps(build(name, config, transport="http"))


def test_an_entry_for_a_port_of_the_systems_choice_cannot_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-config", "vscode", "--transport", "http", "--port", "0"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "PORT: 0 lets the system choose" in captured.err
