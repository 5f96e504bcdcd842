"""Authorization: the scopes that a caller needs for each tool, resource, prompt and method.

They come from `policy(scopes=...)` beside a function and from the rules in `ACCESS_RULES_FILE`; where several apply,
all of their scopes are needed. Where none applies, `DEFAULT_ACCESS` decides, as for subscriptions and completions of
what is not registered. Lists show what the caller may use.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS
from mcp_types.methods import SPEC_CLIENT_METHODS

from ..caller import UNKNOWN, Caller
from ..config import ConfigError, StartError
from ..policy import Policy, are_scopes
from ..registry import Registry
from ..request import COMPLETE, LISTEN, PROMPTS_GET, RESOURCES_READ, TOOLS_CALL, CallNext, MCPRequest, Result, reject

Scopes = frozenset[str]

METHODS = "methods"
"""Table of the rules for whole methods, such as those of extensions."""

TABLES = {"tools": TOOLS_CALL, "resources": RESOURCES_READ, "prompts": PROMPTS_GET, METHODS: METHODS}
"""Tables of rules, each with the method that its targets are for."""

KINDS = {TOOLS_CALL: "tool", RESOURCES_READ: "resource", PROMPTS_GET: "prompt"}
"""What the targets of a method are called."""

LISTS = {
    "tools/list": ("tools", "name", TOOLS_CALL),
    "prompts/list": ("prompts", "name", PROMPTS_GET),
    "resources/list": ("resources", "uri", RESOURCES_READ),
    "resources/templates/list": ("resourceTemplates", "uriTemplate", RESOURCES_READ),
}
"""Lists that show what the caller may use: key of the items, key of an item's target label, and its method."""

SUBSCRIPTIONS = frozenset(("resources/subscribe", "resources/unsubscribe"))

MAX_FILE_BYTES = 1024 * 1024

MAX_SCOPE_SETS = 4096
"""Sets of scopes of callers whose implied scopes are remembered."""

MAX_SUBSCRIPTIONS = 1000
"""Resources of one `subscriptions/listen`."""


class Rules(NamedTuple):
    """The content of `ACCESS_RULES_FILE`."""

    scopes: Mapping[str, Mapping[str, Scopes]] = {}
    """By method, the scopes for each pattern of target labels."""
    hierarchy: Mapping[str, Scopes] = {}
    """By scope, those that it implies."""


class Need(NamedTuple):
    """What one request needs."""

    subject: str
    """What the client wants, for error texts."""
    scopes: Scopes | None
    """All scopes that are needed; `None` where no caller may."""


def install(registry: Registry) -> None:
    """Reject requests whose caller lacks a scope, and filter the lists.

    Raises:
        ConfigError: the rules cannot be read, or are not valid.
    """
    config = registry.config
    path = config.access_rules_file
    access = Access(registry, Rules() if path is None else load_rules(path))
    registry.middleware["authorization"] = access
    registry.visibility_key = access.scopes
    registry.policy_fields.add("scopes")
    registry.on_registered.append(access.check)


