"""The projects in examples/ are what the template makes."""

from __future__ import annotations

from collections.abc import Mapping

from . import examples
from .conftest import Rendering
from .support import MADE_BY_THE_HOOK, ROOT
from .template_repository import git

COMMAND = "python3 with_uv.py run python -m tests.examples"
"""Writes them after a change of the template."""


def test_the_example_is_the_default_project(renderings: Mapping[str, Rendering]) -> None:
    """Every file that git has, or would add: a project's own `.gitignore` could leave one out of this repository."""
    fresh = examples.expected(renderings["default"].files)
    folder = examples.EXAMPLES / "weather-station"
    listed = (
        git("ls-files", "-z", "--cached", "--others", "--exclude-standard", ".", cwd=folder).rstrip("\0").split("\0")
    )
    kept = {path: (folder / path).read_bytes() for path in listed if (folder / path).exists()}
    different = [path for path in sorted({*fresh, *kept}) if fresh.get(path) != kept.get(path)]
    assert different == [], f"run: {COMMAND}"
    assert not {path.split("/")[0] for path in kept} & {*MADE_BY_THE_HOOK}


def test_the_command_is_documented() -> None:
    assert COMMAND in (examples.__doc__ or "")
    assert COMMAND in " ".join((ROOT / "CONTRIBUTING.md").read_text("utf-8").split())
