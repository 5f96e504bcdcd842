"""The SDK's names that `inbound.direct` uses and the SDK does not export; those of all other modules are in `sdk`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import anyio
import mcp
import mcp_types
import structlog
from mcp.server import _streamable_http_modern, runner, streamable_http, streamable_http_manager
from mcp.server.connection import Connection
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.request_state import RequestStateBoundary
from mcp.server.runner import ServerRunner, aclose_shielded, modern_error_data
from mcp.server.session import ServerSession
from mcp.server.streamable_http import check_accept_headers
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS, X_MCP_HEADER_KEY
from mcp.shared.jsonrpc_dispatcher import handler_exception_to_error_data, progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    SERVER_INFO_META_KEY,
    CallToolRequestParams,
    CallToolResult,
    ErrorData,
    TextContent,
)
from mcp_types.methods import validate_client_request
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request

from .inbound.pipeline import Pipeline
from .inbound.response_mode import RESPONSE
from .inbound.results import build_unvalidated
from .request import current_request
from .sdk import ProductionServer

HANDSHAKE = frozenset(HANDSHAKE_PROTOCOL_VERSIONS)
MODERN = frozenset(MODERN_PROTOCOL_VERSIONS)

SCALARS = frozenset((str, int, float, bool))
"""Types of flat data."""

log = structlog.stdlib.get_logger(__name__)

VERIFIED = frozenset(("bb2f02634894300d800abb6a7e85d428",))
"""`digest` of the SDKs whose answers the direct path has been compared with."""

SOURCES: Mapping[Path, tuple[str, ...]] = {
    Path(mcp.__file__).parent: (
        "server/_streamable_http_modern.py",
        "server/caching.py",
        "server/connection.py",
        "server/context.py",
        "server/lowlevel/server.py",
        "server/mcpserver/context.py",
        "server/mcpserver/server.py",
        "server/request_state.py",
        "server/runner.py",
        "server/session.py",
        "server/streamable_http.py",
        "server/streamable_http_manager.py",
        "shared/dispatcher.py",
        "shared/inbound.py",
        "shared/jsonrpc_dispatcher.py",
    ),
    Path(mcp_types.__file__).parent: ("jsonrpc.py", "methods.py", "version.py"),
}
"""The files of the SDK that answer a request which the direct path answers in their place."""

REPLACED: tuple[tuple[Any, str], ...] = (
    (_streamable_http_modern, "handle_modern_request"),
    (_streamable_http_modern, "serve_one"),
    (streamable_http_manager, "handle_modern_request"),
    (streamable_http_manager.StreamableHTTPSessionManager, "handle_request"),
    (streamable_http_manager.StreamableHTTPSessionManager, "_handle_request"),
    (streamable_http_manager.StreamableHTTPSessionManager, "_handle_stateless_request"),
    (streamable_http.StreamableHTTPServerTransport, "handle_request"),
    (streamable_http.StreamableHTTPServerTransport, "_handle_post_request"),
    (runner, "serve_one"),
    (ServerRunner, "_on_request"),
    (ServerRunner, "_make_context"),
)
"""Functions that the direct path does not call. Instrumentation may have replaced one of them."""

LISTS: Mapping[str, str] = {
    "tools/list": "list_tools",
    "prompts/list": "list_prompts",
    "resources/list": "list_resources",
    "resources/templates/list": "list_resource_templates",
}
"""The lists, with their methods of `MCPServer`."""

MAX_LISTS = 32
"""Greatest number of lists that are remembered: a list of 1,000 tools has half a megabyte."""

MAX_ENVELOPES = 256
MAX_ENVELOPE_BYTES = 2048
"""Greatest number and size of the `_meta` objects that are remembered as valid."""

VARYING: Mapping[str, tuple[type, ...]] = {
    "progressToken": (int, str),
    "traceparent": (str,),
    "tracestate": (str,),
    "baggage": (str,),
}
"""Fields of `_meta` that differ from request to request, with the types that are always valid."""


def digest() -> str:
    """Return the digest of `SOURCES`."""
    found = blake2b(digest_size=16)
    for folder, names in SOURCES.items():
        for name in names:
            found.update((folder / name).read_bytes())
    return found.hexdigest()


def is_verified() -> bool:
    """Return whether the direct path was compared with the installed SDK, and no library has replaced a part of it."""
    try:
        if digest() not in VERIFIED:
            return False
    except OSError:
        return False
    folder = str(Path(mcp.__file__).parent)
    parts = [getattr(owner, name) for owner, name in REPLACED]
    return all(type(part) is FunctionType and part.__code__.co_filename.startswith(folder) for part in parts)


class LazyConnection(Connection):
    """Connection of one request that makes its parts on first use, since making them takes longer than a call."""

    is_made = False
    """Whether the parts were used."""

    def __init__(self, version: str, client_info: Any, capabilities: Any) -> None:
        self.protocol_version = version
        if client_info is None:
            self._client_params = None
        self._envelope = (version, client_info, capabilities)

    def __getattr__(self, name: str) -> Any:
        own = vars(self)
        if not self.is_made:
            own.update(vars(Connection.from_envelope(*self._envelope)), is_made=True)
        if name in own:
            return own[name]
        raise AttributeError(name)


class Listed(NamedTuple):
    """A list that was sent, and can be sent again while the server has the same items."""

    items: Sequence[object]
    result: bytes


ListKey = tuple[str, str, Hashable]
"""Method, protocol version, and what decides which items the caller may use."""


@dataclass(eq=False)
class Call:
    """A request that the direct path answers, and its `DispatchContext`."""

    can_send_request: ClassVar[bool] = False

    request: Request
    request_id: int | str
    method: str
    version: str
    params: dict[str, Any] | None
    typed: Any
    """The parameters as the handler gets them."""
    handler: Callable[[ServerRequestContext[Any, Any], Any], Awaitable[HandlerResult]]
    list_key: ListKey | None = None
    items: Sequence[object] = ()
    """For a list that the SDK itself makes: the key of `Handlers._lists`, and the items it lists."""

    @cached_property
    def message_metadata(self) -> ServerMessageMetadata:
        return ServerMessageMetadata(request_context=self.request)

    @cached_property
    def transport(self) -> TransportContext:
        headers = self.request.headers if self.version in MODERN else None
        return TransportContext(kind="streamable-http", can_send_request=False, headers=headers)

    @cached_property
    def cancel_requested(self) -> anyio.Event:
        return anyio.Event()

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Send a notification, unless the response is JSON or has ended."""
        if (response := self.request.scope.get(RESPONSE)) is not None:
            await response.notify(method, params, opts)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if (token := progress_token_from_params(self.params)) is not None:
            given = {"progressToken": token, "progress": progress, "total": total, "message": message}
            await self.notify(
                "notifications/progress", {key: value for key, value in given.items() if value is not None}
            )


