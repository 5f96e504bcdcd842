"""Writes the dashboards, and the alert rules for Kubernetes: `python -m dashboards.build` in the template's repository.

One dashboard a feature, under the name of the feature's module, so that dashboards switch with the answers. Each finds
the others by their tag.
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


def rate(by: str, metric: str, selector: str) -> str:
    """How fast a counter grows a second, summed over all labels but `by`."""
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def share(part: str, whole: str) -> str:
    """`part` of `whole`; nothing where there is no whole."""
    return f"{part} / ({whole} > 0)"


def quantile(share_below: float, by: str, metric: str, selector: str) -> str:
    """The value that this share of a histogram's observations does not exceed."""
    return f"histogram_quantile({share_below}, {rate(by, f'{metric}_bucket', selector)})"


JOB = variable("job", "Job", "label_values(mcp_build_info, job)", "The server, as Prometheus calls it")
ONE_JOB = variable(
    "job", "Job", "label_values(mcp_build_info, job)", "The server, as Prometheus and Jaeger call it", many=False
)
INSTANCE = variable("instance", "Instance", 'label_values(mcp_build_info{job=~"$job"}, instance)', "The replica")
TOOLS = variable(
    "tool", "Tool", 'label_values(mcp_tool_calls_total{job=~"$job"}, tool_name)', "The tool that was called"
)

Rows = dict[str, list[Panel]]

