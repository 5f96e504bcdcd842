"""Run-time part of the tools that were generated from an OpenAPI document: arguments, requests, answers and errors.

The generated modules in `tools/` import everything that they need from here. A tool returns an `Answer`. The model gets
it by its content type: JSON, text, a file in base64, or only the status. An answer that does not match the document is
passed on and reported to the operator (log, `mcp_openapi_mismatches_total`), or is an error where
the tool was registered with `strict=True`.
"""

from __future__ import annotations

import base64
import inspect
import json
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args
from urllib.parse import quote

import httpx2
import structlog
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase
from mcp_types import AudioContent, CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo

from . import upstream
from .inbound.results import ToolMetadata
from .openapi_schema import Described, NotNull, UndescribedTypeError, model_schema, type_schema
from .registry import registry_of
from .sdk import ProductionServer
from .serve.tool_loader import own_name
from .upstream.client import parse_json
from .upstream.errors import UpstreamStatusError

T = TypeVar("T")
Pair = tuple[str, str]
"""Name and value of a part of a query or form, both percent-encoded."""

RESERVED = ":/?[]@!$'()*,;"
"""What a parameter with allowReserved sends as it is: the reserved characters (RFC 3986, section 2.2) except `#&+=`,
which would end the value or change it."""

MAX_ERROR_DETAIL = 1500
"""Characters of the API's own error that the model gets."""

NOTED_HEADERS = ("Location", "Link", "Retry-After")
"""Headers of an answer that are added to its text: where the new resource, the next page or the result is."""

READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)
REPLACES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=True)
CHANGES = ToolAnnotations(read_only_hint=False, idempotent_hint=False, open_world_hint=True)
"""What a tool does: GET, HEAD and QUERY read, PUT and DELETE replace, other methods may change anything."""

log = structlog.stdlib.get_logger(__name__)


# --- Types ---------------------------------------------------------------------------------------------------


Omittable = Annotated[T | None, NotNull()]
"""A value that may be absent, but not null: `None` is the default in Python, and is never sent."""

Number = int | float
"""A number as JSON has it: 5 stays 5, and integers of any size are exact."""


class ApiModel(Described):
    """Base of the models: fields have Python's names here, and the API's in JSON."""

    model_config = ConfigDict(extra="allow", serialize_by_alias=True, protected_namespaces=(), defer_build=True)


class UploadFile(ApiModel):
    """A file to upload."""

    base64: str
    name: Omittable[str] = None
    media_type: Omittable[str] = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept the content alone."""
        return {"base64": value} if isinstance(value, str) else value


class Done(ApiModel):
    """The answer to a request that succeeded, where it has no body."""

    status: int


class Binary(ApiModel):
    """An answer that is neither JSON nor text."""

    media_type: str
    size: int
    """In bytes."""
    base64: str


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The API's answer to a request; `T` is the type that the document gives it."""

    response: httpx2.Response

    @cached_property
    def content(self) -> Any:
        """The body: a JSON value, a text, a `Binary`, or `Done` where there is none."""
        response = self.response
        if not response.content:
            return Done(status=response.status_code)
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if re.search(r"(^|[/+.-])(jsonl|x?-?ndjson|jsonlines|json-seq)$", media_type):
            lines = [line.strip("\x1e \r\t") for line in response.text.split("\n")]
            values = [_parsed(response, line) for line in lines if line]
            return response.text if _INVALID in values else values
        if not media_type or re.search(r"[/+.-]json$", media_type):
            value = _parsed(response)
            if value is not _INVALID:
                return value
        if media_type.startswith("text/") or re.search(
            r"[/+.-](json|xml|yaml|javascript|csv|graphql|sdp)$", media_type
        ):
            return response.text
        if not media_type:
            try:
                return response.content.decode()
            except UnicodeDecodeError:
                media_type = "application/octet-stream"
        encoded = base64.b64encode(response.content).decode()
        return Binary(media_type=media_type, size=len(response.content), base64=encoded)


_INVALID = object()


def _parsed(response: httpx2.Response, text: str | None = None) -> Any:
    """Return the value of JSON, or `_INVALID`."""
    try:
        return parse_json(response, text)
    except (ValueError, RecursionError):
        return _INVALID


# --- Registration --------------------------------------------------------------------------------------------


