"""Policies: limits of one tool, resource, prompt or completion function."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

Handler = TypeVar("Handler", bound=Callable[..., Any])

FEATURE_ANSWERS = {
    "audit": "enable_audit=true",
    "confirm": "enable_authorization=true",
    "concurrency": "profile=custom",
    "cost": "enable_rate_limiting=true",
    "max_result_bytes": "profile=custom",
    "scopes": "enable_authorization=true",
}
"""The answer that brings the feature of a field; fields without one need no feature."""

MAX_COST = 100_000
"""Greatest cost: with the longest window, its ticks are still a number that a script of Redis represents exactly."""

SCOPE = re.compile(r"[!#-\[\]-~]+")
"""The syntax of a scope (RFC 6749, section 3.3)."""

_ATTRIBUTE = "__production_policy__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits of the function that it decorates, above or below the decorator that registers the function.

    Where a function has several policies, each field has its outermost value. The start stops where a function has a
    field whose feature the server lacks.

    Raises:
        TypeError: a field has a value of another type, or the object to decorate cannot keep a policy.
        ValueError: a field is out of range.
    """

    timeout: float | None = None
    """Seconds until a request is cancelled, instead of `tool_timeout_seconds`."""
    concurrency: int | None = None
    """Greatest number of requests that run at the same time in this process."""
    cost: int | None = None
    """How many requests one request counts as in the rate limit, at most `MAX_COST`."""
    scopes: Sequence[str] | None = None
    """The scopes that a caller needs, all of them; an empty list allows every caller."""
    max_result_bytes: int | None = None
    """Bytes of text and structure that a result may have, instead of `max_result_bytes`; 0 for no limit."""
    audit: Literal["sha256", "redacted", "omit"] | None = None
    """How audit records have the arguments, instead of `AUDIT_ARGUMENTS`."""
    confirm: bool | None = None
    """Whether the client has to ask its user first."""

    def __post_init__(self) -> None:
        self._check("timeout", "a number of seconds above 0", int | float, lambda value: 0 < value < math.inf)
        self._check("concurrency", "an integer of at least 1", int, lambda value: value >= 1)
        self._check("cost", f"an integer from 1 to {MAX_COST}", int, lambda value: 1 <= value <= MAX_COST)
        self._check("scopes", "a list of scopes", list | tuple, are_scopes)
        self._check("max_result_bytes", "an integer of at least 0", int, lambda value: value >= 0)
        self._check("audit", "sha256, redacted or omit", str, lambda value: value in ("sha256", "redacted", "omit"))
        if self.confirm is not None and not isinstance(self.confirm, bool):
            raise TypeError(f"policy: confirm={self.confirm!r} is not True or False")
        if self.scopes is not None:
            object.__setattr__(self, "scopes", tuple(self.scopes))

    def __call__(self, fn: Handler) -> Handler:
        values = {name: getattr(self, name) for name in self.set_fields()}
        inner = policy_of(fn)
        try:
            setattr(fn, _ATTRIBUTE, Policy(**{name: getattr(inner, name) for name in inner.set_fields()} | values))
        except AttributeError:
            raise TypeError(f"policy: {fn!r} cannot have one; decorate a function, or a method in its class") from None
        return fn

    def set_fields(self) -> Iterator[str]:
        """Yield the names of the fields that have a value."""
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def _check(self, name: str, expected: str, types: Any, is_valid: Callable[[Any], bool]) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, types):
            raise TypeError(f"policy: {name}={value!r} is not {expected}")
        if not is_valid(value):
            raise ValueError(f"policy: {name}={value!r} is not {expected}")


def are_scopes(values: Sequence[object]) -> bool:
    """Return whether all of `values` are scopes."""
    return all(isinstance(value, str) and SCOPE.fullmatch(value) for value in values)


policy = Policy
NO_POLICY = Policy()


def policy_of(fn: Callable[..., Any]) -> Policy:
    """Return the policy of a function; `NO_POLICY` where it has none."""
    found: Policy = getattr(fn, _ATTRIBUTE, NO_POLICY)
    return found
