"""Any answer either works, word for word, or is refused with a line that says why."""

from __future__ import annotations

import json
import keyword
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from copier import run_copy
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from jinja2.nativetypes import NativeEnvironment

from .support import (
    ANSWERS_FILE,
    ROOT,
    Answers,
    answers,
    choices,
    copier,
    files,
    questions,
    variables,
)

pytestmark = pytest.mark.usefixtures("quickly")

SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PACKAGE = re.compile(r"[a-z][a-z0-9_]*")

NAMES = {
    "Café Zürich": "cafe-zuerich",
    "Große Straße": "grosse-strasse",
    "Zażółć gęślą jaźń": "zazolc-gesla-jazn",
    "Šta ćeš": "sta-ces",
    "Ångström Øre Æble": "angstroem-oere-aeble",
    "Cafe\u0301": "cafe",
    "天气 Weather": "weather",
    "Погода 2": "mcp-2",
    "🚀 Rocket": "rocket",
    "3D Printer": "mcp-3d-printer",
    "2026": "mcp-2026",
    "class": "class-server",
    "test": "test-server",
    "Test": "test-server",
    "mcp": "mcp-server",
    "json": "json-server",
    "asyncio": "asyncio-server",
    "httpx2": "httpx2-server",
    "Pydantic Settings": "pydantic-settings-server",
    "match": "match-server",
    "CON": "con-server",
    "production": "production-server",
    "tools": "tools-server",
    "A.B.C": "a-b-c",
    "a/b\\c": "a-b-c",
    "it's": "it-s",
    '"quoted"': "quoted",
    "`backticks` $(id) ${HOME} %PATH%": "backticks-id-home-path",
    "{{ 7*7 }}": "mcp-7-7",
    "{% raw %}": "raw",
    "{# comment #}": "comment",
    "name: value # not a comment": "name-value-not-a-comment",
    "- list item": "list-item",
    "--option": "option",
    "[tool.ruff]": "tool-ruff",
    "null": "null",
    "yes": "yes",
    "1.0": "mcp-1-0",
    "*anchor &alias !tag |": "anchor-alias-tag",
    "<b>bold</b> & more": "b-bold-b-more",
    "  spaces  ": "spaces",
    "___": None,
    "-": None,
    "天气": None,
    "Погода": None,
    "🚀": None,
    "": None,
    "   ": None,
    "two\nlines": None,
    "carriage\rreturn": None,
    "tab\tstop": None,
    "nul\x00byte": None,
    "next\x85line": None,
    "line\u2028separator": None,
    "x" * 100: "x" * 50,
    "x" * 101: None,
    "long " * 40: None,
}
"""What becomes of each project name: the slug, or None where the name is refused."""

DESCRIPTIONS = (
    "",
    "One sentence.",
    "It's \"quoted\", 'quoted' and C:\\back\\slashed\\",
    '"""',
    "{{ 7*7 }} {% raw %} {# none #} ${{ secrets.TOKEN }}",
    "key: value # comment",
    "- item",
    "[table] = 'toml'",
    "Ünïcödé 天气 🚀 \u202e bidi \u00a0 nbsp \ufeff bom",
    "trailing backslash \\",
    "  spaces around  ",
    "x" * 300,
)

BAD: dict[str, tuple[object, ...]] = {
    "project_name": ("", " ", "x" * 101, "a\nb", "\x1b[31m"),
    "project_description": ("x" * 301, "a\nb", "\x7f"),
    "upstream_base_url": (
        "",
        "api.example.com",
        "ftp://api.example.com",
        "https://",
        "https://api.example.com/?q=1",
        "https://api.example.com/#top",
        "https://user:secret@api.example.com",
        "https://api.example.com/a b",
        'https://api.example.com/"',
        "https://api.example.com\n",
    ),
    "project_slug": (
        "",
        "1st",
        "Upper",
        "under_score",
        "a--b",
        "-a",
        "a-",
        "a" * 61,
        "json",
        "mcp",
        "class",
        "ünï",
        "a\n",
    ),
    "package_name": ("", "1st", "Upper", "da-sh", "_a", "a" * 61, "json", "mcp", "class", "ünï", "a\n"),
    "metrics_port": (0, -1, 65536, "http"),
    "enable_metrics_tool": (True,),
    "rate_limit_requests": (0, -1, 1_000_000_001, "many"),
    "rate_limit_window_seconds": (0, 86_401),
    "max_retries": (-1, 101),
    "retry_delay_seconds": (0, -1, 86_401, "nan", "inf"),
    "retry_max_delay_seconds": (0, 86_401, "nan", 0.5),
    "circuit_failure_threshold": (0, 1_000_001),
    "circuit_recovery_timeout": (0, 86_401, "nan"),
    "circuit_half_open_requests": (0, 1001),
    "telemetry_endpoint": ("jaeger:4318", "grpc://jaeger:4317", "http://jaeger:4318?x=1", "http://u:p@jaeger:4318"),
    "upstream_api_key_env": ("api_key", "1KEY", "KEY-1", "K" * 101, "KEY\n"),
    "openapi_spec": (
        "petstore.yaml\n",
        " petstore.yaml",
        "--help",
        "ftp://api.example.com/openapi.json",
        "file:///etc/passwd",
        "https://user:secret@api.example.com/openapi.json",
        "https://api.example.com/openapi.json#top",
        "x" * 501,
    ),
    "openapi_operations": ("a;b", "$(id)", "--only", "a\n", "a" * 2002, "'a'"),
}
"""Values that each validator refuses."""

