"""Advice about definitions: what hosts and models reject, each with a definition that they accept."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field, WithJsonSchema

from harness import config
from weather_station.production.config import StartError
from weather_station.production.serve.definitions import MAX_TOKENS, advice, tokens_of
from weather_station.server import create_server

READS = ToolAnnotations(read_only_hint=True)
Text = Annotated[str, Field(description="A text")]


class Node(BaseModel):
    """A node of a tree."""

    children: list[Node] = []


class First(BaseModel):
    second: list[Second] = []


class Second(BaseModel):
    first: First | None = None


def header(name: Any) -> Any:
    return Field(description="A text", json_schema_extra={"x-mcp-header": name})


async def good(text: Text, count: Annotated[int, Field(ge=1, description="How many", json_schema_extra={})] = 1) -> str:
    """Do it."""
    return text


async def no_description(text: str) -> str:
    """Do it."""
    return text


async def described_by_its_type(mode: Annotated[str, WithJsonSchema({"type": "string", "description": "How"})]) -> str:
    """Do it."""
    return mode


async def any_list(items: Annotated[list[str], WithJsonSchema({"type": "array", "description": "Some"})]) -> str:
    """Do it."""
    return str(items)


async def a_tuple(point: Annotated[tuple[float, float], Field(description="Where")]) -> str:
    """Do it."""
    return str(point)


async def a_tree(node: Annotated[Node, Field(description="Root")]) -> str:
    """Do it."""
    return str(node)


async def a_cycle(first: Annotated[First, Field(description="First")]) -> str:
    """Do it."""
    return str(first)


async def twice(a: Annotated[str, header("Region")], b: Annotated[str, header("region")]) -> str:
    """Do it."""
    return a + b


async def no_name(a: Annotated[str, header("a b")]) -> str:
    """Do it."""
    return a


async def a_list(a: Annotated[list[str], header("A")]) -> str:
    """Do it."""
    return str(a)


async def long_description(text: Text) -> str:
    return text


long_description.__doc__ = "x" * 1025

CASES: list[tuple[Any, dict[str, Any], list[str]]] = [
    (good, {}, []),
    (described_by_its_type, {}, []),
    (good, {"title": None}, ["no title"]),
    (good, {"annotations": None}, ["no readOnlyHint"]),
    (good, {"annotations": ToolAnnotations(title="Good")}, ["no readOnlyHint"]),
    (good, {"annotations": ToolAnnotations(read_only_hint=False)}, ["no destructiveHint"]),
    (good, {"annotations": ToolAnnotations(destructive_hint=True)}, []),
    (good, {"annotations": ToolAnnotations(read_only_hint=False, destructive_hint=False)}, []),
    (good, {"title": None, "annotations": ToolAnnotations(title="Good", read_only_hint=True)}, []),
    (good, {"name": "a.b"}, ["other characters"]),
    (good, {"name": "shop.orders.list"}, ["other characters"]),
    (good, {"name": "."}, ["other characters"]),
    (good, {"name": "a" * 60}, ["characters long with the prefix"]),
    (no_description, {}, ["parameter text has no description"]),
    (long_description, {}, ["its description has 1025 characters"]),
    (any_list, {}, ["arguments.items is a list without a type of its items"]),
    (a_tuple, {}, ["arguments.point is a tuple"]),
    (a_tree, {}, ["its type Node contains itself"]),
    (a_cycle, {}, ["its type First contains itself", "its type Second contains itself"]),
]


@pytest.mark.parametrize(("function", "options", "expected"), CASES)
def test_advice(function: Any, options: dict[str, Any], expected: list[str]) -> None:
    server = create_server(config(health_tool=False))
    defaults: dict[str, Any] = {"title": "Do it", "annotations": READS}
    server.tool(**defaults | options)(function)
    texts = [*advice(server.registered_tools()[-1:], "weather-station")]
    assert len(texts) == len(expected), texts
    assert all(part in text for part, text in zip(expected, texts, strict=True)), texts


@pytest.mark.parametrize("function", [twice, no_name, a_list])
def test_a_wrong_header_of_a_parameter_stops_the_start(function: Any) -> None:
    """The SDK knows these rules."""
    with pytest.raises(StartError, match="x-mcp-header"):
        create_server(config()).tool()(function)


def test_the_budget_of_tokens() -> None:
    server = create_server(config())
    server.tool(title="Do it", annotations=READS)(good)
    tools = server.registered_tools()
    assert 0 < tokens_of(tools) < 1000
    many = tools * (MAX_TOKENS // tokens_of(tools) + 2)
    assert [text for text in advice(many, "w") if text.startswith("tools/list has about")] != []
