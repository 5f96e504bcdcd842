"""Authorization: callers reach exactly what their scopes open, by every method that reaches a target."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp_types import Completion, PaginatedRequestParams, SubscribeRequestParams
from starlette.requests import Request

from harness import HEADERS, LEGACY, MODERN, Running, Serve, config, message, modern, text_of
from weather_station.production import policy
from weather_station.production.caller import Caller, peer_caller
from weather_station.production.config import ConfigError, StartError
from weather_station.production.inbound.authorization import MAX_SUBSCRIPTIONS, implied, load_rules
from weather_station.production.request import REJECTED
from weather_station.production.sdk import ProductionServer
from weather_station.server import create_server

RULES = """
[hierarchy]
admin = ["write"]
write = ["read"]

[tools]
"generated_*" = ["generated"]
generated_two = ["second"]
open = []

[resources]
"orders://*" = ["read"]

[prompts]
summary = ["read"]

[methods]
"ext/*" = ["extension"]
"""

Answer = dict[str, Any]
both_generations = pytest.mark.parametrize("version", [LEGACY, MODERN])


def register(server: ProductionServer) -> None:
    """Add targets of every kind; the caller is the one whose scopes the header X-Scopes has."""

    def identify(request: Request | None) -> Caller:
        scopes = request.headers.get("x-scopes") if request is not None else None
        if scopes is None:
            return peer_caller(request)
        return Caller("reader", client="reader", scopes=frozenset(scopes.split()))

    server.registry.identify = identify

    @server.tool()
    @policy(scopes=["write", "refund"])
    async def refund() -> str:
        return "done"

    async def done() -> str:
        return "done"

    for name in ("generated_one", "generated_two", "open", "bare"):
        server.add_tool(done, name)

    @server.resource("orders://list")
    async def listed() -> str:
        return "all"

    @policy(scopes=["admin"])
    @server.resource("orders://{number}")
    async def order(number: str) -> str:
        return number

    @server.resource("free://text")
    async def text() -> str:
        return "free"

    @server.prompt()
    async def summary(of: str) -> str:
        return of

    @server.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Completion:
        return Completion(values=["completed"])

    async def extension(ctx: ServerRequestContext[Any, Any], params: PaginatedRequestParams) -> dict[str, Any]:
        return {}

    async def subscribe(ctx: ServerRequestContext[Any, Any], params: SubscribeRequestParams) -> dict[str, Any]:
        return {}

    low = server._lowlevel_server
    low.add_request_handler("ext/run", PaginatedRequestParams, extension)
    low.add_request_handler("other/run", PaginatedRequestParams, extension)
    low.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)


Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def guarded(serve: Serve, tmp_path: Path) -> Start:
    """`with guarded() as server:` runs a server with `RULES`."""
    path = tmp_path / "rules.toml"
    path.write_text(RULES, "utf-8")
    return lambda **settings: serve(register, access_rules_file=path, **settings)


def send(server: Running, version: str, scopes: str | None, method: str, params: dict[str, Any]) -> Answer:
    content, headers = (message(method, params), HEADERS) if version == LEGACY else modern(method, params)
    named = {} if scopes is None else {"x-scopes": scopes}
    response: httpx2.Response = server.client.post(server.url, json=content, headers={**headers, **named})
    answer: Answer = response.json()
    return answer


def rejection(answer: Answer) -> str:
    """Return the text of a rejection; nothing where the request was admitted."""
    if "error" in answer:
        assert answer["error"]["code"] == REJECTED, answer
        return str(answer["error"]["message"])
    return text_of(answer["result"]) if answer["result"].get("isError") else ""


def completion(ref: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "completion/complete", {"ref": ref, "argument": {"name": "of", "value": ""}}


@both_generations
@pytest.mark.parametrize(
    ("method", "params", "too_few", "enough"),
    [
        ("tools/call", {"name": "refund"}, ["", "write", "refund", "read"], ["write refund", "admin refund"]),
        ("tools/call", {"name": "generated_one"}, ["", "second"], ["generated"]),
        ("tools/call", {"name": "generated_two"}, ["", "second", "generated"], ["second generated"]),
        ("tools/call", {"name": "open"}, [], [""]),
        ("tools/call", {"name": "bare"}, [], [""]),
        ("resources/read", {"uri": "orders://list"}, ["", "refund"], ["read", "write", "admin"]),
        ("resources/read", {"uri": "orders://7"}, ["", "read", "write"], ["admin", "admin read"]),
        ("resources/read", {"uri": "free://text"}, [], [""]),
        ("prompts/get", {"name": "summary", "arguments": {"of": "x"}}, ["", "refund"], ["read", "admin"]),
        (*completion({"type": "ref/prompt", "name": "summary"}), ["", "refund"], ["read"]),
        (*completion({"type": "ref/resource", "uri": "orders://{number}"}), ["", "read"], ["admin"]),
        (*completion({"type": "ref/resource", "uri": "orders://7"}), ["", "read"], ["admin"]),
    ],
)
def test_a_request_needs_all_scopes_of_its_target(
    guarded: Start, version: str, method: str, params: dict[str, Any], too_few: list[str], enough: list[str]
) -> None:
    with guarded() as server:
        for scopes in too_few:
            assert rejection(send(server, version, scopes, method, params)), scopes
        for scopes in enough:
            assert not rejection(send(server, version, scopes, method, params)), scopes


@pytest.mark.parametrize(
    ("version", "method", "params", "too_few", "enough"),
    [
        (LEGACY, "resources/subscribe", {"uri": "orders://7"}, "read", "admin"),
        (MODERN, "subscriptions/listen", {"notifications": {"resourceSubscriptions": ["orders://7"]}}, "read", None),
        (
            MODERN,
            "subscriptions/listen",
            {"notifications": {"resourceSubscriptions": ["free://text", "orders://list"]}},
            "refund",
            None,
        ),
        (MODERN, "ext/run", {}, "admin", "extension"),
    ],
)
def test_subscriptions_and_methods_of_extensions_need_their_scopes(
    guarded: Start, version: str, method: str, params: dict[str, Any], too_few: str, enough: str | None
) -> None:
    with guarded() as server:
        assert rejection(send(server, version, too_few, method, params))
        if enough is not None:
            assert not rejection(send(server, version, enough, method, params))


@pytest.mark.parametrize(("access", "is_rejected"), [("allow", False), ("deny", True)])
def test_default_access_decides_about_a_subscription_to_no_registered_resource(
    guarded: Start, access: str, is_rejected: bool
) -> None:
    with guarded(default_access=access) as server:
        answer = send(server, LEGACY, "admin", "resources/subscribe", {"uri": "unknown://x"})
        assert bool(rejection(answer)) is is_rejected
        removed = send(server, MODERN, "admin", "resources/subscribe", {"uri": "unknown://x"})
        assert (removed["error"]["code"] == -32601) is not is_rejected  # 2026-07-28 has no such method


def test_the_resources_of_one_subscription_are_limited(guarded: Start) -> None:
    uris = ["free://text"] * (MAX_SUBSCRIPTIONS + 1)
    with guarded() as server:
        answer = send(server, MODERN, "", "subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
        assert str(MAX_SUBSCRIPTIONS) in answer["error"]["message"]


@both_generations
@pytest.mark.parametrize(
    ("scopes", "tools", "resources", "templates", "prompts"),
    [
        ("", {"open", "bare"}, {"free://text"}, set(), set()),
        ("read generated", {"open", "bare", "generated_one"}, {"free://text", "orders://list"}, set(), {"summary"}),
        (
            "admin refund generated second",
            {"open", "bare", "generated_one", "generated_two", "refund"},
            {"free://text", "orders://list"},
            {"orders://{number}"},
            {"summary"},
        ),
    ],
)
def test_lists_show_what_the_caller_may_use(
    guarded: Start,
    version: str,
    scopes: str,
    tools: set[str],
    resources: set[str],
    templates: set[str],
    prompts: set[str],
) -> None:
    with guarded() as server:
        own = {tool.name for tool in server.server.registered_tools()} & {"health_check", "get_metrics"}
        for method, key, name, expected in (
            ("tools/list", "tools", "name", tools | own),
            ("resources/list", "resources", "uri", resources),
            ("resources/templates/list", "resourceTemplates", "uriTemplate", templates),
            ("prompts/list", "prompts", "name", prompts),
        ):
            result = send(server, version, scopes, method, {})["result"]
            assert {item[name] for item in result[key]} == expected
            assert result.get("cacheScope") == ("private" if version == MODERN else None)


def test_a_cache_is_not_shared_although_the_owner_says_so(guarded: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with guarded() as server:
        hint = CacheHint(ttl_ms=1000, scope="public")
        hints = dict.fromkeys(("tools/list", "resources/read"), hint)
        monkeypatch.setattr(server.server._lowlevel_server, "cache_hints", hints)
        for method, params, expected in (
            ("tools/list", {}, "private"),
            ("resources/read", {"uri": "orders://7"}, "private"),
            ("resources/read", {"uri": "free://text"}, "public"),
        ):
            assert send(server, MODERN, "admin", method, params)["result"]["cacheScope"] == expected


@both_generations
def test_the_error_names_the_scopes(guarded: Start, version: str) -> None:
    with guarded() as server:
        result = send(server, version, "read refund", "tools/call", {"name": "refund"})["result"]
        text = "Permission denied. Tool refund needs the scopes refund, write; this caller lacks write."
        assert text_of(result) == text
        assert result["_meta"]["required_scopes"] == ["refund", "write"]
        assert result["_meta"]["missing_scopes"] == ["write"]
        error = send(server, version, "", "resources/read", {"uri": "orders://7"})["error"]
        assert "needs the scopes admin, read; this caller lacks admin, read." in error["message"]


@both_generations
def test_what_is_not_registered_is_unknown(guarded: Start, version: str) -> None:
    with guarded() as server:
        answer = send(server, version, "admin", "tools/call", {"name": "missing"})
        assert text_of(answer["result"]) == "Unknown tool: missing"
        answer = send(server, version, "admin", "resources/read", {"uri": "ORDERS://list"})
        assert "Unknown resource" in answer["error"]["message"]


@both_generations
def test_a_tool_named_like_the_label_of_unknown_targets_stays_closed(serve: Serve, version: str) -> None:
    async def done() -> str:
        return "done"

    def register_unknown(server: ProductionServer) -> None:
        server.add_tool(policy(scopes=["admin"])(done), "unknown")

    with serve(register_unknown) as server:
        assert "done" not in str(send(server, version, "", "tools/call", {"name": "unknown"}))


@both_generations
def test_with_deny_only_what_has_a_rule_is_open(guarded: Start, version: str) -> None:
    with guarded(default_access="deny") as server:
        assert rejection(send(server, version, "admin", "tools/call", {"name": "bare"}))
        assert rejection(send(server, version, "admin", "tools/call", {"name": "health_check"}))
        assert not rejection(send(server, version, "", "tools/call", {"name": "open"}))
        assert rejection(send(server, version, "admin", "resources/read", {"uri": "free://text"}))
        assert rejection(send(server, version, "admin", "other/run", {}))
        for ref in ({"type": "ref/prompt", "name": "other"}, {"type": "ref/resource", "uri": "other://x"}):
            assert rejection(send(server, version, "admin", *completion(ref)))
        assert not rejection(send(server, version, "extension", "ext/run", {}))
        tools = send(server, version, "", "tools/list", {})["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["open"]


def test_a_caller_without_a_token_has_the_scopes_of_the_settings(guarded: Start) -> None:
    with guarded() as server:
        assert rejection(send(server, LEGACY, None, "resources/read", {"uri": "orders://list"}))
    with guarded(anonymous_scopes="write") as server:
        assert not rejection(send(server, LEGACY, None, "resources/read", {"uri": "orders://list"}))
        assert rejection(send(server, LEGACY, "", "resources/read", {"uri": "orders://list"}))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tools]\nmissing = ['a']", "[tools] 'missing' matches no tool"),
        ("[resources]\n'orders:/x*' = ['a']", "[resources] 'orders:/x*' matches no resource"),
        ("[prompts]\n'*x' = ['a']", "[prompts] '*x' matches no prompt"),
    ],
)
async def test_a_rule_that_matches_nothing_stops_the_start(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text, "utf-8")
    server = create_server(config(access_rules_file=path))
    register(server)
    with pytest.raises(StartError) as raised:
        async with server.running():
            pass
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[tools", "is not valid TOML"),
        ("tools = 1", "tools: is no table"),
        ("[tool]\nx = ['a']", "tool: is no table of rules (accepted: tools, resources, prompts, methods, hierarchy)"),
        ("[tools]\nx = 'a'", "[tools] 'x': must be a list of scopes"),
        ("[tools]\nx = ['a b']", "[tools] 'x': must be a list of scopes"),
        ("[tools]\nx = [1]", "[tools] 'x': must be a list of scopes"),
        ("[hierarchy]\nx = [['a']]", "[hierarchy] 'x': must be a list of scopes"),
    ],
)
def test_a_mistake_in_the_file_stops_the_start(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as raised:
        create_server(config(access_rules_file=path))
    assert problem in str(raised.value)


def test_a_missing_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rules(tmp_path / "missing.toml")


@pytest.mark.parametrize("settings", [{"access_rules_file": "rules.toml"}, {"default_access": "deny"}])
def test_rules_without_the_feature_stop_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="ENABLE_AUTHORIZATION"):
        create_server(config(enable_authorization=False, **settings))


def test_a_policy_without_the_feature_stops_the_start() -> None:
    server = create_server(config(enable_authorization=False))
    with pytest.raises(StartError, match="this project has no scopes feature"):
        register(server)


async def test_authorization_does_not_depend_on_authentication(guarded: Start) -> None:
    with guarded(auth="none") as server:
        assert rejection(send(server, LEGACY, "", "tools/call", {"name": "refund"}))


@pytest.mark.parametrize("scopes", ["a", [1], ["a b"], ['"'], [""], {"a"}])
def test_a_policy_takes_a_list_of_scopes(scopes: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="is not a list of scopes"):
        policy(scopes=scopes)


def test_a_scope_implies_others_through_several_steps_and_circles() -> None:
    hierarchy = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("ad")}
    assert implied(frozenset("a"), hierarchy) == frozenset("abcd")
    assert implied(frozenset("x"), hierarchy) == frozenset("x")
