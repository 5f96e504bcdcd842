"""Paths of upstream requests: a value stays in its segment, whatever the receiver decodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harness import HEADERS, ONE_ATTEMPT, Running, Serve, asgi_server, config, opened, result_of, running, text_of
from stand_in import StandIn
from weather_station.production import upstream
from weather_station.production.sdk import ProductionServer
from weather_station.production.upstream.client import fill_path

PIECES = (
    "/",
    "\\",
    ".",
    "..",
    ";",
    "%",
    "2",
    "f",
    "F",
    "e",
    "5c",
    "00",
    "0a",
    "25",
    "?",
    "#",
    " ",
    "\0",
    "\x85",
    "a",
    "é",
    "\ud800",
)


async def sent(api: StandIn, path: str, values: dict[str, object] | None = None) -> str:
    """Return the request target that the upstream gets."""
    async with opened(f"{api.url}/v1", **ONE_ATTEMPT) as runtime:
        await runtime.upstream.get_json(path, path_params=values)
    return api.requests[0].target


@contextmanager
def starlette_api() -> Iterator[tuple[str, list[str]]]:
    """Serve an API that can show and delete users; yield its URL and what it did."""
    done: list[str] = []

    async def show(request: Request) -> Response:
        done.append(f"show {request.path_params['id']}")
        return JSONResponse({})

    async def delete(request: Request) -> Response:
        done.append(f"delete {request.path_params['id']}")
        return JSONResponse({})

    with asgi_server(Starlette(routes=[Route("/users/{id}", show), Route("/users/{id}/delete", delete)])) as url:
        yield url, done


def add_show(server: ProductionServer) -> None:
    async def show(user: str, ctx: Context) -> Any:
        return await upstream(ctx).get_json("/users/{user}", path_params={"user": user})

    server.tool()(show)


@pytest.mark.parametrize("value", ["7/delete", "7%2fdelete", "7%2Fdelete", "7%252fdelete", "7\\delete", "7%5cdelete"])
def test_a_value_cannot_choose_the_route_of_the_upstream(value: str, serve: Serve) -> None:
    with starlette_api() as (url, done), serve(add_show, upstream_base_url=url, **ONE_ATTEMPT) as server:
        result = server.call("show", {"user": value})
        assert done == []
        assert "user must not contain a slash" in text_of(result)
        assert not server.call("show", {"user": "7;delete? #é%"})["isError"]
    assert done == ["show 7;delete? #é%"]


@pytest.mark.parametrize("tool", ["show", "search", "post", "tag"])
def test_a_lone_surrogate_is_rejected_wherever_a_tool_sends_it(tool: str, serve: Serve) -> None:
    def register(server: ProductionServer) -> None:
        async def show(user: str, ctx: Context) -> Any:
            return await upstream(ctx).get_json("/users/{user}", path_params={"user": broken(user)})

        async def search(user: str, ctx: Context) -> Any:
            return await upstream(ctx).get_json("/users", params={"text": broken(user)})

        async def post(user: str, ctx: Context) -> Any:
            return await upstream(ctx).request("POST", f"/users/{user}", json={"text": broken(user)})

        async def tag(user: str, ctx: Context) -> Any:
            return await upstream(ctx).request("POST", "/users", idempotency_key=broken(user))

        def broken(text: str) -> str:
            return f"{text}\ud800"

        for function in (show, search, post, tag):
            server.tool()(function)

    with serve(register, **ONE_ATTEMPT) as server:
        assert "surrogate" in text_of(server.call(tool, {"user": "a"}))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400", '[1, {"a": 1e999}]'])
def test_a_number_that_is_not_finite_is_rejected_in_a_body(number: str, serve: Serve) -> None:
    def register(server: ProductionServer) -> None:
        async def post(value: Any, ctx: Context) -> Any:
            return await upstream(ctx).request("POST", "/users", json={"value": value})

        server.tool()(post)

    with serve(register, **ONE_ATTEMPT) as server:
        body = json.dumps(server.request("post", {"value": 0})).replace('"value": 0', f'"value": {number}')
        headers = HEADERS | {"content-type": "application/json"}
        result = result_of(server.client.post(server.url, content=body, headers=headers))
        assert result["isError"]
        assert "which JSON does not have" in text_of(result)


@pytest.mark.parametrize(
    "value", ["a#b", "a?b=c", "a%20b", "100%", "é ü", "{name}", "v1.2", ".hidden", "a..b", "a;b", ":1"]
)
async def test_a_value_is_sent_as_one_segment(value: str, api: StandIn) -> None:
    _, v1, users, segment, posts = (await sent(api, "/users/{name}/posts", {"name": value})).split("/")
    assert (v1, users, unquote(segment), posts) == ("v1", "users", value, "posts")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "must not be ''"),
        (".", "must not be '.'"),
        ("..", "must not be '..'"),
        ("%2e.", "must not be"),
        ("%252e%252e", "must not be"),
        ("..;x=1", "must not be"),
        ("..%3bx", "must not be"),
        (";x", "must not be"),
        (".. ", "must not be"),
        ("a/b", "must not contain a slash"),
        ("a%0ab", "a control character"),
        ("a\x7fb", "a control character"),
        ("%" + "25" * 100_000, "percent-encoded more than 8 times"),
    ],
)
async def test_a_value_that_is_not_one_segment_is_rejected(value: str, reason: str, api: StandIn) -> None:
    with pytest.raises(ToolError, match=reason):
        await sent(api, "/users/{name}", {"name": value})
    assert not api.requests


@pytest.mark.parametrize(("first", "second"), [(".", "."), ("%2", "f"), ("%", "5c"), ("%252", "e.")])
async def test_values_that_are_harmless_alone_are_judged_together(first: str, second: str, api: StandIn) -> None:
    with pytest.raises(ToolError):
        await sent(api, "/files/{a}{b}", {"a": first, "b": second})
    assert not api.requests


async def test_a_placeholder_with_dots_takes_several_segments(api: StandIn) -> None:
    assert await sent(api, "/files/{path...}/raw", {"path": "docs/a b.md"}) == "/v1/files/docs/a%20b.md/raw"


@pytest.mark.parametrize(
    "value", ["", "/", "a//b", "../a", "a/..", "a/%2e%2e/b", "a%2f..", "a\\..", "a/..;/b", "a/\ud800"]
)
async def test_several_segments_stay_below_the_path(value: str, api: StandIn) -> None:
    with pytest.raises(ToolError, match="path must not"):
        await sent(api, "/files/{path...}", {"path": value})
    assert not api.requests


async def test_a_value_in_the_query_may_be_anything(api: StandIn) -> None:
    assert await sent(api, "/search?q={text}&all", {"text": "../a/b&c"}) == "/v1/search?q=..%2Fa%2Fb%26c&all"


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "/../admin",
        "/a/../../admin",
        "/a/..",
        "/%2e%2e/admin",
        "/.%2E/admin",
        "\\..\\admin",
        "/./a",
        "/items/7/..#",
        "/items/7/..#?x",
        "/items/7/..?x#y",
        "/items/%252e%252e/x",
        "/items/..%2fadmin",
        "/items/a%2f..%5cadmin",
        "/items/..;x/admin",
        "/items/..%3b/admin",
        "/items/.. /admin",
        "/items/%" + "25" * 10 + "2e./x",
    ],
)
async def test_a_path_cannot_leave_its_prefix(path: str, api: StandIn) -> None:
    with pytest.raises(ToolError, match=r"must not (have|be percent-encoded)"):
        await sent(api, path)
    assert not api.requests


@pytest.mark.parametrize(
    "path", ["/projects/group%2Fname/issues", "/a//b", "/a;v=1/b", "/search?in=../x", "/#..", "/a...b"]
)
async def test_an_owner_s_path_is_sent_as_it_is(path: str, api: StandIn) -> None:
    assert await sent(api, path) == f"/v1{path.partition('#')[0]}"


def received(target: str, decodings: int) -> list[str]:
    """Return the segments that a receiver routes by, after one or more servers have decoded the path."""
    for _ in range(decodings):
        target = unquote(target)
    segments: list[str] = []
    for segment in re.split(r"[/\\]", target):
        name = segment.partition(";")[0]
        if name == "..":
            del segments[-1:]
        elif name != ".":
            segments.append(segment)
    return segments


texts = st.one_of(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.text(max_size=6))


@given(value=texts)
@example("7/delete")
def test_whatever_the_value_the_receiver_finds_it_in_its_segment(value: str) -> None:
    try:
        target = fill_path("/users/{id}/posts", {"id": value})
    except ToolError:
        return
    for decodings in (0, 1, 2, 3):
        assert [len(received(target, decodings)), *received(target, decodings)[:2]] == [4, "", "users"]
        assert received(target, decodings)[3] == "posts"
    assert unquote(target) == f"/users/{value}/posts"


@pytest.fixture(scope="module")
def users() -> Iterator[tuple[Running, list[str]]]:
    """A server with the tool `show`, and what its upstream did."""
    with starlette_api() as (url, done), running(config(upstream_base_url=url, **ONE_ATTEMPT), add_show) as server:
        yield server, done


@settings(max_examples=150)
@given(value=texts.filter(lambda text: "\ud800" not in text))
def test_whatever_the_value_the_upstream_runs_one_route_with_it(value: str, users: tuple[Running, list[str]]) -> None:
    server, done = users
    done.clear()
    result = server.call("show", {"user": value})
    assert done == ([] if result["isError"] else [f"show {value}"])


@given(first=texts, second=texts)
def test_whatever_the_values_they_are_in_one_segment_together(first: str, second: str) -> None:
    try:
        target = fill_path("/x/{a}{b}/y", {"a": first, "b": second})
    except ToolError:
        return
    for decodings in (0, 1, 2, 3):
        assert [*received(target, decodings)[:2], len(received(target, decodings))] == ["", "x", 4]


@given(value=texts)
def test_whatever_the_segments_they_stay_below_their_path(value: str) -> None:
    try:
        target = fill_path("/files/{path...}", {"path": value})
    except ToolError:
        return
    for decodings in (0, 1, 2, 3):
        assert received(target, decodings)[:2] == ["", "files"]
        assert len(received(target, decodings)) == 3 + value.count("/")


@given(name=st.text(st.characters(categories=("L", "N")), min_size=1, max_size=8))
def test_names_in_any_script_are_accepted(name: str) -> None:
    assert fill_path("/users/{id}", {"id": name}) == f"/users/{quote(name)}"
