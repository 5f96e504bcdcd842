"""Reading of claims, whose form differs between issuers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def claim(claims: Mapping[str, Any], path: str | None) -> Any:
    """Return a claim by its name, or by its place in nested claims, such as `realm_access.roles`."""
    if path is None or path in claims:
        return claims.get(path or "")
    value: Any = claims
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def texts(value: object, separator: str | None = " ") -> Iterable[str]:
    """Return the texts of a claim: a list of texts, or one text, split at `separator` where there is one."""
    if isinstance(value, str):
        value = value.split(separator) if separator else [value]
    return [text for text in value if isinstance(text, str) and text] if isinstance(value, list) else []
