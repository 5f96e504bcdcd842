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

COMPILE: Any = Environment.compile
"""`jinja2.Environment.compile` without a cache."""


def main() -> None:
    order = json.load(sys.stdin)
    compile_templates_once()
    for directory, data in order["projects"].items():
        run_copy(order["template"], directory, data=data, defaults=True, skip_tasks=True, quiet=True)


def compile_templates_once() -> None:
    """Cache what `jinja2.Environment.compile` returns, in this process.

    Copier makes a Jinja environment for each project, which compiles every template anew; that is more than half of the
    time of a rendering. `test_render.py` compares with a project that is rendered without this cache.
    """
    cache: dict[tuple[Any, ...], CodeType] = {}

    def compile_once(
        self: Environment, source: Any, name: str | None = None, filename: str | None = None, *options: bool
    ) -> CodeType:
        # Equal settings have the same lexer. The path of the file, another one in each clone, is in tracebacks only.
        key = (type(self), self.lexer, *self.extensions, source, name, *options)
        if key not in cache:
            cache[key] = COMPILE(self, source, name, filename, *options)
        return cache[key]

    Environment.compile = compile_once  # type: ignore[assignment,method-assign]


if __name__ == "__main__":
    main()
