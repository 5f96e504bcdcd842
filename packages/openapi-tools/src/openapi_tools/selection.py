"""Selection of operations by operationId, tag, path or method and path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from .operations import METHODS, Operation
from .report import Report
from .text import single_line

Match = Literal["operation", "path", "tag"]
"""What a pattern has matched of an operation: its id or its method and path, its path alone, or a tag."""


class SelectionError(Exception):
    """A part of the selection matches no operation; the message names operations that exist."""


def parse_selection(selection: str) -> list[str]:
    """Return the patterns of a selection, which are separated by commas or spaces; `GET /pets` is one pattern."""
    patterns: list[str] = []
    for word in re.split(r"[\s,]+", selection):
        if patterns and patterns[-1].lower().lstrip("!") in METHODS and word.startswith("/"):
            patterns[-1] = f"{patterns[-1].upper()} {word}"
        elif word:
            patterns.append(word)
    return patterns


def select_operations(operations: Sequence[Operation], selection: str, report: Report) -> list[Operation]:
    """Return the operations that a selection matches; an empty selection matches all, and `!pattern` excludes.

    A deprecated operation is included only where a pattern without wildcards names it by more than its path or tag.

    Raises:
        SelectionError: A pattern matches no operation.
    """
    patterns = parse_selection(selection)
    excluding = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    patterns = [pattern for pattern in patterns if not pattern.startswith("!")]
    for pattern in excluding:
        remaining = [operation for operation in operations if _match(pattern, operation) is None]
        if len(remaining) == len(operations):
            raise SelectionError(_no_match_message(pattern, operations))
        operations = remaining
    named_exactly: dict[int, bool] = {}
    """Whether a pattern without wildcards names the operation, by index of each selected operation."""
    for pattern in patterns:
        matches = {index: match for index, operation in enumerate(operations) if (match := _match(pattern, operation))}
        if not matches:
            raise SelectionError(_no_match_message(pattern, operations))
        for index, match in matches.items():
            is_exact = match == "operation" and not set("*?[") & set(pattern)
            named_exactly[index] = named_exactly.get(index, False) or is_exact
    selected: list[Operation] = []
    for index, operation in enumerate(operations):
        if patterns and index not in named_exactly:
            continue
        if operation.deprecated and not named_exactly.get(index, False):
            text = f"{operation.method} {single_line(operation.path, 100)}"
            report.add("deprecated", operation.node.pointer, text)
        else:
            selected.append(operation)
    return selected


def _match(pattern: str, operation: Operation) -> Match | None:
    method, _, path = pattern.rpartition(" ")
    if path.startswith("/"):
        if method not in ("", operation.method):
            return None
        if path != operation.path and not fnmatchcase(operation.path, _glob(path)):
            return None
        return "operation" if method else "path"
    if pattern == operation.id or fnmatchcase(operation.id, _glob(pattern)):
        return "operation"
    tag_pattern = _normalized_tag(pattern)
    return "tag" if any(fnmatchcase(_normalized_tag(tag), tag_pattern) for tag in operation.tags) else None


def _glob(pattern: str) -> str:
    """Return a pattern of fnmatch in which only * and ? are wildcards."""
    return pattern.replace("[", "[[]")


def _normalized_tag(tag: str) -> str:
    """Return a tag in lower case without spaces, so that a tag of two words can be part of a list of words."""
    return re.sub(r"[\s_-]+", "-", tag.lower())


def _no_match_message(pattern: str, operations: Sequence[Operation]) -> str:
    known = dict.fromkeys(
        name
        for operation in operations
        for name in (operation.id, *map(_normalized_tag, operation.tags), operation.path)
        if name
    )
    similar = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or [*known][:3]
    examples = ", ".join(single_line(name, 80) for name in similar)
    return (
        f"the selection {pattern!r} matches no operation of the document"
        + (f"; it has, for example: {examples}" if examples else "")
        + ". Give operationIds, tags, or METHOD /path, * for any text."
    )
