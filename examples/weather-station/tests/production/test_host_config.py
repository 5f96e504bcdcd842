"""--print-config: the entry that makes a host use this server."""

import json

import pytest

from weather_station.__main__ import SLUG, main


@pytest.mark.parametrize(
    ("host", "key"),
    [("claude-code", "mcpServers"), ("claude-desktop", "mcpServers"), ("cursor", "mcpServers"), ("vscode", "servers")],
)
def test_each_host_gets_its_entry(
    host: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    assert main(["--print-config", host]) == 0
    stdio = json.loads(capsys.readouterr().out)[key][SLUG]
    assert main(["--print-config", host, "--transport", "http", "--port", "9123"]) == 0
    http = json.dumps(json.loads(capsys.readouterr().out)[key][SLUG])
    assert stdio["args"][-2:] == ["--transport", "stdio"]
    assert "http://127.0.0.1:9123/mcp" in http
