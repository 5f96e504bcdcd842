"""Every answer arrives word for word, or is rejected with a line that says why."""

from __future__ import annotations

import json
import keyword
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from copier import run_copy
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from .conftest import Renderings
from .releases import questions_of, releases
from .support import (
    ANSWERS_FILE,
    DEFAULT,
    OTHER_VALUES,
    ROOT,
    Answers,
    answers,
    environment,
    evaluate,
    files,
    questions,
    render_file,
    render_text,
    variables,
)
from .support import copier as copier_command
from .template_repository import TemplateRepository, recorded

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
"""The slug of each project name, or None where the name is rejected."""

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
    "max_result_bytes": (-1, 2**30 + 1, "many"),
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
"""Values that each validator rejects."""

BESIDE: dict[str, Answers] = {
    "enable_metrics_tool": {"enable_metrics": False},
    "openapi_spec": {"upstream_base_url": "https://api.example.com"},
    "openapi_operations": {"upstream_base_url": "https://api.example.com", "openapi_spec": "petstore.yaml"},
}
"""For an answer, others beside which its values in `BAD` are wrong."""


MODULES = {"pyjwt": "jwt"}
"""The name under which a dependency is imported, where it is another one."""


class Texts(NamedTuple):
    """The places where a project repeats the texts of its answers."""

    recorded: Answers
    pyproject: dict[str, Any]
    title: str
    readme: str


def render(source: Path, directory: Path, **data: Any) -> Texts:
    run_copy(str(source), directory, data=answers(**data), defaults=True, skip_tasks=True, quiet=True)
    return read(directory)


def read(directory: Path) -> Texts:
    (answers_json,) = directory.glob("src/*/production/answers.json")
    return Texts(
        yaml.safe_load((directory / ANSWERS_FILE).read_text("utf-8")),
        tomllib.loads((directory / "pyproject.toml").read_text("utf-8")),
        json.loads(answers_json.read_text("utf-8"))["title"],
        (directory / "README.md").read_text("utf-8"),
    )


def rendered(**data: Any) -> Texts:
    """Return the texts as `render` does, but without Copier, in hundredths of the time."""
    return Texts(
        yaml.safe_load(render_file("{{ _copier_conf.answers_file }}", data)),
        tomllib.loads(render_file("pyproject.toml", data)),
        json.loads(render_file("src/{{ package_name }}/production/answers.json", data))["title"],
        render_file("README.md", data),
    )


def assert_unchanged(texts: Texts, name: str, description: str) -> None:
    """Check that every place has the exact texts, and that the names made of them are valid."""
    slug, package = texts.recorded["project_slug"], texts.recorded["package_name"]
    assert (texts.recorded["project_name"], texts.title) == (name, name)
    heading, _, sentence = [re.sub(r"\\([\\`*_\[\]<>#|])", r"\1", line) for line in texts.readme.split("\n")[:3]]
    assert (heading, sentence) == (f"# {name}", description)
    assert texts.recorded["project_description"] == texts.pyproject["project"]["description"] == description
    assert SLUG.fullmatch(slug)
    assert PACKAGE.fullmatch(package)
    assert texts.pyproject["project"]["name"] == slug
    assert texts.pyproject["project"]["scripts"] == {slug: f"{package}.__main__:main"}


def rejection(name: str, value: object, **others: Any) -> str:
    """Return what the validator of a question says of a value; an empty text where it accepts the value."""
    if questions()[name]["type"] == "float":
        value = float(str(value))
    values = evaluate({"project_name": "A b", **others}) | {name: value}
    return render_text(questions()[name]["validator"], values).strip()


# --- Names and texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_project_name_becomes_a_slug_or_is_rejected(name: str) -> None:
    values = evaluate({"project_name": name})
    if NAMES[name] is None:
        assert rejection("project_name", name) or rejection("project_slug", values["project_slug"], project_name=name)
    else:
        slug = str(NAMES[name])
        assert (values["project_slug"], values["package_name"]) == (slug, slug.replace("-", "_"))
        assert rejection("project_name", name) == ""
        assert rejection("project_slug", slug, project_name=name) == ""
        assert rejection("package_name", slug.replace("-", "_"), project_name=name) == ""


@pytest.mark.parametrize("name", [name for name, slug in NAMES.items() if slug], ids=ascii)
def test_a_project_name_is_rendered_unchanged(name: str) -> None:
    assert_unchanged(rendered(project_name=name), name, "A production MCP server")


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=ascii)
def test_a_description_is_rendered_unchanged(description: str) -> None:
    assert_unchanged(rendered(project_name="A b", project_description=description), "A b", description)


