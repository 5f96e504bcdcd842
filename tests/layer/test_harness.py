"""The harness: the tests never load the owner's tools, and a server that is forked is like a new process."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path

import httpx2
import pytest

from harness import NO_TOOLS, command, copy_package, http_process, run_python, started, stdio_process
from preloaded import FRESH, Forked


def test_the_owners_tools_cannot_be_imported_here() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("weather_station.tools")


def test_a_server_in_a_process_of_its_own_does_not_load_the_owners_tools(tmp_path: Path) -> None:
    copy_package(tmp_path, {"__init__": "raise RuntimeError('the tools were loaded')"})
    with http_process(PYTHONPATH=tmp_path) as server:
        assert httpx2.get(f"{server.base}/livez", trust_env=False).status_code == 200


def test_code_in_a_process_of_its_own_does_not_load_the_owners_tools() -> None:
    done = run_python("harness.create_server(harness.config())\nimport weather_station.tools")
    assert "import of weather_station.tools halted" in done.stderr
    assert done.stderr.count("Traceback") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
@pytest.mark.parametrize("fresh", [False, pytest.param(True, marks=pytest.mark.release)], ids=["forked", "new"])
def test_a_forked_server_ends_as_a_new_process_does(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FRESH, raising=False)
    if fresh:
        monkeypatch.setenv(FRESH, "1")
    with stdio_process() as server:
        assert isinstance(server.process, Forked) is not fresh
        server.close_stdin()
        assert server.status() == 0
        assert server.receive() == b""
    with http_process() as server:
        server.signal(signal.SIGKILL)
        assert server.status() == -signal.SIGKILL
    with http_process() as server:
        assert server.process.poll() is None
        server.signal()
        assert server.status() in (0, 128 + signal.SIGTERM)
    with started(command(NO_TOOLS, "--no-such-option"), None, {}) as server:
        assert server.status() == 2
        assert "--no-such-option" in server.log()


def test_a_server_whose_libraries_see_other_variables_is_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FRESH, raising=False)
    with stdio_process() as server:
        assert isinstance(server.process, Forked) is hasattr(os, "fork")
    monkeypatch.setenv("SOME_LIBRARY_READS", "1")
    with stdio_process() as server:
        assert not isinstance(server.process, Forked)
    monkeypatch.undo()
    with stdio_process(OTEL_SDK_DISABLED="true") as server:
        assert not isinstance(server.process, Forked)
