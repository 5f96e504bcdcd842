"""Audit records over OTLP: a queue of bounded size, which a thread sends until the collector has accepted each one."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import Any

import orjson

from ..config import ConfigError
from ..observe.telemetry_settings import exports
from ..registry import Registry
from . import audit

MAX_QUEUED_BYTES = 16 * 1024 * 1024
"""Size of the records that wait for the collector; further ones are lost."""

MAX_BATCH = 64
"""Records of a request: with their longest form 1 MB, of the 4 MB that a gRPC server accepts by default."""

DELAY_SECONDS = 0.5
"""Time in which records are collected for a request."""

RETRY_SECONDS = 5.0
"""Time between two attempts, beside the exporter's own ones."""

ATTRIBUTES = ("event", "decision", "outcome")
"""Fields that are also attributes, named `audit.<field>`."""


def install(registry: Registry) -> None:
    """Record every request, and every decision before one, also over OTLP.

    Raises:
        ConfigError: the settings are not valid, or contradict each other.
    """
    audit.install(registry, sink_of)


def sink_of(registry: Registry) -> OTLPSink:
    """Return a sink that sends records to the collector of logs.

    Raises:
        ConfigError: there is none, or an `OTEL_*` variable is not valid.
    """
    config = registry.config
    if not config.enable_telemetry or not exports(config, "logs"):
        raise ConfigError(["AUDIT_SINK=otlp: no logs are exported: set OTEL_EXPORTER_ENDPOINT to a collector's URL"])
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import ReadWriteLogRecord
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from ..observe.telemetry import FLUSH_SECONDS, counting, resource_of
    from ..observe.telemetry_signals import exporter_of

    exporter_of(config, "logs").shutdown()  # a wrong variable is rejected now
    resource, scope = resource_of(registry.about), InstrumentationScope(__name__)

    def converted(line: bytes) -> ReadWriteLogRecord:
        fields = orjson.loads(line)
        record = LogRecord(
            timestamp=int(datetime.fromisoformat(fields["time"]).timestamp() * 1e6) * 1000,
            severity_text="INFO",
            severity_number=SeverityNumber.INFO,
            body=line.decode().rstrip("\n"),
            attributes={f"audit.{name}": fields[name] for name in ATTRIBUTES},
            event_name="audit",
        )
        record.trace_id = int(fields.get("trace_id", "0"), 16)
        return ReadWriteLogRecord(record, resource, scope)

    return OTLPSink(lambda: counting(registry, "logs", exporter_of(config, "logs")), converted, FLUSH_SECONDS)


class OTLPSink:
    """A collector of logs.

    Args:
        new_exporter: Returns an exporter of OpenTelemetry's SDK.
        converted: Returns a record as the exporter needs it.
        flush_seconds: How long a stop waits for the collector.
    """

    durable = False

    def __init__(
        self, new_exporter: Callable[[], Any], converted: Callable[[bytes], Any], flush_seconds: float
    ) -> None:
        self._new_exporter = new_exporter
        self._converted = converted
        self._flush_seconds = flush_seconds
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._hurries = False
        """Whether the next request is sent without a delay."""
        self._closed = threading.Event()

    def open(self) -> None:
        self._closed = threading.Event()
        arguments = self._new_exporter(), self._closed
        threading.Thread(target=self._send, args=arguments, name="audit", daemon=True).start()

    def write(self, line: bytes) -> None:
        with self._changed:
            if self._bytes + len(line) > MAX_QUEUED_BYTES:
                raise OSError(errno.ENOBUFS, "the collector does not accept records, and the queue is full")
            self._queue.append(line)
            self._bytes += len(line)

    async def sync(self) -> None:
        """Wait until the collector has accepted all records, for at most `flush_seconds`."""
        await asyncio.to_thread(self._wait_until_sent, self._flush_seconds)

    def close(self) -> int:
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
            return len(self._queue)

    def _wait_until_sent(self, seconds: float) -> None:
        with self._changed:
            self._hurries = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue, seconds)

    def _send(self, exporter: Any, closed: threading.Event) -> None:
        delay = DELAY_SECONDS
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hurries or closed.is_set(), delay)
                self._hurries = False
                batch = list(islice(self._queue, MAX_BATCH))
            if closed.is_set():
                break
            if batch and exporter.export([*map(self._converted, batch)]).name != "SUCCESS":
                delay = RETRY_SECONDS
                continue
            with self._changed:
                if closed.is_set():  # they have been counted as lost
                    break
                self._bytes -= sum(len(self._queue.popleft()) for _ in batch)
                self._changed.notify_all()
            delay = 0 if self._queue else DELAY_SECONDS
        exporter.shutdown()