class Handlers:
    """Runs requests through the server's middleware and handlers, without a transport of the SDK."""

    def __init__(self, server: ProductionServer) -> None:
        self._server = server
        self._lowlevel = server._lowlevel_server
        self._lists: dict[ListKey, Listed] = {}
        self._sources: dict[str, Callable[[], Sequence[object]]] = {
            "tools/list": server._tool_manager.list_tools,
            "prompts/list": server._prompt_manager.list_prompts,
            "resources/list": server._resource_manager.list_resources,
            "resources/templates/list": server._resource_manager.list_templates,
        }
        self._call_tool = MCPServer._handle_call_tool.__get__(server)
        self._private = {"_mcp_server": server, "_subscriptions": server._subscriptions}
        self._middleware: Sequence[Any] = ()
        self._inner: Sequence[Any] = ()
        """The middleware for which requests take this path, and those inside the pipeline, the innermost first."""
        self._own = {method: getattr(server, f"_handle_{name}") for method, name in LISTS.items()}
        self._envelopes: dict[tuple[str, bytes], bool] = {}
        """Valid `_meta` objects by protocol version, and whether handlers get them as they are sent."""
        self._tool_params = vars(CallToolRequestParams(name=""))
        self._mirroring: dict[str, tuple[object, bool]] = {}

    def call(
        self, request: Request, request_id: int | str, method: str, version: str, params: dict[str, Any] | None
    ) -> Call | None:
        """Return the call of a request whose parameters have no unusual fields; `None` if they are not valid."""
        entry = self._lowlevel.get_request_handler(method)
        if entry is None:
            return None
        given = {} if params is None else params
        meta = given.get("_meta", {})
        fixed = {key: value for key, value in meta.items() if type(value) not in VARYING.get(key, ())}
        envelope = (version, to_json(fixed, inf_nan_mode="constants"))
        as_sent = self._envelopes.get(envelope)
        typed: Any
        try:
            if as_sent is None:
                validate_client_request(method, version, params)
            if as_sent and "progressToken" not in meta and entry.params_type is CallToolRequestParams:
                typed = self._typed(given)
            else:
                typed = entry.params_type.model_validate(given, by_name=False)
        except ValidationError:
            return None
        if as_sent is None and len(envelope[1]) <= MAX_ENVELOPE_BYTES:
            if len(self._envelopes) >= MAX_ENVELOPES:
                self._envelopes.clear()
            self._envelopes[envelope] = (typed.meta or {}) == meta
        return Call(request, request_id, method, version, params, typed, entry.handler)

    def _typed(self, params: dict[str, Any]) -> CallToolRequestParams:
        """Return the parameters of a tools/call, in which only `_meta` can be invalid."""
        fields = self._tool_params | {"name": params["name"]}
        given = {"name"}
        for key, name in (("_meta", "meta"), ("arguments", "arguments")):
            if key in params:
                fields[name] = params[key].copy()
                given.add(name)
        return build_unvalidated(CallToolRequestParams, fields, given)

    def mirrors_arguments(self, name: str) -> bool:
        """Return whether arguments of a tool are repeated in headers, which the SDK compares."""
        tool = self._server._tool_manager.get_tool(name)
        if tool is None:
            return False
        known, mirrors = self._mirroring.get(name, (None, False))
        if known is not tool:
            mirrors = X_MCP_HEADER_KEY.encode() in to_json(tool.parameters, fallback=str)
            self._mirroring[name] = (tool, mirrors)
        return mirrors

    def keep(self, call: Call, result: bytes) -> None:
        """Remember the result of a list as it was sent."""
        if call.list_key is not None:
            if len(self._lists) >= MAX_LISTS:
                self._lists.clear()
            self._lists[call.list_key] = Listed(call.items, result)

    async def run(self, call: Call) -> dict[str, Any] | bytes:
        """Return the result of a call in its wire form, or the JSON of a list that was sent before.

        Raises:
            Exception: the call failed; `error_of` has its answer.
        """
        envelope = (call.params or {}).get("_meta", {}) if call.version in MODERN else {}
        connection = LazyConnection(
            call.version, envelope.get(CLIENT_INFO_META_KEY), envelope.get(CLIENT_CAPABILITIES_META_KEY)
        )
        state = self._server.session_manager._lifespan_state
        middleware: list[Any] = self._lowlevel.middleware
        if middleware != self._middleware and not self._accept_middleware(middleware):
            # Other middleware may change the request, which the SDK's own driver handles.
            serve = runner.serve_one(
                self._lowlevel, call, call.method, call.params, connection=connection, lifespan_state=state
            )
            return await serve
        meta = call.typed.meta
        context = ServerRequestContext(
            session=ServerSession(call, connection, request_meta=meta),
            lifespan_context=state,
            protocol_version=call.version,
            method=call.method,
            params=call.params,
            request_id=call.request_id,
            meta=meta,
            request=call.request,
        )

        async def handle(ctx: ServerRequestContext[Any, Any]) -> HandlerResult:
            # Not the local variable `request`: it refers to this function, which would make a reference cycle.
            running = current_request.get() if call.method in LISTS else None
            if running and call.handler == self._own[call.method] and self._is_listed_by_sdk(call.method):
                call.list_key = (call.method, call.version, self._server.registry.visibility_key(running.caller))
                call.items = self._sources[call.method]()
                known = self._lists.get(call.list_key)
                if known is not None and _are_same(known.items, call.items):
                    running.encoded = known.result
                    return {}
            result: HandlerResult
            if call.handler == self._call_tool:
                private = self._private | {"_request_context": ctx, "_input_params": call.typed}
                context: Context[Any, Any] = build_unvalidated(Context, {}, set(), private)
                result = await self._server.call_tool(call.typed.name, call.typed.arguments or {}, context)
            else:
                result = await call.handler(ctx, call.typed)
            if type(result) is CallToolResult and (wire := self._plain(call.version, result)) is not None:
                return wire
            if isinstance(result, ErrorData):
                raise MCPError.from_error_data(result)
            wire = ServerRunner(self._lowlevel, connection, state)._serialize(call.method, call.version, result)
            return boundary._seal_result(ctx, wire, None) if is_alone else wire

        # An ordinary request has no state of an earlier round, so that the boundary alone has nothing to do before it.
        boundary: RequestStateBoundary = self._inner[-1]
        if not (is_alone := len(self._inner) == 1):
            for item in self._inner:
                handle = partial(item, call_next=handle)
        pipeline: Pipeline = middleware[0]
        request = pipeline.request(context, handle)
        try:
            result = await pipeline.run(request)
        finally:
            if connection.is_made:
                await aclose_shielded(connection)
        known_list: bytes | None = request.encoded
        if known_list is not None and request.status == "success":
            return known_list
        return result if type(result) is dict else runner._dump_result(result)

    def _accept_middleware(self, middleware: Sequence[Any]) -> bool:
        """Remember the server's middleware if none of it changes an ordinary request, and return whether that is so."""
        if [*map(type, middleware[:2])] != [Pipeline, RequestStateBoundary]:
            return False
        if not all(type(item).__module__.startswith(f"{__package__}.") for item in middleware[2:]):
            return False
        self._middleware, self._inner = [*middleware], middleware[:0:-1]
        return True

    def _is_listed_by_sdk(self, method: str) -> bool:
        """Return whether nothing overrides what the SDK lists."""
        return getattr(type(self._server), LISTS[method]) is getattr(MCPServer, LISTS[method])

    def _plain(self, version: str, result: CallToolResult) -> dict[str, Any] | None:
        """Return the wire form of a result that has only texts and flat data; `None` for any other one.

        `ServerRunner._serialize` validates and writes every result by the schema of its version, which takes as long as
        the rest of a call. The order of the fields is that of the schemas.
        """
        # Reading the attributes of pydantic models takes half of the time of this function.
        fields = vars(result)
        structured = fields["structured_content"]
        if structured is not None and not (
            type(structured) is dict
            and all(type(key) is str and type(value) in SCALARS for key, value in structured.items())
        ):
            return None
        if fields["result_type"] != "complete" or type(fields["is_error"]) is not bool or fields["meta"] is not None:
            return None
        content = []
        for block in fields["content"]:
            if type(block) is not TextContent:
                return None
            of_block = vars(block)
            if type(of_block["text"]) is not str or of_block["type"] != "text":
                return None
            if of_block["annotations"] is not None or of_block["meta"] is not None:
                return None
            content.append({"text": of_block["text"], "type": "text"})
        wire: dict[str, Any] = {"content": content, "isError": fields["is_error"]}
        if version in MODERN:
            wire["resultType"] = "complete"
        if structured is not None:
            wire["structuredContent"] = structured.copy()
        if version in MODERN:
            wire["_meta"] = {SERVER_INFO_META_KEY: self._server_info()}
        return wire

    def _server_info(self) -> dict[str, Any]:
        """Return the server's name and version, which the SDK adds to each result as a deep copy."""
        known = self._lowlevel._server_info_stamp_source
        return known.copy() if {*map(type, known.values())} == {str} else self._lowlevel.server_info_stamp


def _are_same(first: Sequence[object], second: Sequence[object]) -> bool:
    """Return whether two lists have the same items, which takes a microsecond for a thousand, or equal ones."""
    try:
        return first == second
    except Exception:  # an owner's resource can have a field that does not compare to a bool
        return False


def error_of(version: str, error: Exception) -> ErrorData:
    """Return the error that the SDK sends for an exception that a handler or middleware raised."""
    if version in MODERN:
        return modern_error_data(error)
    found = handler_exception_to_error_data(error)
    if found is None:
        log.error("handler raised", exc_info=error)
        found = ErrorData(code=0, message=str(error))
    return found


def accepts_json(accept: bytes) -> bool:
    """Return whether an Accept header accepts JSON."""
    return check_accept_headers(Request({"type": "http", "headers": [(b"accept", accept)]}))[0]


def status_of(error: ErrorData) -> int:
    """Return the HTTP status of an error on 2026-07-28."""
    return ERROR_CODE_HTTP_STATUS.get(error.code, 200)
