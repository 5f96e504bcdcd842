"""Static bearer tokens: each call needs one, it names the caller, and changes need no restart."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from weather_station.__main__ import main
from weather_station.production.testing import Server, wait_for

from .support import tools

READER, WRITER = "r" * 32, "w" * 32


def send(server: Server, token: str | None) -> httpx2.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return server.send("tools/call", {"name": "who", "arguments": {}}, headers)


def test_a_token_is_required_and_names_its_caller(capfd: pytest.CaptureFixture[str]) -> None:
    with Server(tools, auth_tokens=f"reader:{READER},writer:{WRITER}") as server:
        wrong, missing = send(server, "x" * 32), send(server, None)
        sender: Any = server.call("who", headers={"Authorization": f"bearer {WRITER}"}).structured_content
        assert server.get("/readyz").status_code == 200
    assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (401, "The access token is not valid.")
    assert 'error="invalid_token"' in wrong.headers["www-authenticate"]
    assert (sender["id"].removeprefix("token:"), sender["client"]) == ("writer", "writer")
    log = capfd.readouterr().err
    assert "The access token is not valid" in log
    assert "x" * 32 not in log


def test_a_changed_file_takes_effect_without_a_restart(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"reader:{READER}\n", "utf-8")
    with Server(tools, auth_tokens_file=tokens) as server:
        assert send(server, READER).status_code == 200
        assert send(server, WRITER).status_code == 401
        tokens.write_text(f"# rotated\nreader:{WRITER}\n", "utf-8")
        wait_for(lambda: send(server, WRITER).status_code == 200)
        assert send(server, READER).status_code == 401


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("HOST", "0.0.0.0", "HOST: 0.0.0.0 is reachable from other machines"),  # noqa: S104 (must be rejected)
        ("AUTH_TOKENS", f"{READER}", "AUTH_TOKENS: entry 1: is not name:token"),
        ("AUTH_TOKENS", "reader:short", "AUTH_TOKENS: entry 1: the token must have at least 16 random characters"),
    ],
)
def test_an_unsafe_or_invalid_configuration_stops_the_start(
    variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("weather_station.server.register", tools)
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    monkeypatch.setenv(variable, value)
    assert main(["--check"]) == 2
    errors = capsys.readouterr().err
    assert problem in errors
    assert READER not in errors
