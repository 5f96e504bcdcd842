"""Documents with unusual or faulty parts: what is left out is reported, and the rest becomes tools."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from document_builders import (
    case_of,
    document_with,
    findings,
    generate_from,
    json_response,
    models_source,
    operation_with,
    tool_names,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_tools import Document, DocumentError, generate, loading
from openapi_tools import document as document_module
from openapi_tools.patterns import translated_pattern
from openapi_tools.text import clean_text, docstring, literal


def files_of(generated_folder: Path, count: int) -> Path:
    """Write a document whose schemas are in `count` files, and return its path."""
    properties = {}
    for number in range(count):
        (generated_folder / f"schema_{number}.json").write_text(json.dumps({"type": "integer", "minimum": number}))
        properties[f"p{number}"] = {"$ref": f"schema_{number}.json"}
    schema = {"type": "object", "properties": properties}
    path = generated_folder / "openapi.json"
    path.write_text(json.dumps(document_with({"/x": {"get": operation_with(responses=json_response(schema))}})))
    return path


@pytest.mark.slow
def test_thousands_of_files_are_read(tmp_path: Path) -> None:
    generated = generate(Document(str(files_of(tmp_path, 3000))), "package", budget=10**6)
    assert findings(generated, "reference") == []
    assert models_source(generated).count("Omittable[int]") == 3000


@pytest.mark.parametrize(
    ("module", "limit", "value", "message"),
    [
        (document_module, "MAX_FILES", 5, "refers to more than 5 files"),
        (document_module, "MAX_TOTAL_BYTES", 600, "in all its files"),
        (loading, "MAX_BYTES", 1500, "has more than"),
    ],
)
def test_a_document_above_a_limit_is_rejected_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, limit: str, value: int, message: str
) -> None:
    path = files_of(tmp_path, 10)
    if limit == "MAX_BYTES":
        (tmp_path / "schema_3.json").write_text(" " * 2000)
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(DocumentError, match=message):
        generate(Document(str(path)), "package")


def test_a_root_above_the_folder_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "common.json").write_text('{"type": "integer"}')
    paths = {"/x": {"get": operation_with(responses=json_response({"$ref": "../common.json"}))}}
    path = tmp_path / "api" / "openapi.json"
    path.write_text(json.dumps(document_with(paths)))
    assert findings(generate(Document(str(path)), "package"), "reference")
    generated = generate(Document(str(path), root=tmp_path), "package")
    assert findings(generated, "reference") == []
    assert "-> Answer[int]:" in generated.files["src/package/tools/x.py"]


# --- OpenAPI 3.2 -------------------------------------------------------------------------------------------------


def test_openapi_3_2(tmp_path: Path) -> None:
    item = {"type": "object", "properties": {"n": {"type": "integer"}}}
    paths = {
        "/search": {
            "query": operation_with(
                operationId="search", requestBody={"content": {"application/json": {"schema": item}}}
            )
        },
        "/file": {
            "additionalOperations": {
                "COPY": operation_with(operationId="copy_file"),
                "GET": operation_with(operationId="never"),
                "no method": operation_with(operationId="never_either"),
            }
        },
        "/events": {
            "get": operation_with(
                operationId="events", responses={"200": {"content": {"application/jsonl": {"itemSchema": item}}}}
            ),
            "post": operation_with(
                operationId="send", requestBody={"content": {"application/x-ndjson": {"itemSchema": item}}}
            ),
        },
        "/shared": {
            "get": operation_with(
                operationId="shared",
                responses={"200": {"content": {"application/json": {"$ref": "#/components/mediaTypes/Own"}}}},
            )
        },
        "/whole": {
            "get": operation_with(
                operationId="whole",
                parameters=[
                    {
                        "in": "querystring",
                        "name": "q",
                        "content": {"application/x-www-form-urlencoded": {"schema": item}},
                    }
                ],
            )
        },
    }
    document = document_with(paths, mediaTypes={"Own": {"schema": item}}) | {"openapi": "3.2.0"}
    generated = generate_from(document, tmp_path)
    assert tool_names(generated) == ["search", "copy_file", "events", "send", "shared", "whole"]
    assert [tool.method for tool in generated.tools] == ["QUERY", "COPY", "GET", "POST", "GET", "GET"]
    assert len(findings(generated, "skipped operation")) == 2
    source = generated.files["src/package/tools/events.py"]
    assert "-> Answer[list[models.EventsItem]]:" in source
    assert 'json_lines_body(body, "application/x-ndjson")' in source
    assert "Answer[models." in generated.files["src/package/tools/shared.py"]
    assert case_of(generated, "whole")["request"]["query"] == [["n", "7"]]


# --- Values, depth and texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("10:30", "10:30"),
        ("0644", 644),
        ("0o14", 12),
        ("0x1F", 31),
        ("1e6", 1e6),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("+12", 12),
        (".5", 0.5),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-31", "2026-01-31"),
        ("~", None),
        ("Null", None),
        ("TRUE", True),
        ("=", "="),
        ("012e1", 120.0),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_yaml_is_read_by_the_core_schema_of_1_2(written: str, value: Any) -> None:
    (read,) = loading.parse(f"- {written}".encode(), "x.yaml")
    assert (type(read), read) == (type(value), value)


def nested(kind: str, depth: int) -> Any:
    """Return a schema of `depth` levels."""
    schema: Any = {"type": "string"}
    for level in range(depth):
        schema = {
            "list": {"type": "array", "minItems": 1, "items": schema},
            "map": {"type": "object", "additionalProperties": schema},
            "object": {"type": "object", "properties": {f"level{level}": schema}},
            "any": {"anyOf": [schema, {"type": "array", "items": schema}]} if depth < 8 else {"anyOf": [schema]},
            "all": {"allOf": [schema, {"description": f"level {level}"}]},
            "nullable": {"type": ["array", "null"], "items": schema},
        }[kind]
    return schema


@pytest.mark.parametrize("kind", ["list", "map", "object", "any", "all", "nullable"])
@pytest.mark.parametrize("depth", [7, 30, 250])
def test_no_depth_of_schemas_prevents_the_other_tools(tmp_path: Path, kind: str, depth: int) -> None:
    schema = nested(kind, depth)
    paths = {
        "/deep": {
            "post": operation_with(
                operationId="deep",
                requestBody={"content": {"application/json": {"schema": schema}}},
                responses=json_response(schema),
            )
        },
        "/flat": {"get": operation_with(operationId="flat")},
    }
    generated = generate_from(document_with(paths), tmp_path)
    assert "flat" in tool_names(generated)
    assert "deep" in tool_names(generated) or findings(generated, "skipped operation")
    for path, source in generated.files.items():
        if path.endswith(".py"):
            compile(source, path, "exec")
            deepest = max((line.count("[") for line in source.splitlines()), default=0)
            assert deepest < 60


def test_an_unexpected_operation_does_not_affect_the_others(tmp_path: Path) -> None:
    broken = {
        "parameters": [{"in": "query", "name": "q", "style": ["form"], "schema": {"type": {"not": "a type"}}}],
        "responses": {"200": []},
    }
    generated = generate_from(
        document_with({"/x": {"get": broken, "post": operation_with(operationId="good")}}), tmp_path
    )
    assert "good" in tool_names(generated)


SURROGATE = "\ud800"


def test_a_lone_surrogate_stays_out_of_the_source(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "description": f"x{SURROGATE}",
        "properties": {
            f"p{SURROGATE}": {},
            "e": {"enum": ["a", SURROGATE]},
            "d": {"default": SURROGATE, "example": SURROGATE},
        },
    }
    operation = {
        "operationId": f"find{SURROGATE}",
        "summary": SURROGATE,
        "tags": [SURROGATE],
        "parameters": [
            {"in": "query", "name": f"q{SURROGATE}", "schema": {}},
            {"in": "query", "name": "e", "schema": schema},
        ],
        "requestBody": {"content": {"application/json": {"schema": schema}}},
        "responses": json_response(schema),
    }
    paths = {
        "/x": {"post": operation},
        f"/y{SURROGATE}": {"get": operation_with()},
        "/z": {"get": operation_with(operationId="z")},
    }
    generated = generate_from(document_with(paths), tmp_path)
    assert tool_names(generated) == ["find", "z"]
    for source in generated.files.values():
        source.encode()
    assert any("enumeration" in text for _, text in findings(generated, "schema"))
    assert findings(generated, "parameter")
    assert findings(generated, "skipped operation")


@pytest.mark.parametrize(
    ("pattern", "accepted", "rejected"),
    [
        (r"^\d+$", ["12"], ["٣", "x"]),
        (r"^\w+$", ["ab_1"], ["é"]),
        (r"^[\w-]+$", ["a-b"], ["é", "["]),
        (r"^[a[]$", ["[", "a"], ["]"]),
        (r"^[a&&b]$", ["&", "a"], ["c"]),
        (r"^\/a\/$", ["/a/"], ["a"]),
        (r"^\u0041[\u0042-\u0044]$", ["AC"], ["AA"]),
        (r"^(?<year>\d{4})$", ["2026"], ["26"]),
    ],
)
def test_a_pattern_means_what_it_means_in_ecma_262(pattern: str, accepted: list[str], rejected: list[str]) -> None:
    import pydantic_core

    translated = translated_pattern(pattern)
    assert translated is not None
    validator = pydantic_core.SchemaValidator(pydantic_core.core_schema.str_schema(pattern=translated))
    for text in accepted:
        validator.validate_python(text)
    for text in rejected:
        with pytest.raises(pydantic_core.ValidationError):
            validator.validate_python(text)


@pytest.mark.parametrize("pattern", ["/^a$/", "/a/i", r"\Aab\Z", "(?=a)b", r"(a)\1", "(", "a{,3}", "[]a]", "x" * 5000])
def test_a_pattern_without_an_equivalent_is_not_checked(pattern: str) -> None:
    assert translated_pattern(pattern) is None


@pytest.mark.parametrize(
    "path",
    ["https://other.example/abs", "//other.example/abs", "relative", "", "\\\\other\\x", "/a\\b", "http:/x", "?a=b"],
)
def test_a_path_to_another_host_gives_no_tool(tmp_path: Path, path: str) -> None:
    generated = generate_from(
        document_with({path: {"get": operation_with()}, "/good": {"get": operation_with()}}), tmp_path
    )
    assert [tool.path for tool in generated.tools] == ["/good"]
    assert findings(generated, "skipped operation")


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("\"\\ab\n'{}é\u2028 "), max_size=60), st.sampled_from(["", "    "]))
def test_a_text_is_escaped_as_a_python_literal(text: str, indent: str) -> None:
    cleaned = clean_text(text, 500) or "x"
    source = docstring(cleaned, "")
    assert " ".join(str(ast.literal_eval(source)).split()) == " ".join(cleaned.split())
    assert ast.literal_eval(f"({literal(text)})") == text
    (function,) = ast.parse(f"def f():\n{docstring(cleaned, '    ')}").body
    assert isinstance(function, ast.FunctionDef)
    assert " ".join((ast.get_docstring(function) or "").split()) == " ".join(cleaned.split())


@pytest.mark.parametrize("summary", ['ends in \\"', 'ends in "', '"', "\\", "ends in \\", '"""', 'a""', "'''\\"])
def test_a_summary_of_quotes_and_backslashes(tmp_path: Path, summary: str) -> None:
    operation = operation_with(operationId="x", summary=summary, description=summary)
    generated = generate_from(document_with({"/x": {"get": operation}}), tmp_path)
    assert generated.tools[0].title
    compile(generated.files["src/package/tools/x.py"], "x.py", "exec")