METRICS: Rows = {
    "Now": [
        number(
            "Instances up",
            "Servers that Prometheus can scrape. Alert: ServerDown.",
            "none",
            Query('sum(up{component="mcp-server", job=~"$job"})'),
            bad_below=1,
        ),
        number(
            "Calls",
            "Tool calls a second, without those that the rate limit refused.",
            "reqps",
            Query('sum(job_tool:mcp_tool_calls:rate5m{job=~"$job", tool_name=~"$tool"})'),
        ),
        number(
            "Failing calls",
            "Share of the tool calls that fail, over five minutes. Alert: HighErrorRate.",
            "percentunit",
            Query('max(job:mcp_tool_errors:ratio_rate5m{job=~"$job"})'),
            warn_above=0.1,
        ),
        number(
            "Slowest tool (p99)",
            "Time within which 99 % of the calls of the slowest tool end, over five minutes. Alert: HighLatency.",
            "s",
            Query('max(job_tool:mcp_tool_latency_seconds:p99_rate5m{job=~"$job", tool_name=~"$tool"} >= 0)'),
            warn_above=5,
        ),
        number("Running calls", "Tool calls that run now.", "none", Query(f"sum(mcp_active_requests{{{SERVER}}})")),
        label("Version", "What runs.", Query(f"count by (version) (mcp_build_info{{{SERVER}}})", "{{version}}")),
    ],
    "Readiness": [
        states(
            "Ready",
            "Whether an instance passes its readiness checks, and so gets calls. Alert: NotReady.",
            Query(f"mcp_ready{{{SERVER}}}", "{{instance}}"),
            {"0": ("not ready", "red"), "1": ("ready", "green")},
        ),
    ],
    "Traffic": [
        series(
            "Calls by tool",
            "Tool calls a second, refused ones included. The tool `unknown` stands for names that do not exist.",
            "reqps",
            Query(rate("tool_name", "mcp_tool_calls_total", TOOL), "{{tool_name}}"),
            stacked=True,
        ),
        series(
            "Calls by outcome",
            "Tool calls a second: answered, failed, or refused (by the rate limit, or while the server stops).",
            "reqps",
            Query(rate("status", "mcp_tool_calls_total", TOOL), "{{status}}"),
            stacked=True,
        ),
    ],
    "Errors": [
        series(
            "Errors by cause",
            "Failed calls a second, by tool and class of the exception.",
            "reqps",
            Query(
                rate("tool_name, error_type", "mcp_tool_errors_total", TOOL),
                "{{tool_name}}: {{error_type}}",
            ),
            stacked=True,
        ),
        series(
            "Failing share by tool",
            "Share of a tool's calls that fail; refused calls do not count. The line is the alert's threshold.",
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
    "Latency": [
        series(
            "Percentiles",
            "Time within which that share of the calls ends, all chosen tools together.",
            "s",
            *(
                Query(
                    quantile(below, "le", "mcp_tool_latency_seconds", TOOL),
                    name,
                )
                for below, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
            ),
        ),
        series(
            "p99 by tool",
            "Time within which 99 % of a tool's calls end. The line is the alert's threshold.",
            "s",
            Query(
                quantile(0.99, "tool_name, le", "mcp_tool_latency_seconds", TOOL),
                "{{tool_name}}",
            ),
            warn_above=5,
        ),
        heat(
            "Heat map: $tool",
            "How many calls took how long.",
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
            "Running calls",
            "Tool calls that run, by instance. Growing while the traffic does not: something waits.",
            "none",
            Query(f"sum by (instance) (mcp_active_requests{{{SERVER}}})", "{{instance}}"),
        ),
        series(
            "CPU",
            "Cores in use by the process. One process uses one core at most: near 1, add replicas.",
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
            "File descriptors in use, as a share of how many the process may open.",
            "percentunit",
            Query(f"process_open_fds{{{SERVER}}} / process_max_fds{{{SERVER}}}", "{{instance}}"),
            warn_above=0.8,
            width=8,
        ),
        series(
            "Uptime",
            "Time since the process began. A drop is a restart.",
            "s",
            Query(f"time() - process_start_time_seconds{{{SERVER}}}", "{{instance}}"),
            width=8,
        ),
    ],
}

CLIENT: Rows = {
    "Upstream": [
        series(
            "Requests by outcome",
            "Attempts a second to get an answer from an upstream, by host and what came of them.",
            "reqps",
            Query(
                rate("host, outcome", "mcp_upstream_requests_total", SERVER),
                "{{host}}: {{outcome}}",
            ),
            stacked=True,
        ),
        series(
            "Failing share by host",
            "Share of the attempts that got no answer, or a server's error.",
            "percentunit",
            Query(
                share(
                    rate("host", "mcp_upstream_requests_total", f'{SERVER}, outcome!~"[1234]xx|cancelled"'),
                    rate("host", "mcp_upstream_requests_total", SERVER),
                ),
                "{{host}}",
            ),
        ),
        series(
            "Latency by host",
            "Time within which 50 % and 99 % of the attempts end.",
            "s",
            *(
                Query(
                    quantile(below, "host, le", "mcp_upstream_latency_seconds", SERVER),
                    f"{{{{host}}}}: {name}",
                )
                for below, name in ((0.5, "p50"), (0.99, "p99"))
            ),
        ),
        heat(
            "Heat map",
            "How many attempts took how long.",
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
            "Refused calls",
            "Tool calls a second that the rate limit refused, by instance.",
            "reqps",
            Query(
                rate("instance", "mcp_rate_limit_rejections_total", SERVER),
                "{{instance}}",
            ),
            stacked=True,
        ),
        series(
            "Refused share",
            "Share of the tool calls that the rate limit refused. The line is the threshold of RateLimitSaturated.",
            "percentunit",
            Query(
                share(
                    rate("job", "mcp_rate_limit_rejections_total", SERVER), rate("job", "mcp_tool_calls_total", SERVER)
                ),
                "{{job}}",
            ),
            warn_above=0.1,
        ),
    ],
}

RATE_LIMIT_REDIS: Rows = {
    "Redis": [
        series(
            "Calls without Redis",
            "Tool calls a second for which Redis could not be asked, by instance.",
            "reqps",
            Query(
                rate("instance", "mcp_rate_limit_store_failures_total", SERVER),
                "{{instance}}",
            ),
            stacked=True,
        ),
        series(
            "Share without Redis",
            "Share of the tool calls for which Redis could not be asked. The line: RateLimitStoreDown.",
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
            "Attempts a second that repeated a failed one, by host.",
            "reqps",
            Query(rate("host", "mcp_upstream_retries_total", SERVER), "{{host}}"),
            stacked=True,
        ),
        series(
            "Share of retries",
            "Share of the attempts that repeated a failed one. The line is the threshold of UpstreamRetriesHigh.",
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

CIRCUIT_BREAKER: Rows = {
    "Circuits": [
        states(
            "State",
            "State of each host's circuit, the worst of all instances. Alert: CircuitOpen.",
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
            "Changes of a circuit's state in five minutes, by the new state.",
            "none",
            Query(
                f"sum by (host, state) (increase(mcp_circuit_transitions_total{{{SERVER}}}[5m]))", "{{host}}: {{state}}"
            ),
            width=20,
        ),
    ],
}

TELEMETRY: Rows = {
    "Traces": [
        traces("Latest calls", "The latest traces of the server.", limit=30),
        traces("Failed calls", "Traces with an error.", tags="error=true", limit=30),
        traces("Slow calls", "Traces that took longer than a second.", minDuration="1s", limit=30),
    ],
}


@dataclass(frozen=True)
class Spec:
    """One dashboard; its file has the name of the feature's module."""

    module: str
    title: str
    description: str
    rows: Rows
    variables: tuple[QueryVariable, ...] = (JOB, INSTANCE)


SPECS = (
    Spec("metrics", "MCP server", "Traffic, errors, latency and saturation.", METRICS, (JOB, INSTANCE, TOOLS)),
    Spec("client", "MCP server: upstream", "The APIs that the tools call.", CLIENT),
    Spec("rate_limit", "MCP server: rate limit", "Calls that were refused.", RATE_LIMIT),
    Spec("rate_limit_redis", "MCP server: rate limit in Redis", "Whether the limits are shared.", RATE_LIMIT_REDIS),
    Spec("retry", "MCP server: retries", "Upstream requests that were repeated.", RETRY),
    Spec("circuit_breaker", "MCP server: circuits", "Upstreams that get a rest.", CIRCUIT_BREAKER),
    Spec("telemetry", "MCP server: traces", "Tool calls in Jaeger.", TELEMETRY, (ONE_JOB,)),
)


def build() -> dict[str, str]:
    """Every dashboard as JSON text, by the name of its file."""
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
        link.placement = ""  # the SDK's default would hide the link in a menu
    return built


def main() -> int:
    for folder, files in ((DESTINATION, build()), (rules.DESTINATION, rules.build())):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
