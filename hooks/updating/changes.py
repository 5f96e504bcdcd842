"""The sections of the template's changelog on updates that are new since a project's version."""

from __future__ import annotations

import re
from pathlib import Path

from .git import run

CHANGELOG = "CHANGELOG.md"
HEADING = "### What an update changes"


def changes(template: Path, commit: str) -> str:
    """Return what the releases between `commit` and the template's HEAD change in a project, newest first.

    A section that has changed since, such as the unreleased one, is shown as a whole.
    """
    before, sections = _sections(template, commit), []
    for title, section in _sections(template, "HEAD").items():
        if title.startswith(f"[{commit}]"):
            break
        if section and section != before.get(title):
            sections.append(f"{title}\n\n{section}")
    return "\n\n".join(sections)


def _sections(template: Path, commit: str) -> dict[str, str]:
    """Return what an update to each release changes, by the heading of the release."""
    text = run(template, "show", f"{commit}:{CHANGELOG}").stdout.decode(errors="replace")
    sections = {}
    for release in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = release.partition("\n")
        _, _, section = body.partition(f"{HEADING}\n")
        sections[title.strip()] = re.split(r"^### ", section, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return sections
