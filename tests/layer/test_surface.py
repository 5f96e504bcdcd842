"""`--surface`: what makes a client fail is found, and what does not is not."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from harness import config
from weather_station import server as server_module
from weather_station.production.config import ConfigError
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve.surface import FILE, breaking_changes, other_changes, recorded, surface
from weather_station.server import create_server


class Unit(Enum):
    METRIC = "metric"
    IMPERIAL = "imperial"


class Place(BaseModel):
    city: str
    country: str = "PT"


class StrictPlace(BaseModel):
    city: str
    country: str


class Renamed(BaseModel):
    town: str
    country: str = "PT"


SAME: list[tuple[Any, Any]] = [
    (str, str),
    (int, float),
    (str, str | None),
    (str, str | int),
    (Literal["a"], Literal["a", "b"]),
    (Literal["a", "b"], str),
    (Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0)]),
    (Annotated[str, Field(max_length=5)], str),
    (list[int], list[float]),
    (Annotated[str, Field(description="before")], Annotated[str, Field(description="after", examples=["x"])]),
    (StrictPlace, Place),
    (Place, dict[str, Any]),
    (int, Any),
]
"""Types of a parameter before and after a change that no client notices."""

NARROWED: list[tuple[Any, Any, str]] = [
    (str, int, "no longer accepts string"),
    (float, int, "no longer accepts number"),
    (str | None, str, "no longer accepts null"),
    (str | int, str, "no longer accepts integer"),
    (str, Literal["a"], 'no longer accepts "other values"'),
    (Literal["a", "b"], Literal["a"], 'no longer accepts "b"'),
    (Unit, Literal["metric"], 'no longer accepts "imperial"'),
    (int, Annotated[int, Field(ge=1)], "minimum changes from none to 1"),
    (Annotated[int, Field(le=9)], Annotated[int, Field(le=8)], "maximum changes from 9 to 8"),
    (str, Annotated[str, Field(pattern="^a$")], "pattern changes"),
    (list[float], list[int], "parameter value[] no longer accepts number"),
    (Place, StrictPlace, "parameter value.country is required now"),
    (Place, Renamed, "parameter value.city is removed"),
    (list[Place], list[StrictPlace], "parameter value[].country is required now"),
    (Place | None, StrictPlace | None, "parameter value.country is required now"),
    (Any, str, "no longer accepts any value"),
]


def surface_of(kind: Any, **options: Any) -> dict[str, Any]:
    server = create_server(config(health_tool=False))

    async def tool(value: kind) -> str:
        return str(value)

    tool.__annotations__["value"] = kind
    server.tool(**options)(tool)
    return {"tool": recorded(server)["tool"]}


@pytest.mark.parametrize(("before", "after"), SAME)
def test_what_no_client_notices(before: Any, after: Any) -> None:
    assert [*breaking_changes(surface_of(before), surface_of(after))] == []


@pytest.mark.parametrize(("before", "after", "text"), NARROWED)
def test_a_narrowed_parameter(before: Any, after: Any, text: str) -> None:
    found = [*breaking_changes(surface_of(before), surface_of(after))]
    assert any(text in line for line in found), found


def test_new_and_removed_tools_and_parameters() -> None:
    one = {"a": surface_of(str)["tool"]}
    two = one | {"b": surface_of(int)["tool"]}
    assert [*breaking_changes(two, one)] == ["b: the tool is removed"]
    assert [*breaking_changes(one, two)] == []
    assert [*other_changes(one, two)] == ["b: the tool is new"]
    wider = {"a": surface_of(str | None)["tool"]}
    assert [*other_changes(one, wider)] == ["a: its parameters accept more"]


def test_a_type_that_contains_itself() -> None:
    tree: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/T"}}}
    schema = {"$defs": {"T": tree}, "properties": {"t": {"$ref": "#/$defs/T"}}, "type": "object"}
    before = {"a": {"parameters": schema, "scopes": None, "hints": {}}}
    assert [*breaking_changes(before, before)] == []


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The functions that are registered as tools."""
    functions: list[Any] = []

    def register(server: ProductionServer) -> None:
        for function in functions:
            server.tool()(function)

    monkeypatch.setattr(server_module, "register", register)
    monkeypatch.chdir(tmp_path)
    return functions


async def find(city: str) -> str:
    """Find it."""
    return city


def test_the_command(tools: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    tools.append(find)
    assert surface("check", {}) == 0
    assert "does not exist" in capsys.readouterr().out
    assert surface("accept", {}) == 0
    assert surface("check", {}) == 0
    capsys.readouterr()

    async def other(city: str) -> str:
        return city

    tools[:] = [other]
    assert surface("check", {}) == 1
    out = capsys.readouterr().out
    assert "find: the tool is removed" in out
    assert "clients of these tools may fail. To accept it: weather-station --surface accept" in out
    surface("accept", {})
    assert surface("check", {}) == 0


@pytest.mark.parametrize("text", ["", "[]", "{}]", '{"find": 1}', '{"find": {}}', '{"find": {"parameters": 1}}'])
def test_a_file_of_another_kind_is_explained(tools: list[Any], text: str) -> None:
    tools.append(find)
    FILE.parent.mkdir()
    FILE.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match="was not written by"):
        surface("check", {})


def test_a_changed_permission(tools: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    tools.append(find)
    surface("accept", {})
    recorded_tools = json.loads(FILE.read_text("utf-8"))
    for scopes in (["orders:read"], []):
        changed = recorded_tools | {"find": recorded_tools["find"] | {"scopes": scopes}}
        FILE.write_text(json.dumps(changed), "utf-8")
        assert surface("check", {}) == 1
        assert "find: scopes change from" in capsys.readouterr().out
