"""The run-time questions and the generated `ProductionConfig` are the same thing, in two languages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from copier import run_copy

from .matrix import Project
from .support import ANSWERS_FILE, Answers, answers, choices, questions

GENERATION_ONLY = {
    "project_name",
    "project_description",
    "profile",
    "project_slug",
    "package_name",
    "rate_limit_preset",
    "python_version",
    "include_docker",
    "include_kubernetes",
    "include_ci",
    "openapi_spec",
    "openapi_operations",
}
"""Questions that decide files or texts, and nothing while the server runs."""

UNSET = {"metrics_port": 8000, "telemetry_endpoint": "", "upstream_api_key_env": ""}
"""Answers that mean that the operator has said nothing; the field is then None, or empty."""

DUMP = """
import json
from weather_station.production.config import ANSWERS, ProductionConfig
fields = ProductionConfig.model_json_schema(by_alias=False)["properties"]
given = ProductionConfig().model_dump(mode="json")
print(json.dumps({"fields": fields, "answers": dict(ANSWERS["config"]), "given": given}))
"""

pytestmark = pytest.mark.slow


class Model(NamedTuple):
    """What the default project's own interpreter says of its configuration."""

    fields: dict[str, dict[str, Any]]
    answers: dict[str, Any]
    given: dict[str, Any]


@pytest.fixture(scope="module")
def model(built: Callable[[str], Project]) -> Model:
    done = built("default").python("-c", DUMP)
    assert done.returncode == 0, done.stderr
    return Model(**json.loads(done.stdout))


@pytest.fixture(scope="module")
def default_answers(built: Callable[[str], Project]) -> Answers:
    found: Answers = yaml.safe_load((built("default").path / ANSWERS_FILE).read_text("utf-8"))
    return found


def run_time() -> list[str]:
    return [name for name in questions() if name not in GENERATION_ONLY]


def numeric() -> list[str]:
    return [name for name in run_time() if questions()[name]["type"] in ("int", "float")]


def constraints(field: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a field's schema that says what a value may be, where None is allowed as well."""
    variants = [variant for variant in field.get("anyOf", []) if variant.get("type") != "null"]
    return dict(variants[0] if variants else field)


def test_every_question_is_a_field_or_decides_files_only(model: Model) -> None:
    assert set(run_time()) <= model.fields.keys()
    assert not GENERATION_ONLY & model.fields.keys()
    assert questions().keys() >= GENERATION_ONLY
    assert model.answers.keys() == set(run_time())


def test_types_and_choices_agree(model: Model) -> None:
    types = {"bool": "boolean", "int": "integer", "float": "number", "str": "string"}
    for name in run_time():
        question, field = questions()[name], constraints(model.fields[name])
        assert field["type"] == types[question["type"]], name
        assert field.get("enum", []) == choices(question), name


def test_defaults_agree(model: Model, default_answers: Answers) -> None:
    for name in run_time():
        answer = default_answers[name]
        default = model.fields[name]["default"]
        if name in UNSET:
            assert (answer, default or None) == (UNSET[name], None), name
        else:
            assert answer == default, name
        assert model.given[name] == default, name


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("name", numeric())
def test_ranges_agree(model: Model, words: Path, tmp_path: Path, name: str) -> None:
    field = constraints(model.fields[name])
    step = 1 if questions()[name]["type"] == "int" else 0.001
    low = field["exclusiveMinimum"] + step if "exclusiveMinimum" in field else field["minimum"]
    if name == "metrics_port":  # 0 lets the system choose, which only makes sense while the server runs
        assert low == 0
        low = 1
    high = field["maximum"]
    for value in (low, high):
        accept(words, tmp_path / str(value), name, value)
    for value in (low - step, high + step):
        with pytest.raises(ValueError, match=name):
            accept(words, tmp_path / str(value), name, value)


def accept(words: Path, directory: Path, name: str, value: float) -> None:
    """Renders with this answer, and with the other end of the pair that must not cross where it belongs to one."""
    beside: dict[str, Answers] = {
        "retry_delay_seconds": {"retry_max_delay_seconds": 86_400},
        "retry_max_delay_seconds": {"retry_delay_seconds": 0.001},
    }
    data = answers(project_name="A b", **beside.get(name, {}), **{name: value})
    run_copy(str(words), directory, data=data, defaults=True, skip_tasks=True, quiet=True)
