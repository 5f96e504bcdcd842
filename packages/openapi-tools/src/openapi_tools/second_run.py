"""A further run in a project with generated tools: parts that the owner has not changed are generated again.

The first run records in `openapi-tools.json` what it wrote: a fingerprint of each function, class and case, and the
interface of each operation. A part that still has its fingerprint is replaced or removed. Every other part is the
owner's and stays; what the owner has deleted stays deleted.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .budget import arguments_of, model_schema, type_schema
from .generator import CASES_PATH, MODELS_MODULE, REPORT_PATH, TESTS_PATH, Generated
from .operations import Tool
from .parts import (
    HEAD,
    REGISTER,
    fingerprint,
    joined,
    merged_heads,
    registrations,
    split,
    with_registrations,
)
from .python_types import Model, Type, models_in

STATE_PATH = "openapi-tools.json"
FIRST_VERSION = "first"
"""Stands for the versions before 0.2.0, which recorded no state."""

MODELS_FILE = f"/{MODELS_MODULE}.py"
FIRST_RUNTIME = "_api.py"
"""The run-time part of the tools before 0.2.0, which was the owner's."""


@dataclass
class Plan:
    """What a run does to a project."""

    files: dict[str, str] = field(default_factory=dict)
    """Content of the files to write, by path."""
    removed: list[str] = field(default_factory=list)
    """Paths of the files to remove."""
    lines: list[str] = field(default_factory=list)
    """What has changed, for the reader."""


def recorded_state(project: Path) -> dict[str, Any] | None:
    """Return what an earlier run has recorded, or git knows of one before 0.2.0; `None` where there was none."""
    try:
        state: dict[str, Any] = json.loads((project / STATE_PATH).read_text("utf-8"))
    except (OSError, ValueError):
        return _state_from_git(project)
    return state


def state_of(generated: Generated) -> str:
    """Return the content of `openapi-tools.json`."""
    files = {path: content for path, content in generated.files.items() if path != REPORT_PATH}
    state = {
        "parts": {path: _fingerprints(path, content) for path, content in files.items()},
        "operations": {_key(tool): interface(tool) for tool in generated.tools},
    }
    return json.dumps(state, indent=1, sort_keys=True) + "\n"


def plan(generated: Generated, project: Path, state: dict[str, Any] | None) -> Plan:
    """Return what to do for the files of `generated`, which replace those of an earlier run."""
    result = Plan()
    if state is None:
        result.files = {**generated.files, STATE_PATH: state_of(generated)}
        return result
    result.lines += changes(state.get("operations", {}), {_key(tool): interface(tool) for tool in generated.tools})
    recorded: dict[str, dict[str, str]] = state["parts"]
    is_first = state.get("version") == FIRST_VERSION
    paths = dict.fromkeys([*generated.files, *recorded])
    needed: set[str] = set()
    for path in sorted(paths, key=lambda each: each.endswith(MODELS_FILE)):  # the models last: others refer to them
        current = project / path
        new = generated.files.get(path)
        if path == REPORT_PATH or path not in recorded or not current.exists():
            _plan_whole(result, path, new, current, recorded)
            continue
        text = current.read_text("utf-8")
        if path == CASES_PATH:
            if _reads_refused(project, recorded):
                new = (new or "[]").replace('  "rejected": ', '  "refused": ')
            _plan_cases(result, path, new, text, recorded[path])
        elif path.endswith(".py") and path != TESTS_PATH:
            if path.endswith(MODELS_FILE) and not is_first:
                new = with_needed_models(new or "", text, needed)
            _plan_module(result, path, new, text, recorded[path], is_first=is_first)
            needed |= set(re.findall(r"\bmodels\.(\w+)", result.files.get(path, text)))
        else:
            is_own = _fingerprints(path, text) != recorded[path]
            if is_own:
                result.lines.append(f"{path}: kept, since you have changed it")
            elif new is None:
                result.removed.append(path)
            elif new != text:
                result.files[path] = new
    if is_first and any(FIRST_RUNTIME in line for line in result.lines):
        result.removed = [path for path in result.removed if not path.endswith(FIRST_RUNTIME)]
    result.files[STATE_PATH] = state_of(generated)
    result.files = {path: text for path, text in result.files.items() if not _is_same(project / path, text)}
    return result


def _reads_refused(project: Path, recorded: Mapping[str, Mapping[str, str]]) -> bool:
    """Return whether the project keeps tests from before 0.2.0, where a case had `refused` in place of `rejected`."""
    path = project / TESTS_PATH
    text = path.read_text("utf-8") if path.exists() else ""
    is_own = TESTS_PATH in recorded and _fingerprints(TESTS_PATH, text) != recorded[TESTS_PATH]
    return is_own and '"refused"' in text and '"rejected"' not in text