class AnswerMetadata(ToolMetadata):
    """The arguments of a tool, and its answer."""

    strict: bool
    """Whether an answer that does not match the document is an error."""


def add(
    server: MCPServer[Any],
    tool: Callable[..., Awaitable[Answer[Any]]],
    title: str,
    annotations: ToolAnnotations,
    *,
    name: str | None = None,
    strict: bool = False,
) -> None:
    """Add `tool` to `server`, with its docstring as the description.

    Its arguments have the names of the API, which are the fields' aliases, and an unknown argument is rejected. The
    published schemas have no titles, and null only where the API has it.

    Args:
        server: A server made by `create_server`.
        tool: A function whose `Answer` has the type that is published.
        title: The tool's title.
        annotations: The tool's annotations (read-only, destructive, idempotent, open world).
        name: The tool's name, where it is not the function's.
        strict: Whether an answer that does not fit its type is an error.

    Raises:
        TypeError: the server was not made by `create_server`.
        StartError: the function cannot be a tool.
    """
    registry = registry_of(server)
    if not isinstance(server, ProductionServer):
        raise TypeError("this server has no production layer: make it with create_server()")
    tool_name = name or own_name(tool)

    def make() -> Tool:
        # Not by the SDK, which would build the validators of all arguments now.
        signature = inspect.signature(tool, eval_str=True)
        (answer_type,) = get_args(signature.return_annotation)
        _, *given = signature.parameters.values()
        adapter = _LazyAdapter(answer_type)
        model = _arguments_model(tool_name, given)
        arguments_of = zip(model.model_fields.items(), given, strict=True)
        parameters = {field.alias or field_name: parameter.name for (field_name, field), parameter in arguments_of}
        schema, is_wrapped = _output_schema(adapter, strict)
        mismatch = registry.meter.counter(
            "mcp_openapi_mismatches_total", "Answers of the API that do not fit its OpenAPI document.", ("tool",)
        )(tool_name)

        @wraps(tool)
        async def run(ctx: Context, **arguments: Any) -> CallToolResult:
            answer = await tool(ctx, **{parameters[argument]: value for argument, value in arguments.items()})
            if problem := adapter.problem_with(answer):
                if strict:
                    raise _invalid_answer(answer.response, problem)
                mismatch.inc()
                log.warning("the API's answer does not fit its OpenAPI document", problem=problem)
            return _result(answer, is_wrapped)

        return Tool(
            fn=run,
            name=tool_name,
            title=title,
            description=inspect.cleandoc(tool.__doc__ or ""),
            parameters=_described(partial(model_schema, model), model.model_json_schema),
            fn_metadata=AnswerMetadata(arg_model=model, output_schema=schema, strict=strict),
            is_async=True,
            context_kwarg="ctx",
            annotations=annotations,
        )

    server.add_tool(tool, tool_name, make=make, annotations=annotations)


def _arguments_model(name: str, parameters: Iterable[inspect.Parameter]) -> type[ArgModelBase]:
    """Return a class of a tool's arguments, which accepts no others; its validator is built at the first call."""
    fields: dict[str, Any] = {}
    for parameter in parameters:
        field, annotation = parameter.name, parameter.annotation
        if hasattr(BaseModel, field):  # pydantic warns of a field with the name of a method
            alias = FieldInfo.from_annotation(annotation).alias or field
            field, annotation = f"field_{field}", Annotated[annotation, Field(alias=alias)]
        fields[field] = annotation if parameter.default is parameter.empty else (annotation, parameter.default)
    configuration = {"extra": "forbid", "defer_build": True}
    return create_model(f"{name}Arguments", __base__=ArgModelBase, __cls_kwargs__=configuration, **fields)


