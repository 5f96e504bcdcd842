"""Removes secrets from log lines and spans, and turns any value into JSON values of bounded size."""

from __future__ import annotations

import dataclasses
import math
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from datetime import date, time
from decimal import Decimal
from enum import Enum
from functools import cache, lru_cache, partial
from pathlib import PurePath
from typing import Any, TypeGuard, cast
from urllib.parse import quote, unquote
from uuid import UUID

from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from ..config import SECRET_LISTS, secret_forms, secret_texts
from ..registry import MAX_LEARNED, LearnedSecrets, Registry

REDACTED = "[redacted]"
MAX_DEPTH = 8
MAX_VALUES = 1000
"""Values that one call of `Redactor.value` returns, over all depths."""
MAX_TEXT = 4096
"""Characters of one text."""
MAX_KEY = 256
MAX_NAMES = 4096
"""Number of names of values for which `Redactor._names` keeps the result of `_name`."""
MAX_NAME = 64
"""How many characters before a word such as `token` are searched for the beginning of the name that contains it."""
MIN_KNOWN = 8
"""Least number of characters of a known secret that is removed from texts: shorter ones are part of ordinary words."""

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
KEY_PREFIXES = ("api", "access", "account", "private", "signing", "encryption", "subscription")
"""A name denotes a secret if it contains one of `WORDS`, or one of these followed by `key`: in any case, with `-`, `_`,
`.`, a space or nothing between its parts."""
QUERY_PARAMETERS = ("key", "appid", "sig", "auth", "pwd", "code")
"""Names that denote a secret in the query of a URL only."""

_NORMALISED = (*WORDS, *(f"{prefix}key" for prefix in KEY_PREFIXES))
_SEPARATORS = str.maketrans("", "", "-_. ")
_NO_SECRET = re.compile(
    r"tokeni[sz]|(?:page|next|continuation|cursor|sync|resume|start)token$"
    r"|(?:max|min|num|total|input|output|prompt|completion|reasoning|cached|stop|special)[a-z]*tokens?$"
    r"|tokens?(?:type|count|usage|used|limit|budget|length|left|remaining|endpoint|url|uri|ttl|expir|lifetime|per)"
    r"|(?:password|secret|cookie|signature|jwt|credential|key)s?(?:policy|length|strength|algorithm|rotat|type|expir)"
)
"""Normalised names that contain a word of `WORDS` and denote no secret, such as `max_tokens` and `next_page_token`."""


_Pattern = Callable[[], re.Pattern[str]]
"""Returns a pattern, which is compiled the first time: a start with all of them compiled takes 30 ms longer."""


def _pattern(text: str, flags: re.RegexFlag = re.IGNORECASE) -> _Pattern:
    return cache(partial(re.compile, text, flags))


def _assigned() -> Iterator[tuple[str, _Pattern]]:
    """Yield words that mark a name as that of a secret, with the pattern of the rest of the name and the value."""
    # Quoted (also with escaped quotes, for JSON in a JSON text), a list, or up to the next separator.
    quoted = r"""b?(?P<quote>\\*["'])(?:(?!(?<!\\)(?P=quote))(?:\\.|.))*+(?:(?<!\\)(?P=quote))?"""
    value = rf"""(?P<secret>{quoted}|[\[{{(][^\])}}]*[\])}}]?|[^\s,;&"')\]}}]+)"""
    # token=x, and the reprs Login(password='x'), {'token': 'x'} and (b'cookie', b'x')
    assigned = rf"""[\w-]{{0,40}}(?:\s?=\s?|\\*["']\s?[:,]\s?){value}"""
    # YAML and headers: a value to the end of the line, quoted, or with letters and digits.
    line = r"""[\w-]{0,40}:[ \t]+(?P<line>["'][^"'\r\n]*["']?|[^\s"',;]+(?=[ \t]*(?:$|[,;}\])#]))"""
    line += r"""|(?=[^\s,;]*\d)(?=[^\s,;]*[A-Za-z])[^\s"',;]{6,})"""
    passwords = [word for word in WORDS if word.startswith("pass")]
    words = {"pass": f"(?:{'|'.join(passwords)})"} | {word: word for word in WORDS if word not in passwords}
    for literal, word in words.items():
        yield literal, _pattern(f"{word}(?:{assigned}|{line})", re.IGNORECASE | re.DOTALL | re.MULTILINE)
    prefixes = "|".join(rf"(?<={prefix})|(?<={prefix}[-_. ])" for prefix in KEY_PREFIXES)
    yield "key", _pattern(f"(?:{prefixes})key(?:{assigned}|{line})", re.IGNORECASE | re.DOTALL | re.MULTILINE)