def _is_same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


def with_needed_models(new: str, current: str, needed: set[str]) -> str:
    """Return the new module of models, with the current models that the kept tools need, directly or not."""
    try:
        parts, merged = split(new), split(current)
    except SyntaxError:
        return new
    missing = [name for name in needed if name in merged and name not in parts]
    while missing:
        name = missing.pop()
        parts[name] = merged[name]
        words = dict.fromkeys(re.findall(r"\w+", merged[name]))
        missing += [word for word in words if word in merged and word not in parts]
    return joined(parts) if parts else new


def _plan_whole(
    result: Plan, path: str, new: str | None, current: Path, recorded: Mapping[str, Mapping[str, str]]
) -> None:
    """Plan a file that is new, was deleted, or is always written anew."""
    if new is None:
        return
    if path in recorded and not current.exists() and path != REPORT_PATH:
        result.lines.append(f"{path}: not written, since you have deleted it")
        return
    if current.exists() and path != REPORT_PATH:
        result.lines.append(f"{path}: not written, since a file of your own has this name")
        return
    result.files[path] = new


def _plan_cases(result: Plan, path: str, new: str | None, text: str, recorded: Mapping[str, str]) -> None:
    new_cases = {case["tool"]: case for case in json.loads(new or "[]")}
    current = {case["tool"]: case for case in json.loads(text)}
    merged = _merged(
        result,
        path,
        recorded,
        {name: _json(case) for name, case in current.items()},
        {name: _json(case) for name, case in new_cases.items()},
    )
    cases = [json.loads(case) for case in merged.values()]
    result.files[path] = json.dumps(cases, indent=1) + "\n"


def _plan_module(
    result: Plan, path: str, new: str | None, text: str, recorded: Mapping[str, str], *, is_first: bool
) -> None:
    """Plan a module with functions or classes."""
    try:
        current = split(text)
    except SyntaxError:
        result.lines.append(f"{path}: kept, since it is no valid Python")
        return
    new_parts = split(new) if new is not None else {}
    if is_first:  # its parts use the old run-time part, and cannot be mixed with new ones
        if _fingerprints(path, text) != recorded:
            reason = f"kept with {FIRST_RUNTIME}, which it uses, since you have changed it"
            result.lines.append(f"{path}: {reason}: move your changes into a new module by hand")
        elif new is None:
            result.removed.append(path)
        else:
            result.files[path] = str(new)
        return
    merged = _merged(result, path, recorded, _comparable(current), _comparable(new_parts))
    functions = {name: text for name, text in merged.items() if "/" not in name and name != HEAD}
    if REGISTER in current or REGISTER in new_parts:
        statements = {name.removeprefix("register/"): text for name, text in merged.items() if "/" in name}
        functions[REGISTER] = with_registrations(current.get(REGISTER) or new_parts[REGISTER], statements)
    own = [name for name in functions if name != REGISTER]
    if not own and not new_parts:
        result.removed.append(path)
        return
    current_head, new_head = current.get(HEAD, ""), new_parts.get(HEAD, "")
    is_own_head = fingerprint(current_head) != recorded.get(HEAD)
    heads = (current_head, new_head) if is_own_head or not new_parts else (new_head, current_head)
    head = merged_heads(*heads)
    content = joined({HEAD: head, **functions})
    if fingerprint(content) != fingerprint(text):
        result.files[path] = content


def _comparable(parts: Mapping[str, str]) -> dict[str, str]:
    """Return the parts of a module, with each registration as a part of its own."""
    parts_by_name = {name: text for name, text in parts.items() if name not in (HEAD, REGISTER)}
    if REGISTER in parts:
        parts_by_name |= {f"register/{name}": text for name, text in registrations(parts[REGISTER]).items()}
    return parts_by_name


def _merged(
    result: Plan, path: str, recorded: Mapping[str, str], current: Mapping[str, str], new: Mapping[str, str]
) -> dict[str, str]:
    """Return the parts that a file has afterwards; what the owner has changed, added or deleted stays so."""
    merged: dict[str, str] = {}
    for name, text in new.items():
        if name not in current:
            if name in recorded:
                result.lines.append(f"{path}: {_display_name(name)}: not written, since you have deleted it")
            else:
                merged[name] = text
        elif fingerprint(current[name]) == recorded.get(name):
            merged[name] = text
        else:
            merged[name] = current[name]
            if fingerprint(text) not in (recorded.get(name), fingerprint(current[name])):
                result.lines.append(
                    f"{path}: {_display_name(name)}: kept, since you have changed it; the document changed it too"
                )
    own = {}
    for name, text in current.items():
        if name not in new and fingerprint(text) != recorded.get(name):
            own[name] = text
            if name in recorded:
                result.lines.append(
                    f"{path}: {_display_name(name)}: kept, since you have changed it; the document lacks it now"
                )
    return merged | own


