"""No secret is in a text of a start, of `--check` or of a log line, wherever the environment has it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Serve
from weather_station import server as server_module
from weather_station.__main__ import main
from weather_station.production import on_startup, readiness_check
from weather_station.production.registry import Probe, registry_of
from weather_station.production.sdk import ProductionServer

KINDS: dict[str, tuple[str, str, str]] = {
    # A variable, its value ({file}: a file with the text after it), and the secret as a library's text may have it.
    "headers of telemetry": (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=Bearer%20hunter2hunter2,x=y",
        "hunter2hunter2",
    ),
    "headers of traces": ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "api-key=hunter2=hunter2", "hunter2=hunter2"),
    "URL of a database": ("DATABASE_URL", "postgres://admin:hunter2hunter2@db/orders", "hunter2hunter2"),
    "URL without a user": ("CACHE", "redis://:hunter%2Fhunter2@cache/0", "hunter/hunter2"),
    "connection string": ("ORDERS", "host=db user=admin password=hunter2hunter2", "hunter2hunter2"),
    "connection string of another library": ("ORDERS", "Server=db;Uid=admin;Pwd=hunter2hunter2;", "hunter2hunter2"),
    "password of a library": ("PGPASSWORD", "hunter2hunter2", "hunter2hunter2"),
    "key of the cloud": ("AWS_SECRET_ACCESS_KEY", "hunter2/hunter2+hunter2", "hunter2/hunter2+hunter2"),
    "token of a service": ("SLACK_BOT_TOKEN", "hunter2hunter2", "hunter2hunter2"),
    "DSN": ("SENTRY_DSN", "https://hunter2hunter2@sentry.example.com/1", "hunter2hunter2"),
    "file of a secret": ("DB_PASSWORD_FILE", "{file}hunter2hunter2\n", "hunter2hunter2"),
    "tokens": ("AUTH_TOKENS", "mallory:hunter2hunter2hunter2hunter2hunter2", "hunter2hunter2hunter2hunter2hunter2"),
    "file of tokens": (
        "AUTH_TOKENS_FILE",
        "{file}# callers\nmallory:hunter2hunter2hunter2hunter2hunter2 tier=internal\n",
        "hunter2hunter2hunter2hunter2hunter2",
    ),
    "keys of callers": ("UPSTREAM_KEYS_FILE", '{file}[keys]\nmallory = "hunter2hunter2"\n', "hunter2hunter2"),
}


@pytest.fixture(params=KINDS)
def secret(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    variable, value, text = KINDS[request.param]
    if value.startswith("{file}"):
        path = tmp_path / "secret"
        path.write_text(value.removeprefix("{file}"))
        value = str(path)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    return text


def _fails(secret: str) -> Callable[[ProductionServer], None]:
    async def connect() -> None:
        raise ConnectionError(f"cannot log in with '{secret}'")

    return lambda server: on_startup(server, connect)


def _cannot_register(secret: str) -> Callable[[ProductionServer], None]:
    def register(server: ProductionServer) -> None:
        raise ValueError(f"cannot log in with '{secret}'")

    return register


@pytest.mark.parametrize("register", [_fails, _cannot_register])
@pytest.mark.parametrize("options", [["--check"], ["--port", "0"]])
def test_a_start_that_fails_shows_no_secret(
    secret: str,
    register: Callable[[str], Callable[[ProductionServer], None]],
    options: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "register", register(secret))
    assert main(options) in (1, 2)
    shown = capsys.readouterr()
    assert secret not in shown.out + shown.err
    assert "hunter2" not in shown.out + shown.err
    assert "cannot log in with '[redacted]'" in shown.err or "AUTH" in shown.err


def test_check_shows_no_secret(
    secret: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails() -> None:
        raise ConnectionError(f"cannot log in with {secret}")

    def register(server: ProductionServer) -> None:
        registry = registry_of(server)
        registry.health.probes["database"] = Probe(f"db/{secret}", fails)
        registry.check_rows.append(lambda tools: [("row", secret), ("advice", secret)])
        registry.notices.append(secret)
        readiness_check(server, "database", fails)

    monkeypatch.setattr(server_module, "register", register)
    assert main(["--check"]) in (1, 2)
    shown = capsys.readouterr()
    assert "hunter2" not in shown.out + shown.err


@pytest.mark.parametrize("plain", [True, False])
def test_a_log_line_shows_no_secret(
    secret: str, serve: Serve, capfd: pytest.CaptureFixture[str], *, plain: bool
) -> None:
    with serve(**({"enable_logging": False} if plain else {})):
        logging.getLogger("own").warning("logged in with %s", secret, extra={"note": f"<{secret}>"})
    output = capfd.readouterr().err
    assert "logged in with" in output
    assert "hunter2" not in output


@pytest.mark.parametrize(
    ("variable", "value"),
    [("UPSTREAM_API_KEY_HEADER", "X-Api-Key"), ("CSRF_COOKIE_NAME", "orders-session")],
)
def test_what_is_no_secret_is_shown(
    variable: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(server_module, "register", _fails(f"{variable} {value}"))
    assert main(["--check"]) == 1
    assert f"'{variable} {value}'" in capsys.readouterr().err
