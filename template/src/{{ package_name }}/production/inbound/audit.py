"""Audit: one JSON object for every request and for every decision before one, without sampling.

The middleware records each request when it has ended. What is decided before a request (HTTP 401 and 403, the sign-in)
is recorded by `registry.audit`. `docs/audit.schema.json` has the form of a record.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

import structlog
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CLIENT_INFO_META_KEY, INTERNAL_ERROR
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from opentelemetry import trace
from opentelemetry.context import get_current
from orjson import OPT_APPEND_NEWLINE, OPT_SORT_KEYS, OPT_UTC_Z, Fragment, dumps
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from starlette.requests import Request

from ..caller import STDIO, UNKNOWN, Caller
from ..config import UPDATE, ConfigError, EnvironmentSettings
from ..json_values import valid_unicode
from ..observe.redaction import Redactor, configured_secrets, shorten
from ..observe.throttle import Throttle
from ..registry import Registry
from ..request import PROMPTS_GET, TOOLS_CALL, CallNext, MCPRequest, Result, Status, give_error
from .audit_sinks import FileSink, Sink, StderrSink
from .identity import peer_address

VERSION = 1
"""Version of the schema."""

MAX_RECORD = 16_000
"""Bytes of a record. Docker's json-file driver splits longer lines; the arguments of a longer record are hashed."""

MAX_FIELD = 256
"""Characters to which each text is cut in a record above `MAX_RECORD`."""

MAX_TEXT = 100
"""Characters of a text that a client has chosen."""

AUDIT_UNAVAILABLE = "AuditUnavailable"
"""Error type of a request that is rejected because records cannot be written."""

NOT_RECORDED = frozenset(("body", "connections", "head", "malformed", "media_type", "timeout"))
"""Reasons of HTTP rejections that are not recorded: the request was not read completely, or its sender is unknown."""

ALLOWED = frozenset(("consented", "completed", "issued", "refreshed", "revoked", "signed_out", "registered"))
"""Outcomes of a sign-in, a token or a registration in which the sender got what was asked for."""

FIELDS = ("subject", "client", "method", "target", "http_status", "error_type")
"""Fields of a decision outside of a request that are members of the record; all others are in `details`."""

UNIQUE = ("time", "request_id", "duration_ms", "trace_id", "arguments", "arguments_sha256")
"""Fields of a request's record that hardly any two requests have in common."""

WITH_ARGUMENTS = (TOOLS_CALL, PROMPTS_GET)
"""Methods with a parameter `arguments`; for any other method, all parameters count as arguments."""

MAX_RECURRING = 1024
"""Number of `Key`s whose fields are kept."""

SORTED = OPT_SORT_KEYS
"""How arguments are encoded for their hash."""

LINE = OPT_UTC_Z | OPT_APPEND_NEWLINE
"""How a record is encoded."""

Key = tuple[str, str, str | None, str | None, str, str, str | None, Status, str | None]
"""What many records have in common: the caller's id, and the arguments of `_fields` but the caller."""

Arguments = Literal["sha256", "redacted", "omit"]

log = structlog.stdlib.get_logger(__name__)

_utc_now = partial(datetime.now, UTC)


