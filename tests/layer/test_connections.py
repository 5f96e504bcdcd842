"""Connections: `--check` asks what the server talks to, and its exit status tells."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from weather_station import server as server_module
from weather_station.__main__ import main
from weather_station.production import connections

from harness import config
from stand_in import stand_in


@pytest.fixture(autouse=True)
def no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "register", lambda server: None)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[int, str]]:
    """`check(url)` runs `--check` with that upstream and returns its status and what it says of it."""

    def run(url: str) -> tuple[int, str]:
        monkeypatch.setenv("BASE_URL", url)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")  # the answers may name a collector
        status = main(["--check", "--port", "0"])
        found = re.search("^upstream +(.*)$", capsys.readouterr().out, re.MULTILINE)
        assert found is not None
        return status, found[1]

    return run


@pytest.fixture
def hung() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_an_upstream_that_answers_is_ok_whatever_it_answers(check: Callable[[str], tuple[int, str]]) -> None:
    with stand_in({}) as url:
        status, said = check(url)
    assert status == 0
    assert re.fullmatch(rf"ok: {url} \(\d+ ms\)", said)


def test_an_upstream_that_is_not_there_fails_the_check(check: Callable[[str], tuple[int, str]]) -> None:
    status, said = check("http://127.0.0.1:9")
    assert status == 1
    assert said.startswith("failed: http://127.0.0.1:9: ")


def test_an_upstream_that_hangs_fails_the_check_in_time(
    check: Callable[[str], tuple[int, str]], hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 0.2)
    assert check(hung) == (1, f"failed: {hung}: no answer within 0.2 s")


async def test_a_port_is_asked_by_connecting(hung: str) -> None:
    open_ = connections.Connection(hung, lambda: connections.accepts(hung))
    found = await connections.ask_all({"open": open_, "shut": connections.Connection("", shut)})
    assert found["open"].problem is None
    assert found["shut"].problem


async def shut() -> None:
    await connections.accepts("http://127.0.0.1:9")


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_the_collector_is_asked_where_traces_are_exported(hung: str, protocol: Any) -> None:
    quiet = config(telemetry_protocol=protocol)
    assert connections.of(quiet, ("telemetry",)).keys() == {"upstream"}
    exporting = config(telemetry_protocol=protocol, telemetry_endpoint="http://127.0.0.1:9")
    assert connections.of(exporting, ()).keys() == {"upstream"}
    asked = await connections.ask_all(connections.of(exporting, ("telemetry",)))
    assert asked["traces"].target == "http://127.0.0.1:9"
    assert asked["traces"].problem


def test_a_target_is_shown_without_its_credentials() -> None:
    assert connections.without_credentials("redis://user:secret@cache:6379/0?password=secret") == "redis://cache:6379/0"