def _described(describe: Callable[[], dict[str, Any]], ask_pydantic: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a JSON schema made by `describe`, or for types that it does not know by pydantic."""
    try:
        return describe()
    except UndescribedTypeError:
        schema: dict[str, Any] = compact(ask_pydantic())
        return schema


class _LazyAdapter:
    """Validates answers; made when the first one comes, since a large API has many."""

    def __init__(self, type_: Any) -> None:
        self.type = type_

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.type)

    def problem_with(self, answer: Answer[Any]) -> str:
        """Return how an answer differs from its type, "" where it fits."""
        content = answer.content
        try:
            self.adapter.validate_python(content.model_dump() if isinstance(content, BaseModel) else content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            return f"{'.'.join(map(str, first['loc'])) or 'its body'}: {first['msg']}"[:300]
        return ""


def compact(schema: Any) -> Any:
    """Return a JSON schema without redundant members: titles, `default: null`, and `additionalProperties: true`."""
    if isinstance(schema, list):
        return [compact(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            result[key] = {name: compact(item) for name, item in value.items()}
        elif key in ("enum", "const", "examples", "default"):
            result |= {} if value is None else {key: value}
        elif key != "title" and not (key == "additionalProperties" and value is True):
            result[key] = compact(value)
    options = result.get("anyOf", [])
    if {"type": "number"} in options and {"type": "integer"} in options:
        options.remove({"type": "integer"})  # an integer is a number
    return (
        {**options[0], **{key: value for key, value in result.items() if key != "anyOf"}}
        if len(options) == 1
        else result
    )


def _output_schema(adapter: _LazyAdapter, strict: bool) -> tuple[dict[str, Any] | None, bool]:
    """Return the schema of a tool's structured content, and whether that has the answer as its `result`.

    A client may refuse content that does not match it. So it allows any object, unless the tool is strict.
    """
    schema = _described(partial(type_schema, adapter.type), lambda: adapter.adapter.json_schema())
    if not schema:
        return None, False
    definitions = schema.pop("$defs", {})
    is_wrapped = not _is_object(schema, definitions)
    if is_wrapped:
        schema = {"type": "object", "properties": {"result": schema}, "required": ["result"]}
    published = schema if strict else {"anyOf": [schema, {}]}
    return {"type": "object", **published, **({"$defs": definitions} if definitions else {})}, is_wrapped


def _is_object(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    """Return whether a schema allows objects only."""
    if "$ref" in schema:
        return _is_object(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in schema:
        return all(_is_object(option, definitions) for option in schema["anyOf"])
    return schema.get("type") == "object"


def _result(answer: Answer[Any], is_wrapped: bool) -> CallToolResult:
    """Return the result for the model."""
    content, response = answer.content, answer.response
    value = content.model_dump() if isinstance(content, BaseModel) else content
    blocks: list[ContentBlock] = []
    if isinstance(content, Binary) and content.media_type.startswith("image/"):
        blocks.append(ImageContent(type="image", data=content.base64, mime_type=content.media_type))
    elif isinstance(content, Binary) and content.media_type.startswith("audio/"):
        blocks.append(AudioContent(type="audio", data=content.base64, mime_type=content.media_type))
    else:
        blocks.append(TextContent(type="text", text=value if isinstance(value, str) else to_json(value)))
    noted = [f"{name}: {response.headers[name]}" for name in NOTED_HEADERS if name in response.headers]
    if noted:
        blocks.append(TextContent(type="text", text="\n".join(noted)))
    is_object = isinstance(value, dict) and not (is_wrapped and not isinstance(content, BaseModel))
    return CallToolResult(content=blocks, structured_content=value if is_object else {"result": value})


def _invalid_answer(response: httpx2.Response, problem: str) -> ToolError:
    is_read = response.request.method in ("GET", "HEAD", "OPTIONS", "QUERY")
    executed = "" if is_read else " The request itself was carried out."
    return ToolError(
        f"The API answered {response.status_code}, but its response does not match its document: {problem}.{executed}"
    )


# --- The request ---------------------------------------------------------------------------------------------


class Body(NamedTuple):
    content: bytes
    media_type: str


class PathValue(NamedTuple):
    """The value of a path parameter: pairs of a fixed text and a value after it, of which only the latter is quoted."""

    parts: tuple[tuple[str, str], ...]


async def call(
    ctx: Context,
    method: str,
    path: str,
    *,
    path_params: Mapping[str, object] | None = None,
    query: Iterable[Pair] = (),
    headers: Mapping[str, object] | None = None,
    cookies: Mapping[str, object] | None = None,
    body: Body | None = None,
    accept: str | None = None,
) -> Answer[Any]:
    """Send a request through the server's upstream client and return the answer.

    Raises:
        UpstreamError: there is no response, or one with a status of 400 or more; the text has the API's own error.
        ToolError: a value cannot be sent.
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
    path, values = _expanded(path, path_params or {})
    encoded = "&".join(f"{name}={value}" if value or name else "" for name, value in query)
    if encoded:
        path = f"{path}{'&' if '?' in path else '?'}{encoded}"
    try:
        response = await upstream(ctx).request(
            method,
            path,
            path_params=values,
            headers=sent_headers,
            content=None if body is None else body.content,
            idempotency_key=sent_headers.pop(idempotency_header) if idempotency_header else None,
        )
    except UpstreamStatusError as error:
        _explain(error, ctx)
        raise
    return Answer(response)


def to_json_value(value: Any) -> Any:
    """Return `value` as JSON has it: models with the API's names, and without what is not set."""
    return _ANY.dump_python(value, mode="json", by_alias=True, exclude_unset=True)


_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def to_json(value: Any) -> str:
    return json.dumps(to_json_value(value), ensure_ascii=False, separators=(",", ":"))


def wire(value: Any) -> str:
    """Return one value as text, a list or object in OpenAPI's style simple."""
    value = to_json_value(value)
    if isinstance(value, list):
        return ",".join(map(part, value))
    if isinstance(value, dict):
        return ",".join(f"{name},{part(item)}" for name, item in value.items())
    return part(value)


def part(value: Any) -> str:
    """Return a single value, or a part of a list or object, as text; one that has parts itself as JSON.

    No style of OpenAPI has a form for parts of parts: it is undefined (OpenAPI 3.1.1, section 4.8.12.4).
    """
    if isinstance(value, list | dict):
        return to_json(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return "" if value is None else str(value)


def header_value(name: str, value: object) -> str:
    """Return `value` as a header's.

    Raises:
        ToolError: it has characters that a header cannot have, or spaces around it.
    """
    text = wire(value)
    if not (text.isascii() and text.isprintable()):
        raise ToolError(f"{name} must be printable ASCII, since it is sent in a header")
    if text != text.strip():
        raise ToolError(f"{name} must not begin or end with a space, since it is sent in a header")
    return text


def json_text(value: Any) -> str | None:
    """Return the value of a header or cookie in JSON, with ASCII only; None stays absent."""
    return None if value is None else json.dumps(to_json_value(value), separators=(",", ":"))


def exploded(value: Any) -> Any:
    """Return an object as a header of style simple with explode, `a=1,b=2`, and other values as they are."""
    value = to_json_value(value)
    if not isinstance(value, dict):
        return value
    return ",".join(f"{name}={part(item)}" for name, item in value.items() if item is not None)


# --- Path (RFC 6570) -----------------------------------------------------------------------------------------


def simple(value: Any, *, explode: bool = False) -> PathValue:
    """Return a path parameter of style simple: `a,b`."""
    return _path_value(value, explode, "", ",")


def label(value: Any, *, explode: bool = False) -> PathValue:
    """Return a path parameter of style label: `.a,b`, exploded `.a.b`."""
    return _path_value(value, explode, ".", "." if explode else ",")


def matrix(name: str, value: Any, *, explode: bool = False) -> PathValue:
    """Return a path parameter of style matrix: `;name=a,b`, exploded `;name=a;name=b`."""
    prefix = f";{quote(name, safe='')}="
    value = to_json_value(value)
    if explode and isinstance(value, dict):
        return _path_value(value, explode, ";", ";")
    return _path_value(value, explode, prefix, prefix if explode else ",")


def _path_value(value: Any, explode: bool, prefix: str, separator: str) -> PathValue:
    value = to_json_value(value)
    if isinstance(value, dict):
        between = "=" if explode else ","
        items = [(name, between, part(item)) for name, item in value.items() if item is not None]
        pairs = [pair for name, between, item in items for pair in ((separator, name), (between, item))]
    elif isinstance(value, list):
        pairs = [(separator, part(item)) for item in value if item is not None]
    else:
        pairs = [(separator, part(value))]
    return PathValue(
        tuple([(prefix, text) if not index else (before, text) for index, (before, text) in enumerate(pairs)])
    )


def _expanded(path: str, values: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """Return `path` with a placeholder for each part of its parameters, and the values of these.

    Raises:
        ToolError: a list or object has no values, so that it would change the path's segments.
    """
    expanded: dict[str, str] = {}

    def parts_of(match: re.Match[str]) -> str:
        name = match[1]
        value = values[name]
        parts = value.parts if isinstance(value, PathValue) else (("", wire(value)),)
        if not parts:
            raise ToolError(f"{name} must not be empty")
        names = [name] if len(parts) == 1 else [f"{name}_{number}" for number in range(1, len(parts) + 1)]
        for own, (_, text) in zip(names, parts, strict=True):
            expanded[own] = text
        return "".join(f"{before}{{{own}}}" for own, (before, _) in zip(names, parts, strict=True))

    return re.sub(r"\{(\w+)\}", parts_of, path), expanded


# --- Query and bodies ----------------------------------------------------------------------------------------


def form(name: str, value: Any, *, explode: bool = True, reserved: bool = False, separator: str = ",") -> list[Pair]:
    """Return a parameter of style form, or with %20 or %7C as its `separator` spaceDelimited or pipeDelimited.

    The properties of an exploded object are parameters themselves, so a list among them is exploded as well.
    """
    value = to_json_value(value)

    def encode(item: Any) -> str:
        return quote(part(item), safe=RESERVED if reserved else "")

    if value is None:
        return []
    if isinstance(value, list):
        value = [item for item in value if item is not None]
    if isinstance(value, dict):
        items = {key: item for key, item in value.items() if item is not None}
        if explode:
            parts = [
                (key, each) for key, item in items.items() for each in (item if isinstance(item, list) else [item])
            ]
            return [(quote(key, safe=""), encode(each)) for key, each in parts if each is not None]
        value = [part for item in items.items() for part in item]
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
    return [] if value is None else [(quote(name, safe=""), quote(to_json(value), safe=""))]


def json_body(value: Any, media_type: str = "application/json", *, required: bool = False) -> Body | None:
    """Return a body in JSON; None stands for an absent one, and in a `required` body for null."""
    return None if value is None and not required else Body(to_json(value).encode(), media_type)


def json_lines_body(value: Iterable[Any] | None, media_type: str) -> Body | None:
    """Return a sequence of JSON values, each on a line of its own."""
    if value is None:
        return None
    start = "\x1e" if media_type.endswith("json-seq") else ""
    return Body("".join(f"{start}{to_json(item)}\n" for item in value).encode(), media_type)


def text_body(value: str | None, media_type: str) -> Body | None:
    return None if value is None else Body(value.encode(), f"{media_type}; charset=utf-8")


def binary_body(value: UploadFile | str | None, media_type: str) -> Body | None:
    """Return a body that the model gives in base64.

    Args:
        value: The file.
        media_type: The type of a file that names none. Where this is a range, such as `image/*`, the file names one.

    Raises:
        ToolError: the text is not base64, or a media type is missing.
    """
    if value is None:
        return None
    file = value if isinstance(value, UploadFile) else UploadFile(base64=value)
    media_type = header_value("media_type", file.media_type or media_type)
    if "*" in media_type:
        raise ToolError(f"body must have its media_type, one of {media_type}")
    return Body(_from_base64("body", file.base64), media_type)


def form_body(value: Any, styles: Mapping[str, str] | None = None) -> Body | None:
    """Return a body as HTML forms send it.

    `styles` gives properties a style: `form`, `flat` (not exploded), `space` or `pipe` (not exploded, spaceDelimited or
    pipeDelimited), `deep` (deepObject) or `json`. By default objects are JSON and other values style form (OpenAPI
    3.0.4, section 4.8.15).
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
            separator = {"space": "%20", "pipe": "%7C"}.get(style, ",")
            pairs += form(name, item, explode=style == "form", separator=separator)
    encoded = "&".join(f"{name}={text}" for name, text in pairs)
    return Body(encoded.encode(), "application/x-www-form-urlencoded")


def multipart_body(
    value: Any,
    files: Mapping[str, str] | None = None,
    types: Mapping[str, str] | None = None,
    media_type: str = "multipart/form-data",
    styles: Mapping[str, str] | None = None,
) -> Body | None:
    """Return a body of several parts (RFC 7578).

    Args:
        value: An object.
        files: The media types of the properties that are an `UploadFile`, or a list of them; `*` stands for all others.
        types: The media types of other properties.
        media_type: The media type of the body.
        styles: `flat`, `space` or `pipe` for lists that are one part, separated by commas, spaces or bars.

    Raises:
        ToolError: a file is not base64.
    """
    if value is None:
        return None
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []
    for name, item in to_json_value(value).items():
        if isinstance(item, list) and (style := (styles or {}).get(name)):
            item = {"space": " ", "pipe": "|"}.get(style, ",").join(map(part, item))
        own_type = (types or {}).get(name, "")
        file_type = (files or {}).get(name) or (files or {}).get("*")
        is_list = isinstance(item, list) and (file_type or not any(map(_contains_object, item)))
        for each in item if is_list and not own_type.endswith("json") else [item]:
            part_type = own_type
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"'
            if file_type:
                file = each if isinstance(each, dict) else {"base64": each}
                head += f'; filename="{_quoted(str(file.get("name", name)))}"'
                part_type = header_value("media_type", file.get("media_type", file_type))
                content = _from_base64(name, str(file["base64"]))
            elif own_type.endswith("json") or isinstance(each, list | dict):
                part_type = own_type or "application/json"
                content = to_json(each).encode()
            else:
                content = part(each).encode()
            head += f"\r\nContent-Type: {part_type}" if part_type else ""
            parts.append(head.encode() + b"\r\n\r\n" + content + b"\r\n")
    return Body(b"".join(parts) + f"--{boundary}--\r\n".encode(), f"{media_type}; boundary={boundary}")


def _quoted(text: str) -> str:
    return text.translate({ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"})


def _contains_object(value: Any) -> bool:
    """Return whether the value is an object, or a list with one in it."""
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_contains_object, value)))


def _from_base64(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise ToolError(f"{name} must be base64") from None


# --- Errors of the API ---------------------------------------------------------------------------------------


ERROR_KEYS = re.compile(
    r"(type|title|detail|details|errors?|message|messages|msg|reason|description|error_description|code|status|field"
    r"|fields|path|loc|pointer|parameter|param|violations|invalid.params|hint|cause|value|\d+)$",
    re.IGNORECASE,
)
"""Names in an error's body that say what is wrong (RFC 9457 and customary ones)."""

SECRET_KEYS = re.compile(r"token|secret|password|passwd|authorization|cookie|credential|api.?key", re.IGNORECASE)
SECRET_TEXT = re.compile(r"(?i:bearer|basic)\s+[\w.~+/=-]{8,}|eyJ[\w-]{8,}\.[\w-]+\.?[\w-]*|(?<=://)[^/\s@]+(?=@)")


def _explain(error: UpstreamStatusError, ctx: Context) -> None:
    """Add what the API itself says to the text of `error`, so that the model can correct its call."""
    answer = Answer[Any](error.response)
    content = answer.content
    if isinstance(content, Done | Binary):
        return
    if isinstance(content, str):
        is_html = "html" in error.response.headers.get("Content-Type", "") or content.lstrip()[:1] == "<"
        text = "" if is_html else " ".join(content.split())
    else:
        details = _error_details(content, depth=0)
        text = to_json(details) if details else ""
    key = registry_of(ctx).config.upstream_api_key
    if key is not None and len(key.get_secret_value()) > 3:
        text = text.replace(key.get_secret_value(), "[redacted]")
    text = SECRET_TEXT.sub("[redacted]", text)
    if not text:
        return
    if len(text) > MAX_ERROR_DETAIL:
        text = text[:MAX_ERROR_DETAIL] + " ..."
    error.problem = f"{error.problem}: {text}"
    if error.response.status_code in (400, 409, 422):
        error.advice = "Correct the arguments before trying again."


def _error_details(value: Any, depth: int) -> Any:
    """Return the members of an error's body that describe the error; all of it if none is known."""
    if depth > 6:
        return None
    if isinstance(value, list):
        return [_error_details(item, depth + 1) for item in value[:20]]
    if not isinstance(value, dict):
        return value
    known = {name: item for name, item in value.items() if ERROR_KEYS.match(name)} or value
    return {
        name: "[redacted]"
        if SECRET_KEYS.search(name) and not isinstance(item, dict | list)
        else _error_details(item, depth + 1)
        for name, item in known.items()
        if item not in (None, "", [], {})
    }
