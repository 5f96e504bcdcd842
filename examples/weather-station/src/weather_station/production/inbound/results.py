"""Conversion of what handlers return, before the SDK gets it, to JSON that matches the published schemas.

A plain `def` runs in a thread here and not in the SDK, which loses the context variables that it sets.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from functools import cached_property, partial, wraps
from typing import Annotated, Any, TypeVar, get_args, get_origin

from mcp.server.mcpserver import Audio, Image
from mcp.server.mcpserver.prompts.base import Message
from mcp.server.mcpserver.resources import Resource
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata, StrictJsonSchema
from mcp_types import SERVER_INFO_META_KEY, CallToolResult, ContentBlock, InputRequiredResult, TextContent
from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticSerializationError, from_json, to_json

from ..json_values import (
    INF_NAN_MODES,
    NUMBERS,
    encode,
    is_iterator,
    listed,
    measured,
    require_finite,
    text_of_object,
    valid_unicode,
    with_lists,
)
from ..memo import Memo
from ..request import TOOLS_CALL, Copies, MCPRequest, current_request, max_items

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

CONTENT: tuple[type, ...] = (CallToolResult, InputRequiredResult, Image, Audio, *get_args(ContentBlock))
"""Return types that are content, not data."""


def is_subclass_of(*kinds: type) -> Memo[type, bool]:
    """Return a memo of `issubclass(kind, kinds)`, which takes microseconds for pydantic models."""
    return Memo(lambda kind: issubclass(kind, kinds))


DATA = frozenset((str, int, float, bool, dict))
is_special = is_subclass_of(type(None), list, tuple, str, bytes, bytearray, *CONTENT)
"""Whether the SDK converts values of a type: they are or may contain content, pydantic changes subclasses of it, or
their length says whether they are too large."""

MAX_UNMEASURED = 1_000
"""Characters of a text that is measured only as it is sent."""

BARE = (list, dict, tuple, set, frozenset, object, Any)
"""Return types without an output schema, since they do not describe their items."""


def converting(
    fn: Callable[..., Any], convert: Callable[[Any], Any], run_in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return `fn` as an async function that returns what `convert` makes of its result.

    `run_in_thread` runs a plain function.
    """

    @wraps(fn)
    async def run(*args: Any, **kwargs: Any) -> Any:
        if request := current_request.get():
            request.handler_called = True
        is_async = inspect.iscoroutinefunction(fn if inspect.isroutine(fn) else type(fn).__call__)
        result = await (fn(*args, **kwargs) if is_async else run_in_thread(partial(fn, *args, **kwargs)))
        result = _read(result, request)
        require_size(request, result)
        return convert(with_lists(result))

    return run


def require_size(request: MCPRequest | None, result: Any) -> None:
    """Raise if what a handler returned is too large to convert; skip what is quicker to convert than to measure.

    Raises:
        ToolError: it is too large.
    """
    kind = type(result)
    is_quick = kind in NUMBERS or (kind is str and len(result) <= MAX_UNMEASURED)
    if not is_quick and request and request.budget and not request.is_nested:
        request.budget.check_returned(request, result)


def _read(result: Any, request: MCPRequest | None) -> Any:
    """Return the items of an iterator as a list, no more of them than are too many; any other result as it is."""
    return listed(result, max_items(request)) if is_iterator[type(result)] else result


def _items_only(result: Any) -> list[None] | None:
    """Return what has the number of a result's items, where nothing else of them is certain to be sent."""
    return [None] * len(result) if isinstance(result, list | tuple) else None


def resource_content(value: Any) -> Any:
    """Return the content of a resource whose function returned `value`."""
    if isinstance(value, bytes | InputRequiredResult | Resource):
        return value
    return valid_unicode(value) if isinstance(value, str) else encode(value, indent=2).decode()


def prompt_content(value: Any) -> Any:
    """Return the messages of a prompt whose function returned `value`."""
    return [*map(_message, value)] if isinstance(value, list | tuple) else _message(value)


