"""The starter tool: the current weather of a city, from Open-Meteo (https://open-meteo.com/en/docs)."""

import os
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from ..production import upstream

OPEN_METEO = "https://api.open-meteo.com"
READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)


class Forecast(BaseModel):
    """The result for the model. Its schema is part of the tool, and the model reads the descriptions."""

    place: str = Field(description="The place, with its region and country")
    temperature_celsius: float
    wind_speed_kmh: float
    time: str = Field(description="Local time of the observation, ISO 8601")


def geocoding_url() -> str:
    """Return the base URL of the search for places, which Open-Meteo serves from a host of its own."""
    if configured := os.environ.get("GEOCODING_URL"):
        return configured
    base = os.environ.get("BASE_URL", "").rstrip("/")
    return base if base not in ("", OPEN_METEO) else "https://geocoding-api.open-meteo.com"


async def get_weather(
    city: Annotated[str, Field(description="A city, for example Lisbon", min_length=2, max_length=100)],
    ctx: Context,
) -> Forecast:
    """Return the current weather in a city."""
    api = upstream(ctx)
    search = await api.get_json(f"{geocoding_url().rstrip('/')}/v1/search", params={"name": city, "count": 1})
    if not search.get("results"):
        raise ToolError(f"No city named {city!r} is known. Check the spelling, or try a larger place nearby.")
    place = search["results"][0]
    forecast = await api.get_json(
        "/v1/forecast",
        params={
            "latitude": place["latitude"],
            "longitude": place["longitude"],
            "current": "temperature_2m,wind_speed_10m",
            "timezone": "auto",
        },
    )
    current = forecast["current"]
    return Forecast(
        place=", ".join(place[part] for part in ("name", "admin1", "country") if place.get(part)),
        temperature_celsius=current["temperature_2m"],
        wind_speed_kmh=current["wind_speed_10m"],
        time=current["time"],
    )


def register(server: MCPServer[Any]) -> None:
    """Register the tools of this module; `tools/__init__.py` calls it when the server starts."""
    server.tool(title="Current weather", annotations=READ_ONLY)(get_weather)
