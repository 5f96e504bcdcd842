"""Validate recorded requests against an OpenAPI document with openapi-core, an independent library.

    uv run --no-project --with openapi-core==0.23.1 python tests/in_project/openapi_judge.py CALLS RECORDS ...

Prints a JSON object for each file of records: the operations that sent no request, more than one, or a request that the
document does not allow, each with the reason, and those whose answer did not reach the client.
"""

import base64
import copy
import json
import re
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.exceptions import OpenAPIError
from openapi_core.validation.request.exceptions import SecurityValidationError
from werkzeug.datastructures import Headers, ImmutableMultiDict

HOST = "http://api.test"
TEXTS = {
    "integer": r"^-?[0-9]+$",
    "number": r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$",
    "boolean": "^(true|false)$",
}
"""What a value of each type is as the text of a part."""

JSON_TEXT = {"type": "string", "pattern": r'^(\{\}|\[\]|\{".*\}|\[.*\])$'}
"""A part of a list as JSON."""

MISNAMED = {"application/form-data": "multipart/form-data"}
"""What the names of media types mean that are not registered."""

IGNORED_HEADERS = ("accept", "content-type", "authorization")


class Recorded:
    """A recorded request in the form that openapi-core reads.

    It looks for an exploded object under the parameter's name (`filter=a=1&b=2`), where the properties are parameters
    themselves (`a=1&b=2`: RFC 6570, section 3.2.8; OpenAPI 3.0.3, "Style Values"). So they are put there.
    """

    def __init__(self, request: dict[str, Any], parameters: list[dict[str, Any]]) -> None:
        parts = urlsplit(request["target"])
        headers = Headers(request["headers"])
        cookies = [pair.strip().partition("=")[::2] for pair in headers.get("cookie", "").split(";") if pair.strip()]
        self.host_url = HOST
        self.path = parts.path
        self.method = request["method"].lower()
        self.body = base64.b64decode(request["body"]) or None
        self.content_type = headers.get("content-type", "")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        names = {parameter["name"] for parameter in parameters}
        for name in (parameter["name"] for parameter in parameters if is_exploded_object(parameter)):
            own = "&".join(f"{key}={quote(value)}" for key, value in pairs if key not in names)
            pairs = [pair for pair in pairs if pair[0] in names] + ([(name, own)] if own else [])
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(pairs),
            header=headers,
            cookie=ImmutableMultiDict(cookies),
        )


def query_parameters(document: dict[str, Any], operation: str) -> list[dict[str, Any]]:
    """Return the parameters in the query of an operation, given as its method and path."""
    method, path = operation.split(" ", 1)
    item = resolved(document, document["paths"][path])
    listed = [*item.get("parameters", []), *item.get(method.lower(), {}).get("parameters", [])]
    found = [resolved(document, parameter) for parameter in listed]
    return [
        {**each, "schema": resolved(document, each.get("schema", {}))} for each in found if each.get("in") == "query"
    ]


def resolved(document: dict[str, Any], value: Any) -> Any:
    """Return what a value refers to in the document."""
    while isinstance(value, dict) and str(value.get("$ref", "")).startswith("#/"):
        target: Any = document
        for part in unquote(value["$ref"][2:]).split("/"):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        value = target
    return value


def is_exploded_object(parameter: dict[str, Any]) -> bool:
    style = parameter.get("style", "form")
    return style == "form" and parameter.get("explode", True) and parameter["schema"].get("type") == "object"


