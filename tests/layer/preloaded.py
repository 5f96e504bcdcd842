"""Start servers of the tests by forks of a process that has imported their libraries, which is most of a start.

The server's own modules are imported after the fork.

    python preloaded.py DESCRIPTOR

is that process. It takes requests from the socket of that number.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType
from typing import IO, Any

LIBRARIES = (
    "mcp.server.mcpserver",
    "httpx2",
    "hypothesis",
    "httptools",
    "jwt",
    "orjson",
    "pydantic_settings",
    "pytest",
    "redis.asyncio",
    "starlette.applications",
    "structlog",
    "uvicorn",
    "uvloop",
)
"""What servers and the modules of tests import; those that a project does not have are left out."""

FRESH = "LAYER_FRESH_PROCESSES"
"""If this variable is set, every server is a new process."""


@dataclass
class Preloaded:
    """The process that has imported the libraries; it ends with this one."""

    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    requests: socket.socket
    lock: threading.Lock = field(default_factory=threading.Lock)


_started: list[Preloaded] = []


def preloaded(environment: Mapping[str, str]) -> Preloaded | None:
    """Return the process whose forks can be servers with this environment; `None` if a new process is needed.

    Args:
        environment: the variables that libraries may read while they are imported. They are those of the first call,
            or a fork would not notice them.
    """
    if not hasattr(os, "fork") or FRESH in os.environ:
        return None
    environment = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    if not _started:
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            process = subprocess.Popen([sys.executable, __file__, str(number)], pass_fds=[number], env=environment)
        _started.append(Preloaded(environment, process, ours))
    (found,) = _started
    return found if found.environment == environment else None


class Forked:
    """A server as `subprocess.Popen` would give it."""

    def __init__(
        self,
        preloaded: Preloaded,
        arguments: Sequence[str],
        cwd: str,
        env: Mapping[str, str],
        pipe: bool,
        stderr: int,
    ) -> None:
        """Start the Python program `arguments[0]`; with `pipe` there are pipes for stdin and stdout."""
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.returncode: int | None = None
        theirs: list[int] = []
        for name, mode in (("stdin", "wb"), ("stdout", "rb"), ("stderr", "rb")):
            if name == "stderr" and stderr != subprocess.PIPE:
                theirs.append(os.dup(stderr))
            elif name != "stderr" and not pipe:
                theirs.append(os.dup(("stdin", "stdout", "stderr").index(name)))
            else:
                read, write = os.pipe()
                setattr(self, name, os.fdopen(write if mode == "wb" else read, mode, buffering=-1))
                theirs.append(read if mode == "wb" else write)
        self._status, written = os.pipe()
        request = json.dumps({"arguments": list(arguments), "cwd": cwd, "env": dict(env)}).encode()
        with preloaded.lock:
            socket.send_fds(preloaded.requests, [len(request).to_bytes(4, "big")], [*theirs, written])
            preloaded.requests.sendall(request)
        for descriptor in (*theirs, written):
            os.close(descriptor)
        self.pid = int.from_bytes(os.read(self._status, 4), "big")

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a server", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(os.read(self._status, 4), "big"))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Forked:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in (self.stdout, self.stderr, self.stdin):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()
        self.wait()


def _serve(server: socket.socket) -> Any:
    """Fork for each request, and return the request in the fork; `None` at the end of the tests."""
    while True:
        head, descriptors, _, _ = socket.recv_fds(server, 4, 8)
        if not head:
            return None
        size = int.from_bytes(head, "big")
        content = b""
        while len(content) < size:
            content += server.recv(size - len(content))
        if os.fork() == 0:  # this process waits for the server, so that the test can ask for its status
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if (pid := os.fork()) == 0:
                for number, descriptor in enumerate(descriptors[:3]):
                    os.dup2(descriptor, number)
                os.closerange(3, max(server.fileno(), *descriptors) + 1)
                return json.loads(content)
            *theirs, status = descriptors
            for descriptor in theirs:
                os.close(descriptor)
            os.write(status, pid.to_bytes(4, "big"))
            os.write(status, os.waitpid(pid, 0)[1].to_bytes(4, "big"))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _main() -> None:
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the servers
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for name in LIBRARIES:
        if find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return
    signal.signal(signal.SIGINT, on_interrupt)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.argv = request["arguments"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _main()
