"""The owner's options.py: settings with one line for each problem and no secret in any text, and what hosts show."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mcp.server.mcpserver import Context

from harness import INITIALIZE, Serve, config, copy_package, environment, has, modern, result_of
from weather_station.__main__ import SLUG, main
from weather_station.production import Settings
from weather_station.production.config import (
    ANSWERS,
    ConfigError,
    ProductionConfig,
    StartError,
    has_file_variable,
    variable,
)
from weather_station.production.sdk import ProductionServer
from weather_station.production.serve import env_file, options
from weather_station.server import create_server

PASSWORD = "pa[rt]/of-it"  # noqa: S105 (a text that must not appear)
HEAD = """
from typing import Annotated, Literal
from pydantic import BaseModel, Field, PostgresDsn, SecretBytes, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict
from weather_station import production
from weather_station.production import Secret

"""
SETTINGS = """
class Settings(production.Settings):
    database_url: Secret[PostgresDsn] = Field(description="Database of the orders")
    page_size: int = Field(default=50, ge=1, le=500, description="Orders on a page")
    ratio: float = Field(default=0.5, gt=0, lt=1)
    webhook_secret: SecretStr | None = Field(default=None, description="Signs webhooks", examples=["<random>"])
"""
GOOD = "postgresql://app:secret-of-the-db@localhost/orders"

Own = Callable[[str], ModuleType]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Own:
    """`own(source)` makes `source` the project's options.py."""

    def use(source: str) -> ModuleType:
        module = ModuleType("weather_station.options")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(HEAD + source, "options.py", "exec"), vars(module))  # noqa: S102 (the source of a test)
        monkeypatch.setattr(options, "load", lambda: module)
        return module

    return use


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **variables: str) -> list[str]:
    """Return the lines with which the command ends for these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["--port", "0"]) in (1, 2)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert PASSWORD not in err + out
    return [line.removeprefix(f"{SLUG}: ") for line in err.splitlines()]


def test_problems_of_own_settings_are_listed_with_the_templates(
    own: Own, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(SETTINGS)
    variables = {"PORT": "x", "METRICS_PORT": "70000", "PAGE_SIZE": "501", "RATIO": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    lines = [line.removeprefix(f"{SLUG}: ") for line in capsys.readouterr().err.splitlines()]
    assert [line.partition(":")[0] for line in lines] == ["PORT", "METRICS_PORT", "DATABASE_URL", "PAGE_SIZE", "RATIO"]
    assert lines[2] == "DATABASE_URL: is required (Database of the orders)"
    assert lines[3].endswith("(accepted: from 1 to 500)")
    assert lines[4].endswith("(accepted: above 0, below 1)")


def test_problems_of_own_settings_are_listed_with_a_features(own: Own) -> None:
    own(SETTINGS)
    absent = next(name for name in ("jwt", "token") if name != ANSWERS["config"]["auth"])
    with pytest.raises(ConfigError) as caught:
        create_server(config(auth=absent))
    first, second = caught.value.problems
    assert first.startswith(f"auth={absent}: ")
    assert second.startswith("DATABASE_URL: ")


def test_problems_are_json_where_the_log_is(
    own: Own, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(SETTINGS)
    monkeypatch.setenv("LOG_FORMAT", "json")
    monkeypatch.setenv("DATABASE_URL", f"mysql://admin:{PASSWORD}@db")
    assert main([]) == 2
    err = capsys.readouterr().err
    assert PASSWORD not in err
    (line,) = map(json.loads, err.splitlines())
    assert line["level"] == "error"
    assert line["message"].startswith("DATABASE_URL: Input should be a valid URL")


QUOTING = """
class Part(BaseModel):
    key: SecretStr
    size: int

class Settings(production.Settings):
    key: SecretStr | None = None
    raw: SecretBytes | None = None
    parts: list[Part] = []
    plain: str = ""

    @field_validator("key", "raw", "plain")
    @classmethod
    def quote(cls, value: object) -> object:
        text = value if isinstance(value, str) else value.get_secret_value()
        raise {kind}(f"cannot use {{text!s}}")
