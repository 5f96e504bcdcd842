"""Replicas and restarts: a question of one process is answered at another, with keys that can be rotated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from harness import Serve, config, http_process
from rounds import ROUNDS, ask, post, rounds
from weather_station.production.config import ConfigError, secret_texts
from weather_station.production.inbound.replicas import keys_of
from weather_station.production.serve import startup
from weather_station.server import create_server

TOOLS = "rounds:rounds"
NAME = "a tool with a state"
OLD, NEW, FOREIGN = (hashlib.sha256(name).hexdigest() for name in (b"old", b"new", b"foreign"))
BEYOND_LOOPBACK: dict[str, Any] = {"host": "0.0.0.0", "auth": "none"}  # noqa: S104 (nothing listens there)


def opens(answer: dict[str, Any]) -> bool:
    """Return whether the state of a question was accepted; a rejection is a protocol error without details."""
    if "error" not in answer:
        assert "done" in str(answer)
        return True
    assert answer["error"] == {
        "code": -32602,
        "message": "Invalid or expired requestState",
        "data": {"reason": "invalid_request_state"},
    }
    return False


def test_a_question_is_answered_at_another_replica_and_after_a_restart() -> None:
    with http_process(TOOLS, REQUEST_STATE_KEYS=OLD) as first, http_process(TOOLS, REQUEST_STATE_KEYS=OLD) as second:
        retries = {name: ask(first.url, name) for name in ROUNDS}
        for retry in retries.values():
            assert opens(post(second.url, *retry))
        first.signal()
        assert first.status() == 0
    with http_process(TOOLS, REQUEST_STATE_KEYS=OLD) as restarted:
        for retry in retries.values():
            assert opens(post(restarted.url, *retry))


@pytest.mark.parametrize(
    ("asking", "answering", "opened"),
    [
        (OLD, f"{OLD},{NEW}", True),
        (f"{OLD},{NEW}", f"{NEW},{OLD}", True),
        (f"{NEW},{OLD}", f"{OLD}, {NEW}", True),
        (OLD, NEW, False),
        (f"{NEW},{OLD}", OLD, False),
        (OLD, FOREIGN, False),
        (None, OLD, False),
        (None, None, False),
    ],
)
def test_the_first_key_seals_and_all_open(
    serve: Serve, asking: str | None, answering: str | None, opened: bool
) -> None:
    with serve(rounds, request_state_keys=asking) as first, serve(rounds, request_state_keys=answering) as second:
        assert opens(post(second.url, *ask(first.url, NAME))) == opened
        assert opens(post(first.url, *ask(first.url, NAME)))


def test_the_keys_come_from_a_file_with_a_line_each(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{NEW}\n{OLD}\n")
    with (
        http_process(TOOLS, REQUEST_STATE_KEYS=OLD) as first,
        http_process(TOOLS, REQUEST_STATE_KEYS_FILE=file) as second,
    ):
        assert opens(post(second.url, *ask(first.url, NAME)))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        (",\n ,", "has no key"),
        ("<random>", "key 1 of 1 is too short"),
        (f"{OLD},{'x' * 31},short", "key 2, 3 of 3 is too short"),
        (f"{OLD},{NEW},{OLD}", "has a key twice"),
    ],
)
def test_unusable_keys_stop_the_start_without_their_text(keys: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        create_server(config(request_state_keys=keys))
    (line,) = caught.value.problems
    assert line.startswith(f"REQUEST_STATE_KEYS: {problem}; ")
    assert not any(key in line for key in (OLD, NEW, "xxxx"))


def test_a_key_counts_its_bytes() -> None:
    assert keys_of(SecretStr("ä" * 16)) == ["ä" * 16]


def test_each_key_is_a_secret_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUEST_STATE_KEYS", f"{OLD}, {NEW}")
    assert {OLD, NEW} <= set(secret_texts())


@pytest.mark.parametrize(
    ("settings", "noticed"),
    [
        (BEYOND_LOOPBACK, True),
        (BEYOND_LOOPBACK | {"request_state_keys": OLD}, False),
        (BEYOND_LOOPBACK | {"transport": "stdio"}, False),
        ({}, False),
    ],
)
async def test_missing_keys_are_named_by_the_start_and_the_check(settings: dict[str, Any], noticed: bool) -> None:
    server = create_server(config(**settings))
    assert any(notice.startswith("REQUEST_STATE_KEYS") for notice in server.registry.notices) == noticed
    lines, _ = await startup.check(server)
    assert any(line.startswith("notice") and "REQUEST_STATE_KEYS" in line for line in lines) == noticed


@pytest.mark.parametrize(("settings", "advertised"), [({}, True), (BEYOND_LOOPBACK, False)])
def test_change_events_are_advertised_where_they_reach_every_subscriber(
    serve: Serve, settings: dict[str, Any], advertised: bool
) -> None:
    with serve(rounds, **settings) as server:
        capabilities = post(server.url, "server/discover", {})["result"]["capabilities"]
        assert capabilities["tools"] == {"listChanged": advertised}
        assert capabilities["prompts"] == {"listChanged": advertised}
        assert capabilities["resources"] == {"listChanged": advertised, "subscribe": advertised}
