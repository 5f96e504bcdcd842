"""Variables that libraries read: a value that they reject is one line with its name, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness import LAYER, Serve, config, environment, run_python
from weather_station.__main__ import SLUG, main
from weather_station.production.config import ConfigError, ProductionConfig, without_credentials
from weather_station.production.environment import rejected
from weather_station.server import create_server

COLLECTOR = "http://127.0.0.1:9"
PASSWORD = "pa[rt]"  # noqa: S105 (a text that must not appear)
TRACED = pytest.mark.needs("observe.telemetry")


def refusal(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        create_server(config())
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("HTTPS_PROXY", '"http://p"', "must be the URL of a proxy, such as http://proxy.example.com:3128"),
        ("https_proxy", "ftp://p", "must be the URL of a proxy"),
        ("ALL_PROXY", f"gopher://user:{PASSWORD}@p", "must be the URL of a proxy"),
        ("HTTP_PROXY", "http://p:x", "must be the URL of a proxy"),
        ("ALL_PROXY", "socks5://p:1080", "a SOCKS proxy needs a package: run uv add socksio"),
        ("SSL_CERT_FILE", "/nonexistent", "'/nonexistent' cannot be used: No such file or directory"),
        ("SSL_CERT_FILE", __file__, f"{__file__!r} cannot be used: "),
        ("SSLKEYLOGFILE", "/nonexistent/keys", "'/nonexistent/keys' cannot be used: No such file or directory"),
    ],
)
def test_a_variable_of_the_http_client(monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    (line,) = refusal(monkeypatch, **{name: value})
    assert line.startswith(f"{name}: {problem}")
    assert PASSWORD not in line


def test_each_of_several_variables_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"HTTP_PROXY": "http://p:3128", "HTTPS_PROXY": "ftp://p", "SSL_CERT_FILE": "/nonexistent"}
    lines = refusal(monkeypatch, **variables)
    assert [line.partition(":")[0] for line in lines] == ["HTTPS_PROXY", "SSL_CERT_FILE"]


def test_variables_that_only_fail_together_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", "1")
    monkeypatch.setenv("SECOND", "2")

    def build() -> None:
        if {"FIRST", "SECOND"} <= os.environ.keys():
            raise ValueError

    assert [name for name, _ in rejected(build, ("FIRST", "SECOND", "THIRD"))] == ["FIRST", "SECOND"]
    assert os.environ["FIRST"] == "1"
    assert rejected(build, ("FIRST",)) != []
    monkeypatch.delenv("SECOND")
    assert rejected(build, ("FIRST", "SECOND")) == []


@pytest.mark.needs("observe.metrics")
@pytest.mark.parametrize("name", ["PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"])
def test_the_directory_of_metrics_files(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    code = """
from harness import config, create_server
try: create_server(config())
except Exception as error: print(type(error).__name__, error)
"""
    done = run_python(code, **{name: "/nonexistent"})
    assert done.stdout.splitlines() == [
        f"ConfigError {name}: '/nonexistent' is not a directory that this process can write to"
    ]


@TRACED
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "999999"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-5"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "many"),
    ],
)
def test_a_variable_of_opentelemetry(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    (line,) = refusal(monkeypatch, OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR, **{name: value})
    assert line == f"{name}: OpenTelemetry rejects the value (ValueError)"


@TRACED
def test_a_variable_that_opentelemetry_reads_while_it_is_imported() -> None:
    done = command(OTEL_EXPORTER_OTLP_ENDPOINT=COLLECTOR, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT="many")
    assert done.returncode == 2
    assert done.stderr == f"{SLUG}: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: OpenTelemetry rejects the value (ValueError)\n"


def command(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run `--check` in a process of its own; the upstream does not answer."""
    # The package first, as its command does: the harness imports OpenTelemetry.
    start = "import weather_station, runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    options = [str(LAYER / "harness.py"), "harness:no_tools", "--check", "--port", "0"]
    return subprocess.run(
        [sys.executable, "-c", start, *options],
        env=environment(LOG_FORMAT="console", **variables) | {"PYTHONPATH": str(LAYER)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_plugins_that_are_not_installed_are_ignored() -> None:
    variables = {
        "OTEL_PROPAGATORS": "jaeger, tracecontext,b3",
        "OTEL_PYTHON_CONTEXT": "nope",
        "OTEL_PYTHON_METER_PROVIDER": "nope",
        "OTEL_PYTHON_TRACER_PROVIDER": "nope",
    }
    done = command(OTEL_SDK_DISABLED="true", **variables)
    assert "Traceback" not in done.stderr
    assert done.returncode == 1  # only the upstream is missing
    for name, plugins in {**variables, "OTEL_PROPAGATORS": "jaeger, b3"}.items():
        assert f"{name}: {plugins} is not installed and is ignored" in done.stdout


def test_the_known_plugins_stay() -> None:
    code = "import os, weather_station; print(os.environ.get('OTEL_PROPAGATORS'))"
    for value, kept in {"tracecontext, b3 ,baggage": "tracecontext,baggage", "none": "none", "b3": "None"}.items():
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(OTEL_PROPAGATORS=value),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == kept


def test_variables_of_other_servers_are_harmless(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"WEB_CONCURRENCY": "many", "FORWARDED_ALLOW_IPS": "x/y", "UVICORN_PORT": "x", "NO_PROXY": "http://[x"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with serve() as server:
        assert server.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{PASSWORD}@h", "redis://h"),
        (f"redis://u:{PASSWORD}/x@h:6379/0?db=1", "redis://h:6379/0"),
        ("http://user:p#ss?@h/v1", "http://h/v1"),
        ("http://[::1]:4318/v1/traces?key=x", "http://[::1]:4318/v1/traces"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("h:1", "h:1"),
    ],
)
def test_a_url_is_shown_without_credentials_whatever_it_is(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


@pytest.mark.parametrize("name", ["REDIS_URL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize("url", [f"redis://:{PASSWORD}@h", f"http://user:{PASSWORD}@[h", f"//{PASSWORD}:x@h:99999"])
def test_no_part_of_a_password_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, url: str
) -> None:
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv(name, url)
    assert main(["--check", "--port", "0"]) in (1, 2)
    shown = "".join(capfd.readouterr())
    for part in (PASSWORD, "rt]", "Traceback"):
        assert part not in shown


@pytest.mark.parametrize(
    ("name", "place"),
    [("JWT_ISSUER", "JWT_ISSUER"), ("JWT_ISSUERS", "JWT_ISSUERS: item 0"), ("JWT_AUDIENCE", "JWT_AUDIENCE: item 0")],
)
@pytest.mark.parametrize("value", ["http://[x", "https://h:99999", "https://h:x"])
def test_a_url_of_the_issuer_that_cannot_be_parsed(
    monkeypatch: pytest.MonkeyPatch, name: str, place: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        ProductionConfig.load()
    assert caught.value.problems == [f"{place}: must be a URL, or a text without the form of one"]
