"""The behaviour of every server, on a running one with the tools of this file."""

import asyncio
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from starlette.requests import Request
from starlette.responses import Response

from weather_station import server as server_module
from weather_station.__main__ import SLUG, main
from weather_station.production import (
    on_shutdown,
    on_startup,
    readiness_check,
    upstream,
)
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.lifecycle import NOTICE_SECONDS
from weather_station.production.testing import (
    Api,
    Process,
    Server,
    wait_for,
)

TOOLS = f"{__file__}:tools"
CLIENT = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
INITIALIZE = {"id": 0, "method": "initialize", "params": CLIENT}


def tools(server: ProductionServer) -> None:
    released = asyncio.Event()

    async def echo(text: str) -> str:
        return text

    async def crash() -> str:
        raise RuntimeError("password=hunter2")

    async def reject() -> str:
        raise ToolError("Not on Sundays.")

    async def hold() -> str:
        sys.stderr.write("<holding>\n")
        await released.wait()
        return "held"

    async def release(request: Request) -> Response:
        released.set()
        return Response()

    async def fetch(item: str, ctx: Context) -> int:
        return int((await upstream(ctx).get_json("/items/{item}", path_params={"item": item}))["in_stock"])

    async def progress(ctx: Context) -> None:
        await ctx.report_progress(1, 2)

    async def close() -> None:
        sys.stderr.write("<closed>\n")

    for tool in (echo, crash, reject, hold, fetch, progress):
        server.tool()(tool)
    server.custom_route("/release", ["GET"])(release)
    on_shutdown(server, close)


def text(server: Server, tool: str, **arguments: Any) -> str:
    """Call a tool that fails, and return the text for the model."""
    result = server.call(tool, arguments)
    assert result.is_error
    return str(getattr(result.content[0], "text", ""))


def test_a_result_and_every_kind_of_failure() -> None:
    with Server(tools) as server:
        assert server.call("echo", {"text": "hello"}).structured_content == {"result": "hello"}
        assert text(server, "crash").startswith("Error executing tool crash: an unexpected error occurred. Request id")
        assert "hunter2" not in text(server, "crash")
        assert text(server, "reject") == "Not on Sundays."
        assert text(server, "echo", text=[1]).startswith("Invalid arguments for tool echo: text: ")
        assert "Unknown tool: missing" in text(server, "missing")


def test_a_tool_is_stopped_after_its_timeout() -> None:
    with Server(tools, tool_timeout_seconds=0.05) as server:
        assert text(server, "hold") == "Tool hold did not finish within 0.05 seconds and was stopped."


@pytest.mark.parametrize(
    ("status", "reason", "argument", "headers"),
    [
        (200, "result", "", {"Host": "localhost", "Origin": "http://localhost"}),
        (421, "ALLOWED_HOSTS", "", {"Host": "evil.example"}),
        (403, "ALLOWED_ORIGINS", "", {"Origin": "https://evil.example"}),
        (413, "MAX_REQUEST_BYTES", "x" * 2000, {}),
        (400, "is nested deeper than 100 levels", json.loads("[" * 101 + "]" * 101), {}),
    ],
)
def test_requests_that_must_not_reach_a_tool(status: int, reason: str, argument: Any, headers: dict[str, str]) -> None:
    with Server(tools, max_request_bytes=1024) as server:
        response = server.send("tools/call", {"name": "echo", "arguments": {"text": argument}}, headers)
    assert (response.status_code, reason in response.text) == (status, True), response.text


def test_probes_and_the_health_report() -> None:
    reachable = threading.Event()

    async def check() -> None:
        assert reachable.is_set()

    with Server(lambda server: readiness_check(server, "database", check)) as server:
        assert server.get("/livez").json() == {"status": "alive"}
        response = server.get("/readyz")
        assert (response.status_code, response.json()["failing"]) == (503, ["database"])
        assert server.get("/health").json()["problems"] == ["not ready: database"]
        reachable.set()
        wait_for(lambda: server.get("/readyz").status_code == 200)
        report: Any = server.call("health_check").structured_content
    assert (report["status"], report["server_name"]) == ("healthy", SLUG)


