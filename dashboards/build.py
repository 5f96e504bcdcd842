"""Write the dashboards, and the alert rules for Kubernetes: `python -m dashboards.build` in the template's repository.

Each feature has at most one dashboard. Its file has the name of the feature's module, so that it is generated only for
projects with the feature. The dashboards link to each other by a common tag.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as dashboard_builder
from grafana_foundation_sdk.builders.dashboard import QueryVariable
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from . import rules
from .panels import Panel, Query, heat, label, number, series, states, traces, variable

DESTINATION = Path(__file__).resolve().parent.parent / "template" / "ops" / "grafana" / "dashboards"
TAG = "mcp-server"

SERVER = 'job=~"$job", instance=~"$instance"'
TOOL = f'{SERVER}, tool_name=~"$tool"'
NO_FAILURE = "[1234]xx|cancelled|success|exception"
"""Outcomes of attempts that say nothing against the upstream."""


def rate(by: str, metric: str, selector: str) -> str:
    """Return the increase of a counter per second, summed over all labels except `by`."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """Return `part` divided by `whole`, without a value where `whole` is 0."""
    return f"{part} / ({whole} > 0)"


def percentile(fraction: float, by: str, metric: str, selector: str) -> str:
    """Return a percentile of a histogram, for example the median for a `fraction` of 0.5."""
    return f"histogram_quantile({fraction}, {rate(by, f'{metric}_bucket', selector)})"


JOB = variable("job", "Job", "label_values(mcp_build_info, job)", "Name of the server in Prometheus")
ONE_JOB = variable(
    "job", "Job", "label_values(mcp_build_info, job)", "Name of the server in Prometheus and Jaeger", multiple=False
)
INSTANCE = variable("instance", "Instance", 'label_values(mcp_build_info{job=~"$job"}, instance)', "The replica")
TOOLS = variable("tool", "Tool", 'label_values(mcp_tool_calls_total{job=~"$job"}, tool_name)', "The called tool")

Rows = dict[str, list[Panel]]

METRICS: Rows = {
    "Now": [
        number(
            "Instances up",
            "Instances that Prometheus can scrape. Alert: ServerDown.",
            "none",
            Query('sum(up{component="mcp-server", job=~"$job"})'),
            bad_below=1,
        ),
        number(
            "Calls",
            "Tool calls per second, without rejected calls.",
            "reqps",
            Query('sum(job_tool:mcp_tool_calls:rate5m{job=~"$job", tool_name=~"$tool"})'),
        ),
        number(
            "Failing calls",
            "Share of failing tool calls over five minutes, without rejected calls. Alert: HighErrorRate.",
            "percentunit",
            Query('max(job:mcp_tool_errors:ratio_rate5m{job=~"$job"})'),
            warn_above=0.1,
        ),
        number(
            "Slowest tool (p99)",
            "99th percentile of the duration of the slowest tool, over five minutes. Alert: HighLatency.",
            "s",
            Query('max(job_tool:mcp_tool_latency_seconds:p99_rate5m{job=~"$job", tool_name=~"$tool"} >= 0)'),
            warn_above=5,
        ),
        number(
            "Running requests",
            "Requests that are running, without open subscriptions.",
            "none",
            Query(f"sum(mcp_active_requests{{{SERVER}}})"),
        ),
        label("Version", "Running versions.", Query(f"count by (version) (mcp_build_info{{{SERVER}}})", "{{version}}")),
    ],
    "Readiness": [
        states(
            "Ready",
            "Whether an instance passes its readiness checks and gets calls. Alert: NotReady.",
            Query(f"mcp_ready{{{SERVER}}}", "{{instance}}"),
            {"0": ("not ready", "red"), "1": ("ready", "green")},
        ),
    ],
    "Traffic": [
        series(
            "Calls by tool",
            "Tool calls per second, including rejected calls. The tool `unknown` stands for names that are not tools.",
            "reqps",
            Query(rate("tool_name", "mcp_tool_calls_total", TOOL), "{{tool_name}}"),
            stacked=True,
        ),
        series(
            "Calls by status",
            "Tool calls per second: success, input_required (a question to the user), client_error (the caller's "
            "mistake), rejected (by a limit, or during shutdown), or error (a failure of the server or its upstream).",
            "reqps",
            Query(rate("status", "mcp_tool_calls_total", TOOL), "{{status}}"),
            stacked=True,
        ),
    ],
    "Errors": [
        series(
            "Errors by type",
            "Failed calls per second, by tool and class of the exception.",
            "reqps",
            Query(
                rate("tool_name, error_type", "mcp_tool_errors_total", TOOL),
                "{{tool_name}}: {{error_type}}",
            ),
            stacked=True,
        ),
        series(
            "Failing share by tool",
            "Share of calls with the status error by tool, without rejected calls. The line is the threshold of "
            "HighErrorRate.",
            "percentunit",
            Query(
                share(
                    rate("tool_name", "mcp_tool_calls_total", f'{TOOL}, status="error"'),
                    rate("tool_name", "mcp_tool_calls_total", f'{TOOL}, status!="rejected"'),
                ),
                "{{tool_name}}",
            ),
            warn_above=0.1,
        ),
    ],
    "Requests of all methods": [
        series(
            "Requests by method",
            "MCP requests per second by method, with those that fail.",
            "reqps",
            Query(
                rate("mcp_method_name", "mcp_server_operation_duration_seconds_count", SERVER), "{{mcp_method_name}}"
            ),
            stacked=True,
        ),
        series(
            "p99 by method",
            "99th percentile of the duration of MCP requests, up to five minutes.",
            "s",
            Query(
                percentile(0.99, "mcp_method_name, le", "mcp_server_operation_duration_seconds", SERVER),
                "{{mcp_method_name}}",
            ),
        ),
        series(
            "Size of results",
            "99th percentile of the bytes of text and structure that a tool sends. Usual limit: MAX_RESULT_BYTES.",
            "bytes",
            Query(
                percentile(
                    0.99, "gen_ai_tool_name, le", "mcp_result_size_bytes", f'{SERVER}, gen_ai_tool_name=~"$tool"'
                ),
                "{{gen_ai_tool_name}}",
            ),
        ),
        series(
            "Rejected before a request",
            "HTTP requests and connections per second that were rejected before they were MCP requests, by reason. "
            "Alerts: ManyRejections, ConnectionLimitReached.",
            "reqps",
            Query(rate("reason", "mcp_http_rejections_total", SERVER), "{{reason}}"),
            stacked=True,
        ),
    ],
    "Latency": [
        series(
            "Percentiles",
            "Percentiles of the duration of calls, over all selected tools.",
            "s",
            *(
                Query(
                    percentile(fraction, "le", "mcp_tool_latency_seconds", TOOL),
                    name,
                )
                for fraction, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
            ),
        ),
        series(
            "p99 by tool",
            "99th percentile of the duration of calls. The line is the threshold of HighLatency.",
            "s",
            Query(
                percentile(0.99, "tool_name, le", "mcp_tool_latency_seconds", TOOL),
                "{{tool_name}}",
            ),
            warn_above=5,
        ),
        heat(
            "Heat map: $tool",
            "Distribution of the duration of calls.",
            "s",
            Query(
                f"sum by (le) (increase(mcp_tool_latency_seconds_bucket{{{TOOL}}}[$__rate_interval]))",
                "{{le}}",
            ),
            repeat="tool",
        ),
    ],
    "Saturation": [
        series(
            "Running requests",
            "Running requests by instance. If they grow while the traffic does not, requests are waiting.",
            "none",
            Query(f"sum by (instance) (mcp_active_requests{{{SERVER}}})", "{{instance}}"),
        ),
        series(
            "Connections",
            "Open connections of clients by listener. Alert: ConnectionLimitReached.",
            "none",
            Query(f"sum by (instance, listener) (mcp_http_connections{{{SERVER}}})", "{{instance}}: {{listener}}"),
        ),
        series(
            "Threads that outlive their call",
            "Threads of plain functions that still run although their call has ended. When all are stuck, calls of "
            "such functions are rejected.",
            "none",
            Query(f"sum by (instance) (mcp_tool_threads_stuck{{{SERVER}}})", "{{instance}}"),
        ),
        series(
            "CPU",
            "CPU cores used by the process, which can use at most one. Add replicas when it is near 1.",
            "none",
            Query(f"rate(process_cpu_seconds_total{{{SERVER}}}[$__rate_interval])", "{{instance}}"),
            warn_above=0.9,
        ),
    ],
    "Process": [
        series(
            "Memory",
            "Resident memory of the process.",
            "bytes",
            Query(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}"),
            width=8,
        ),
        series(
            "Open files",
            "Share of the allowed file descriptors that are in use.",
            "percentunit",
            Query(f"process_open_fds{{{SERVER}}} / process_max_fds{{{SERVER}}}", "{{instance}}"),
            warn_above=0.8,
            width=8,
        ),
        series(
            "Uptime",
            "Time since the process started. A drop is a restart.",
            "s",
            Query(f"time() - process_start_time_seconds{{{SERVER}}}", "{{instance}}"),
            width=8,
        ),
    ],
}

UPSTREAM: Rows = {
    "Upstream": [
        series(
            "Requests by outcome",
            "Upstream attempts per second, by host and outcome.",
            "reqps",
            Query(
                rate("host, outcome", "mcp_upstream_requests_total", SERVER),
                "{{host}}: {{outcome}}",
            ),
            stacked=True,
        ),
        series(
            "Failing share by host",
            "Share of attempts without a response or with a status of 500 or more.",
            "percentunit",
            Query(
                share(
                    rate(
                        "host",
                        "mcp_upstream_requests_total",
                        f'{SERVER}, outcome!~"[1234]xx|cancelled|success|exception"',
                    ),
                    rate("host", "mcp_upstream_requests_total", SERVER),
                ),
                "{{host}}",
            ),
        ),
        series(
            "Latency by host",
            "Median and 99th percentile of the duration of attempts.",
            "s",
            *(
                Query(
                    percentile(fraction, "host, le", "mcp_upstream_latency_seconds", SERVER),
                    f"{{{{host}}}}: {name}",
                )
                for fraction, name in ((0.5, "p50"), (0.99, "p99"))
            ),
        ),
        heat(
            "Heat map",
            "Distribution of the duration of attempts.",
            "s",
            Query(
                f"sum by (le) (increase(mcp_upstream_latency_seconds_bucket{{{SERVER}}}[$__rate_interval]))", "{{le}}"
            ),
        ),
    ],
}

RATE_LIMIT: Rows = {
    "Rate limit": [
        series(
            "Rejected calls",
            "Tool calls per second that the rate limit rejected, by instance.",
            "reqps",
            Query(
                rate("instance", "mcp_rate_limit_rejections_total", SERVER),
                "{{instance}}",
            ),
            stacked=True,
        ),
        series(
            "Rejected share",
            "Share of tool calls that the rate limit rejected. The line is the threshold of RateLimitSaturated.",
            "percentunit",
            Query(
                share(
                    rate("job", "mcp_rate_limit_rejections_total", SERVER), rate("job", "mcp_tool_calls_total", SERVER)
                ),
                "{{job}}",
            ),
            warn_above=0.1,
        ),
        series(
            "Rejected requests by reason and tier",
            "Requests per second that a limit of their caller rejected: permits (RateLimited), the daily quota "
            "(QuotaExceeded) or requests at the same time (TooManyAtOnce). Callers without a tier have `default`.",
            "reqps",
            Query(rate("reason, tier", "mcp_limit_rejections_total", SERVER), "{{tier}}: {{reason}}"),
            stacked=True,
        ),
    ],
}

RATE_LIMIT_REDIS: Rows = {
    "Redis": [
        series(
            "Calls without Redis",
            "Tool calls per second for which Redis did not answer, by instance.",
            "reqps",
            Query(
                rate("instance", "mcp_rate_limit_store_failures_total", SERVER),
                "{{instance}}",
            ),
            stacked=True,
        ),
        series(
            "Share without Redis",
            "Share of tool calls for which Redis did not answer. The line is the threshold of RateLimitStoreDown.",
            "percentunit",
            Query(
                share(
                    rate("job", "mcp_rate_limit_store_failures_total", SERVER),
                    rate("job", "mcp_tool_calls_total", SERVER),
                ),
                "{{job}}",
            ),
            warn_above=0.05,
        ),
    ],
}

RETRY: Rows = {
    "Retries": [
        series(
            "Retries",
            "Retries per second, by host.",
            "reqps",
            Query(rate("host", "mcp_upstream_retries_total", SERVER), "{{host}}"),
            stacked=True,
        ),
        series(
            "Share of retries",
            "Share of attempts that are retries. The line is the threshold of UpstreamRetriesHigh.",
            "percentunit",
            Query(
                share(
                    rate("job, host", "mcp_upstream_retries_total", SERVER),
                    rate("job, host", "mcp_upstream_requests_total", SERVER),
                ),
                "{{host}}",
            ),
            warn_above=0.2,
        ),
    ],
}

BACKGROUND: Rows = {
    "Background jobs": [
        series(
            "Runs",
            "Runs per minute of each job, over all replicas.",
            "none",
            Query(f"60 * {rate('job_name', 'mcp_background_runs_total', SERVER)}", "{{job_name}}"),
        ),
        series(
            "Failing runs",
            "Share of the runs that have failed. The log says why.",
            "percentunit",
            Query(
                share(
                    rate("job_name", "mcp_background_runs_total", f'{SERVER}, outcome="error"'),
                    rate("job_name", "mcp_background_runs_total", SERVER),
                ),
                "{{job_name}}",
            ),
        ),
        series(
            "Duration of a run (p95)",
            "95th percentile of the duration. Beyond its interval a job is always running.",
            "s",
            Query(percentile(0.95, "le, job_name", "mcp_background_run_seconds", SERVER), "{{job_name}}"),
        ),
    ],
}

CIRCUIT_BREAKER: Rows = {
    "Circuits": [
        states(
            "State",
            "State of each circuit, the worst over all instances. Alert: CircuitOpen.",
            Query(f"max by (host) (mcp_circuit_state{{{SERVER}}})", "{{host}}"),
            {"0": ("closed", "green"), "1": ("half-open", "yellow"), "2": ("open", "red")},
        ),
        number(
            "Open circuits",
            "Circuits that are not closed, over all instances.",
            "none",
            Query(f"sum(mcp_circuit_state{{{SERVER}}} > bool 0)"),
            warn_above=1,
        ),
        series(
            "Transitions",
            "Changes of state in five minutes, by circuit and new state.",
            "none",
            Query(
                f"sum by (host, state) (increase(mcp_circuit_transitions_total{{{SERVER}}}[5m]))", "{{host}}: {{state}}"
            ),
            width=20,
        ),
    ],
}

AUTHORIZATION: Rows = {
    "Authorization": [
        series(
            "Rejected requests",
            "Requests per second that the caller may not make, by reason: a scope is missing (InsufficientScope), or "
            "nobody may (AccessDenied).",
            "reqps",
            Query(rate("reason", "mcp_authorization_rejections_total", SERVER), "{{reason}}"),
            stacked=True,
        ),
        series(
            "Rejected before a request",
            "HTTP requests per second without a valid token (unauthenticated), or one without a scope (forbidden).",
            "reqps",
            Query(
                rate("reason", "mcp_http_rejections_total", f'{SERVER}, reason=~"unauthenticated|forbidden"'),
                "{{reason}}",
            ),
            stacked=True,
        ),
        series(
            "Questions to the user",
            "Requests per second that need the user's consent, by outcome: confirmed, declined, or unavailable, where "
            "the client cannot ask.",
            "reqps",
            Query(rate("outcome", "mcp_confirmations_total", SERVER), "{{outcome}}"),
            stacked=True,
        ),
    ],
}

TOKENS: Rows = {
    "Static tokens": [
        states(
            "File of tokens",
            "Whether AUTH_TOKENS_FILE is in effect completely. Alert: TokensStale.",
            Query(f"mcp_auth_tokens_stale{{{SERVER}}}", "{{instance}}"),
            {"0": ("in effect", "green"), "1": ("not in effect", "red")},
        ),
    ],
}

INTROSPECTION: Rows = {
    "Introspection of tokens": [
        series(
            "Requests to the introspection endpoint",
            "Requests per second by outcome: active or inactive tokens, failed requests, and limited, where an address "
            "presents too many inactive tokens.",
            "reqps",
            Query(rate("outcome", "mcp_token_introspections_total", SERVER), "{{outcome}}"),
            stacked=True,
        ),
    ],
}

AUDIT: Rows = {
    "Audit": [
        series(
            "Lost records",
            "Audit records per second that could not be written, by instance. Alert: AuditDropping.",
            "cps",
            Query(rate("instance", "mcp_audit_records_dropped_total", SERVER), "{{instance}}"),
            stacked=True,
        ),
    ],
}

SIGN_IN: Rows = {
    "Sign-in": [
        series(
            "Sign-ins",
            "Sign-ins and requests for tokens per second, by outcome. Alert: SignInFails, where they are unavailable.",
            "cps",
            Query(rate("outcome", "mcp_oauth_sign_ins_total", SERVER), "{{outcome}}"),
            stacked=True,
        ),
        series(
            "Tokens",
            "Tokens per second that were issued, refreshed or revoked, and sessions that ended. Alert: "
            "StolenRefreshToken, where a token was reused or a code replayed.",
            "cps",
            Query(rate("outcome", "mcp_oauth_tokens_total", SERVER), "{{outcome}}"),
            stacked=True,
        ),
        series(
            "Registrations",
            "Registrations of clients per second, by outcome. Alert: RegistrationFlood, where they are limited.",
            "cps",
            Query(rate("outcome", "mcp_oauth_registrations_total", SERVER), "{{outcome}}"),
            stacked=True,
        ),
    ],
}

CREDENTIALS: Rows = {
    "Credentials": [
        series(
            "Credentials for the upstream",
            "Credentials obtained per second, by outcome: rejected, where a caller has none, and failed, where they "
            "could not be obtained. Alert: UpstreamCredentialsFail.",
            "cps",
            Query(rate("outcome", "mcp_upstream_credentials_total", SERVER), "{{outcome}}"),
            stacked=True,
        ),
    ],
}

TOKEN_ENDPOINT: Rows = {
    "Token endpoint": [
        series(
            "Latency",
            "Median and 99th percentile of the duration of requests to the token endpoint.",
            "s",
            *(
                Query(percentile(fraction, "le", "mcp_upstream_token_latency_seconds", SERVER), name)
                for fraction, name in ((0.5, "p50"), (0.99, "p99"))
            ),
        ),
    ],
}

OPENAPI: Rows = {
    "OpenAPI document": [
        series(
            "Responses that do not fit the document",
            "Responses of the API per second that do not fit its OpenAPI document, by tool. The log says what is "
            "different.",
            "cps",
            Query(rate("tool", "mcp_openapi_mismatches_total", SERVER), "{{tool}}"),
            stacked=True,
        ),
    ],
}

SESSIONS: Rows = {
    "Sessions": [
        series(
            "Duration of sessions",
            "Median and 95th percentile of the duration of ended sessions, up to five minutes.",
            "s",
            *(
                Query(percentile(fraction, "le", "mcp_server_session_duration_seconds", SERVER), name)
                for fraction, name in ((0.5, "p50"), (0.95, "p95"))
            ),
        ),
    ],
}

TELEMETRY: Rows = {
    "Traces": [
        traces("Latest calls", "Latest traces of the server.", limit=30),
        traces("Failed calls", "Traces with an error.", tags="error=true", limit=30),
        traces("Slow calls", "Traces that took longer than a second.", minDuration="1s", limit=30),
    ],
    "Export": [
        series(
            "Failed exports",
            "Exports over OTLP per second that the collector did not accept, by signal. Alert: TelemetryExportFails.",
            "cps",
            Query(rate("signal", "mcp_telemetry_export_failures_total", 'job=~"$job"'), "{{signal}}"),
            stacked=True,
        ),
    ],
}


@dataclass(frozen=True)
class Spec:
    """A dashboard; its file has the name of the module."""

    module: str
    title: str
    description: str
    rows: Rows
    variables: tuple[QueryVariable, ...] = (JOB, INSTANCE)


SPECS = (
    Spec("metrics", "MCP server", "Traffic, errors, latency and saturation.", METRICS, (JOB, INSTANCE, TOOLS)),
    Spec("upstream", "MCP server: upstream", "Requests to the APIs that the tools call.", UPSTREAM),
    Spec("rate_limit", "MCP server: rate limit", "Calls that the rate limit rejected.", RATE_LIMIT),
    Spec("rate_limit_redis", "MCP server: rate limit in Redis", "Calls without a reply from Redis.", RATE_LIMIT_REDIS),
    Spec("retry", "MCP server: retries", "Retries of upstream requests.", RETRY),
    Spec("background", "MCP server: background jobs", "Jobs at intervals.", BACKGROUND),
    Spec("circuit_breaker", "MCP server: circuits", "Circuits of upstream hosts.", CIRCUIT_BREAKER),
    Spec("authorization", "MCP server: authorization", "Requests that callers may not make.", AUTHORIZATION),
    Spec("auth_token", "MCP server: static tokens", "The file of tokens.", TOKENS),
    Spec("auth_introspection", "MCP server: introspection", "Checks of opaque tokens.", INTROSPECTION),
    Spec("audit", "MCP server: audit", "Audit records that are lost.", AUDIT),
    Spec("auth_oauth", "MCP server: sign-in", "Sign-ins, tokens and registrations of clients.", SIGN_IN),
    Spec("credentials_source", "MCP server: credentials", "Credentials for the upstream.", CREDENTIALS),
    Spec("credentials_token", "MCP server: token endpoint", "Requests for tokens for the upstream.", TOKEN_ENDPOINT),
    Spec("openapi", "MCP server: OpenAPI", "Responses beside the API's document.", OPENAPI),
    Spec("sessions", "MCP server: sessions", "Sessions over HTTP.", SESSIONS),
    Spec("telemetry", "MCP server: traces", "Tool calls in Jaeger.", TELEMETRY, (ONE_JOB,)),
)


def build() -> dict[str, str]:
    """Return every dashboard as JSON text, by file name."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    return {f"{spec.module}.json": encoder.encode(_dashboard(spec)) + "\n" for spec in SPECS}


def _dashboard(spec: Spec) -> dashboard.Dashboard:
    board = (
        dashboard_builder.Dashboard(spec.title)
        .uid(f"mcp-{spec.module.replace('_', '-')}")
        .description(spec.description)
        .tags([TAG])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard_builder.DashboardLink("MCP server")
            .type(dashboard.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard_builder.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for choice in spec.variables:
        board.with_variable(choice)
    ids = count(1)
    for title, panels in spec.rows.items():
        board.with_row(dashboard_builder.Row(title).id(next(ids)))
        for panel in panels:
            board.with_panel(panel.id(next(ids)))
    built = board.build()
    for link in built.links or []:
        link.placement = ""  # the default of the SDK hides the link in a menu
    return built


def main() -> int:
    for folder, files in ((DESTINATION, build()), (rules.DESTINATION, rules.build())):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
