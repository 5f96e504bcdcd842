"""The table of all limits in docs/operation.md, compared with a running server."""

from __future__ import annotations

import re
from importlib import import_module
from typing import NamedTuple, get_args

import pytest

from harness import PRODUCTION, PROJECT, Serve, has
from weather_station.production.config import ProductionConfig, variable
from weather_station.production.observe.rejections import Reason


class Row(NamedTuple):
    limit: str
    setting: str
    default: str
    beyond: str
    counted: str = ""
    """Only in projects with metrics."""


FIXED = {
    "URL and headers of a request, or its trailers": ("serve.http_protocol", "MAX_HEAD_BYTES", "MAX_HEADERS"),
    "time of a head, from its first byte": ("serve.http_protocol", "HEAD_SECONDS"),
    "time of a body, from the head of its request": ("serve.http_protocol", "BODY_SECONDS"),
    "chunks of fewer than 16 bytes in a body": ("serve.http_protocol", "MAX_TINY_CHUNKS"),
    "requests sent before the first response": ("serve.http_protocol", "MAX_PIPELINED"),
    "connections to a separate metrics port": ("serve.listeners", "MAX_CONNECTIONS"),
    "bodies of one caller that are being sent": ("inbound.caller_limits", "MAX_BODIES"),
    "URIs of a subscription": ("inbound.http_limits", "MAX_LISTEN_BYTES", "MAX_LISTEN_VALUES"),
    "nested arrays and objects in one message": ("inbound.http_limits", "MAX_JSON_DEPTH"),
    "a token, as it is sent": ("inbound.auth", "MAX_TOKEN_BYTES"),
    "problems listed for invalid arguments": ("inbound.pipeline", "MAX_PROBLEMS"),
    "memory of the values in a JSON response, as estimated": ("upstream.client", "MAX_GROWTH"),
    "redirects of the upstream": ("upstream.client", "MAX_REDIRECTS"),
    "time of a readiness check": ("observe.health", "CHECK_SECONDS"),
    "a line of the log": ("observe.log_formats", "MAX_LINE"),
    "log lines that nobody reads": ("observe.stderr", "MAX_QUEUED"),
}
"""The limits without a setting: a module, and constants in it in the order of the numbers in the table."""

QUARTERS = {"of these, threads of one caller", "of these, requests of one caller"}

OF_FEATURES = {
    "USER_TIMEOUT_SECONDS": ("inbound.long_calls", "LongCallSettings"),
    "MAX_REQUESTS_PER_CALLER": ("inbound.caller_limits", "CallerLimitSettings"),
    "MAX_STREAMS_PER_CALLER": ("inbound.caller_limits", "CallerLimitSettings"),
    "MAX_SESSIONS_PER_CALLER": ("inbound.caller_limits", "CallerLimitSettings"),
}
"""The limits with a setting of a feature: its module and the class of its settings."""

FEATURES = {
    "inbound.rate_limit": ("RATE_LIMIT_REQUESTS", "RATE_LIMIT_WINDOW", "RATE_LIMIT_MESSAGES"),
    "inbound.result_budget": ("MAX_RESULT_BYTES",),
    "upstream.retry": ("MAX_RETRIES", "RETRY_MAX_DELAY_SECONDS"),
}
"""Fields of `ProductionConfig` that limit something only where there is the feature, by its module."""

NO_LIMITS = {
    *("PORT", "METRICS_PORT", "LOG_ACCESS_SAMPLING", "RETRY_DELAY_SECONDS", "INTROSPECTION_CACHE_SECONDS"),
    *("CIRCUIT_FAILURE_THRESHOLD", "CIRCUIT_RECOVERY_TIMEOUT", "CIRCUIT_HALF_OPEN_REQUESTS"),
}
"""Settings that are numbers and limit nothing."""

EXAMPLES = {"InvalidArguments", "ToolTimeout", "MCPError", "ResultTooLargeError", "ThreadsStuck"}
"""Values of `error_type`, each of which has a test of its own."""


def rows() -> list[Row]:
    page = (PROJECT / "docs/operation.md").read_text("utf-8")
    (table,) = re.findall(r"^\| limit \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [Row(*(cell.strip() for cell in line.strip("|\n").split("|"))) for line in table.splitlines()]


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.limit)
def test_a_limit_is_the_one_of_the_running_server(row: Row, serve: Serve) -> None:
    if row.limit in FIXED:
        module, *names = FIXED[row.limit]
        assert row.setting == ""
        constants = vars(import_module(f"{PRODUCTION}.{module}"))
        assert numbers(row.default) == [constants[name] for name in names]
        return
    if row.limit in QUARTERS:
        assert row.default == "a quarter"
        assert import_module(f"{PRODUCTION}.upstream.shares").SHARE_DIVISOR == 4
        return
    setting = row.setting.strip("`")
    if setting in OF_FEATURES:
        module, settings = OF_FEATURES[setting]
        fields = getattr(import_module(f"{PRODUCTION}.{module}"), settings).model_fields
        assert numbers(row.default) == [fields[setting.lower()].default]
        return
    (name,) = [name for name in ProductionConfig.model_fields if variable(name) == setting]
    default = ProductionConfig.model_fields[name].default
    if default is None:  # a multiple of another setting
        assert setting == "RATE_LIMIT_MESSAGES"
        assert row.default == "10 \N{MULTIPLICATION SIGN} `RATE_LIMIT_REQUESTS`"
        return
    assert numbers(row.default) == [float(default)]
    with serve(**{name: default}) as server:
        assert getattr(server.registry.config, name) == default


def test_every_setting_that_limits_something_is_in_the_table() -> None:
    listed = {row.setting.strip("`") for row in rows()} - {""}
    bounded = {
        variable(name)
        for name, field in ProductionConfig.model_fields.items()
        if (isinstance(field.default, (int, float)) and not isinstance(field.default, bool))
        or "int |" in str(field.annotation)
    }
    absent = {setting for module, settings in FEATURES.items() if not has(module) for setting in settings}
    of_features = {setting for setting, (module, _) in OF_FEATURES.items() if has(module)}
    assert listed == (bounded - NO_LIMITS - absent) | of_features


@pytest.mark.needs("observe.metrics")
def test_what_counts_a_rejection_is_a_series_of_the_running_server(serve: Serve) -> None:
    with serve() as server:
        text = server.get("/metrics").text
    reasons = set(re.findall(r'mcp_http_rejections_total\{reason="(\w+)"\}', text))
    features = {"mcp_rate_limit": "inbound.rate_limit", "mcp_upstream_retries": "upstream.retry"}
    for row in rows():
        for name in re.findall(r"`(\w+)`", row.counted):
            absent = [module for prefix, module in features.items() if name.startswith(prefix) and not has(module)]
            if name.startswith("mcp_") and not absent:
                assert f"# TYPE {name} " in text, row
            elif not name.startswith("mcp_"):
                assert name in reasons | EXAMPLES, row
        if re.match(r"4\d\d|503", row.beyond):
            assert set(re.findall(r"`(\w+)`", row.counted)) & reasons, row
    assert reasons == set(get_args(Reason))
