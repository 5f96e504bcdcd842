"""Bodies and parameters for which a document does not say plainly how they are written: what is sent, or why not."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import pytest

from openapi_tools_under_test import Tools, body, document, operation, parameter
from weather_station.production.testing import Api, ApiRequest

Make = Callable[..., Tools]

PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {}}}}
VALUE = {"name": "é & ü", "tags": ["a", 2]}
FILE = {"type": "string", "format": "binary"}
CONTENT = b"\x00\xff"
BASE64 = base64.b64encode(CONTENT).decode()

FORM, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"


@pytest.fixture
def rest() -> Iterator[Api]:
    with Api() as api:
        yield api


@pytest.fixture
def make(rest: Api, tmp_path: Path) -> Iterator[Make]:
    """`make(operation, path)` returns the tools of a document with one operation, `find`."""
    made: list[Tools] = []

    def make(path: str = "/x", method: str = "post", **fields: Any) -> Tools:
        tools = Tools(document({path: {method: operation("find", **fields)}}), tmp_path, rest)
        made.append(tools)
        for tool in tools.generated.tools:
            rest.on(tool.method, tool.path, json={})
        return tools

    yield make
    for tools in made:
        tools.forget()


def parts_of(request: ApiRequest) -> list[tuple[str, str]]:
    """Return names and texts of the parts of a body."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    assert message.is_multipart()
    parts = [(part, part.get_payload(decode=True)) for part in message.iter_parts()]
    return [(str(part.get_param("name", header="content-disposition")), bytes(text).decode()) for part, text in parts]


@pytest.mark.parametrize(
    ("media_type", "sent"),
    [
        ("application/json; charset=utf-8", "application/json"),
        ("application/json;version=2018-01-01", "application/json;version=2018-01-01"),
        ('application/json; odata="full; all"', "application/json"),
        ('application/json; profile="a b"; broken', 'application/json;profile="a b"'),
        ("APPLICATION/JSON", "application/json"),
        ("text/json", "text/json"),
        ("Application/Vnd.X+JSON; v=1", "application/vnd.x+json;v=1"),
        ("application/vnd.x.v2.json", "application/vnd.x.v2.json"),
        ("application/x-json", "application/x-json"),
        ("application/merge-patch+json", "application/merge-patch+json"),
        ("application/*+json", "application/json"),
        ("application/*", "application/json"),
        ("*/*", "application/json"),
        ("", "application/json"),
        ("body", "application/json"),
        ("json", "application/json"),
        ("applicationjson;version=2018-01-01", "application/json;version=2018-01-01"),
        ("application/yaml", "application/yaml"),
        ("application/vnd.x+yaml", "application/vnd.x+yaml"),
        ("text/plain", "text/plain"),
        ("application/xml, application/json", "application/json"),
    ],
)
async def test_an_object_is_sent_as_json(make: Make, media_type: str, sent: str) -> None:
    request = await make(requestBody=body(PERSON, media_type)).sent("find", {"body": VALUE})
    assert request.headers["content-type"] == sent
    assert json.loads(request.body) == VALUE


@pytest.mark.parametrize(
    "media_type",
    [
        "application/form-data",
        "Application/Form-Data; charset=utf-8",
        "application/x-form-data",
        "form-data",
        "multipart/form",
        "multipart/x-form-data",
        "multipart/*",
        "multipart/form-data; boundary=x",
    ],
)
async def test_an_object_is_sent_as_parts(make: Make, media_type: str) -> None:
    request = await make(requestBody=body(PERSON, media_type)).sent("find", {"body": VALUE})
    assert request.headers["content-type"].partition(";")[0] == MULTIPART
    assert parts_of(request) == [("name", VALUE["name"]), ("tags", "a"), ("tags", "2")]


@pytest.mark.parametrize("media_type", ["multipart/mixed", "Multipart/Related; type=text/xml"])
async def test_parts_are_sent_in_the_media_type_of_the_document(make: Make, media_type: str) -> None:
    request = await make(requestBody=body(PERSON, media_type)).sent("find", {"body": VALUE})
    assert request.headers["content-type"].partition(";")[0] == media_type.partition(";")[0].lower()
    assert parts_of(request)[0] == ("name", VALUE["name"])