def _display_name(name: str) -> str:
    return f"the registration of {name.removeprefix('register/')}" if "/" in name else name


def _fingerprints(path: str, content: str) -> dict[str, str]:
    """Return the fingerprint of each part of a file."""
    if path == CASES_PATH:
        return {case["tool"]: fingerprint(_json(case)) for case in json.loads(content)}
    if not path.endswith(".py"):
        return {HEAD: fingerprint(content)}
    parts = split(content)
    return {HEAD: fingerprint(parts.get(HEAD, "")), **{n: fingerprint(text) for n, text in _comparable(parts).items()}}


def _json(value: Any) -> str:
    return json.dumps(value)


# --- The document's changes --------------------------------------------------------------------------------------


def interface(tool: Tool) -> dict[str, Any]:
    """Return what callers of a tool rely on: the arguments and the response, as JSON schemas."""
    arguments = {
        each.argument: {"required": each.required, "schema": _expanded(each.type, ())} for each in arguments_of(tool)
    }
    has_type = tool.response.kind in ("json", "lines")
    answer = _expanded(tool.response.type, ()) if has_type else tool.response.kind
    return {"tool": tool.name, "arguments": arguments, "answer": answer}


def _expanded(type_: Type, enclosing: tuple[Model, ...]) -> Any:
    """Return the schema of a type and those of the objects in it, at most three levels deep."""
    models = {}
    for model in dict.fromkeys(models_in(type_)):
        if model not in enclosing and len(enclosing) < 3:
            inner = {prop.api_name: _expanded(prop.type, (*enclosing, model)) for prop in model.properties}
            models[model.name] = {"required": model_schema(model).get("required", []), "properties": inner}
    schema = type_schema(type_)
    return [schema, models] if models else schema


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each operation that is new, gone or different, and for each change that breaks calls."""
    lines = [f"added: {key} ({new[key]['tool']})" for key in new if key not in old]
    lines += [f"removed (breaking): {key} ({old[key]['tool']})" for key in old if key not in new]
    for key in new:
        if key in old and old[key] != new[key]:
            lines += [f"changed: {key} ({new[key]['tool']}): {text}" for text in _differences(old[key], new[key])]
    return lines


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:
    if old["tool"] != new["tool"]:
        yield f"the tool was {old['tool']} (breaking)"
    for name in dict.fromkeys([*old["arguments"], *new["arguments"]]):
        before, after = old["arguments"].get(name), new["arguments"].get(name)
        if before is None:
            yield f"argument {name} is new{' and required (breaking)' if after['required'] else ''}"
        elif after is None:
            yield f"argument {name} is gone (breaking)"
        else:
            if after["required"] and not before["required"]:
                yield f"argument {name} is required now (breaking)"
            if before["schema"] != after["schema"]:
                yield f"argument {name} has another schema"
    if old["answer"] != new["answer"]:
        yield "the schema of the response has changed"


def _key(tool: Tool) -> str:
    return f"{tool.method} {tool.path}"


# --- Projects from before 0.2.0 ----------------------------------------------------------------------------------


def _state_from_git(project: Path) -> dict[str, Any] | None:
    """Return the state that the first commit of each generated file implies, `None` where there are no such files."""
    runtimes = sorted(project.glob(f"src/*/tools/{FIRST_RUNTIME}"))
    if not runtimes:
        return None
    paths = [path for path in runtimes[0].parent.glob("*.py") if path.name != "__init__.py"]
    paths += [project / TESTS_PATH, project / CASES_PATH]
    parts: dict[str, dict[str, str]] = {}
    for path in paths:
        name = path.relative_to(project).as_posix()
        original = _first_committed(project, name)
        is_generated = path.name.startswith("_") or path.parent.name == "tests"
        if original is not None and (is_generated or "OpenAPI document" in original):
            parts[name] = _fingerprints(name, original)
    return {"version": FIRST_VERSION, "parts": parts, "operations": {}}


def _first_committed(project: Path, path: str) -> str | None:
    """Return the content that a file had when it was added to git, `None` where git does not know it."""
    log = _git(project, "log", "--follow", "--diff-filter=A", "--format=%H", "--", path)
    commit = log.split()[-1] if log.split() else ""
    return _git(project, "show", f"{commit}:./{path}") if commit else None


def _git(project: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""
