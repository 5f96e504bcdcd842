"""Open streams of callers whose credentials are not valid any more."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from harness import DEADLINE_SECONDS, HEADERS, INITIALIZE, Running, Serve, has, modern
from weather_station.production.serve import drain

if not has("inbound.auth_token"):
    pytest.skip("no static tokens", allow_module_level=True)

ALICE, BOB, CAROL = "a" * 32, "b" * 32, "c" * 32


def read_to_the_end(server: Running, token: str, mode: str, opened: threading.Event) -> list[str]:
    """Open a stream and return its lines when it has ended."""
    client, bearer = server.client, {"authorization": f"Bearer {token}"}
    if mode == "stateful":
        response = client.post(server.url, json=INITIALIZE, headers=HEADERS | bearer)
        session = {"mcp-session-id": response.headers["mcp-session-id"]}
        opening: Any = client.stream("GET", server.url, headers=HEADERS | bearer | session)
    else:
        message, own = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        opening = client.stream("POST", server.url, json=message, headers=own | bearer)
    with opening as stream:
        assert stream.status_code == 200
        opened.set()
        return [*stream.iter_lines()]


@pytest.mark.parametrize("mode", ["stateless", "stateful"])
def test_the_stream_of_a_caller_whose_token_was_removed_ends(
    mode: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drain, "RECHECK_SECONDS", 0.1)
    file = tmp_path / "tokens"
    file.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    with serve(auth_tokens_file=file, session_mode=mode) as server:
        streams = {}
        for name, token in (("alice", ALICE), ("bob", BOB)):
            opened = threading.Event()
            streams[name] = threading.Thread(target=read_to_the_end, args=(server, token, mode, opened))
            streams[name].start()
            assert opened.wait(DEADLINE_SECONDS)
        file.write_text(f"bob:{BOB}\n")
        streams["alice"].join(DEADLINE_SECONDS)
        assert not streams["alice"].is_alive()
        assert streams["bob"].is_alive()
        file.write_text(f"carol:{CAROL}\n")
        streams["bob"].join(DEADLINE_SECONDS)
        assert not streams["bob"].is_alive()
        assert "without completing" not in capfd.readouterr().err