class Access:
    """Middleware that decides which callers may do what."""

    def __init__(self, registry: Registry, rules: Rules) -> None:
        self._registry = registry
        self._rules = rules
        config = registry.config
        self._default: Scopes | None = frozenset() if config.default_access == "allow" else None
        self._anonymous = frozenset(config.anonymous_scopes)
        rejections = registry.meter.counter(
            "mcp_authorization_rejections_total", "Requests rejected because the caller may not.", ("reason",)
        )
        self._rejections = {reason: rejections(reason) for reason in ("AccessDenied", "InsufficientScope")}
        self._targets: dict[tuple[str, str, Sequence[str] | None], Need] = {}
        self._of_rules: dict[tuple[str, str], Scopes | None] = {}
        self._implied = lru_cache(MAX_SCOPE_SETS)(lambda scopes: implied(scopes, rules.hierarchy))

    async def __call__(self, request: MCPRequest, call_next: CallNext) -> Result:
        if request.target_label == UNKNOWN != request.target:  # a tool may have that name
            return await call_next(request)  # answered as unknown, which takes a permit of the rate limit
        if request.method in KINDS:
            need = self._target(request.method, request.target_label, request.policy)
        else:
            need = self.need(request.method, request.params)
        if need.scopes is None:
            return self._reject(request, "AccessDenied", f"{need.subject} is not open to any caller.")
        if missing := self.missing(request.caller, need.scopes):
            needed = sorted(need.scopes)
            scopes = f"the scope{'s' if len(needed) > 1 else ''} {', '.join(needed)}"
            text = f"{need.subject} needs {scopes}; this caller lacks {', '.join(missing)}."
            meta = {"required_scopes": needed, "missing_scopes": missing}
            return self._reject(request, "InsufficientScope", text, **meta)
        return self._shown(request, need.scopes, await call_next(request))

    def _reject(self, request: MCPRequest, reason: str, text: str, **meta: list[str]) -> Result:
        self._rejections[reason].inc()
        return reject(request, reason, f"Permission denied. {text}", **meta)

    def check(self) -> None:
        """Check that each rule names something, and publish all scopes.

        Raises:
            StartError: a rule matches no tool, resource, prompt or method.
        """
        known = {method: set(self._registry.targets.labels(method)) for method in KINDS}
        problems = [
            f"ACCESS_RULES_FILE: [{table}] {pattern!r} matches no {KINDS[method]} of this server"
            for table, method in TABLES.items()
            if method != METHODS
            for pattern in self._rules.scopes.get(method, {})
            if not any(fnmatchcase(label, pattern) for label in known[method])
        ]
        if problems:
            raise StartError("\n".join(problems))
        supported = self._registry.http.scopes_supported
        for method, labels in known.items():
            for label in labels:
                supported |= self.scopes_of(method, label) or frozenset()
        supported |= frozenset().union(*self._rules.scopes.get(METHODS, {}).values())

    def scopes_of(self, method: str, label: str) -> Scopes | None:
        """Return the scopes that a target needs, or `None` where no caller may use it."""
        if label == UNKNOWN:
            return None
        own = self._registry.targets.policy(method, label).scopes
        ruled = self._ruled(method, label)
        if own is None:
            return self._default if ruled is None else ruled
        return frozenset(own) | (ruled or frozenset())

    def need(self, method: str, params: Mapping[str, Any]) -> Need:
        """Return what a request needs; its parameters are not validated yet."""
        targets = self._registry.targets
        if method in KINDS:
            label = targets.label(method, params)
            return self._target(method, label, targets.policy(method, label))
        ruled = self._ruled(METHODS, method)
        if method == COMPLETE:
            own = targets.policy(COMPLETE, "").scopes
            return Need("This completion", _all(ruled, frozenset(own or ()), self._completed(params)))
        if method in SUBSCRIPTIONS:
            return Need("This resource", _all(ruled, self._resource(params.get("uri"))))
        if method == LISTEN:
            return Need("This subscription", _all(ruled, *map(self._resource, _subscribed(params))))
        if ruled is None:
            # The protocol's other methods have no target. Those of extensions run the owner's code.
            return Need("This method", frozenset() if method in SPEC_CLIENT_METHODS else self._default)
        return Need(f"Method {method}", ruled)

    def missing(self, caller: Caller, scopes: Scopes) -> list[str]:
        """Return those of `scopes` that the caller lacks."""
        if not scopes or scopes <= (granted := self.scopes(caller)):
            return []
        return sorted(scopes - granted)

    def _target(self, method: str, label: str, policy: Policy) -> Need:
        """Return what a request for a tool, resource or prompt needs."""
        key = (method, label, policy.scopes)
        need = self._targets.get(key)
        if need is None:
            scopes = _all(self._ruled(METHODS, method), self.scopes_of(method, label))
            need = self._targets[key] = Need(f"{KINDS[method].capitalize()} {label}", scopes)
        return need

    def _shown(self, request: MCPRequest, scopes: Scopes, result: Result) -> Result:
        """Return a result without the items that the caller may not use; callers share no cache of what needs a scope.

        Raises:
            TypeError: a list has an unknown form.
        """
        lists = LISTS.get(request.method)
        if (lists is None and not scopes) or request.encoded is not None:
            return result
        if isinstance(result, dict) and "cacheScope" in result:
            result["cacheScope"] = "private"
        if lists is None:
            return result
        if not isinstance(result, dict):
            raise TypeError(f"the result of {request.method} has no items")
        key, name, method = lists
        result[key] = [item for item in result[key] if self._may_use(request.caller, method, item[name])]
        return result

    def _may_use(self, caller: Caller, method: str, label: str) -> bool:
        needed = _all(self._ruled(METHODS, method), self.scopes_of(method, label))
        return needed is not None and not self.missing(caller, needed)

    def scopes(self, caller: Caller) -> Scopes:
        """Return the scopes of a caller with those that they imply."""
        has_token = caller.subject or caller.client or caller.issuer
        found: Scopes = self._implied(caller.scopes if has_token else self._anonymous)
        return found

    def _ruled(self, method: str, label: str) -> Scopes | None:
        """Return the scopes in the rules for a target; `None` where none matches."""
        rules = self._rules.scopes.get(method)
        if rules is None:
            return None
        key = (method, label)
        if key not in self._of_rules:
            found = [scopes for pattern, scopes in rules.items() if fnmatchcase(label, pattern)]
            self._of_rules[key] = frozenset().union(*found) if found else None
        return self._of_rules[key]

    def _resource(self, uri: object) -> Scopes | None:
        label = self._registry.targets.label(RESOURCES_READ, {"uri": uri})
        return self._default if label == UNKNOWN else self.scopes_of(RESOURCES_READ, label)

    def _completed(self, params: Mapping[str, Any]) -> Scopes | None:
        """Return the scopes for the prompt or the resource template whose argument is completed."""
        targets, ref = self._registry.targets, params.get("ref")
        if not isinstance(ref, Mapping):
            return self._default
        method = PROMPTS_GET if ref.get("type") == "ref/prompt" else RESOURCES_READ
        uri = ref.get("uri")
        is_template = method == RESOURCES_READ and isinstance(uri, str) and uri in targets.labels(method)
        label = str(uri) if is_template else targets.label(method, ref)
        return self._default if label == UNKNOWN else self.scopes_of(method, label)


