"""Names of tools, arguments, classes and modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from document_builders import document_with, generate_from, generate_from_file, operation_with, tool_names
from openapi_tools import Generated
from openapi_tools.identifiers import MAX_IDENTIFIER, pascal_case, snake_case


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listPets", "list_pets"),
        ("repos/list-for-org", "repos_list_for_org"),
        ("HTTPServerID", "http_server_id"),
        ("2fa.enable", "x_2fa_enable"),
        ("class", "class_"),
        ("type", "type_"),
        ("__init__", "init"),
        ("Größe", "grosse"),
        ("天气", "x"),
        ("", "x"),
        ("a" * 200, "a" * 52 + "c2a908d9"),
    ],
    ids=ascii,
)
def test_snake_case(text: str, expected: str) -> None:
    assert snake_case(text, "x") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("list_pets", "ListPets"),
        ("api.v1.Pod", "ApiV1Pod"),
        ("None", "NoneModel"),
        ("Any", "AnyModel"),
        ("1st", "Model1st"),
        ("l", "L"),
        ("o", "OModel"),
        ("warning", "WarningModel"),
        ("context", "Context"),
        ("天气", "Model"),
    ],
    ids=ascii,
)
def test_pascal_case(text: str, expected: str) -> None:
    assert pascal_case(text, "Model") == expected


def test_long_names_with_the_same_beginning_stay_distinct() -> None:
    first, second = (snake_case(f"{'word_' * 20}{end}", "x") for end in ("one", "two"))
    assert first != second
    assert max(map(len, (first, second))) <= MAX_IDENTIFIER


def test_equal_and_reserved_names_get_a_number_or_suffix(hostile: Generated) -> None:
    names = tool_names(hostile)
    assert names[:6] == ["import", "same", "same_2", "same_3", "health_check_2", "register"]
    assert len(set(names)) == len(names)
    arguments = [parameter.name for parameter in hostile.tools[0].parameters]
    assert arguments[:4] == ["class_", "a_b", "a_b_2", "class_query"]
    assert [parameter.argument for parameter in hostile.tools[0].parameters][:4] == [
        "class",
        "a-b",
        "a_b",
        "class_query",
    ]
    assert {"ctx_query", "self_", "server_", "body", "form_", "class_header", "class_cookie"} <= {*arguments}
    modules = {tool.module for tool in hostile.tools}
    assert {"class_", "production", "etc_passwd", "register_", "con_"} <= modules
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", module) for module in modules)


def test_without_tags_the_path_gives_the_module(tmp_path: Path) -> None:
    paths = {
        path: {"get": operation_with()} for path in ("/api/v1/users/{id}", "/api/v1/users", "/api/v1/{x}/orders.json")
    }
    generated = generate_from(document_with(paths), tmp_path)
    assert [tool.module for tool in generated.tools] == ["users", "users", "orders"]


def test_the_name_of_an_existing_module_is_not_used() -> None:
    generated = generate_from_file("plain.yaml", existing_modules=frozenset(("pets",)))
    assert {tool.module for tool in generated.tools} == {"pets_2", "files_and_forms", "elsewhere"}
