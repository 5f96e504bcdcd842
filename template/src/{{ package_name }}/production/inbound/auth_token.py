"""Authentication with static tokens, one or more for each caller.

`AUTH_TOKENS` is `name:token,name2:token2`. `AUTH_TOKENS_FILE` names a file with one `name:token` per line, with the
scopes, tier and tenant of the caller behind it (`name:token scopes=a,b tier=internal`); changes take effect without a
restart. A name may have several tokens, which allows rotation.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import structlog
from mcp.server.auth.provider import AccessToken
from starlette.types import Scope

from ..caller import Caller, User
from ..config import ConfigError
from ..observe.meter import Gauge
from ..registry import HealthPart, LearnedSecrets, Registry
from . import auth
from .auth import Fingerprint, UnknownTokenError
from .identity import account_id

CHECK_SECONDS = 1.0
"""Interval at which the file is read."""

MIN_TOKEN_CHARACTERS = 16
MAX_FILE_BYTES = 1024 * 1024

Users = Mapping[bytes, User]
"""Users by the fingerprint of their token."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # the syntax of RFC 6750, section 2.1
_SCOPE = r"[!#-+\--\[\]-~]+"  # the syntax of RFC 6749, section 3.3, without the comma
_ATTRIBUTE = re.compile(rf"scopes={_SCOPE}(?:,{_SCOPE})*|(?:tier|tenant)={_NAME.pattern}")

log = structlog.stdlib.get_logger(__name__)


