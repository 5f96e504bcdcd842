"""Texts for a terminal: nothing that a stranger writes controls it, forges a line or reorders the text."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver.exceptions import ToolError

from harness import Serve, has
from weather_station import server as server_module
from weather_station.__main__ import main
from weather_station.production import get_logger, on_startup, readiness_check
from weather_station.production.registry import Probe, registry_of
from weather_station.production.sdk import ProductionServer
from weather_station.production.terminal import block, json_text, lines, one_line

HOSTILE = "a\x1b[31m\x9b2J\x07\r\nFORGED\x0b\x85FORGED\u2028FORGED\u202e\u2066\x7f\u200f\ufeff\udc80\U000e0041b"
"""Colours, C1, line breaks of every kind, bidirectional overrides, a lone surrogate, and an invisible letter."""


def harmful(text: str) -> set[str]:
    """Return the characters of a text, but line breaks and tabs, that a terminal does not only show."""
    joiners = "\n\t\u200c\u200d"
    return {c for c in text if c not in joiners and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def assert_harmless(text: str) -> None:
    assert "FORGED" in text, "the text was not printed"
    assert not harmful(text), text
    assert not [line for line in text.split("\n") if line.startswith("FORGED")], text


@given(st.text(st.characters(categories=("Cc", "Cf", "Cs", "Zl", "Zp", "L"))))
def test_every_form_is_harmless(text: str) -> None:
    unusual = {c for c in harmful(text) if unicodedata.category(c) == "Cf"}
    for form in (one_line(text), block(text), lines(text)):
        # Marks of numbers and of notations that are letters of their script are shown.
        assert harmful(form) <= {c for c in unusual if "SIGN" in unicodedata.name(c, "") or ord(c) > 0xFFFF}
    assert "\n" not in one_line(text)
    assert all(line.startswith("  ") for line in block(text).split("\n"))
    written = json.dumps(text, ensure_ascii=False)
    assert json.loads(json_text(written)) == text


@pytest.mark.parametrize("text", ["Zürich", "東京\u3000駅", "prix\u00a0: 5\u00a0€", "👩\u200d🚀", "क्\u200dष"])
def test_letters_and_spaces_of_every_script_stay(text: str) -> None:
    assert one_line(text) == lines(text) == json_text(text) == text


def tools(server: ProductionServer) -> None:
    async def crash() -> str:
        raise ValueError(f"no city {HOSTILE}")

    async def fail() -> str:
        raise ToolError(HOSTILE)

    async def note() -> str:
        log = get_logger("own.tool")
        log.warning(HOSTILE, **{"field": HOSTILE, f"key{HOSTILE}": [HOSTILE], "stack_info": True})
        logging.getLogger("own").warning("from %s", HOSTILE, extra={"data": {HOSTILE: HOSTILE}})
        return HOSTILE.replace("\udc80", "")

    for tool in (crash, fail, note):
        server.tool()(tool)


FORMATS: list[dict[str, Any]] = [
    {"enable_logging": False},
    *([{"log_format": "console"}, {"log_format": "json"}] if has("observe.logging") else []),
]


@pytest.mark.parametrize("settings", FORMATS, ids=str)
@pytest.mark.parametrize("tool", ["crash", "note"])
def test_log_lines_are_harmless(
    serve: Serve, capfd: pytest.CaptureFixture[str], settings: dict[str, Any], tool: str
) -> None:
    with serve(tools, **settings) as server:
        server.call(tool)
    output = capfd.readouterr().err
    assert_harmless(output)
    if settings.get("log_format") == "json":
        assert all(isinstance(json.loads(line), dict) for line in output.splitlines())


@pytest.fixture
def with_tools(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[ProductionServer], object]], None]:
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    return lambda register: monkeypatch.setattr(server_module, "register", register)


def _rows(server: ProductionServer) -> None:
    async def fails() -> None:
        raise ConnectionError(HOSTILE)

    registry = registry_of(server)
    registry.health.probes[f"probe{HOSTILE}"] = Probe(HOSTILE, fails)
    registry.check_rows.append(lambda tools: [(f"row{HOSTILE}", HOSTILE), ("advice", HOSTILE)])
    registry.notices.append(HOSTILE)
    readiness_check(server, f"check{HOSTILE}", fails)


def test_the_report_of_check_is_harmless(
    capsys: pytest.CaptureFixture[str], with_tools: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tools(_rows)
    assert main(["--check"]) == 1
    shown = capsys.readouterr()
    assert_harmless(shown.out)
    assert len([line for line in shown.out.splitlines() if "FORGED" in line]) == 5
    assert not harmful(shown.err)


def _fails_at_start(server: ProductionServer) -> None:
    async def connect() -> None:
        raise ConnectionError(HOSTILE)

    on_startup(server, connect)


def _cannot_register(server: ProductionServer) -> None:
    raise ValueError(HOSTILE)


def _has_a_hostile_name(server: ProductionServer) -> None:
    async def ask() -> str:
        return ""

    server.tool(name=HOSTILE)(ask)


@pytest.mark.parametrize("register", [_fails_at_start, _cannot_register, _has_a_hostile_name])
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_the_text_of_a_start_that_fails_is_harmless(
    capsys: pytest.CaptureFixture[str],
    with_tools: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    register: Callable[[ProductionServer], None],
    log_format: str,
) -> None:
    monkeypatch.setenv("LOG_FORMAT", log_format)
    with_tools(register)
    assert main(["--port", "0"]) == 1
    assert_harmless(capsys.readouterr().err)


@pytest.mark.parametrize("variable", ["BASE_URL", "MAX_BODY_BYTES", "SSL_CERT_FILE", "RATE_LIMIT_TIERS"])
def test_a_hostile_setting_is_harmless(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, HOSTILE)
    main(["--check"])
    shown = capsys.readouterr()
    assert not harmful(shown.err + shown.out)


@pytest.mark.parametrize("arguments", [[HOSTILE], ["--port", HOSTILE], ["--transport", HOSTILE]])
def test_a_hostile_option_is_harmless(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert_harmless(capsys.readouterr().err)


@pytest.mark.needs("serve.console")
@pytest.mark.parametrize(("arguments", "status"), [(["note"], 0), (["fail"], 1), (["crash"], 1), ([HOSTILE], 2)])
def test_the_result_of_a_call_is_harmless(
    capsys: pytest.CaptureFixture[str], with_tools: Callable[..., None], arguments: list[str], status: int
) -> None:
    with_tools(tools)
    assert main(["--call", *arguments]) == status
    shown = capsys.readouterr()
    assert not harmful(shown.out + shown.err)
    assert arguments == ["crash"] or "FORGED" in (shown.err if status else shown.out)
