"""Parameters, bodies, responses, credentials and annotations of the generated tools."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from document_builders import case_of, document_with, findings, generate_from, json_response, operation_with
from openapi_tools import Generated
from openapi_tools.generator import REPORT_PATH


def test_every_style_of_a_parameter_is_sent_as_the_standard_says(plain: Generated) -> None:
    request = case_of(plain, "list_pets")["request"]
    text = "a/b c&d=é"
    assert request["query"] == [
        ["limit", "1"],
        ["cursor", text],
        ["tags", text],
        ["tags", f"{text}1"],
        ["ids", "7,8"],
        ["spaced", f"{text} {text}1"],
        ["piped", f"{text}|{text}1"],
        ["filter[age]", "7"],
        ["filter[owner][name]", text],
        ["sort", "name"],
        ["q", '{"text":"a/b c&d=é"}'],
        ["raw", text],
        ["dry-run", "true"],
    ]
    assert request["headers"] == {"x-request-id": "a b"}
    assert request["cookies"] == {"session": "a%20b"}
    assert case_of(plain, "get_any")["request"]["path"] == "/any/a%20b%26c%3D%C3%A9"


@pytest.mark.parametrize(
    "call",
    [
        '*form("ids", ids, explode=False)',
        '*form("spaced", spaced, explode=False, separator="%20")',
        '*form("piped", piped, explode=False, separator="%7C")',
        '*deep("filter", filter_)',
        '*in_json("q", q)',
        '*form("raw", raw, reserved=True)',
    ],
)
def test_a_query_parameter_becomes_a_call_of_its_style(plain: Generated, call: str) -> None:
    assert call in plain.files["src/package/tools/pets.py"]


@pytest.mark.parametrize(
    ("tool", "kind", "media_type"),
    [
        ("create_pet", "json", "application/json"),
        ("change_pet", "json", "application/merge-patch+json"),
        ("send_form", "form", "application/x-www-form-urlencoded"),
        ("upload", "multipart", "multipart/form-data"),
        ("replace_file", "binary", "application/octet-stream"),
        ("add_note", "text", "text/plain"),
    ],
)
def test_a_body_is_sent_in_its_media_type(plain: Generated, tool: str, kind: str, media_type: str) -> None:
    body = case_of(plain, tool)["request"]["body"]
    assert (body["kind"], body["type"]) == (kind, media_type)


def test_the_properties_of_a_form_are_sent_in_their_styles(plain: Generated) -> None:
    assert case_of(plain, "send_form")["request"]["body"]["content"] == [
        ["name", "a/b c&d=é"],
        ["tags", "a/b c&d=é"],
        ["ids", "7"],
        ["metadata[key]", "a/b c&d=é"],
        ["address", '{"street":"a/b c&d=é"}'],
    ]


def test_the_media_type_of_a_response_decides_what_the_tool_returns(plain: Generated) -> None:
    kinds = {tool.name: tool.response.kind for tool in plain.tools}
    assert kinds["list_pets"] == "json"
    assert kinds["get_status"] == "text"
    assert kinds["download"] == "binary"
    assert kinds["delete_pet"] == "nothing"


def test_only_headers_that_a_tool_may_set_become_arguments(hostile: Generated) -> None:
    assert [parameter.api_name for parameter in hostile.tools[0].parameters_in("header")] == ["class"]
    assert len([text for _, text in findings(hostile, "parameter") if "left out" in text]) >= 6


def test_a_header_that_carries_the_credentials_is_no_argument(tmp_path: Path) -> None:
    headers = [{"name": name, "in": "header", "schema": {"type": "string"}} for name in ("X-Key", "X-Trace")]
    paths = {"/x": {"get": {"parameters": headers, "responses": json_response({})}}}
    scheme = {"key": {"type": "apiKey", "in": "header", "name": "x-key"}}
    generated = generate_from(document_with(paths, securitySchemes=scheme), tmp_path)
    assert [parameter.api_name for parameter in generated.tools[0].parameters] == ["X-Trace"]
    assert findings(generated, "parameter") == [
        ("#/paths/~1x/get/parameters/0", "X-Key carries the credentials: left out")
    ]


def test_the_invalid_arguments_break_a_constraint_where_there_is_one(plain: Generated) -> None:
    valid, invalid = (case_of(plain, "list_pets")[name] for name in ("arguments", "rejected"))
    assert {name for name in valid if valid[name] != invalid[name]} == {"limit"}
    assert invalid["limit"] == 0


def test_credentials_are_described_as_settings_of_the_upstream_client(plain: Generated) -> None:
    settings = "\n".join(plain.credential_settings)
    assert "UPSTREAM_API_KEY_HEADER=X-Api-Key" in settings
    assert "UPSTREAM_API_KEY_QUERY=api_key" in settings
    assert "UPSTREAM_API_KEY_SCHEME=Basic" in settings
    assert "SESSION=<key>, and UPSTREAM_API_KEY_HEADER=Cookie" in settings
    assert "getting and renewing one is left to you" in settings
    assert findings(plain, "authentication")
    assert "UPSTREAM_API_KEY_QUERY=api_key" in plain.files[REPORT_PATH]


def test_a_server_of_its_own_and_a_redirect_are_reported(plain: Generated) -> None:
    assert findings(plain, "server") == [("#/paths/~1elsewhere/get", "GET /elsewhere: https://other.example.com")]
    assert any("redirect" in text for _, text in findings(plain, "response"))


def test_the_method_decides_whether_a_tool_is_read_only(plain: Generated) -> None:
    source = "".join(plain.files.values())
    assert re.search(r"add\(server, get_pet, .*, READ_ONLY\)", source)
    assert re.search(r"add\(server, head_status, .*, READ_ONLY\)", source)
    assert re.search(r"add\(server, delete_pet, .*, REPLACES\)", source)
    assert re.search(r"add\(server, create_pet, .*, CHANGES\)", source)


def test_paging_is_mentioned_in_the_description(plain: Generated) -> None:
    (description,) = (tool.description for tool in plain.tools if tool.name == "list_pets")
    assert description == (
        "Lists the pets,\nnewest first.\n\n"
        "The response may be one page of several, selected by limit, cursor.\n\n"
        "The API names further pages in its Link header, which is part of the response.\n\n"
        "GET /pets"
    )


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "items": {"type": "integer"}, "minItems": 101}, "a list of 101 items"),
        ({"type": "string", "minLength": 2_000_000_000}, "a text of 2000000000 characters"),
        ({"type": "string", "pattern": "^a$", "minLength": 2}, "a text that matches its pattern"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "a number within its bounds"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "a text of 3 to 2 characters"),
        ({"type": "array", "items": {}, "minItems": 3, "maxItems": 2}, "a list of 3 to 2 items"),
    ],
)
def test_a_tool_without_an_example_is_left_out_of_the_tests_and_reported(
    tmp_path: Path, schema: dict[str, Any], reason: str
) -> None:
    parameter = {"name": "q", "in": "query", "schema": schema, "required": True}
    paths = {"/x": {"get": {"parameters": [parameter], "responses": json_response({"type": "integer"})}}}
    generated = generate_from(document_with(paths), tmp_path)
    assert findings(generated, "test") == [("#/paths/~1x/get", f"no example can be made: {reason}")]
    assert generated.files["tests/openapi.json"] == "[]\n"
    parameter["required"] = False
    generated = generate_from(document_with(paths), tmp_path)
    assert findings(generated, "test") == [("#/paths/~1x/get", "called without q: no example can be made")]
    assert case_of(generated, "get_x")["arguments"] == {}
    assert case_of(generated, "get_x")["request"]["query"] == []


def test_a_text_that_may_be_empty_is_not_empty_in_the_tests(tmp_path: Path) -> None:
    parameter = {"name": "q", "in": "query", "schema": {"type": "string", "pattern": r"^\s*$|^[0-9]{2}$"}}
    generated = generate_from(document_with({"/x": {"get": operation_with(parameters=[parameter])}}), tmp_path)
    assert case_of(generated, "get_x")["arguments"]["q"].strip()


@pytest.mark.parametrize(
    ("place", "path", "query"),
    [("query", "/x", [["q", "a/b c&d=é"]]), ("path", "/x?q={q}", [["q", "a b&c=é"]])],
)
def test_a_query_in_the_path_is_sent_once(tmp_path: Path, place: str, path: str, query: list[list[str]]) -> None:
    parameters = [{"name": "q", "in": place, "required": True, "schema": {"type": "string"}}]
    paths = {"/x?q={q}": {"get": {"operationId": "find", "parameters": parameters, "responses": json_response({})}}}
    generated = generate_from(document_with(paths), tmp_path)
    assert generated.tools[0].path == path
    assert case_of(generated, "find")["request"]["query"] == query


@pytest.mark.parametrize(
    "items",
    [
        {"type": "string"},
        {"type": "string", "maxLength": 20},
        *({"type": "string", "format": name} for name in ("uuid", "date", "date-time", "email", "uri", "ipv4")),
        {"type": "integer", "maximum": 7},
        {"type": "number", "exclusiveMinimum": 0, "multipleOf": 5},
        {"type": "boolean"},
        {"enum": ["a", "b"]},
        {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}},
        {"type": ["integer", "null"]},
    ],
)
def test_the_items_of_an_example_are_unique_and_valid(tmp_path: Path, items: dict[str, Any]) -> None:
    schema = {"type": "array", "items": items, "minItems": 2, "uniqueItems": True}
    content = {"application/json": {"schema": schema}}
    paths = {"/x": {"post": operation_with(operationId="make", requestBody={"required": True, "content": content})}}
    first, second = case_of(generate_from(document_with(paths), tmp_path), "make")["arguments"]["body"]
    assert first != second
    for value in (first, second):
        kind = {"string": str, "integer": int, "boolean": bool, "object": dict}.get(str(items.get("type")), object)
        assert isinstance(value, kind)
        assert not isinstance(value, int) or isinstance(value, bool) or value <= items.get("maximum", value)
        assert not isinstance(value, str) or len(value) <= items.get("maxLength", len(value))


@pytest.mark.parametrize("other", ["x", "1"])
def test_an_example_in_a_path_is_a_segment(tmp_path: Path, other: str) -> None:
    state = {"name": "state", "in": "path", "required": True, "schema": {"enum": ["", ".", "a/b", other]}}
    paths = {"/x/{state}": {"get": operation_with(operationId="find", parameters=[state])}}
    assert case_of(generate_from(document_with(paths), tmp_path), "find")["arguments"] == {"state": other}


@pytest.mark.parametrize("other", [{"type": "boolean"}, {"type": "object"}, {"type": "string"}, {"type": "array"}])
@pytest.mark.parametrize("first", [{"type": "integer"}, {"type": "object", "properties": {"id": {"type": "integer"}}}])
def test_a_list_of_several_types_has_an_example(tmp_path: Path, first: dict[str, Any], other: dict[str, Any]) -> None:
    impossible = {"type": "string", "minLength": 10**6}
    schema = {"type": "array", "minItems": 2, "items": {"anyOf": [impossible, first, other, {"type": "null"}]}}
    content = {"application/json": {"schema": schema}}
    paths = {"/x": {"post": operation_with(operationId="make", requestBody={"required": True, "content": content})}}
    assert len(case_of(generate_from(document_with(paths), tmp_path), "make")["arguments"]["body"]) == 2


SELECTED = {
    "Text": {"type": "object", "properties": {"kind": {"$ref": "#/components/schemas/Kind"}, "text": {}}},
    "Image": {"type": "object", "properties": {"kind": {"type": "string"}, "url": {"type": "string"}}},
    "Sound": {"type": "object", "properties": {"url": {"type": "string"}}},
    "Kind": {"type": "string", "enum": ["picture", "text"]},
    "Base": {"type": "object", "properties": {"sort": {"type": "string"}}, "discriminator": {"propertyName": "sort"}},
    "Derived": {"allOf": [{"$ref": "#/components/schemas/Base"}, {"properties": {"size": {"type": "integer"}}}]},
}


@pytest.mark.parametrize("keyword", ["oneOf", "anyOf"])
@pytest.mark.parametrize(
    ("variant", "mapping", "value"),
    [
        ("Text", {"text": "#/components/schemas/Text"}, "text"),
        ("Image", {"picture": "#/components/schemas/Image", "photo": "#/components/schemas/Image"}, "picture"),
        ("Image", {}, "Image"),
        ("Sound", {"sound": "Sound"}, "sound"),
    ],
)
def test_an_example_has_the_property_that_selects_its_schema(
    keyword: str, variant: str, mapping: dict[str, str], value: str, tmp_path: Path
) -> None:
    references = [{"$ref": f"#/components/schemas/{variant}"}, {"$ref": "#/components/schemas/Derived"}]
    either = {keyword: references, "discriminator": {"propertyName": "kind", "mapping": mapping}}
    schema = {"type": "object", "required": ["parts"], "properties": {"parts": {"type": "array", "items": either}}}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    paths = {"/x": {"post": operation_with(requestBody=body)}}
    generated = generate_from(document_with(paths, schemas=SELECTED), tmp_path)
    (part,) = case_of(generated, "post_x")["request"]["body"]["content"]["parts"]
    assert part["kind"] == value
    assert findings(generated, "example") == []


def test_an_example_has_the_property_that_selects_a_schema_that_extends_another(tmp_path: Path) -> None:
    schema = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Base"}}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    generated = generate_from(
        document_with({"/x": {"post": operation_with(requestBody=body)}}, schemas=SELECTED), tmp_path
    )
    assert {item["sort"] for item in case_of(generated, "post_x")["request"]["body"]["content"]} == {"Derived"}
