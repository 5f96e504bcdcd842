"""Swagger 2.0 as OpenAPI 3.0: the same operations, with bodies, responses and schemas where version 3 has them."""

from __future__ import annotations

from typing import Any

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
METHODS = ("get", "put", "post", "delete", "options", "head", "patch")

STYLES = {"ssv": "spaceDelimited", "pipes": "pipeDelimited", "tsv": "tsv"}
"""Styles by collection format; version 3 has none for tabs, which is reported."""

SCHEMA_KEYWORDS = (
    "type", "format", "items", "default", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum", "maxLength",
    "minLength", "pattern", "maxItems", "minItems", "uniqueItems", "enum", "multipleOf",
)  # fmt: skip
"""Keywords of a version 2 parameter that describe its value."""

PLACES = {
    "#/definitions/": "#/components/schemas/",
    "#/parameters/": "#/components/parameters/",
    "#/responses/": "#/components/responses/",
}


def to_openapi_3(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of version 2.0 as one of version 3.0."""
    converter = _Converter(document)
    schemas = {name: _schema(schema) for name, schema in _mapping(document.get("definitions")).items()}
    responses = {
        name: converter.response(response, converter.produces(document))
        for name, response in _mapping(document.get("responses")).items()
    }
    return {
        "openapi": "3.0.3",
        "info": document.get("info", {}),
        "servers": _servers(document),
        "paths": {path: converter.path_item(item) for path, item in _mapping(document.get("paths")).items()},
        "components": {
            "schemas": schemas,
            "parameters": {
                name: _parameter(parameter)
                for name, parameter in converter.parameters.items()
                if isinstance(parameter, dict) and parameter.get("in") not in ("body", "formData")
            },
            "responses": responses,
            "securitySchemes": {
                name: _security_scheme(scheme) for name, scheme in _mapping(document.get("securityDefinitions")).items()
            },
        },
        **({"security": document["security"]} if "security" in document else {}),
        **({"tags": document["tags"]} if "tags" in document else {}),
    }


class _Converter:
    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.parameters = _mapping(document.get("parameters"))

    def path_item(self, item: Any) -> Any:
        """Return a path item, whose operations have the bodies that its parameters describe."""
        if not isinstance(item, dict) or "$ref" in item:
            return item
        shared = _list(item.get("parameters"))
        converted = {key: value for key, value in item.items() if key not in (*METHODS, "parameters")}
        for method, operation in item.items():
            if method in METHODS and isinstance(operation, dict):
                converted[method] = self.operation(operation, shared)
        return converted

    def operation(self, operation: dict[str, Any], shared: list[Any]) -> dict[str, Any]:
        own = [self.resolved(parameter) for parameter in _list(operation.get("parameters"))]
        names = {(each.get("in"), each.get("name")) for each in own}
        inherited = [self.resolved(parameter) for parameter in shared]
        every = [each for each in inherited if (each.get("in"), each.get("name")) not in names] + own
        replaced = ("parameters", "consumes", "produces", "schemes")
        converted = {key: value for key, value in operation.items() if key not in replaced}
        converted["parameters"] = [_parameter(each) for each in every if each.get("in") not in ("body", "formData")]
        consumes = _list(operation.get("consumes", self.document.get("consumes")))
        if body := _request_body(every, [each for each in consumes if isinstance(each, str)]):
            converted["requestBody"] = body
        produces = self.produces(operation)
        responses = _mapping(operation.get("responses"))
        converted["responses"] = {status: self.response(response, produces) for status, response in responses.items()}
        return converted

    def produces(self, operation: dict[str, Any]) -> list[str]:
        """Return the media types of an operation's responses."""
        given = _list(operation.get("produces", self.document.get("produces")))
        return [each for each in given if isinstance(each, str)] or ["application/json"]

    def resolved(self, parameter: Any) -> dict[str, Any]:
        """Return a parameter, or the one of the document that it refers to."""
        reference = _mapping(parameter).get("$ref")
        if isinstance(reference, str) and reference.startswith("#/parameters/"):
            return _mapping(self.parameters.get(reference.removeprefix("#/parameters/")))
        return _mapping(parameter)

    def response(self, response: Any, produces: list[str]) -> Any:
        if not isinstance(response, dict):
            return response
        if "$ref" in response:
            return _schema(response)
        converted: dict[str, Any] = {"description": response.get("description", "")}
        examples = _mapping(response.get("examples"))
        if "schema" in response:
            schema = _schema(response["schema"])
            if _mapping(response["schema"]).get("type") == "file":
                schema = {"type": "string", "format": "binary"}
            converted["content"] = {
                media_type: {"schema": schema, **({"example": examples[media_type]} if media_type in examples else {})}
                for media_type in produces
            }
        if headers := _mapping(response.get("headers")):
            converted["headers"] = {name: {"schema": _value_schema(header)} for name, header in headers.items()}
        return converted


def _request_body(parameters: list[dict[str, Any]], consumes: list[str]) -> dict[str, Any] | None:
    for parameter in parameters:
        if parameter.get("in") == "body":
            media_types = consumes or ["application/json"]
            content = {media_type: {"schema": _schema(parameter.get("schema", {}))} for media_type in media_types}
            described = {"description": parameter["description"]} if "description" in parameter else {}
            return {"content": content, "required": parameter.get("required") is True, **described}
    fields = [each for each in parameters if each.get("in") == "formData" and isinstance(each.get("name"), str)]
    if not fields:
        return None
    has_files = any(each.get("type") == "file" for each in fields)
    media_type = MULTIPART if has_files or (MULTIPART in consumes and FORM not in consumes) else FORM
    properties, encoding = {}, {}
    for each in fields:
        properties[each["name"]] = _value_schema(each)
        if each.get("type") == "array" and each.get("collectionFormat") != "multi":
            style = STYLES.get(str(each.get("collectionFormat")), "form")
            encoding[each["name"]] = {"style": style, "explode": False}
    required = [each["name"] for each in fields if each.get("required") is True]
    schema = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    media = {"schema": schema, **({"encoding": encoding} if encoding else {})}
    return {"content": {media_type: media}, "required": bool(required)}


def _parameter(parameter: dict[str, Any]) -> dict[str, Any]:
    """Return a path, query or header parameter."""
    schema_free = {key: value for key, value in parameter.items() if key not in (*SCHEMA_KEYWORDS, "collectionFormat")}
    converted = {**schema_free, "schema": _value_schema(parameter)}
    if parameter.get("type") == "array":
        default = "form" if parameter.get("in") == "query" else "simple"
        style = STYLES.get(str(parameter.get("collectionFormat", "csv")), default)
        converted |= {"style": style, "explode": parameter.get("collectionFormat") == "multi"}
    return converted


def _value_schema(parameter: Any) -> Any:
    """Return the schema of a value that is no object: of a parameter, a form's field, or a header."""
    given = _mapping(parameter)
    schema = {key: given[key] for key in SCHEMA_KEYWORDS if key in given}
    schema |= {key: value for key, value in given.items() if key == "description" and given.get("in") == "formData"}
    if schema.get("type") == "file":
        return {**schema, "type": "string", "format": "binary"}
    if isinstance(schema.get("items"), dict):
        schema["items"] = _schema(schema["items"])
    return schema


def _schema(value: Any, is_name: bool = False) -> Any:
    """Return a schema with references to the places of version 3.

    Args:
        value: A schema, or a part of it.
        is_name: Whether the keys of `value` are names of properties rather than keywords.
    """
    if isinstance(value, list):
        return [_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    converted: dict[str, Any] = {}
    for key, item in value.items():
        if key == "$ref" and isinstance(item, str) and not is_name:
            converted[key] = _reference(item)
        elif key == "x-nullable" and not is_name:
            converted["nullable"] = item
        elif key == "discriminator" and isinstance(item, str) and not is_name:
            converted[key] = {"propertyName": item}
        elif key in ("enum", "default", "example") and not is_name:
            converted[key] = item
        else:
            converted[key] = _schema(item, is_name=key == "properties" and not is_name)
    if converted.get("type") == "file":
        converted |= {"type": "string", "format": "binary"}
    return converted


def _reference(reference: str) -> str:
    file, hash_sign, fragment = reference.partition("#")
    for old, new in PLACES.items():
        if f"#{fragment}".startswith(old) and not file:
            return new + f"#{fragment}".removeprefix(old)
    return file + hash_sign + fragment


def _servers(document: dict[str, Any]) -> list[dict[str, str]]:
    host, path = document.get("host"), document.get("basePath", "/")
    path = path if isinstance(path, str) else "/"
    if not isinstance(host, str) or not host:
        return [{"url": path}] if path not in ("", "/") else []
    schemes = [each for each in _list(document.get("schemes")) if each in ("http", "https")] or ["https"]
    return [{"url": f"{scheme}://{host}{path.rstrip('/')}"} for scheme in sorted(schemes, reverse=True)]


def _security_scheme(scheme: Any) -> Any:
    given = _mapping(scheme)
    if given.get("type") == "basic":
        return {"type": "http", "scheme": "basic"}
    if given.get("type") == "oauth2":
        flow = {"accessCode": "authorizationCode", "application": "clientCredentials"}
        name = flow.get(str(given.get("flow")), str(given.get("flow")))
        urls = {key: given[key] for key in ("authorizationUrl", "tokenUrl") if key in given}
        return {"type": "oauth2", "flows": {name: {**urls, "scopes": _mapping(given.get("scopes"))}}}
    return given


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
