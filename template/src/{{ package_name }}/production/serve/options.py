"""The owner's `options.py`: own settings, and what hosts show of the server. The file is optional."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.extension import Extension
from mcp_types import Icon
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ..config import (
    ANSWERS,
    ConfigError,
    EnvironmentSettings,
    HttpUrl,
    StartError,
    accepted_values,
    has_file_variable,
    holds_secret,
    known_variables,
    secret_texts,
    settings_models,
    variable_of,
    variables,
    without_secrets,
)
from ..registry import CallContext, Registry, Server, registry_of
from .tool_loader import PACKAGE, errors_explained

MODULE = f"{PACKAGE.name}.options"
FILE = "options.py"

PRESENTATION: Mapping[str, tuple[str, Any]] = {
    "INSTRUCTIONS": ("instructions", str),
    "ICONS": ("icons", list[Icon]),
    "WEBSITE_URL": ("website_url", HttpUrl),
    "CACHE_HINTS": ("cache_hints", dict[CacheableMethod, CacheHint]),
    "EXTENSIONS": ("extensions", list[Extension]),
}
"""Names in `options.py`, each with its argument of `MCPServer` and its type."""

MAX_INSTRUCTIONS = 2048
"""Characters of the instructions that Claude Code passes to the model; it cuts the rest (measured in November 2026)."""

SECTION = "# --- Settings of options.py "
"""Begins the part of `.env.example` that `write_example` writes; the next line that begins with `# --- ` ends it."""

SHOWN_CHARACTERS = 80
"""Characters of a setting's value in the report of `--check`."""


class Settings(EnvironmentSettings):
    """Base of the owner's own settings, which are the fields of a class `Settings` in `options.py`."""

    @classmethod
    def of(cls, where: Server | CallContext) -> Self:
        """Return the settings of a server.

        Args:
            where: The server, or the context of a call.

        Raises:
            TypeError: the server was not made by `create_server`, or with settings of another class.
        """
        settings = registry_of(where).settings
        if not isinstance(settings, cls):
            raise TypeError(f"this server was made without {cls.__qualname__}: it is not the Settings of options.py")
        return settings


def install(registry: Registry) -> None:
    """Load the owner's settings and presentation.

    Raises:
        StartError: `options.py` cannot be imported, or a value in it is not of its type.
        ConfigError: a setting is not valid.
    """
    module = load()
    registry.server_arguments = dict(_presentation(module))
    registry.check_rows.append(lambda tools: (("setting", text) for text in rows(registry)))
    registry.check_rows.append(lambda tools: (("advice", text) for text in advice(registry)))
    own = settings_class(module)
    if own is not None:
        with errors_explained(lambda text: without_secrets(text, secret_texts())):
            registry.settings = own.load()


def load() -> ModuleType | None:
    """Import and return `options.py`; `None` where there is none.

    Raises:
        StartError: `options.py` cannot be imported.
    """
    if find_spec(MODULE) is None:
        return None
    with errors_explained():
        return import_module(MODULE)


def settings_class(module: ModuleType | None) -> type[Settings] | None:
    """Return the class `Settings` of `options.py`; `None` where it has none, or one without fields.

    Raises:
        StartError: the class is not a subclass of `production.Settings`, or uses a variable of the template.
    """
    own = getattr(module, "Settings", None)
    if own is None or own is Settings:
        return None
    if not (isinstance(own, type) and issubclass(own, Settings)):
        raise StartError(f"{FILE}: Settings must be a class Settings(production.Settings)")
    template = [model for model in settings_models() if not issubclass(model, Settings)]
    if taken := sorted(known_variables([own]) & known_variables(template)):
        raise StartError(f"{FILE}: {', '.join(taken)} belongs to the template; choose another name for the field")
    return own if own.model_fields else None


def problems() -> list[str]:
    """Return what is wrong with the owner's settings, one line for each problem."""
    try:
        own = settings_class(load())
        if own is not None:
            own.load()
    except (ConfigError, StartError) as error:
        return str(error).splitlines()
    return []


def rows(registry: Registry) -> Iterator[str]:
    """Yield a text for each of the owner's settings, without the values of secrets."""
    if not isinstance(registry.settings, Settings):
        return
    own = type(registry.settings)
    for field_name, field in own.model_fields.items():
        value = getattr(registry.settings, field_name)
        if holds_secret(field.annotation):
            text = "is not set" if value is None else "is set"
        else:
            shown = without_secrets(str(value), ())
            text = "= " + (shown if len(shown) <= SHOWN_CHARACTERS else f"{shown[:SHOWN_CHARACTERS]}...")
        origin = "" if field_name in registry.settings.model_fields_set else " (default)"
        yield f"{variable_of(own, field_name)} {text}{origin}"


