"""Command line: its options, its exit statuses, and the one line for an operator where it cannot work."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from harness import Register
from stand_in import stand_in
from weather_station import __main__ as cli
from weather_station import server as server_module
from weather_station.__main__ import COMMANDS as OPTIONS_OF_COMMANDS
from weather_station.__main__ import OPTIONS, SLUG, main
from weather_station.production import on_startup, readiness_check
from weather_station.production.config import ProductionConfig, about, variable
from weather_station.production.features import COMMANDS
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import lifecycle, stdio


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    def unexpected(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"nothing handles {number}")

    before = signal.signal(signal.SIGTERM, unexpected)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def with_tools(monkeypatch: pytest.MonkeyPatch) -> Callable[[Register], None]:
    """`with_tools(register)` serves these tools."""
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    return lambda register: monkeypatch.setattr(server_module, "register", register)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ProductionConfig]:
    """The configurations that the command would have served."""
    seen: list[ProductionConfig] = []

    def serve_http(server: ProductionServer, application: object, listener: socket.socket) -> None:
        seen.append(server.registry.config)
        listener.close()

    def serve_stdio(server: ProductionServer, source: int, sink: int) -> None:
        seen.append(server.registry.config)

    monkeypatch.setattr(lifecycle, "serve_http", serve_http)
    monkeypatch.setattr(stdio, "serve", serve_stdio)
    monkeypatch.setattr(cli, "_redirect_stdio", lambda: (0, 1))
    return seen


def messages(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines of stderr that begin with the command's name, without it."""
    lines = capsys.readouterr().err.splitlines()
    assert not [line for line in lines if line.startswith(("Traceback", "  File"))], lines
    return [line.removeprefix(f"{SLUG}: ") for line in lines if line.startswith(f"{SLUG}: ")]


def test_help_imports_no_library() -> None:
    start = "import sys; from weather_station.__main__ import main"
    script = f"{start}\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    text, modules = run.stdout.rsplit("\n", 2)[0], set(run.stdout.splitlines()[-1].split())
    assert not modules & {"mcp", "pydantic", "starlette", "uvicorn", "structlog"}, "help would wait for these"
    for option in ("--transport", "--host", "--port", "--check", "--version"):
        assert option in text
    for command in ("init_env", "print_config", "call", "dev", "surface", "inspect"):
        assert (f"--{command.replace('_', '-')}" in text) == (command in COMMANDS)
    assert run.stderr == ""


def test_the_commands_are_those_of_the_answers() -> None:
    assert list(COMMANDS) == list(OPTIONS_OF_COMMANDS)


def test_help_shows_the_variables_and_defaults_of_the_configuration() -> None:
    for name, (_, environment_variable, default) in OPTIONS.items():
        assert environment_variable == variable(name)
        assert default == ProductionConfig.model_fields[name].default


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{SLUG} {about().version}\n"


@pytest.mark.parametrize(
    "options",
    [["--nonsense"], ["--port", "abc"], ["--port", "70000"], ["--transport", "carrier-pigeon"], ["--por", "1"], ["x"]],
)
def test_an_invalid_option_ends_with_status_2(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{SLUG}: error: ")


def test_options_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, served: list[ProductionConfig]) -> None:
    monkeypatch.setenv("MCP_TRANSPORT", "stdio")
    monkeypatch.setenv("HOST", "localhost")
    monkeypatch.setenv("PORT", "9")
    assert main(["--transport", "http", "--host", "127.0.0.1", "--port", "0"]) == 0
    assert main([]) == 0
    http, stdio_ = served
    assert (http.transport, http.host, http.port) == ("http", "127.0.0.1", 0)
    assert (stdio_.transport, stdio_.host, stdio_.port) == ("stdio", "localhost", 9)


def test_an_invalid_setting_ends_with_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATE_LIMIT_REQUESTS", "abc")
    assert main([]) == 2
    (line,) = messages(capsys)
    assert line.startswith("RATE_LIMIT_REQUESTS: Input should be a valid integer")


