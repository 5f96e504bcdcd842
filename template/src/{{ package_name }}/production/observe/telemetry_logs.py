"""Export of logs over OTLP: the redacted lines of stderr, from a thread."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..json_values import valid_unicode
from ..registry import Registry
from .telemetry_settings import exports

BODY = "message"
ELSEWHERE = frozenset(("timestamp", "level", "severity", BODY, "trace_id", "span_id"))
"""Fields of a line that are no attributes of its record, which has them in members of its own."""


def install(registry: Registry) -> None:
    """Export each line of the log while the server runs.

    Raises:
        ConfigError: an `OTEL_*` variable is not valid.
    """
    if not exports(registry.config, "logs"):
        return
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.context import get_current
    from opentelemetry.sdk._logs import ReadWriteLogRecord
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from . import telemetry_signals
    from .telemetry import counting, encodable, resource_of

    severities = {
        logging.DEBUG: SeverityNumber.DEBUG,
        logging.INFO: SeverityNumber.INFO,
        logging.WARNING: SeverityNumber.WARN,
        logging.ERROR: SeverityNumber.ERROR,
        logging.CRITICAL: SeverityNumber.FATAL,
    }
    telemetry_signals.exporter_of(registry.config, "logs")  # a wrong variable is rejected now
    resource, scope = resource_of(registry.about), InstrumentationScope(__name__)
    batches: list[BatchLogRecordProcessor] = []

    def send(level: int, line: Mapping[str, Any]) -> None:
        # What the exporter itself logs would be exported, and logged, again.
        if not batches or str(line["logger"]).startswith(("opentelemetry", "urllib3", "grpc")):
            return
        record = LogRecord(
            timestamp=int(line["timestamp"].timestamp() * 1e9),
            context=get_current(),
            severity_text=line["severity"],
            severity_number=severities.get(level // 10 * 10, SeverityNumber.UNSPECIFIED),
            body=valid_unicode(line[BODY]),
            attributes=encodable({key: value for key, value in line.items() if key not in ELSEWHERE}),
        )
        batches[-1].on_emit(ReadWriteLogRecord(record, resource, scope))

    async def start() -> None:
        exporter = counting(registry, "logs", telemetry_signals.exporter_of(registry.config, "logs"))
        batches.append(BatchLogRecordProcessor(exporter))

    async def stop() -> None:
        if batches:
            batch = batches.pop()
            await telemetry_signals.finish(batch.force_flush, batch.shutdown, "logs")

    registry.log_sinks.append(send)
    registry.on_startup.append(start)
    registry.on_shutdown.append(stop)