class TokensError(Exception):
    """A list of tokens is not valid; `problems` has one line for each problem and never quotes the list."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def install(registry: Registry) -> None:
    """Require one of the configured tokens, or a loopback address where none is configured.

    Raises:
        ConfigError: a list of tokens is not valid, or both variables are set.
    """
    value, path = registry.config.auth_tokens, registry.config.auth_tokens_file
    if value is not None and path is not None:
        raise ConfigError(["AUTH_TOKENS and AUTH_TOKENS_FILE are both set: use one of them"])
    variable = "AUTH_TOKENS" if path is None else "AUTH_TOKENS_FILE"
    methods = auth.methods(registry)
    methods.report(**{variable: value or path})
    if registry.config.transport == "stdio":
        return
    kind = "" if registry.config.auth == "token" else "token"  # a token's name may be equal to the subject of a JWT
    tokens: TokenList | None = None
    try:
        if path is not None:
            stale = registry.meter.gauge(
                "mcp_auth_tokens_stale", "1 while AUTH_TOKENS_FILE has changes that cannot be adopted."
            )()
            tokens = TokenFile(path, stale, registry.secrets, kind)
            registry.health.parts.append(tokens.health)
            registry.on_startup.append(tokens.watch)
            registry.on_shutdown.append(tokens.unwatch)
        elif value is not None:
            tokens = TokenList(value.get_secret_value().split(","), "entry", kind)
        hint = "AUTH_TOKENS=name:token (make a token with: openssl rand -hex 32)"
        verify = tokens.verify if tokens is not None else None
        methods.add("token", hint, verify)
    except TokensError as error:
        raise ConfigError([f"{variable}: {problem}" for problem in error.problems]) from None


class TokenList:
    """The tokens in a list of `name:token`; blank entries and those that begin with # are ignored.

    Args:
        entries: The list.
        unit: What an entry is called, `entry` or `line`. Only a line has attributes.
        kind: The kind of the caller ids, see `account_id`.

    Raises:
        TokensError: an entry is malformed, a token occurs twice, or there is no entry. Problems name entries by `unit`
            and number only, because any text in the list may be a secret.
    """

    def __init__(self, entries: Iterable[str], unit: str, kind: str = "") -> None:
        self._fingerprint = Fingerprint()
        self._kind = kind
        users, problems = self._parse(entries, unit)
        if problems or not users:
            raise TokensError(problems or [f"contains no token (accepted: one name:token per {unit})"])
        self._users: Users = users

    async def verify(self, token: bytes, scope: Scope) -> User:
        user = self._users.get(self._fingerprint(token))
        if user is None:
            raise UnknownTokenError
        return user

    def _parse(self, entries: Iterable[str], unit: str) -> tuple[dict[bytes, User], list[str]]:
        """Return the users of the valid entries, and what is wrong with the others."""
        users: dict[bytes, User] = {}
        problems: list[str] = []
        for number, text in enumerate(entries, 1):
            entry = text.strip()
            if not entry or entry.startswith("#"):
                continue
            name, _, rest = (part.strip() for part in entry.partition(":"))
            token, *attributes = rest.split() or [""]
            key = self._fingerprint(token.encode())
            problem = "the token occurs twice; it must be unique" if key in users else _problem(name, token)
            if attributes and unit != "line":
                problem = "attributes are for AUTH_TOKENS_FILE only"
            problem = problem or _attribute_problem(attributes)
            if problem is None:
                users[key] = self._user(name, dict(attribute.split("=", 1) for attribute in attributes))
            else:
                problems.append(f"{unit} {number}: {problem}")
        return users, problems

    def _user(self, name: str, attributes: Mapping[str, str]) -> User:
        scopes = attributes["scopes"].split(",") if "scopes" in attributes else []
        caller = Caller(
            account_id(name, self._kind),
            client=name,
            scopes=frozenset(scopes),
            tier=attributes.get("tier"),
            tenant=attributes.get("tenant"),
        )
        # Without the token itself, which tools have no use for.
        return User(AccessToken(token="", client_id=name, scopes=scopes), caller)


def _problem(name: str, token: str) -> str | None:
    """Return what is wrong with an entry, or `None`."""
    if not token:
        return "is not name:token"
    if _NAME.fullmatch(name) is None:
        return "the name must have 1 to 64 letters, digits and . _ @ -, the first a letter or digit"
    if account_id(name) != name:
        return "the name is reserved: choose one that is not an IP address, stdio or unknown"
    if len(token) < MIN_TOKEN_CHARACTERS:
        return f"the token must have at least {MIN_TOKEN_CHARACTERS} random characters (openssl rand -hex 32 makes one)"
    if len(token) > auth.MAX_TOKEN_BYTES or _TOKEN.fullmatch(token) is None:
        return f"the token may have at most {auth.MAX_TOKEN_BYTES} letters, digits and - . _ ~ + /, then = signs"
    return None


def _attribute_problem(attributes: Sequence[str]) -> str | None:
    """Return what is wrong with the attributes behind a token, or `None`."""
    names = [attribute.partition("=")[0] for attribute in attributes]
    if len({*names}) < len(names):
        return "an attribute occurs twice"
    if all(_ATTRIBUTE.fullmatch(attribute) for attribute in attributes):
        return None
    return "behind the token only scopes=a,b tier=name tenant=name are allowed, with a space before each"


class TokenFile(TokenList):
    """The tokens in a file, which is read again every `CHECK_SECONDS` and on SIGHUP.

    Its valid lines take effect, removals included. A file without valid lines, such as one that is being written,
    changes nothing. New content of a last line without a line break is ignored, since the rest of the line may be
    missing. Until the whole file is in effect, the server is degraded and `mcp_auth_tokens_stale` is 1.

    Content is compared and not the modification time, which does not show every change (a symbolic link that Kubernetes
    redirects, two writes within one tick).
    """

    def __init__(self, path: Path, stale: Gauge, secrets: LearnedSecrets, kind: str = "") -> None:
        self._path = path
        self._secrets = secrets
        self._text: str | None = None
        self._text = self._read()
        self._problem = ""
        self._stale = stale
        self._stale.set(0)
        self._cleanup = contextlib.ExitStack()
        super().__init__(self._text.splitlines(), "line", kind)

    async def watch(self) -> None:
        """Start to reload the file."""
        wake = asyncio.Event()
        self._cleanup.callback(asyncio.create_task(self._reload_forever(wake)).cancel)
        self._cleanup.callback(_on_sighup(wake.set))

    async def unwatch(self) -> None:
        self._cleanup.close()

    async def _reload_forever(self, wake: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), CHECK_SECONDS)
            wake.clear()
            try:
                text = await asyncio.to_thread(self._read)  # in a thread: a network file system may block
            except TokensError as error:
                self._text = None
                self._set_problem(str(error))
                continue
            if text != self._text:
                self._text = text
                self._adopt(text)

    def _adopt(self, text: str) -> None:
        lines = text.splitlines()
        unfinished = lines.pop() if lines and not text.endswith(("\n", "\r")) else ""
        users, problems = self._parse(lines, "line")
        last, invalid = self._parse([unfinished], "line")
        known = {key: self._users[key] for key in last if key in self._users}
        users |= known
        if invalid or any(key not in known or known[key].caller != user.caller for key, user in last.items()):
            problems.append(f"line {len(lines) + 1}: the line break at its end is missing, so it may be incomplete")
        if users:
            self._users = users
            log.info("tokens reloaded", file=str(self._path), tokens=len(users))
        self._set_problem("; ".join(problems) if users or problems else "contains no token")

    def _set_problem(self, problem: str) -> None:
        if problem and problem != self._problem:  # once for each problem, not every second
            log.error("cannot adopt all tokens of the file", file=str(self._path), problem=problem)
        self._problem = problem
        self._stale.set(1 if problem else 0)

    async def health(self, caller_id: str) -> HealthPart:
        """Report `degraded` while the file is not completely in effect."""
        return HealthPart(degraded=("auth_tokens_file",) if self._problem else ())

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise TokensError([f"{self._path} is larger than {MAX_FILE_BYTES} bytes"])
            text = content.decode("utf-8-sig")
        except OSError as error:
            raise TokensError([f"{self._path} cannot be read: {error.strerror}"]) from None
        except UnicodeDecodeError:
            raise TokensError([f"{self._path} is not UTF-8 text"]) from None
        if text != self._text:
            tokens = [line.partition(":")[2].split() for line in text.splitlines()]
            self._secrets.add(*(token[0] for token in tokens if token))
        return text


def _on_sighup(callback: Callable[[], None]) -> Callable[[], object]:
    """Call `callback` on SIGHUP, and return a function that removes this handler.

    Does nothing where SIGHUP does not exist, has another handler, or cannot be handled (outside the main thread).
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return lambda: None
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        return lambda: None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, callback)
    return lambda: loop.remove_signal_handler(signal.SIGHUP)
