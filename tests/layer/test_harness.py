"""The harness: the tests of the layer never load the owner's tools."""

from __future__ import annotations

import importlib
from pathlib import Path

import httpx2
import pytest

from harness import copy_package, http_process, run_python


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
