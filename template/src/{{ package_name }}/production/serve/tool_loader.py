"""Tools are found by their files, and what is wrong with one is said in one line before the server serves.

A module of the tools package has a function `register(server)`; nothing else has to know of it.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from pydantic import TypeAdapter

from ..config import StartError

RESERVED = ("get_metrics", "health_check")
"""Names of the production layer's own tools, taken also where a feature that brings one is off."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What the specification allows (2025-11-25 and later, server/tools#tool-names); the SDK only warns of others."""

PRODUCTION = Path(__file__).parents[1]
PACKAGE = PRODUCTION.parent

log = structlog.stdlib.get_logger(__name__)


def register_modules(server: MCPServer[Any], package: str) -> None:
    """Imports every module of `package` whose name does not begin with `_`, by name, and calls its `register(server)`.

    Raises:
        StartError: one line for each module that cannot be imported, has no `register`, or whose `register` fails.
    """
    problems: list[str] = []
    for found in sorted(pkgutil.iter_modules(import_module(package).__path__), key=lambda module: module.name):
        if found.name.startswith("_"):
            continue
        try:
            with errors_explained():
                module = import_module(f"{package}.{found.name}")
                register = getattr(module, "register", None)
                if not callable(register):
                    raise StartError(
                        f"{_shown(str(module.__file__))}: it has no register(server). Add one (docs/tools.md), "
                        f"or begin the file's name with _ if it holds no tool"
                    )
                register(server)
        except StartError as error:
            problems.append(str(error))
    if problems:
        raise StartError("\n".join(problems))


@contextmanager
def errors_explained() -> Iterator[None]:
    """A mistake in the owner's code becomes one line that names its file and line; at DEBUG the log has the traceback.

    Raises:
        StartError: in place of any other exception from within.
    """
    try:
        yield
    except StartError:
        raise
    except Exception as error:
        log.debug("a tool module fails", exc_info=error)
        raise StartError(f"{_origin(error)}{type(error).__name__}: {_one_line(error)}{_hint(error)}") from error


def problem_with(fn: Callable[..., Any], name: str, taken: Callable[..., Any] | None) -> str | None:
    """Why `fn` cannot be the tool `name`, in one line; None where it may. `taken` is the tool that has the name."""
    own = PRODUCTION in Path(_code_file(fn)).parents
    if not own and name in RESERVED:
        return f"{_said(fn, name)}: the name belongs to the production layer's own tool; give it another one"
    if taken is not None:
        return f"{_said(fn, name)}: {place(taken)} has that name already; give one of them another name"
    if not NAME.fullmatch(name):
        return (
            f"{_said(fn, name)}: a name has 1 to 128 letters, digits, underscores, hyphens and dots; "
            f"give it such a one: server.tool(name=...)"
        )
    for parameter in _parameters(fn):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return f"{_said(fn, name)}: {parameter} cannot be described to a model; give every parameter a name"
        if parameter.annotation is parameter.empty:
            return f"{_said(fn, name)}: parameter {parameter.name} has no type hint, which is its schema; add one"
    return None


def explain(fn: Callable[..., Any], name: str, error: Exception) -> str:
    """Why the SDK did not take `fn` as a tool, in one line; names the parameter where its type has no schema."""
    for parameter in _parameters(fn):
        if not _has_schema(parameter.annotation):
            shown = inspect.formatannotation(parameter.annotation)
            return (
                f"{_said(fn, name)}: parameter {parameter.name} is of type {shown}, which has no JSON schema; "
                f"use str, int, float, bool, list, dict, Literal, an Enum, a dataclass or a pydantic model"
            )
    return f"{_said(fn, name)}: {_one_line(error)}"


def advice(tools: Iterable[Tool]) -> Iterator[str]:
    """What would make these registered tools better, a line each; nothing that keeps them from working."""
    for tool in tools:
        if not tool.is_async:
            yield f"{tool.name} is a plain def: each call takes a thread; make it async def unless it blocks"
        if not tool.description.strip():
            yield f"{tool.name} has no docstring: the model is not told what it is for"
        if inspect.signature(tool.fn).return_annotation is inspect.Signature.empty:
            yield f"{tool.name} has no return type: its answer is text only, without an output schema"


def place(fn: Callable[..., Any]) -> str:
    """File and line of a function, as an editor opens it; its dotted name where it has none."""
    code = getattr(inspect.unwrap(fn), "__code__", None)
    if code is None:
        return dotted_name(fn)
    return f"{_shown(code.co_filename)}:{code.co_firstlineno}"


def dotted_name(fn: Callable[..., Any]) -> str:
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


def _said(fn: Callable[..., Any], name: str) -> str:
    return f"{place(fn)}: tool {name}"


def _code_file(fn: Callable[..., Any]) -> str:
    return str(getattr(getattr(inspect.unwrap(fn), "__code__", None), "co_filename", ""))


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """The function's parameters with their types; none where the types cannot be evaluated, which the SDK reports."""
    try:
        return list(inspect.signature(fn, eval_str=True).parameters.values())
    except (NameError, TypeError, ValueError):
        return []


def _has_schema(annotation: Any) -> bool:
    try:
        TypeAdapter(annotation).json_schema()
    except Exception:
        return False
    return True


def _origin(error: Exception) -> str:
    """`file:line: ` of the last line of the owner's code that led to `error`; nothing where none did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parents = Path(frame.filename).parents
        if PACKAGE in parents and PRODUCTION not in parents:
            return f"{_shown(frame.filename)}:{frame.lineno}: "
    return ""


def _hint(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(PACKAGE.name):
        return ". If it is a library, add it with: uv add"
    return ""


def _one_line(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    text = str(error).partition("For further information visit")[0]
    return " ".join(text.split())


def _shown(filename: str) -> str:
    """The path as one would type it here."""
    try:
        shorter = os.path.relpath(filename)
    except ValueError:  # on another drive
        return filename
    return filename if shorter.startswith(os.pardir) else shorter