"""


@pytest.mark.parametrize("kind", ["ValueError", "KeyError", "RuntimeError"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KEY", PASSWORD),
        ("KEY", f"redis://:{PASSWORD}@host:1"),
        ("PLAIN", f"mysql://admin:{PASSWORD.replace('/', '')}@db"),
        ("PARTS", json.dumps([{"key": PASSWORD, "size": PASSWORD}])),
        ("PARTS", PASSWORD),
    ],
)
def test_no_text_has_the_value_of_a_secret(
    own: Own,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    kind: str,
) -> None:
    own(QUOTING.format(kind=kind))
    lines = refused(monkeypatch, capsys, **{name: value})
    assert len(lines) == 1
    assert PASSWORD.replace("/", "") not in lines[0]


def test_a_startup_callback_that_quotes_a_secret(
    own: Own, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from weather_station import server as server_module
    from weather_station.production import on_startup

    def register(server: ProductionServer) -> None:
        async def connect() -> None:
            raise ConnectionError(f"cannot connect to {Settings.of(server).database_url.get_secret_value()}")  # type: ignore[attr-defined]

        on_startup(server, connect)

    own(SETTINGS)
    monkeypatch.setattr(server_module, "register", register)
    (line,) = refused(monkeypatch, capsys, DATABASE_URL=f"postgresql://app:{PASSWORD.replace('/', '')}@db/orders")
    assert "connect failed with ConnectionError" in line
    assert "pa[rt]" not in line


def secrets_of_the_template() -> list[str]:
    return [variable(name) for name in ProductionConfig.model_fields if has_file_variable(ProductionConfig, name)]


def test_every_secret_of_the_template_can_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_text("redis://:from-a-file@localhost\n")
    names = secrets_of_the_template()
    assert "REDIS_URL" in names
    for name in names:
        with monkeypatch.context() as environment:
            environment.setenv(f"{name}_FILE", str(file))
            value = getattr(ProductionConfig.load(), name.lower())
            assert value.get_secret_value() == "redis://:from-a-file@localhost"
    monkeypatch.setenv("WEATHER_KEY_FILE", str(file))
    key = config(upstream_api_key_env="WEATHER_KEY").upstream_api_key
    assert key is not None
    assert key.get_secret_value() == "redis://:from-a-file@localhost"


@pytest.mark.parametrize("name", ["REDIS_URL", "DATABASE_URL", "WEATHER_KEY"])
@pytest.mark.parametrize(
    ("content", "value", "problem"),
    [
        (None, "", "_FILE: '{path}' cannot be read: No such file or directory"),
        (b"", "", "_FILE: '{path}' is empty"),
        (b"\r\n", "", "_FILE: '{path}' is empty"),
        (b"  \t\n", "", "_FILE: '{path}' is empty"),
        (b"\xff\xfe\x00", "", "_FILE: '{path}' cannot be read: it is not UTF-8 text"),
        (b"x" * (1024 * 1024 + 1), "", "_FILE: '{path}' is larger than 1 MiB"),
        (GOOD.encode(), GOOD, " and {name}_FILE are both set: use one of them"),
    ],
)
def test_a_file_that_cannot_be_used(
    own: Own,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    value: str,
    problem: str,
) -> None:
    own(SETTINGS)
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("DATABASE_URL", GOOD)
    monkeypatch.setenv("UPSTREAM_API_KEY_ENV", "WEATHER_KEY")
    monkeypatch.delenv(name, raising=False)
    variables = {f"{name}_FILE": str(path)} | ({name: value} if value else {})
    assert refused(monkeypatch, capsys, **variables) == [f"{name}{problem.format(path=path, name=name)}"]


def test_a_tool_reads_the_settings(own: Own, monkeypatch: pytest.MonkeyPatch, serve: Serve, tmp_path: Path) -> None:
    module = own(SETTINGS)
    path = tmp_path / "database"
    path.write_text(f"{GOOD}\n")
    monkeypatch.setenv("DATABASE_URL_FILE", str(path))
    monkeypatch.setenv("PAGE_SIZE", "7")

    async def shown(ctx: Context[Any, Any]) -> str:
        settings = module.Settings.of(ctx)
        return f"{settings.page_size} {settings.database_url} {settings.database_url.get_secret_value()}"

    with serve(lambda server: server.add_tool(shown)) as server:
        assert server.call("shown")["content"][0]["text"] == f"7 ********** {GOOD}"
        assert module.Settings.of(server.server).page_size == 7


def test_without_the_file_there_are_no_settings(serve: Serve) -> None:
    with serve() as server, pytest.raises(TypeError, match=r"without Settings"):
        Settings.of(server.server)


def test_the_server_starts_without_the_file(tmp_path: Path) -> None:
    copy_package(tmp_path)
    (tmp_path / "weather_station" / "options.py").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "weather_station", "--check", "--port", "0"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "http://127.0.0.1:9" in done.stdout  # only the upstream is missing
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("Settings = 5", "Settings must be a class Settings(production.Settings)"),
        ("class Settings(BaseModel):\n    x: int = 1", "Settings must be a class Settings(production.Settings)"),
        ("class Settings(production.Settings):\n    port: int = 1", "PORT belongs to the template"),
        (
            "class Settings(production.Settings):\n    a: str = Field('', validation_alias='BASE_URL')",
            "BASE_URL belongs",
        ),
        ("INSTRUCTION = 'x'", "INSTRUCTION is not used: did you mean INSTRUCTIONS?"),
        ("INSTRUCTIONS = ['x']", "INSTRUCTIONS: Input should be a valid string"),
        ("WEBSITE_URL = 'shop'", "WEBSITE_URL: must be an http"),
        ("ICONS = ['x']", "ICONS[0]: "),
        ("CACHE_HINTS = {'tools/call': 5}", "CACHE_HINTS['tools/call']"),
        ("EXTENSIONS = [object()]", "EXTENSIONS[0]: Input should be an instance of Extension"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(own: Own, source: str, problem: str) -> None:
    own(source)
    with pytest.raises(StartError) as caught:
        create_server(config())
    assert str(caught.value).startswith(f"options.py: {problem}")
    assert "\n" not in str(caught.value)


def test_check_lists_the_settings(
    own: Own, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(SETTINGS + "\nINSTRUCTIONS = 'x' * 2049")
    monkeypatch.setenv("DATABASE_URL", GOOD)
    monkeypatch.setenv("PAGE_SIZE", "7")
    monkeypatch.setenv("RATE_LIMIT_REQUEST", "5")
    main(["--check", "--port", "0"])
    out = capsys.readouterr().out
    rows = [tuple(line.split(maxsplit=1)) for line in out.splitlines()]
    assert [text for name, text in rows if name == "setting"] == [
        "DATABASE_URL is set",
        "PAGE_SIZE = 7",
        "RATIO = 0.5 (default)",
        "WEBHOOK_SECRET is not set (default)",
    ]
    assert ("advice", "INSTRUCTIONS have 2049 characters: Claude Code cuts them after 2048") in rows
    assert (
        "notice",
        "RATE_LIMIT_REQUEST is set but is not a setting of this server: did you mean RATE_LIMIT_REQUESTS?",
    ) in rows
    assert "secret-of-the-db" not in out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("RATELIMIT_REQUESTS", "RATE_LIMIT_REQUESTS"),
        ("AUTH_TOKEN", "AUTH_TOKENS"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("REDIS_URL_FIEL", "REDIS_URL_FILE"),
        ("base_urls", "BASE_URL"),
        ("DIRCT", "DIRECT"),
        ("SSE_AFTER_SECOND", "SSE_AFTER_SECONDS"),
        ("REDIRECT", None),
        ("DIRECTORY", None),
        ("HOSTNAME", None),
        ("KUBERNETES_PORT", None),
        ("OTEL_EXPORTER_OTLP_ENDPOINTS", None),
        ("PGDATABASE", None),
    ],
)
def test_a_typing_error_is_pointed_out(
    own: Own, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str | None
) -> None:
    own(SETTINGS.replace("Field(description", f"Field(default={GOOD!r}, description"))
    monkeypatch.setenv(typed, "5")
    notices = [notice for notice in create_server(config()).registry.notices if notice.startswith(f"{typed} ")]
    expected = [f"{typed} is set but is not a setting of this server: did you mean {meant}?"] if meant else []
    assert notices == expected


def test_a_required_setting_that_is_missing_names_the_typing_error(
    own: Own, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own(SETTINGS)
    (line,) = refused(monkeypatch, capsys, DATABSE_URL=GOOD)
    assert line == "DATABASE_URL: is required (Database of the orders); DATABSE_URL is set: is it a typo?"


SECTION = f"{options.SECTION}".ljust(109, "-")
PART = f"""{SECTION}
# `uv run {SLUG} --init-env` writes this part
# Database of the orders (required)
# or DATABASE_URL_FILE, the path of a file with it
DATABASE_URL=
# Orders on a page (accepted: from 1 to 500)
#PAGE_SIZE=50
# accepted: above 0, below 1
#RATIO=0.5
# Signs webhooks
# or WEBHOOK_SECRET_FILE, the path of a file with it
WEBHOOK_SECRET=<random>
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("PORT=8000\n", f"PORT=8000\n\n{PART}"),
        ("PORT=8000", f"PORT=8000\n\n{PART}"),
        ("", PART),
        (f"PORT=8000\n\n{SECTION}\n# `uv run x --init-env` writes this part\n", f"PORT=8000\n\n{PART}"),
        (f"{SECTION}\n#OLD=1\n# --- Mine ---\nX=1\n", f"{PART}\n# --- Mine ---\nX=1\n"),
        (f"{PART}\n# --- Mine ---\nX=1\n", f"{PART}\n# --- Mine ---\nX=1\n"),
    ],
)
def test_init_env_writes_the_settings_to_the_example(
    own: Own,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: str,
    after: str,
) -> None:
    own(SETTINGS)
    monkeypatch.chdir(tmp_path)
    example = tmp_path / ".env.example"
    example.write_text(before)
    for changed in (before != after, False):
        (tmp_path / ".env").unlink(missing_ok=True)
        assert main(["--init-env"]) == 0
        assert example.read_text() == after
        assert ("wrote the settings of options.py" in capsys.readouterr().err) is changed
    made = (tmp_path / ".env").read_text()
    assert env_file.PLACEHOLDER not in made
    assert "WEBHOOK_SECRET=" in made


