"""Every method passes every layer, on running servers over every transport: the table of methods and layers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from harness import HAS_LOGGING, HAS_METRICS, HEADERS, INITIALIZE, config, modern, text_of, wait_for
from methods import (
    DETAIL,
    END,
    EXAMPLES,
    HTTP,
    MODE,
    OTHER_METHODS,
    OWN_METHODS,
    STDIO,
    TARGETS,
    TRANSPORTS,
    HttpPeer,
    Peer,
    cases,
    serving,
    tools,
)
from weather_station.server import create_server

DAY = 86_400
LONG = 3600

Serving = Callable[..., Peer]
"""`serving(transport, **settings)` returns a client of a server with these settings, which the module shares."""

Captured = pytest.CaptureFixture[str]

every_case = pytest.mark.parametrize(("transport", "name"), cases())


class Log:
    """The stderr of the test that runs."""

    captured: Captured | None = None

    def read(self) -> str:
        assert self.captured is not None
        return self.captured.readouterr().err


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.fixture(scope="module")
def servers(log: Log) -> Iterator[Serving]:
    peers: dict[str, Peer] = {}
    with ExitStack() as stack:

        def get(transport: str, **settings: Any) -> Peer:
            key = json.dumps([transport, settings])
            if key not in peers:
                peers[key] = stack.enter_context(serving(transport, log.read, **settings))
            return peers[key]

        yield get


@pytest.fixture(autouse=True)
def capture(log: Log, capfd: Captured) -> None:
    log.captured = capfd


def line_of(peer: Peer, name: str) -> dict[str, Any]:
    """Return the line of the last request."""
    found: list[dict[str, Any]] = []

    def logged() -> bool:
        found.extend(line for line in peer.log() if "outcome" in line)
        return bool(found)

    wait_for(logged, "the line of the request")
    assert found[-1]["method"] == EXAMPLES[name][0]
    return found[-1]


def failure_of(answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the text and the metadata of a failed request: of the error result of a tool, or of a JSON-RPC error."""
    if "result" in answer:
        assert answer["result"]["isError"]
        return text_of(answer["result"]), answer["result"].get("_meta", {})
    return answer["error"]["message"], answer["error"].get("data") or {}


def require_form(answer: dict[str, Any], name: str, code: int) -> None:
    """Require the method's own form of a failure."""
    assert ("result" in answer) == (name == "tools/call")
    assert name == "tools/call" or answer["error"]["code"] == code


def test_every_method_that_the_server_answers_has_an_example() -> None:
    server = create_server(config())
    tools(server)
    covered = {method for method, _, _ in EXAMPLES.values()} | OTHER_METHODS
    answered = {*server._lowlevel_server._request_handlers, "initialize"}
    assert answered == covered


@every_case
def test_a_request_is_answered_and_recorded(servers: Serving, transport: str, name: str) -> None:
    peer = servers(transport)
    caller = "127.0.0.1" if transport in HTTP else "stdio"
    result = peer.ask(name)["result"]
    method = EXAMPLES[name][0]
    if method in OWN_METHODS:  # whose handlers return their caller's id
        assert f'"{caller}"' in json.dumps(result)
    if HAS_LOGGING:
        line = line_of(peer, name)
        assert line["outcome"] == "success"
        assert line["client_id"] == caller
        assert {field: line.get(field) for field in ("tool", "prompt", "resource")} == {
            "tool": None,
            "prompt": None,
            "resource": None,
        } | TARGETS.get(name, {})
    if HAS_METRICS:
        target = next(iter(TARGETS.get(name, {"": ""}).values()))
        labels = {
            "mcp_method_name": method,
            "gen_ai_tool_name": target if method == "tools/call" else "",
            "gen_ai_prompt_name": target if method == "prompts/get" else "",
            "mcp_resource_template": target if method == "resources/read" else "",
            "error_type": "",
        }
        assert peer.metrics().value("mcp_server_operation_duration_seconds_count", **labels)


@every_case
@pytest.mark.parametrize(("mode", "error_type"), [("crash", "ValueError"), ("exit", "SystemExit")])
def test_a_crash_fails_that_request_with_a_request_id_and_without_its_text(
    servers: Serving, transport: str, name: str, mode: str, error_type: str
) -> None:
    peer = servers(transport)
    answer = peer.ask(name, mode)
    require_form(answer, name, -32603)
    text, meta = failure_of(answer)
    assert text.endswith(f": an unexpected error occurred. Request id: {meta['request_id']}")
    assert DETAIL not in json.dumps(answer)
    if HAS_LOGGING:
        line = line_of(peer, name)
        assert (line["outcome"], line["error_type"]) == ("error", error_type)
        assert line["request_id"] == meta["request_id"]
    assert "result" in peer.ask(name), "the server still works"