def advice(registry: Registry) -> Iterator[str]:
    """Yield possible improvements, one line each."""
    length = len(registry.server_arguments.get("instructions", ""))
    if length > MAX_INSTRUCTIONS:
        yield f"INSTRUCTIONS have {length} characters: Claude Code cuts them after {MAX_INSTRUCTIONS}"
    example = Path(".env.example")
    own = settings_class(load())
    if own is not None and example.is_file():
        text = example.read_text("utf-8")
        if _with_section(text, own) != text:
            yield f".env.example lacks settings of {FILE}: run {ANSWERS['slug']} --init-env"


def write_example(directory: Path) -> list[str]:
    """Write the owner's settings to `directory/.env.example`, and return messages for the user, one line each.

    Raises:
        StartError: `options.py` cannot be imported.
        ConfigError: the file cannot be written.
    """
    own = settings_class(load())
    path = directory / ".env.example"
    if own is None or not path.is_file():
        return []
    try:
        text = path.read_text("utf-8")
        changed = _with_section(text, own)
        if changed == text:
            return []
        path.write_text(changed, "utf-8")
    except OSError as error:
        raise ConfigError([f"cannot write the settings of {FILE} to {path}: {error.strerror}"]) from None
    return [f"wrote the settings of {FILE} to {path}"]


def _presentation(module: ModuleType | None) -> Iterator[tuple[str, Any]]:
    """Yield the arguments of `MCPServer` from `options.py`."""
    for name in vars(module) if module else ():
        if name.isupper() and name not in PRESENTATION:
            for meant in difflib.get_close_matches(name, PRESENTATION, 1, 0.8):
                raise StartError(f"{FILE}: {name} is not used: did you mean {meant}?")
    for name, (argument, expected) in PRESENTATION.items():
        value = getattr(module, name, None)
        if not value:
            continue
        try:
            TypeAdapter(expected, config=None if expected is HttpUrl else _CONFIG).validate_python(value)
        except ValidationError as error:
            detail = error.errors()[0]
            where = "".join(f"[{part!r}]" for part in detail["loc"])
            raise StartError(f"{FILE}: {name}{where}: {detail['msg'].removeprefix('Value error, ')}") from None
        yield argument, value


_CONFIG = ConfigDict(arbitrary_types_allowed=True)


def _with_section(text: str, own: type[Settings]) -> str:
    """Return the text of `.env.example` with its section on the settings of `own` replaced."""
    others: list[str] = []
    inside = False
    at = None
    for line in text.splitlines(keepends=True):
        if line.startswith("# --- "):
            inside = line.startswith(SECTION)
            if inside:
                at = len(others)
        if not inside:
            others.append(line)
    if at is None:
        at = len(others)
        if others and others[-1].strip():
            others.append("\n" if others[-1].endswith("\n") else "\n\n")
            at += 1
    lines = [f"{SECTION}".ljust(109, "-"), f"# `uv run {ANSWERS['slug']} --init-env` writes this part"]
    for name, field in variables(own).items():
        lines += _described(own, name, field)
    section = "".join(f"{line}\n" for line in lines)
    return "".join([*others[:at], section, *(["\n"] if others[at:] else []), *others[at:]])


def _described(own: type[Settings], name: str, field: FieldInfo) -> Iterator[str]:
    """Yield the lines of `.env.example` about one setting: its description, and the variable with its default."""
    accepted = accepted_values(field)
    required = field.is_required()
    notes = [note for note in (accepted, "required" if required else "") if note]
    text = " ".join((field.description or field.title or "").split())
    described = f"{text} ({'; '.join(notes)})" if text and notes else text or "; ".join(notes)
    if described:
        yield f"# {described}"
    field_name = next(key for key in own.model_fields if variable_of(own, key) == name)
    if has_file_variable(own, field_name):
        yield f"# or {name}_FILE, the path of a file with it"
    examples = field.examples or []
    if examples:
        value = str(examples[0])
    else:
        default = None if required or holds_secret(field.annotation) else field.get_default()
        value = "" if default is None else str(getattr(default, "value", default))
    yield f"{'' if required or value == '<random>' else '#'}{name}={value}"
