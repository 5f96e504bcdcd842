"""Documents of Swagger 2.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from document_builders import case_of, findings, generate_from, models_source, tool_names
from openapi_tools import Generated

PET = {
    "type": "object",
    "discriminator": "kind",
    "required": ["kind"],
    "properties": {
        "kind": {"type": "string"},
        "$ref": {"type": "string", "x-nullable": True},
        "properties": {"type": "object", "properties": {"x-nullable": {"type": "integer"}}},
        "mate": {"$ref": "#/definitions/Pet"},
    },
}


def ids(collection_format: str | None, place: str = "query") -> dict[str, Any]:
    format_ = {"collectionFormat": collection_format} if collection_format else {}
    name = f"{collection_format or 'none'}_{place}"
    required = {"required": True} if place == "path" else {}
    return {"name": name, "in": place, "type": "array", "items": {"type": "integer"}, **format_, **required}


DOCUMENT = {
    "swagger": "2.0",
    "info": {"title": "Old", "version": "1"},
    "host": "api.example.com",
    "basePath": "/v2",
    "schemes": ["http", "https"],
    "consumes": ["application/json"],
    "produces": ["application/json"],
    "securityDefinitions": {
        "basic": {"type": "basic"},
        "key": {"type": "apiKey", "in": "header", "name": "X-Key"},
        "oauth": {"type": "oauth2", "flow": "accessCode", "authorizationUrl": "https://x", "tokenUrl": "https://y"},
    },
    "security": [{"basic": []}, {"key": []}, {"oauth": []}],
    "definitions": {
        "Pet": PET,
        "Cat": {"allOf": [{"$ref": "#/definitions/Pet"}, {"properties": {"lives": {"type": "integer"}}}]},
    },
    "parameters": {
        "Page": {"name": "page", "in": "query", "type": "integer", "minimum": 1},
        "Whole": {"name": "pet", "in": "body", "required": True, "schema": {"$ref": "#/definitions/Pet"}},
    },
    "responses": {"One": {"description": "one", "schema": {"$ref": "#/definitions/Pet"}}},
    "paths": {
        "/pets/{csv_path}": {
            "parameters": [ids("csv", "path"), {"$ref": "#/parameters/Page"}],
            "get": {
                "operationId": "find",
                "parameters": [ids("multi"), ids("ssv"), ids("pipes"), ids(None), {**ids(None), "name": "page"}],
                "responses": {"200": {"$ref": "#/responses/One"}},
            },
            "post": {
                "operationId": "create",
                "parameters": [{"$ref": "#/parameters/Whole"}],
                "responses": {"201": {"description": "ok", "schema": {"type": "file"}}},
                "produces": ["image/png"],
            },
            "put": {
                "operationId": "upload",
                "consumes": ["multipart/form-data"],
                "parameters": [
                    {"name": "picture", "in": "formData", "type": "file", "required": True},
                    {"name": "note", "in": "formData", "type": "string", "description": "A note"},
                ],
                "responses": {"204": {"description": "ok"}},
            },
            "patch": {
                "operationId": "send",
                "parameters": [
                    {"name": "a", "in": "formData", "type": "string", "required": True},
                    {**ids("ssv", "formData"), "name": "b"},
                ],
                "responses": {"200": {"description": "ok"}},
            },
        }
    },
}


def old(tmp_path: Path) -> Generated:
    return generate_from(DOCUMENT, tmp_path)


def test_every_operation_becomes_a_tool(tmp_path: Path) -> None:
    generated = old(tmp_path)
    assert tool_names(generated) == ["find", "create", "upload", "send"]
    assert findings(generated, "reference") == []


def test_parameters_are_sent_in_their_collection_formats(tmp_path: Path) -> None:
    request = case_of(old(tmp_path), "find")["request"]
    assert request["path"] == "/pets/7,8"
    assert request["query"] == [
        ["multi_query", "7"],
        ["multi_query", "8"],
        ["ssv_query", "7 8"],
        ["pipes_query", "7|8"],
        ["none_query", "7,8"],
        ["page", "7,8"],
    ]


def test_bodies_and_forms(tmp_path: Path) -> None:
    generated = old(tmp_path)
    bodies = {tool.name: tool.body for tool in generated.tools}
    assert {name: body and body.media_type for name, body in bodies.items()} == {
        "find": None,
        "create": "application/json",
        "upload": "multipart/form-data",
        "send": "application/x-www-form-urlencoded",
    }
    parts = case_of(generated, "upload")["request"]["body"]["content"]
    assert [part[0] for part in parts] == ["picture", "note"]
    assert case_of(generated, "send")["request"]["body"]["content"][1] == ["b", "7"]
    assert generated.tools[1].response.kind == "binary"


def test_schemas_and_credentials(tmp_path: Path) -> None:
    generated = old(tmp_path)
    models = models_source(generated)
    assert "mate: Omittable[Cat | Pet]" in models
    assert 'ref: Annotated[str | None, Field(alias="$ref")] = None' in models
    assert 'Field(alias="x-nullable")' in models
    settings = " ".join(generated.credential_settings)
    assert "UPSTREAM_API_KEY_SCHEME=Basic" in settings
    assert "UPSTREAM_API_KEY_HEADER=X-Key" in settings
    assert "access token" in settings
