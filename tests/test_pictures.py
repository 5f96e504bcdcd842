"""The pictures in docs/pictures/ show what the dashboards, README and the server have now.

After a change: `python3 with_uv.py run python -m pictures.build`. Compared is what a picture shows, not its pixels.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

if sys.platform == "win32":
    pytest.skip("the program that draws the pictures needs a pseudo-terminal", allow_module_level=True)

from pictures import build, draw, record

from .support import ROOT

SVG = "{http://www.w3.org/2000/svg}"
LARGEST = 300_000
"""Bytes of a picture."""


def shown(name: str) -> ElementTree.Element:
    return ElementTree.parse(build.PICTURES / f"{name}.svg").getroot()  # noqa: S314 (a file of this repository)


def parts(picture: ElementTree.Element, kind: str) -> list[tuple[str, str]]:
    """Title and description of each group of a kind, all of which have to have data."""
    found = []
    for group in picture.iter(f"{SVG}g"):
        if group.get("class") == kind:
            assert any(shape.get("class") == "data" for shape in group.iter()), group.findtext(f"{SVG}title")
            found.append((group.findtext(f"{SVG}title") or "", group.findtext(f"{SVG}desc") or ""))
    return found


@pytest.mark.parametrize("name", build.SHOWN)
def test_a_picture_of_a_dashboard_has_its_panels_and_queries(name: str) -> None:
    expected = [
        (panel["title"], "\n".join(target["expr"] for target in panel["targets"]))
        for panel in build.panels(name)
        if panel["type"] != "row"
    ]
    assert parts(shown(name), "panel") == expected


def test_the_picture_of_a_trace_has_a_call_with_its_attempts() -> None:
    spans = parts(shown("trace"), "span")
    assert spans[0][0] == "tools/call get_weather"
    assert len(spans) >= 4
    assert "mcp_server.status=success" in spans[0][1]
    assert any("503" in attributes for _, attributes in spans[1:])


def test_the_picture_of_a_terminal_has_the_commands_of_the_readme() -> None:
    picture = shown("terminal")
    assert (picture.findtext(f"{SVG}desc") or "").splitlines() == "\n".join(build.first_commands()).splitlines()
    text = "".join(picture.itertext())
    assert '"status":"healthy"' in text.replace("\n", "")
    assert 'mcp_tool_calls_total{status="success",tool_name="health_check"} 1.0' in text


def test_every_picture_is_small_and_shown_by_a_page() -> None:
    pictures = {path.name: path for path in build.PICTURES.iterdir()}
    assert pictures.keys() == {f"{name}.svg" for name in (*build.SHOWN, "trace", "terminal")}
    assert [name for name, path in pictures.items() if path.stat().st_size > LARGEST] == []
    pages = "".join(path.read_text("utf-8") for path in ROOT.glob("docs/*.md"))
    assert [name for name in pictures if f"](pictures/{name})" not in pages] == []


def test_a_message_of_protobuf_is_read() -> None:
    """A span as the OpenTelemetry exporter encodes it: field 7 is fixed, texts and messages have a length."""
    pair = b"\x0a\x03key\x12\x07\x0a\x05value"
    span = b"\x0a\x02\x01\x02" + b"\x12\x01\x03" + b"\x2a\x04name" + b"\x39" + (5).to_bytes(8, "little")
    span += b"\x41" + (9).to_bytes(8, "little") + b"\x4a" + bytes([len(pair)]) + pair + b"\x7a\x02\x18\x02"
    scope = b"\x12" + bytes([len(span)]) + span
    resource = b"\x12" + bytes([len(scope)]) + scope
    (read,) = record.exported(b"\x0a" + bytes([len(resource)]) + resource)
    assert read == draw.Span("03", "", "0102", "name", 5, 9, {"key": "value"}, True)


def test_a_terminal_shows_what_remains_of_a_line() -> None:
    raw = "\x1b[32m$\x1b[0m ls\r\nprogress 1 %\rdone\r\n" + "x" * 5
    assert draw.screen(raw, 4) == [
        [("$", "#73bf69"), (" ls", draw.TEXT)],
        [("done", draw.TEXT)],
        [("xxxx", draw.TEXT)],
        [("x", draw.TEXT)],
    ]


def test_the_command_is_the_one_of_the_documentation() -> None:
    command = "python3 with_uv.py run python -m pictures.build"
    assert command in (build.__doc__ or "")
    assert command in (ROOT / "docs" / "pictures.md").read_text("utf-8")


@pytest.mark.release
def test_the_command_makes_every_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, and with two minutes of traffic in place of ten."""
    committed = {path.name for path in build.PICTURES.glob("*.svg")}
    monkeypatch.setattr(build, "PICTURES", tmp_path / "pictures")
    monkeypatch.setattr(sys, "argv", ["pictures.build", "--seconds", "120"])
    assert build.main() == 0
    assert {path.name for path in build.PICTURES.glob("*.svg")} == committed
    for name in build.SHOWN:
        assert parts(shown(name), "panel")
