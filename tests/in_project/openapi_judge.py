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
from urllib.parse import parse_qsl, urlsplit

from openapi_core import Config, OpenAPI
from openapi_core.datatypes import RequestParameters
from openapi_core.exceptions import OpenAPIError
from openapi_core.validation.request.exceptions import SecurityValidationError
from werkzeug.datastructures import Headers, ImmutableMultiDict

HOST = "http://api.test"


class Recorded:
    """A recorded request in the form that openapi-core reads."""

    def __init__(self, request: dict[str, Any]) -> None:
        parts = urlsplit(request["target"])
        headers = Headers(request["headers"])
        cookies = [pair.strip().partition("=")[::2] for pair in headers.get("cookie", "").split(";") if pair.strip()]
        self.host_url = HOST
        self.path = parts.path
        self.method = request["method"].lower()
        self.body = base64.b64decode(request["body"]) or None
        self.content_type = headers.get("content-type", "")
        self.parameters = RequestParameters(
            query=ImmutableMultiDict(parse_qsl(parts.query, keep_blank_values=True)),
            header=headers,
            cookie=ImmutableMultiDict(cookies),
        )


def judged(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the stand-in as its only server, and without what openapi-core judges wrongly.

    It has no credentials to check; it misses `readOnly` properties in the requests of OpenAPI 3.1; and it decodes files
    to bytes, which it does not accept as strings.
    """
    document = without_misjudged(copy.deepcopy(document)) | {"servers": [{"url": HOST}]}
    document.pop("security", None)
    for item in document.get("paths", {}).values():
        if isinstance(item, dict):
            item.pop("servers", None)
            for operation in item.values():
                if isinstance(operation, dict):
                    operation.pop("servers", None)
                    operation.pop("security", None)
    return document


def without_misjudged(value: Any) -> Any:
    """Return a value of the document without `required` for `readOnly` properties, and without the type of files."""
    if isinstance(value, list):
        return [without_misjudged(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {key: without_misjudged(item) for key, item in value.items()}
    properties = result.get("properties")
    if isinstance(properties, dict) and isinstance(result.get("required"), list):
        read_only = {key for key, item in properties.items() if isinstance(item, dict) and item.get("readOnly") is True}
        result["required"] = [name for name in result["required"] if name not in read_only]
        if not result["required"]:
            del result["required"]
    if result.get("format") == "binary" and result.get("type") == "string":
        del result["type"]
    if isinstance(content := result.get("content"), dict):
        for media_type, media in content.items():
            if isinstance(media, dict) and not re.search(r"json|form|text|xml", media_type):
                media.pop("schema", None)
    return result


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
                openapi.validate_request(Recorded(requests[0]))  # type: ignore[arg-type]
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
