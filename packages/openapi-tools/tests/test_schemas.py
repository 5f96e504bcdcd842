"""Conversion of schemas to models."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from document_builders import (
    document_with,
    findings,
    generate_from,
    json_response,
    models_source,
    operation_with,
)
from openapi_tools import Generated
from openapi_tools.generator import REPORT_PATH


def class_source(source: str, name: str) -> str:
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return next(ast.unparse(node) for node in classes if node.name == name).replace("'", '"')


def result_annotation(schema: Any, folder: Path, **schemas: Any) -> str:
    """Return the annotation of the result of a tool whose response has this schema."""
    paths = {"/x": {"get": {"responses": json_response(schema)}}}
    source = generate_from(document_with(paths, schemas=schemas), folder).files["src/package/tools/x.py"]
    (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.AsyncFunctionDef))
    assert function.returns is not None
    return ast.unparse(function.returns).removeprefix("Answer[").removesuffix("]")


@pytest.mark.parametrize(
    ("schema", "annotation", "reported"),
    [
        ({"type": "string", "enum": [1, 2.5, "c"]}, 'Literal["1", "2.5", "c"] | str', False),
        ({"type": "integer", "enum": ["1", 2.0, "3.0"]}, "Literal[1, 2, 3] | int", False),
        ({"type": "boolean", "enum": ["true"]}, "Literal[True]", False),
        ({"type": "integer", "enum": ["0 (Private)", "1 (Org)"]}, "int", True),
        ({"type": "integer", "enum": [1, 2, "other"]}, "Literal[1, 2] | int", True),
        ({"type": ["string", "null"], "enum": ["a", None]}, 'Literal["a"] | None', False),
        ({"type": ["integer", "null"], "enum": ["x", None]}, "int | None", True),
        ({"type": "number", "enum": [True]}, "Number", True),
        ({"type": "number", "enum": [0.5, 1.5]}, "Number", False),
        ({"type": "array", "items": {"type": "integer"}, "enum": [[1], [2]]}, "list[int]", False),
        ({"enum": ["a", 1, True]}, 'Literal["a", 1, True] | str | int | bool', False),
    ],
)
def test_values_of_an_enumeration_have_its_type(tmp_path: Path, schema: Any, annotation: str, reported: bool) -> None:
    responses = json_response(schema)
    generated = generate_from(document_with({"/x": {"get": {"responses": responses}}}), tmp_path)
    assert result_annotation(schema, tmp_path).replace("'", '"') == annotation
    assert any("not of its type" in text for _, text in findings(generated, "schema")) is reported


def test_values_of_which_none_has_the_type_are_in_the_description(tmp_path: Path) -> None:
    schema = {"type": "integer", "description": "Who sees it", "enum": ["0 (Private)", "1 (Org)"]}
    parameters = [{"name": "who", "in": "query", "schema": schema}]
    generated = generate_from(document_with({"/x": {"get": operation_with(parameters=parameters)}}), tmp_path)
    (parameter,) = generated.tools[0].parameters
    assert parameter.description == "Who sees it. Values: 0 (Private), 1 (Org)"


def test_a_request_is_strict_and_a_response_accepts_additions(plain: Generated) -> None:
    request, response = class_source(models_source(plain), "PetInput"), class_source(models_source(plain), "Pet")
    assert "id:" not in request
    assert "secret: str" in request
    assert "min_length=1" in request
    assert 'Omittable[Literal["here", "sold"]]' in request
    assert "id_: " in response
    assert "secret" not in response
    assert "min_length" not in response
    assert 'Omittable[Literal["here", "sold"] | str]' in response


def test_rules_that_no_model_checks_are_reported_once(modern: Generated) -> None:
    texts = {text for _, text in findings(modern, "schema")}
    for text in ("uniqueItems is not checked", "not is not checked", "anyOf of rules without types is not checked"):
        assert text in texts
    assert findings(modern, "pattern")
    assert ("#/webhooks/treeGrew", "the API sends these requests, not the server") in findings(
        modern, "skipped operation"
    )
    assert any("#/nowhere" in text for _, text in findings(modern, "reference"))
    assert modern.files[REPORT_PATH].count("uniqueItems is not checked") == 1


def test_a_large_group_of_recursive_schemas_is_cut_and_a_small_one_is_not(modern: Generated) -> None:
    assert "next_: Annotated[Omittable[dict[str, Any]]" in class_source(models_source(modern), "N1")
    assert "list[Tree]" in class_source(models_source(modern), "Tree")
    assert len([text for _, text in findings(modern, "schema") if "refer to each other" in text]) == 14


@pytest.mark.parametrize(
    ("schema", "annotation"),
    [
        ({"type": ["integer", "null"]}, "int | None"),
        ({"type": "array", "items": {"type": "string", "format": "date"}}, "list[Annotated[str, Field("),
        ({"enum": ["a", "b", None]}, "Literal['a', 'b'] | str | None"),
        ({"const": 5}, "Literal[5]"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}}, "dict[str, bool]"),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, "str"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "str | int"),
        (True, "Any"),
        ({}, "Any"),
    ],
    ids=str,
)
def test_a_schema_becomes_an_annotation(tmp_path: Path, schema: Any, annotation: str) -> None:
    assert result_annotation(schema, tmp_path).startswith(annotation)


def test_a_union_that_contains_itself_ends(tmp_path: Path) -> None:
    either = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [{"$ref": REFERENCE}, NULL]}}]}
    assert result_annotation({"anyOf": [{"$ref": REFERENCE}, NULL]}, tmp_path, Own=either) == (
        "str | list[str | list[Any] | None] | None"
    )


def test_a_variant_that_contains_itself_is_left_out(tmp_path: Path) -> None:
    own = {"description": "x", "minLength": 1, "oneOf": [{"type": "string"}, {"$ref": REFERENCE, "minLength": 2}]}
    assert result_annotation({"$ref": REFERENCE}, tmp_path, Own=own) == "str"


REFERENCE = "#/components/schemas/Own"
NULL = {"type": "null"}


def test_a_field_may_have_the_name_of_a_function_of_the_tools(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"deep": {"type": "string"}, "call": {"type": "string"}}}
    paths = {"/x": {"get": {"responses": json_response(schema)}}}
    source = models_source(generate_from(document_with(paths), tmp_path))
    assert "from ..production.openapi import ApiModel, Omittable\n" in source
