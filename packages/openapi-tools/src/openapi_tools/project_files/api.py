"""Requests of the tools to the API: values in the styles of OpenAPI, and responses validated by their models.

Generated with the tools from the API's OpenAPI document. The file is yours, as the tools are.
"""

import base64
import binascii
import inspect
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import httpx2
import pydantic_core
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from ..production import upstream

Result = TypeVar("Result")
Pair = tuple[str, str]
"""Name and value of a part of a query or form, both percent-encoded."""

RESERVED = ":/?[]@!$'()*,;"
"""What a parameter with allowReserved sends as it is: the reserved characters (RFC 3986, section 2.2) except `#&+=`,
which would end the value or change it."""

READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=True)
CHANGES = ToolAnnotations(read_only_hint=False, idempotent_hint=False, open_world_hint=True)
"""What a tool does: GET and HEAD read, PUT and DELETE replace, other methods may change anything."""


class ApiModel(BaseModel):
    """Base of the models: fields have Python's names here, the API's in JSON, and only those that are set appear."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True, protected_namespaces=())

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        serialized: dict[str, Any] = serialize(self)
        for name, field in type(self).model_fields.items():
            if name not in self.model_fields_set:
                serialized.pop(field.alias or name, None)
        return serialized


class Done(ApiModel):
    """The result of a request that succeeded without a body in its response."""

    status: int


class Binary(ApiModel):
    """A response that is not text."""

    media_type: str
    size: int
    """In bytes."""
    base64: str


def add(server: MCPServer[Any], tool: Callable[..., Any], title: str, annotations: ToolAnnotations) -> None:
    """Add `tool` to `server`, with its docstring as the description."""
    description = inspect.cleandoc(tool.__doc__ or "")
    server.tool(title=title, description=description, annotations=annotations)(tool)


# --- The request -------------------------------------------------------------------------------------------


class Body(NamedTuple):
    content: bytes
    media_type: str


async def call(
    ctx: Context,
    result: Callable[[httpx2.Response], Result],
    method: str,
    path: str,
    *,
    path_params: Mapping[str, str] | None = None,
    query: Iterable[Pair] = (),
    headers: Mapping[str, object] | None = None,
    cookies: Mapping[str, object] | None = None,
    body: Body | None = None,
    accept: str | None = None,
) -> Result:
    """Send the request through the server's upstream client and return `result` of the response.

    Raises:
        UpstreamError: There is no response, or one with a status of 400 or more.
        ToolError: A value cannot be sent, or the response does not match the document.
    """
    sent_headers = {name: header_value(name, value) for name, value in (headers or {}).items() if value is not None}
    sent_cookies = {name: value for name, value in (cookies or {}).items() if value is not None}
    if sent_cookies:
        pairs = (f"{name}={quote(wire(value), safe='')}" for name, value in sent_cookies.items())
        sent_headers["Cookie"] = "; ".join(pairs)
    if accept is not None:
        sent_headers["Accept"] = accept
    if body is not None:
        sent_headers["Content-Type"] = body.media_type
    idempotency_header = next((name for name in sent_headers if name.lower() == "idempotency-key"), None)
    encoded = "&".join(f"{name}={value}" if value or name else "" for name, value in query)
    if encoded:
        path = f"{path}{'&' if '?' in path else '?'}{encoded}"
    return result(
        await upstream(ctx).request(
            method,
            path,
            path_params=path_params or {},
            headers=sent_headers,
            content=None if body is None else body.content,
            idempotency_key=sent_headers.pop(idempotency_header) if idempotency_header else None,
        )
    )


def to_json_value(value: Any) -> Any:
    """Return `value` as JSON has it, models with the API's names."""
    return pydantic_core.to_jsonable_python(value, by_alias=True)


def wire(value: Any) -> str:
    """Return one value as text, a list or object in OpenAPI's style simple."""
    value = to_json_value(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return ",".join(wire(item) for item in value)
    if isinstance(value, dict):
        return ",".join(f"{name},{wire(item)}" for name, item in value.items())
    return "" if value is None else str(value)


def header_value(name: str, value: object) -> str:
    """Return `value` as a header's.

    Raises:
        ToolError: It has characters that a header cannot have.
    """
    text = wire(value)
    if not (text.isascii() and text.isprintable()):
        raise ToolError(f"{name} must be printable ASCII, since it is sent in a header")
    return text


def form(name: str, value: Any, *, explode: bool = True, reserved: bool = False, separator: str = ",") -> list[Pair]:
    """Return a parameter of style form, or with %20 or %7C as its `separator` spaceDelimited or pipeDelimited."""
    value = to_json_value(value)

    def encode(item: Any) -> str:
        return quote(wire(item), safe=RESERVED if reserved else "")

    if value is None:
        return []
    if isinstance(value, dict) and explode:
        return [(quote(key, safe=""), encode(item)) for key, item in value.items()]
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list) and explode:
        return [(quote(name, safe=""), encode(item)) for item in value]
    if isinstance(value, list):
        return [(quote(name, safe=""), separator.join(map(encode, value)))] if value else []
    return [(quote(name, safe=""), encode(value))]


