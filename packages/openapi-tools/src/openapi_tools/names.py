"""Names and texts of a document, made fit for Python source: nothing else of it gets there.

A document is whatever somebody put on a server. What becomes an identifier passes `Namespace`; every other text is a
literal of ASCII and a few letters (`literal`), or the text of a docstring (`docstring`), cut to a length.
"""

from __future__ import annotations

import builtins
import hashlib
import keyword
import re
import unicodedata
from collections.abc import Iterable

MAX_IDENTIFIER = 60
"""Characters. Hosts put a server's name before a tool's and accept 64 in all; the protocol allows 128."""

MAX_DESCRIPTION = 1500
"""Characters of a tool's description; a model reads all of them with every request."""

MAX_FIELD_DESCRIPTION = 400
MAX_TITLE = 100
LITERAL_WIDTH = 84
DOCSTRING_WIDTH = 108

PYTHON = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins)) | {"self", "cls"}

MODEL_ATTRIBUTES = frozenset(
    """
    construct copy dict fields from_orm json parse_file parse_obj parse_raw schema schema_json update_forward_refs
    validate model_computed_fields model_config model_construct model_copy model_dump model_dump_json model_extra
    model_fields model_fields_set model_json_schema model_parametrized_name model_post_init model_rebuild
    model_validate model_validate_json model_validate_strings
    """.split()
)
"""What pydantic's BaseModel has; a field of that name would hide it."""

IN_TOOLS = frozenset(
    """
    ctx server register add call wire form deep in_json json_body text_body binary_body form_body multipart_body as_json
    as_json_or_done as_text as_binary as_done models
    """.split()
)
"""Names that a module of tools uses itself: neither a tool nor an argument may hide them."""

MODULES = frozenset(
    """
    register register_modules importlib pkgutil production weather example con prn aux nul conin conout
    com0 com1 com2 com3 com4 com5 com6 com7 com8 com9 lpt0 lpt1 lpt2 lpt3 lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
    """.split()
)
"""Names that a file of tools cannot have: taken in the package, or devices for Windows."""

TOOLS = frozenset(("health_check", "get_metrics", "get_weather", "get_resource"))
"""Tools that a server of the template may have already."""


class Namespace:
    """Gives out identifiers, each once; of equal ones the later get a number."""

    def __init__(self, taken: Iterable[str] = (), joint: str = "_") -> None:
        self._taken = set(taken)
        self._joint = joint

    def is_free(self, name: str) -> bool:
        return name not in self._taken

    def take(self, wanted: str) -> str:
        """`wanted`, or the first of `wanted_2`, `wanted_3`, ... (with `_` as the joint) that is free."""
        name, number = wanted, 1
        while name in self._taken:
            number += 1
            name = f"{wanted}{self._joint}{number}"
        self._taken.add(name)
        return name


