"""Creation of `.env` from `.env.example`, with file mode 600 and a random secret in place of each placeholder.

Variables that an existing `.env` lacks are added; its lines stay unchanged.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config import ConfigError

PLACEHOLDER = "<random>"
"""Placeholder of a secret in `.env.example`."""

VARIABLE = re.compile(r"^[ \t]*(#?)[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)[ \t]*=.*$", re.MULTILINE)
"""A line that sets a variable, or a comment that names one."""


def init_env(_: bool, overrides: Mapping[str, Any]) -> list[str]:
    """Create `.env` in the working directory, and return messages for the user, one line each.

    Raises:
        ConfigError: there is no `.env.example`, or the file cannot be written.
    """
    options = f"{__package__}.options"  # an optional module
    described = import_module(options).write_example(Path.cwd()) if find_spec(options) else []
    return [*described, *create(Path.cwd())]


def create(directory: Path) -> list[str]:
    """Create `directory/.env`, or add the variables it lacks, and return messages for the user, one line each.

    Raises:
        ConfigError: there is no `.env.example` in `directory`, or the file cannot be written.
    """
    example, target = directory / ".env.example", directory / ".env"
    try:
        text = example.read_text("utf-8")
        filled = VARIABLE.sub(_with_secrets, text)
        if target.exists():
            return [_complete(target, filled)]
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(filled)
    except OSError as error:
        problem = f"cannot create .env from {example}: {error.strerror}. Run this in the project's folder"
        raise ConfigError([problem]) from None
    return [f"created {target} with random secrets; git ignores it"]


def _with_secrets(line: re.Match[str]) -> str:
    """Return the line with a random secret in place of each placeholder; other comments may explain the placeholder."""
    return re.sub(re.escape(PLACEHOLDER), lambda _: secrets.token_urlsafe(32), line[0])


def _complete(target: Path, filled: str) -> str:
    """Append the variables in `filled` that the file does not contain, not even in a comment."""
    existing = target.read_text("utf-8")
    known = {match[2] for match in VARIABLE.finditer(existing)}
    missing = {match[2]: match[0] for match in VARIABLE.finditer(filled) if not match[1] and match[2] not in known}
    if not missing:
        return f"{target} has every variable that needs a value, and was not changed"
    separator = "\n" if existing and not existing.endswith("\n") else ""
    with target.open("a", encoding="utf-8") as file:
        file.write(separator + "".join(f"{line}\n" for line in missing.values()))
    return f"added {', '.join(missing)} to {target}"
