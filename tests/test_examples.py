"""The projects in examples/ are what the template makes."""

from __future__ import annotations

from collections.abc import Mapping

from . import examples
from .conftest import Rendering
from .support import MADE_BY_THE_HOOK, ROOT, files
from .template_repository import git


def test_the_example_is_the_default_project(renderings: Mapping[str, Rendering]) -> None:
    """After a change: `python3 with_uv.py run python -m tests.examples`."""
    fresh = examples.expected(renderings["default"].files)
    kept = files(examples.EXAMPLES / "weather-station")
    different = [path for path in sorted({*fresh, *kept}) if fresh.get(path) != kept.get(path)]
    assert different == [], "run: python3 with_uv.py run python -m tests.examples"


def test_the_examples_are_in_git_and_nothing_that_the_hook_makes() -> None:
    """A project's own `.gitignore` could leave one of its files out of this repository."""
    tracked = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "examples", cwd=ROOT)
    expected = {f"examples/{path}" for path in files(examples.EXAMPLES)}
    assert set(tracked.rstrip("\0").split("\0")) == expected
    assert not {path.split("/")[2] for path in expected if path.count("/") > 1} & {*MADE_BY_THE_HOOK}