@pytest.mark.parametrize("name", ["it's", "{% raw %}", "  spaces  ", "*anchor &alias !tag |"])
def test_copier_renders_texts_unchanged(small_template: Path, tmp_path: Path, name: str) -> None:
    texts = render(small_template, tmp_path, project_name=name, project_description=DESCRIPTIONS[2])
    assert_unchanged(texts, name, DESCRIPTIONS[2])


@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.text(max_size=110), st.text(max_size=310))
@example("a'\"\\", "{{ project_name }}")
def test_any_text_works_or_is_rejected(name: str, description: str) -> None:
    assert_works_or_is_rejected(name, description)


@pytest.mark.release
@settings(max_examples=100, deadline=None)
@given(st.text(max_size=110), st.text(max_size=310))
def test_any_of_a_hundred_texts_works_or_is_rejected(name: str, description: str) -> None:
    assert_works_or_is_rejected(name, description)


def assert_works_or_is_rejected(name: str, description: str) -> None:
    slug = evaluate({"project_name": name})["project_slug"]
    problems = (
        rejection("project_name", name),
        rejection("project_description", description),
        rejection("project_slug", slug, project_name=name),
    )
    for problem in filter(None, problems):
        event(problem)
    if not any(problems):
        assert_unchanged(rendered(project_name=name, project_description=description), name, description)


def test_the_folder_names_the_project(small_template: Path, tmp_path: Path) -> None:
    texts = render(small_template, tmp_path / "Grüße an alle")
    assert texts.recorded["project_name"] == "Grüße an alle"
    assert texts.recorded["project_slug"] == "gruesse-an-alle"


def test_reserved_names_cover_python_and_every_dependency() -> None:
    reserved: list[str] = vars(environment().get_template("interview/names.jinja").module)["RESERVED"]
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

FIRST = [
    "project_name",
    "project_description",
    "profile",
    "upstream_base_url",
    "openapi_spec",
    "auth",
    "upstream_api_key_env",
]
"""The questions that come first; all others are asked with the profile `custom` only."""


def prompts(data: Answers) -> list[str]:
    """Return the questions that a person is asked who gives these answers."""
    values = evaluate(data)
    asked = {name: render_text(str(entry.get("ask", True)), values) for name, entry in questions().items()}
    return [name for name, text in asked.items() if yaml.safe_load(text)]


def test_few_questions_are_asked() -> None:
    own_api = DEFAULT | {"upstream_base_url": "https://api.example.com"}
    assert prompts(own_api) == FIRST
    assert prompts(DEFAULT) == [name for name in FIRST if name not in ("openapi_spec", "upstream_api_key_env")]


def test_the_custom_profile_asks_about_every_feature() -> None:
    on = {name: True for name, question in questions().items() if question["type"] == "bool"}
    own_api = {"upstream_base_url": "https://api.example.com", "openapi_spec": "openapi.json"}
    assert prompts(DEFAULT | {"profile": "custom", "auth": "jwt"} | on | own_api) == [*questions()]


@pytest.mark.parametrize("name", variables())
def test_every_variable_has_a_type_and_a_default_and_every_question_a_help_text(name: str) -> None:
    entry = variables()[name]
    assert entry["type"] in ("str", "bool", "int", "float", "yaml")
    assert "default" in entry
    if name in questions():
        assert 7 < len(entry["help"]) <= 105
        assert not entry["help"].endswith(".")
        assert entry["help"].endswith("?") == (entry["type"] == "bool")


def test_no_line_of_the_interview_is_long() -> None:
    paths = [ROOT / "copier.yml", *(path for path in (ROOT / "interview").rglob("*") if path.is_file())]
    lines = [(path.name, line) for path in paths for line in path.read_text("utf-8").splitlines()]
    assert [(name, line) for name, line in lines if len(line) > 140] == []


def test_an_unknown_answer_is_rejected_in_tests() -> None:
    with pytest.raises(ValueError, match="enable_retrys"):
        answers(enable_retrys=True)


