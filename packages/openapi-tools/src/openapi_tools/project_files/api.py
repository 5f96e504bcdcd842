"""How the tools here speak to the API: values onto the wire by OpenAPI's styles, answers checked against their models.

Seeded with the tools from the API's OpenAPI document, and yours as they are.
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
"""Name and value of a part of a query or form; neither is quoted yet, but for what `raw` says."""

RESERVED = ":/?#[]@!$&'()*+,;="
"""What a parameter with allowReserved sends as it is (RFC 3986, 2.2), but for what would end it."""


READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=True)
CHANGES = ToolAnnotations(read_only_hint=False, idempotent_hint=False, open_world_hint=True)
"""What a tool does, by its method: GET and HEAD read, PUT and DELETE replace, the others change in ways not said."""


class ApiModel(BaseModel):
    """Fields have Python's names here and the API's on the wire; what is not set is not sent, nor shown."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True, protected_namespaces=())

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        serialized: dict[str, Any] = serialize(self)
        for name, field in type(self).model_fields.items():
            if name not in self.model_fields_set:
                serialized.pop(field.alias or name, None)
        return serialized


class Done(ApiModel):
    """The API has done it, and has nothing to say."""

    status: int


class Binary(ApiModel):
    """An answer that is no text."""

    media_type: str
    size: int
    """In bytes."""
    base64: str


def add(server: MCPServer[Any], tool: Callable[..., Any], title: str, annotations: ToolAnnotations) -> None:
    """Adds `tool` to `server`, described by its docstring."""
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
    """Sends the request through the server's upstream client, and makes of the answer what `result` makes of it.

    Raises:
        UpstreamError: there is no answer, or one with a status of 400 or more.
        ToolError: a value cannot be sent, or the answer is not as the document says.
    """
    sent = {name: header_value(name, value) for name, value in (headers or {}).items() if value is not None}
    given = {name: value for name, value in (cookies or {}).items() if value is not None}
    if given:
        sent["Cookie"] = "; ".join(f"{name}={quote(wire(value), safe='')}" for name, value in given.items())
    if accept is not None:
        sent["Accept"] = accept
    if body is not None:
        sent["Content-Type"] = body.media_type
    key = next((name for name in sent if name.lower() == "idempotency-key"), None)
    encoded = "&".join(f"{name}={value}" if value or name else "" for name, value in query)
    if encoded:
        path = f"{path}{'&' if '?' in path else '?'}{encoded}"
    return result(
        await upstream(ctx).request(
            method,
            path,
            path_params=path_params or {},
            headers=sent,
            content=None if body is None else body.content,
            idempotency_key=sent.pop(key) if key else None,
        )
    )


def plain(value: Any) -> Any:
    """`value` as JSON has it, with the API's names."""
    return pydantic_core.to_jsonable_python(value, by_alias=True)


def wire(value: Any) -> str:
    """One value as text; a list or an object as OpenAPI's style "simple" has it."""
    value = plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, list):
        return ",".join(wire(each) for each in value)
    if isinstance(value, dict):
        return ",".join(f"{name},{wire(each)}" for name, each in value.items())
    return "" if value is None else str(value)


def header_value(name: str, value: object) -> str:
    """`value` as a header's.

    Raises:
        ToolError: it has characters that a header cannot have.
    """
    text = wire(value)
    if not (text.isascii() and text.isprintable()):
        raise ToolError(f"{name} must be printable ASCII, for it is sent in a header")
    return text


def form(name: str, value: Any, *, explode: bool = True, reserved: bool = False, separator: str = ",") -> list[Pair]:
    """A parameter of style form; another `separator` makes it spaceDelimited (%20) or pipeDelimited (%7C)."""
    value = plain(value)
    safe = RESERVED.translate(str.maketrans("", "", "#&+=")) if reserved else ""

    def quoted(each: Any) -> str:
        return quote(wire(each), safe=safe)

    if value is None:
        return []
    if isinstance(value, dict) and explode:
        return [(quote(key, safe=""), quoted(each)) for key, each in value.items()]
    if isinstance(value, dict):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list) and explode:
        return [(quote(name, safe=""), quoted(each)) for each in value]
    if isinstance(value, list):
        return [(quote(name, safe=""), separator.join(map(quoted, value)))] if value else []
    return [(quote(name, safe=""), quoted(value))]


