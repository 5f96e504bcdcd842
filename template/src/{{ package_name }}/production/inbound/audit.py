"""Audit: one JSON object for every request and for every decision before one, without sampling.

The middleware records each request when it has ended. What is decided before a request (HTTP 401 and 403, the sign-in)
is recorded by `registry.audit`. `docs/audit.schema.json` has the form of a record.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson
import structlog
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CLIENT_INFO_META_KEY, INTERNAL_ERROR
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from opentelemetry import trace
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from starlette.requests import Request

from ..caller import STDIO, UNKNOWN, Caller
from ..config import UPDATE, ConfigError, EnvironmentSettings
from ..json_values import valid_unicode
from ..observe.redaction import Redactor, configured_secrets, shorten
from ..observe.throttle import Throttle
from ..registry import Registry
from ..request import PROMPTS_GET, TOOLS_CALL, CallNext, MCPRequest, Result, give_error
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

WITH_ARGUMENTS = (TOOLS_CALL, PROMPTS_GET)
"""Methods with a parameter `arguments`; for any other method, all parameters count as arguments."""

Arguments = Literal["sha256", "redacted", "omit"]

log = structlog.stdlib.get_logger(__name__)


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
    registry.middleware["audit"] = audit
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
    """Middleware that records every request, and the recorder of all other decisions."""

    def __init__(self, registry: Registry, settings: AuditSettings, sink: Sink) -> None:
        self._registry = registry
        self._sink = sink
        self._arguments: Arguments = settings.arguments
        self._denies = settings.on_failure == "deny"
        self._redactor = Redactor(configured_secrets(registry), registry.secrets)
        self._address = peer_address(registry.config.trusted_proxies)
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

    async def __call__(self, request: MCPRequest, call_next: CallNext) -> Result:
        began, started = datetime.now(UTC), time.perf_counter_ns()
        result: Result = None
        failure: MCPError | None = None
        try:
            result = await call_next(request)
        except MCPError as error:
            failure = error
        except BaseException:  # the request was cancelled: nobody waits for the disk
            self._write(self._of_request(request, began, started))
            raise
        written = self._write(self._of_request(request, began, started))
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

    def _of_request(self, request: MCPRequest, began: datetime, started: int) -> dict[str, Any]:
        """Return the record of a request that has ended."""
        denied = request.status == "rejected" or request.error_type == AUDIT_UNAVAILABLE
        ctx, caller = request.context, request.caller
        record: dict[str, Any] = {
            "audit": VERSION,
            "time": began,
            "event": "request",
            "decision": "denied" if denied else "allowed",
            "outcome": request.status,
            "caller": caller.id,
            "address": STDIO if ctx.request is None else self._address(ctx.request),
            "method": request.method,
            "request_id": request.request_id,
            "duration_ms": (time.perf_counter_ns() - started) // 1000 / 1000,
        }
        _identify(record, caller)
        if request.target_label:
            record["target"] = request.target_label
            if request.target_label == UNKNOWN and request.method in WITH_ARGUMENTS:
                record["requested"] = self._redactor.shortened(request.target, MAX_TEXT)
        if request.error_type is not None:
            record["error_type"] = request.error_type
        if (host := _host_of(ctx)) is not None:
            record["host_application"], record["host_version"] = _host(*host)
        span = trace.get_current_span()
        if span is not trace.INVALID_SPAN and (trace_id := span.get_span_context().trace_id):
            record["trace_id"] = f"{trace_id:032x}"
        kind = request.policy.audit or self._arguments
        if kind != "omit" and (arguments := _arguments(request)):
            if kind == "redacted":
                record["arguments"] = self._redactor.value(arguments)
            else:
                record["arguments_sha256"] = digest(arguments)
        return record

    # --- Other decisions -------------------------------------------------------------------------------------

    def record(self, event: str, outcome: str, request: Request | None, **fields: Any) -> None:
        """Record a decision that was made outside of an MCP request, as `registry.Audit`."""
        if fields.get("error_type") in NOT_RECORDED:
            return
        record: dict[str, Any] = {
            "audit": VERSION,
            "time": datetime.now(UTC),
            "event": event,
            "decision": "allowed" if outcome in ALLOWED else "denied",
            "outcome": outcome,
        }
        if request is not None:
            caller = self._registry.identify(request)
            record |= {"caller": caller.id, "address": self._address(request)}
            _identify(record, caller)
        known = {name: self._redactor.value(value) for name, value in fields.items() if value is not None}
        record |= {name: known.pop(name) for name in FIELDS if name in known}
        if known:
            record["details"] = known
        if self._write(record) and self._sink.durable:
            task = asyncio.get_running_loop().create_task(self._sync())
            self._syncing.add(task)
            task.add_done_callback(self._syncing.discard)

    # --- Writing ---------------------------------------------------------------------------------------------

    def _write(self, record: dict[str, Any]) -> bool:
        """Write a record, and return whether that was possible."""
        try:
            if not self._dropped or self._resume():
                self._sink.write(encoded(record))
                return True
        except OSError as error:
            self._log_failure(error)
        self._count_lost()
        return False

    def _resume(self) -> bool:
        """Write how many records are missing, and return whether that was possible."""
        record = {"audit": VERSION, "time": datetime.now(UTC), "event": "audit", "decision": "allowed"}
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


def _identify(record: dict[str, Any], caller: Caller) -> None:
    """Add who the caller is, as far as that is known."""
    _, subject, client, issuer, _, tier, tenant, _ = caller
    if subject:
        record["subject"] = subject
    if client:
        record["client"] = client
    if issuer:
        record["issuer"] = issuer
    if tenant:
        record["tenant"] = tenant
    if tier:
        record["tier"] = tier


def _host_of(ctx: ServerRequestContext[Any, Any]) -> tuple[str, str] | None:
    """Return the name and the version of the client's application, as far as it says so."""
    if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
        # As it is sent: what the SDK makes of the envelope costs as much as the rest of the record.
        info = (ctx.meta or {}).get(CLIENT_INFO_META_KEY)
        info = info if isinstance(info, dict) else {}
        name, version = info.get("name"), info.get("version")
        return (name, version) if isinstance(name, str) and isinstance(version, str) else None
    params = ctx.session.client_params
    return None if params is None else (params.client_info.name, params.client_info.version)


