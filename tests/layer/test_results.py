"""Results: the recorded outcome is that of the response, whatever a handler returns and a client sends as arguments."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, Completion, Icon, PaginatedRequestParams, TextContent
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, RootModel, computed_field, field_serializer

from harness import (
    HEADERS,
    LEGACY,
    MODERN,
    Running,
    config,
    message,
    modern,
    rebuild_pipeline,
    running,
    text_of,
)
from stand_in import StandIn, respond
from weather_station.production import upstream
from weather_station.production.config import StartError
from weather_station.production.inbound.results import metadata_of
from weather_station.production.json_values import MAX_DIGITS, NonFiniteNumberError, sendable, valid_unicode
from weather_station.production.registry import CallContext
from weather_station.production.request import CallNext, MCPRequest, Result
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

LONE = "a\ud800b"
REPLACED = "a\ufffdb"
DETAIL = "row 17 of the customers"


class Loose(BaseModel):
    value: Any
    number: float = 1.0


class Constants(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")

    value: float


@dataclasses.dataclass(frozen=True)
class Record:
    value: str
    numbers: list[float] = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    value: str
    number: float


class Made(BaseModel):
    """A model whose serializer and computed field make what the fields do not have."""

    number: float = 1.0

    @computed_field
    def computed(self) -> str:
        return LONE

    @field_serializer("number")
    def add_one(self, number: float) -> float:
        return number + 1


class Average(BaseModel):
    numbers: list[float] = []

    @computed_field
    def average(self) -> float:
        return sum(self.numbers) / len(self.numbers) if self.numbers else math.nan


class LoneColour(Enum):
    RED = LONE


class Displayed:
    def __str__(self) -> str:
        return LONE


class Written(BaseModel):
    """A model that says how to write a number that JSON lacks."""

    model_config = ConfigDict(ser_json_inf_nan="null")

    number: float | None = None


class Returns:
    """A server whose handlers return or raise `value`, and the outcomes of its requests."""

    def __init__(self) -> None:
        self.value: Any = None
        self.outcomes: list[tuple[str, str | None]] = []

    def act(self) -> Any:
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    def register(self, server: ProductionServer) -> None:
        act = self.act

        @server.tool()
        async def untyped() -> Any:
            return act()

        @server.tool()
        def in_a_thread() -> Any:
            return act()

        @server.tool()
        async def text() -> str:
            return str(act())

        @server.tool()
        async def mapping() -> dict[str, Any]:
            return dict(act())

        @server.tool()
        async def model() -> Loose:
            return Loose(value=act())

        @server.tool()
        async def record() -> Record:
            result: Record = act()
            return result

        @server.tool()
        async def made() -> Made:
            result: Made = act()
            return result

        @server.tool()
        async def average() -> Average:
            result: Average = act()
            return result

        @server.tool()
        async def written() -> Written:
            result: Written = act()
            return result

        @server.tool()
        async def exact() -> Decimal:
            result: Decimal = act()
            return result

        @server.tool()
        async def paths() -> list[Path]:
            result: list[Path] = act()
            return result

        @server.tool()
        async def number() -> float:
            return float(act())

        @server.tool()
        async def content() -> CallToolResult:
            return CallToolResult(content=[], structured_content={"value": act()})

        @server.resource("test://value")
        async def static() -> Any:
            return act()

        @server.resource("test://value/{name}")
        def template(name: str) -> Any:
            return act()

        @server.prompt(name="value")
        async def prompt() -> Any:
            return act()

        @server.completion()
        async def complete(*arguments: Any) -> Completion:
            return Completion(values=[]).model_copy(update={"values": act()})

        async def extension(ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> dict[str, Any]:
            return {"value": act()}

        server._lowlevel_server.add_request_handler("test/extension", PaginatedRequestParams, extension)
        drain = server.registry.middleware["drain"]

        async def keep(request: MCPRequest, call_next: CallNext) -> Result:
            try:
                return await drain(request, call_next)
            finally:
                self.outcomes.append((request.status, request.error_type))

        server.registry.middleware["drain"] = keep
        rebuild_pipeline(server)


REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: ("tools/call", {"name": name, "arguments": {}})
        for name in (
            *("untyped", "in_a_thread", "text", "mapping", "model", "record", "number", "content"),
            *("made", "average", "written", "exact", "paths"),
        )
    },
    "static": ("resources/read", {"uri": "test://value"}),
    "template": ("resources/read", {"uri": "test://value/x"}),
    "prompt": ("prompts/get", {"name": "value", "arguments": {}}),
    "completion": (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "value"}, "argument": {"name": "x", "value": ""}},
    ),
    "extension": ("test/extension", {}),
}

generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


@pytest.fixture(scope="module")
def returning() -> Iterator[tuple[Returns, Running]]:
    returns = Returns()
    with running(config(), returns.register) as server:
        yield returns, server


def ask(server: Running, version: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    content, headers = (message(method, params), HEADERS) if version == LEGACY else modern(method, params)
    response = server.client.post(server.url, json=content, headers=headers)
    text = response.content.decode()

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON: {text}")

    answer: dict[str, Any] = json.loads(text, parse_constant=no_constant)
    text.encode()
    assert "\\ud8" not in text
    return answer


TEXTS: list[tuple[str, Any]] = [
    ("untyped", LONE),
    ("in_a_thread", {"list": [LONE]}),
    ("text", LONE),
    ("mapping", {LONE: 1}),
    ("mapping", {"deep": [{"x": (LONE,)}]}),
    ("model", {"x": [LONE]}),
    ("model", Loose(value=LONE)),
    ("record", Record(LONE)),
    ("untyped", Pair(LONE, 1)),
    ("content", {LONE: LONE}),
    ("static", LONE),
    ("static", {LONE: 1}),
    ("template", [LONE]),
    ("template", Loose(value=LONE)),
    ("prompt", LONE),
    ("prompt", [LONE, {"role": "user", "content": {"type": "text", "text": LONE}}]),
    ("completion", [LONE]),
    ("extension", {"x": [LONE], LONE: 1}),
    # A name in a folder that is not UTF-8 is such a path.
    *((name, Path(LONE)) for name in ("untyped", "in_a_thread", "model", "static", "template", "prompt")),
    *((name, [Path(LONE)]) for name in ("untyped", "paths", "prompt")),
    *((name, {"a": LoneColour.RED, LoneColour.RED: 1}) for name in ("untyped", "mapping", "static")),
    *((name, Made()) for name in ("made", "untyped", "static", "prompt")),
    *((name, deque([LONE])) for name in ("untyped", "model", "template", "prompt")),
    *((name, Displayed()) for name in ("untyped", "static", "prompt")),
]


@generations
@pytest.mark.parametrize(("name", "value"), TEXTS)
def test_a_lone_surrogate_in_a_result_is_replaced(
    returning: tuple[Returns, Running], version: str, name: str, value: Any
) -> None:
    returns, server = returning
    returns.value = value
    answer = ask(server, version, *REQUESTS[name])
    assert REPLACED in json.dumps(answer["result"], ensure_ascii=False)
    assert not answer["result"].get("isError")
    assert returns.outcomes[-1] == ("success", None)


class Unawaited:
    """What a call of an async function returns without `await`, without a warning that it was never awaited."""

    def __await__(self) -> Iterator[Any]:
        yield from ()


async def unread() -> AsyncIterator[int]:
    yield 1


@generations
@pytest.mark.parametrize("value", [Unawaited(), unread(), [Unawaited()], {"deep": [{"x": Unawaited()}]}])
@pytest.mark.parametrize(
    "name", ["untyped", "in_a_thread", "mapping", "model", "static", "template", "prompt", "completion", "extension"]
)
def test_a_result_that_nothing_awaits_is_no_success(
    returning: tuple[Returns, Running], version: str, name: str, value: Any
) -> None:
    """Of an `async def` without an `await` or behind a lambda, which the start cannot see."""
    returns, server = returning
    returns.value = value
    answer = ask(server, version, *REQUESTS[name])
    assert "an unexpected error occurred. Request id: " in json.dumps(answer)
    assert returns.outcomes[-1][0] == "error"


@generations
@pytest.mark.parametrize("name", ["untyped", "in_a_thread", "static", "template", "prompt", "completion", "extension"])
@pytest.mark.parametrize(
    "error", [ToolError(LONE), MCPError(-32050, "said", data={LONE: [LONE]}), MCPError(-32050, LONE)]
)
def test_a_lone_surrogate_in_an_error_is_replaced(
    returning: tuple[Returns, Running], version: str, name: str, error: Exception
) -> None:
    returns, server = returning
    returns.value = error
    answer = ask(server, version, *REQUESTS[name])
    assert REPLACED in json.dumps(answer, ensure_ascii=False)
    assert returns.outcomes[-1][0] == "client_error"


@generations
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": LONE, "arguments": {}}),
        ("resources/read", {"uri": f"test://{LONE}"}),
        ("prompts/get", {"name": LONE}),
    ],
)
def test_an_unknown_name_with_a_lone_surrogate_is_an_error(
    returning: tuple[Returns, Running], version: str, method: str, params: dict[str, Any]
) -> None:
    _, server = returning
    content, headers = (message(method, params), HEADERS) if version == LEGACY else modern(method, params)
    headers = {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}
    response = server.client.post(
        server.url, content=json.dumps(content), headers={**headers, "content-type": "application/json"}
    )
    assert response.status_code < 500
    response.content.decode()


NUMBERS: list[tuple[str, Any, str]] = [
    ("number", math.nan, "NaN"),
    ("number", -math.inf, "-Infinity"),
    ("untyped", {"a": [1.0, math.inf]}, "Infinity at a.1"),
    ("untyped", Pair("x", math.nan), "NaN"),
    ("in_a_thread", math.nan, "NaN"),
    ("mapping", {"a": {"NaN": math.nan}}, "NaN at "),
    ("model", math.nan, "NaN at "),
    ("untyped", Constants(value=math.nan), "NaN at value"),
    ("record", Record("x", [math.inf]), "Infinity at "),
    ("content", {"x": math.nan}, "NaN at "),
    ("static", math.nan, "NaN"),
    ("static", {"a": math.nan}, "NaN at a"),
    ("template", [math.inf], "Infinity at 0"),
    ("extension", [[-math.inf]], "-Infinity at value.0.0"),
    ("untyped", Decimal("NaN"), "NaN"),
    ("mapping", {"a": [Decimal("-Infinity")]}, "-Infinity at a.0"),
    ("exact", Decimal("sNaN"), "NaN"),
    ("average", Average(), "NaN at average"),
    ("untyped", {"all": Average()}, "NaN at all.average"),
    ("static", [Average()], "NaN at 0.average"),
    ("prompt", [Average()], "NaN at average"),
    ("prompt", math.inf, "Infinity"),
    ("prompt", Record("x", [math.nan]), "NaN at numbers.0"),
]


@generations
@pytest.mark.parametrize(("name", "value", "named"), NUMBERS)
def test_a_number_that_json_lacks_is_an_error_that_names_it(
    returning: tuple[Returns, Running], version: str, name: str, value: Any, named: str
) -> None:
    returns, server = returning
    returns.value = value
    answer = ask(server, version, *REQUESTS[name])
    text = text_of(answer["result"]) if "result" in answer else answer["error"]["message"]
    assert text.startswith(f"The result has {named}")
    assert text.endswith(", which JSON does not have.")
    assert returns.outcomes[-1] == ("error", "NonFiniteNumberError")


@generations
def test_a_model_writes_such_a_number_as_it_says(returning: tuple[Returns, Running], version: str) -> None:
    returns, server = returning
    returns.value = Written(number=math.nan)
    result = ask(server, version, *REQUESTS["written"])["result"]
    assert result["structuredContent"] == json.loads(text_of(result)) == {"number": None}


@generations
@pytest.mark.parametrize("name", ["mapping", "content", "extension"])
@pytest.mark.parametrize("value", [{"a": [10**5000]}, {"b": {"c": -(10**4300)}}], ids=["5001 digits", "4301 digits"])
def test_a_number_that_clients_cannot_read_is_an_error(
    returning: tuple[Returns, Running], version: str, name: str, value: Any
) -> None:
    returns, server = returning
    returns.value = value
    answer = ask(server, version, *REQUESTS[name])
    text = text_of(answer["result"]) if "result" in answer else answer["error"]["message"]
    assert re.search(r"^The result has a number of more than 4300 digits at .*(a\.0|b\.c)\.$", text)
    assert returns.outcomes[-1] == ("error", "NonFiniteNumberError")


@generations
@pytest.mark.parametrize("value", [{"a": 10**4299}, {"a": "9" * 5000, "b": [1]}], ids=["4300 digits", "a text"])
def test_a_long_number_that_clients_read_and_a_text_are_sent(
    returning: tuple[Returns, Running], version: str, value: Any
) -> None:
    returns, server = returning
    returns.value = value
    assert ask(server, version, *REQUESTS["mapping"])["result"]["structuredContent"] == value


@settings(max_examples=200)
@given(before=st.integers(0, 9000), digits=st.integers(4298, 4303), negative=st.booleans(), after=st.integers(0, 9000))
def test_a_long_number_is_found_wherever_it_is(before: int, digits: int, *, negative: bool, after: int) -> None:
    number = 10 ** (digits - 1) * (-1 if negative else 1)
    value = {"before": "x" * before, "number": number, "after": ["7" * 4000, after, "x" * after]}
    if digits <= MAX_DIGITS:
        assert sendable(value) == value
    else:
        with pytest.raises(NonFiniteNumberError, match=r"more than 4300 digits at number\."):
            sendable(value)


ITERATORS: list[Callable[[], Any]] = [
    lambda: (number for number in (1, 2)),
    lambda: map(int, "12"),
    lambda: iter([1, 2]),
    lambda: filter(None, [0, 1, 2]),
]


@generations
@pytest.mark.parametrize("name", ["untyped", "in_a_thread", "static", "template"])
@pytest.mark.parametrize("make", ITERATORS)
def test_an_iterator_is_the_list_of_its_items(
    returning: tuple[Returns, Running], version: str, name: str, make: Callable[[], Any]
) -> None:
    returns, server = returning
    returns.value = make()
    result = ask(server, version, *REQUESTS[name])["result"]
    texts = [block["text"] for block in result.get("content", result.get("contents"))]
    assert "".join(texts).split() == ["12"] or json.loads(texts[0]) == [1, 2]


@generations
@pytest.mark.parametrize("name", ["mapping", "static"])
def test_an_iterator_inside_a_result_is_the_list_of_its_items(
    returning: tuple[Returns, Running], version: str, name: str
) -> None:
    returns, server = returning
    returns.value = {"rows": map(str, [1, 2])}
    result = ask(server, version, *REQUESTS[name])["result"]
    (block,) = result.get("content", result.get("contents"))
    assert json.loads(block["text"]) == {"rows": ["1", "2"]}
    assert result.get("structuredContent", {"rows": ["1", "2"]}) == {"rows": ["1", "2"]}


@generations
@pytest.mark.parametrize("name", ["untyped", "text", "mapping", "content", "static", "prompt", "extension"])
def test_a_text_that_mentions_such_a_number_is_none(
    returning: tuple[Returns, Running], version: str, name: str
) -> None:
    returns, server = returning
    returns.value = {"NaN": "-Infinity"} if name != "prompt" else "NaN"
    assert "error" not in ask(server, version, *REQUESTS[name])
    assert returns.outcomes[-1] == ("success", None)


class Unsendable:
    def __repr__(self) -> str:
        return DETAIL


CYCLE: list[Any] = [DETAIL]
CYCLE.append(CYCLE)


@generations
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("content", Unsendable()),
        ("content", CYCLE),
        ("mapping", {"a": CYCLE}),
        ("mapping", {DETAIL: b"\xff"}),
        ("static", CYCLE),
        ("template", {DETAIL: b"\xff"}),
        ("completion", [DETAIL, 1]),
        ("extension", Unsendable()),
        ("extension", CYCLE),
        ("prompt", [{"role": DETAIL, "content": 1}]),
    ],
)
def test_a_result_that_cannot_be_sent_is_an_error_with_a_request_id(
    returning: tuple[Returns, Running], version: str, name: str, value: Any
) -> None:
    returns, server = returning
    returns.value = value
    answer = ask(server, version, *REQUESTS[name])
    assert DETAIL not in json.dumps(answer)
    result = answer.get("result", {})
    text, meta = (text_of(result), result["_meta"]) if result else (answer["error"]["message"], answer["error"]["data"])
    assert text.endswith(f"an unexpected error occurred. Request id: {meta['request_id']}")
    assert returns.outcomes[-1][0] == "error"


@generations
def test_a_list_with_a_lone_surrogate_is_sent(version: str) -> None:
    def register(server: ProductionServer) -> None:
        server.tool(meta={"x": LONE})(plain)

    with running(config(), register) as server:
        tools = ask(server, version, "tools/list", {})["result"]["tools"]
    assert next(tool for tool in tools if tool["name"] == "plain")["_meta"]["x"] == REPLACED


async def plain() -> str:
    return "plain"


def test_a_pair_of_surrogates_is_the_character_that_it_encodes() -> None:
    assert valid_unicode("\ud83d\ude00 \ude00\ud83d") == "\U0001f600 \ufffd\ufffd"
    original = {"a": [LONE]}
    assert valid_unicode(original) == {"a": [REPLACED]}
    assert original == {"a": [LONE]}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"a": [1, NaN]}', "NaN at a.1"),
        (b"-Infinity", "-Infinity"),
        (b'{"x": {"y": 1e999}}', "Infinity at x.y"),
        (b"[-1E+400]", "-Infinity at 0"),
        (b"1" + b"0" * 400 + b".5", "Infinity"),
    ],
)
def test_an_answer_of_the_api_with_such_a_number_is_an_error(api: StandIn, body: bytes, named: str) -> None:
    async def fetch(ctx: CallContext) -> dict[str, Any]:
        return {"value": await upstream(ctx).get_json("/value")}

    api.behave(respond(200, body, content_type="application/json"))
    with running(config(upstream_base_url=api.url), lambda server: server.tool()(fetch)) as server:
        result = server.call("fetch")
    assert result["isError"]
    assert f" answered with {named}, which JSON does not have. " in text_of(result)


# --- Arguments ---------------------------------------------------------------------------------------------


async def takes(
    optional: str | None = None,
    several: int | str | list[int] = 0,
    annotated: Annotated[str | None, Field(max_length=20)] = None,
    numbers: list[int] | None = None,
    options: dict[str, int] | None = None,
    count: int = 0,
    json: str = "",
) -> str:
    return repr((optional, several, annotated, numbers, options, count, json))


@generations
@pytest.mark.parametrize("text", ['{"a":1}', "[1]", "null", "123", '"x"', "true", "1.5", "[", "NaN"])
def test_json_text_for_a_parameter_that_takes_text_stays_text(version: str, text: str, taking: Running) -> None:
    arguments = {"optional": text, "several": text, "annotated": text, "json": text, "numbers": "[1, 2]"}
    answer = ask(taking, version, "tools/call", {"name": "takes", "arguments": arguments})
    assert text_of(answer["result"]) == repr((text, text, text, [1, 2], None, 0, text))


@generations
def test_json_text_for_other_parameters_is_read(version: str, taking: Running) -> None:
    arguments = {"numbers": "null", "options": '{"a": 1}', "count": "7"}
    answer = ask(taking, version, "tools/call", {"name": "takes", "arguments": arguments})
    assert text_of(answer["result"]) == repr((None, 0, None, None, {"a": 1}, 7, ""))
    answer = ask(taking, version, "tools/call", {"name": "takes", "arguments": {"numbers": '{"a": 1}', "count": "x"}})
    assert text_of(answer["result"]).startswith("Invalid arguments for tool takes: numbers: ")


@pytest.fixture(scope="module")
def taking() -> Iterator[Running]:
    with running(config(), lambda server: server.tool()(takes)) as server:
        yield server


def config_argument(model_config: str) -> None: ...
def extra_argument(model_extra: str) -> None: ...
def set_argument(model_fields_set: int) -> None: ...
def dump_argument(model_dump_one_level: str) -> None: ...
def json_argument(json: str, field_json: str) -> None: ...


@pytest.mark.parametrize(
    ("tool", "parameter"),
    [
        (config_argument, "model_config"),
        (extra_argument, "model_extra"),
        (set_argument, "model_fields_set"),
        (dump_argument, "model_dump_one_level"),
        (json_argument, "json"),
    ],
)
def test_a_parameter_that_the_sdk_cannot_pass_is_named_at_start(tool: Callable[..., None], parameter: str) -> None:
    server = create_server(config())
    with pytest.raises(StartError, match=rf"test_results\.py:\d+: tool {tool.__name__}: .*{parameter}"):
        server.tool()(tool)


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Numbers(RootModel[list[int]]):
    pass


RETURNED: dict[Any, tuple[Any, Any]] = {
    Decimal: (Decimal("1.50"), "1.50"),
    datetime: (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
    date: (date(2026, 1, 2), "2026-01-02"),
    timedelta: (timedelta(hours=1), "PT1H"),
    Colour: (Colour.RED, "red"),
    Level: (Level.HIGH, 3),
    uuid.UUID: (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    Path: (Path("a"), "a"),
    Pair: (Pair("x", 1.0), ["x", 1.0]),
    AnyUrl: (AnyUrl("https://example.com/"), "https://example.com/"),
    Numbers: (Numbers([1]), [1]),
    Annotated[Decimal, Field(gt=0)]: (Decimal(1), "1"),
}


@generations
@pytest.mark.parametrize("returned", RETURNED, ids=str)
def test_a_return_type_has_an_output_schema(version: str, returned: Any) -> None:
    value, expected = RETURNED[returned]

    async def give() -> Any:
        return value

    give.__annotations__["return"] = returned
    with running(config(), lambda server: server.tool()(give)) as server:
        tools = ask(server, version, "tools/list", {})["result"]["tools"]
        schema = next(tool for tool in tools if tool["name"] == "give")["outputSchema"]
        result = ask(server, version, "tools/call", {"name": "give", "arguments": {}})["result"]
    assert result["structuredContent"] == {"result": expected}
    assert schema["type"] == "object"
    importlib.import_module("jsonschema").validate(result["structuredContent"], schema)


def missing_schemas(tools: Sequence[Tool]) -> list[str]:
    """Return the advice on tools whose results have no output schema."""
    advice = importlib.import_module("weather_station.production.serve.definitions").advice
    return [text for text in advice(tools, "weather-station") if "which has no JSON schema" in text]


@pytest.mark.needs("serve.definitions")
@pytest.mark.parametrize("returned", [dict, list, tuple, Any, object, Unsendable, memoryview])
def test_a_return_type_without_a_schema_is_named(returned: Any) -> None:
    async def give() -> Any:
        """Give."""

    give.__annotations__["return"] = returned
    server = create_server(config())
    server.tool()(give)
    assert len(missing_schemas(server.registered_tools())) == 1


@pytest.mark.needs("serve.definitions")
@pytest.mark.parametrize("returned", [str, None, dict[str, Any], CallToolResult, TextContent, list[TextContent]])
def test_other_return_types_are_not_named(returned: Any) -> None:
    async def give() -> Any:
        """Give."""

    give.__annotations__["return"] = returned
    server = create_server(config())
    server.tool()(give)
    assert missing_schemas(server.registered_tools()) == []


class Shade(StrEnum):
    DARK = "dark"


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        "text",
        "Zürich",
        Shade.DARK,
        b"bytes",
        5,
        2**80,
        1e-7,
        True,
        None,
        Decimal("1.50"),
        date(2026, 11, 27),
        {"a": [1, {"b": None}]},
        ["a", TextContent(type="text", text="b")],
        Loose(value=1),
        Record("a", [0.5]),
        Pair("a", 0.5),
        TextContent(type="text", text="block"),
        CallToolResult(content=[], structured_content={"result": 1}),
    ],
    ids=repr,
)
def test_a_result_is_converted_as_by_the_sdk(value: Any, *, structured: bool) -> None:
    async def give() -> Any:
        return value

    give.__annotations__["return"] = type(value)
    ours = metadata_of(Tool.from_function(give), structured=structured)
    if not structured:
        ours.output_model = ours.output_schema = None
    fields = {name: getattr(ours, name) for name in FuncMetadata.model_fields}
    try:
        expected = FuncMetadata(**fields).convert_result(value)
    except ValueError:
        with pytest.raises(ValueError, match="validation error"):
            ours.convert_result(value)
        return
    found = ours.convert_result(value)
    assert isinstance(found, CallToolResult)
    assert isinstance(expected, CallToolResult)
    for model, other in [(found, expected), *zip(found.content, expected.content, strict=True)]:
        assert [(name, repr(field)) for name, field in model] == [(name, repr(field)) for name, field in other]
        assert (type(model), model.model_fields_set) == (type(other), other.model_fields_set)


@pytest.mark.parametrize("arguments", [{}, {"icons": [Icon(src="https://shop.example.com/icon.png")]}])
def test_each_result_has_a_description_of_the_server_of_its_own(arguments: dict[str, Any]) -> None:
    registry = create_server(config()).registry
    registry.server_arguments = {**registry.server_arguments, **arguments}
    lowlevel = ProductionServer(registry)._lowlevel_server
    expected = lowlevel.server_info.model_dump(by_alias=True, mode="json", exclude_none=True)
    first = lowlevel.server_info_stamp
    assert first == expected
    assert ("icons" in first) == bool(arguments)
    first["name"] = "another"
    for icon in first.get("icons", ()):
        icon["src"] = "another"
    assert lowlevel.server_info_stamp == expected
