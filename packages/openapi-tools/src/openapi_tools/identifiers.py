"""Python identifiers from the names of a document: valid, short, unique and not reserved."""

from __future__ import annotations

import builtins
import hashlib
import keyword
import re
import unicodedata
from collections.abc import Iterable

MAX_IDENTIFIER = 60
"""Characters. Hosts put a server's name before a tool's and accept 64 in all; the protocol allows 128."""

PYTHON_NAMES = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins)) | {"self", "cls"}

MODEL_ATTRIBUTES = frozenset(
    """
    construct copy dict fields from_orm json parse_file parse_obj parse_raw schema schema_json update_forward_refs
    validate model_computed_fields model_config model_construct model_copy model_dump model_dump_json model_extra
    model_fields model_fields_set model_json_schema model_parametrized_name model_post_init model_rebuild
    model_validate model_validate_json model_validate_strings
    """.split()
)
"""Attributes of pydantic's BaseModel, which a field of the same name would shadow."""

TOOL_MODULE_NAMES = frozenset(
    """
    ctx server register add call wire form deep in_json json_body text_body binary_body form_body multipart_body as_json
    as_json_or_done as_text as_binary as_done models
    """.split()
)
"""Names that the generated tool modules use; no tool and no argument may shadow them."""

RESERVED_MODULES = frozenset(
    """
    register register_modules importlib pkgutil production weather example con prn aux nul conin conout
    com0 com1 com2 com3 com4 com5 com6 com7 com8 com9 lpt0 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
    """.split()
)
"""Names that a generated module cannot have: they are used in the `tools` package or are devices on Windows."""

RESERVED_TOOLS = frozenset(("health_check", "get_metrics", "get_weather", "get_resource"))
"""Names of tools that a server of the template may have already."""

RESERVED_CLASSES = ("Any", "Annotated", "Literal", "Field", "ApiModel")


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

    The name has at most `MAX_IDENTIFIER` characters, is neither a keyword nor a builtin, and begins with a letter.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", to_ascii(text))
    name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or fallback
    if name[:1].isdigit():
        name = f"{fallback}_{name}"
    name = shorten(name)
    return f"{name}_" if name in PYTHON_NAMES else name


def pascal_case(text: str, fallback: str) -> str:
    """Return `text` as the name of a class, with the same guarantees as `snake_case`."""
    words = re.findall(r"[A-Za-z0-9]+", to_ascii(text))
    name = "".join(word[0].upper() + word[1:] for word in words) or fallback
    if not name[0].isalpha():
        name = fallback + name
    name = shorten(name)
    return f"{name}_" if name in PYTHON_NAMES or name in RESERVED_CLASSES else name


def shorten(name: str) -> str:
    """Return `name`, or where it is longer than `MAX_IDENTIFIER` its beginning and a hash of the whole."""
    if len(name) <= MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MAX_IDENTIFIER - 9].rstrip('_')}_{digest}" if "_" in name else name[: MAX_IDENTIFIER - 8] + digest


def to_ascii(text: str) -> str:
    """Return the first 500 characters of `text` in ASCII: é becomes e, and what has no such form is dropped."""
    return unicodedata.normalize("NFKD", text[:500].replace("ß", "ss")).encode("ascii", "ignore").decode()