@lru_cache(maxsize=1024)
def _host(name: str, version: str) -> tuple[str, str]:
    """Return the name and version that the client gives itself, shortened."""
    return shorten(name, MAX_TEXT), shorten(version, MAX_TEXT)


def _arguments(request: MCPRequest) -> Any:
    """Return the arguments as the client sent them."""
    if request.method in WITH_ARGUMENTS:
        return request.params.get("arguments")
    return {name: value for name, value in request.params.items() if name != "_meta"}


def digest(arguments: Any) -> str:
    """Return the SHA-256 of arguments: of their JSON in UTF-8, with sorted keys and without spaces."""
    try:
        text = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError):  # a number above 64 bits, or a lone surrogate
        text = json.dumps(valid_unicode(arguments), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return hashlib.sha256(text).hexdigest()


def encoded(record: dict[str, Any]) -> bytes:
    """Return a record as a line of at most `MAX_RECORD` bytes; arguments that do not fit in are replaced by their hash.

    A lone surrogate becomes U+FFFD.
    """
    try:
        line = _line(record)
    except (TypeError, ValueError):
        line = b""
    if 0 < len(line) <= MAX_RECORD:
        return line
    if (arguments := record.pop("arguments", None)) is not None:
        record["arguments_sha256"] = digest(arguments)
    texts = {name: shorten(value, MAX_FIELD) for name, value in record.items() if isinstance(value, str)}
    return _line(valid_unicode(record | texts))


def _line(record: dict[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