def deep(name: str, value: Any) -> list[Pair]:
    """Return a parameter of style deepObject, `name[key]=value`; nested objects add a key, lists an index."""
    return [(quote(key, safe="[]"), quote(text, safe="")) for key, text in _deep_pairs(name, to_json_value(value))]


def _deep_pairs(name: str, value: Any) -> list[Pair]:
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in _deep_pairs(f"{name}[{key}]", item)]
    if isinstance(value, list):
        return [pair for index, item in enumerate(value) for pair in _deep_pairs(f"{name}[{index}]", item)]
    return [] if value is None else [(name, wire(value))]


def in_json(name: str, value: Any) -> list[Pair]:
    """Return a parameter whose value is JSON."""
    return [] if value is None else [(quote(name, safe=""), quote(_json(value), safe=""))]


def _json(value: Any) -> str:
    return json.dumps(to_json_value(value), ensure_ascii=False, separators=(",", ":"))


def json_body(value: Any, media_type: str = "application/json") -> Body | None:
    return None if value is None else Body(_json(value).encode(), media_type)


def text_body(value: str | None, media_type: str) -> Body | None:
    return None if value is None else Body(value.encode(), f"{media_type}; charset=utf-8")


def binary_body(value: str | None, media_type: str) -> Body | None:
    """Return a body that the model gives in base64.

    Raises:
        ToolError: It is not base64.
    """
    return None if value is None else Body(_from_base64("body", value), media_type)


def form_body(value: Any, styles: Mapping[str, str] | None = None) -> Body | None:
    """Return a body as HTML forms send it.

    `styles` gives properties a style: `form`, `flat` (not exploded), `deep` (deepObject) or `json`. By default objects
    are JSON and other values style form (OpenAPI 3.0.4, section 4.8.15).
    """
    if value is None:
        return None
    pairs: list[Pair] = []
    for name, item in to_json_value(value).items():
        style = (styles or {}).get(name) or ("json" if _contains_object(item) else "form")
        if style == "deep":
            pairs += deep(name, item)
        elif style == "json":
            pairs += in_json(name, item)
        else:
            pairs += form(name, item, explode=style == "form")
    encoded = "&".join(f"{name}={text}" for name, text in pairs)
    return Body(encoded.encode(), "application/x-www-form-urlencoded")


def multipart_body(value: Any, files: Mapping[str, str] | None = None) -> Body | None:
    """Return a body of several parts (RFC 7578); `files` gives the media types of those that are files, in base64.

    Raises:
        ToolError: A file is not base64.
    """
    if value is None:
        return None
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, item in to_json_value(value).items():
        for part in item if isinstance(item, list) and not any(map(_contains_object, item)) else [item]:
            label = name.translate({ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"})
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{label}"'
            if files is not None and name in files:
                head += f'; filename="{label}"\r\nContent-Type: {files[name]}'
                content = _from_base64(name, str(part))
            elif _contains_object(part):
                head += "\r\nContent-Type: application/json"
                content = _json(part).encode()
            else:
                content = wire(part).encode()
            parts.append(head.encode() + b"\r\n\r\n" + content + b"\r\n")
    return Body(b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")


def _contains_object(value: Any) -> bool:
    """Return whether the value is an object, or a list with one in it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_contains_object, value)))


def _from_base64(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ToolError(f"{name} must be base64") from None


# --- The response ------------------------------------------------------------------------------------------


def as_json(validate: Callable[[Any], Result]) -> Callable[[httpx2.Response], Result]:
    """Return a function that reads the body as JSON and passes it to `validate`."""

    def read(response: httpx2.Response) -> Result:
        try:
            content = response.json()
        except (ValueError, RecursionError):
            raise _invalid_response(response, "its body is not JSON") from None
        try:
            return validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise _invalid_response(response, f"{place or 'its body'}: {first['msg']}") from None

    return read


def as_json_or_done(validate: Callable[[Any], Result]) -> Callable[[httpx2.Response], Result | Done]:
    """Return a function like that of `as_json`, for responses that may have no body."""
    read = as_json(validate)
    return lambda response: read(response) if response.content else as_done(response)


def as_text(response: httpx2.Response) -> str:
    return response.text


def as_binary(response: httpx2.Response) -> Binary:
    media_type = response.headers.get("Content-Type", "application/octet-stream")
    encoded = base64.b64encode(response.content).decode()
    return Binary(media_type=media_type, size=len(response.content), base64=encoded)


def as_done(response: httpx2.Response) -> Done:
    return Done(status=response.status_code)


def _invalid_response(response: httpx2.Response, problem: str) -> ToolError:
    is_read = response.request.method in ("GET", "HEAD", "OPTIONS")
    executed = "" if is_read else " The request itself was carried out."
    return ToolError(
        f"The API answered {response.status_code}, but its response does not match its document: {problem}.{executed}"
    )
