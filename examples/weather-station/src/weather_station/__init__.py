"""An MCP server: its tools are in `tools/`, the production layer is in `production/`."""

import os
from importlib.metadata import entry_points

ENTRY_POINTS = {
    "OTEL_PROPAGATORS": "opentelemetry_propagator",
    "OTEL_PYTHON_CONTEXT": "opentelemetry_context",
    "OTEL_PYTHON_LOGGER_PROVIDER": "opentelemetry_logger_provider",
    "OTEL_PYTHON_METER_PROVIDER": "opentelemetry_meter_provider",
    "OTEL_PYTHON_TRACER_PROVIDER": "opentelemetry_tracer_provider",
}
"""Variables that name plugins of OpenTelemetry, and their groups of entry points."""

IGNORED: dict[str, str] = {}
"""Plugins that are not installed, by their variable."""

# Before OpenTelemetry is imported, as the MCP SDK does: it raises for a plugin that is not installed, and the server
# can do without it.
for _variable, _group in ENTRY_POINTS.items():
    _plugins = [name.strip() for name in os.environ.get(_variable, "").split(",") if name.strip()]
    if _plugins:
        _installed = {*entry_points(group=_group).names, "none"}
        if _unknown := [name for name in _plugins if name not in _installed and name.lower() != "none"]:
            IGNORED[_variable] = ", ".join(_unknown)
            os.environ[_variable] = ",".join(name for name in _plugins if name not in _unknown)
            if not os.environ[_variable]:
                del os.environ[_variable]
