"""Configuration: where a value comes from, and the message for a value that cannot be used."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import pytest
from pydantic import SecretStr, ValidationError

from harness import ENVIRONMENT, config
from weather_station.__main__ import main
from weather_station.production.config import (
    ANSWERS,
    CHOSEN_AT_COPY,
    MIN_VARIABLE,
    ConfigError,
    ProductionConfig,
    about,
    known_variables,
    settings_models,
    variable,
)
from weather_station.production.features import FEATURES
from weather_station.server import create_server

SECRET = "hunter2"  # noqa: S105 (a text that must not appear)
SWITCHES = {name.removeprefix("enable_") for name in ProductionConfig.model_fields if name.startswith("enable_")}


def problems(**overrides: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ProductionConfig.load(**overrides)
    return caught.value.problems


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out of the environment what tests of servers need."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)


def test_without_settings_the_values_are_the_answers_and_then_the_defaults() -> None:
    found = ProductionConfig.load()
    for name, answer in ANSWERS["config"].items():
        assert getattr(found, name) == answer, name
    assert (found.transport, found.host, found.port) == ("http", "127.0.0.1", 8000)
    assert (found.tool_timeout_seconds, found.shutdown_grace_seconds) == (60.0, 30.0)
    assert (found.request_timeout_seconds, found.attempt_timeout_seconds) == (30.0, 10.0)
    assert (found.log_format, found.log_arguments) == ("auto", False)
    assert (found.allowed_hosts, found.allowed_origins, found.trusted_proxies) == ((), (), ())


@pytest.mark.parametrize(
    ("field", "environment", "value", "other"),
    [
        ("transport", "MCP_TRANSPORT", "stdio", "http"),
        ("port", "PORT", 9000, 9001),
        ("rate_limit_requests", "RATE_LIMIT_REQUESTS", 7, 8),
        ("rate_limit_window_seconds", "RATE_LIMIT_WINDOW", 7, 8),
        ("metrics_port", "METRICS_PORT", 9100, None),
        ("telemetry_endpoint", "OTEL_EXPORTER_ENDPOINT", "http://collector:4318", None),
        ("upstream_base_url", "BASE_URL", "https://api.example.com/v1", "http://localhost:1"),
        ("max_retries", "MAX_RETRIES", 0, 1),
        ("tool_timeout_seconds", "TOOL_TIMEOUT_SECONDS", 1.5, 2.5),
        ("session_mode", "SESSION_MODE", "stateful", "stateless"),
    ],
)
def test_precedence_is_constructor_environment_answers(
    monkeypatch: pytest.MonkeyPatch, field: str, environment: str, value: object, other: object
) -> None:
    assert variable(field) == environment
    monkeypatch.setenv(environment, str(value))
    assert getattr(ProductionConfig.load(), field) == value
    assert getattr(ProductionConfig.load(**{field: other}), field) == other


if "response_mode" not in FEATURES:

    def test_a_response_mode_that_the_project_lacks_stops_the_start() -> None:
        with pytest.raises(ConfigError, match=r"RESPONSE_MODE=auto: .*--data response_mode=auto"):
            create_server(config(response_mode="auto"))


def test_a_field_is_read_from_its_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSPORT", "UPSTREAM_BASE_URL", "RATE_LIMIT_WINDOW_SECONDS", "TELEMETRY_ENDPOINT"):
        monkeypatch.setenv(name, "something else of this machine")
    assert ProductionConfig.load() == ProductionConfig()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ProductionConfig.load()
    for name in ProductionConfig.model_fields:
        monkeypatch.setenv(variable(name), "")
    assert ProductionConfig.load() == before


@pytest.mark.parametrize("field", ["auth", "rate_limit_backend", "telemetry_protocol"])
def test_a_field_that_decides_which_files_exist_is_not_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    for value in ("none", "jwt", "redis", "memory", "grpc"):
        monkeypatch.setenv(variable(field), value)
        assert getattr(ProductionConfig.load(), field) == ANSWERS["config"][field]


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLOWED_HOSTS", "api.example.com, localhost:8000,,")
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8")
    found = ProductionConfig.load()
    assert found.allowed_hosts == ("api.example.com", "localhost:8000")
    assert found.trusted_proxies == ("10.0.0.0/8",)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("No", False), ("off", False)])
def test_switches_accept_the_usual_spellings(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("LOG_ARGUMENTS", text)
    assert ProductionConfig.load().log_arguments is value


def test_the_log_level_may_be_in_lower_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    assert ProductionConfig.load().log_level == "DEBUG"


@pytest.mark.parametrize(
    ("environment", "value", "problem"),
    [
        (
            "RATE_LIMIT_REQUESTS",
            "abc",
            "Input should be a valid integer, unable to parse string as an integer (accepted: from 1 to 1000000000)",
        ),
        ("RATE_LIMIT_WINDOW", "0", "Input should be greater than or equal to 1 (accepted: from 1 to 86400)"),
        ("PORT", "70000", "Input should be less than or equal to 65535 (accepted: from 0 to 65535)"),
        ("METRICS_PORT", "70000", "Input should be less than or equal to 65535 (accepted: from 0 to 65535)"),
        ("MCP_TRANSPORT", "carrier pigeon", "Input should be 'http' or 'stdio'"),
        ("TOOL_TIMEOUT_SECONDS", "nan", "Input should be a finite number (accepted: above 0, at most 86400)"),
        ("ENABLE_LOGGING", "perhaps", "Input should be a valid boolean, unable to interpret input"),
        ("BASE_URL", "api.example.com", "must be an http:// or https:// URL with a host"),
        ("BASE_URL", "http://", "must be an http:// or https:// URL with a host"),
        ("BASE_URL", "http://[::1", "must be an http:// or https:// URL with a host"),
        ("BASE_URL", "http://host:99999", "must be an http:// or https:// URL with a host"),
        ("BASE_URL", "http://a b", "must be an http:// or https:// URL with a host"),
        ("BASE_URL", f"https://user:{SECRET}@api.example.com", "must have no credentials"),
        ("BASE_URL", f"https://api.example.com?key={SECRET}", "must have no credentials, no query string"),
        ("RETRY_MAX_DELAY_SECONDS", "0.001", "must not be less than RETRY_DELAY_SECONDS, which is "),
    ],
)
def test_an_invalid_value_is_one_line_with_the_variable_the_problem_and_the_accepted_values(
    monkeypatch: pytest.MonkeyPatch, environment: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(environment, value)
    (line,) = problems()
    assert line.startswith(f"{environment}: {problem}")
    assert "\n" not in line
    assert SECRET not in line


def test_every_problem_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("MAX_RETRIES", "-1")
    assert [line.partition(":")[0] for line in problems()] == ["PORT", "MAX_RETRIES"]


def test_an_invalid_override_is_named_by_its_variable() -> None:
    assert problems(rate_limit_window_seconds=0)[0].startswith("RATE_LIMIT_WINDOW: ")


def test_an_unknown_setting_is_rejected() -> None:
    assert problems(rate_limit_request=1) == ["rate_limit_request: Extra inputs are not permitted"]


def test_a_secret_is_in_no_message_and_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_TOKENS", f"me:{SECRET}")
    monkeypatch.setenv("REDIS_URL", f"redis://:{SECRET}@localhost")
    monkeypatch.setenv("PORT", "x")
    assert SECRET not in str(problems())
    monkeypatch.delenv("PORT")
    found = ProductionConfig.load()
    assert SECRET not in repr(found)
    assert isinstance(found.redis_url, SecretStr)


def test_the_key_of_the_upstream_is_read_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_KEY", SECRET)
    key = config(upstream_api_key_env="WEATHER_KEY").upstream_api_key
    assert key is not None
    assert key.get_secret_value() == SECRET
    assert config(upstream_api_key_env="").upstream_api_key is None
    assert config(upstream_api_key_env="ANOTHER_KEY").upstream_api_key is None


def test_the_configuration_cannot_be_changed() -> None:
    found = config()
    with pytest.raises(ValidationError, match="frozen"):
        found.port = 1


def test_a_switch_without_its_module_stops_the_start_with_the_command_that_adds_it() -> None:
    for name in sorted(SWITCHES - FEATURES.keys()):
        with pytest.raises(ConfigError) as caught:
            create_server(config(**{f"enable_{name}": True}))
        (line,) = caught.value.problems
        assert line == (
            f"ENABLE_{name.upper()}: this project has no {name} feature. "
            f"Add it with: uvx copier update --trust --defaults --vcs-ref=:current: --data enable_{name}=true"
        )


def test_a_kind_without_its_module_stops_the_start_with_the_command_that_adds_it() -> None:
    kinds = {
        "auth": {"token", "jwt"},
        "rate_limit_backend": {"redis"},
        "telemetry_protocol": {"http/protobuf", "grpc"},
        "upstream_auth": {"per_caller", "client_credentials", "token_exchange", "entra_obo"},
    }
    assert kinds.keys() == set(CHOSEN_AT_COPY)
    for field, values in kinds.items():
        generated = ANSWERS["config"][field]
        for kind in sorted(values - {generated}):
            with pytest.raises(ConfigError) as caught:
                create_server(config(**{field: kind}))
            (line,) = caught.value.problems
            assert line == (
                f"{field}={kind}: this project was generated with {generated}. "
                f"Change it with: uvx copier update --trust --defaults --vcs-ref=:current: --data {field}={kind}"
            )


def test_each_feature_can_be_switched_off_at_run_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in sorted(SWITCHES & FEATURES.keys()):
        assert name in create_server(config()).registry.features
        with monkeypatch.context() as environment:
            environment.setenv(f"ENABLE_{name.upper()}", "false")
            assert name not in create_server(config()).registry.features


def test_authentication_can_be_switched_off_in_python() -> None:
    assert "auth" not in create_server(config(auth="none")).registry.features


def test_the_server_has_the_name_of_the_answers_and_a_version() -> None:
    assert about().name == ANSWERS["slug"]
    assert about().title == ANSWERS["title"]
    assert about().version


def test_a_typing_error_in_any_setting_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    known = known_variables(settings_models())
    names = [name for name in known if len(name) >= MIN_VARIABLE and not os.environ.get(name) and name[:5] != "OTEL_"]
    wrong = {f"{name}{name[-1]}": name for name in names if f"{name}{name[-1]}" not in known}
    assert len(wrong) > 50
    for typed in wrong:
        monkeypatch.setenv(typed, "x")
    text = "is set but is not a setting of this server: did you mean"
    expected = {f"{typed} {text} {name}?" for typed, name in wrong.items()}
    assert expected <= {*create_server(config()).registry.notices}


def test_a_failed_start_names_the_typing_error_that_explains_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("BASE_URLS", "LOG_LEVELL"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr("weather_station.__main__._load", refuse)
    assert main(["--check"]) == 2
    lines = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()]
    typo = "BASE_URLS is set but is not a setting of this server: did you mean BASE_URL?"
    assert lines == ["BASE_URL: must be set", typo]


def refuse(overrides: dict[str, object]) -> NoReturn:
    raise ConfigError(["BASE_URL: must be set"])