@pytest.mark.parametrize(
    "media_type",
    [
        "application/x-form",
        "application/form",
        "application/x-www-form",
        "x-www-form-urlencoded",
        "application/x-www-form-urlencode",
        "application/x-www-form-url-encoded",
        "APPLICATION/X-WWW-FORM-URLENCODED; charset=UTF-8",
    ],
)
async def test_an_object_is_sent_as_a_form(make: Make, media_type: str) -> None:
    request = await make(requestBody=body(PERSON, media_type)).sent("find", {"body": VALUE})
    assert request.headers["content-type"] == FORM
    assert parse_qsl(request.body.decode()) == [("name", VALUE["name"]), ("tags", "a"), ("tags", "2")]


@pytest.mark.parametrize(
    ("media_type", "schema", "sent"),
    [
        ("application/xml", PERSON, "application/xml"),
        ("text/xml; charset=iso-8859-1", PERSON, "text/xml"),
        ("application/*+xml", {"type": "string"}, "application/xml"),
        ("text/*", {"type": "string"}, "text/plain"),
        ("*/*", {"type": "string"}, "text/plain"),
        ("plain/text", {"type": "string"}, "text/plain"),
        ("application/jwt", PERSON, "application/jwt"),
        ("text/csv; header=present", {"type": "string"}, "text/csv;header=present"),
    ],
)
async def test_a_text_is_sent_as_it_is(make: Make, media_type: str, schema: Any, sent: str) -> None:
    request = await make(requestBody=body(schema, media_type)).sent("find", {"body": "<é>"})
    assert request.headers["content-type"] == f"{sent}; charset=utf-8"
    assert request.body == "<é>".encode()


@pytest.mark.parametrize(
    ("offered", "media_type", "sent"),
    [
        ({"image/*": FILE}, "image/webp", "image/webp"),
        ({"image/png": FILE, "image/jpeg": FILE}, "image/jpeg", "image/jpeg"),
        ({"image/png": FILE, "image/jpeg": FILE}, None, "image/png"),
        ({"text/plain": FILE, "application/pdf": FILE}, "text/plain", "text/plain"),
        ({"text/csv": FILE, "application/pdf": FILE, "image/*": {}}, "image/png", "image/png"),
        ({"application/octet-stream": PERSON}, None, "application/octet-stream"),
        ({"application/x-thing": FILE}, None, "application/x-thing"),
        ({"application/x-thing": {"type": "object", "format": "file"}}, None, "application/x-thing"),
        ({"application/x-thing": {}}, None, "application/x-thing"),
        ({"*/*": FILE}, None, "application/octet-stream"),
    ],
)
async def test_a_file_is_sent_in_its_media_type(
    make: Make, offered: dict[str, Any], media_type: str | None, sent: str
) -> None:
    content = {name: {"schema": schema} for name, schema in offered.items()}
    tools = make(requestBody={"required": True, "content": content})
    file = BASE64 if media_type is None else {"base64": BASE64, "media_type": media_type}
    request = await tools.sent("find", {"body": file})
    assert (request.headers["content-type"], request.body) == (sent, CONTENT)


async def test_a_file_of_a_range_has_to_name_its_media_type(make: Make, rest: Api) -> None:
    tools = make(requestBody=body(FILE, "image/*"))
    result = await tools.call("find", {"body": BASE64})
    assert result.is_error
    assert "image/*" in str(result.content)
    assert rest.requests == []


@pytest.mark.parametrize("media_type", ["application/x-msgpack", "application/cbor", "application/vnd.x.request"])
@pytest.mark.parametrize("schema", [PERSON, {"type": ["array", "null"]}, {"oneOf": [{"allOf": [PERSON]}]}])
def test_an_object_in_a_type_that_cannot_be_written_has_no_tool(make: Make, media_type: str, schema: Any) -> None:
    tools = make(requestBody=body(schema, media_type))
    assert tools.generated.tools == []
    (text,) = tools.findings("skipped operation")
    assert text == f"its body has parts, and it is not known how they are written in {media_type}"


async def test_a_registered_name_is_preferred(make: Make) -> None:
    names = ["json", "multipart/x-www-form-urlencoded", MULTIPART, "application/xml"]
    (tool,) = make(requestBody={"content": {name: {"schema": PERSON} for name in names}}).generated.tools
    assert tool.body is not None
    assert tool.body.media_type == MULTIPART


