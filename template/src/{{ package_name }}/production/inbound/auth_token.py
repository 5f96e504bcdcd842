"""Every client has tokens of its own, handed out by the operator, and a new list counts without a restart.

`AUTH_TOKENS` is `name:token,name2:token2`; `AUTH_TOKENS_FILE` names a file with one `name:token` a line. A name may
stand there twice: the client then has two tokens, as while it changes from one to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog
from mcp.server.auth.provider import AccessToken

from ..config import ConfigError
from ..registry import Registry
from . import auth
from .auth import AuthError, Fingerprint, User
from .identity import account_id

CHECK_SECONDS = 1.0
"""How long after a change of the file the new tokens count, at most."""

MIN_TOKEN_CHARACTERS = 16
MAX_FILE_BYTES = 1024 * 1024

Users = Mapping[bytes, User]
"""The users of the tokens, by the tokens' fingerprints."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what a bearer token may have: RFC 6750, section 2.1

log = structlog.stdlib.get_logger(__name__)


class TokensError(Exception):
    """A list of tokens cannot be used; `problems` has one line each, which never quotes the list."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def install(registry: Registry) -> None:
    """Requires a token where tokens are configured; where none are, only this machine can be served.

    Raises:
        ConfigError: a list of tokens is broken, or both variables are set.
    """
    listed, path = registry.config.auth_tokens, registry.config.auth_tokens_file
    if listed is not None and path is not None:
        raise ConfigError(["AUTH_TOKENS and AUTH_TOKENS_FILE are both set: use one of them"])
    variable = "AUTH_TOKENS" if path is None else "AUTH_TOKENS_FILE"
    auth.report(registry, **{variable: listed or path})
    if registry.config.transport == "stdio":
        return
    try:
        if path is not None:
            tokens = TokenFile(path)
            registry.on_startup.append(tokens.watch)
            registry.on_shutdown.append(tokens.unwatch)
            auth.require(registry, tokens.verify)
        elif listed is not None:
            auth.require(registry, Tokens(listed.get_secret_value().split(","), "entry").verify)
        else:
            auth.require_loopback(registry, "AUTH_TOKENS=name:token (make a token with: openssl rand -hex 32)")
    except TokensError as error:
        raise ConfigError([f"{variable}: {problem}" for problem in error.problems]) from None


class Tokens:
    """The users of the tokens in a list of `name:token`; blank entries and those that begin with # count nothing.

    Raises:
        TokensError: an entry is broken or a token occurs twice, or there is no entry. Whatever is in the list may be
            a secret, so the problems name entries by number, counted in `unit`.
    """

    def __init__(self, entries: Iterable[str], unit: str) -> None:
        self._fingerprint = Fingerprint()
        self._users: Users = self._parsed(entries, unit)

    async def verify(self, token: bytes) -> User:
        user = self._users.get(self._fingerprint(token))
        if user is None:
            raise AuthError(401, "invalid_token", "The access token is not valid")
        return user

    def _parsed(self, entries: Iterable[str], unit: str) -> Users:
        users: dict[bytes, User] = {}
        problems = []
        for number, raw in enumerate(entries, 1):
            entry = raw.strip()
            if not entry or entry.startswith("#"):
                continue
            name, _, token = (part.strip() for part in entry.partition(":"))
            key = self._fingerprint(token.encode())
            problem = "the token occurs twice; every token has one owner" if key in users else _problem(name, token)
            if problem is None:
                # Tools see the owner, not the token.
                users[key] = User(AccessToken(token="", client_id=name, scopes=[]))
            else:
                problems.append(f"{unit} {number}: {problem}")
        if problems:
            raise TokensError(problems)
        if not users:
            raise TokensError([f"there is no token in it (accepted: name:token, one in each {unit})"])
        return users


def _problem(name: str, token: str) -> str | None:
    if not token:
        return "is not name:token"
    if _NAME.fullmatch(name) is None:
        return "the name must have 1 to 64 letters, digits and . _ @ -, the first a letter or digit"
    if account_id(name) != name:
        return "the name is reserved: choose one that is no address"
    if len(token) < MIN_TOKEN_CHARACTERS:
        return f"the token must have at least {MIN_TOKEN_CHARACTERS} characters, random ones: openssl rand -hex 32"
    if len(token) > auth.MAX_TOKEN_BYTES or _TOKEN.fullmatch(token) is None:
        return "the token may have letters, digits and - . _ ~ + /, then = signs"
    return None


class TokenFile(Tokens):
    """The tokens in a file as they are now: read again every second, and at once on SIGHUP.

    What cannot be used changes nothing: the last good list counts until there is a better one. The content is
    compared, not the file's times and number, so that no change goes unseen, whether the file was written in
    place, replaced, or swapped beneath a symbolic link as Kubernetes does it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = self._read()
        self._problem = ""
        self._stop: Callable[[], None] = lambda: None
        super().__init__(self._text.splitlines(), "line")

    async def watch(self) -> None:
        wake = asyncio.Event()
        task = asyncio.create_task(self._follow(wake))
        deaf = _on_sighup(wake.set)

        def stop() -> None:
            deaf()
            task.cancel()

        self._stop = stop

    async def unwatch(self) -> None:
        self._stop()

    async def _follow(self, wake: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), CHECK_SECONDS)
            wake.clear()
            try:
                self._adopt(await asyncio.to_thread(self._read))  # a network's file system may take its time
            except TokensError as error:
                self._complain(str(error))

    def _adopt(self, text: str) -> None:
        if text != self._text:
            self._users = self._parsed(text.splitlines(), "line")
            self._text = text
            log.info("tokens reloaded", file=str(self._path), tokens=len(self._users))
        self._problem = ""

    def _complain(self, problem: str) -> None:
        if problem != self._problem:  # once, not every second
            self._problem = problem
            log.error("new tokens cannot be used; those before still count", file=str(self._path), problem=problem)

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise TokensError([f"{self._path} is larger than {MAX_FILE_BYTES} bytes"])
            return content.decode("utf-8-sig")
        except OSError as error:
            raise TokensError([f"{self._path} cannot be read: {error.strerror}"]) from None
        except UnicodeDecodeError:
            raise TokensError([f"{self._path} is not UTF-8 text"]) from None


def _on_sighup(callback: Callable[[], None]) -> Callable[[], None]:
    """Calls back on SIGHUP until the returned function is called. Nothing happens where the signal does not exist,
    has a handler already, or cannot be handled (outside the main thread)."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return lambda: None
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        return lambda: None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, callback)

    def remove() -> None:
        loop.remove_signal_handler(signal.SIGHUP)

    return remove
