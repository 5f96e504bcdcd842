"""Names and descriptions of the tools, and what their schemas say of kinds, examples and deprecation."""

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
    tool_names,
)
from openapi_tools.schema_keywords import description_of


def numbered(operation_id: str, tag: str, summary: str = "") -> dict[str, Any]:
    return operation_with(operationId=operation_id, tags=[tag], **({"summary": summary} if summary else {}))


def test_numbered_operation_ids_are_replaced_by_tag_and_summary(tmp_path: Path) -> None:
    paths = {
        "/users/{id}": {"delete": numbered("delete", "Users", "Delete one")},
        "/groups/{id}": {"delete": numbered("delete_1", "Groups", "Delete one")},
        "/roles/{id}": {"delete": numbered("delete_2", "Roles")},
        "/v1/x": {"get": numbered("list_v1", "X", "The list")},
        "/v2/x": {"get": numbered("get2", "X", "The second")},
    }
    generated = generate_from(document_with(paths), tmp_path)
    assert tool_names(generated) == ["users_delete_one", "groups_delete_one", "delete_roles_id", "list_v1", "get2"]
    assert len(findings(generated, "name")) == 3


def test_method_and_path_are_in_the_description(tmp_path: Path) -> None:
    generated = generate_from(document_with({"/x/{id}": {"delete": operation_with(summary="Remove it")}}), tmp_path)
    assert generated.tools[0].description == "Remove it\n\nDELETE /x/{id}"


@pytest.mark.parametrize(
    ("schema", "description"),
    [
        ({"description": "The age"}, "The age"),
        ({"description": "The age", "default": 7}, "The age. Default: 7"),
        ({"description": "The age", "example": 3, "default": 7}, "The age. Default: 7; Example: 3"),
        ({"examples": ["abc", "def"]}, "Example: abc"),
        ({"examples": {"one": {"value": "abc"}}}, "Example: abc"),
        ({"description": "Old.", "deprecated": True}, "Deprecated. Old."),
        ({"deprecated": True}, "Deprecated."),
        ({"type": "boolean", "example": True}, ""),
        ({"enum": ["a"], "example": "a"}, ""),
        ({"example": {"a": 1}}, ""),
        ({"example": "x" * 100}, ""),
    ],
    ids=str,
)
def test_a_description_has_the_default_an_example_and_deprecation(schema: dict[str, Any], description: str) -> None:
    assert description_of(schema) == description


PETS = {
    "Pet": {
        "type": "object",
        "properties": {"kind": {"type": "string"}, "mate": {"$ref": "#/components/schemas/Pet"}},
        "discriminator": {"propertyName": "kind", "mapping": {"c": "#/components/schemas/Cat", "d": "Dog"}},
    },
    "Cat": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"properties": {"lives": {"type": "integer"}}}]},
    "Dog": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"properties": {"barks": {"type": "boolean"}}}]},
}


def test_the_schemas_that_extend_one_with_a_discriminator_are_visible(tmp_path: Path) -> None:
    paths = {"/x": {"get": operation_with(responses=json_response({"$ref": "#/components/schemas/Pet"}))}}
    generated = generate_from(document_with(paths, schemas=PETS), tmp_path)
    assert "-> Answer[models.Cat | models.Dog | models.Pet]:" in generated.files["src/package/tools/x.py"]
    models = models_source(generated)
    assert "lives: Omittable[int]" in models
    assert "mate: Omittable[Cat | Dog | Pet]" in models
    assert "Selects the schema: c (Cat), d (Dog)" in " ".join(models.replace('"', "").split())


def test_the_value_for_each_variant_is_visible(tmp_path: Path) -> None:
    kinds = {
        name: {"type": "object", "properties": {"type": {"type": "string", "description": "The type."}, own: {}}}
        for name, own in (("Card", "number"), ("Cash", "coins"))
    }
    references = [{"$ref": f"#/components/schemas/{name}"} for name in kinds]
    mapping = {"credit": "#/components/schemas/Card", "debit": "#/components/schemas/Card"}
    either = {"oneOf": references, "discriminator": {"propertyName": "type", "mapping": mapping}}
    paths = {"/x": {"get": operation_with(responses=json_response(either))}}
    source = models_source(generate_from(document_with(paths, schemas=kinds), tmp_path))
    models = "".join(str(node.value) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    assert "The type. It is credit or debit here." in models
    assert "The type. It is Cash here." in models