@pytest.mark.parametrize("known", ["application/json", FORM, MULTIPART, "application/xml"])
async def test_a_type_that_can_be_written_is_preferred(make: Make, known: str) -> None:
    content = {"application/x-msgpack": {"schema": PERSON}, known: {"schema": PERSON}}
    (tool,) = make(requestBody={"required": True, "content": content}).generated.tools
    assert tool.body is not None
    assert tool.body.media_type == known


LISTS = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
OBJECTS = {"type": "array", "items": PERSON}
OBJECT = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}, "o": PERSON}}


@pytest.mark.parametrize(
    ("schema", "style", "value", "sent"),
    [
        (OBJECTS, {}, [VALUE, {}], [("p", VALUE), ("p", {})]),
        (OBJECTS, {"explode": False}, [{"name": "x"}], [("p", {"name": "x"})]),
        (LISTS, {}, [[1, 2], [3]], [("p", [1, 2]), ("p", [3])]),
        (LISTS, {"style": "pipeDelimited", "explode": False}, [[1, 2], [3]], [("p", "[1,2]|[3]")]),
        (OBJECT, {}, {"a": ["x", "y"], "o": VALUE}, [("a", "x"), ("a", "y"), ("o", VALUE)]),
        (OBJECT, {"explode": False}, {"a": ["x", "y"]}, [("p", 'a,["x","y"]')]),
        ({}, {}, [{"any": [None]}], [("p", {"any": [None]})]),
        (
            OBJECT,
            {"style": "deepObject"},
            {"a": ["x", "y"], "o": {"name": "n"}},
            [("p[a][0]", "x"), ("p[a][1]", "y"), ("p[o][name]", "n")],
        ),
    ],
)
async def test_parts_of_parts_in_a_query(
    make: Make, schema: Any, style: dict[str, Any], value: Any, sent: list[tuple[str, Any]]
) -> None:
    tools = make(parameters=[parameter("p", schema, **style)])
    query = parse_qsl((await tools.sent("find", {"p": value})).target.partition("?")[2])
    assert [name for name, _ in query] == [name for name, _ in sent]
    assert [
        text if isinstance(item, str) else json.loads(text) for (_, text), (_, item) in zip(query, sent, strict=True)
    ] == [item for _, item in sent]


@pytest.mark.parametrize(
    ("location", "style", "sent"),
    [
        ("path", {}, '[1],{"a":2}'),
        ("path", {"style": "label", "explode": True}, '.[1].{"a":2}'),
        ("path", {"style": "matrix"}, ';p=[1],{"a":2}'),
        ("header", {}, '[1],{"a":2}'),
        ("cookie", {}, '[1],{"a":2}'),
    ],
)
async def test_parts_of_parts_elsewhere(make: Make, location: str, style: dict[str, Any], sent: str) -> None:
    path = "/x/{p}" if location == "path" else "/x"
    tools = make(path, parameters=[parameter("p", {"type": "array", "items": {}}, location, **style)])
    tools.api.on("POST", "/x/{any}", json={})
    request = await tools.sent("find", {"p": [[1], {"a": 2}]})
    received = {
        "path": request.target.rpartition("/")[2],
        "header": request.headers.get("p"),
        "cookie": str(request.headers.get("cookie")).partition("=")[2],
    }
    assert unquote(str(received[location])) == sent


@pytest.mark.parametrize("media_type", ["application/xml", "application/x-msgpack", FORM])
@pytest.mark.parametrize("is_required", [True, False])
def test_a_parameter_in_a_type_that_cannot_be_written(make: Make, media_type: str, is_required: bool) -> None:
    given = {"name": "p", "in": "query", "required": is_required, "content": {media_type: {"schema": PERSON}}}
    tools = make(parameters=[given])
    assert [tool.parameters for tool in tools.generated.tools] == ([] if is_required else [[]])
    (text,) = tools.findings("skipped operation" if is_required else "parameter")
    assert f"it is not known how they are written in {media_type}" in text


UPLOAD = {"type": "object", "properties": {"name": {"type": "string"}, "file": FILE}}


