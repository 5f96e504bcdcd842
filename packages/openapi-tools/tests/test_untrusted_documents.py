"""Nothing of a document reaches the generated source but identifiers, literals and docstrings."""

from __future__ import annotations

import ast
import re
import sys
import types
from pathlib import Path
from typing import Any, TypeVar

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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_tools import Generated
from pydantic import BaseModel, ConfigDict

VALUE = TypeVar("VALUE")
TOOL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

ALLOWED_NODES = (
    ast.Module | ast.Expr | ast.Constant | ast.ImportFrom | ast.alias | ast.AsyncFunctionDef | ast.FunctionDef
    | ast.arguments | ast.arg | ast.Name | ast.Load | ast.Store | ast.Subscript | ast.Tuple | ast.List | ast.Dict
    | ast.Call | ast.keyword | ast.Return | ast.Await | ast.Attribute | ast.BinOp | ast.BitOr | ast.Starred
    | ast.ClassDef | ast.AnnAssign | ast.Assign | ast.UnaryOp | ast.USub
)  # fmt: skip
"""What the modules consist of; no other syntax may come from a document."""

ALLOWED_CALLS = {
    *("Field", "ConfigDict", "TypeAdapter", "add", "call", "wire", "form", "deep", "in_json", "json_body"),
    *("text_body", "binary_body", "form_body", "multipart_body", "simple", "label", "matrix", "describe", "policy"),
}
ALLOWED_IMPORTS = {
    *("__future__", "typing", "pydantic", "mcp.server.mcpserver", ""),
    *("production", "production.openapi", "production.openapi_document"),
}


def generated_modules(generated: Generated) -> dict[str, str]:
    """Return the modules that are made of the document, by path."""
    return {path: source for path, source in generated.files.items() if "/tools/" in path}


def assert_harmless(generated: Generated) -> None:
    for path, source in generated_modules(generated).items():
        for node in ast.walk(ast.parse(source)):
            where = f"{path}: {ast.unparse(node)}"
            assert isinstance(node, ALLOWED_NODES), where
            if isinstance(node, ast.Call):
                assert isinstance(node.func, ast.Name), where
                assert node.func.id in ALLOWED_CALLS, where
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "") in ALLOWED_IMPORTS, where
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node.value) == "models", where


def assert_models_work(generated: Generated) -> None:
    """Run the module of models with a substitute for the run-time part, and make the JSON schema of each."""

    class ApiModel(BaseModel):
        model_config = ConfigDict(extra="allow", protected_namespaces=())

    module = types.ModuleType("generated_models")
    vars(module).update(ApiModel=ApiModel, Number=int | float, Omittable=VALUE | None, UploadFile=str)
    sys.modules[module.__name__] = module
    source = re.sub(r"from \.\.production\.openapi import .*", "", models_source(generated))
    exec(compile(source, "_models.py", "exec"), vars(module))  # noqa: S102 (assert_harmless has passed)
    for value in [*vars(module).values()]:
        if isinstance(value, type) and issubclass(value, BaseModel):
            value.model_rebuild()
            value.model_json_schema()


@pytest.mark.parametrize("name", ["plain", "modern", "hostile"])
def test_the_modules_consist_of_models_tools_and_literals(name: str, request: pytest.FixtureRequest) -> None:
    generated: Generated = request.getfixturevalue(name)
    assert_harmless(generated)
    assert_models_work(generated)


HOSTILE_TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(['"""', "'''\\", "\\", '"', "{}", "class", "__import__('os')", "\u202e", "\r\n", "\x00", "a" * 90]),
)


def document_of_texts(texts: list[str]) -> dict[str, Any]:
    """Return a document with each of the texts in several places."""
    path, parameter, prop, title, text, value, tag, summary, header, scheme, name, pattern = texts
    schema = {
        "type": "object",
        "title": title,
        "description": text,
        "required": [prop, value],
        "properties": {
            prop: {"type": "string", "description": text, "pattern": pattern, "default": value, "format": title},
            value: {"enum": [value, text, 1, True, None]},
            name: {"$ref": f"#/components/schemas/{name}"},
        },
    }
    operation = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "description": text,
        "parameters": [
            {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}},
            {"name": parameter, "in": "query", "description": text, "schema": {"enum": [value]}},
            {"name": header, "in": "header", "schema": {"type": "string", "pattern": pattern}},
            {"name": name, "in": "header", "required": True, "schema": {"const": text}},
            {"name": f"{title}-Version", "in": "header", "schema": {"type": "string", "default": value}},
            {"name": header, "in": "cookie", "style": text, "schema": schema},
        ],
        "requestBody": {"content": {header: {"schema": schema}, "application/json": {"schema": schema}}},
        "responses": json_response(schema) | {text: {"description": text}},
        "security": [{scheme: [text, title], f"{scheme}2": [text]}],
    }
    return {
        "openapi": "3.0.1",
        "info": {"title": title, "version": value},
        "servers": [{"url": f"https://example.com/{text}"}, {"url": f"https://{value}"}, {"url": title}],
        "paths": {f"/{path}/{{{parameter}}}": {"post": operation}},
        "components": {
            "schemas": {name: schema},
            "securitySchemes": {
                scheme: {"type": "apiKey", "in": "header", "name": header},
                f"{scheme}2": {"type": "apiKey", "in": "header", "name": pattern},
            },
        },
    }


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HOSTILE_TEXTS, min_size=12, max_size=12))
def test_any_text_at_any_place_stays_a_string(tmp_path: Path, texts: list[str]) -> None:
    generated = generate_from(document_of_texts(texts), tmp_path, with_scopes=True)
    assert_harmless(generated)
    assert_models_work(generated)
    assert all(map(TOOL_NAME.fullmatch, tool_names(generated)))
    assert all(path.isascii() and ".." not in path for path in generated.files)
    assert all("\r" not in source and "\x00" not in source for source in generated.files.values())


def test_a_text_of_a_megabyte_is_shortened(tmp_path: Path) -> None:
    text = "word " * 200_000
    schema = {"type": "object", "description": text, "properties": {"a": {"type": "string", "description": text}}}
    operation = operation_with(operationId=text, summary=text, description=text, responses=json_response(schema))
    generated = generate_from(document_with({"/x": {"get": operation}}), tmp_path)
    assert max(map(len, generated_modules(generated).values())) < 5_000


def test_the_report_shows_places_as_code(tmp_path: Path) -> None:
    paths = {"/`<b>`": {"get": operation_with(requestBody={"$ref": "#/`none`"})}}
    generated = generate_from(document_with(paths), tmp_path)
    assert findings(generated, "request body")
    assert "`#/paths/~1'<b>'/get/requestBody`" in generated.files["docs/openapi-report.md"]
