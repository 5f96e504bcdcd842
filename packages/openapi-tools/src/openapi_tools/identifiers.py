"""Python identifiers from the names of a document: valid, short, unique and not reserved."""

from __future__ import annotations

import builtins
import hashlib
import keyword
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PureWindowsPath

import pydantic

from .imports import IMPORTED_NAMES, MODELS_NAMES

MAX_IDENTIFIER = 60
"""Characters. Hosts put a server's name before a tool's and accept 64 in all; the protocol allows 128."""

PYTHON_NAMES = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins))
"""Names of Python that nothing may shadow (ruff A001 to A003)."""

LINTED_NAMES = frozenset(("self", "cls", "l", "O", "I", "timeout"))
"""Names that rules of the linter reject: N804, N805, E741, and ASYNC109 for a parameter of an async function."""

MODEL_ATTRIBUTES = frozenset((*dir(pydantic.BaseModel), *dir(type(pydantic.BaseModel)), *pydantic.BaseModel.__slots__))
"""Attributes that a model has by its base and its metaclass, which a field of the same name would shadow."""

PROTECTED_PREFIXES = ("model_dump", "model_validate")
"""Pydantic warns of fields whose names begin so (`ConfigDict.protected_namespaces`)."""

RESERVED_NAMES = PYTHON_NAMES | LINTED_NAMES | IMPORTED_NAMES | MODEL_ATTRIBUTES

RESERVED_TOOLS = frozenset(("health_check", "get_metrics"))
"""Names of tools that the production layer has or may get."""


class Namespace:
    """Identifiers that are in use; a name that is taken gets a number."""

    def __init__(self, reserved: Iterable[str] = (), separator: str = "_") -> None:
        self._used = set(reserved)
        self._separator = separator

    def is_free(self, name: str) -> bool:
        return name not in self._used

    def claim(self, wanted: str) -> str:
        """Return `wanted`, or the first of `wanted_2`, `wanted_3`, ... that is free, and mark it as used."""
        name, number = wanted, 1
        while name in self._used:
            number += 1
            name = f"{wanted}{self._separator}{number}"
        self._used.add(name)
        return name


def snake_case(text: str, fallback: str) -> str:
    """Return `text` as a name of a function, argument or module; `fallback` where no letter or digit is left.

    The name has at most `MAX_IDENTIFIER` characters, is not in `RESERVED_NAMES`, and begins with a letter.
    """
    name = split_words(text) or fallback
    if name[:1].isdigit():
        name = f"{fallback}_{name}"
    return unreserved(shorten(name))


def split_words(text: str) -> str:
    """Return the words of `text` in lower case, joined by underscores."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", to_ascii(text))
    return re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")


def pascal_case(text: str, fallback: str) -> str:
    """Return `text` as the name of a class, which neither Python nor the module of models has already."""
    words = re.findall(r"[A-Za-z0-9]+", to_ascii(text))
    name = "".join(word[0].upper() + word[1:] for word in words) or fallback
    if not name[0].isalpha():
        name = fallback + name
    name = shorten(name)
    return f"{name}Model" if name in PYTHON_NAMES | LINTED_NAMES or name in MODELS_NAMES else name


def unreserved(name: str) -> str:
    """Return `name`, with an underscore where Python, the linter or an import has it already."""
    if name.startswith(PROTECTED_PREFIXES):
        name = f"its_{name}"
    return f"{name}_" if name in RESERVED_NAMES else name


def function_name(name: str) -> str:
    """Return the name of the function of the tool `name`; pytest and its linter take `test...` for a test."""
    return unreserved(f"call_{name}" if name.startswith("test") else name)


def module_name(text: str) -> str:
    """Return `text` as the name of a module, which no system takes for a device."""
    name = snake_case(text, "operations")
    return f"{name}_" if PureWindowsPath(name).is_reserved() or name.startswith("test") else name


def shorten(name: str) -> str:
    """Return `name`, or where it is longer than `MAX_IDENTIFIER` its beginning and a hash of the whole."""
    if len(name) <= MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MAX_IDENTIFIER - 9].rstrip('_')}_{digest}" if "_" in name else name[: MAX_IDENTIFIER - 8] + digest


def to_ascii(text: str) -> str:
    """Return the first 500 characters of `text` in ASCII: é becomes e, and what has no such form is dropped."""
    return unicodedata.normalize("NFKD", text[:500].replace("ß", "ss")).encode("ascii", "ignore").decode()