def _rules() -> Iterator[tuple[str, _Pattern]]:
    """Yield the rules for secrets without a name: a literal, and the pattern to match where the literal is found.

    The pattern's group `secret` is the secret. Searching for a literal is a hundred times faster than for a pattern,
    and most texts contain none.
    """
    for word in ("authorization", "cookie"):  # Authorization: Basic x
        yield word, _pattern(rf"{word}\s?:\s?(?P<secret>(?:digest\s[^\r\n]*|[^\s\"'][^\r\n\"']*))")
    for name in QUERY_PARAMETERS:
        yield f"{name}=", _pattern(rf"(?<=[?&;]){name}=(?P<secret>[^\s&;\"'#]+)")
    yield "response=", _pattern(r"response=(?P<secret>\\*\"?[0-9a-f]{32,})")  # of Digest
    yield "bearer ", _pattern(r"bearer (?=\S*\d|\S{16})(?P<secret>[\w.~+/=-]{8,})")
    yield "basic ", _pattern(r"basic (?=(?-i:\S*[\dA-Z=]))(?P<secret>[\w+/-]{8,}=*)")
    yield "://", _pattern(r"://(?P<secret>[^/\s\"']+)(?=@)")
    # A JSON Web Token. The second alternative skips any other word; without it the search would take quadratic time.
    yield "eyj", _pattern(r"(?P<secret>eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*+)|eyJ[\w-]*+", re.NOFLAG)
    yield "private key", _pattern(r"private key(?: block)?-----(?P<secret>.*?)(?=-----end|\Z)", re.I | re.DOTALL)


_SHAPES = {
    **{f"gh{kind}_": r"[A-Za-z0-9]{30,}" for kind in "pousr"},
    "github_pat_": r"\w{30,}",
    "glpat-": r"[\w-]{20,}",
    "sk-": r"[\w-]{20,}",
    "sk_live_": r"\w{16,}",
    "rk_live_": r"\w{16,}",
    "akia": r"[A-Z0-9]{16}\b",
    "asia": r"[A-Z0-9]{16}\b",
    "aiza": r"[\w-]{35}",
    "xox": r"[abeoprs]-[\w-]{10,}",
    "xapp-": r"[\w-]{20,}",
    "hf_": r"[A-Za-z0-9]{30,}",
    "npm_": r"[A-Za-z0-9]{30,}",
    "pypi-": r"[\w-]{30,}",
    "sg.": r"[\w-]{16,}\.[\w-]{16,}",
    "ya29.": r"[\w-]{20,}",
    "dop_v1_": r"[0-9a-f]{40,}",
    "shpat_": r"[0-9a-fA-F]{30,}",
    "hooks.slack.com/services/": r"[\w/]{20,}",
}
"""Secrets by the text, in lower case, that the keys of a well-known issuer begin with, and the pattern of the rest."""

_NAME = re.compile(rf"[\w.-]{{1,{MAX_KEY}}}")
_NAME_BEFORE = re.compile(r"[\w. -]*\Z")
_NAME_AFTER = re.compile(r"[\w-]*")
MIN_RULE = 5
MIN_SHAPE = 15
"""Least number of characters of a text in which a rule, or a shape, can match."""


@lru_cache(maxsize=4096)
def is_secret(key: str) -> bool:
    """Return whether the name `key` denotes a secret."""
    normal = key.lower().translate(_SEPARATORS)
    return normal == "auth" or (any(word in normal for word in _NORMALISED) and _NO_SECRET.search(normal) is None)


def configured_secrets(registry: Registry) -> list[str]:
    """Return the secrets of the settings and of the environment in the form in which they are sent."""
    secrets = set(secret_texts())
    for settings in (registry.config, registry.settings):
        for name, value in settings or ():
            for secret in _secret_values(value):
                secrets |= secret_forms(secret, is_list=name.upper() in SECRET_LISTS)
    if registry.config.upstream_api_key is not None:
        key = registry.config.upstream_api_key.get_secret_value().strip()
        secrets |= secret_forms(key) | {b64encode(key.encode()).decode()}  # as a key of the scheme Basic is sent
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


