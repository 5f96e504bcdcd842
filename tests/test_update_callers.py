"""A project of 0.1.0 with callers, limits and a key for its API behaves after an update as it did before."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from .environments import make_environment
from .live_servers import LOCAL, Project, npm_packages, post, tool_call
from .releases import releases
from .template_repository import TemplateRepository, commit, recorded, update
from .test_identity_provider import JWT_RESOURCE, Provider

pytestmark = [pytest.mark.slow, pytest.mark.release]

KEY = "key-of-the-parcels-0123456789"
TOKENS = {"alice": "token-of-alice-0123456789", "bob": "token-of-bob-0123456789"}
LIMIT = 3
TOOL = '''\
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

from ..production import upstream


def register(server: MCPServer[Any]) -> None:
    @server.tool()
    async def parcels(ctx: Context) -> str:
        """List the parcels."""
        return str(await upstream(ctx).get_json("/parcels"))
'''


@contextlib.contextmanager
def parcels(seen: list[tuple[str | None, str | None]]) -> Iterator[str]:
    """Serve the upstream API, and yield its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.headers.get("x-parcels-key"), self.headers.get("authorization")))
            body = b'["tea"]'
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer((LOCAL, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://{LOCAL}:{server.server_address[1]}"
        server.shutdown()


def behaviour(directory: Path, tokens: dict[str, str], settings: dict[str, object]) -> dict[str, Any]:
    """Run the server of a project, and return what callers get and what the upstream sees."""
    make_environment(directory)
    seen: list[tuple[str | None, str | None]] = []
    chosen = settings | {
        "RATE_LIMIT_REQUESTS": LIMIT,
        "RATE_LIMIT_WINDOW": 86_400,
        "PARCELS_KEY": KEY,
        "UPSTREAM_API_KEY_HEADER": "X-Parcels-Key",
        "OTEL_SDK_DISABLED": "true",
    }
    with (
        parcels(seen) as url,
        Project(directory).serving(directory.parent / f"{directory.name}.log", **chosen | {"BASE_URL": url}) as server,
    ):

        def call(authorization: str | None) -> tuple[int, str]:
            headers = {"authorization": authorization} if authorization else {}
            status, body = post(server.port, tool_call("parcels", {}), **headers)
            text = json.loads(body)["result"]["content"][0]["text"] if status == 200 else ""
            return status, re.sub(r"\d+ seconds", "some seconds", text)

        found: dict[str, Any] = {
            "without a token": call(None),
            "with a wrong token": call("Bearer of-nobody-0123456789"),
            "with another scheme": call(f"Basic {tokens['alice']}"),
        }
        for name, token in tokens.items():
            found[name] = [call(f"Bearer {token}") for _ in range(LIMIT + 2)]
    return found | {"the upstream": sorted({*map(str, seen)}), "requests": len(seen)}


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    found = Provider(npm_packages("identity-provider", "oidc-provider@9.13.3", "node@22"), tmp_path)
    with found.running("first"):
        yield found


@pytest.mark.parametrize("auth", ["token", "jwt"])
def test_callers_limits_and_the_key_are_as_they_were(tmp_path: Path, auth: str, provider: Provider) -> None:
    repository = TemplateRepository.empty(tmp_path)
    (release,) = (match for match in releases() if match.version == "0.1.0")
    repository.load_revision(release.commit)
    repository.release(release.version)
    repository.load_working_tree()
    repository.release("90.0.0")
    project = repository.copy(revision=release.version, auth=auth, upstream_api_key_env="PARCELS_KEY")
    (project / "src/weather_station/tools/__init__.py").write_text(TOOL, "utf-8")
    commit(project)
    before = tmp_path / "before"
    shutil.copytree(project, before)
    update(project, "90.0.0")
    assert recorded(project)["auth"] == auth

    tokens, settings = TOKENS, {"AUTH_TOKENS": ",".join(f"{name}:{token}" for name, token in TOKENS.items())}
    if auth == "jwt":
        required = {"JWT_REQUIRED_SCOPES": "orders:read"}
        settings = {"JWT_ISSUER": provider.issuer, "JWT_AUDIENCE": JWT_RESOURCE, "AUTH_TOKENS": ""} | required
        tokens = {name: provider.token(name) for name in TOKENS} | {"without the scope": scopeless(provider)}
    was, now = (behaviour(directory, tokens, {**settings}) for directory in (before, project))
    assert now == was
    # 0.1.0 did what is asked for, so that both have it.
    rejected = "Rate limit exceeded. 0 requests remaining. Try again in some seconds."
    for name in ("alice", "bob"):
        assert now[name] == [(200, "['tea']")] * LIMIT + [(200, rejected)] * 2
    assert [now[how][0] for how in ("without a token", "with a wrong token", "with another scheme")] == [401] * 3
    assert {status for status, _ in now.get("without the scope", [(403, "")])} == {403}
    assert now["the upstream"] == [str((KEY, None))]


def scopeless(provider: Provider) -> str:
    """Return a token for the server with another scope than the required one."""
    form = {"grant_type": "urn:example:login", "user": "carol", "resource": JWT_RESOURCE, "scope": "orders:write"}
    return str(provider.post("/token", "app", **form)["access_token"])
