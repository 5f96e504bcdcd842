"""A key of each caller for the upstream, from a function of the owner's or from `UPSTREAM_KEYS_FILE`."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from ..caller import Caller
from ..config import ConfigError, ProductionConfig
from ..registry import HealthPart, LearnedSecrets, Registry, Server, registry_of
from .credentials import key_credentials
from .credentials_source import NoSource, Obtained, install_source
from .errors import UpstreamError

CHECK_SECONDS = 1.0
"""Interval at which the file is read."""

MAX_FILE_BYTES = 1024 * 1024

KeyOf = Callable[[Caller], Awaitable[str | None]]

log = structlog.stdlib.get_logger(__name__)


def install(registry: Registry) -> None:
    """Send requests to the upstream with the key of their caller.

    Raises:
        ConfigError: `UPSTREAM_KEYS_FILE` cannot be used.
    """
    path = registry.config.upstream_keys_file
    if path is None:
        install_source(registry, NoSource(registry, "UPSTREAM_KEYS_FILE or upstream_credentials()"))
        return
    try:
        file = KeyFile(path, registry.secrets)
    except ValueError as error:
        raise ConfigError([f"UPSTREAM_KEYS_FILE: {error}"]) from None
    registry.on_startup.append(file.watch)
    registry.on_shutdown.append(file.unwatch)
    registry.health.parts.append(file.health)
    install_source(registry, CallerKeys(registry.config, file.key_of))


def upstream_credentials(server: Server, key_of: KeyOf, *, keep_seconds: float = 0.0) -> None:
    """Send requests to the upstream with `await key_of(caller)`, in the form of the settings `UPSTREAM_API_KEY_*`.

    A request without a key is rejected: one whose caller has none, for which `key_of` returns `None`, and one outside
    of any call.

    Args:
        server: The server.
        key_of: Returns the caller's key. An exception fails the request.
        keep_seconds: How long a key is kept for its caller; 0 to ask for each request.

    Raises:
        ValueError: `UPSTREAM_KEYS_FILE` is set too.
        TypeError: the server was not made by `create_server`.
    """
    registry = registry_of(server)
    if registry.config.upstream_keys_file is not None:
        raise ValueError("UPSTREAM_KEYS_FILE is set: use either the file or upstream_credentials()")
    install_source(registry, CallerKeys(registry.config, key_of, keep_seconds))


class CallerKeys:
    """The keys that a function returns."""

    def __init__(self, config: ProductionConfig, key_of: KeyOf, keep_seconds: float = 0.0) -> None:
        self._config = config
        self._key_of = key_of
        self._keep_seconds = keep_seconds

    def key(self, caller: Caller | None) -> str:
        if caller is None:
            host = urlsplit(self._config.upstream_base_url).netloc
            raise UpstreamError(f"A request to {host} outside of any call has no caller, and no key", host=host)
        return caller.id

    async def obtain(self, caller: Caller | None) -> Obtained | None:
        key = await self._key_of(caller) if caller else None
        if key is not None and not isinstance(key, str):
            raise TypeError(f"a caller's key must be a str or None, not {type(key).__name__}")
        if not key or not key.strip():
            return None
        return Obtained(key_credentials(self._config, key), self._keep_seconds)


class KeyFile:
    """Keys by caller id in a TOML file (`alice = "key"`), which is read again every `CHECK_SECONDS`.

    The last valid content stays in effect until there is a new valid one.

    Raises:
        ValueError: the file cannot be used; the text quotes nothing of it.
    """

    def __init__(self, path: Path, secrets: LearnedSecrets) -> None:
        self._path = path
        self._secrets = secrets
        self._keys: Mapping[str, str] = {}
        self._keys = self._read()
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    async def key_of(self, caller: Caller) -> str | None:
        return self._keys.get(caller.id)

    async def watch(self) -> None:
        self._task = asyncio.create_task(self._reload_forever())

    async def unwatch(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def health(self, caller_id: str) -> HealthPart:
        return HealthPart(degraded=("upstream_keys_file",) if self._problem else ())

    async def _reload_forever(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                self._keys = await asyncio.to_thread(self._read)  # in a thread: a network file system may block
                self._problem = ""
            except ValueError as error:
                if str(error) != self._problem:  # once for each problem, not every second
                    self._problem = str(error)
                    log.error("cannot reload the callers' keys; the previous keys stay valid", problem=self._problem)

    def _read(self) -> Mapping[str, str]:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            keys = tomllib.loads(content.decode("utf-8-sig")) if len(content) <= MAX_FILE_BYTES else None
        except OSError as error:
            raise ValueError(f"{self._path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            line = re.search(r"at line \d+", str(error))
            raise ValueError(f"{self._path} is not valid TOML {line[0] if line else ''}".rstrip()) from None
        if not keys or not all(isinstance(key, str) and key.strip() and key.isprintable() for key in keys.values()):
            raise ValueError(f'{self._path} must have lines: caller id = "key", and at most {MAX_FILE_BYTES} bytes')
        if keys != self._keys:
            self._secrets.add(*keys.values())
        return keys
