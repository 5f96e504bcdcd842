"""The questions that matter at run time and the fields of `ProductionConfig` have the same names, types and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest

from .matrix import Project
from .support import DEFAULT, EVERYTHING, Answers, choices, evaluate, questions, render_text
from .tables import example_variables
from .template_repository import recorded

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
    "include_surface_test",
    "telemetry_signals",
    "openapi_spec",
    "openapi_operations",
}
"""Questions that decide files or texts only."""

UNSET = {"metrics_port": 8000, "telemetry_endpoint": "", "upstream_api_key_env": ""}
"""Answers for which the field of `ProductionConfig` is None or empty."""

DUMP = """
import json
from weather_station.production.config import ANSWERS, CHOSEN_AT_COPY, ProductionConfig, variable
read = [name for name in ProductionConfig.model_fields if name not in CHOSEN_AT_COPY]
fields = ProductionConfig.model_json_schema(by_alias=False)["properties"]
given = ProductionConfig().model_dump(mode="json")
print(json.dumps({"fields": fields, "answers": dict(ANSWERS["config"]), "given": given,
    "variables": {name: variable(name) for name in read}}))
"""

pytestmark = pytest.mark.slow


class Model(NamedTuple):
    """The configuration of the default project, as its own interpreter has it."""

    fields: dict[str, dict[str, Any]]
    answers: dict[str, Any]
    given: dict[str, Any]
    variables: dict[str, str]
    """The environment variable of each field that is read from the environment."""


@pytest.fixture(scope="module")
def model(built: Callable[[str], Project]) -> Model:
    done = built("default").python("-c", DUMP)
    assert done.returncode == 0, done.stderr
    return Model(**json.loads(done.stdout))


@pytest.fixture(scope="module")
def default_answers(built: Callable[[str], Project]) -> Answers:
    return recorded(built("default").path)


def run_time() -> list[str]:
    return [name for name in questions() if name not in GENERATION_ONLY]


def numeric() -> list[str]:
    return [name for name in run_time() if questions()[name]["type"] in ("int", "float")]


def constraints(field: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a field's schema that is about values other than None."""
    variants = [variant for variant in field.get("anyOf", []) if variant.get("type") != "null"]
    return dict(variants[0] if variants else field)


def test_every_question_is_a_field_or_decides_files_only(model: Model) -> None:
    assert set(run_time()) <= model.fields.keys()
    assert not GENERATION_ONLY & model.fields.keys()
    assert questions().keys() >= GENERATION_ONLY
    assert model.answers.keys() == set(run_time())


def test_every_setting_is_in_the_example_of_the_environment(model: Model) -> None:
    settings = set(model.variables.values())
    with_key = EVERYTHING | {"upstream_api_key_env": "API_KEY"}
    varied = [(name, value) for name in ("auth", "upstream_auth") for value in choices(questions()[name])]
    known = {variable for name, value in varied for _, variable in example_variables(with_key | {name: value})}
    assert sorted(settings - known) == []


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


@pytest.mark.parametrize("name", numeric())
def test_ranges_agree(model: Model, name: str) -> None:
    field = constraints(model.fields[name])
    step = 1 if questions()[name]["type"] == "int" else 0.001
    low = field["exclusiveMinimum"] + step if "exclusiveMinimum" in field else field["minimum"]
    if name == "metrics_port":  # 0 lets the system choose, which only makes sense while the server runs
        assert low == 0
        low = 1
    high = field["maximum"]
    assert [rejection(name, value) for value in (low, high)] == ["", ""]
    assert all(rejection(name, value) for value in (low - step, high + step))


def rejection(name: str, value: float) -> str:
    """Return what the validator says of a value, beside one of the other delay that it cannot contradict."""
    others: dict[str, Answers] = {
        "retry_delay_seconds": {"retry_max_delay_seconds": 86_400},
        "retry_max_delay_seconds": {"retry_delay_seconds": 0.001},
    }
    values = evaluate(DEFAULT | others.get(name, {}) | {name: value})
    return render_text(questions()[name]["validator"], values).strip()