def deep(name: str, value: Any) -> list[Pair]:
    """A parameter of style deepObject, `name[key]=value`; what is deeper goes on the same way, lists by index."""
    return [(quote(key, safe="[]"), quote(text, safe="")) for key, text in _deep(name, plain(value))]


def _deep(name: str, value: Any) -> list[Pair]:
    if isinstance(value, dict):
        return [pair for key, each in value.items() for pair in _deep(f"{name}[{key}]", each)]
    if isinstance(value, list):
        return [pair for index, each in enumerate(value) for pair in _deep(f"{name}[{index}]", each)]
    return [] if value is None else [(name, wire(value))]


def in_json(name: str, value: Any) -> list[Pair]:
    """A parameter whose value is JSON."""
    return [] if value is None else [(quote(name, safe=""), quote(_json(value), safe=""))]


def _json(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def json_body(value: Any, media_type: str = "application/json") -> Body | None:
    return None if value is None else Body(_json(value).encode(), media_type)


def text_body(value: str | None, media_type: str) -> Body | None:
    return None if value is None else Body(value.encode(), f"{media_type}; charset=utf-8")


def binary_body(value: str | None, media_type: str) -> Body | None:
    """A body that the model gives as base64.

    Raises:
        ToolError: it is no base64.
    """
    return None if value is None else Body(_decoded("body", value), media_type)


def form_body(value: Any, styles: Mapping[str, str] | None = None) -> Body | None:
    """A body as HTML forms send it; `styles` says which properties are deepObject, unexploded or JSON.

    What is not named there is style form, and an object JSON (OpenAPI 3.0.4, 4.8.15).
    """
    if value is None:
        return None
    pairs: list[Pair] = []
    for name, each in plain(value).items():
        style = (styles or {}).get(name) or ("json" if _is_structured(each) else "form")
        if style == "deep":
            pairs += deep(name, each)
        elif style == "json":
            pairs += in_json(name, each)
        else:
            pairs += form(name, each, explode=style == "form")
    encoded = "&".join(f"{name}={text}" for name, text in pairs)
    return Body(encoded.encode(), "application/x-www-form-urlencoded")


def multipart_body(value: Any, files: Mapping[str, str] | None = None) -> Body | None:
    """A body of parts (RFC 7578); `files` gives the media type of each part that the model writes as base64.

    Raises:
        ToolError: such a part is no base64.
    """
    if value is None:
        return None
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, each in plain(value).items():
        for part in each if isinstance(each, list) and not any(map(_is_structured, each)) else [each]:
            label = name.translate({ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"})
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{label}"'
            if files is not None and name in files:
                head += f'; filename="{label}"\r\nContent-Type: {files[name]}'
                content = _decoded(name, str(part))
            elif _is_structured(part):
                head += "\r\nContent-Type: application/json"
                content = _json(part).encode()
            else:
                content = wire(part).encode()
            parts.append(head.encode() + b"\r\n\r\n" + content + b"\r\n")
    return Body(b"".join(parts) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}")


def _is_structured(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_is_structured, value)))


def _decoded(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ToolError(f"{name} must be base64") from None


# --- The answer --------------------------------------------------------------------------------------------


def as_json(validate: Callable[[Any], Result]) -> Callable[[httpx2.Response], Result]:
    """Reads the body as JSON and as what `validate` makes of it."""

    def read(response: httpx2.Response) -> Result:
        try:
            content = response.json()
        except (ValueError, RecursionError):
            raise _unexpected(response, "its body is no JSON") from None
        try:
            return validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise _unexpected(response, f"{place or 'its body'}: {first['msg']}") from None

    return read


def as_json_or_done(validate: Callable[[Any], Result]) -> Callable[[httpx2.Response], Result | Done]:
    """As `as_json`, where the answer may be empty as well."""
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


def _unexpected(response: httpx2.Response, problem: str) -> ToolError:
    read = response.request.method in ("GET", "HEAD", "OPTIONS")
    changed = "" if read else " What was asked for is done all the same."
    return ToolError(f"The API answered {response.status_code}, but not as its document says: {problem}.{changed}")
