"""The starter tool: read one resource of the API at `BASE_URL`."""

from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from ..production import upstream

READ_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=True)

# The model chooses the path: no query, no other host, and no `..` segments.
PATH = r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$"


class Resource(BaseModel):
    """The result for the model. Its schema is part of the tool; describe the fields of your API here."""

    path: str
    content: Any = Field(description="The resource as the API returned it")


async def get_resource(
    path: Annotated[str, Field(description="Path of a resource, for example /users/42", pattern=PATH, max_length=200)],
    ctx: Context,
) -> Resource:
    """Read one resource of the API."""
    return Resource(path=path, content=await upstream(ctx).get_json(path))


def register(server: MCPServer[Any]) -> None:
    """Register the tools of this module; `tools/__init__.py` calls it when the server starts."""
    server.tool(title="Get a resource", annotations=READ_ONLY)(get_resource)