def judged(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the stand-in as its only server, and without what openapi-core judges wrongly.

    It has no credentials to check, and:

    - misses `readOnly` properties in the requests of OpenAPI 3.1;
    - decodes files to bytes, which it does not accept as strings;
    - does not read the numbers and booleans of a multipart form, which are parts of the type text/plain (RFC 7578,
      section 4.4; OpenAPI 3.0.3, "Special Considerations for multipart Content");
    - reads only the declared properties of a form, and misses others that are required;
    - knows no media types that are not registered, and finds none that differs in its charset;
    - takes no value for a list of lists or objects in a parameter, for which no style has a rule (OpenAPI 3.1.1,
      section 4.8.12.4), so these are expected as JSON;
    - reads a deepObject only if `explode` is set, which has no meaning for it (OpenAPI 3.0.4, "Style Examples");
    - misses header parameters that "shall be ignored" (OpenAPI 3.1.1, section 4.8.12.2).
    """
    document = without_misjudged(document, with_readable_parameters(document, document)) | {"servers": [{"url": HOST}]}
    document.pop("security", None)
    for item in document.get("paths", {}).values():
        if isinstance(item, dict):
            item.pop("servers", None)
            for operation in item.values():
                if isinstance(operation, dict):
                    operation.pop("servers", None)
                    operation.pop("security", None)
    return document


def with_readable_parameters(document: dict[str, Any], value: Any) -> Any:
    """Return a copy of a value of the document, with parameters that openapi-core reads as the specification does."""
    if isinstance(value, list):
        return [with_readable_parameters(document, item) for item in value]
    if not isinstance(value, dict):
        return value
    if not {"in", "name"} <= value.keys():
        return {key: with_readable_parameters(document, item) for key, item in value.items()}
    if value["in"] == "header" and str(value["name"]).lower() in IGNORED_HEADERS:
        return value | {"required": False}
    if value.get("style") == "deepObject":
        value = value | {"explode": True}
    schema = resolved(document, value.get("schema"))
    if isinstance(schema, dict) and schema.get("type") == "array":
        items = resolved(document, schema.get("items"))
        if isinstance(items, dict) and (items.get("type") in ("object", "array") or "properties" in items):
            return value | {"schema": schema | {"items": JSON_TEXT}}
    return copy.deepcopy(value)


def readable_name(media_type: str) -> str:
    """Return the name of a media type that openapi-core knows."""
    plain = re.sub(r"\s*;\s*charset=[^;]*", "", media_type, flags=re.IGNORECASE)
    return MISNAMED.get(plain, plain)


def without_misjudged(document: dict[str, Any], value: Any) -> Any:
    """Return a value of the document without `required` for `readOnly` properties, and without the type of files."""
    if isinstance(value, list):
        return [without_misjudged(document, item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {key: without_misjudged(document, item) for key, item in value.items()}
    properties = result.get("properties")
    if isinstance(properties, dict) and isinstance(result.get("required"), list):
        read_only = {key for key, item in properties.items() if isinstance(item, dict) and item.get("readOnly") is True}
        result["required"] = [name for name in result["required"] if name not in read_only]
        if not result["required"]:
            del result["required"]
    if result.get("format") == "binary" and result.get("type") == "string":
        del result["type"]
    if isinstance(result.get("content"), dict):
        content = {readable_name(media_type): media for media_type, media in result["content"].items()}
        result["content"] = content
        for media_type, media in content.items():
            if isinstance(media, dict) and re.match("multipart/|.*urlencoded", media_type) and "schema" in media:
                schema = without_misjudged(document, resolved(document, media["schema"]))
                media["schema"] = with_declared_only(schema)
            if isinstance(media, dict) and media_type.startswith("multipart/") and "schema" in media:
                media["schema"] = with_text_parts(media["schema"])
            if isinstance(media, dict) and not re.search(r"json|form|text|xml", media_type):
                media.pop("schema", None)
    return result


def with_declared_only(schema: Any) -> Any:
    """Return the schema of a form that requires only what it declares."""
    if not isinstance(schema, dict) or "properties" not in schema or not isinstance(schema.get("required"), list):
        return schema
    return schema | {"required": [name for name in schema["required"] if name in schema["properties"]]}


def with_text_parts(schema: Any) -> Any:
    """Return the schema of a multipart form with its numbers and booleans as texts that are such."""
    if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
        return schema
    properties = dict(schema["properties"])
    for name, item in properties.items():
        if isinstance(item, dict) and (pattern := TEXTS.get(str(item.get("type")))):
            properties[name] = {"type": "string", "pattern": pattern}
    return schema | {"properties": properties}


def reason(error: BaseException) -> str:
    """Return the innermost reason of an error, in one line."""
    texts = []
    inner: BaseException | None = error
    while inner is not None:
        texts.append(f"{type(inner).__name__}: {inner}")
        details = getattr(inner, "schema_errors", ())
        texts += [f"{'/'.join(map(str, detail.absolute_path))}: {detail.message}" for detail in details]
        inner = inner.__cause__ or inner.__context__
    return " ".join(re.sub(r"\s+", " ", text)[:200] for text in texts[-2:])


def is_returned(call: dict[str, Any]) -> bool:
    """Return whether the client got the API's answer, as structured content or as text."""
    answer = call["answer"]
    if call["failed"]:
        return False
    if "content" in answer:
        expected = json.dumps(answer["content"], sort_keys=True)
        values = [call["result"], (call["result"] or {}).get("result")]
        with suppress(ValueError):
            values.append(json.loads(call["text"]))
        return expected in [json.dumps(value, sort_keys=True) for value in values]
    if "text" in answer and answer.get("type", "").endswith(("jsonl", "ndjson", "json-seq")):
        return True
    return answer.get("text", "") in json.dumps([call["result"], call["text"]], ensure_ascii=False)


def main() -> None:
    warnings.simplefilter("ignore")
    source, *targets = sys.argv[1:]
    document = json.loads(Path(source).read_text("utf-8"))["document"]
    openapi = OpenAPI.from_dict(judged(document), config=Config(spec_validator_cls=None))
    for target in targets:
        record = json.loads(Path(target).read_text("utf-8"))
        rows: dict[str, Any] = {"none": {}, "several": {}, "wrong": {}, "lost": {}, "unjudged": {}}
        for call in record["calls"]:
            name, requests = call["operation"], call["requests"]
            if not requests:
                rows["none"][name] = call["text"][:300]
                continue
            if len(requests) > 1:
                rows["several"][name] = len(requests)
            try:
                openapi.validate_request(Recorded(requests[0], query_parameters(document, name)))  # type: ignore[arg-type]
            except SecurityValidationError:
                pass
            except OpenAPIError as error:
                rows["wrong"][name] = reason(error)
            except Exception as error:  # the library itself
                rows["unjudged"][name] = reason(error)
            if not is_returned(call):
                rows["lost"][name] = call["text"][:300]
        summary = {key: record.get(key) for key in ("tools", "bytes", "seconds", "error", "version")}
        print(json.dumps(summary | {"calls": len(record["calls"])} | rows))


if __name__ == "__main__":
    main()