def _message(value: Any) -> Any:
    if isinstance(value, (str, dict, Message, *CONTENT)):
        return valid_unicode(value)
    return encode(value, indent=2).decode()


def _finite(converted: CallToolResult, result: Any) -> CallToolResult:
    """Return `converted` with NaN and infinities as `ser_json_inf_nan` of the model of `result` says.

    Raises:
        NonFiniteNumberError: it has such a number, and the model does not say how to write it.
    """
    if isinstance(result, BaseModel) and result.model_config.get("ser_json_inf_nan") in INF_NAN_MODES:
        return converted.model_copy(update={"structured_content": from_json(result.model_dump_json(by_alias=True))})
    require_finite(converted.structured_content)
    return converted


def _texts_of(value: Any) -> Any:
    """Return the result of a tool with the JSON of each part that the SDK would encode."""
    if isinstance(value, list | tuple):
        return [_texts_of(item) for item in value]
    if value is None or isinstance(value, (str, *CONTENT)):
        return value
    return encode(value, indent=2).decode()


_set_fields, _set_given, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
"""Set the parts of a model in less time than `object.__setattr__`, which looks up each by its name."""


def build_unvalidated(
    kind: type[Model], fields: dict[str, Any], given: set[str], private: dict[str, Any] | None = None
) -> Model:
    """Return a model with valid fields, of which a client or handler has `given` some.

    What pydantic does to make one takes a twentieth of a call.
    """
    model = object.__new__(kind)
    _set_fields(model, fields)
    _set_given(model, given)
    _set_extra(model, None)
    _set_private(model, private)
    return model


