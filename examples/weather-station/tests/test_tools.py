"""Your tools, called as a host calls them: `call` runs the whole pipeline, `api` stands in for the API."""

from weather_station.production.testing import Api, Call

LISBON = {"name": "Lisbon", "admin1": "Lisboa", "country": "Portugal", "latitude": 38.72, "longitude": -9.14}
WEATHER = {"time": "2026-11-05T12:00", "temperature_2m": 18.4, "wind_speed_10m": 11.2}


async def test_the_weather_of_a_city(api: Api, call: Call) -> None:
    api.on("GET", "/v1/search", json={"results": [LISBON]})
    api.on("GET", "/v1/forecast", json={"current": WEATHER})
    result = await call("get_weather", {"city": "Lisbon"})
    assert not result.is_error, result.content
    assert result.structured_content == {
        "place": "Lisbon, Lisboa, Portugal",
        "temperature_celsius": 18.4,
        "wind_speed_kmh": 11.2,
        "time": "2026-11-05T12:00",
    }
    assert api.requests[0].query["name"] == "Lisbon"


async def test_an_unknown_city(api: Api, call: Call) -> None:
    api.on("GET", "/v1/search", json={})
    result = await call("get_weather", {"city": "Atlantis"})
    assert result.is_error
    assert "No city named 'Atlantis' is known" in str(result.content)


async def test_a_failing_api(api: Api, call: Call) -> None:
    api.on("GET", "/v1/search", status=500)
    result = await call("get_weather", {"city": "Lisbon"})
    assert result.is_error
    assert "answered 500 Internal Server Error" in str(result.content)
