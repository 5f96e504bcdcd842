"""`--call` makes one call through the whole pipeline; `--dev` starts the server anew when a file changes."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from harness import HAS_LOGGING, copy_package, environment, wait_for
from weather_station import server as server_module
from weather_station.__main__ import SLUG, main
from weather_station.production import on_startup
from weather_station.production.config import ANSWERS
from weather_station.production.sdk import ProductionServer


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    async def greet(city: str, ctx: Context[Any, Any], times: int = 1) -> str:
        if city == "Atlantis":
            raise ToolError("There is no Atlantis.")
        return f"Hello {city}! " * times

    async def status() -> dict[str, int]:
        return {"open": 3}

    def register(server: ProductionServer) -> None:
        server.add_tool(greet)
        server.add_tool(status)

    monkeypatch.setitem(vars(server_module), "register", register)
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "status", "out"),
    [
        (["greet", '{"city": "Lisbon"}'], 0, "Hello Lisbon! \n"),
        (["greet", '{"city": "Lisbon", "times": 2}'], 0, "Hello Lisbon! Hello Lisbon! \n"),
        (["status"], 0, '{\n  "open": 3\n}\n'),
    ],
)
def test_the_result_is_printed(capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, out: str) -> None:
    assert main(["--call", *arguments]) == status
    shown = capsys.readouterr()
    assert shown.out == out
    if HAS_LOGGING:
        assert "tool call" in shown.err or "success" in shown.err or not shown.err


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        (["greet", '{"city": "Atlantis"}'], 1, "There is no Atlantis."),
        (["greet", "{}"], 1, "city"),
        (["gret", "{}"], 2, f"{SLUG}: --call: there is no tool gret: did you mean greet?"),
        (["xyz"], 2, f"{SLUG}: --call: there is no tool xyz: there are "),
        (["greet", "{city: Lisbon}"], 2, "the arguments of the tool are not JSON (Expecting property name"),
        (["greet", '"Lisbon"'], 2, "the arguments of the tool must be a JSON object"),
        (["greet", "{city:", "Lisbon}"], 2, "the arguments of the tool are one JSON object; write them in quotes"),
    ],
)
def test_a_mistake_is_explained(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, problem: str
) -> None:
    assert main(["--call", *arguments]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert problem in shown.err
    assert "Traceback" not in shown.err
    if status == 2:
        assert len(shown.err.splitlines()) == 1


def test_a_server_that_does_not_start_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def connect() -> None:
        raise ConnectionError("no database")

    def register(server: ProductionServer) -> None:
        server.add_tool(connect, "greet")
        on_startup(server, connect)

    monkeypatch.setitem(vars(server_module), "register", register)
    assert main(["--call", "greet"]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(SLUG)]
    assert line.endswith("failed with ConnectionError: no database")


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        (None, "<token>"),
        ("ann:secret-of-ann,bob:secret-of-bob", "secret-of-ann"),
        (" ann : secret-of-ann ", "secret-of-ann"),
        ("ann:", "<token>"),
    ],
)
def test_the_command_of_the_inspector(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tokens: str | None, shown: str
) -> None:
    if tokens is not None:
        monkeypatch.setenv("AUTH_TOKENS", tokens)
    assert main(["--inspect", "--port", "9000"]) == 0
    words = shlex.split(capsys.readouterr().out)
    address = ["--transport", "http", "--server-url", "http://127.0.0.1:9000/mcp"]
    header = [] if ANSWERS["config"]["auth"] == "none" else ["--header", f"Authorization: Bearer {shown}"]
    assert words == ["npx", "@modelcontextprotocol/inspector", *address, *header]
    assert main(["--inspect", "--port", "0"]) == 2


def test_a_change_starts_the_server_anew(tmp_path: Path) -> None:
    copy_package(tmp_path, {"__init__": "def register(server): ..."})
    tools = tmp_path / "weather_station" / "tools" / "__init__.py"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "weather_station", "--dev", "--port", "0"],
            cwd=tmp_path,
            env=environment() | {"PYTHONPATH": str(tmp_path)},
            stderr=output,
            start_new_session=True,
            # Whoever runs the tests in the background of a shell has them inherit that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for(lambda: log.read_text().count("/mcp") == 1, "the first start")
        tools.write_text("def register(server) ...")
        wait_for(lambda: "the server has ended; waiting for a change" in log.read_text())
        assert "tools/__init__.py:1: SyntaxError" in log.read_text()
        tools.write_text("def register(server): ...\n")
        wait_for(lambda: log.read_text().count("/mcp") == 2, "the second start")
        assert log.read_text().count("a file has changed: restarting") == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