def snake(text: str, fallback: str) -> str:
    """`text` in lower case with underscores, of at most `MAX_IDENTIFIER` characters; `fallback` where nothing is left.

    Never a keyword or a builtin, never with an underscore or a digit in front.
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", _ascii(text))
    name = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_") or fallback
    if name[:1].isdigit():
        name = f"{fallback}_{name}"
    name = shortened(name)
    return f"{name}_" if name in PYTHON else name


def pascal(text: str, fallback: str) -> str:
    """`text` as the name of a class."""
    words = re.findall(r"[A-Za-z0-9]+", _ascii(text))
    name = "".join(word[0].upper() + word[1:] for word in words) or fallback
    if not name[0].isalpha():
        name = fallback + name
    name = shortened(name)
    return f"{name}_" if name in PYTHON or name in ("Any", "Annotated", "Literal", "Field", "ApiModel") else name


def shortened(name: str) -> str:
    """`name` of at most `MAX_IDENTIFIER` characters; of a longer one the beginning and a hash of all of it."""
    if len(name) <= MAX_IDENTIFIER:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: MAX_IDENTIFIER - 9].rstrip('_')}_{digest}" if "_" in name else name[: MAX_IDENTIFIER - 8] + digest


def _ascii(text: str) -> str:
    """`text[:500]` with letters that have a plain form in it: é is e."""
    return unicodedata.normalize("NFKD", text[:500].replace("ß", "ss")).encode("ascii", "ignore").decode()


# --- Texts -------------------------------------------------------------------------------------------------

_LATIN = frozenset(chr(code) for code in (*range(0xC0, 0xD7), *range(0xD8, 0xF7), *range(0xF8, 0x130)))


def clean(text: object, limit: int) -> str:
    """The readable part of a text: no control or format characters (bidi overrides among them), cut at a word."""
    if not isinstance(text, str):
        return ""
    text = text[: 8 * limit].replace("\r\n", "\n").replace("\t", " ")
    kept = "".join(each for each in text if each == "\n" or unicodedata.category(each)[0] not in "CZ" or each == " ")
    lines = [re.sub(r" +", " ", line).strip() for line in kept.split("\n")]
    whole = re.sub(r"\n{2,}", "\n\n", "\n".join(lines)).strip()
    if len(whole) <= limit:
        return whole
    return whole[:limit].rsplit(None, 1)[0].rstrip(" ,;:.") + " ..."


def one_line(text: object, limit: int) -> str:
    return clean(" ".join(text[: 8 * limit].split()) if isinstance(text, str) else "", limit)


def literal(value: object) -> str:
    """The source of a value of JSON, in ASCII and Latin letters only.

    Strings are in double quotes, as the formatter has them; long ones are several in a row, so that they need
    parentheses or a place between brackets around them.
    """
    if isinstance(value, str):
        return " ".join(map(_quoted, _pieces(value)))
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(str(key))}: {literal(each)}" for key, each in value.items()) + "}"
    raise TypeError(type(value).__name__)


def short_literal(value: object) -> str:
    """As `literal`, for a place that takes no row of strings without parentheses."""
    source = literal(value)
    return f"({source})" if isinstance(value, str) and len(_pieces(value)) > 1 else source


def _pieces(text: str) -> list[str]:
    pieces: list[str] = []
    piece = ""
    for word in re.findall(r"\S{1,12}\s?|\s", text):
        if piece and len(_quoted(piece + word)) > LITERAL_WIDTH:
            pieces.append(piece)
            piece = ""
        piece += word
    return [*pieces, piece] if piece or not pieces else pieces


def _quoted(text: str) -> str:
    inner = "".join(_escaped(letter) for letter in text)
    if '"' not in text:
        return f'"{inner}"'
    if "'" not in text:
        return f"'{inner}'"
    return '"' + inner.replace('"', '\\"') + '"'


def _escaped(letter: str) -> str:
    if letter == "\\":
        return "\\\\"
    if " " <= letter <= "~" or letter in _LATIN:
        return letter
    return letter.encode("unicode_escape").decode()


def docstring(text: str, indent: str) -> str:
    """The lines of a docstring with this text, which has been through `clean`."""
    lines = [part for line in text.split("\n") for part in _wrapped(line, DOCSTRING_WIDTH - len(indent))]
    if lines[-1].endswith('"') and not lines[-1].endswith('\\"'):
        lines[-1] = lines[-1][:-1] + '\\"'
    if len(lines) == 1:
        return f'{indent}"""{lines[0]}"""\n'
    body = "\n".join(f"{indent}{line}" if line else "" for line in lines[1:])
    return f'{indent}"""{lines[0]}\n{body}\n{indent}"""\n'


def _wrapped(line: str, width: int) -> list[str]:
    """`line` escaped, in lines of at most `width`; no escape is parted."""
    lines: list[str] = []
    current = ""
    quotes = '\\"' if '""' in line else '"'
    for word in line.split(" "):
        pieces = [""]
        for letter in word:
            escaped = quotes if letter == '"' else _escaped(letter)
            if len(pieces[-1]) + len(escaped) > width:
                pieces.append("")
            pieces[-1] += escaped
        for piece in pieces:
            if current and len(current) + 1 + len(piece) > width:
                lines.append(current)
                current = piece
            else:
                current = f"{current} {piece}" if current else piece
    return [*lines, current]