class ToolMetadata(FuncMetadata):
    """The arguments and results of a tool."""

    @cached_property
    def _known(self) -> tuple[Any, TypeAdapter[Any]]:
        return self.output_model, super()._output_adapter(self.output_model)

    def _output_adapter(self, output_model: Any) -> TypeAdapter[Any]:
        known, adapter = self._known  # kept: reading an attribute of a pydantic model takes microseconds
        return adapter if known is output_model else super()._output_adapter(output_model)

    @cached_property
    def _narrows(self) -> bool:
        """Whether the structure may lack what a result has, such as the fields of a subclass."""
        schema = self.output_schema or {}
        parts = [schema["properties"], schema.get("$defs")] if self.wrap_output else [schema]
        return '"properties":' in json.dumps(parts)

    @cached_property
    def _argument_names(self) -> list[tuple[str, str]]:
        """The parameters: the name of the model's field, and that of the function's parameter."""
        return [(name, field.alias or name) for name, field in self.arg_model.model_fields.items()]

    def _validated(self, arguments: dict[str, Any]) -> dict[str, Any]:
        values = vars(self.arg_model.__pydantic_validator__.validate_python(arguments))
        return {name: values[field] for field, name in self._argument_names}

    def validate_arguments(self, arguments_to_validate: dict[str, Any]) -> dict[str, Any]:
        """Return the validated arguments.

        A text that is not valid as it is, is read as JSON, since some hosts send objects as text.
        """
        try:
            return self._validated(arguments_to_validate)
        except ValidationError:
            texts = {key: value for key, value in arguments_to_validate.items() if self._is_invalid_text(key, value)}
            if not texts:
                raise
        return self._validated(arguments_to_validate | self.pre_parse_json(texts))

    def call_fn(
        self,
        fn: Callable[..., Any],
        fn_is_async: bool,
        arguments: dict[str, Any],
        arguments_to_pass_directly: dict[str, Any] | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Return the coroutine of the tool's function, and not another one around it."""
        if not fn_is_async:
            return super().call_fn(fn, fn_is_async, arguments, arguments_to_pass_directly)
        called: Coroutine[Any, Any, Any] = fn(**arguments, **(arguments_to_pass_directly or {}))
        return called

    def _is_invalid_text(self, key: str, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        names = (name for name, field in self.arg_model.model_fields.items() if key == (field.alias or name))
        model = self.arg_model
        try:
            for name in names:
                model.__pydantic_validator__.validate_assignment(model.model_construct(), name, value)
        except ValidationError:
            return True
        return False

    def convert_result(self, result: Any) -> CallToolResult | InputRequiredResult:
        """Return the result with U+FFFD for lone surrogates.

        Raises:
            NonFiniteNumberError: its text would have a number that JSON lacks.
            ToolError: it is too large.
        """
        request = current_request.get()
        copies = request.budget.copies(request) if request and request.budget else "both"
        result = _read(result, request)
        try:
            converted = self._converted(result, request, copies)
            if converted is result:
                to_json(result)  # raises for lone surrogates, which the SDK meets only when it sends
        except (PydanticSerializationError, UnicodeError, ValidationError):
            converted = self._repaired(valid_unicode(result))
        if isinstance(result, CallToolResult):
            require_finite(result.structured_content)
            require_finite(result.meta)
        elif isinstance(converted, CallToolResult):
            for block in converted.content if not isinstance(result, str) else ():
                text = block.text if isinstance(block, TextContent) else ""
                # null: pydantic's form of NaN in a model
                if "NaN" in text or "Infinity" in text or "null" in text:
                    require_finite(result)
                    if converted.structured_content is not None and type(result) is not dict:
                        converted = _finite(converted, result)
                    break
            if copies != "both" and converted.structured_content is not None:
                omitted: dict[str, Any] = {"structured_content": None} if copies == "text" else {"content": []}
                converted = converted.model_copy(update=omitted)
        return converted

    def _converted(
        self, result: Any, request: MCPRequest | None, copies: Copies
    ) -> CallToolResult | InputRequiredResult:
        """Return what the SDK makes of a result, without validating again what is valid by the way it is made.

        Raises:
            ToolError: it is too large.
        """
        is_structured = self.output_model is not None and self.output_schema is not None
        is_object = type(result) not in DATA and not is_special[type(result)]
        # Without its text, a list has no content: each item of a list becomes a block, which takes microseconds.
        lacks_text = is_structured and copies == "structure" and not isinstance(result, CONTENT)
        narrows = lacks_text and self._narrows
        if not is_object:
            require_size(request, _items_only(result) if narrows else result)
        result = with_lists(result)
        if not is_object and not lacks_text and type(result) not in DATA:
            return super().convert_result(_texts_of(result) if self.output_model is None else result)
        text = result if isinstance(result, str) else to_json(result, fallback=text_of_object, indent=2).decode()
        if is_object and not lacks_text:
            require_size(request, text)
        text.encode()  # raises UnicodeError for a lone surrogate
        block = build_unvalidated(
            TextContent, {"type": "text", "text": text, "annotations": None, "meta": None}, {"type", "text"}
        )
        fields: dict[str, Any] = {
            "meta": None,
            "content": [block],
            "structured_content": None,
            "is_error": False,
            "result_type": "complete",
        }
        given = {"content"}
        if is_structured:
            fields["structured_content"] = self._structure(result)
            given.add("structured_content")
            if lacks_text and (is_object or narrows):
                require_size(request, fields["structured_content"])
        return build_unvalidated(CallToolResult, fields, given)

    def _structure(self, result: Any) -> Any:
        adapter = self._output_adapter(self.output_model)
        data = {"result": result} if self.wrap_output else result
        valid = adapter.validator.validate_python(data, by_alias=True, by_name=True)
        if isinstance(valid, BaseModel) and not self.wrap_output:  # a subclass has fields of its own
            return valid.model_dump(mode="json", by_alias=True)
        return adapter.serializer.to_python(valid, mode="json", by_alias=True)

    def _repaired(self, result: Any) -> CallToolResult | InputRequiredResult:
        """Return what `_converted` returns, for a result with texts that the SDK cannot encode."""
        if isinstance(result, CallToolResult | InputRequiredResult):
            return super().convert_result(result)
        converted = FuncMetadata(arg_model=self.arg_model).convert_result(_texts_of(result))
        if self.output_model is not None and self.output_schema is not None:
            converted = converted.model_copy(update={"structured_content": valid_unicode(self._structure(result))})
        return converted


PLAIN_RESULT = frozenset(("content", "structuredContent", "isError", "resultType", "_meta"))
PLAIN_META = frozenset((SERVER_INFO_META_KEY,))
PLAIN_TEXT = frozenset(("type", "text"))
"""Members of a result, of its `_meta` and of its content whose values are checked already; a handler may add others."""


def sendable_result(request: MCPRequest, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a request as JSON can have it, and record the bytes of its text and structure.

    Raises:
        NonFiniteNumberError: it has NaN, an infinity, or an integer of more than `MAX_DIGITS` digits.
        PydanticSerializationError: it cannot be encoded.
    """
    if request.method == TOOLS_CALL and _is_plain(result):
        text, structure = result["content"][0]["text"], result.get("structuredContent")
        try:
            size = len(text) if text.isascii() else len(text.encode())
            request.result_bytes = size if structure is None else size + measured(structure)[1]
            return result
        except (PydanticSerializationError, UnicodeError):
            pass
    result, size = measured(result)
    request.result_bytes = size - sum(map(_binary_bytes, result.values()))
    return result


def _is_plain(result: Mapping[str, Any]) -> bool:
    """Return whether only the text and the structure of a tool's result can have what JSON lacks."""
    content = result.get("content")
    return (
        type(content) is list
        and len(content) == 1
        and content[0].keys() == PLAIN_TEXT
        and result.keys() <= PLAIN_RESULT
        and ("_meta" not in result or result["_meta"].keys() <= PLAIN_META)
    )


def _binary_bytes(value: Any) -> int:
    """Return the bytes of images, audio and other binary content in `content`, `contents` or `messages`."""
    if not isinstance(value, list):
        return 0
    blocks = [block.get("content", block) for block in value if isinstance(block, dict)]
    resources = [block.get("resource", block) for block in blocks if isinstance(block, dict)]
    parts = [part for part in resources if isinstance(part, dict)]
    return sum(len(data) for part in parts for name in ("data", "blob") if isinstance(data := part.get(name), str))


def metadata_of(tool: Tool, *, structured: bool) -> ToolMetadata:
    """Return the metadata of a tool; where it may be `structured`, with the output schema that the SDK left out."""
    metadata = tool.fn_metadata
    model, schema, is_wrapped = metadata.output_model, metadata.output_schema, metadata.wrap_output
    annotation = inspect.signature(tool.fn, eval_str=True).return_annotation
    if structured and _lacks_schema(annotation, schema):
        with suppress(PydanticUserError, TypeError, ValueError):  # no JSON schema: `--check` advises
            wrapped = create_model(f"{tool.name}Output", result=annotation)
            schema = wrapped.model_json_schema(schema_generator=StrictJsonSchema)
            model, is_wrapped = wrapped, True
    return ToolMetadata(arg_model=metadata.arg_model, output_schema=schema, output_model=model, wrap_output=is_wrapped)


def _lacks_schema(annotation: Any, schema: Mapping[str, Any] | None) -> bool:
    """Return whether the SDK made no output schema of a class, or one that does not describe it."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if not isinstance(inner, type) or inner in (*BARE, inspect.Signature.empty) or issubclass(inner, CONTENT):
        return False
    if schema is None or schema.get("type") != "object":
        return True
    # The SDK takes the attributes of types such as `AnyUrl` for fields.
    is_opaque = hasattr(inner, "__get_pydantic_core_schema__") and not issubclass(inner, BaseModel)
    return is_opaque and not schema.get("properties")
