"""Recorded answers: what migrations and an update change in them, and whether they say what the files say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from post_generate import SECRET

Answers = Mapping[str, Any]
Migrations = Iterable[Mapping[str, Any]]


def migrate(text: str, migration: Mapping[str, Any]) -> str:
    """The recorded answers with new names for renamed questions, and new values for answers that are gone."""
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
    """What an update does to answers, each with a word for what happened.

    Copier takes the default, without a message, where the new version does not accept what was recorded.
    """
    names: dict[str, str | None] = {}
    stricter: dict[str, str] = {}
    for migration in migrations:
        names |= migration.get("QUESTIONS", {})
        stricter |= migration.get("STRICTER", {})
    known = set()
    for name, value in _asked(before).items():
        new = names.get(name, name)
        known.add(new)
        if new is None or new not in after:
            yield "gone", f"{name}={_shown(value)}: no question has this answer any more"
        elif after[new] != value:
            reason = f". {stricter[new]}" if new in stricter else ""
            yield "changed", f"{new}={_shown(after[new])}, which was {_shown(value)}{reason}"
    for name, value in _asked(after).items():
        if name not in known:
            yield "new answer", f"{name}={_shown(value)}"


def secrets(answers: Answers) -> list[str]:
    """The names of answers that have credentials, and of the template's URL if it has."""
    return [name for name, value in answers.items() if SECRET.search(str(value))]


def _asked(answers: Answers) -> dict[str, Any]:
    return {name: value for name, value in answers.items() if not name.startswith("_")}


def _shown(value: Any) -> str:
    return "(a URL with credentials)" if SECRET.search(str(value)) else json.dumps(value, ensure_ascii=False)
