"""Removes secrets from log lines and spans, and turns any value into JSON values of bounded size."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from typing import Any, TypeGuard
from urllib.parse import quote, unquote
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from ..config import secret_forms
from ..registry import Registry

REDACTED = "[redacted]"
MAX_DEPTH = 8
MAX_VALUES = 1000
"""Values that one call of `Redactor.value` returns, over all depths."""
MAX_TEXT = 4096
"""Characters of one text."""
MAX_KEY = 256
MIN_SECRET = 8
"""Characters that a configured secret needs to be removed from texts: shorter ones are part of ordinary words."""

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
KEY_PREFIXES = ("api", "access", "private", "signing", "encryption", "subscription")
"""A name denotes a secret if it contains one of `WORDS`, or one of these followed by `key`: in any case, with `-`, `_`,
`.`, a space or nothing between its parts."""
QUERY_PARAMETERS = ("key", "appid", "sig", "auth", "pwd")
"""Names that denote a secret in the query of a URL only."""

_NORMALISED = (*WORDS, *(f"{prefix}key" for prefix in KEY_PREFIXES))
_SEPARATORS = str.maketrans("", "", "-_. ")


def _rules() -> Iterable[tuple[str, re.Pattern[str]]]:
    """Yield what marks a secret in a text: a literal, and the pattern to match where the literal is found.

    The pattern's group `secret` is the secret. Searching for a literal is a hundred times faster than for a pattern,
    and most texts contain none.
    """
    value = r"""(?P<secret>b?"(?:[^"\\]|\\.)*"?|b?'(?:[^'\\]|\\.)*'?|[^\s,;&"')\]}]+)"""
    # token=x, and the reprs Login(password='x'), {'token': 'x'} and (b'cookie', b'x')
    assigned = rf"""[\w-]{{0,40}}(?:\s?=\s?|["']\s?[:,]\s?){value}"""
    for word in WORDS:
        yield word, re.compile(word + assigned, re.IGNORECASE)
    for word in ("authorization", "cookie"):  # Authorization: Basic x
        yield word, re.compile(word + r"""\s?:\s?(?P<secret>[^\s"'][^\r\n"']*)""", re.IGNORECASE)
    prefixes = "|".join(rf"(?<={prefix})|(?<={prefix}[-_. ])" for prefix in KEY_PREFIXES)
    yield "key", re.compile(f"(?:{prefixes})key{assigned}", re.IGNORECASE)
    for name in QUERY_PARAMETERS:
        yield f"{name}=", re.compile(rf"(?<=[?&]){name}=(?P<secret>[^\s&\"'#]+)", re.IGNORECASE)
    yield "bearer ", re.compile(r"bearer (?=\S*\d|\S{16})(?P<secret>[\w.~+/=-]{8,})", re.IGNORECASE)
    yield "://", re.compile(r"://(?P<secret>[^/\s@\"']+)(?=@)")
    # A JSON Web Token. The second alternative skips a word that is none; without it the time would be quadratic.
    yield "eyj", re.compile(r"(?P<secret>eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+)|eyJ[\w-]*+")


