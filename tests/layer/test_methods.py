"""Every method passes every layer, on running servers over every transport: the table of methods and layers."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mcp_types.methods import CLIENT_REQUESTS, SPEC_CLIENT_METHODS

from harness import HAS_LOGGING, HAS_METRICS, LEGACY, config, text_of, wait_for
from methods import DETAIL, END, EXAMPLES, HTTP, STDIO, TARGETS, TRANSPORTS, Case, Peer, cases, serving, tools
from weather_station.production.config import ANSWERS
from weather_station.production.request import LISTEN
from weather_station.server import create_server

DAY = 86_400
LONG = 3600

Serving = Callable[..., Peer]
"""`serving(transport, **settings)` returns a client of a server with these settings, which the module shares."""

Captured = pytest.CaptureFixture[str]

ALICE = "f81bf3ae2a2c57fb2b0f6a4f11a5d9c0"
"""A token."""

LAYERS = {"rate limit", "timeout", "log", "metric", "span", "identity", "crash text", "drain", "beyond grace"}

EVERY = cases()
SUBSCRIPTIONS = [case for case in EVERY if case[1] == LISTEN]
OTHERS = [case for case in EVERY if case[1] != LISTEN]
OVER_HTTP = cases(*HTTP)

tested: set[tuple[str, str, str]] = set()
"""The cells of the table that have a test: transport, method and layer."""


def each_case(*layers: str, of: list[Case] = EVERY) -> pytest.MarkDecorator:
    """Parametrize a test of these layers with each case."""
    tested.update((transport, EXAMPLES[name][0], layer) for transport, name in of for layer in layers)
    return pytest.mark.parametrize(("transport", "name"), of)


def each_transport(*layers: str, of: list[Case] = EVERY) -> pytest.MarkDecorator:
    """Parametrize a test of these layers, which goes through the cases by itself, with their transports."""
    each_case(*layers, of=of)
    return pytest.mark.parametrize("transport", dict.fromkeys(transport for transport, _ in of))


def names(transport: str, of: list[Case] = EVERY) -> list[str]:
    return [name for found, name in of if found == transport]


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
    """Return the line of the last request; that of a subscription is written after its client has left."""
    found: list[dict[str, Any]] = []

    def logged() -> bool:
        found.extend(line for line in peer.log() if "outcome" in line)
        return bool(found) and found[-1]["method"] == EXAMPLES[name][0]

    wait_for(logged, "the line of the request")
    return found[-1]


def require_answer(peer: Peer, name: str) -> None:
    """Require that the server still answers the example."""
    assert "result" in peer.ask(name)
    if HAS_LOGGING:
        assert line_of(peer, name)["outcome"] == "success"


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


def test_the_table_is_complete() -> None:
    """Each method that the server answers has a test of each layer over each transport whose protocol has it."""
    server = create_server(config())
    tools(server)
    needed = {
        (transport, method, layer)
        for method in {*server._lowlevel_server._request_handlers, "initialize"}
        for transport in TRANSPORTS
        if method not in SPEC_CLIENT_METHODS or (method, transport[: len(LEGACY)]) in CLIENT_REQUESTS
        for layer in LAYERS | ({"token"} if transport in HTTP else set())
    }
    assert tested == needed


def require_caller(peer: Peer, name: str, caller: str) -> None:
    answer = peer.ask(name, "caller")
    assert answer["error"]["message"] == caller, "the handler sees its caller"
    if HAS_LOGGING:
        assert line_of(peer, name)["client_id"] == caller


@each_case("log", "metric", "identity")
def test_a_request_is_answered_and_recorded(servers: Serving, transport: str, name: str) -> None:
    peer = servers(transport)
    method = EXAMPLES[name][0]
    target = next(iter(TARGETS.get(name, {"": ""}).values()))
    labels = {
        "mcp_method_name": method,
        "gen_ai_tool_name": target if method == "tools/call" else "",
        "gen_ai_prompt_name": target if method == "prompts/get" else "",
        "mcp_resource_template": target if method == "resources/read" else "",
        "error_type": "",
    }

    def count() -> float:
        return peer.metrics().value("mcp_server_operation_duration_seconds_count", **labels) or 0

    before = count() if HAS_METRICS else 0
    assert "result" in peer.ask(name)
    if HAS_LOGGING:
        line = line_of(peer, name)
        assert line["outcome"] == "success"
        assert {field: line.get(field) for field in ("tool", "prompt", "resource")} == {
            "tool": None,
            "prompt": None,
            "resource": None,
        } | TARGETS.get(name, {})
    if HAS_METRICS:
        wait_for(lambda: count() > before)
    require_caller(peer, name, "127.0.0.1" if transport in HTTP else "stdio")


@pytest.mark.needs("inbound.auth_token")
@each_case("token", of=OVER_HTTP)
def test_a_request_is_that_of_its_token(servers: Serving, transport: str, name: str) -> None:
    caller = "alice" if ANSWERS["config"]["auth"] == "token" else "token:alice"
    require_caller(servers(transport, auth_tokens=f"alice:{ALICE}", token=ALICE), name, caller)


@each_case("crash text")
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
    require_answer(peer, name)


@each_case(of=cases("2025-11-25 stateful", *STDIO))
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
    require_answer(peer, name)


@each_case("timeout", of=OTHERS)
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


@each_transport("timeout", "beyond grace", of=SUBSCRIPTIONS)
def test_a_subscription_has_no_timeout_and_ends_as_a_success(transport: str, log: Log, tmp_path: Path) -> None:
    """It is the only request that stays open: the server neither waits for it nor stops it after a time.

    Its result, which the specification calls a graceful closure, tells the client that the server has ended it.
    """
    with serving(transport, log.read, tool_timeout_seconds=0.05, shutdown_grace_seconds=LONG) as peer:
        with peer.subscription() as rest:
            assert "did not finish" in str(peer.ask("tools/call", f"wait:{tmp_path}"))
            if HAS_METRICS:
                assert peer.metrics().value("mcp_active_requests") == 0
            peer.stop()
            (end,) = rest()
            assert "result" in end
        if HAS_LOGGING:
            assert line_of(peer, LISTEN)["outcome"] == "success"


@each_transport("drain")
def test_a_draining_server_rejects_every_request_and_finishes_the_running_ones(
    transport: str, log: Log, tmp_path: Path
) -> None:
    with serving(transport, log.read, shutdown_grace_seconds=LONG) as peer:
        # During `initialize` over stdio no other request is read, and a drain does not wait for a subscription.
        held = set(names(transport)) - {LISTEN} - ({"initialize"} if transport in STDIO else set())
        waits = [peer.send(name, f"wait:{tmp_path}") for name in held]
        wait_for(lambda: len(list(tmp_path.iterdir())) == len(held))
        peer.stop()
        for name in names(transport):
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


def test_a_draining_server_over_stdio_finishes_a_running_initialize(log: Log, tmp_path: Path) -> None:
    with serving("2025-11-25 stdio", log.read, shutdown_grace_seconds=LONG) as peer:
        wait = peer.send("initialize", f"wait:{tmp_path}")
        wait_for(lambda: len(list(tmp_path.iterdir())) == 1)
        peer.stop()
        (tmp_path / END).touch()
        assert "result" in wait()


@each_transport("beyond grace", of=OTHERS)
def test_a_request_longer_than_the_grace_time_gets_an_error(transport: str, log: Log, tmp_path: Path) -> None:
    with serving(transport, log.read, shutdown_grace_seconds=0.2) as peer:
        held = names(transport, of=OTHERS)
        waits = [peer.send(name, f"wait:{tmp_path}") for name in held]
        wait_for(lambda: len(list(tmp_path.iterdir())) == len(held))
        peer.stop()
        for name, wait in zip(held, waits, strict=True):
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
@each_case("rate limit")
def test_every_message_counts(servers: Serving, transport: str, name: str) -> None:
    limit = 4
    peer = servers(transport, rate_limit_messages=limit, rate_limit_requests=1000, rate_limit_window_seconds=DAY)
    if peer not in exhausted:  # few rejections, since the log has 20 of a kind in ten seconds
        while "result" in peer.ask("tools/list"):
            pass
        exhausted.append(peer)
    require_rejection(peer, name, limit, "MessageRateLimited")


@pytest.mark.needs("inbound.rate_limit")
@each_transport()
def test_requests_that_run_the_owners_code_share_one_limit(transport: str, log: Log) -> None:
    limits: dict[str, Any] = {
        "rate_limit_requests": len(LIMITED),
        "rate_limit_messages": 1000,
        "rate_limit_window_seconds": DAY,
    }
    with serving(transport, log.read, **limits) as peer:
        for name in LIMITED:
            assert "result" in peer.ask(name)
        for name in names(transport):
            if name in LIMITED:
                require_rejection(peer, name, len(LIMITED), "RateLimited")
            else:
                require_answer(peer, name)


@pytest.mark.needs("observe.telemetry")
@each_transport("span")
def test_every_request_is_a_span(transport: str, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    receiver = importlib.import_module("test_telemetry").receiver
    caller = "127.0.0.1" if transport in HTTP else "stdio"
    spans = [method_and_target(name) for name in names(transport)]
    expected = {(span, caller, status) for span in spans for status in ("success", "error")}
    with receiver() as collector, serving(transport, log.read, telemetry_endpoint=collector.endpoint) as peer:
        for name in names(transport):
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