BESIDE: dict[str, Answers] = {
    "enable_metrics_tool": {"enable_metrics": False},
    "openapi_spec": {"upstream_base_url": "https://api.example.com"},
    "openapi_operations": {"upstream_base_url": "https://api.example.com", "openapi_spec": "petstore.yaml"},
}
"""What makes a value wrong that is right otherwise."""


MODULES = {"pyjwt": "jwt"}
"""What a dependency is imported as, where that is another name."""


class Told(NamedTuple):
    """Where a project repeats the texts of its answers."""

    recorded: Answers
    pyproject: dict[str, Any]
    title: str
    readme: str


def render(source: Path, directory: Path, **data: Any) -> Told:
    run_copy(str(source), directory, data=answers(**data), defaults=True, skip_tasks=True, quiet=True)
    return read(directory)


def read(directory: Path) -> Told:
    recorded = yaml.safe_load((directory / ANSWERS_FILE).read_text("utf-8"))
    titles = [
        json.loads(found.read_text("utf-8"))["title"] for found in directory.glob("src/*/production/answers.json")
    ]
    return Told(
        recorded,
        tomllib.loads((directory / "pyproject.toml").read_text("utf-8")),
        titles[0],
        (directory / "README.md").read_text("utf-8"),
    )


def assert_told(told: Told, name: str, description: str) -> None:
    """Every place has the exact texts, and names that can be used."""
    slug, package = told.recorded["project_slug"], told.recorded["package_name"]
    assert (told.recorded["project_name"], told.title) == (name, name)
    heading, _, sentence = [re.sub(r"\\([\\`*_\[\]<>#|])", r"\1", line) for line in told.readme.split("\n")[:3]]
    assert (heading, sentence) == (f"# {name}", description)
    assert told.recorded["project_description"] == told.pyproject["project"]["description"] == description
    assert SLUG.fullmatch(slug)
    assert PACKAGE.fullmatch(package)
    assert told.pyproject["project"]["name"] == slug
    assert told.pyproject["project"]["scripts"] == {slug: f"{package}.__main__:main"}


# --- Names and texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_project_name_becomes_a_slug_or_is_refused(words: Path, tmp_path: Path, name: str) -> None:
    slug = NAMES[name]
    if slug is None:
        with pytest.raises(ValueError, match=r"name|Name"):
            render(words, tmp_path / "project", project_name=name)
        assert not (tmp_path / "project").exists()
        return
    told = render(words, tmp_path / "project", project_name=name)
    assert_told(told, name, "A production MCP server")
    assert told.recorded["project_slug"] == slug
    assert told.recorded["package_name"] == slug.replace("-", "_")


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=ascii)
def test_a_description_arrives_word_for_word(words: Path, tmp_path: Path, description: str) -> None:
    assert_told(render(words, tmp_path, project_name="A b", project_description=description), "A b", description)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=110), st.text(max_size=310))
@example("a'\"\\", "{{ project_name }}")
def test_any_text_works_or_is_refused(
    words: Path, tmp_path_factory: pytest.TempPathFactory, name: str, description: str
) -> None:
    directory = tmp_path_factory.mktemp("any") / "project"
    try:
        told = render(words, directory, project_name=name, project_description=description)
    except ValueError as refusal:
        event(str(refusal))
        assert not directory.exists()
    else:
        assert_told(told, name, description)


def test_the_folder_names_the_project(words: Path, tmp_path: Path) -> None:
    told = render(words, tmp_path / "Grüße an alle")
    assert told.recorded["project_name"] == "Grüße an alle"
    assert told.recorded["project_slug"] == "gruesse-an-alle"


def test_reserved_names_cover_python_and_every_dependency() -> None:
    environment = NativeEnvironment()
    environment.filters["to_json"] = list
    reserved: Any = environment.from_string(variables()["reserved_names"]["default"]).render()
    assert reserved == sorted(set(reserved))
    taken = {name for name in sys.stdlib_module_names if not name.startswith("_")}
    taken |= {*keyword.kwlist, *keyword.softkwlist} - {"_"}
    pyproject = (ROOT / "template" / "pyproject.toml.jinja").read_text("utf-8")
    dependencies = re.findall(r'^    "([a-z0-9-]+)[>\[]', pyproject, re.MULTILINE)
    assert len(dependencies) > 15
    taken |= {MODULES.get(name, name.replace("-", "_")) for name in dependencies} | {"opentelemetry"}
    taken -= {name for name in taken if name.startswith("opentelemetry_")}  # one namespace, many distributions
    assert sorted({name.lower() for name in taken} - set(reserved)) == []