_RULES = tuple(_rules())
_NAME = re.compile(rf"[\w.-]{{1,{MAX_KEY}}}")
_ANY_RULE = re.compile("[=:,]|bearer |eyj", re.IGNORECASE)
"""Matches somewhere in every text that a rule applies to."""


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Return whether the name `key` denotes a secret."""
    normal = key.lower().translate(_SEPARATORS)
    return normal == "auth" or any(word in normal for word in _NORMALISED)


def configured_secrets(registry: Registry) -> list[str]:
    """Return the secrets of the template's and the owner's settings in the form in which they are sent."""
    secrets: set[str] = set()
    for settings in (registry.config, registry.settings):
        for name, value in settings or ():
            for secret in _secret_values(value):
                secrets |= secret_forms(secret, is_list=name == "auth_tokens")
    if registry.config.upstream_api_key is not None:
        secrets |= secret_forms(registry.config.upstream_api_key.get_secret_value())
    return sorted(secrets)


def _secret_values(value: object) -> Iterator[str]:
    """Yield the secrets in a value of a setting, at any depth."""
    if isinstance(value, (SecretStr, SecretBytes, Secret)):
        secret = value.get_secret_value()
        yield secret.decode(errors="replace") if isinstance(secret, bytes) else str(secret)
    elif isinstance(value, BaseModel):
        yield from _secret_values([each for _, each in value])
    elif isinstance(value, Mapping):
        yield from _secret_values(list(value.values()))
    elif isinstance(value, (list, tuple, Set)):
        for each in value:
            yield from _secret_values(each)


class Redactor:
    """Removes secrets from texts and values: what a name or a form marks as one, and the configured `secrets`."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = (form for secret in secrets for form in (secret, unquote(secret), quote(secret, safe="")))
        configured = {form for form in forms if len(form) >= MIN_SECRET}
        # The longest first: one secret may begin with another.
        self._configured = tuple(sorted(configured, key=len, reverse=True))

    def text(self, text: str) -> str:
        """Return `text` without secrets."""
        text = self.without_configured(text)
        if _ANY_RULE.search(text) is None:
            return text
        lowered = text.lower()
        if len(lowered) != len(text):  # a letter became two: positions would differ
            lowered = "".join(letter.lower()[:1] for letter in text)
        spans: list[tuple[int, int]] = []
        for literal, pattern in _RULES:
            at = lowered.find(literal)
            while at >= 0:
                match = pattern.match(text, at)
                if match is not None and match["secret"] is not None:
                    spans.append(match.span("secret"))
                at = lowered.find(literal, match.end() if match else at + len(literal))
        return _redact_spans(text, spans) if spans else text

    def without_configured(self, text: str) -> str:
        """Return `text` without the configured secrets. This is fast for a text of any length, unlike `text`."""
        for secret in self._configured:
            text = text.replace(secret, REDACTED)
        return text

    def shortened(self, text: str) -> str:
        """Return at most `MAX_TEXT` characters of `text` without secrets."""
        if len(text) <= MAX_TEXT:
            return self.text(text)
        # Redacted before each cut: half of a secret would not be recognised.
        return shorten(self.text(self.without_configured(text)[: 2 * MAX_TEXT]), MAX_TEXT, len(text))

    def value(self, value: object) -> Any:
        """Return `value` as JSON values without secrets, at most `MAX_DEPTH` deep and `MAX_VALUES` in all.

        A value that JSON has no type for becomes its repr. Exceptions from the value's own methods are not raised.
        """
        return self._value(value, MAX_DEPTH, _Budget())

    def _value(self, value: object, depth: int, budget: _Budget) -> Any:
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
            return self._object(value, depth, budget)
        except Exception as error:  # raised by its __repr__, its iterator or a property
            return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"

    def _object(self, value: object, depth: int, budget: _Budget) -> Any:
        if isinstance(value, (date, time)):
            return value.isoformat()
        if isinstance(value, (UUID, Decimal, PurePath)):
            return self.shortened(str(value))
        if isinstance(value, (Mapping, BaseModel)) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            return self._mapping(_fields(value), depth, budget) if depth else "..."
        if isinstance(value, (list, tuple, Set)):
            return self._list(value, depth, budget) if depth else "..."
        return self.shortened(repr(value))

    def _mapping(self, items: Iterable[tuple[object, object]], depth: int, budget: _Budget) -> dict[str, Any]:
        redacted: dict[str, Any] = {}
        for raw, value in items:
            if budget.left <= 0:
                redacted["..."] = "more"
                break
            name = raw if isinstance(raw, str) else repr(raw)
            key = name if name.isidentifier() and len(name) <= MAX_KEY else self.text(shorten(name, MAX_KEY))
            while key in redacted:
                key += "_"
            secret = is_secret(name[:MAX_TEXT]) and not _is_harmless(name, value)
            redacted[key] = REDACTED if secret else self._value(value, depth - 1, budget)
        return redacted

    def _list(self, elements: Iterable[object], depth: int, budget: _Budget) -> list[Any]:
        redacted: list[Any] = []
        for element in elements:
            if budget.left <= 0:
                redacted.append("...")
                break
            if _is_secret_pair(element):
                redacted.append([self._value(element[0], depth - 1, budget), REDACTED])
            else:
                redacted.append(self._value(element, depth - 1, budget))
        return redacted


class _Budget:
    """How many more values a call of `Redactor.value` may return."""

    left = MAX_VALUES


def shorten(text: str, limit: int, length: int = 0) -> str:
    """Return at most `limit` characters of `text` and its length, which is `length` where it was cut before."""
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


def _is_harmless(key: str, value: object) -> bool:
    """Return whether the value of a secret's name is no secret: empty, a boolean, or a number of tokens."""
    if value is None or isinstance(value, bool) or value in ("", b""):
        return True
    return isinstance(value, (int, float)) and key.lower().endswith("tokens")


def _is_secret_pair(element: object) -> TypeGuard[tuple[str | bytes, object]]:
    """Return whether `element` is the name of a secret and its value, as in a list of headers."""
    if not isinstance(element, (tuple, list)) or len(element) != 2:
        return False
    name = element[0]
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and is_secret(name)


def _redact_spans(text: str, spans: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    position = 0
    for start, end in sorted(spans):
        if start >= position:
            parts += text[position:start], REDACTED
        position = max(position, end)
    return "".join((*parts, text[position:]))
