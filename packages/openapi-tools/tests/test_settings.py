"""What a document says of all its tools: headers that are settings, and scopes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from document_builders import document_with, findings, generate_from, json_response, operation_with
from openapi_tools import Generated

OK = json_response({})


def header(name: str, schema: Any = None, *, required: bool = True) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": required, "schema": schema or {"type": "string"}}


def paths_with(parameters: list[dict[str, Any]], number: int = 5, **fields: Any) -> dict[str, Any]:
    operation = operation_with(parameters=parameters, responses=OK, **fields)
    return {f"/x{index}": {"get": operation} for index in range(number)}


def described(generated: Generated) -> str:
    return generated.files["src/package/tools/openapi_document.py"]


def arguments_of(generated: Generated) -> list[str]:
    return [parameter.api_name for parameter in generated.tools[0].parameters]


@pytest.mark.parametrize(
    ("name", "schema", "written"),
    [
        ("Notion-Version", {"type": "string"}, '"Notion-Version": None'),
        ("X-Api-Version", {"type": "string", "enum": ["2026-01-01"]}, '"X-Api-Version": "2026-01-01"'),
        ("api-version", {"type": "string", "default": "7"}, '"api-version": "7"'),
        ("X-Flavour", {"type": "string", "const": "sweet"}, '"X-Flavour": "sweet"'),
        ("X-Tenant", {"type": "string"}, '"X-Tenant": None'),
        ("OpenAI-Organization", {"type": "string"}, '"OpenAI-Organization": None'),
    ],
)
def test_a_header_that_all_requests_share_is_a_setting(
    tmp_path: Path, name: str, schema: dict[str, Any], written: str
) -> None:
    generated = generate_from(document_with(paths_with([header(name, schema), header("X-Trace")])), tmp_path)
    assert arguments_of(generated) == ["X-Trace"]
    assert f"headers={{{written}}}" in described(generated)
    assert len(findings(generated, "header")) == 5


@pytest.mark.parametrize("name", ["Idempotency-Key", "If-Match", "X-Request-Id", "Prefer", "X-Fields"])
def test_a_header_of_one_request_is_an_argument(tmp_path: Path, name: str) -> None:
    generated = generate_from(document_with(paths_with([header(name)])), tmp_path)
    assert arguments_of(generated) == [name]
    assert "headers=" not in described(generated)


def test_a_header_of_a_few_operations_is_an_argument_unless_it_has_one_value(tmp_path: Path) -> None:
    some = operation_with(
        parameters=[header("X-Version"), header("X-Action", {"type": "string", "enum": ["list"]})], responses=OK
    )
    generated = generate_from(document_with({"/y": {"get": some}, **paths_with([])}), tmp_path)
    assert arguments_of(generated) == ["X-Version"]
    assert generated.tools[0].headers == {"X-Action": "list"}
    (case, *_) = json.loads(generated.files["tests/openapi.json"])
    assert case["request"]["headers"] == {"x-action": "list", "x-version": "a b"}


@pytest.mark.parametrize("name", ["X-Api-Key", "DD-APPLICATION-KEY", "X-Auth-Token", "Client-Secret"])
def test_a_header_with_credentials_is_a_secret_setting(tmp_path: Path, name: str) -> None:
    paths = paths_with([]) | {"/y": {"get": operation_with(parameters=[header(name)], responses=OK)}}
    generated = generate_from(document_with(paths), tmp_path)
    assert not any(tool.parameters for tool in generated.tools)
    assert f'secret_headers=["{name}"]' in described(generated)


def api_key(name: str) -> dict[str, Any]:
    return {"type": "apiKey", "in": "header", "name": name}


SCHEMES = {
    "id": api_key("PLAID-CLIENT-ID"),
    "version": api_key("Plaid-Version"),
    "secret": api_key("PLAID-SECRET"),
    "bearer": {"type": "http", "scheme": "bearer"},
    "query": {"type": "apiKey", "in": "query", "name": "key"},
}


@pytest.mark.parametrize(
    ("security", "secret", "plain"),
    [
        ([{"id": [], "version": [], "secret": []}], ["PLAID-CLIENT-ID"], ["Plaid-Version"]),
        ([{"id": [], "secret": []}], ["PLAID-CLIENT-ID"], []),
        ([{"bearer": [], "id": []}], ["PLAID-CLIENT-ID"], []),
        ([{"id": [], "secret": []}, {"bearer": []}], [], []),
        ([{"secret": []}], [], []),
    ],
)
def test_further_credentials_are_settings(tmp_path: Path, security: Any, secret: list[str], plain: list[str]) -> None:
    paths = paths_with([], security=security)
    generated = generate_from(document_with(paths, securitySchemes=SCHEMES), tmp_path)
    expected = [f"secret_headers={json.dumps(secret)}"] if secret else []
    expected += [f'headers={{"{name}": None}}' for name in plain]
    assert all(text in described(generated) for text in expected)
    assert ("secret_headers" in described(generated)) == bool(secret)
    for name in secret:
        assert any(f"UPSTREAM_SECRET_HEADERS={name}:<value>" in line for line in generated.credential_settings)
    assert not findings(generated, "authentication")


def test_two_credentials_of_which_none_is_a_header_are_reported(tmp_path: Path) -> None:
    paths = paths_with([], security=[{"bearer": [], "query": []}])
    generated = generate_from(document_with(paths, securitySchemes=SCHEMES), tmp_path)
    assert "requires bearer and query together; the client sends one" in findings(generated, "authentication")[0][1]


def scopes_of(folder: Path, security: Any, *, with_scopes: bool = True) -> Generated:
    schemes = {"oauth": {"type": "oauth2", "flows": {}}, "key": api_key("X-Key")}
    document = document_with(paths_with([], 1, security=security), securitySchemes=schemes)
    return generate_from(document, folder, with_scopes=with_scopes)


@pytest.mark.parametrize(
    ("security", "scopes"),
    [
        ([{"oauth": ["read", "write"]}], ("read", "write")),
        ([{"oauth": ["https://example.com/auth/x.read"]}], ("https://example.com/auth/x.read",)),
        ([{"oauth": ["read"]}, {"oauth": ["read", "admin"]}], ("read",)),
        ([{"oauth": ["read"]}, {"key": []}], ()),
        ([{"oauth": ["read"]}, {}], ()),
        ([{"oauth": ["one two", "read"]}], ("read",)),
        (None, ()),
        ([{"oauth": "read"}], ()),
    ],
)
def test_a_tool_needs_the_scopes_of_its_operation(tmp_path: Path, security: Any, scopes: tuple[str, ...]) -> None:
    generated = scopes_of(tmp_path, security)
    assert generated.tools[0].scopes == scopes
    (source,) = [text for path, text in generated.files.items() if path.endswith("/tools/x0.py")]
    assert (f"@policy(scopes={json.dumps(list(scopes))})" in source) == bool(scopes)
    assert ("from ..production import policy\n" in source) == bool(scopes)


def test_scopes_are_left_out_without_authorization(tmp_path: Path) -> None:
    generated = scopes_of(tmp_path, [{"oauth": ["read"]}], with_scopes=False)
    assert not any("policy(" in text for text in generated.files.values())


def test_the_description_has_the_absolute_urls_of_the_servers(tmp_path: Path) -> None:
    document = document_with(paths_with([]))
    variables = {"region": {"default": "eu"}}
    document["servers"] = [{"url": "https://{region}.example.com/v1", "variables": variables}, {"url": "/v2"}]
    assert 'servers=["https://eu.example.com/v1"]' in described(generate_from(document, tmp_path))