class AuditSettings(EnvironmentSettings):
    """Settings of the audit. The environment variable of a field is `AUDIT_` and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="AUDIT_")

    sink: Literal["stderr", "file", "otlp"] = "stderr"
    file: Path | None = None
    file_max_bytes: int = Field(default=100 * 1024 * 1024, ge=64 * 1024, le=1024**4)
    file_count: int = Field(default=10, ge=1, le=10_000)
    fsync: bool = False
    arguments: Arguments = "sha256"
    on_failure: Literal["continue", "deny"] = "continue"


def install(registry: Registry, otlp_sink: Callable[[Registry], Sink] | None = None) -> None:
    """Record every request, and every decision before one.

    Args:
        otlp_sink: Returns the sink for `AUDIT_SINK=otlp`; `None` in a project that exports no logs.

    Raises:
        ConfigError: the settings are not valid, or contradict each other.
    """
    settings = AuditSettings.load()
    if settings.sink == "file" and settings.file is None:
        raise ConfigError(["AUDIT_FILE: must be set for AUDIT_SINK=file"])
    if settings.sink != "file" and (settings.file is not None or settings.fsync):
        raise ConfigError(["AUDIT_FILE and AUDIT_FSYNC need AUDIT_SINK=file"])
    audit = Audit(registry, settings, sink_of(registry, settings, otlp_sink))
    registry.audit = audit
    registry.middleware["audit"] = audit.record_request
    registry.middleware["reject_unaudited"] = audit.reject_unaudited
    registry.policy_fields.add("audit")
    registry.on_startup.append(audit.open)
    registry.on_shutdown.append(audit.close)


def sink_of(registry: Registry, settings: AuditSettings, otlp_sink: Callable[[Registry], Sink] | None) -> Sink:
    """Return the sink that the settings choose.

    Raises:
        ConfigError: it is OTLP, and no logs are exported.
    """
    if settings.sink == "otlp":
        if otlp_sink is None:
            problem = "this project exports no logs over OTLP. Change it with"
            raise ConfigError([f"AUDIT_SINK=otlp: {problem}: {UPDATE} telemetry_signals=all"])
        return otlp_sink(registry)
    if settings.file is None:
        return StderrSink()
    return FileSink(settings.file, max_bytes=settings.file_max_bytes, kept=settings.file_count, durable=settings.fsync)


class Audit:
    """Records every request, and every other decision."""

    def __init__(self, registry: Registry, settings: AuditSettings, sink: Sink) -> None:
        self._registry = registry
        self._sink = sink
        self._arguments: Arguments = settings.arguments
        self._denies = settings.on_failure == "deny"
        self._redactor = Redactor(configured_secrets(registry), registry.secrets)
        self._address = peer_address(registry.config.trusted_proxies)
        self._recurring: dict[Key, tuple[Caller, dict[str, Any]]] = {}
        """Callers, and what their records have in common: encoded once, since it is most of a record."""
        self._dropped = 0
        """Records that were lost since the last one that was written."""
        text = "Audit records that could not be written."
        self._increment_dropped = registry.meter.counter("mcp_audit_records_dropped_total", text)().inc
        self._throttle = Throttle(1, lambda suppressed: None)
        self._syncing: set[asyncio.Task[bool]] = set()

    async def open(self) -> None:
        """Open the sink.

        Raises:
            ConfigError: it cannot be written to.
        """
        try:
            self._sink.open()
        except OSError as error:
            raise ConfigError([f"AUDIT_FILE: cannot be written: {error.strerror}"]) from None

    async def close(self) -> None:
        """Wait until all records are kept, and close the sink."""
        await self._sync()
        if lost := self._sink.close():
            self._count_lost(lost)
            log.error("audit records are lost: the collector did not accept them", records=lost)

    # --- Requests --------------------------------------------------------------------------------------------

    async def record_request(self, request: MCPRequest, call_next: CallNext) -> Result:
        """Middleware that records requests."""
        began, started = _utc_now(), perf_counter_ns()
        result: Result = None
        failure: MCPError | None = None
        try:
            result = await call_next(request)
        except MCPError as error:
            failure = error
        except BaseException:  # the request was cancelled: nobody waits for the disk
            self._write(self._line(request, began, started))
            raise
        written = self._write(self._line(request, began, started))
        if written and self._sink.durable:
            written = await self._sync()
        if not written and self._denies and request.status in ("success", "input_required"):
            request.fail("error", AUDIT_UNAVAILABLE)
            text = "The request was executed, but its audit record cannot be written, so its result is withheld."
            return give_error(request, INTERNAL_ERROR, text)
        if failure is not None:
            raise failure
        return result

    def reject_unaudited(self, request: MCPRequest, call_next: CallNext) -> Awaitable[Result]:
        """Middleware that rejects requests while records cannot be written, where `AUDIT_ON_FAILURE` is `deny`."""
        return self._reject(request) if self.rejects() else call_next(request)

    async def _reject(self, request: MCPRequest) -> Result:
        request.fail("error", AUDIT_UNAVAILABLE)
        text = "The request was not executed, because its audit record cannot be written now. Try again later."
        return give_error(request, INTERNAL_ERROR, text)

    def rejects(self) -> bool:
        """Return whether requests are rejected now, because records cannot be written."""
        return self._denies and self._dropped > 0 and not self._resume()

    def _line(self, request: MCPRequest, began: datetime, started: int) -> bytes:
        """Return the encoded record of a request that has ended."""
        ctx, method, target = request.context, request.method, request.target_label
        params = ctx.params or {}
        address = STDIO if ctx.request is None else self._address(ctx.request)
        requested = None
        if target == UNKNOWN and method in WITH_ARGUMENTS:
            requested = self._redactor.shortened(request.target, MAX_TEXT)
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            # As it is sent: what the SDK makes of the envelope costs as much as the rest of the record.
            info = ctx.meta and ctx.meta.get(CLIENT_INFO_META_KEY)
            host, version = (info.get("name"), info.get("version")) if isinstance(info, dict) else (None, None)
        else:
            host, version = _host_of_session(ctx)
        if not isinstance(host, str) or not isinstance(version, str):
            host = version = None
        elif len(host) > MAX_TEXT or len(version) > MAX_TEXT:
            host, version = shorten(host, MAX_TEXT), shorten(version, MAX_TEXT)
        caller, status, error_type = request.caller, request.status, request.error_type
        key = caller.id, address, host, version, method, target, requested, status, error_type
        known = self._recurring.get(key)
        if known is None or known[0] != caller:
            known = self._recurring_fields(key, caller)
        record = known[1].copy()
        record["time"] = began
        record["request_id"] = request.request_id
        record["duration_ms"] = (perf_counter_ns() - started) // 1000 / 1000
        if get_current() and (trace_id := trace.get_current_span().get_span_context().trace_id):
            record["trace_id"] = f"{trace_id:032x}"
        kind = request.policy.audit or self._arguments
        arguments = params.get("arguments") if method in WITH_ARGUMENTS else _without_meta(params)
        if not arguments:
            kind = "omit"
        if kind == "redacted":
            record["arguments"] = self._redactor.value(arguments)
        try:
            if kind == "sha256":
                record["arguments_sha256"] = sha256(dumps(arguments, option=SORTED)).hexdigest()
            line = dumps(record, option=LINE)
            if len(line) <= MAX_RECORD:
                return line
        except (TypeError, ValueError):  # a number above 64 bits, or a lone surrogate
            if kind == "sha256":
                record["arguments_sha256"] = digest(arguments)
        return encoded(_fields(caller, *key[1:]) | {name: record[name] for name in UNIQUE if name in record})

    def _recurring_fields(self, key: Key, caller: Caller) -> tuple[Caller, dict[str, Any]]:
        """Return a caller and the encoded fields of its records with a key, and keep them for the next one."""
        if len(self._recurring) >= MAX_RECURRING:
            self._recurring.clear()
        fields = self._recurring[key] = caller, _joined(_fields(caller, *key[1:]))
        return fields

    # --- Other decisions -------------------------------------------------------------------------------------

    def record(self, event: str, outcome: str, request: Request | None, **fields: Any) -> None:
        """Record a decision that was made outside of an MCP request, as `registry.Audit`."""
        if fields.get("error_type") in NOT_RECORDED:
            return
        record: dict[str, Any] = {
            "audit": VERSION,
            "time": _utc_now(),
            "event": event,
            "decision": "allowed" if outcome in ALLOWED else "denied",
            "outcome": outcome,
        }
        if request is not None:
            caller = self._registry.identify(request)
            record |= {"caller": caller.id, "address": self._address(request), **_identified(caller)}
        known = {name: self._redactor.value(value) for name, value in fields.items() if value is not None}
        record |= {name: known.pop(name) for name in FIELDS if name in known}
        if known:
            record["details"] = known
        if self._write(encoded(record)) and self._sink.durable:
            task = asyncio.get_running_loop().create_task(self._sync())
            self._syncing.add(task)
            task.add_done_callback(self._syncing.discard)

    # --- Writing ---------------------------------------------------------------------------------------------

    def _write(self, line: bytes) -> bool:
        """Write a record, and return whether that was possible."""
        try:
            if not self._dropped or self._resume():
                self._sink.write(line)
                return True
        except OSError as error:
            self._log_failure(error)
        self._count_lost()
        return False

    def _resume(self) -> bool:
        """Write how many records are missing, and return whether that was possible."""
        record = {"audit": VERSION, "time": _utc_now(), "event": "audit", "decision": "allowed"}
        try:
            self._sink.write(encoded(record | {"outcome": "resumed", "dropped": self._dropped}))
        except OSError as error:
            self._log_failure(error)
            return False
        log.info("audit records can be written again", dropped=self._dropped)
        self._dropped = 0
        return True

    async def _sync(self) -> bool:
        """Wait until all records are on the disk, if AUDIT_FSYNC is set, and return whether that was possible."""
        try:
            await self._sink.sync()
        except OSError as error:
            self._log_failure(error)
            self._count_lost()
            return False
        return True

    def _count_lost(self, records: int = 1) -> None:
        self._dropped += records
        self._increment_dropped(records)

    def _log_failure(self, error: OSError) -> None:
        if self._throttle.admit() is not None:
            log.error("audit records cannot be written", problem=error.strerror, requests_are_rejected=self._denies)


def _fields(
    caller: Caller,
    address: str,
    host: str | None,
    version: str | None,
    method: str,
    target: str,
    requested: str | None,
    status: Status,
    error_type: str | None,
) -> dict[str, Any]:
    """Return the fields of a request's record in their order, those of `UNIQUE` among them without a value."""
    denied = status == "rejected" or error_type == AUDIT_UNAVAILABLE
    record: dict[str, Any] = {
        "audit": VERSION,
        "time": None,
        "event": "request",
        "decision": "denied" if denied else "allowed",
        "outcome": status,
        "caller": caller.id,
        "address": address,
        "method": method,
        "request_id": None,
        "duration_ms": None,
        **_identified(caller),
    }
    if target:
        record["target"] = target
    if requested is not None:
        record["requested"] = requested
    if error_type is not None:
        record["error_type"] = error_type
    if host is not None:
        record["host_application"], record["host_version"] = host, version
    return record


