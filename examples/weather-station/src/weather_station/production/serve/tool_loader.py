"""Loading of the owner's code, with problems reported in one line before the server starts.

Each module of the tools package has a function `register(server)` that registers its tools.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import structlog
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.tools import Tool
from pydantic import TypeAdapter

from ..config import ConfigError, StartError

RESERVED = ("get_metrics", "health_check")
"""Names of the production layer's own tools, reserved even if the feature with the tool is off."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""A tool's name (MCP specification 2025-11-25, server/tools#tool-names); the SDK only warns of other names."""

PRODUCTION = Path(__file__).parents[1]
PACKAGE = PRODUCTION.parent

log = structlog.stdlib.get_logger(__name__)


def register_modules(server: MCPServer[Any], package: str) -> None:
    """Import the modules of `package` in the order of their names, and call the `register(server)` of each.

    Modules whose name begins with `_` are skipped.

    Raises:
        StartError: a module cannot be imported, has no `register`, or its `register` fails; one line for each module.
    """
    problems: list[str] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(import_module(package).__path__)):
        if name.startswith("_"):
            continue
        try:
            with errors_explained():
                module = import_module(f"{package}.{name}")
                register = getattr(module, "register", None)
                if not callable(register):
                    raise StartError(
                        f"{_display_path(str(module.__file__))}: it has no register(server). Add one (docs/tools.md), "
                        f"or begin the file's name with _ if it contains no tool"
                    )
                call_register(register, server)
        except StartError as error:
            problems.append(str(error))
    if problems:
        raise StartError("\n".join(problems))


def call_register(register: Callable[[MCPServer[Any]], object], server: MCPServer[Any]) -> None:
    """Call a function that registers tools.

    Raises:
        StartError: the function is asynchronous or a generator, so that the call registers nothing.
    """
    result = register(server)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise StartError(f"{location(register)}: register is async, but nothing awaits it; make it a plain def")
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise StartError(f"{location(register)}: register is a generator, which nothing runs; remove the yield")


