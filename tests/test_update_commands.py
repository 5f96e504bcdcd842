"""Every printed update command has the options to run without questions, and without an unintended new version."""

from __future__ import annotations

import re

import pytest

from .support import ROOT

COMMAND = re.compile(r"copier update (--[^`\"\n]*)")
BROKEN = re.compile(r"(?<= )\"\n\s+f?\"")
"""Matches the line break in a string of Python that continues on the next line."""

PLACES = ("template", "hooks", "interview", "README.md", "docs", "tests/layer")


def commands() -> list[tuple[str, str]]:
    paths = [path for place in PLACES for path in [ROOT / place, *(ROOT / place).rglob("*")] if path.is_file()]
    texts = {path: path.read_bytes() for path in paths if "__pycache__" not in path.parts}
    return [
        (str(path.relative_to(ROOT)), command)
        for path, text in texts.items()
        for command in COMMAND.findall(BROKEN.sub("", text.decode(errors="replace")))
    ]


@pytest.mark.parametrize(("path", "command"), commands())
def test_a_printed_update_command_has_all_its_options(path: str, command: str) -> None:
    assert "--trust" in command, path
    assert "--defaults" in command, path
    assert ("--data" in command) == ("--vcs-ref=:current:" in command), path