def _joined(fields: dict[str, Any]) -> dict[str, Any]:
    """Return `_fields` with each run of fields that have a value as one field, whose value is the JSON of all."""
    joined: dict[str, Any] = {}
    try:
        for is_unique, run in groupby(fields.items(), lambda item: item[0] in UNIQUE):
            part = dict(run)
            if not is_unique and len(part) > 1:
                name = next(iter(part))
                part = {name: Fragment(dumps(part)[len(dumps({name: 0})) - 2 : -1])}
            joined |= part
    except TypeError:  # a text has a lone surrogate
        return fields
    return joined


def _identified(caller: Caller) -> dict[str, str]:
    """Return who the caller is, as far as that is known."""
    _, subject, client, issuer, _, tier, tenant, _ = caller
    known = {"subject": subject, "client": client, "issuer": issuer, "tenant": tenant, "tier": tier}
    return {name: value for name, value in known.items() if value}


def _host_of_session(ctx: ServerRequestContext[Any, Any]) -> tuple[str | None, str | None]:
    """Return the name and the version of the application that opened the session."""
    params = ctx.session.client_params
    return (None, None) if params is None else (params.client_info.name, params.client_info.version)


def _without_meta(params: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in params.items() if name != "_meta"}


def digest(arguments: Any) -> str:
    """Return the SHA-256 of arguments: of their JSON in UTF-8, with sorted keys and without spaces."""
    try:
        text = dumps(arguments, option=SORTED)
    except (TypeError, ValueError):  # a number above 64 bits, or a lone surrogate
        text = json.dumps(valid_unicode(arguments), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return sha256(text).hexdigest()


def encoded(record: dict[str, Any]) -> bytes:
    """Return a record as a line of at most `MAX_RECORD` bytes; arguments that do not fit in are replaced by their hash.

    A lone surrogate becomes U+FFFD.
    """
    try:
        line = dumps(record, option=LINE)
    except (TypeError, ValueError):
        line = b""
    if 0 < len(line) <= MAX_RECORD:
        return line
    if (arguments := record.pop("arguments", None)) is not None:
        record["arguments_sha256"] = digest(arguments)
    texts = {name: shorten(value, MAX_FIELD) for name, value in record.items() if isinstance(value, str)}
    return dumps(valid_unicode(record | texts), option=LINE)