@contextmanager
def errors_explained(redact: Callable[[str], str] = str) -> Iterator[None]:
    """Convert exceptions to a `StartError` with the file and line of the owner's code; log the traceback at DEBUG.

    Args:
        redact: Removes secrets from the text of the exception.

    Raises:
        StartError: the block raised an exception.
        ConfigError: the block raised a `ConfigError`.
    """
    try:
        yield
    except (StartError, ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        log.debug("cannot load the owner's code", exc_info=error)
        text = redact(_one_line(error))
        raise StartError(f"{_owner_location(error)}{type(error).__name__}: {text}{_hint(error)}") from error


def problem_with(fn: Callable[..., Any], name: str, existing: Callable[..., Any] | None) -> str | None:
    """Return why `fn` cannot be registered as the tool `name`, in one line, or `None` if it can.

    Args:
        existing: The function that is already registered under this name.
    """
    tool = f"{location(fn)}: tool {name}"
    is_production = PRODUCTION in Path(str(getattr(_code(fn), "co_filename", ""))).parents
    if not is_production and name in RESERVED:
        return f"{tool}: the name is reserved for a tool of the production layer; choose another one"
    if not NAME.fullmatch(name):
        return (
            f"{tool}: a name has 1 to 128 letters, digits, underscores, hyphens and dots; "
            f"choose one with server.tool(name=...)"
        )
    for parameter in _parameters(fn):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return f"{tool}: {parameter} has no JSON schema; declare each parameter by name"
        if parameter.annotation is parameter.empty:
            return f"{tool}: parameter {parameter.name} has no type hint; add one, from which its JSON schema is made"
    return problem_with_handler(fn, f"tool {name}", existing)


def problem_with_handler(fn: Callable[..., Any], what: str, existing: Callable[..., Any] | None) -> str | None:
    """Return why `fn` cannot be registered as a tool, resource or prompt, in one line, or `None` if it can.

    Args:
        what: Its kind and name.
        existing: The function that is already registered under this name.
    """
    handler = f"{location(fn)}: {what}"
    if not own_name(fn):
        return f"{handler}: it is no function; register a def or async def that calls it"
    if existing is not None:
        return f"{handler}: {location(existing)} has the same name; rename one of them"
    inner = inspect.unwrap(fn)
    if inspect.iscoroutinefunction(inner) and not is_async(fn):
        return (
            f"{handler}: it is async, but its decorator is a plain def, so that nothing awaits it; "
            f"make the function that the decorator returns async def"
        )
    if inspect.isasyncgenfunction(inner):
        return f"{handler}: it is an async generator; return one value instead of using yield"
    return None


def problem_with_arguments(fn: Callable[..., Any], tool: Tool) -> str | None:
    """Return which parameter the SDK and pydantic could not make an argument, in one line, or `None`."""
    fields = dict(tool.fn_metadata.arg_model.model_fields)
    fields |= {field.alias: field for field in tool.fn_metadata.arg_model.model_fields.values() if field.alias}
    for parameter in _parameters(fn):
        if parameter.name == tool.context_kwarg or parameter.name in tool.resolved_params:
            continue
        field = fields.get(parameter.name)
        if field is None or (parameter.default is parameter.empty and not field.is_required()):
            return f"{location(fn)}: tool {tool.name}: a parameter cannot be called {parameter.name}; rename it"
    return None


def problem_with_callback(fn: Callable[..., Any], what: str) -> str | None:
    """Return why `fn` cannot be awaited, in one line, or `None` if it can; `what` is its purpose."""
    return None if is_async(fn) else f"{location(fn)}: {what}: it must be async def"


def explain(fn: Callable[..., Any], what: str, error: Exception) -> str:
    """Return why the SDK raised `error` for the function `fn`, in one line; `what` is its kind and name."""
    for parameter in _parameters(fn):
        if not has_schema(parameter.annotation):
            return (
                f"{location(fn)}: {what}: parameter {parameter.name} is of type "
                f"{inspect.formatannotation(parameter.annotation)}, which has no JSON schema; "
                f"use str, int, float, bool, list, dict, Literal, an Enum, a dataclass or a pydantic model"
            )
    return f"{location(fn)}: {what}: {_one_line(error)}"


def own_name(fn: Callable[..., Any]) -> str:
    """Return the name of a function, or nothing if it has none."""
    return str(getattr(fn, "__name__", ""))


def dotted_name(fn: Callable[..., Any]) -> str:
    """Return the module and qualified name of a function."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', repr(fn))}"


def location(fn: Callable[..., Any]) -> str:
    """Return `file:line` of a function, or its dotted name if it is not written in Python."""
    code = _code(fn)
    return dotted_name(fn) if code is None else f"{_display_path(code.co_filename)}:{code.co_firstlineno}"


def _code(fn: Callable[..., Any]) -> Any:
    return getattr(inspect.unwrap(fn), "__code__", None)


def is_async(fn: Callable[..., Any]) -> bool:
    """Return whether a call of `fn`, a function or an object with `__call__`, returns a coroutine."""
    return inspect.iscoroutinefunction(fn if inspect.isroutine(fn) else type(fn).__call__)


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a function, or none if its types cannot be evaluated, which the SDK reports."""
    try:
        return list(inspect.signature(fn, eval_str=True).parameters.values())
    except (NameError, TypeError, ValueError):
        return []


def has_schema(annotation: Any) -> bool:
    """Return whether values of a type hint have a JSON schema."""
    try:
        TypeAdapter(annotation).json_schema()
    except Exception:
        return False
    return True


def _owner_location(error: BaseException) -> str:
    """Return `file:line: ` of the innermost frame of `error` in the owner's code, or nothing if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_display_path(error.filename)}:{error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parents = Path(frame.filename).parents
        if PACKAGE in parents and PRODUCTION not in parents:
            return f"{_display_path(frame.filename)}:{frame.lineno}: "
    return ""


def _hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith(PACKAGE.name):
        return ". If it is a library, add it with: uv add"
    return ""


def _one_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return error.msg
    text = str(error).partition("For further information visit")[0]
    return " ".join(text.split())


def _display_path(filename: str) -> str:
    """Return the path relative to the working directory if it is inside, else unchanged."""
    try:
        relative = os.path.relpath(filename)
    except ValueError:  # on another drive
        return filename
    return filename if relative.startswith(os.pardir) else relative
