"""Result budget: what is too large becomes a short error in the form of its method, and costs no time."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, ClassVar, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ResourceError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, EmbeddedResource, TextContent, TextResourceContents
from pydantic import BaseModel, field_serializer
from pydantic_core import to_json
from typing_extensions import TypedDict

from harness import HEADERS, LEGACY, MODERN, Running, config, message, modern, running, text_of
from weather_station.production import policy
from weather_station.production.inbound.result_budget import (
    BLOCK,
    MESSAGE,
    bytes_left,
    content_left,
    messages_left,
)
from weather_station.production.request import MCPRequest
from weather_station.production.sdk import ProductionServer

LIMIT = 2000
TEXT = f"The result is larger than {LIMIT} bytes, the most that this server sends."
PIXELS = bytes(3 * LIMIT)

generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


class Row(BaseModel):
    number: int
    name: str


def rows(count: int) -> list[Row]:
    return [Row(number=number, name="x" * 50) for number in range(count)]


def register(server: ProductionServer) -> None:
    @server.tool()
    async def models(count: int, fields: str = "") -> list[Row]:
        return rows(count)

    @server.tool()
    async def mapping(count: int) -> dict[str, Any]:
        return {"rows": [row.model_dump() for row in rows(count)]}

    @server.tool()
    def text(count: int) -> str:
        return "y" * count

    @server.tool()
    async def whole() -> str:
        return "y" * (LIMIT + 1)

    @server.tool()
    async def content(count: int) -> CallToolResult:
        resource = TextResourceContents(uri="test://x", text="y" * count)
        return CallToolResult(content=[EmbeddedResource(type="resource", resource=resource)])

    @server.tool()
    async def structure(count: int) -> CallToolResult:
        return CallToolResult(content=[], structured_content={"y": ["y" * count]})

    @server.tool()
    async def picture() -> Image:
        return Image(data=PIXELS, format="png")

    @server.tool()
    async def exact(count: int) -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text="é" * (count // 2))])

    @server.tool()
    @policy(max_result_bytes=10)
    async def short() -> str:
        return "y" * 11

    @server.tool()
    @policy(max_result_bytes=0)
    async def unlimited() -> str:
        return "y" * 10 * LIMIT

    @server.tool()
    async def counts(ctx: Context[Any, Any]) -> int:
        """Use a large result of another tool, which no client gets."""
        result = await server.call_tool("models", {"count": 1000}, ctx)
        assert isinstance(result, CallToolResult)
        return len((result.structured_content or {})["result"])

    @server.resource("test://large")
    def large() -> str:
        return "y" * (LIMIT + 1)

    @server.resource("test://rows/{count}")
    async def listed(count: int) -> list[dict[str, Any]]:
        return [row.model_dump() for row in rows(count)]

    @server.resource("test://picture")
    async def binary() -> bytes:
        return PIXELS

    @server.prompt()
    async def question(count: str) -> str:
        return "y" * int(count)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(config(max_result_bytes=LIMIT), register) as found:
        yield found


def ask(server: Running, version: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    content, headers = modern(method, params) if version == MODERN else (message(method, params), HEADERS)
    answer: dict[str, Any] = server.client.post(server.url, json=content, headers=headers).json()
    return answer


def call(server: Running, version: str, tool: str, **arguments: Any) -> dict[str, Any]:
    result: dict[str, Any] = ask(server, version, "tools/call", {"name": tool, "arguments": arguments})["result"]
    return result


@generations
@pytest.mark.parametrize("tool", ["models", "mapping", "text", "content", "structure"])
def test_a_tool_says_how_to_get_a_smaller_result(server: Running, version: str, tool: str) -> None:
    result = call(server, version, tool, count=LIMIT)
    names = "count, fields" if tool == "models" else "count"
    assert text_of(result) == f"{TEXT} Ask for less with the arguments: {names}."
    assert result["isError"] is True
    assert "structuredContent" not in result
    assert "isError" not in (smaller := call(server, version, tool, count=3)) or smaller["isError"] is False


@generations
def test_a_tool_without_arguments_says_that_it_cannot(server: Running, version: str) -> None:
    assert text_of(call(server, version, "whole")) == f"{TEXT} The same request will fail again."


@generations
@pytest.mark.parametrize(
    ("method", "params", "uri"),
    [
        ("resources/read", {"uri": "test://large"}, True),
        ("resources/read", {"uri": "test://rows/1000"}, True),
        ("prompts/get", {"name": "question", "arguments": {"count": str(LIMIT)}}, False),
    ],
)
def test_a_resource_and_a_prompt_have_a_protocol_error(
    server: Running, version: str, method: str, params: dict[str, Any], uri: bool
) -> None:
    error = ask(server, version, method, params)["error"]
    assert error["message"].startswith(TEXT)
    assert error["code"] == -32603
    assert (error.get("data") or {}).get("uri") == (params["uri"] if uri else None)


@generations
def test_pictures_and_binary_resources_do_not_count(server: Running, version: str) -> None:
    assert call(server, version, "picture")["content"][0]["type"] == "image"
    assert "result" in ask(server, version, "resources/read", {"uri": "test://picture"})


@generations
def test_the_limit_is_exact_in_bytes(server: Running, version: str) -> None:
    assert call(server, version, "exact", count=LIMIT).get("isError", False) is False
    assert call(server, version, "exact", count=LIMIT + 2)["isError"] is True


@generations
def test_a_policy_has_a_limit_of_its_own(server: Running, version: str) -> None:
    assert "larger than 10 bytes" in text_of(call(server, version, "short"))
    assert len(text_of(call(server, version, "unlimited"))) == 10 * LIMIT


@generations
def test_what_a_tool_gets_from_another_has_no_limit(server: Running, version: str) -> None:
    assert text_of(call(server, version, "counts")) == "1000"


def test_no_limit_is_a_setting() -> None:
    with running(config(max_result_bytes=0), register) as server:
        assert len(text_of(call(server, LEGACY, "whole"))) == LIMIT + 1


def test_clients_without_structured_results_get_the_text_only(server: Running) -> None:
    headers = HEADERS | {"mcp-protocol-version": "2025-03-26"}
    content = server.request("models", {"count": 3})
    result = server.client.post(server.url, json=content, headers=headers).json()["result"]
    assert "structuredContent" not in result
    assert json.loads(result["content"][0]["text"])["number"] == 0


def add_tool(server: ProductionServer, name: str, make: Callable[[], Any], kind: Any) -> None:
    async def tool() -> Any:
        return make()

    tool.__annotations__["return"] = kind
    server.tool(name.replace(" ", "_"))(tool)


@dataclass
class Part:
    numbers: Any


class Lazy(BaseModel):
    numbers: Iterable[int]


def lazy() -> Lazy:
    return Lazy.model_validate({"numbers": iter(range(3))})


LAZY: dict[str, tuple[Callable[[], Any], Any]] = {
    "model": (lazy, Lazy),
    "models": (lambda: [lazy()], list[Lazy]),
    "members": (lambda: {"a": lazy()}, dict[str, Lazy]),
    "dataclasses": (lambda: [Part(number for number in range(3))], list[Part]),
    "generators": (lambda: {"a": {"b": (number for number in range(3))}}, dict[str, Any]),
    "tuples": (lambda: {"a": ((number for number in range(3)), 1)}, dict[str, Any]),
}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # expected a generator, has the list of its items
@pytest.mark.parametrize("limit", [0, 100_000])
def test_what_can_be_read_once_is_sent_as_text_and_as_structure(limit: int) -> None:
    def add(server: ProductionServer) -> None:
        for name, (make, kind) in LAZY.items():
            add_tool(server, name, make, kind)

        @server.resource("test://lazy/{name}")
        async def resource(name: str) -> Any:
            return LAZY[name][0]()

    with running(config(max_result_bytes=limit), add) as server:
        for name in LAZY:
            result = call(server, LEGACY, name)
            texts = [json.loads(block["text"]) for block in result["content"]]
            structure = result["structuredContent"]
            assert "[0,1,2]" in json.dumps(structure, separators=(",", ":")), name
            assert texts == (structure["result"] if isinstance(structure.get("result"), list) else [structure])
            read = ask(server, LEGACY, "resources/read", {"uri": f"test://lazy/{name}"})
            assert "[0,1,2]" in "".join(read["result"]["contents"][0]["text"].split()), name


def test_a_text_has_the_copies_that_other_results_have() -> None:
    for text_copy in (True, False):
        with running(config(result_text_copy=text_copy), register) as server:
            for version, expected in ((LEGACY, (text_copy, True)), ("2025-03-26", (True, False))):
                headers = HEADERS | {"mcp-protocol-version": version}
                content = server.request("text", {"count": 3})
                result = server.client.post(server.url, json=content, headers=headers).json()["result"]
                assert (result["content"] != [], "structuredContent" in result) == expected


@pytest.mark.parametrize("version", ["2025-06-18", LEGACY])
def test_the_copy_as_text_can_be_switched_off(version: str) -> None:
    with running(config(result_text_copy=False), register) as server:
        headers = HEADERS | {"mcp-protocol-version": version}

        def post(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
            response = server.client.post(server.url, json=server.request(tool, arguments), headers=headers)
            result: dict[str, Any] = response.json()["result"]
            return result

        result = post("models", {"count": 3})
        assert result["content"] == []
        assert len(result["structuredContent"]["result"]) == 3
        assert post("exact", {"count": 4})["content"] != []


@pytest.mark.needs("observe.metrics")
def test_sizes_and_errors_are_metrics() -> None:
    with running(config(max_result_bytes=LIMIT), register) as server:
        call(server, LEGACY, "text", count=LIMIT + 1)
        error = server.metrics()
        call(server, LEGACY, "text", count=900)
        metrics = server.metrics()
    labels = {"mcp_method_name": "tools/call", "gen_ai_tool_name": "text"}
    sizes = [found.value("mcp_result_size_bytes_sum", **labels) or 0 for found in (error, metrics)]
    assert sizes[0] < 200
    assert sizes[1] - sizes[0] == 900 * 2 + len('{"result":""}')
    assert metrics.value("mcp_tool_errors_total", tool_name="text", error_type="ResultTooLargeError") == 1
    assert metrics.value("mcp_tool_calls_total", tool_name="text", status="client_error") == 1


@generations
@pytest.mark.parametrize("error", [ResourceError("y" * 10_000), MCPError(-32000, "y", data=["y" * 10_000])])
def test_the_error_of_a_resource_has_the_limit_too(version: str, error: Exception) -> None:
    def add(server: ProductionServer) -> None:
        @server.resource("test://failing")
        async def failing() -> str:
            raise error

    with running(config(max_result_bytes=LIMIT), add) as server:
        answer = ask(server, version, "resources/read", {"uri": "test://failing"})
    assert answer["error"]["message"].startswith(TEXT)
    assert len(json.dumps(answer)) < LIMIT


@pytest.mark.needs("observe.metrics")
@pytest.mark.parametrize("tool", ["text", "exact"])
def test_a_call_is_one_size_however_it_ends(tool: str) -> None:
    with running(config(max_result_bytes=LIMIT), register) as server:
        for count in (2, 2 * LIMIT):  # of `exact`, found only as it is sent
            call(server, LEGACY, tool, count=count)
        metrics = server.metrics()
    labels = {"mcp_method_name": "tools/call", "gen_ai_tool_name": tool}
    assert metrics.value("mcp_result_size_bytes_count", **labels) == 2


# --- The measure before the conversion ------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: (
        st.lists(children, max_size=5)
        | st.dictionaries(st.text(), children, max_size=5)
        | st.tuples(children, children)
        | st.builds(Row, number=st.integers(), name=st.text())
    ),
    max_leaves=20,
)


@pytest.mark.pure
@given(values, st.integers(0, 200))
@example((Row(number=-100_000_000_000, name=""), Row(number=-100_899_989_514_239, name="")), 74)
def test_what_is_found_too_large_is(value: Any, limit: int) -> None:
    try:
        size = len(to_json(value))
    except ValueError:  # a lone surrogate
        return
    if bytes_left(value, limit) < 0:
        assert size > limit


SHAPES: dict[str, Any] = {
    "numbers": [1] * 40,
    "large numbers": [2**200, -(2**70), True, None, 0.5],
    "texts": ["", "x", "\u00e9"],
    "one text": ["x" * 30],
    "lists of lists": [["x", [1, []]], [], [2]],
    "members": {"abc": 1, "": {}, "\n": ["x"], "d": {"e": None}},
    "models": [Row(number=1, name="a"), Row(number=-2, name="")],
    "contents": [TextContent(type="text", text="x"), Image(data=b"123", format="png"), "y"],
    "content": CallToolResult(content=[TextContent(type="text", text="xy")], structured_content={"k": [1, "z"]}),
    "text": "x" * 20,
    "nothing": [],
}


class Measured:
    """A server with a tool for each shape, whose limit a test sets."""

    def __init__(self) -> None:
        self.limit, self.size = 0, 0
        self.server: Running

    def register(self, server: ProductionServer) -> None:
        kinds: dict[type, Any] = {list: list[Any], dict: dict[str, Any]}
        for name, value in SHAPES.items():
            add_tool(server, f"any {name}", partial(copy, value), Any)
            kind = Any if name == "contents" else kinds.get(type(value), type(value))  # contents are no data
            add_tool(server, f"typed {name}", partial(copy, value), kind)
        budget = server.registry.budget
        assert budget is not None
        check_sent = budget.check_sent

        def record(request: MCPRequest) -> None:
            self.size = request.result_bytes
            check_sent(request)

        vars(budget).update(check_sent=record, limit=lambda request: self.limit)

    def is_sent(self, tool: str, version: str, limit: int) -> bool:
        self.limit = limit
        headers = HEADERS | {"mcp-protocol-version": version}
        answer = self.server.client.post(self.server.url, json=self.server.request(tool, {}), headers=headers).json()
        return not answer["result"].get("isError", False)


@pytest.fixture(scope="module", params=[True, False], ids=["both", "structure"])
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    found = Measured()
    with running(config(result_text_copy=request.param), found.register) as found.server:
        yield found


@pytest.mark.parametrize("version", ["2025-03-26", LEGACY])
@pytest.mark.parametrize("kind", ["any", "typed"])
def test_a_result_of_its_limit_is_sent(measured: Measured, kind: str, version: str) -> None:
    for name in SHAPES:
        tool = f"{kind} {name}".replace(" ", "_")
        assert measured.is_sent(tool, version, 0), name
        size = measured.size
        assert measured.is_sent(tool, version, max(size, 1)), name
        assert size < 2 or not measured.is_sent(tool, version, size - 1), name


@pytest.mark.parametrize("count", [30, 5000])
def test_the_messages_of_a_prompt_are_measured_before_they_are_made(count: int) -> None:
    def add(server: ProductionServer) -> None:
        @server.prompt()
        async def messages() -> Any:
            return ["x"] * count

    with running(config(max_result_bytes=LIMIT), add) as server:
        answer = ask(server, LEGACY, "prompts/get", {"name": "messages"})
    assert ("error" in answer) is (count == 5000)


class Text(Enum):
    LONG = "x" * 10_001


class Counted(list[Any]):
    """A list that counts its items when they are read."""

    read = 0

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.read += 1
            yield item


@pytest.mark.pure
@pytest.mark.parametrize(
    ("item", "count", "read"),
    [
        ("x" * 98, 4000, 4000),
        (Row(number=1, name="x" * 76), 4000, 21),
        ({"a": ["b" * 80]}, 4000, 26),
        (Row(number=1, name="x" * 76), 1_000_000, 0),
        ("x", 1_000_000, 0),
    ],
)
def test_the_work_depends_on_the_limit_only(item: Any, count: int, read: int) -> None:
    value = Counted([item] * count)
    left, counted = bytes_left(value, 10_000), value.read
    assert left < 0
    assert counted <= read


EMPTY = TextContent(type="text", text="")


@pytest.mark.pure
@pytest.mark.parametrize("item", [1, "", 0.5, None, [], [[]], EMPTY])
def test_the_number_of_blocks_is_limited(item: Any) -> None:
    for value in (Counted([item] * 50_000), Counted([item] * 1_000_000)):
        assert content_left([value], 10_000) < 0
        assert value.read <= (10_000 + BLOCK) / (2 if item in (None, [], [[]]) else BLOCK) + 1
        value.read = 0
        assert messages_left(value, 10_000) < 0
        assert value.read <= 10_000 / MESSAGE + 1


@pytest.mark.pure
def test_all_parts_of_a_tool_result_are_measured() -> None:
    long = "x" * 10_001
    resource = EmbeddedResource(type="resource", resource=TextResourceContents(uri="test://x", text=long))
    many = Counted([EMPTY] * 50_000)
    for result in (
        CallToolResult(content=[resource]),
        CallToolResult(content=[], structured_content={"a": [1] * 50_000}),
        CallToolResult(content=[], _meta={"a": [1] * 50_000}),
        CallToolResult(content=[TextContent(type="text", text=long)]),
        CallToolResult.model_construct(content=many, structured_content=None, meta=None),
    ):
        assert content_left(result, 10_000) < 0
    assert many.read <= 10_000 / BLOCK + 2
    for value in (long.encode(), bytearray(long.encode()), Text.LONG):
        assert content_left(value, 10_000) < 0
        assert messages_left(value, 10_000) < 0
    for content in (long, {"type": "text", "text": long}):
        assert messages_left({"role": "user", "content": content}, 10_000) < 0


def endless(server: ProductionServer) -> None:
    """Add what never ends."""

    @server.tool()
    async def numbers() -> Any:
        return itertools.count()

    @server.tool()
    def in_a_thread() -> Any:
        return itertools.repeat("")

    @server.resource("test://numbers")
    async def resource() -> Any:
        return itertools.count()

    @server.prompt()
    def prompt() -> Any:
        return itertools.repeat("x")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "numbers", "arguments": {}}),
        ("tools/call", {"name": "in_a_thread", "arguments": {}}),
        ("resources/read", {"uri": "test://numbers"}),
        ("prompts/get", {"name": "prompt"}),
    ],
)
def test_an_iterator_without_an_end_is_too_large(method: str, params: dict[str, Any]) -> None:
    with running(config(max_result_bytes=LIMIT), endless) as server:
        assert TEXT in json.dumps(ask(server, LEGACY, method, params))


def test_a_list_in_the_messages_of_a_prompt_is_one_message() -> None:
    inner = ["a", 1] * 10

    def add(server: ProductionServer) -> None:
        @server.prompt()
        async def messages() -> Any:
            return ["intro", inner]

    with running(config(max_result_bytes=LIMIT), add) as server:
        answer = ask(server, LEGACY, "prompts/get", {"name": "messages"})
    texts = [each["content"]["text"] for each in answer["result"]["messages"]]
    assert (texts[0], json.loads(texts[1])) == ("intro", inner)


class Named(BaseModel):
    name: str


class Described(Named):
    description: str = "x" * 300


class Entry(TypedDict):
    name: str


def test_what_the_declared_type_lacks_does_not_count_where_only_the_structure_is_sent() -> None:
    def add(server: ProductionServer) -> None:
        @server.tool()
        async def models(count: int) -> list[Named]:
            return [Described(name="x")] * count

        @server.tool()
        async def entries(count: int) -> list[Entry]:
            entry: Any = {"name": "x", "description": "y" * 300}
            return [entry] * count

        @server.tool()
        async def entry(count: int) -> Entry:
            return cast("Entry", {"name": "x" * count, "description": "y" * 3 * LIMIT})

    with running(config(max_result_bytes=LIMIT, result_text_copy=False), add) as server:
        for tool, fits, exceeds in (("models", 100, 400), ("entries", 100, 400), ("entry", 9, 3000)):
            for count, is_error in ((fits, False), (exceeds, True)):
                result = call(server, LEGACY, tool, count=count)
                assert result.get("isError", False) is is_error, (tool, count, result)


@pytest.mark.pure
def test_digits_and_names_of_members_are_measured() -> None:
    assert bytes_left([10**4000] * 30, 100_000) < 0
    assert bytes_left([-(10**4000)] * 25, 100_000) >= 0
    assert bytes_left({"k" * 100 + str(number): 1 for number in range(1000)}, 100_000) < 0


class Item(BaseModel):
    """A row that counts how often one is converted."""

    converted: ClassVar[int] = 0
    name: str

    @field_serializer("name")
    def convert(self, name: str) -> str:
        Item.converted += 1
        return name


ITEMS = [Item(name="x" * 90) for _ in range(50_000)]


@generations
def test_a_result_of_five_megabytes_takes_neither_memory_nor_conversions(version: str) -> None:
    def add(server: ProductionServer) -> None:
        @server.tool()
        async def large() -> list[Item]:
            return ITEMS

    conversions: dict[int, int] = {}
    for limit in (0, 100_000):
        with running(config(max_result_bytes=limit), add) as server:
            call(server, version, "health_check")
            Item.converted = 0
            if limit:
                tracemalloc.start()
            try:
                assert call(server, version, "large").get("isError", False) is bool(limit)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            conversions[limit] = Item.converted
    assert conversions[0] >= len(ITEMS)
    assert conversions[100_000] < 100_000 / 90
    assert 0 < peak < 2_000_000


def test_a_list_without_its_text_does_not_become_content() -> None:
    numbers = [1] * 40_000

    def add(server: ProductionServer) -> None:
        @server.tool()
        async def long() -> list[int]:
            return numbers

    with running(config(result_text_copy=False), add) as server:
        call(server, LEGACY, "health_check")
        tracemalloc.start()
        try:
            result = call(server, LEGACY, "long")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (result["content"], result["structuredContent"]) == ([], {"result": numbers})
    assert peak < 10_000_000


class Page(BaseModel):
    items: list[Item]


@pytest.mark.parametrize("text_copy", [True, False])
def test_a_large_object_is_encoded_before_the_rest_of_its_conversion(text_copy: bool) -> None:
    def add(server: ProductionServer) -> None:
        @server.tool()
        async def page(count: int) -> Page:
            return Page.model_construct(items=ITEMS[:count])

    limit = len(to_json({"items": ITEMS[:20]}, indent=2)) - 1
    with running(config(max_result_bytes=limit, result_text_copy=text_copy), add) as server:
        Item.converted = 0
        assert call(server, LEGACY, "page", count=1000)["isError"] is True
        assert Item.converted == (1000 if text_copy else 2000)
        # The structure alone is smaller than its text.
        assert call(server, LEGACY, "page", count=20).get("isError", False) is text_copy
