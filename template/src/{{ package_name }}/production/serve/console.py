"""Commands for the development of tools.

`--call` makes one call, `--dev` restarts on each change, and `--inspect` prints the command of the MCP inspector.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent

from ..config import ConfigError, ProductionConfig, StartError
from ..sdk import ProductionServer
from ..terminal import lines
from ..upstream.errors import ungrouped
from .host_config import url

PACKAGE = __package__.partition(".")[0]
ROOT = Path(__file__).parents[2]

POLL_SECONDS = 0.3
"""Interval between two looks at the files."""

STOP_SECONDS = 10.0
"""How long a server may take to stop before it is killed."""

FILES = ("*.py", "*.json", "*.pyi")
"""Files of the package whose changes restart the server."""


def call(value: Sequence[str], overrides: Mapping[str, Any]) -> int:
    """Call a tool through the whole pipeline and print its result; return the exit status.

    It is 0 after a success and 1 after an error result.

    Args:
        value: The tool, and its arguments as one JSON object.
        overrides: Fields of the configuration.

    Raises:
        ConfigError: the configuration is not valid, there is no such tool, or the arguments are not a JSON object.
        StartError: the server cannot start.
    """
    # Not imported at the top: the server's features name this command.
    create_server: Callable[[ProductionConfig], ProductionServer] = import_module(f"{PACKAGE}.server").create_server
    tool, arguments = value[0], _arguments(value[1:])
    server = create_server(ProductionConfig.load(**overrides))
    names = [registered.name for registered in server.registered_tools()]
    if tool not in names:
        meant = difflib.get_close_matches(tool, names, 1)
        hint = f"did you mean {meant[0]}?" if meant else f"there are {', '.join(names)}"
        raise ConfigError([f"--call: there is no tool {tool}: {hint}"])
    result = asyncio.run(_call(server, tool, arguments))
    for block in result.content:
        text = block.text if isinstance(block, TextContent) else json.dumps(block.model_dump(mode="json"))
        (sys.stderr if result.is_error else sys.stdout).write(f"{lines(text)}\n")
    return 1 if result.is_error else 0


def _arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a call.

    Raises:
        ConfigError: `texts` are not one JSON object.
    """
    example = """write them in quotes, as '{"city": "Lisbon"}'"""
    if len(texts) > 1:
        raise ConfigError([f"--call: the arguments of the tool are one JSON object; {example}"])
    try:
        arguments = json.loads(texts[0]) if texts else {}
    except ValueError as error:
        raise ConfigError([f"--call: the arguments of the tool are not JSON ({error}); {example}"]) from None
    if not isinstance(arguments, dict):
        raise ConfigError([f"--call: the arguments of the tool must be a JSON object; {example}"])
    return arguments


async def _call(server: ProductionServer, tool: str, arguments: dict[str, Any]) -> CallToolResult:
    try:
        async with Client(server) as client:
            try:
                return await client.call_tool(tool, arguments)
            except MCPError as error:
                return CallToolResult(content=[TextContent(text=str(error))], is_error=True)
    except BaseExceptionGroup as group:  # the client runs the server in a task group
        if (causes := group.subgroup((ConfigError, StartError))) is None:
            raise
        raise ungrouped(causes)[0] from None


def dev(_: bool, overrides: Mapping[str, Any]) -> int:
    """Serve over HTTP until Ctrl-C, and restart whenever a file of the package changes."""
    options = [f"--{name}={value}" for name, value in overrides.items()]
    command = [sys.executable, "-m", PACKAGE, *options]
    environment = {"LOG_FORMAT": "console", **os.environ}
    try:
        while True:
            seen = _changed_at()
            process = subprocess.Popen(command, env=environment)  # noqa: S603 (this server's own command)
            try:
                _wait_for_change(process, seen)
            finally:
                _stop(process)
            _say("a file has changed: restarting")
    except KeyboardInterrupt:
        return 0


def inspect(_: bool, overrides: Mapping[str, Any]) -> int:
    """Print the command that opens the MCP inspector on this server over HTTP, with a token where there is one.

    Its options are those of `@modelcontextprotocol/inspector` 2.12.

    Raises:
        ConfigError: the configuration is not valid, or the port is 0.
    """
    config = ProductionConfig.load(**overrides)
    command = ["npx", "@modelcontextprotocol/inspector", "--transport", "http", "--server-url", url(config)]
    if config.auth != "none":
        tokens = config.auth_tokens.get_secret_value() if config.auth_tokens else ""
        token = tokens.partition(",")[0].partition(":")[2].strip() or "<token>"
        command += ["--header", f"Authorization: Bearer {token}"]
    sys.stdout.write(f"{shlex.join(command)}\n")
    return 0


def _wait_for_change(process: subprocess.Popen[bytes], seen: Mapping[Path, int]) -> None:
    ended = False
    while _changed_at() == seen:
        if process.poll() is not None and not ended:
            ended = True
            _say("the server has ended; waiting for a change")
        time.sleep(POLL_SECONDS)


def _changed_at() -> dict[Path, int]:
    """Return the time of the last change of each file."""
    found: dict[Path, int] = {}
    for path in (path for pattern in FILES for path in ROOT.rglob(pattern)):
        try:
            found[path] = path.stat().st_mtime_ns
        except OSError:  # removed meanwhile
            continue
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server, which finishes its calls."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _say(text: str) -> None:
    sys.stderr.write(f"--dev: {text}\n")