def test_every_validator_has_a_bad_value() -> None:
    assert BAD.keys() == {name for name, question in questions().items() if "validator" in question}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={ascii(value)[:40]}")
        for name, values in BAD.items()
        for value in values
        if value not in ("http", "many")  # numbers, which Copier itself rejects
    ],
)
def test_a_bad_value_is_rejected_in_one_short_line(name: str, value: object) -> None:
    """Copier puts 48 to 57 characters in front, and a prompt cuts the line where the terminal ends."""
    text = rejection(name, value, **BESIDE.get(name, {}))
    assert 20 < len(text) <= 80
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("metrics_port", 0, "question 'metrics_port': Use a number from 1 to 65535"),
        ("metrics_port", "http", "invalid literal for int"),
        ("auth", "magic", "Invalid choice for 'auth'"),
        ("package_name", "json", "question 'package_name': json is taken"),
    ],
)
def test_copier_prints_the_rejection_and_writes_nothing(
    small_template: Path, tmp_path: Path, name: str, value: object, line: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        render(small_template, tmp_path / "project", **{"project_name": "A b", name: value})
    assert not (tmp_path / "project").exists()


def test_a_document_needs_the_url_of_its_server() -> None:
    assert "--data upstream_base_url=URL" in rejection("openapi_spec", "petstore.yaml")


SPECS = ("petstore.yaml", "../C:\\my docs\\Ünï.json", "~/a b.yaml", "https://api.example.com/v1/openapi.json?v=3")


@pytest.mark.parametrize("spec", SPECS)
def test_a_path_or_a_url_of_a_document_is_accepted(spec: str) -> None:
    assert rejection("openapi_spec", spec, upstream_base_url="https://api.example.com") == ""


def test_the_path_of_a_document_is_recorded_as_given(small_template: Path, tmp_path: Path) -> None:
    base_url = "https://api.example.com"
    texts = render(small_template, tmp_path, project_name="A b", upstream_base_url=base_url, openapi_spec=SPECS[1])
    assert texts.recorded["openapi_spec"] == SPECS[1]


@pytest.mark.parametrize("variant", ["default", "minimal"])
def test_every_default_is_accepted_and_recorded(renderings: Renderings, variant: str) -> None:
    recorded = read(renderings[variant].first).recorded
    assert {name for name in recorded if not name.startswith("_")} == questions().keys()


PRESETS = [("custom", 7, 3), ("public", 60, 60), ("authenticated", 1000, 60), ("internal", 10000, 60)]


@pytest.mark.parametrize(("preset", "requests", "window"), PRESETS)
def test_a_preset_decides_the_two_numbers(preset: str, requests: int, window: int) -> None:
    numbers = {"rate_limit_requests": 7, "rate_limit_window_seconds": 3}
    values = evaluate(DEFAULT | {"rate_limit_preset": preset} | numbers)
    assert values["rate_limit"] == {"requests": requests, "window": window}


def test_the_numbers_of_a_preset_are_those_of_the_server(small_template: Path, tmp_path: Path) -> None:
    render(small_template, tmp_path, project_name="A b", rate_limit_preset="internal")
    config = json.loads((tmp_path / "src" / "a_b" / "production" / "answers.json").read_text("utf-8"))["config"]
    assert (config["rate_limit_requests"], config["rate_limit_window_seconds"]) == (10000, 60)


@pytest.mark.slow
def test_recorded_answers_of_every_release_are_kept(small_template: Path, tmp_path: Path) -> None:
    """No question is renamed, and no validator rejects what it accepted."""
    for release in releases():
        known = questions_of(release.commit)
        given = {name: answer for name, answer in OTHER_VALUES.items() if name in known}
        repository = TemplateRepository.empty(tmp_path / release.version)
        repository.load_revision(release.commit)
        repository.release(release.version)
        project = repository.copy(**given)
        before = recorded(project)
        repository.load_working_tree()
        repository.release("90.0.0")
        repository.update(project)
        after = recorded(project)
        assert {name: after.get(name) for name in known} == {name: before[name] for name in known}


# --- The command line ----------------------------------------------------------------------------------------

REJECTED = [
    ("project_name=天气", "has no letter a-z and no digit"),
    ("project_name=🚀", "project_slug=my-server"),
    ("project_name=" + "x" * 200, "at most 100 characters"),
    ("project_name=a\nb", "one line"),
    ("project_slug=json", "try json-server"),
    ("project_slug=Not A Slug", "such as my-server"),
    ("auth=magic", "magic"),
    ("metrics_port=99999", "from 1 to 65535"),
    ("upstream_base_url=ftp://x", "http(s)://host"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("option", "line"), REJECTED, ids=[ascii(option)[:40] for option, _ in REJECTED])
def test_a_rejected_update_ends_with_status_1_and_changes_nothing(
    small_template: Path, tmp_path: Path, option: str, line: str
) -> None:
    existing = tmp_path / "folder" / "kept.txt"
    existing.parent.mkdir()
    existing.write_text("mine")
    done = copier_command("copy", "-T", "--defaults", "-d", option, str(small_template), "folder", cwd=tmp_path)
    assert done.returncode == 1
    assert line in done.stderr.strip().splitlines()[-1]
    assert files(tmp_path) == {"folder/kept.txt": b"mine"}


HOSTILE = ['it\'s "q" \\ {{ 7*7 }}', "{% raw %} # : - x", "-dash `id` $(id)", "[a] = 'b' & <c>"]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_survives_the_command_line(small_template: Path, tmp_path: Path, name: str) -> None:
    option = f"project_name={name}"
    done = copier_command("copy", "-T", "--defaults", "-d", option, str(small_template), "folder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_unchanged(read(tmp_path / "folder"), name, "A production MCP server")
