"""Pages of a list, and links to resources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mcp_types import ResourceLink
from pydantic import BaseModel

from harness import HEADERS, LEGACY, MODERN, Running, config, message, modern, running, text_of
from weather_station.production import Page, page, resource_link
from weather_station.production.sdk import ProductionServer

LIMIT = 20_000


class Order(BaseModel):
    number: int
    note: str | None


ORDERS = [Order(number=number, note='"é"\n' * (number % 50)) for number in range(1000)]


def register(server: ProductionServer) -> None:
    @server.tool()
    async def list_orders(cursor: str | None = None, size: int = 100) -> Page[Order]:
        return page(ORDERS, cursor, size)

    @server.tool()
    async def list_large(cursor: str | None = None) -> Page[str]:
        return page(["x" * LIMIT, "y"], cursor)

    @server.tool()
    async def find_report(year: int) -> ResourceLink:
        return resource_link(f"reports://annual/{year}", mime_type="text/plain", size=4)

    @server.resource("reports://annual/{year}")
    async def report(year: int) -> str:
        return str(year)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(config(max_result_bytes=LIMIT), register) as found:
        yield found


def ask(server: Running, version: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    content, headers = modern(method, params) if version == MODERN else (message(method, params), HEADERS)
    result: dict[str, Any] = server.client.post(server.url, json=content, headers=headers).json()["result"]
    return result


@pytest.mark.parametrize("size", [1, 0, -1, -3, -1000, -(10**20)])
def test_a_page_of_no_items_does_not_stop_a_model(size: int) -> None:
    items = ["a", "b", "c", "d"]
    found, cursor = [], None
    for _ in items:
        part = page(items, cursor, size)
        found += part.items
        cursor = part.next_cursor
    assert (found, cursor) == (items, None)


@pytest.mark.parametrize("version", [LEGACY, MODERN])
def test_the_pages_of_a_list_fit_and_are_the_list(server: Running, version: str) -> None:
    numbers: list[int] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor:
        arguments = {"cursor": cursor} if cursor else {}
        result = ask(server, version, "tools/call", {"name": "list_orders", "arguments": arguments})
        assert not result.get("isError"), text_of(result)
        found = result["structuredContent"]
        assert json.loads(text_of(result)) == found
        numbers += [order["number"] for order in found["items"]]
        cursor = found["next_cursor"]
        pages += 1
    assert numbers == list(range(1000))
    assert 10 < pages < 100


def test_a_page_has_at_most_the_items_that_are_asked_for(server: Running) -> None:
    result = server.call("list_orders", {"size": 3, "cursor": "5"})["structuredContent"]
    assert [order["number"] for order in result["items"]] == [5, 6, 7]
    assert result["next_cursor"] == "8"


def test_an_item_that_is_too_large_alone_is_the_error_of_the_call(server: Running) -> None:
    assert "larger than" in text_of(server.call("list_large"))
    assert server.call("list_large", {"cursor": "1"})["structuredContent"] == {"items": ["y"], "next_cursor": None}


@pytest.mark.parametrize("cursor", ["-1", "0", "1000", "x", "1.5", "9" * 5000, "٣"])
def test_a_cursor_that_no_page_gave_is_an_error(server: Running, cursor: str) -> None:
    assert text_of(server.call("list_orders", {"cursor": cursor})).startswith("The cursor is not valid.")


def test_outside_of_a_request_a_page_has_its_size() -> None:
    assert page([], None) == Page(items=[], next_cursor=None)
    assert page(range(250), "").next_cursor == "100"


@pytest.mark.parametrize("version", [LEGACY, MODERN])
def test_a_link_leads_to_its_resource(server: Running, version: str) -> None:
    result = ask(server, version, "tools/call", {"name": "find_report", "arguments": {"year": 2026}})
    (link,) = result["content"]
    assert link == {
        "type": "resource_link",
        "uri": "reports://annual/2026",
        "name": "2026",
        "mimeType": "text/plain",
        "size": 4,
    }
    contents = ask(server, version, "resources/read", {"uri": link["uri"]})["contents"]
    assert contents[0]["text"] == "2026"