def _all(ruled: Scopes | None, *needed: Scopes | None) -> Scopes | None:
    """Return all scopes of several targets, or `None` where one of them is closed to every caller."""
    found = ruled or frozenset()
    for scopes in needed:
        if scopes is None:
            return None
        found |= scopes
    return found


def _subscribed(params: Mapping[str, Any]) -> Iterator[object]:
    """Yield the URIs of a `subscriptions/listen`.

    Raises:
        MCPError: there are too many.
    """
    wanted = params.get("notifications")
    uris = wanted.get("resourceSubscriptions") if isinstance(wanted, Mapping) else None
    if not isinstance(uris, list):
        return
    if len(uris) > MAX_SUBSCRIPTIONS:
        raise MCPError(INVALID_PARAMS, f"A client can subscribe to at most {MAX_SUBSCRIPTIONS} resources at once")
    yield from uris


def implied(scopes: Scopes, hierarchy: Mapping[str, Scopes]) -> Scopes:
    """Return `scopes` with all that they imply, directly or not; a circle in the hierarchy does no harm."""
    found: set[str] = set()
    waiting = set(scopes)
    while waiting:
        scope = waiting.pop()
        found.add(scope)
        waiting |= hierarchy.get(scope, frozenset()) - found
    return frozenset(found)


def load_rules(path: Path) -> Rules:
    """Return the rules in a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not of the form that `docs/authorization.md` describes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError([f"ACCESS_RULES_FILE: {str(path)!r} is larger than 1 MiB"])
        document = tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"ACCESS_RULES_FILE: {str(path)!r} cannot be read: {error.strerror}"]) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"ACCESS_RULES_FILE: {str(path)!r} is not valid TOML: {error}"]) from None
    problems: list[str] = []
    tables: dict[str, dict[str, Scopes]] = {}
    for table, entries in document.items():
        if table not in (*TABLES, "hierarchy") or not isinstance(entries, dict):
            problems.append(f"{table}: is no table of rules (accepted: {', '.join([*TABLES, 'hierarchy'])})")
            continue
        tables[table] = {}
        for name, scopes in entries.items():
            if isinstance(scopes, list) and are_scopes(scopes):
                tables[table][name] = frozenset(scopes)
            else:
                problems.append(f'[{table}] {name!r}: must be a list of scopes, such as ["orders:read"]')
    if problems:
        raise ConfigError([f"ACCESS_RULES_FILE: {problem}" for problem in problems])
    hierarchy = tables.pop("hierarchy", {})
    return Rules({TABLES[table]: entries for table, entries in tables.items()}, hierarchy)