@pytest.mark.parametrize("is_named", [True, False])
@pytest.mark.parametrize("first", ["application/json", MULTIPART])
async def test_a_class_of_a_body_in_json_has_texts_where_that_of_a_form_has_files(
    rest: Api, tmp_path: Path, is_named: bool, first: str
) -> None:
    schema = {"$ref": "#/components/schemas/Upload"} if is_named else UPLOAD
    second = MULTIPART if first != MULTIPART else "application/json"
    operations = {
        f"/{n}": {"post": operation(f"o{n}", requestBody=body(schema, each))} for n, each in enumerate((first, second))
    }
    tools = Tools(document(operations, schemas={"Upload": UPLOAD}), tmp_path, rest)
    for tool in tools.generated.tools:
        rest.on("POST", tool.path, json={})
    for name, media_type in (("o0", first), ("o1", second)):
        request = await tools.sent(name, {"body": {"name": "n", "file": BASE64}})
        if media_type == MULTIPART:
            assert CONTENT in request.body
        else:
            assert request.json() == {"name": "n", "file": BASE64}
    tools.forget()


NULL = {"type": "null"}
FILES = {"type": "array", "items": FILE}


@pytest.mark.parametrize(
    "schema",
    [
        FILE,
        {"type": ["string", "null"], "format": "binary"},
        {"anyOf": [FILE, NULL]},
        {"oneOf": [{"$ref": "#/components/schemas/File"}, NULL]},
        {"allOf": [{"$ref": "#/components/schemas/File"}, {"description": "a file"}]},
        {"$ref": "#/components/schemas/Optional"},
        FILES,
        {"anyOf": [FILES, NULL]},
        {"$ref": "#/components/schemas/Files"},
        {"type": "array", "items": {"$ref": "#/components/schemas/Optional"}},
    ],
)
@pytest.mark.parametrize("is_declared", [True, False])
async def test_every_way_to_write_a_file(rest: Api, tmp_path: Path, schema: Any, is_declared: bool) -> None:
    named = {"File": FILE, "Optional": {"anyOf": [FILE, NULL]}, "Files": FILES}
    whole = {"type": "object", **({"properties": {"f": schema}} if is_declared else {"additionalProperties": schema})}
    post = operation("find", requestBody=body(whole, MULTIPART))
    tools = Tools(document({"/x": {"post": post}}, schemas=named), tmp_path, rest)
    rest.on("POST", "/x", json={})
    is_list = "array" in json.dumps(schema) or "Files" in json.dumps(schema)
    file = {"base64": BASE64, "name": "a.bin"}
    request = await tools.sent("find", {"body": {"f": [file, file] if is_list else file}})
    assert request.body.count(CONTENT) == (2 if is_list else 1)
    assert request.body.count(b'name="f"; filename="a.bin"') == (2 if is_list else 1)
    tools.forget()


@pytest.mark.parametrize("location", ["header", "cookie", "query", "path"])
async def test_a_parameter_in_json(make: Make, location: str) -> None:
    path = "/x/{p}" if location == "path" else "/x"
    given = {"name": "p", "in": location, "required": True, "content": {"application/json": {"schema": PERSON}}}
    tools = make(path, parameters=[given])
    tools.api.on("POST", "/x/{any}", json={})
    request = await tools.sent("find", {"p": {"name": "é"}})
    received = {
        "path": request.target.rpartition("/")[2],
        "query": request.target.rpartition("=")[2],
        "header": request.headers.get("p"),
        "cookie": str(request.headers.get("cookie")).partition("=")[2],
    }
    assert json.loads(unquote(str(received[location]))) == {"name": "é"}


async def test_a_part_in_a_type_that_cannot_write_its_object_is_given_as_it_is(make: Make) -> None:
    properties = {"xml": PERSON, "packed": PERSON, "json": PERSON, "yaml": PERSON}
    types = {
        "xml": "application/xml",
        "packed": "application/x-msgpack",
        "json": "text/json",
        "yaml": "application/yaml",
    }
    encoding = {name: {"contentType": media_type} for name, media_type in types.items()}
    tools = make(requestBody=body({"type": "object", "properties": properties}, MULTIPART, encoding=encoding))
    given = {"xml": "<a/>", "packed": base64.b64encode(b"packed").decode(), "json": VALUE, "yaml": VALUE}
    request = await tools.sent("find", {"body": given})
    received = dict(parts_of(request))
    assert {name: received[name] for name in ("xml", "packed")} == {"xml": "<a/>", "packed": "packed"}
    assert json.loads(received["json"]) == json.loads(received["yaml"]) == VALUE
    assert {f"Content-Type: {media_type}".encode() in request.body for media_type in types.values()} == {True}