@pytest.mark.parametrize(("transport", "name"), cases("2025-11-25 stateful", *STDIO))
@pytest.mark.parametrize("mode", ["cancel", "cancel and wait"])
def test_a_handler_that_cancels_its_own_task_fails_its_request_only(
    servers: Serving, transport: str, name: str, mode: str
) -> None:
    """The end of a task that the SDK made would end all requests of the session, or the server over stdio."""
    peer = servers(transport)
    answer = peer.ask(name, mode)
    require_form(answer, name, -32603)
    assert ": an unexpected error occurred. Request id: " in failure_of(answer)[0]
    if HAS_LOGGING:
        line = line_of(peer, name)
        assert (line["outcome"], line["error_type"]) == ("error", "CancelledError")
    assert "result" in peer.ask(name), "the server still works"


@every_case
def test_a_request_is_stopped_after_the_timeout(servers: Serving, transport: str, name: str, tmp_path: Path) -> None:
    peer = servers(transport, tool_timeout_seconds=0.05)
    answer = peer.ask(name, f"wait:{tmp_path}")
    (tmp_path / END).touch()
    require_form(answer, name, -32603)
    text, meta = failure_of(answer)
    assert text.endswith(" did not finish within 0.05 seconds and was stopped.")
    assert meta["timeout_seconds"] == 0.05
    if HAS_LOGGING:
        line = line_of(peer, name)
        assert (line["outcome"], line["error_type"]) == ("error", "ToolTimeout" if name == "tools/call" else "Timeout")


def test_a_subscription_has_no_timeout_and_ends_as_a_success(log: Log, tmp_path: Path) -> None:
    """It is the only request that stays open: the server neither waits for it nor stops it after a time."""
    with serving("2026-07-28", log.read, tool_timeout_seconds=0.05, shutdown_grace_seconds=LONG) as peer:
        assert isinstance(peer, HttpPeer)
        content, headers = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        content["params"]["_meta"][MODE] = "answer"
        with peer.server.client.stream("POST", peer.server.url, json=content, headers=headers) as response:
            events = response.iter_lines()
            assert any("acknowledged" in line for line in events)
            assert "did not finish" in str(peer.ask("tools/call", f"wait:{tmp_path}"))
            if HAS_METRICS:
                assert peer.metrics().value("mcp_active_requests") == 0
            peer.stop()
            assert not [line for line in events if "error" in line]
        if HAS_LOGGING:
            lines: list[dict[str, Any]] = []

            def ended() -> list[str]:
                lines.extend(peer.log())
                return [line["outcome"] for line in lines if line.get("method") == "subscriptions/listen"]

            wait_for(ended)
            assert ended() == ["success"]


