"""Nothing that looks like a secret gets through, and whatever goes in comes out as plain JSON values of bounded size.

Used for what leaves the process beside its answers: log lines and spans.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Set
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, TypeGuard
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID

from pydantic import BaseModel

from ..config import ProductionConfig

REDACTED = "[redacted]"
MAX_DEPTH = 8
MAX_VALUES = 1000
"""How many values one call of `Redactor.value` gives out, over all depths."""
MAX_TEXT = 4096
"""Characters of one text."""
MAX_KEY = 256
MIN_SECRET = 8
"""Characters of a configured secret that is looked for in texts: shorter ones are part of ordinary words."""

WORDS = (
    "authorization",
    "token",
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "cookie",
    "signature",
    "jwt",
)
KEYS = ("api", "access", "private", "signing", "encryption", "subscription")
"""A key that contains one of `WORDS`, or one of these followed by `key`, has a secret as its value: written in any
case, with any of `-`, `_`, `.`, a space or nothing between its parts."""
IN_QUERIES = ("key", "appid", "sig", "auth", "pwd")
"""Parameters that are secrets in a URL, and ordinary names elsewhere."""

_NORMALISED = (*WORDS, *(f"{kind}key" for kind in KEYS))
_SEPARATORS = str.maketrans("", "", "-_. ")


def _rules() -> Iterable[tuple[str, re.Pattern[str]]]:
    """What is a secret in a text: a literal to search for, and a pattern that says, from there on, which part it is.

    Searching for a literal is a hundred times faster than for a pattern, and most texts have none.
    """
    value = r"""(?P<secret>b?"(?:[^"\\]|\\.)*"?|b?'(?:[^'\\]|\\.)*'?|[^\s,;&"')\]}]+)"""
    # token=x, and the reprs Login(password='x'), {'token': 'x'} and (b'cookie', b'x')
    assigned = rf"""[\w-]{{0,40}}(?:\s?=\s?|["']\s?[:,]\s?){value}"""
    for word in WORDS:
        yield word, re.compile(word + assigned, re.IGNORECASE)
    for word in ("authorization", "cookie"):  # Authorization: Basic x
        yield word, re.compile(word + r"""\s?:\s?(?P<secret>[^\s"'][^\r\n"']*)""", re.IGNORECASE)
    behind = "|".join(rf"(?<={kind})|(?<={kind}[-_. ])" for kind in KEYS)
    yield "key", re.compile(f"(?:{behind})key{assigned}", re.IGNORECASE)
    for name in IN_QUERIES:
        yield f"{name}=", re.compile(rf"(?<=[?&]){name}=(?P<secret>[^\s&\"'#]+)", re.IGNORECASE)
    yield "bearer ", re.compile(r"bearer (?=\S*\d|\S{16})(?P<secret>[\w.~+/=-]{8,})", re.IGNORECASE)
    yield "://", re.compile(r"://(?P<secret>[^/\s@\"']+)(?=@)")
    # A JSON Web Token. A word that begins like one and is none is passed over whole, or a long one costs its square.
    yield "eyj", re.compile(r"(?P<secret>eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+)|eyJ[\w-]*+")