SWAGGER = {
    "swagger": "2.0",
    "info": {"title": "T", "version": "1"},
    "paths": {
        "/x": {
            "post": {
                "operationId": "find",
                "consumes": [MULTIPART],
                "parameters": [
                    {"name": name, "in": "formData", "type": "array", "items": {"type": "string"}} | fields
                    for name, fields in {
                        "csv": {},
                        "ssv": {"collectionFormat": "ssv"},
                        "pipes": {"collectionFormat": "pipes"},
                        "multi": {"collectionFormat": "multi"},
                    }.items()
                ],
                "responses": {},
            }
        }
    },
}


@pytest.mark.parametrize("version", ["2.0", "3.0.3", "3.1.0"])
async def test_a_list_in_a_form_of_parts_has_its_style(rest: Api, tmp_path: Path, version: str) -> None:
    names = ("csv", "ssv", "pipes", "multi")
    encodings = [{"explode": False}, {"style": "spaceDelimited"}, {"style": "pipeDelimited"}, {"style": "form"}]
    lists = {name: {"type": "array", "items": {"type": "string"}} for name in names}
    fields = {"encoding": dict(zip(names, encodings, strict=True))}
    content = body({"type": "object", "properties": lists}, MULTIPART, **fields)
    later = document({"/x": {"post": operation("find", requestBody=content)}}, version=version)
    tools = Tools(SWAGGER if version == "2.0" else later, tmp_path, rest)
    rest.on("POST", "/x", json={})
    received = parts_of(await tools.sent("find", {"body": {name: ["a", "b"] for name in names}}))
    several = [(name, text) for name in names for text in ("a", "b")]
    joined = [("csv", "a,b"), ("ssv", "a b"), ("pipes", "a|b"), ("multi", "a"), ("multi", "b")]
    assert received == (several if version == "3.0.3" else joined)
    tools.forget()


def test_a_sequence_of_parts_and_a_query_as_json_are_not_sent_in_another_form(make: Make) -> None:
    streamed = {"multipart/mixed": {"itemSchema": PERSON}, "application/jsonl": {"itemSchema": PERSON}}
    query = {"name": "q", "in": "querystring", "content": {"application/json": {"schema": PERSON}}}
    tools = make(requestBody={"content": streamed}, parameters=[query])
    (tool,) = tools.generated.tools
    assert tool.body is not None
    assert (tool.body.kind, tool.parameters) == ("lines", [])
    assert make(parameters=[query | {"required": True}]).generated.tools == []


@pytest.mark.parametrize("schema", [{"type": ["object", "null"]}, {"type": "null"}, {}])
@pytest.mark.parametrize("is_required", [True, False])
async def test_null_is_the_value_of_a_required_body(make: Make, schema: Any, is_required: bool) -> None:
    tools = make(requestBody=body(schema) | {"required": is_required})
    request = await tools.sent("find", {"body": None} if is_required else {})
    assert request.body == (b"null" if is_required else b"")


def test_what_is_sent_in_another_form_is_reported(make: Make) -> None:
    tools = make(
        parameters=[
            parameter("a", OBJECTS),
            parameter("b", OBJECT),
            parameter("c", OBJECT, style="deepObject"),
            parameter("d", {"type": "array", "items": {"type": "string"}}),
        ],
        requestBody=body(PERSON, "application/form-data"),
    )
    assert tools.findings("parameter") == [
        "style form has no rule for objects in a list: each is sent as JSON",
        "a list in an exploded object is sent as several parameters",
        "style form has no rule for objects in an object: each is sent as JSON",
        "deepObject has no rule for parts of parts: they are sent as a[b][c], those of lists as a[0]",
    ]
    assert tools.findings("request body") == [
        f"'application/form-data' is not a registered media type: sent as {MULTIPART}"
    ]
