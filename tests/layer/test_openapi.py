"""Tools generated from an OpenAPI document: what they send, what they accept, and what the model gets."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import pytest
from mcp import Client
from mcp.server.mcpserver import Context
from pydantic import Field

from openapi_tools_under_test import KEY_VARIABLE, Tools, answer, body, document, operation, parameter
from weather_station.production import get_logger, policy, upstream
from weather_station.production.config import ConfigError, StartError
from weather_station.production.openapi import READ_ONLY, Answer, ApiModel, add, call, form
from weather_station.production.openapi_document import describe
from weather_station.production.serve import startup
from weather_station.production.testing import Api, Call, create_server

Make = Callable[..., Tools]

JSON = {"type": "object"}
KEY = "key-of-the-server"
REF = "#/components/schemas/"


@pytest.fixture
def rest() -> Iterator[Api]:
    """The API: it answers every request with `{}`."""
    with Api() as api:
        yield api


@pytest.fixture
def make(rest: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(document)` returns its tools; the API answers `{}` to each of them."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    made: list[Tools] = []

    def make(spec: Any, **options: Any) -> Tools:
        tools = Tools(spec, tmp_path, rest, **options)
        made.append(tools)
        for tool in tools.generated.tools:
            rest.on(tool.method, tool.path.partition("?")[0], json={})
        return tools

    yield make
    for tools in made:
        tools.forget()


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


# --- What is sent --------------------------------------------------------------------------------------------

PAIR = {
    "User": {
        "type": "object",
        "properties": {
            "userName": {"type": "string"},
            "groupList": {"type": "array", "items": {"$ref": f"{REF}Group"}},
        },
    },
    "Group": {
        "type": "object",
        "properties": {
            "groupName": {"type": "string"},
            "userList": {"type": "array", "items": {"$ref": f"{REF}User"}},
        },
    },
}


@pytest.mark.parametrize("first", ["User", "Group"])
@pytest.mark.parametrize("second", ["User", "Group", None])
async def test_two_schemas_that_refer_to_each_other(make: Make, first: str, second: str | None) -> None:
    responses = answer({"$ref": REF + second}) if second else answer()
    operations = {"post": operation("make", requestBody=body({"$ref": REF + first}), responses=responses)}
    tools = make(document({"/x": operations}, schemas=PAIR))
    one, other = ("groupList", "userList") if first == "User" else ("userList", "groupList")
    values: list[Any] = [{}, {one: [{}]}, {one: [{other: [{}]}]}]
    for sent in values:
        assert (await tools.sent("make", {"body": sent})).json() == sent


RING = {
    "A": {"type": "object", "properties": {"bList": {"type": "array", "items": {"$ref": f"{REF}B"}}, "aName": {}}},
    "B": {"type": "object", "properties": {"groupList": {"type": "array", "items": {"$ref": f"{REF}C"}}, "bName": {}}},
    "C": {"type": "object", "properties": {"aList": {"type": "array", "items": {"$ref": f"{REF}A"}}, "cName": {}}},
}


@pytest.mark.parametrize("first", ["A", "B", "C"])
async def test_unset_fields_of_recursive_models_are_not_sent(make: Make, first: str) -> None:
    tools = make(document({"/x": {"post": operation("make", requestBody=body({"$ref": REF + first}))}}, schemas=RING))
    lists = {"A": "bList", "B": "groupList", "C": "aList"}
    following = {"A": "B", "B": "C", "C": "A"}
    value: dict[str, Any] = {}
    name = {"A": "C", "B": "A", "C": "B"}[first]
    for _ in range(4):
        value = {lists[name]: [value]}
        name = next(other for other in following if following[other] == name)
    values: list[Any] = [{}, {lists[first]: [{}]}, {lists[first]: []}]
    for sent in values:
        assert (await tools.sent("make", {"body": sent})).json() == sent


async def test_an_argument_has_the_name_of_the_api_and_an_unknown_one_is_rejected(make: Make, rest: Api) -> None:
    names = ["filter", "id", "type", "dry-run", "page.size", "class", "self", "ctx", "body", "filter[age]", "camelCase"]
    parameters = [parameter(name, {"type": "string"}) for name in names]
    tools = make(document({"/items": {"delete": operation("purge", parameters=parameters)}}))
    schema = (await tools.published())["purge"].input_schema
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {*names} - {"filter[age]", "ctx"} | {"filter_age", "ctx_query"}
    arguments = {name: f"<{name}>" for name in schema["properties"]}
    query = (await tools.sent("purge", arguments)).query
    assert query == {name: f"<{name}>" for name in names} | {"filter[age]": "<filter_age>", "ctx": "<ctx_query>"}
    del rest.requests[:]
    for unknown in ("filter_", "Filter", "dry_run", "page_size", "x"):
        result = await tools.call("purge", {unknown: "x"})
        assert result.is_error
        assert unknown in text_of(result)
    assert rest.requests == []


NUMBERS = (9007199254740993, 5, -0.5, 1e-7, 123456789012345678901234567890, 0, 1.5)


async def test_numbers_are_sent_and_returned_as_json_has_them(make: Make, rest: Api) -> None:
    schema = {"type": "number"}
    limited = {"type": ["number", "null"], "minimum": -1}
    parts = {"type": "object", "properties": {"n": schema, "some": {"type": "array", "items": limited}}}
    parameters = [
        parameter("n", schema, "path"),
        parameter("q", schema),
        parameter("l", {"type": "array", "items": schema}),
    ]
    tools = make(
        document(
            {
                "/x/{n}": {
                    "post": operation("make", parameters=parameters, requestBody=body(parts), responses=answer(parts))
                }
            }
        )
    )
    for number in NUMBERS:
        value = {"n": number, "some": [number, None]}
        rest.on("POST", "/x/{n}", json=value)
        sent = await tools.sent("make", {"n": number, "q": number, "l": [number], "body": value})
        shown = json.dumps(number)
        assert (sent.path, sent.target.partition("?")[2]) == (f"/x/{shown}", f"q={shown}&l={shown}")
        assert sent.body == json.dumps(value, separators=(",", ":")).encode()
        result = await tools.call("make", {"n": number, "body": value})
        assert result.structured_content == value
        assert text_of(result) == json.dumps(value, separators=(",", ":"))
        assert [type(item) for item in result.structured_content.values()] == [type(number), list]


async def test_absent_and_null_are_distinguished(make: Make, rest: Api) -> None:
    properties = {
        "plain": {"type": "string"},
        "nullable": {"type": ["string", "null"]},
        "one": {"$ref": f"{REF}Own"},
        "many": {"type": "array", "items": {"type": "string"}},
        "either": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    }
    own = {"Own": {"type": "object", "properties": {"x": {"type": "integer"}}}}
    schema = {"type": "object", "properties": properties}
    tools = make(
        document(
            {"/x": {"post": operation("make", requestBody=body(schema), parameters=[parameter("q", JSON)])}},
            schemas=own,
        )
    )
    published = json.dumps((await tools.published())["make"].input_schema)
    assert published.count('"null"') == 1
    assert '"default"' not in published
    assert '"title"' not in published
    assert (await tools.sent("make", {"body": {}})).json() == {}
    assert (await tools.sent("make", {"body": {"nullable": None}})).json() == {"nullable": None}
    for name in ("plain", "one", "many", "either"):
        result = await tools.call("make", {"body": {name: None}})
        assert result.is_error, name
        assert f"body.{name}" in text_of(result)
    assert (await tools.call("make", {"body": {}, "q": None})).is_error


async def test_a_text_that_is_json_stays_a_text(make: Make) -> None:
    parameters = [parameter("q", {"type": "string"}), parameter("o", {"type": "object"}, content=None)]
    del parameters[1]["content"]
    tools = make(document({"/x": {"get": operation("find", parameters=parameters)}}))
    for text in ("null", "[1]", '{"a": 1}', "true", "5"):
        assert (await tools.sent("find", {"q": text})).query == {"q": text}
    assert (await tools.sent("find", {"o": '{"a": 1}'})).query == {"a": "1"}


EXPANSIONS = [
    ("simple", False, "a b", "a%20b"),
    ("simple", False, ["a", "b,c"], "a,b%2Cc"),
    ("simple", True, ["a", "b"], "a,b"),
    ("simple", False, {"k": "v", "n": "1"}, "k,v,n,1"),
    ("simple", True, {"k": "v", "n": "1"}, "k=v,n=1"),
    ("label", False, "a", ".a"),
    ("label", False, ["a", "b"], ".a,b"),
    ("label", True, ["a", "b"], ".a.b"),
    ("label", True, {"k": "v", "n": "1"}, ".k=v.n=1"),
    ("matrix", False, "a", ";p=a"),
    ("matrix", False, ["a", "b"], ";p=a,b"),
    ("matrix", True, ["a", "b"], ";p=a;p=b"),
    ("matrix", False, {"k": "v", "n": "1"}, ";p=k,v,n,1"),
    ("matrix", True, {"k": "v", "n": "1"}, ";k=v;n=1"),
]


@pytest.mark.parametrize(("style", "explode", "value", "expanded"), EXPANSIONS)
async def test_a_path_parameter_is_expanded_in_its_style(
    make: Make, style: str, explode: bool, value: Any, expanded: str
) -> None:
    kinds: dict[type, Any] = {str: {"type": "string"}, list: {"type": "array", "items": {"type": "string"}}, dict: JSON}
    schema = kinds[type(value)]
    given = parameter("p", schema, "path", style=style, explode=explode)
    tools = make(document({"/x/{p}/y": {"get": operation("find", parameters=[given])}}))
    assert (await tools.sent("find", {"p": value})).target == f"/x/{expanded}/y"


@pytest.mark.parametrize("value", [[], [".."], ["a", ""]])
async def test_a_list_in_a_path_stays_one_segment(make: Make, rest: Api, value: list[str]) -> None:
    given = parameter("p", {"type": "array", "items": {"type": "string"}}, "path")
    tools = make(document({"/x/{p}": {"get": operation("find", parameters=[given])}}))
    result = await tools.call("find", {"p": value})
    assert result.is_error
    assert "p" in text_of(result)
    assert rest.requests == []


async def test_a_required_undeclared_property_prevents_no_call(make: Make, rest: Api) -> None:
    schema = {"type": "object", "required": ["a", "ghost"], "properties": {"a": {}}, "additionalProperties": False}
    tools = make(document({"/x": {"post": operation("make", requestBody=body(schema), responses=answer(schema))}}))
    rest.on("POST", "/x", json={"a": 1})
    assert (await tools.sent("make", {"body": {"a": 1}})).json() == {"a": 1}
    assert (await tools.sent("make", {"body": {"a": 1, "ghost": 2}})).json() == {"a": 1, "ghost": 2}
    assert any("ghost" in text for text in tools.findings("schema"))


# --- What comes back -----------------------------------------------------------------------------------------

ANSWERS: list[tuple[dict[str, Any], dict[str, Any], Any, str]] = [
    ({"200": {"description": "OK"}}, {"json": {"a": 1}}, {"a": 1}, '{"a":1}'),
    ({"200": {"description": "OK"}}, {"text": "hi", "headers": {"Content-Type": "text/plain"}}, {"result": "hi"}, "hi"),
    ({"200": {"description": "OK"}}, {"content": b"[1]"}, {"result": [1]}, "[1]"),
    ({"204": {"description": "OK"}}, {"status": 204}, {"status": 204}, '{"status":204}'),
    ({"404": {"description": "no 2xx"}}, {"json": [1, "a"]}, {"result": [1, "a"]}, '[1,"a"]'),
    ({}, {"text": "<a/>", "headers": {"Content-Type": "application/xml"}}, {"result": "<a/>"}, "<a/>"),
    (
        answer(JSON, "*/*"),
        {"text": "plain", "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        {"result": "plain"},
        "plain",
    ),
    (
        answer(JSON, "*/*"),
        {"content": b"%PDF\xff", "headers": {"Content-Type": "application/pdf"}},
        {"media_type": "application/pdf", "size": 5, "base64": "JVBERv8="},
        '{"media_type":"application/pdf","size":5,"base64":"JVBERv8="}',
    ),
    (
        answer({"type": "string"}),
        {"json": "null"},
        {"result": "null"},
        "null",
    ),
    (
        answer(JSON),
        {"text": "not json", "headers": {"Content-Type": "application/json"}},
        {"result": "not json"},
        "not json",
    ),
    (answer(JSON), {"json": [1]}, {"result": [1]}, "[1]"),
    (answer(JSON), {"json": None}, {"result": None}, "null"),
    (answer(JSON), {"content": b""}, {"status": 200}, '{"status":200}'),
    (
        {"200": {"description": "x", "content": {"application/jsonl": {"itemSchema": {"type": "integer"}}}}},
        {"text": "1\n2\n", "headers": {"Content-Type": "application/jsonl"}},
        {"result": [1, 2]},
        "[1,2]",
    ),
]


@pytest.mark.parametrize(("responses", "comes", "structured", "text"), ANSWERS, ids=range(len(ANSWERS)))
async def test_the_response_is_returned_by_its_content_type(
    make: Make, rest: Api, responses: dict[str, Any], comes: dict[str, Any], structured: Any, text: str
) -> None:
    tools = make(document({"/x": {"post": operation("make", responses=responses)}}, version="3.2.0"))
    rest.on("POST", "/x", **comes)
    result = await tools.call("make")
    assert not result.is_error, result.content
    assert result.structured_content == structured
    assert text_of(result) == text


async def test_the_location_and_link_headers_are_returned(make: Make, rest: Api) -> None:
    tools = make(document({"/x": {"post": operation("make", responses={"201": {"description": "OK"}})}}))
    rest.on("POST", "/x", status=201, headers={"Location": "/x/42", "Link": '</x?page=2>; rel="next"'})
    assert text_of(await tools.call("make")) == '{"status":201}\nLocation: /x/42\nLink: </x?page=2>; rel="next"'


PET = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "integer"},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
MISFITS: list[Any] = [{}, {"id": "seven"}, {"id": 1, "tags": None}, {"id": 1, "tags": [1]}, [], "text", None]


@pytest.mark.parametrize("misfit", MISFITS, ids=repr)
async def test_a_response_that_does_not_match_is_passed_on_and_reported(
    make: Make, rest: Api, misfit: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = make(document({"/x": {"post": operation("make", responses=answer(PET))}}))
    rest.on("POST", "/x", json=misfit)
    result = await tools.call("make")
    assert not result.is_error, result.content
    assert result.structured_content == (misfit if isinstance(misfit, dict) else {"result": misfit})
    assert "the API's answer does not fit its OpenAPI document" in capfd.readouterr().err


async def test_a_response_that_matches_is_not_reported(
    make: Make, rest: Api, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = make(document({"/x": {"post": operation("make", responses=answer(PET))}}))
    for fitting in ({"id": 1}, {"id": 1, "kind": "bird", "later": {}}, {"id": 1, "tags": ["a"]}):
        rest.on("POST", "/x", json=fitting)
        assert (await tools.call("make")).structured_content == fitting
    assert "does not fit" not in capfd.readouterr().err


async def test_a_strict_tool_rejects_a_response_that_does_not_match(make: Make, rest: Api) -> None:
    tools = make(document({"/x": {"post": operation("make", responses=answer(PET))}}), strict=True)
    schema = (await tools.published())["make"].output_schema
    assert schema is not None
    assert "anyOf" not in schema
    rest.on("POST", "/x", json={"id": 1, "later": None}).then(200, json={"id": "seven"})
    assert (await tools.call("make")).structured_content == {"id": 1, "later": None}
    result = await tools.call("make")
    assert result.is_error
    assert "does not match its document: id: " in text_of(result)
    assert "The request itself was carried out." in text_of(result)


PROBLEM = {
    "type": "about:blank",
    "title": "Bad",
    "detail": "age must be positive",
    "errors": [{"field": "age", "message": "negative"}],
}


@pytest.mark.parametrize(
    ("response", "included", "excluded"),
    [
        (
            {"json": PROBLEM, "headers": {"Content-Type": "application/problem+json"}},
            ["age must be positive", "negative"],
            [],
        ),
        (
            {"json": {"message": "no such pet", "trace_id": "abc", "token": "s3cr3t-s3cr3t"}},
            ["no such pet"],
            ["s3cr3t"],
        ),
        ({"json": {"error": {"code": 7, "message": "quota", "api_key": "s3cr3t"}}}, ["quota"], ["s3cr3t"]),
        ({"json": {"reason": f"key {KEY} is unknown"}}, ["is unknown"], [KEY]),
        ({"json": ["first problem", "second"]}, ["first problem", "second"], []),
        ({"text": "date is in the past", "headers": {"Content-Type": "text/plain"}}, ["date is in the past"], []),
        ({"text": "<html><b>nginx</b></html>", "headers": {"Content-Type": "text/html"}}, ["422"], ["nginx"]),
        ({"json": {"message": "x" * 100_000}}, ["xxx ..."], ["x" * 2000]),
        ({"json": {"message": "Bearer abcdefgh12345 is expired"}}, ["is expired"], ["abcdefgh"]),
    ],
    ids=range(9),
)
async def test_the_model_gets_the_error_of_the_api(
    make: Make, rest: Api, response: dict[str, Any], included: list[str], excluded: list[str]
) -> None:
    tools = make(document({"/x": {"post": operation("make")}}))
    rest.on("POST", "/x", status=422, **response)
    result = await tools.call("make")
    assert result.is_error
    text = text_of(result)
    assert "answered 422" in text
    assert all(part in text for part in included), text
    assert not any(part in text for part in excluded), text


# --- Depth and names -----------------------------------------------------------------------------------------


def nested(kind: str, depth: int) -> tuple[Any, Any]:
    """Return a schema of `depth` levels, and a value."""
    schema: Any = {"type": "string"}
    value: Any = "x"
    for level in range(depth):
        name = f"level{level}"
        if kind == "list":
            schema, value = {"type": "array", "items": schema}, [value]
        elif kind == "map":
            schema, value = {"type": "object", "additionalProperties": schema}, {name: value}
        else:
            schema, value = {"type": "object", "properties": {name: schema}}, {name: value}
    return schema, value


@pytest.mark.parametrize("kind", ["list", "map", "object"])
@pytest.mark.parametrize("depth", [30, 100])
async def test_deeply_nested_schemas(make: Make, rest: Api, kind: str, depth: int) -> None:
    schema, value = nested(kind, depth)
    deep = operation(
        "deep", requestBody=body({"type": "object", "properties": {"x": schema}}), responses=answer(schema)
    )
    tools = make(document({"/x": {"post": deep}}))
    rest.on("POST", "/x", json=value)
    assert (await tools.sent("deep", {"body": {"x": value}})).json() == {"x": value}
    result = await tools.call("deep", {"body": {}})
    assert result.structured_content == (value if isinstance(value, dict) else {"result": value})


async def test_a_tool_has_the_policy_of_its_function(make: Make) -> None:
    tools = make(document({"/items": {"get": operation("find")}}))
    (generated,) = tools.generated.tools
    module = importlib.import_module(f"weather_station.{tools.package}.{generated.module}")
    policy(timeout=1e-9)(module.find)
    result = await tools.call("find")
    assert text_of(result) == "Tool find did not finish within 1e-09 seconds and was stopped."


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
async def test_a_number_that_json_lacks_is_an_error_that_names_it(make: Make, rest: Api, content_type: str) -> None:
    tools = make(document({"/items": {"get": operation("find")}}))
    for content, named in ((b'{"a": NaN}', "NaN at a"), (b"[1e999]", "Infinity at 0"), (b"-Infinity", "-Infinity")):
        rest.on("GET", "/items", content=content, headers={"Content-Type": content_type})
        result = await tools.call("find")
        assert result.is_error
        assert f" answered with {named}, which JSON does not have. " in text_of(result)


# --- What is published ---------------------------------------------------------------------------------------


@pytest.mark.needs("inbound.tool_selection")
async def test_a_hidden_tool_leaves_the_others_as_they_are(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READ_ONLY", "true")
    find = operation("find", responses=answer({"type": "object", "properties": {"name": {}}}))
    change = operation("change", responses=answer({"type": "object", "properties": {"colour": {}}}))
    tools = make(document({"/items": {"get": find, "post": change}}))
    published = await tools.published()
    assert "change" not in published
    schema = published["find"].output_schema
    assert schema is not None
    assert schema["anyOf"][0]["properties"] == {"name": {}}


EVERY_TYPE: dict[str, Any] = {
    "text": {"type": "string", "minLength": 1, "maxLength": 5, "pattern": "^a", "description": "A text."},
    "day": {"type": "string", "format": "date"},
    "whole": {"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 2},
    "ratio": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "flag": {"type": "boolean"},
    "level": {"type": "string", "enum": ["low", "high"]},
    "one": {"type": "string", "const": "x"},
    "list": {"type": "array", "items": {"type": "number", "minimum": 3}, "minItems": 1, "maxItems": 4},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "anything": {},
    "maybe": {"type": ["string", "null"], "description": "Or nothing."},
    "inner": {"type": "object", "properties": {"a": {"type": "string"}}, "description": "An object."},
    "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
}
PUBLISHED: dict[str, Any] = EVERY_TYPE | {
    "level": {"type": "string", "enum": ["low", "high"]},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "Or nothing."},
}


async def test_schemas_are_published_as_the_document_has_them(make: Make) -> None:
    parameters = [parameter(name, schema) for name, schema in EVERY_TYPE.items()]
    tools = make(document({"/items": {"get": operation("find", parameters=parameters)}}))
    schema = (await tools.published())["find"].input_schema
    assert not schema["additionalProperties"]
    for name, expected in PUBLISHED.items():
        published = dict(schema["properties"][name])
        if "$ref" in published:
            published = schema["$defs"][published.pop("$ref").rpartition("/")[2]] | published
        assert published == expected, name


@pytest.mark.parametrize("name", ["ratio", "whole", "list", "text"])
async def test_a_bound_that_is_published_is_enforced(make: Make, rest: Api, name: str) -> None:
    values = {"ratio": (0.5, 0), "whole": (2, 3), "list": ([3], [2.5]), "text": ("a", "b")}
    schema = {"type": "object", "properties": {name: EVERY_TYPE[name]}}
    tools = make(document({"/items": {"post": operation("make", requestBody=body(schema))}}))
    fitting, other = values[name]
    assert (await tools.sent("make", {"body": {name: fitting}})).json() == {name: fitting}
    del rest.requests[:]
    assert (await tools.call("make", {"body": {name: other}})).is_error
    assert not rest.requests


class Opening(ApiModel):
    """The owner's own type, of which only pydantic knows the schema."""

    day: date