# --- Questions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", variables())
def test_every_variable_has_a_type_and_a_default_and_every_question_a_help_text(name: str) -> None:
    entry = variables()[name]
    assert entry["type"] in ("str", "bool", "int", "float", "yaml")
    assert "default" in entry
    if name in questions():
        assert len(entry["help"]) > 10
        assert not entry["help"].endswith(".")


def test_an_unknown_answer_is_refused_in_tests() -> None:
    with pytest.raises(ValueError, match="enable_retrys"):
        answers(enable_retrys=True)


def test_every_validator_has_a_bad_value() -> None:
    assert BAD.keys() == {name for name, question in questions().items() if "validator" in question}


def bad_values() -> list[Any]:
    return list(_bad_values())


def _bad_values() -> Iterator[Any]:
    for name, values in BAD.items():
        for value in values:
            yield pytest.param(name, value, id=f"{name}={ascii(value)[:40]}")
    for name, question in questions().items():
        if choices(question):
            yield pytest.param(name, "none of these", id=f"{name}=none of these")
        elif question["type"] in ("int", "float"):
            yield pytest.param(name, "a lot", id=f"{name}=a lot")


@pytest.mark.parametrize(("name", "value"), bad_values())
def test_a_bad_value_is_refused(words: Path, tmp_path: Path, name: str, value: object) -> None:
    data = answers(**{"project_name": "A b", **BESIDE.get(name, {}), name: value})
    number: Any = {"int": int, "float": float}.get(questions()[name]["type"], str)
    said = name
    try:
        number(value)
    except ValueError as error:  # Copier repeats it, and names no question
        said = re.escape(str(error))
    with pytest.raises(ValueError, match=said) as refusal:
        run_copy(str(words), tmp_path / "project", data=data, defaults=True, skip_tasks=True, quiet=True)
    last_line = str(refusal.value).splitlines()[-1]
    assert len(last_line) > 20
    assert not (tmp_path / "project").exists()


def test_a_document_needs_the_url_of_its_server(words: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data upstream_base_url=URL with the URL that is under servers in it"):
        render(words, tmp_path, project_name="A b", openapi_spec="petstore.yaml")


@pytest.mark.parametrize(
    "spec", ["petstore.yaml", "../C:\\my docs\\Ünï.json", "~/a b.yaml", "https://api.example.com/v1/openapi.json?v=3"]
)
def test_a_path_or_a_url_of_a_document_is_recorded_as_given(words: Path, tmp_path: Path, spec: str) -> None:
    told = render(words, tmp_path, project_name="A b", upstream_base_url="https://api.example.com", openapi_spec=spec)
    assert told.recorded["openapi_spec"] == spec


@pytest.mark.parametrize("profile", ["production", "minimal"])
def test_every_default_is_accepted(words: Path, tmp_path: Path, profile: str) -> None:
    told = render(words, tmp_path, project_name="A b", profile=profile)
    assert {name for name in told.recorded if not name.startswith("_")} == questions().keys()


@pytest.mark.parametrize(
    ("preset", "requests", "window"),
    [("custom", 7, 3), ("public", 60, 60), ("authenticated", 1000, 60), ("internal", 10000, 60)],
)
def test_a_preset_decides_the_two_numbers(words: Path, tmp_path: Path, preset: str, requests: int, window: int) -> None:
    render(
        words,
        tmp_path,
        project_name="A b",
        rate_limit_preset=preset,
        rate_limit_requests=7,
        rate_limit_window_seconds=3,
    )
    config = json.loads((tmp_path / "src" / "a_b" / "production" / "answers.json").read_text("utf-8"))["config"]
    assert (config["rate_limit_requests"], config["rate_limit_window_seconds"]) == (requests, window)


# --- The command line ----------------------------------------------------------------------------------------

REFUSED = [
    ("project_name=天气", "No name can be made of"),
    ("project_name=🚀", "project_slug=my-server"),
    ("project_name=" + "x" * 200, "100 are the most"),
    ("project_name=a\nb", "one line of text"),
    ("project_slug=json", "try json-server"),
    ("project_slug=Not A Slug", "such as my-server"),
    ("auth=magic", "magic"),
    ("metrics_port=99999", "from 1 to 65535"),
    ("upstream_base_url=ftp://x", "such as https://api.example.com/v1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("option", "line"), REFUSED, ids=[ascii(option)[:40] for option, _ in REFUSED])
def test_a_refusal_ends_with_status_1_and_a_readable_line_and_loses_nothing(
    words: Path, tmp_path: Path, option: str, line: str
) -> None:
    kept = tmp_path / "folder" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    done = copier("copy", "-T", "--defaults", "-d", option, str(words), "folder", cwd=tmp_path)
    assert done.returncode == 1
    assert line in done.stderr.strip().splitlines()[-1]
    assert files(tmp_path) == {"folder/kept.txt": b"mine"}


HOSTILE = ['it\'s "q" \\ {{ 7*7 }}', "{% raw %} # : - x", "-dash `id` $(id)", "[a] = 'b' & <c>"]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_survives_the_command_line(words: Path, tmp_path: Path, name: str) -> None:
    done = copier("copy", "-T", "--defaults", "-d", f"project_name={name}", str(words), "folder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_told(read(tmp_path / "folder"), name, "A production MCP server")
