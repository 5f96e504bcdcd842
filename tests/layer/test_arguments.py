"""Work that a message with many wrong values causes."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from harness import Running, Serve, config, message, running, text_of, wait_for
from weather_station.production.inbound.http_limits import more_values_than
from weather_station.production.inbound.pipeline import MAX_PROBLEMS, MAX_VALIDATION_ERRORS
from weather_station.production.sdk import ProductionServer

MAX_ANSWER = 8192
"""Bytes of an answer about wrong values, however many they are."""

MAX_VALUES = 10_000
"""The default of MAX_JSON_VALUES."""


class Point(BaseModel):
    x: int
    y: date


class Area(BaseModel):
    x: date
    points: list[Point]


def add_tools(server: ProductionServer) -> None:
    async def integers(value: list[int]) -> int:
        return len(value)

    async def unions(value: list[Area | Point | int | date | bool]) -> int:
        return len(value)

    async def mapping(value: dict[str, int | Point]) -> int:
        return len(value)

    async def unique(value: set[int]) -> int:
        return len(value)

    async def nested(value: list[list[dict[str, list[int]]]]) -> int:
        return len(value)

    async def text(value: str) -> int:
        return len(value)

    async def optional(value: str | list[int]) -> int:
        return len(value)

    for tool in (integers, unions, mapping, unique, nested, text, optional):
        server.tool()(tool)


WRONG: dict[str, Any] = {
    "integers": lambda count: [f"a{number}" for number in range(count)],
    "unions": lambda count: [{"x": "a", "points": [{"x": "b"}]} for _ in range(count // 8 + 1)],
    "mapping": lambda count: {f"{number}" * 9: "a" for number in range(count // 2 + 1)},
    "unique": lambda count: [[f"a{number}"] for number in range(count // 2 + 1)],
    "nested": lambda count: [[{"a": ["b"] * 10}] for _ in range(count // 14 + 1)],
}
"""A function for each tool, which returns about that many wrong values."""


def sizes(of: Any) -> int:
    """Return the number of values and member names in a decoded JSON text."""
    if isinstance(of, dict):
        return 1 + sum(1 + sizes(value) for value in of.values())
    return 1 + sum(map(sizes, of)) if isinstance(of, list) else 1


@pytest.fixture(scope="module")
def server() -> Any:
    with running(config(), add_tools) as server:
        yield server


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tool=st.sampled_from(sorted(WRONG)),
    count=st.one_of(st.integers(1, 200), st.integers(200, MAX_VALUES - 100), st.integers(MAX_VALUES, 100_000)),
    as_text=st.booleans(),
)
def test_wrong_values_in_any_number_get_a_short_answer(server: Running, tool: str, count: int, as_text: bool) -> None:
    value = WRONG[tool](count)
    response = server.post(server.request(tool, {"value": json.dumps(value) if as_text else value}))
    assert len(response.content) < MAX_ANSWER
    if sizes(value) > MAX_VALUES:
        assert "MAX_JSON_VALUES" in response.text
        assert response.status_code == (200 if as_text else 413)
    else:
        assert "Invalid arguments" in response.text


def test_the_first_ten_problems_are_listed_and_the_others_counted(serve: Serve) -> None:
    with serve(add_tools) as server:
        for count in (MAX_PROBLEMS, MAX_PROBLEMS + 1, MAX_VALIDATION_ERRORS, MAX_VALIDATION_ERRORS + 1, 9000):
            text = text_of(server.call("integers", {"value": ["a"] * count}))
            assert text.count("value.") == MAX_PROBLEMS
            assert text.startswith("Invalid arguments for tool integers: value.0: Input should be a valid integer")
            others = count - MAX_PROBLEMS
            assert text.endswith(f"; {others} more problems") if others else "more problems" not in text


def test_problems_that_are_not_at_the_beginning_are_counted(serve: Serve) -> None:
    with serve(add_tools) as server:
        text = text_of(server.call("integers", {"value": [1] * 1000 + ["a"] * 5000}))
        assert text.endswith("arguments: 5000 problems")


def test_names_and_messages_in_a_problem_are_shortened(serve: Serve) -> None:
    with serve(add_tools) as server:
        result = server.call("mapping", {"value": {"k" * 1_000_000: "a"}})
        assert len(text_of(result)) < MAX_ANSWER


def test_valid_values_up_to_the_limit_reach_the_tool(serve: Serve) -> None:
    with serve(add_tools, max_json_values=1000) as server:
        for value in ([1] * 900, json.dumps([1] * 900)):
            assert server.call("integers", {"value": value})["structuredContent"] == {"result": 900}
        assert server.post(server.request("integers", {"value": [1] * 1000})).status_code == 413
        assert "MAX_JSON_VALUES" in text_of(server.call("integers", {"value": json.dumps([1] * 1000)}))


@pytest.mark.parametrize("text", ["[" + "a, b: c " * 20_000 + "]", json.dumps([1] * 50_000), "{" * 5000])
def test_a_parameter_that_is_text_may_have_any(text: str, serve: Serve) -> None:
    with serve(add_tools) as server:
        assert server.call("text", {"value": text})["structuredContent"] == {"result": len(text)}
        assert server.call("optional", {"value": "[see] " + "a, b " * 20_000})["structuredContent"]


def test_deep_json_in_a_text_argument_is_rejected_without_a_crash(serve: Serve) -> None:
    with serve(add_tools) as server:
        for depth in (101, 5000):
            result = server.call("integers", {"value": "[" * depth + "]" * depth})
            assert "Invalid arguments" in text_of(result)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("prompts/get", {"name": "greet", "arguments": {str(number): "a" for number in range(4900)}}),
        ("prompts/get", {"name": "greet", "arguments": {str(number): "a" for number in range(50_000)}}),
        ("prompts/get", {"name": "greet", "arguments": [1] * 9000}),
        ("resources/read", {"uri": ["a"] * 9000}),
        ("completion/complete", {"ref": ["a"] * 9000, "argument": ["a"] * 50}),
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "greet"}, "context": {"arguments": [1] * 20_000}},
        ),
        ("tools/list", {"cursor": ["a"] * 20_000}),
        ("ping", {"_meta": {str(number): "a" for number in range(6000)}}),
        ("unknown", {"a": ["a"] * 100_000}),
    ],
)
def test_wrong_parameters_of_every_method_get_a_short_answer(method: str, params: dict[str, Any], serve: Serve) -> None:
    def register(server: ProductionServer) -> None:
        def greet(name: str = "") -> str:
            return name

        server.prompt()(greet)

        @server.completion()
        async def complete(ref: Any, argument: Any, context: Any) -> None:
            return None

    with serve(register) as server:
        assert len(server.post(message(method, params)).content) < MAX_ANSWER


def test_an_answer_of_the_upstream_with_many_wrong_values_is_logged_in_short(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    def register(server: ProductionServer) -> None:
        async def parse() -> int:
            return len(Area.model_validate({"x": "2026-01-01", "points": ["a"] * 50_000}).points)

        server.tool()(parse)

    with serve(register) as server:
        assert server.call("parse")["isError"]
        wait_for(lambda: "50000 validation errors for Area" in capfd.readouterr().err)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=30,
)


@given(value=JSON, indent=st.none() | st.integers(0, 4), ascii_only=st.booleans())
def test_the_number_of_values_is_the_one_that_a_parser_finds(value: Any, indent: int | None, ascii_only: bool) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    count = sizes(value)
    assert more_values_than(count - 1, body) or len(body) == 1
    assert not more_values_than(count, body)


@pytest.mark.parametrize("piece", [b",", b" ", b"]", b"a", b'"', b"\\", b'"\\', b"[,", b"}{", b":"])
def test_counting_takes_linear_time_whatever_the_body_is(piece: bytes) -> None:
    """A search that takes more than linear time would take minutes."""
    body = piece * (4_000_000 // len(piece))
    more_values_than(MAX_VALUES, body)