def test_check_says_that_the_example_is_behind(own: Own, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own(SETTINGS)
    monkeypatch.setenv("DATABASE_URL", GOOD)
    monkeypatch.chdir(tmp_path)
    registry = create_server(config()).registry
    assert list(options.advice(registry)) == []
    (tmp_path / ".env.example").write_text("PORT=8000\n")
    assert list(options.advice(registry)) == [f".env.example lacks settings of options.py: run {SLUG} --init-env"]
    options.write_example(tmp_path)
    assert list(options.advice(registry)) == []


@pytest.mark.needs("observe.redaction")
def test_logs_and_traces_have_no_secret_of_the_owner(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    from weather_station.production.observe.redaction import Redactor, configured_secrets

    own(QUOTING.partition("    @field_validator")[0])
    monkeypatch.setenv("KEY", "redis://user:pass%2Fword@host/0")
    monkeypatch.setenv("RAW", "raw-bytes-of-a-key")
    monkeypatch.setenv("PARTS", json.dumps([{"key": "nested-secret", "size": 1}]))
    redactor = Redactor(configured_secrets(create_server(config()).registry))
    for secret in ("pass%2Fword", "pass/word", "raw-bytes-of-a-key", "nested-secret"):
        assert secret not in redactor.text(f"before {secret} after")
        assert secret not in json.dumps(redactor.value({"city": f"x{secret}x"}))


@pytest.mark.needs("observe.logging")
def test_a_log_line_has_no_secret_of_the_owner(
    own: Own, monkeypatch: pytest.MonkeyPatch, serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    own(SETTINGS)
    monkeypatch.setenv("DATABASE_URL", GOOD)

    async def crash() -> None:
        logging.getLogger("tool").warning("connecting to %s", GOOD)
        raise RuntimeError(f"no route to {GOOD.replace('postgresql', 'postgres')}")

    with serve(lambda server: server.add_tool(crash), log_format="json") as server:
        assert server.call("crash")["isError"]
    err = capfd.readouterr().err
    assert "connecting to" in err
    assert "secret-of-the-db" not in err


PRESENTATION = """
from mcp.server.apps import Apps
from mcp.server.caching import CacheHint
from mcp_types import Icon

INSTRUCTIONS = "Find an order first."
ICONS = [Icon(src="https://shop.example.com/icon.png")]
WEBSITE_URL = "https://shop.example.com"
CACHE_HINTS = {"tools/list": CacheHint(ttl_ms=60_000, scope="public")}
apps = Apps()

@apps.tool(resource_uri="ui://clock/app.html")
async def show_time(zone: str = "UTC") -> str:
    "Show the time."
    return f"12:00 in {zone}"

apps.add_html_resource("ui://clock/app.html", "<p>")
EXTENSIONS = [apps]
"""


def test_hosts_see_what_the_owner_presents(own: Own, serve: Serve) -> None:
    own(PRESENTATION)
    with serve() as server:
        shown = result_of(server.post(INITIALIZE))
        assert shown["instructions"] == "Find an order first."
        assert shown["serverInfo"]["websiteUrl"] == "https://shop.example.com"
        assert shown["serverInfo"]["icons"] == [{"src": "https://shop.example.com/icon.png"}]
        content, headers = modern("tools/list")
        listed = result_of(server.client.post(server.url, json=content, headers=headers))
        assert (listed["ttlMs"], listed["cacheScope"]) == (
            60_000,
            "private" if has("inbound.authorization") else "public",
        )
        (tool,) = [tool for tool in listed["tools"] if tool["name"] == "show_time"]
        assert tool["_meta"]["ui"]["resourceUri"] == "ui://clock/app.html"
        assert server.call("show_time")["content"][0]["text"] == "12:00 in UTC"
        metrics = server.metrics()
        if metrics.text:
            assert metrics.value("mcp_tool_calls_total", tool_name="show_time", status="success") == 1
