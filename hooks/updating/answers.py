"""Recorded answers: what migrations and an update change in them, and whether they contain credentials."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from post_generate import SECRET

Answers = Mapping[str, Any]
Migrations = Iterable[Mapping[str, Any]]


def migrate(text: str, migration: Mapping[str, Any]) -> str:
    """Return the recorded answers with new names of renamed questions, and new values of removed choices."""
    import yaml

    for old, new in migration.get("QUESTIONS", {}).items():
        if new and not re.search(rf"^{new}:", text, re.MULTILINE):
            text = re.sub(rf"^{old}:", f"{new}:", text, flags=re.MULTILINE)
    recorded = yaml.safe_load(text)
    for name, values in migration.get("ANSWERS", {}).items():
        if (value := recorded.get(name)) in values:
            line = yaml.safe_dump({name: values[value]}, width=10_000)
            text = re.sub(rf"^{name}:.*\n(?:[ \t].*\n)*", line.replace("\\", r"\\"), text, flags=re.MULTILINE)
    return text


def changes(before: Answers, after: Answers, migrations: Migrations) -> Iterator[tuple[str, str]]:
    """Yield each answer that an update changed, removed or added: a state, and a text.

    Copier silently takes the default where the new version does not accept the recorded answer.
    """
    names: dict[str, str | None] = {}
    stricter: dict[str, str] = {}
    for migration in migrations:
        names |= migration.get("QUESTIONS", {})
        stricter |= migration.get("STRICTER", {})
    seen = set()
    for name, value in _asked(before).items():
        new = names.get(name, name)
        seen.add(new)
        if new is None or new not in after:
            yield "removed", f"{name}={_formatted(value)}: the question no longer exists"
        elif after[new] != value:
            reason = f". {stricter[new]}" if new in stricter else ""
            yield "changed", f"{new}={_formatted(after[new])}, which was {_formatted(value)}{reason}"
    for name, value in _asked(after).items():
        if name not in seen:
            yield "new answer", f"{name}={_formatted(value)}"


def secrets(answers: Answers) -> list[str]:
    """Return the names of the answers that contain credentials, that of the template's URL included."""
    return [name for name, value in answers.items() if SECRET.search(str(value))]


def _asked(answers: Answers) -> dict[str, Any]:
    return {name: value for name, value in answers.items() if not name.startswith("_")}


def _formatted(value: Any) -> str:
    return "(a URL with credentials)" if SECRET.search(str(value)) else json.dumps(value, ensure_ascii=False)
