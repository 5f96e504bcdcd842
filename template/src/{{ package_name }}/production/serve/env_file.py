"""Makes `.env` from `.env.example`: readable by its owner alone, with a random secret wherever one belongs."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from ..config import ConfigError

PLACEHOLDER = "<random>"
"""What stands in `.env.example` for a secret."""


def create(directory: Path) -> list[str]:
    """Writes `directory/.env` and returns what to tell the user, a line each. An existing file is left as it is.

    Raises:
        ConfigError: there is no `.env.example` in `directory`, or the file cannot be written.
    """
    example, target = directory / ".env.example", directory / ".env"
    if target.exists():
        return [f"{target} exists and is left as it is"]
    try:
        text = example.read_text("utf-8")
        filled = re.sub(re.escape(PLACEHOLDER), lambda _: secrets.token_urlsafe(32), text)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(filled)
    except OSError as error:
        problem = f"cannot make .env from {example}: {error.strerror}. Run this in the project's folder"
        raise ConfigError([problem]) from None
    return [f"made {target} with random secrets; git ignores it"]
