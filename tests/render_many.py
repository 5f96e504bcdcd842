"""Program that renders many projects, in a process of its own: another process shares no memory and no hash seed.

Reads `{"template": directory, "projects": {directory: answers}}` from stdin.
"""

from __future__ import annotations

import json
import sys
from types import CodeType
from typing import Any

from copier import run_copy
from jinja2 import Environment


def main() -> None:
    order = json.load(sys.stdin)
    compile_templates_once()
    for directory, data in order["projects"].items():
        run_copy(order["template"], directory, data=data, defaults=True, skip_tasks=True, quiet=True)


def compile_templates_once() -> None:
    """Cache what `jinja2.Environment.compile` returns, in this process.

    Copier makes a Jinja environment for each project, which compiles every template anew; that is more than half of the
    time of a rendering. `test_render.py` compares with projects that are rendered without this cache.
    """
    compile_source: Any = Environment.compile
    cache: dict[tuple[Any, ...], CodeType] = {}

    def compile_once(self: Environment, *source: Any) -> CodeType:
        key = (type(self), *source)
        if key not in cache:
            cache[key] = compile_source(self, *source)
        return cache[key]

    Environment.compile = compile_once  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    main()
