"""Creation of `.env` from `.env.example`, with file mode 600 and a random secret in place of each placeholder."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ConfigError

PLACEHOLDER = "<random>"
"""Placeholder of a secret in `.env.example`."""


def init_env(_: bool, overrides: Mapping[str, Any]) -> list[str]:
    """Create `.env` in the working directory, and return messages for the user, one line each.

    Raises:
        ConfigError: there is no `.env.example`, or the file cannot be written.
    """
    return create(Path.cwd())


def create(directory: Path) -> list[str]:
    """Create `directory/.env` unless it exists, and return messages for the user, one line each.

    Raises:
        ConfigError: there is no `.env.example` in `directory`, or the file cannot be written.
    """
    example, target = directory / ".env.example", directory / ".env"
    if target.exists():
        return [f"{target} exists already and was not changed"]
    try:
        text = example.read_text("utf-8")
        filled = re.sub(re.escape(PLACEHOLDER), lambda _: secrets.token_urlsafe(32), text)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(filled)
    except OSError as error:
        problem = f"cannot create .env from {example}: {error.strerror}. Run this in the project's folder"
        raise ConfigError([problem]) from None
    return [f"created {target} with random secrets; git ignores it"]