async def find_opening(ctx: Context, day: Annotated[date, Field(description="When.")]) -> Answer[Opening]:
    """Find an opening."""
    return await call(ctx, "GET", "/openings", query=form("day", day))


async def test_a_tool_that_the_owner_has_changed_may_have_any_type(rest: Api) -> None:
    rest.on("GET", "/openings", json={"day": "2026-11-27"})
    caller = Call(lambda server: add(server, find_opening, "Find", READ_ONLY), upstream_base_url=rest.url)
    async with Client(caller.server) as client:
        (tool,) = [tool for tool in (await client.list_tools()).tools if tool.name == "find_opening"]
    assert tool.input_schema["properties"] == {"day": {"type": "string", "format": "date", "description": "When."}}
    assert tool.output_schema is not None
    assert (await caller("find_opening", {"day": "2026-11-27"})).structured_content == {"day": "2026-11-27"}
    assert rest.requests[0].target == "/openings?day=2026-11-27"


def test_a_tool_without_a_type_stops_the_start_with_one_line() -> None:
    async def find(ctx: Context, day) -> Answer[Any]:  # type: ignore[no-untyped-def]
        return await call(ctx, "GET", f"/{day}")

    registered = create_server(lambda server: None, upstream_base_url="http://127.0.0.1:1")
    with pytest.raises(StartError, match=r"test_openapi\.py:\d+: tool find: parameter day has no type hint"):
        add(registered, find, "Find", READ_ONLY)


