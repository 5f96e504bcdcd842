"""What the template's changelog says of an update: the sections that the project's version did not have."""

from __future__ import annotations

import re
from pathlib import Path

from .git import run

CHANGELOG = "CHANGELOG.md"
HEADING = "### What an update changes"


def changes(template: Path, commit: str) -> str:
    """What the releases between `commit` and the template's HEAD change in a project, newest first.

    Sections are compared as a whole, so that one which grows, such as that of what is not released, is shown again.
    """
    had, found = _sections(template, commit), []
    for title, section in _sections(template, "HEAD").items():
        if title.startswith(f"[{commit}]"):
            break
        if section and section != had.get(title):
            found.append(f"{title}\n\n{section}")
    return "\n\n".join(found)


def _sections(template: Path, commit: str) -> dict[str, str]:
    """By heading of a release, what an update to it changes."""
    text = run(template, "show", f"{commit}:{CHANGELOG}").stdout.decode(errors="replace")
    found = {}
    for release in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = release.partition("\n")
        _, _, section = body.partition(f"{HEADING}\n")
        found[title.strip()] = re.split(r"^### ", section, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return found
