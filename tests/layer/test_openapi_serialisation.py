"""Documents made by chance: what their tools send, compared with an independent implementation of the styles.

RFC 6570 is expanded by `uritemplate`. The other styles, forms and JSON are derived here from the OpenAPI Specification
3.1.1 (sections 4.8.12 and 4.8.15), and read back by the standard library.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import shutil
from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

import anyio
import pytest
import uritemplate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openapi_tools_under_test import Tools, body, document, operation, parameter
from weather_station.production.testing import Api

pytestmark = pytest.mark.pure

CONTROL = "".join(map(chr, [*range(32), *range(127, 160)]))
TEXT = st.text(st.characters(codec="utf-8", exclude_characters=CONTROL), max_size=12)
IN_PATH = TEXT.filter(lambda text: text not in ("", ".", "..") and not set(text) & set("/\\;") and "%" not in text)
NUMBER = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False, width=32).map(float)
ASCII = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
TOKEN = st.text("abcXYZ019_-", min_size=1, max_size=8)
NAME = st.text("abcXYZ019_-.$@[] é", min_size=1, max_size=8)
KEY = st.text("abcé &=", min_size=1, max_size=4)

SCALARS: dict[str, st.SearchStrategy[Any]] = {"string": TEXT, "number": NUMBER, "boolean": st.booleans()}


@st.composite
def valued(draw: st.DrawFn, scalars: dict[str, st.SearchStrategy[Any]]) -> tuple[dict[str, Any], Any]:
    """Draw a schema of a scalar, a list or an object, and a value of it."""
    kind = draw(st.sampled_from(sorted(scalars)))
    scalar, schema = scalars[kind], {"type": kind}
    match draw(st.sampled_from(["scalar", "list", "object"])):
        case "list":
            return {"type": "array", "items": schema}, draw(st.lists(scalar, min_size=1, max_size=3))
        case "object":
            value = draw(st.dictionaries(KEY, scalar, min_size=1, max_size=3))
            return {"type": "object", "additionalProperties": schema}, value
    return schema, draw(scalar)


def shown(value: Any) -> str:
    """Return a scalar as text, as JSON writes it; a whole number has no fraction."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value == int(value) and abs(value) < 2**53:
        return str(int(value))
    return json.dumps(value)


def as_texts(value: Any) -> Any:
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    return shown(value)


def query_pairs(name: str, value: Any, style: str, explode: bool) -> list[tuple[str, str]]:
    """Return what a query parameter means, before any percent-encoding."""
    texts = as_texts(value)
    if style == "deepObject":
        return [(f"{name}[{key}]", text) for key, text in texts.items()]
    if isinstance(texts, str):
        return [(name, texts)]
    if explode:
        return list(texts.items()) if isinstance(texts, dict) else [(name, text) for text in texts]
    parts = [part for item in texts.items() for part in item] if isinstance(texts, dict) else texts
    return [(name, {"form": ",", "spaceDelimited": " ", "pipeDelimited": "|"}[style].join(parts))]


@pytest.fixture
def rest() -> Iterator[Api]:
    with Api() as api:
        yield api


STYLES = ["form", "spaceDelimited", "pipeDelimited", "deepObject"]
PATH_STYLES = ["simple", "label", "matrix"]
QUIET = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def request_of(tools: Tools, arguments: dict[str, Any]) -> Any:
    return anyio.run(tools.sent, "find", arguments)