# --- Settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "problem"),
    [("é", "printable ASCII"), ("a\nb", "printable ASCII"), (" a", "begin or end with a space"), ("a ", "a space")],
)
async def test_a_value_that_no_header_can_have_is_rejected(make: Make, rest: Api, value: str, problem: str) -> None:
    tools = make(document({"/x": {"get": operation("find", parameters=[parameter("X-A", {}, "header")])}}))
    result = await tools.call("find", {"X-A": value})
    assert result.is_error
    assert problem in text_of(result)
    assert not rest.requests


VERSIONED: dict[str, Any] = document(
    {
        f"/{name}": {
            "get": operation(
                name,
                parameters=[
                    parameter("X-Version", {"type": "string", "default": "1"}, "header", required=True),
                    parameter("X-Tenant", {"type": "string"}, "header", required=True),
                ],
                security=[{"one": [], "two": []}],
            )
        }
        for name in ("find", "search")
    },
    securitySchemes={
        "one": {"type": "apiKey", "in": "header", "name": "DD-API-KEY"},
        "two": {"type": "apiKey", "in": "header", "name": "DD-APPLICATION-KEY"},
    },
)
SECOND_KEY = "second-key-of-the-api"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("X-Tenant:acme", {"X-Tenant": "acme", "X-Version": "1"}),
        ("x-version: 2, X-Tenant: acme, and more", {"X-Tenant": "acme, and more", "X-Version": "2"}),
        ("X-Tenant:acme,Accept-Language:en, de;q=0.5", {"X-Tenant": "acme", "Accept-Language": "en, de;q=0.5"}),
    ],
)
async def test_headers_are_settings(
    make: Make, monkeypatch: pytest.MonkeyPatch, setting: str, expected: dict[str, str]
) -> None:
    monkeypatch.setenv("UPSTREAM_HEADERS", setting)
    monkeypatch.setenv("UPSTREAM_SECRET_HEADERS", f"DD-APPLICATION-KEY:{SECOND_KEY}")
    monkeypatch.setenv("UPSTREAM_API_KEY_HEADER", "DD-API-KEY")
    tools = make(VERSIONED)
    request = await tools.sent("find")
    headers = {"DD-API-KEY": KEY, "DD-APPLICATION-KEY": SECOND_KEY} | expected
    assert {name: request.headers[name] for name in headers} == headers
    assert not tools.server_call.server.registry.notices


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_another_origin_gets_no_header_of_the_api(
    make: Make, rest: Api, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("UPSTREAM_SECRET_HEADERS", f"DD-APPLICATION-KEY:{SECOND_KEY}")
    with Api() as other:
        other.on(method, "/y", json={})

        async def leave(ctx: Context) -> Answer[Any]:
            return Answer(await upstream(ctx).request(method, f"{other.url}/y"))

        tools = make(VERSIONED)
        add(tools.server_call.server, leave, "Leave", READ_ONLY)
        await tools.call("leave")
        assert "DD-APPLICATION-KEY" not in other.requests[0].headers
        assert "X-Version" not in other.requests[0].headers


async def test_a_missing_header_is_a_notice_and_other_servers_are_advice(make: Make) -> None:
    tools = make(VERSIONED | {"servers": [{"url": "https://api.example.com/v2"}]})
    lines, _ = await startup.check(tools.server_call.server)
    text = "\n".join(lines)
    assert "UPSTREAM_HEADERS: the document of T has X-Tenant, which is not set" in text
    assert "UPSTREAM_SECRET_HEADERS: the document of T has DD-APPLICATION-KEY, which is not set" in text
    assert re.search(
        r"^advice +BASE_URL is http://127\.0\.0\.1:\d+, and .* names https://api.example.com/v2$", text, re.M
    )
    assert re.search(r"^document +T 1$", text, re.MULTILINE)


async def test_the_server_of_the_document_is_no_advice(make: Make, rest: Api) -> None:
    tools = make(VERSIONED | {"servers": [{"url": f"{rest.url}/"}]})
    lines, _ = await startup.check(tools.server_call.server)
    assert not any("BASE_URL is" in line for line in lines)


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("UPSTREAM_HEADERS", "X-Tenant", "must be headers Name:value, comma-separated"),
        ("UPSTREAM_HEADERS", "X Y:1", "must be headers Name:value, comma-separated"),
        ("UPSTREAM_HEADERS", "X-Tenant:é", "the value of X-Tenant must be printable ASCII"),
        ("UPSTREAM_SECRET_HEADERS", f"X-Key:\x01{SECOND_KEY}", "the value of X-Key must be printable ASCII"),
    ],
)
def test_a_header_that_cannot_be_sent_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(setting, value)
    with pytest.raises(ConfigError) as raised:
        describe(create_server(lambda server: None, upstream_base_url="http://127.0.0.1:1"), title="T")
    assert raised.value.problems == [f"{setting}: {problem}"]


