"""Selection of operations."""

from __future__ import annotations

import pytest
from document_builders import DOCUMENTS, findings, generate_from_file, tool_names
from openapi_tools import Document, Generated, SelectionError, generate
from openapi_tools.selection import parse_selection


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("getPet", ["get_pet"]),
        ("get*", ["get_pet", "get_any"]),
        ("oldPet", ["old_pet"]),
        ("GET /pets, deletePet", ["list_pets", "delete_pet"]),
        ("GET /pets* upload", ["list_pets", "get_pet", "upload"]),
        ("/files/*", ["download", "replace_file"]),
        ("GET /pets/{petId}/old", ["old_pet"]),
    ],
)
def test_ids_paths_and_methods_select_operations(selection: str, expected: list[str]) -> None:
    assert tool_names(generate_from_file("plain.yaml", selection)) == expected


@pytest.mark.parametrize(("selection", "count"), [("files-and-forms", 7), ("Pets", 7), ("*", 15), ("", 15)])
def test_tags_and_wildcards_select_what_is_not_deprecated(selection: str, count: int) -> None:
    assert len(generate_from_file("plain.yaml", selection).tools) == count


def test_a_deprecated_operation_that_is_left_out_is_reported(plain: Generated) -> None:
    assert findings(plain, "deprecated") == [("#/paths/~1pets~1{petId}~1old/get", "GET /pets/{petId}/old")]


def test_a_pattern_that_matches_nothing_names_similar_operations() -> None:
    with pytest.raises(SelectionError, match=r"'getPets' matches no operation of the document; it has, .*getPet"):
        generate_from_file("plain.yaml", "getPets")


def test_commas_and_spaces_separate_patterns() -> None:
    assert parse_selection(" a,b  get /c , /d") == ["a", "b", "GET /c", "/d"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("pets, !GET /pets, !deletePet", {"list_pets", "delete_pet"}),
        ("!*pet*", set()),
        ("! POST /*", set()),
    ],
)
def test_an_excluding_pattern_removes_operations(selection: str, expected: set[str]) -> None:
    everything = set(tool_names(generate_from_file("plain.yaml")))
    names = set(tool_names(generate_from_file("plain.yaml", selection)))
    assert names < everything
    assert not expected & names


def test_only_reading_operations() -> None:
    generated = generate(Document(str(DOCUMENTS / "plain.yaml")), "package", reads_only=True)
    assert {tool.method for tool in generated.tools} == {"GET", "HEAD"}