_RULES = tuple(_rules())
_NAME = re.compile(rf"[\w.-]{{1,{MAX_KEY}}}")
_SUSPECT = re.compile("[=:,]|bearer |eyj", re.IGNORECASE)
"""Every rule needs one of these."""


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Whether the value under `key` is a secret, judged by the key alone."""
    normal = key.lower().translate(_SEPARATORS)
    return normal == "auth" or any(word in normal for word in _NORMALISED)


def configured_secrets(config: ProductionConfig) -> list[str]:
    """The secrets in the configuration, as they would appear in a text."""
    secrets = []
    if config.auth_tokens is not None:
        secrets += [entry.partition(":")[2] for entry in config.auth_tokens.get_secret_value().split(",")]
    if config.redis_url is not None:
        secrets.append(urlsplit(config.redis_url.get_secret_value()).password or "")
    if config.upstream_api_key is not None:
        secrets.append(config.upstream_api_key.get_secret_value())
    return [secret.strip() for secret in secrets]  # as they are sent: a mounted file ends with a line break


class Redactor:
    """Takes secrets out of texts and values: those under keys that look like it, and the `secrets` themselves."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = (form for secret in secrets for form in (secret, unquote(secret), quote(secret, safe="")))
        known = {form for form in forms if len(form) >= MIN_SECRET}
        # The longest first: one secret may begin with another.
        self._known = tuple(sorted(known, key=len, reverse=True))

    def text(self, text: str) -> str:
        """`text` without secrets."""
        text = self.without_configured(text)
        if _SUSPECT.search(text) is None:
            return text
        lowered = text.lower()
        if len(lowered) != len(text):  # a letter became two: positions would differ
            lowered = "".join(letter.lower()[:1] for letter in text)
        found: list[tuple[int, int]] = []
        for literal, pattern in _RULES:
            at = lowered.find(literal)
            while at >= 0:
                match = pattern.match(text, at)
                if match is not None and match["secret"] is not None:
                    found.append(match.span("secret"))
                at = lowered.find(literal, match.end() if match else at + len(literal))
        return _without(text, found) if found else text

    def without_configured(self, text: str) -> str:
        """`text` without the configured secrets only: fast on a text of any length, so it comes before a cut."""
        for secret in self._known:
            text = text.replace(secret, REDACTED)
        return text

    def shortened(self, text: str) -> str:
        """`text` without secrets, at most `MAX_TEXT` characters of it."""
        if len(text) <= MAX_TEXT:
            return self.text(text)
        # Redacted before it is cut: half a secret is one too.
        return shorten(self.text(self.without_configured(text)[: 2 * MAX_TEXT]), MAX_TEXT, len(text))

    def value(self, value: object) -> Any:
        """`value` as JSON knows it, without secrets: at most `MAX_DEPTH` deep and `MAX_VALUES` wide.

        What JSON has no form for is shown by its repr; nothing that `value` does in its methods raises from here.
        """
        return self._of(value, MAX_DEPTH, _Budget())

    def _of(self, value: object, depth: int, budget: _Budget) -> Any:
        budget.left -= 1
        if type(value) is str:
            return self.shortened(value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, str):
            return self.shortened(str(value))
        if isinstance(value, int):
            return _integer(int(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else repr(float(value))
        try:
            return self._of_object(value, depth, budget)
        except Exception as error:  # a broken __repr__, __iter__ or property is not the log's problem
            return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"

    def _of_object(self, value: object, depth: int, budget: _Budget) -> Any:
        if isinstance(value, (date, time)):
            return value.isoformat()
        if isinstance(value, (UUID, Decimal, PurePath)):
            return self.shortened(str(value))
        if isinstance(value, (Mapping, BaseModel)) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            return self._items(_fields(value), depth, budget) if depth else "..."
        if isinstance(value, (list, tuple, Set)):
            return self._elements(value, depth, budget) if depth else "..."
        return self.shortened(repr(value))

    def _items(self, items: Iterable[tuple[object, object]], depth: int, budget: _Budget) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for raw, value in items:
            if budget.left <= 0:
                found["..."] = "more"
                break
            name = raw if isinstance(raw, str) else repr(raw)
            key = name if name.isidentifier() and len(name) <= MAX_KEY else self.text(shorten(name, MAX_KEY))
            while key in found:
                key += "_"
            hidden = is_secret(name[:MAX_TEXT]) and not _tells_nothing(name, value)
            found[key] = REDACTED if hidden else self._of(value, depth - 1, budget)
        return found

    def _elements(self, elements: Iterable[object], depth: int, budget: _Budget) -> list[Any]:
        found: list[Any] = []
        for element in elements:
            if budget.left <= 0:
                found.append("...")
                break
            if _is_secret_pair(element):
                found.append([self._of(element[0], depth - 1, budget), REDACTED])
            else:
                found.append(self._of(element, depth - 1, budget))
        return found


class _Budget:
    left = MAX_VALUES


def shorten(text: str, limit: int, length: int = 0) -> str:
    """At most `limit` characters of `text`, saying what is missing; `length` where it was cut before."""
    length = max(length, len(text))
    return text if length <= limit else f"{text[:limit]}... ({length} characters)"


def _integer(number: int) -> int | str:
    if -(2**63) <= number < 2**64:
        return number
    return str(number) if number.bit_length() < 1024 else f"<integer of {number.bit_length()} bits>"


def _fields(value: Any) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, BaseModel):
        return iter(value)
    return ((field.name, getattr(value, field.name, None)) for field in dataclasses.fields(value))


def _tells_nothing(key: str, value: object) -> bool:
    """Absence, a switch, and a language model's token counts are no secrets."""
    if value is None or isinstance(value, bool) or value in ("", b""):
        return True
    return isinstance(value, (int, float)) and key.lower().endswith("tokens")


def _is_secret_pair(element: object) -> TypeGuard[tuple[str | bytes, object]]:
    """A header as ASGI and HTTP libraries keep it: a pair of name and value."""
    if not isinstance(element, (tuple, list)) or len(element) != 2:
        return False
    name = element[0]
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and is_secret(name)


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    done = 0
    for start, end in sorted(spans):
        if start >= done:
            parts += text[done:start], REDACTED
        done = max(done, end)
    return "".join((*parts, text[done:]))
