"""Renders many projects in a process of its own, so that two of them share nothing: no memory, no hash seed.

Reads `{"template": directory, "projects": {directory: answers}}` from stdin.
"""

from __future__ import annotations

import json
import sys

import pytest
from copier import run_copy

from .support import keep_compiled_sources, keep_configurations, render_only_what_is_a_template


def main() -> None:
    order = json.load(sys.stdin)
    with pytest.MonkeyPatch.context() as monkeypatch:
        keep_compiled_sources(monkeypatch)
        keep_configurations(monkeypatch)
        render_only_what_is_a_template(monkeypatch)
        for directory, data in order["projects"].items():
            run_copy(order["template"], directory, data=data, defaults=True, skip_tasks=True, quiet=True)


if __name__ == "__main__":
    main()
