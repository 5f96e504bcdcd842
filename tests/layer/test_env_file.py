"""Environment file: made once, readable by its owner only, with a random secret at each placeholder."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from weather_station.__main__ import main
from weather_station.production.config import ConfigError
from weather_station.production.serve.env_file import PLACEHOLDER, create

EXPLANATION = f"# A secret in place of each {PLACEHOLDER}"
EXAMPLE = f"{EXPLANATION}\nPORT=8000\nAUTH_TOKENS=me:{PLACEHOLDER}\nGF_SECURITY_ADMIN_PASSWORD={PLACEHOLDER}\n"


def test_each_placeholder_gets_a_secret_of_its_own(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text(EXAMPLE)
    (line,) = create(tmp_path)
    made = (tmp_path / ".env").read_text()
    assert str(tmp_path / ".env") in line
    comment, port, tokens, password = made.splitlines()
    assert (comment, port) == (EXPLANATION, "PORT=8000")
    assert PLACEHOLDER not in tokens + password
    first, second = tokens.removeprefix("AUTH_TOKENS=me:"), password.removeprefix("GF_SECURITY_ADMIN_PASSWORD=")
    assert len(first) >= 32
    assert first != second
    assert first not in line


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text(EXAMPLE)
    create(tmp_path)
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600


@pytest.mark.parametrize("there", ["PORT=9000\n", "export PORT=9000", "# PORT = 9000\n"])
def test_an_existing_file_gets_the_variables_that_it_lacks(tmp_path: Path, there: str) -> None:
    (tmp_path / ".env.example").write_text(EXAMPLE + "#LOG_LEVEL=INFO\n")
    (tmp_path / ".env").write_text(there + "\nAUTH_TOKENS=mine:1")
    (tmp_path / ".env").chmod(0o640)
    (line,) = create(tmp_path)
    made = (tmp_path / ".env").read_text()
    kept, _, added = made.rpartition("\nGF_SECURITY_ADMIN_PASSWORD=")
    assert kept == there + "\nAUTH_TOKENS=mine:1"
    assert len(added.strip()) >= 32
    assert line == f"added GF_SECURITY_ADMIN_PASSWORD to {tmp_path / '.env'}"
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o640 or sys.platform == "win32"

    (line,) = create(tmp_path)
    assert "was not changed" in line
    assert (tmp_path / ".env").read_text() == made


def test_an_empty_file_gets_all_of_them(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text(EXAMPLE)
    (tmp_path / ".env").touch()
    create(tmp_path)
    assert (tmp_path / ".env").read_text().startswith("PORT=8000\nAUTH_TOKENS=me:")


def test_without_an_example_the_message_says_where_to_run_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot create \.env from .*Run this in the project's folder"):
        create(tmp_path)
    assert not (tmp_path / ".env").exists()


def test_the_command_makes_the_file_where_it_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    assert main(["--init-env"]) == 2
    (tmp_path / ".env.example").write_text("AUTH_TOKENS=me:<random>\n")
    assert main(["--init-env"]) == 0
    assert (tmp_path / ".env").exists()
    assert len(capsys.readouterr().err.splitlines()) == 2
