"""The tools are those of tests/surface.json, if `uv run weather-station --surface accept` has written it."""

from weather_station.production.serve.surface import surface


def test_no_client_of_the_recorded_tools_fails() -> None:
    assert surface("check", {}) == 0