def other(method: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the message and the headers of a method that has no example."""
    if method == "initialize":
        return INITIALIZE, HEADERS
    content, headers = modern(method, {"notifications": {"toolsListChanged": True}})
    content["params"]["_meta"][MODE] = "answer"
    return content, headers


def send_other(peer: Peer, method: str) -> dict[str, Any]:
    """Send a method that has no example over HTTP, and return the first message of its response."""
    assert isinstance(peer, HttpPeer)
    content, headers = other(method)
    with peer.server.client.stream("POST", peer.server.url, json=content, headers=headers) as response:
        line = next(line for line in response.iter_lines() if "{" in line)
    return dict(json.loads(line[line.index("{") :]))


@pytest.mark.parametrize("method", sorted(OTHER_METHODS))
def test_a_method_without_an_example_is_recorded(method: str, log: Log) -> None:
    with serving("2026-07-28", log.read) as peer:
        assert "error" not in send_other(peer, method)
        if HAS_LOGGING:
            lines: list[dict[str, Any]] = []

            def ended() -> list[tuple[str, str]]:
                lines.extend(peer.log())
                return [(line["outcome"], line["client_id"]) for line in lines if line.get("method") == method]

            wait_for(ended)
            assert ended() == [("success", "127.0.0.1")]
        if HAS_METRICS:
            targets = dict.fromkeys(("gen_ai_tool_name", "gen_ai_prompt_name", "mcp_resource_template"), "")
            labels = {"mcp_method_name": method, "error_type": ""} | targets
            wait_for(lambda: peer.metrics().value("mcp_server_operation_duration_seconds_count", **labels))


@pytest.mark.parametrize("method", sorted(OTHER_METHODS))
def test_a_draining_server_rejects_a_method_without_an_example(method: str, log: Log, tmp_path: Path) -> None:
    with serving("2026-07-28", log.read, shutdown_grace_seconds=LONG) as peer:
        wait = peer.send("tools/call", f"wait:{tmp_path}")
        wait_for(lambda: len(list(tmp_path.iterdir())) == 1)
        peer.stop()
        error = send_other(peer, method)["error"]
        assert (error["code"], error["message"]) == (-32000, "Server is shutting down. Try again in a few seconds.")
        (tmp_path / END).touch()
        assert "result" in wait()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_draining_server_rejects_every_request_and_finishes_the_running_ones(
    transport: str, log: Log, tmp_path: Path
) -> None:
    with serving(transport, log.read, shutdown_grace_seconds=LONG) as peer:
        names = [name for _, name in cases(transport)]
        waits = [peer.send(name, f"wait:{tmp_path}") for name in names]
        wait_for(lambda: len(list(tmp_path.iterdir())) == len(names))
        peer.stop()
        for name in names:
            answer = peer.ask(name)
            require_form(answer, name, -32000)
            text, meta = failure_of(answer)
            assert text == "Server is shutting down. Try again in a few seconds."
            assert meta["retry_after_seconds"] > 0
            if HAS_LOGGING:
                line = line_of(peer, name)
                assert (line["outcome"], line["error_type"]) == ("rejected", "Draining")
        (tmp_path / END).touch()
        for wait in waits:
            assert "result" in wait()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_request_longer_than_the_grace_time_gets_an_error(transport: str, log: Log, tmp_path: Path) -> None:
    with serving(transport, log.read, shutdown_grace_seconds=0.2) as peer:
        names = [name for _, name in cases(transport)]
        waits = [peer.send(name, f"wait:{tmp_path}") for name in names]
        wait_for(lambda: len(list(tmp_path.iterdir())) == len(names))
        peer.stop()
        for name, wait in zip(names, waits, strict=True):
            answer = wait()
            require_form(answer, name, -32000)
            assert failure_of(answer)[0] == "Server is shutting down; the call was stopped before it finished."


LIMITED = (
    "tools/call",
    "resources/read of a resource",
    "resources/read of a template",
    "prompts/get",
    "completion/complete",
)

exhausted: list[Peer] = []
"""Servers whose limit of messages is used up."""


def require_rejection(peer: Peer, name: str, limit: int, error_type: str) -> None:
    answer = peer.ask(name)
    require_form(answer, name, -32000)
    text, meta = failure_of(answer)
    assert text == f"Rate limit exceeded. 0 requests remaining. Try again in {meta['retry_after_seconds']} seconds."
    assert (meta["limit"], meta["window_seconds"], meta["remaining"]) == (limit, DAY, 0)
    if HAS_LOGGING:
        line = line_of(peer, name)
        assert (line["outcome"], line["error_type"]) == ("rejected", error_type)


@pytest.mark.needs("inbound.rate_limit")
@every_case
def test_every_message_counts(servers: Serving, transport: str, name: str) -> None:
    limit = 4
    peer = servers(transport, rate_limit_messages=limit, rate_limit_requests=1000, rate_limit_window_seconds=DAY)
    if peer not in exhausted:  # few rejections, since the log has 20 of a kind in ten seconds
        while "result" in peer.ask("tools/list"):
            pass
        exhausted.append(peer)
    require_rejection(peer, name, limit, "MessageRateLimited")


@pytest.mark.needs("inbound.rate_limit")
@pytest.mark.parametrize("method", sorted(OTHER_METHODS))
def test_a_method_without_an_example_counts(method: str, log: Log) -> None:
    with serving("2026-07-28", log.read, rate_limit_messages=1, rate_limit_window_seconds=DAY) as peer:
        assert "error" not in send_other(peer, method)
        error = send_other(peer, method)["error"]
        assert error["code"] == -32000
        assert error["message"].startswith("Rate limit exceeded. 0 requests remaining.")


@pytest.mark.needs("inbound.rate_limit")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_requests_that_run_the_owners_code_share_one_limit(transport: str, log: Log) -> None:
    limits = {"rate_limit_requests": len(LIMITED), "rate_limit_messages": 1000, "rate_limit_window_seconds": DAY}
    with serving(transport, log.read, **limits) as peer:
        for name in LIMITED:
            assert "result" in peer.ask(name)
        for _, name in cases(transport):
            if name in LIMITED:
                require_rejection(peer, name, len(LIMITED), "RateLimited")
            else:
                assert "result" in peer.ask(name)


@pytest.mark.needs("observe.telemetry")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_request_is_a_span(transport: str, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    receiver = importlib.import_module("test_telemetry").receiver
    names = [name for _, name in cases(transport)]
    caller = "127.0.0.1" if transport in HTTP else "stdio"
    expected = {(method_and_target(name), caller, status) for name in names for status in ("success", "error")}
    with receiver() as collector, serving(transport, log.read, telemetry_endpoint=collector.endpoint) as peer:
        for name in names:
            assert "result" in peer.ask(name)
            assert DETAIL not in str(peer.ask(name, "crash"))
        found: set[tuple[str, str, str]] = set()

        def all_arrived() -> bool:
            found.update(
                (span.name, span.attributes["enduser.id"], span.attributes["mcp_server.status"])
                for span in collector.spans
                if span.kind == "SERVER"
            )
            return expected <= found

        wait_for(all_arrived, "a span of each request")


def method_and_target(name: str) -> str:
    """Return the name of the span of an example."""
    method = EXAMPLES[name][0]
    return " ".join([method, *TARGETS.get(name, {}).values()])