@pytest.mark.needs("observe.redaction")
async def test_a_secret_header_is_redacted(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UPSTREAM_SECRET_HEADERS", f"DD-APPLICATION-KEY:{SECOND_KEY}")
    tools = make(VERSIONED)
    logged = []

    async def leak(ctx: Context) -> Answer[Any]:
        get_logger("leak").warning("the headers", sent=f"x{SECOND_KEY}x")
        logged.append(True)
        return await call(ctx, "GET", "/find")

    add(tools.server_call.server, leak, "Leak", READ_ONLY)
    await tools.call("leak")
    assert logged
    assert SECOND_KEY not in capsys.readouterr().err


@pytest.mark.needs("inbound.authorization")
async def test_a_caller_needs_the_scopes_of_the_operation(make: Make, rest: Api) -> None:
    protected = operation("find", security=[{"oauth": ["items:read"]}])
    tools = make(
        document({"/items": {"get": protected}}, securitySchemes={"oauth": {"type": "oauth2", "flows": {}}}),
        with_scopes=True,
    )
    result = await tools.call("find")
    assert result.is_error
    assert "needs the scope items:read" in text_of(result)
    assert not rest.requests


@pytest.mark.parametrize(
    ("options", "count", "shown"),
    [
        ({}, 1, r"answers +lenient in get_x_1: .* passed on and logged; .* --strict, or .* add\(\.\.\., strict=True\)"),
        ({}, 6, r"answers +lenient in 6 of 6 tools: "),
        ({"strict": True}, 2, r"answers +strict: one that does not match the document is an error of the tool"),
    ],
)
async def test_the_check_says_what_happens_to_answers_that_do_not_match(
    make: Make, options: dict[str, Any], count: int, shown: str
) -> None:
    paths = {f"/x/{number}": {"get": operation(f"get_x_{number}")} for number in range(1, count + 1)}
    tools = make(document(paths), **options)
    lines, _ = await startup.check(tools.server_call.server)
    assert re.search(rf"^{shown}", "\n".join(lines), re.MULTILINE)


async def test_the_check_names_the_lenient_tools_beside_strict_ones(make: Make) -> None:
    tools = make(document({"/x": {"get": operation("find")}}), strict=True)

    async def leave(ctx: Context) -> Answer[Any]:
        return await call(ctx, "GET", "/x")

    add(tools.server_call.server, leave, "Leave", READ_ONLY)
    lines, _ = await startup.check(tools.server_call.server)
    assert any(re.match(r"answers +lenient in leave: ", line) for line in lines)