@pytest.mark.parametrize(
    ("host", "problem"),
    [("127.0.0.1", "Address already in use"), ("no-such-host.invalid", ""), ("192.0.2.1", "")],
)
def test_an_address_that_cannot_be_bound_ends_with_status_1(
    capsys: pytest.CaptureFixture[str], host: str, problem: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status = main(["--host", host, "--port", str(port)])
    line, *more = messages(capsys)
    if status == 2:  # beyond loopback, authentication is required first
        assert host != "127.0.0.1"
        assert line == f"HOST: {host} is reachable from other machines, and no authentication is configured"
        return
    assert (status, more) == (1, [])
    assert line.startswith(f"cannot listen on {host}:{port}: {problem if sys.platform != 'win32' else ''}")
    assert line.endswith("Choose another address with --host and --port")


def test_check_reports_on_a_healthy_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in({}) as api:
        monkeypatch.setenv("BASE_URL", api.url)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # the answers may name a collector
        assert main(["--check", "--port", "0"]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    table = dict(rows)
    assert table["server"] == f"{about().name} {about().version}"
    assert table["transport"] == "http on 127.0.0.1:0"
    assert table["upstream"].startswith(f"reached: {api.url} answered 404 ")
    assert "health_check" in table["tools"]
    assert table["status"] in ("healthy", "degraded")


@pytest.mark.parametrize("transport", ["http", "stdio"])
def test_check_ends_with_status_1_if_the_server_is_not_ready(
    capsys: pytest.CaptureFixture[str], with_tools: Callable[..., None], transport: str
) -> None:
    async def unreachable() -> None:
        raise ConnectionError

    with_tools(lambda server: readiness_check(server, "database", unreachable))
    assert main(["--check", "--transport", transport]) == 1
    out = capsys.readouterr().out
    assert re.search("^problem +not ready: database$", out, re.MULTILINE)
    assert re.search("^status +unhealthy$", out, re.MULTILINE)


def test_check_ends_with_status_2_if_the_configuration_is_invalid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "abc")
    assert main(["--check"]) == 2
    assert len(messages(capsys)) == 1


def _failing_start(server: ProductionServer) -> None:
    async def connect_the_database() -> None:
        raise ConnectionRefusedError("no database at db:5432")

    on_startup(server, connect_the_database)


@pytest.mark.parametrize("options", [["--check"], ["--port", "0"]])
def test_a_failing_startup_callback_ends_with_status_1_and_its_cause(
    capsys: pytest.CaptureFixture[str], with_tools: Callable[..., None], options: list[str]
) -> None:
    with_tools(_failing_start)
    assert main(options) == 1
    (line,) = messages(capsys)
    assert re.fullmatch(
        r"cannot start: \S+connect_the_database failed with ConnectionRefusedError: no database at db:5432", line
    )


def test_a_failing_startup_callback_over_stdio_does_not_wait_for_the_client(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], with_tools: Callable[..., None]
) -> None:
    with_tools(_failing_start)
    source, client = os.pipe()
    monkeypatch.setattr(cli, "_redirect_stdio", lambda: (source, 1))
    assert main(["--transport", "stdio"]) == 1
    (line,) = messages(capsys)
    assert "no database at db:5432" in line
    os.close(client)


@pytest.mark.parametrize("register", [lambda server: _twice(server), lambda server: _unusable(server)])
def test_an_unusable_tool_ends_with_status_1(
    capsys: pytest.CaptureFixture[str], with_tools: Callable[..., None], register: Register
) -> None:
    with_tools(register)
    assert main(["--port", "0"]) == 1
    (line,) = messages(capsys)
    assert ": tool ask: " in line


def _twice(server: ProductionServer) -> None:
    async def ask() -> str:
        return ""

    server.tool()(ask)
    server.tool()(ask)


def _unusable(server: ProductionServer) -> None:
    async def ask(_hidden: Any) -> str:
        return ""

    server.tool()(ask)


def test_a_signal_during_the_start_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with PID 1, where the kernel ignores a signal without a handler."""

    def load(**overrides: Any) -> ProductionConfig:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was ignored")

    monkeypatch.setattr(ProductionConfig, "load", load)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ["_parser", "_load", "_run"])
def test_ctrl_c_before_the_server_serves_is_no_traceback(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["weather-station"])
    monkeypatch.setattr(cli, name, interrupted)
    assert cli.main(["--check"]) == 130