def test_the_parts_of_a_multipart_body(tmp_path: Path) -> None:
    properties = {
        "meta": {"type": "object", "properties": {"a": {"type": "integer"}}},
        "note": {"type": "string"},
        "list": {"type": "array", "items": {"type": "string"}},
        "picture": {"type": "string", "format": "binary"},
        "pictures": {"type": "array", "items": {"type": "string", "format": "binary"}},
    }
    encoding = {
        "meta": {"contentType": "application/merge-patch+json"},
        "note": {"contentType": "text/markdown", "headers": {"X-Part": {"schema": {"type": "string"}}}},
        "list": {"contentType": "application/json"},
        "picture": {"contentType": "image/png"},
        "pictures": {"contentType": "image/png, image/jpeg"},
    }
    content = {"multipart/form-data": {"schema": {"type": "object", "properties": properties}, "encoding": encoding}}
    generated = generate_from(
        document_with({"/x": {"post": operation_with(operationId="x", requestBody={"content": content})}}), tmp_path
    )
    parts = {part[0]: part[1:] for part in case_of(generated, "x")["request"]["body"]["content"]}
    assert parts["note"] == ["a/b c&d=é", "text/markdown"]
    assert parts["list"] == ['["a/b c&d=é"]', "application/json"]
    assert parts["picture"][0]["media_type"] == "image/png"
    assert parts["picture"][0]["name"] == "a b.bin"
    texts = [text for _, text in findings(generated, "request body")]
    assert any("X-Part" in text for text in texts)
    assert any("contentType is not one media type" in text for text in texts)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({"type": "string", "format": "binary"}, "binary"),
        ({}, "binary"),
        ({"type": "string"}, "text"),
        ({"type": "object", "properties": {"a": {}}}, "json"),
    ],
)
def test_the_media_type_of_a_body_decides_its_encoding(tmp_path: Path, schema: Any, kind: str) -> None:
    body = {"content": {"*/*": {"schema": schema}}}
    generated = generate_from(
        document_with({"/x": {"post": operation_with(operationId="x", requestBody=body)}}), tmp_path
    )
    (tool,) = generated.tools
    assert tool.body is not None
    assert tool.body.kind == kind
