"""The direct path: ordinary requests reach their handler without the SDK's transport, which takes most of their time.

It answers a POST that is exactly an ordinary stateless tools/call, resources/read or prompts/get, through the same
middleware and the same handler as the SDK, with the same bytes. Any other request goes to the SDK as it was received.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mcp_types import CLIENT_CAPABILITIES_META_KEY, PROTOCOL_VERSION_META_KEY, JSONRPCError, JSONRPCResponse
from pydantic_core import from_json, to_json
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import EnvironmentSettings
from ..memo import Memo
from ..registry import Registry
from ..request import PROMPTS_GET, RESOURCES_READ, TOOLS_CALL
from ..sdk_direct import HANDSHAKE, LISTS, MODERN, Call, Handlers, accepts_json, error_of, is_verified, status_of
from .http_limits import BODY, HEADERS
from .response_mode import RESPONSE

META = frozenset(("_meta",))
FIELDS = {
    TOOLS_CALL: ("name", META | {"name", "arguments"}),
    PROMPTS_GET: ("name", META | {"name", "arguments"}),
    RESOURCES_READ: ("uri", META | {"uri"}),
}
"""By method: the parameter that names the target, and all parameters that an ordinary request may have."""

WITHOUT_PARAMS = frozenset(("jsonrpc", "id", "method"))
ENVELOPE = WITHOUT_PARAMS | {"params"}

BEFORE_RESULT = '{"jsonrpc":"2.0","id":0,"result":'

_encode = json.JSONEncoder(separators=(",", ":")).encode

_SMALL_NUMBER = re.compile(rb"\de-\d|0\.0000")


class DirectSettings(EnvironmentSettings):
    """The switch of the direct path."""

    direct: bool = True


def install(registry: Registry) -> None:
    """Answer ordinary requests on the direct path, unless `DIRECT` is false or the SDK is not a known one."""
    config = registry.config
    if not DirectSettings.load().direct or config.session_mode != "stateless" or config.response_mode == "sse":
        return
    if is_verified():
        registry.http.direct = DirectPath
    else:
        registry.notices.append(
            "the direct path is off: it has not been compared with this version of mcp, or a library changes mcp; "
            "calls take longer, and nothing else changes (DIRECT=false turns this notice off)"
        )


class DirectPath:
    """ASGI application that answers ordinary requests, and passes all others to the SDK's handler."""

    def __init__(self, server: Any, sdk: ASGIApp) -> None:
        self._handlers = Handlers(server)
        self._sdk = sdk
        self._accepting = Memo(accepts_json)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope[HEADERS]
        version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
        if (
            scope["method"] != "POST"
            or len(headers) != len(scope["headers"])
            or not (version in MODERN or version in HANDSHAKE)
            or headers.get(b"content-type") != b"application/json"
            or not self._accepting[headers.get(b"accept", b"")]
            or (response := scope.get(RESPONSE)) is None
            or (call := self._call(Request(scope, receive), scope[BODY], version, headers)) is None
        ):
            await self._sdk(scope, receive, send)
            return
        status, *parts = await self._answer(call)
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % sum(map(len, parts)))]
        if version in MODERN:
            fields.reverse()
        await response.answer(status, fields, *parts)

    def _call(self, request: Request, body: bytes, version: str, headers: Mapping[bytes, bytes]) -> Call | None:
        """Return the call of an ordinary request, or `None` for any other one."""
        try:
            message = from_json(body)
        except ValueError:
            return None
        if type(message) is not dict or message.get("jsonrpc") != "2.0":
            return None
        request_id: Any = message.get("id")
        method, params = message.get("method"), message.get("params", {})
        if type(request_id) not in (int, str) or type(method) is not str or type(params) is not dict:
            return None
        meta = params.get("_meta", {})
        if type(meta) is not dict or not (
            message.keys() == ENVELOPE or (method in LISTS and message.keys() == WITHOUT_PARAMS)
        ):
            return None
        if version in MODERN and not (
            meta.get(PROTOCOL_VERSION_META_KEY) == version
            and CLIENT_CAPABILITIES_META_KEY in meta
            and headers.get(b"mcp-method") == method.encode()
        ):
            return None
        if method in LISTS:
            if params.keys() - META:
                return None
        elif method not in FIELDS or not self._is_target(method, version, params, headers):
            return None
        request._body = body  # as if a handler of the SDK had read it
        return self._handlers.call(request, request_id, method, version, message.get("params"))

    def _is_target(self, method: str, version: str, params: dict[str, Any], headers: Mapping[bytes, bytes]) -> bool:
        """Return whether the parameters name a target, and have nothing but its arguments."""
        key, fields = FIELDS[method]
        name, arguments = params.get(key), params.get("arguments", {})
        if params.keys() - fields or type(name) is not str or type(arguments) is not dict:
            return False
        if version not in MODERN:
            return True
        is_plain_header = name.isascii() and name.isprintable() and not name.startswith("=?")
        if not is_plain_header or headers.get(b"mcp-name") != name.encode():
            return False
        return method != TOOLS_CALL or not self._handlers.mirrors_arguments(name)

    async def _answer(self, call: Call) -> tuple[int, *tuple[bytes, ...]]:
        """Return the HTTP status of the response, and the parts of its body."""
        modern = call.version in MODERN
        try:
            result = await self._handlers.run(call)
        except Exception as error:
            data = error_of(call.version, error)
            failure = JSONRPCError(jsonrpc="2.0", id=call.request_id, error=data)
            if modern:
                content = failure.model_dump(mode="json", by_alias=True, exclude_none=True)
                return status_of(data), _encode(content).encode()
            return 200, failure.model_dump_json(by_alias=True, exclude_unset=True).encode()
        head = b'{"jsonrpc":"2.0","id":%b,"result":' % _id(call.request_id, modern)
        if isinstance(result, bytes):
            return 200, head, result, b"}"  # not joined, which takes longer than all else for a long list
        return 200, b"%b%b}" % (head, self._encoded(call, result))

    def _encoded(self, call: Call, result: dict[str, Any]) -> bytes:
        """Return a result as the SDK writes it."""
        modern = call.version in MODERN
        try:
            encoded = to_json(result)
        except ValueError:  # let the SDK encode it, below
            encoded = b"NaN"
        if b"NaN" in encoded or b"Infinity" in encoded or (modern and not _python_writes_the_same(encoded)):
            response = JSONRPCResponse(jsonrpc="2.0", id=0, result=result)
            if modern:
                written = _encode(response.model_dump(mode="json", by_alias=True, exclude_none=True))
            else:
                written = response.model_dump_json(by_alias=True, exclude_unset=True)
            encoded = written.encode()[len(BEFORE_RESULT) : -1]
        self._handlers.keep(call, encoded)
        return encoded


def _python_writes_the_same(encoded: bytes) -> bool:
    """Return whether Python's encoder, which the SDK uses on 2026-07-28, would write the same bytes.

    It escapes DEL and characters beyond ASCII, and has another form for small numbers.
    """
    if b"\x7f" in encoded or not encoded.isascii():
        return False
    return not ((b"e-" in encoded or b"0.0000" in encoded) and _SMALL_NUMBER.search(encoded))


def _id(request_id: int | str, modern: bool) -> bytes:
    if type(request_id) is int:
        return b"%d" % request_id
    return _encode(request_id).encode() if modern else to_json(request_id)