class _Known:
    """Finds known secrets in a text, in a time that does not depend on their number.

    The last eight characters of each secret are kept as the five pieces of four characters that they contain. A text is
    looked up at every fifth position only: wherever a secret occurs in it, one of these positions begins such a piece.
    """

    BLOCK, STEP = 4, MIN_KNOWN - 3
    FEW = 8
    """Number of secrets up to which looking for each one is faster."""

    def __init__(self) -> None:
        self._secrets: dict[str, None] = {}
        self._pieces: dict[str, dict[str, int]] = {}
        self.shortest = MAX_TEXT
        self.longest = 0

    def add(self, secret: str) -> None:
        """Find `secret` from now on; the oldest of more than `MAX_LEARNED` is forgotten."""
        if len(secret) < MIN_KNOWN or secret in self._secrets:
            return
        self._secrets[secret] = None
        self.shortest = min(self.shortest, len(secret))
        self.longest = max(self.longest, len(secret))
        for piece, offset in self._pieces_of(secret):
            self._pieces.setdefault(piece, {})[secret] = offset
        if len(self._secrets) > 3 * MAX_LEARNED:
            oldest = next(iter(self._secrets))
            del self._secrets[oldest]
            for piece, _ in self._pieces_of(oldest):
                self._pieces[piece].pop(oldest, None)
                if not self._pieces[piece]:
                    del self._pieces[piece]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return start and end of each secret in `text`."""
        if len(text) < self.shortest:
            return []
        if len(self._secrets) <= self.FEW:
            found: Iterable[str] = [secret for secret in self._secrets if secret in text]
        else:
            step, block, pieces = self.STEP, self.BLOCK, self._pieces
            present = pieces.keys() & {text[at : at + block] for at in range(0, len(text) - block + 1, step)}
            found = {secret for piece in present for secret in pieces[piece] if secret in text} if present else ()
        spans: list[tuple[int, int]] = []
        for secret in found:
            at = text.find(secret)
            while at >= 0:
                spans.append((at, at + len(secret)))
                at = text.find(secret, at + 1)  # it may overlap itself, and the text may begin inside of it
        return spans

    def _pieces_of(self, secret: str) -> Iterator[tuple[str, int]]:
        # The last characters, since many secrets begin with the same prefix.
        for offset in range(len(secret) - MIN_KNOWN, len(secret) - self.BLOCK + 1):
            yield secret[offset : offset + self.BLOCK], offset


class Redactor:
    """Removes secrets from texts and values: what a name or a form marks as one, and the known secrets.

    Args:
        secrets: The configured secrets.
        learned: The secrets that are learned while the server runs.
    """

    def __init__(self, secrets: Iterable[str] = (), learned: LearnedSecrets | None = None) -> None:
        self._known = _Known()
        self._learned = learned or LearnedSecrets()
        self._seen = 0
        self._names: dict[str, tuple[str, bool]] = {}
        """What `_name` returned, by name."""
        self._add(secrets)

    def _add(self, secrets: Iterable[str]) -> None:
        self._names.clear()  # one of them may be a secret now
        for secret in secrets:
            for form in {secret, unquote(secret), quote(secret, safe="")}:
                self._known.add(form)

    def _learn(self) -> None:
        new = self._learned.count - self._seen
        if new:
            self._seen += new
            self._add(list(self._learned.latest)[-new:])

    def _known_spans(self, text: str) -> list[tuple[int, int]]:
        if self._learned.count != self._seen:
            self._learn()
        return self._known.spans(text)

    def text(self, text: str) -> str:
        """Return `text` without secrets."""
        spans = self._spans(text)
        return _redact_spans(text, spans) if spans else text

    def _spans(self, text: str) -> list[tuple[int, int]]:
        length = len(text)
        if length < MIN_RULE:
            return []
        spans = self._known_spans(text) if length >= self._known.shortest or self._learned.count != self._seen else []
        lowered = text.lower()
        if len(lowered) != length:  # a letter became two: positions would differ
            lowered = "".join(letter.lower()[:1] for letter in text)
        groups: list[tuple[_Rule, ...]] = []
        if ":" in lowered:
            groups += _ASSIGNED, _HEADERS
            if "@" in lowered:
                groups.append(_URLS)
        elif "=" in lowered or "'" in lowered or '"' in lowered:
            groups.append(_ASSIGNED)
        if "=" in lowered:
            groups.append(_IN_QUERY)
        for mark, rules in _OTHERS_AND_SHAPES if length >= MIN_SHAPE else _OTHERS:
            if mark in lowered:
                groups.append(rules)
        for rules in groups:
            for literal, pattern, span_of in rules:
                if literal in lowered:
                    _find(literal, pattern, text, lowered, spans, span_of)
        return spans

    def shortened(self, text: str, limit: int = MAX_TEXT) -> str:
        """Return at most `limit` characters of `text` without secrets, in a time independent of its length."""
        if len(text) <= limit:
            return self.text(text)
        return shorten(self.beginning(text, 2 * limit), limit, len(text))

    def beginning(self, text: str, length: int) -> str:
        """Return the first `length` characters of `text` without secrets, and without the beginning of one."""
        # Half of a secret would not be recognised: what is searched is longer than what is returned.
        spans = self._spans(text[: length + max(MAX_TEXT, self._known.longest)])
        inside = [(start, min(end, length)) for start, end in spans if start < length]
        return _redact_spans(text[:length], inside)

    def end(self, text: str, length: int) -> str:
        """Return the last `length` characters of `text` without secrets, and without the end of one."""
        cut = max(0, len(text) - length)
        start = max(0, cut - max(MAX_TEXT, self._known.longest))
        spans = [(max(cut, low + start), high + start) for low, high in self._spans(text[start:]) if high + start > cut]
        return _redact_spans(text[cut:], [(low - cut, high - cut) for low, high in spans])

    def value(self, value: object) -> Any:
        """Return `value` as JSON values without secrets, at most `MAX_DEPTH` deep and `MAX_VALUES` in all.

        A value that JSON has no type for becomes its repr, a mapping always a `dict`. Exceptions from the value's own
        methods are not raised.
        """
        self._learn()
        shown = self._value(value, MAX_DEPTH, _Budget())
        return {"...": shown} if type(shown) is str and issubclass(type(value), Mapping) else shown

    def _value(self, value: object, depth: int, budget: _Budget) -> Any:
        budget.left -= 1
        kind = type(value)
        if kind is str:
            return self.shortened(cast("str", value))
        if value is None or kind is bool:
            return value
        if kind is int:
            return _integer(cast("int", value))
        try:
            return self._object(value, depth, budget)
        except BaseException as error:  # raised by its own methods, which are not awaited: no cancellation of the task
            return self.shortened(f"<{class_name(value)} that cannot be shown: {class_name(error)}>")

    def _object(self, value: object, depth: int, budget: _Budget) -> Any:
        if isinstance(value, Enum):
            value = value.value
        if isinstance(value, str):
            return self.shortened(_exact(str(value)))
        if isinstance(value, int):
            return _integer(int(value))
        if isinstance(value, float):
            number = float(value)
            return number if math.isfinite(number) else repr(number)
        if isinstance(value, (date, time)):
            return _exact(value.isoformat())
        if isinstance(value, (UUID, Decimal, PurePath)):
            return self.shortened(_exact(str(value)))
        if isinstance(value, (Mapping, BaseModel)) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            return self._mapping(_fields(value), depth, budget) if depth else "..."
        if isinstance(value, (list, tuple, Set)):
            return self._list(value, depth, budget) if depth else "..."
        return self.shortened(_exact(repr(value)))

    def _mapping(self, items: Iterable[tuple[object, object]], depth: int, budget: _Budget) -> dict[str, Any]:
        redacted: dict[str, Any] = {}
        for raw, value in items:
            if budget.left <= 0:
                redacted["..."] = "more"
                break
            name = raw if type(raw) is str else self._key(raw)
            known = self._names.get(name)
            key, secret = self._name(name) if known is None else known
            while key in redacted:
                key += "_"
            if secret and not _is_harmless(name, value):
                budget.left -= 1
                redacted[key] = REDACTED
            else:
                redacted[key] = self._value(value, depth - 1, budget)
        return redacted

    def _key(self, key: object) -> str:
        try:
            return _exact(key if isinstance(key, str) else repr(key))
        except BaseException as error:  # as in `_value`
            return f"<{class_name(key)} that cannot be shown: {class_name(error)}>"

    def _name(self, name: str) -> tuple[str, bool]:
        """Return a name without secrets, and whether it is that of a secret; keep both for the next time."""
        plain = len(name) <= MAX_KEY and name.isidentifier() and not self._known_spans(name)
        found = name if plain else self.shortened(name, MAX_KEY), is_secret(name[:MAX_TEXT])
        if plain:
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
            self._names[name] = found
        return found

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
    """Return `text`, or its first `limit` characters with a note of its length (`length`, where it was cut before)."""
    if len(text) <= limit and length <= limit:
        return text
    return f"{text[:limit]}... ({max(length, len(text))} characters)"


def _exact(text: str) -> str:
    """Return a text of a subclass of `str`, whose methods may raise, as a `str`.

    Raises:
        TypeError: it is no text.
    """
    return str.__str__(text)


def class_name(value: object) -> str:
    """Return the name of the class of `value`, whatever its metaclass does."""
    return _exact(type.__dict__["__name__"].__get__(type(value)))


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
    kind = type(value)  # none of its own methods is called: they may raise
    if value is None or kind is bool or ((kind is str or kind is bytes) and not value):
        return True
    return issubclass(kind, (int, float)) and key.lower().endswith("tokens")


def _is_secret_pair(element: object) -> TypeGuard[tuple[str | bytes, object]]:
    """Return whether `element` is the name of a secret and its value, as in a list of headers."""
    if not isinstance(element, (tuple, list)) or len(element) != 2:
        return False
    name = element[0]
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and is_secret(name)


def _find(
    literal: str,
    pattern: _Pattern,
    text: str,
    lowered: str,
    spans: list[tuple[int, int]],
    span_of: Callable[[str, re.Match[str], int], tuple[int, int] | None],
) -> None:
    match_at = pattern().match
    at = lowered.find(literal)
    while at >= 0:
        match = match_at(text, at)
        span = span_of(text, match, at) if match is not None else None
        if span is not None:
            spans.append(span)
        # After a name that denotes no secret, the search continues in its value.
        following = match.end() if match is not None and (span is not None or span_of is _secret_span) else 0
        at = lowered.find(literal, max(at + len(literal), following))


def _secret_span(text: str, match: re.Match[str], at: int) -> tuple[int, int] | None:
    return match.span("secret") if match["secret"] is not None else None


def _assigned_span(text: str, match: re.Match[str], at: int) -> tuple[int, int] | None:
    """Return where the value of the name around `at` is, or `None` if that name denotes no secret."""
    start = max(0, at - MAX_NAME)
    before = _NAME_BEFORE.search(text, start, at)
    rest = _NAME_AFTER.match(text, at)
    name_start = before.start() if before is not None else at
    name = text[name_start : rest.end() if rest is not None else at].rpartition(" ")
    normal = name[2] if is_secret(name[2]) else name[0][-24:] + name[2]
    if not is_secret(normal):
        return None
    group = "secret" if match["secret"] is not None else "line"
    value = match[group]
    if normal.lower().endswith("tokens") and value.isdigit():
        return None
    if group == "line" and not _marks_line(text, name_start, normal, value):
        return None
    return match.span(group)


def _marks_line(text: str, start: int, name: str, value: str) -> bool:
    """Return whether `name: value` is a setting or a header, and not a part of a sentence."""
    if "-" in name or "_" in name or "key" in name.lower() or value[0] in "\"'":
        return True
    if any(each.isdigit() for each in value) and any(each.isalpha() for each in value):
        return True
    return not text[max(0, start - MAX_NAME) : start].rpartition("\n")[2].strip(" \t-{,;") and not text[
        start : start + len(name)
    ].strip(name)


def _redact_spans(text: str, spans: list[tuple[int, int]]) -> str:
    parts: list[str] = []
    position = 0
    for start, end in sorted(spans):
        if start >= position:
            parts += text[position:start], REDACTED
        position = max(position, end)
    return "".join((*parts, text[position:]))


_Rule = tuple[str, _Pattern, Callable[[str, re.Match[str], int], tuple[int, int] | None]]


def _marked(rules: Iterable[_Rule], marks: Iterable[str] = ()) -> tuple[tuple[str, tuple[_Rule, ...]], ...]:
    """Return groups of `rules`, each with a text that its literals contain: the first of `marks`, or the literal.

    Looking for a mark takes as long as for one literal, and few texts have one.
    """
    groups: dict[str, list[_Rule]] = {}
    for rule in rules:
        groups.setdefault(next((mark for mark in marks if mark in rule[0]), rule[0]), []).append(rule)
    return tuple((mark, tuple(group)) for mark, group in groups.items())


def _shape(prefix: str, rest: str) -> _Rule:
    return prefix, _pattern(rf"(?<![A-Za-z0-9])(?P<secret>{re.escape(prefix)}(?-i:{rest}))"), _secret_span


_ASSIGNED: tuple[_Rule, ...] = tuple((*rule, _assigned_span) for rule in _assigned())
_RULES: tuple[_Rule, ...] = tuple((*rule, _secret_span) for rule in _rules())
_HEADERS = tuple(rule for rule in _RULES if rule[0] in ("authorization", "cookie"))
_URLS = tuple(rule for rule in _RULES if rule[0] == "://")
_IN_QUERY = tuple(rule for rule in _RULES if rule[0].removesuffix("=") in QUERY_PARAMETERS)
_OTHERS = _marked(rule for rule in _RULES if rule not in (*_HEADERS, *_URLS, *_IN_QUERY))
_OTHERS_AND_SHAPES = (*_OTHERS, *_marked((_shape(*item) for item in _SHAPES.items()), ("gh", "_live_", "_", "-", ".")))