def made(api: Api, folder: Path, description: dict[str, Any]) -> Tools:
    """Return the tools of a document, in a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tools = Tools(description, folder, api)
    api.on("POST", tools.generated.tools[0].path.partition("?")[0], json={})
    return tools


@QUIET
@given(data=st.data())
def test_the_query(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    names = data.draw(st.lists(NAME, min_size=1, max_size=4, unique_by=str.lower))
    parameters, expected, values = [], [], []
    for name in names:
        schema, value = data.draw(valued(SCALARS))
        style = data.draw(st.sampled_from(STYLES if isinstance(value, dict) else STYLES[:3]))
        explode = style in ("form", "deepObject") and data.draw(st.booleans())
        parameters.append(parameter(name, schema, style=style, explode=explode))
        expected += query_pairs(name, value, style, explode)
        values.append(value)
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", parameters=parameters)}}))
    arguments = [each.argument for each in tools.generated.tools[0].parameters]
    request = request_of(tools, dict(zip(arguments, values, strict=True)))
    assert parse_qsl(request.target.partition("?")[2], keep_blank_values=True) == expected
    tools.forget()


@QUIET
@given(data=st.data())
def test_the_path(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    schema, value = data.draw(valued({**SCALARS, "string": IN_PATH}))
    style, explode = data.draw(st.sampled_from(PATH_STYLES)), data.draw(st.booleans())
    given_ = parameter("p", schema, "path", style=style, explode=explode)
    tools = made(rest, tmp_path / "x", document({"/x/{p}/y": {"post": operation("find", parameters=[given_])}}))
    if isinstance(value, dict):
        value = dict(sorted(value.items()))  # the order of an object's keys has no meaning; uritemplate sorts them
    sign = {"simple": "", "label": ".", "matrix": ";"}[style]
    expanded = uritemplate.expand(f"/x/{{{sign}p{'*' if explode else ''}}}/y", {"p": as_texts(value)})
    request = request_of(tools, {"p": value})
    assert unquote(request.target) == unquote(expanded)
    assert request.target.count("/") == expanded.count("/")
    for separator in ",;.=":
        assert request.target.count(separator) == expanded.count(separator), (request.target, expanded)
    tools.forget()


JSON_VALUE = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@QUIET
@given(data=st.data())
def test_a_body_in_json(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    fields = data.draw(st.dictionaries(NAME, JSON_VALUE, max_size=4))
    declared = data.draw(st.sets(st.sampled_from(sorted(fields)))) if fields else set()
    schema = {"type": "object", "properties": {name: {} for name in sorted(declared)}}
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", requestBody=body(schema))}}))
    sent = json.loads(request_of(tools, {"body": fields}).body)
    assert json.dumps(sent, sort_keys=True) == json.dumps(fields, sort_keys=True)
    tools.forget()


@QUIET
@given(data=st.data())
def test_a_body_as_a_form(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    names = data.draw(st.lists(NAME, min_size=1, max_size=3, unique=True))
    properties, encoding, value = {}, {}, {}
    expected: list[tuple[str, str]] = []
    for name in names:
        properties[name], value[name] = data.draw(valued(SCALARS))
        style = data.draw(st.sampled_from(STYLES if isinstance(value[name], dict) else STYLES[:3]))
        explode = style in ("form", "deepObject") and data.draw(st.booleans())
        encoding[name] = {"style": style, "explode": explode}
        expected += query_pairs(name, value[name], style, explode)
    content = body({"type": "object", "properties": properties}, "application/x-www-form-urlencoded", encoding=encoding)
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", requestBody=content)}}))
    request = request_of(tools, {"body": value})
    # Pairs come in the order of the schema's fields.
    assert sorted(parse_qsl(request.body.decode(), keep_blank_values=True)) == sorted(expected)
    tools.forget()


@QUIET
@given(data=st.data())
def test_a_reserved_character_that_is_allowed_is_sent_as_it_is(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    value = data.draw(st.text("aé:/?[]@!$'()*,;&=+# %", min_size=1, max_size=12))
    given_ = parameter("q", {"type": "string"}, allowReserved=True)
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", parameters=[given_])}}))
    query = request_of(tools, {"q": value}).target.partition("?")[2]
    assert parse_qsl(query, keep_blank_values=True) == [("q", value)]
    # RFC 6570, section 3.2.3, but for the characters that would end the value or change it.
    expanded = uritemplate.expand("{+q}", {"q": value.replace("%", " ")})
    assert [char for char in query[2:] if char in ":/?[]@!$'()*,;"] == [c for c in expanded if c in ":/?[]@!$'()*,;"]
    tools.forget()


@QUIET
@given(data=st.data())
def test_headers(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    names = data.draw(st.lists(TOKEN, min_size=1, max_size=3, unique_by=str.lower))
    parameters, values, expected = [], {}, {}
    for name in (f"x-{name}" for name in names):
        schema, value = data.draw(valued({**SCALARS, "string": ASCII}))
        if isinstance(value, dict):
            value = {key.replace("é", "e").replace(" ", "_"): item for key, item in value.items()}
            value = dict(sorted(value.items()))  # uritemplate sorts them
        explode = data.draw(st.booleans())
        parameters.append(parameter(name, schema, "header", explode=explode))
        values[name] = value
        expanded = uritemplate.expand(f"{{v{'*' if explode else ''}}}", {"v": as_texts(value)})
        expected[name] = unquote(expanded)
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", parameters=parameters)}}))
    request = request_of(tools, values)
    assert {name: request.headers[name] for name in values} == expected
    tools.forget()


@QUIET
@given(data=st.data())
def test_cookies(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    names = data.draw(st.lists(st.text("abcXYZ019", min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
    kinds = [data.draw(st.sampled_from(sorted(SCALARS))) for _ in names]
    values = {name: data.draw(SCALARS[kind]) for name, kind in zip(names, kinds, strict=True)}
    parameters = [parameter(name, {"type": kind}, "cookie") for name, kind in zip(names, kinds, strict=True)]
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", parameters=parameters)}}))
    arguments = {each.api_name: each.argument for each in tools.generated.tools[0].parameters}
    request = request_of(tools, {arguments[name]: value for name, value in values.items()})
    received = {name: unquote(each.value) for name, each in SimpleCookie(request.headers["cookie"]).items()}
    assert received == {name: shown(value) for name, value in values.items()}
    tools.forget()


@QUIET
@given(data=st.data())
def test_a_body_of_parts(data: st.DataObject, rest: Api, tmp_path: Path) -> None:
    names = data.draw(st.lists(TOKEN, min_size=1, max_size=4, unique_by=str.lower))
    properties: dict[str, Any] = {}
    value: dict[str, Any] = {}
    expected: list[tuple[str, str, bytes]] = []
    for name in names:
        if data.draw(st.booleans()):
            content = data.draw(st.binary(max_size=20))
            properties[name] = {"type": "string", "format": "binary"}
            value[name] = base64.b64encode(content).decode()
            expected.append((name, "application/octet-stream", content))
            continue
        properties[name], item = data.draw(valued(SCALARS))
        value[name] = item
        if isinstance(item, dict):
            expected.append((name, "application/json", json.dumps(item, sort_keys=True).encode()))
        else:
            texts = item if isinstance(item, list) else [item]
            expected += [(name, "text/plain", shown(text).encode()) for text in texts]
    content_ = body({"type": "object", "properties": properties}, "multipart/form-data")
    tools = made(rest, tmp_path / "x", document({"/x": {"post": operation("find", requestBody=content_)}}))
    request = request_of(tools, {"body": value})
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    received = []
    for part in message.iter_parts():
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        if part.get_content_type() == "application/json":
            payload = json.dumps(json.loads(payload), sort_keys=True).encode()
        name = str(part.get_param("name", header="content-disposition"))
        received.append((name, part.get_content_type(), payload))
    assert sorted(received) == sorted(expected)
    tools.forget()