def test_requests_to_the_upstream(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_API_KEY", "key-of-the-server")
    route = api.on("GET", "/items/{item}", json={"in_stock": 3})
    route.then(404).then(text="<html>").then(content=bytes(2000)).then(drop=True)
    settings = {"upstream_api_key_env": "TEST_API_KEY", "max_response_bytes": 1024, "max_retries": 0}
    with Server(tools, upstream_base_url=api.url, **settings) as server:
        assert server.call("fetch", {"item": "green tea"}).structured_content == {"result": 3}
        assert api.requests[0].target == "/items/green%20tea"
        assert api.requests[0].headers["authorization"] == "Bearer key-of-the-server"
        assert api.requests[0].headers["user-agent"].startswith(f"{SLUG}/")
        assert "answered 404 Not Found. Trying again will not help." in text(server, "fetch", item="1")
        assert "answered with malformed JSON" in text(server, "fetch", item="1")
        assert "answered with more than 1024 bytes" in text(server, "fetch", item="1")
        assert "broke the connection before its answer was complete" in text(server, "fetch", item="1")
        assert "must not be '..'" in text(server, "fetch", item="..")


@pytest.mark.parametrize(("session_mode", "response_mode"), [("stateless", "json"), ("stateful", "sse")])
def test_sessions_and_progress_work_in_their_modes(session_mode: str, response_mode: str) -> None:
    with Server(tools, session_mode=session_mode, response_mode=response_mode) as server:
        message = {"jsonrpc": "2.0", **INITIALIZE}
        opened = server.client.post("/mcp", json=message, headers={"Accept": "application/json, text/event-stream"})
        assert ("mcp-session-id" in opened.headers) == (session_mode == "stateful")
        params = {"name": "progress", "arguments": {}, "_meta": {"progressToken": 1}}
        assert ("notifications/progress" in server.send("tools/call", params).text) == (response_mode == "sse")


def test_the_plain_log_is_a_line_for_each_record(capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools, enable_logging=False) as server:
        server.get("/livez")
        logging.getLogger("library").warning("two\nlines")
        server.call("crash")
    log = capfd.readouterr().err
    assert "Z WARNING  library: two\\nlines\n" in log
    assert "\n  RuntimeError: " in log


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_a_stopping_server_finishes_the_running_call() -> None:
    results = []
    with Process(tools=TOOLS) as server:
        call = threading.Thread(target=lambda: results.append(server.call("hold")))
        assert server.get("/readyz").status_code == 200
        call.start()
        wait_for(lambda: "<holding>" in server.log())
        server.terminate()
        wait_for(lambda: server.get("/readyz").json().get("failing") == ["draining"])
        assert "Server is shutting down." in str(server.call("echo", {"text": "late"}).content)
        time.sleep(NOTICE_SECONDS)  # so that only the call delays the exit
        server.get("/release")
        call.join()
        assert server.exit_status() == 0, server.log()
        assert server.log().index("<holding>") < server.log().index("<closed>")
    assert results[0].structured_content == {"result": "held"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in this process with `register` instead of the tools, and return its exit status."""
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)

    def run(*options: str, register: Callable[[ProductionServer], None] = tools) -> int:
        monkeypatch.setattr(server_module, "register", register)
        return main(options)

    return run


def test_check_reports_whether_the_upstream_answers(
    command: Callable[..., int], api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BASE_URL", api.url)
    assert command("--check") == 0
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    assert command("--check") == 1
    ok, failed = (line for line in capsys.readouterr().out.splitlines() if line.startswith("upstream"))
    assert f"reached: {api.url} answered 404" in ok
    assert "failed: http://127.0.0.1:9" in failed


def test_a_failed_start_names_the_reason(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def twice(server: ProductionServer) -> None:
        tools(server)
        tools(server)

    async def connect() -> None:
        raise OSError("connection refused")

    assert command("--check", register=twice) == 1
    assert command("--check", register=lambda server: on_startup(server, connect)) == 1
    monkeypatch.setenv("MAX_REQUEST_BYTES", "many")
    assert command() == 2
    taken, failed, invalid = (line for line in capsys.readouterr().err.splitlines() if line.startswith(f"{SLUG}: "))
    assert taken.endswith("has the same name; rename one of them")
    assert failed.endswith("failed with OSError: connection refused")
    assert invalid.startswith(f"{SLUG}: MAX_REQUEST_BYTES: Input should be a valid integer")
