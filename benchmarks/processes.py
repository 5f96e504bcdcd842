"""Server processes, with their CPU time and memory."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
START_SECONDS = 300.0
LOCAL = "127.0.0.1"


@dataclass
class Server:
    """A process that listens on `port`."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    cpu_before: float = field(default=0.0)

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> float:
        """Return the resident memory; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except OSError:
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def forget_log(self) -> None:
        """Empty the file that stderr goes to."""
        os.truncate(self.log, 0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        port: int = probe.getsockname()[1]
        return port


def start(command: list[str | Path], log: Path, settings: Mapping[str, str], cpus: list[int] | None = None) -> Server:
    """Start a server on a port of its own; `wait` returns when it listens."""
    port = free_port()
    # PYTHONDONTWRITEBYTECODE among them: a start would be compiling what an image has compiled.
    drop = ("PYTHON", "VIRTUAL_ENV", "OTEL_", "FASTMCP_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    with log.open("ab") as stderr:  # appending, so that it can be emptied in between
        process = subprocess.Popen(
            [str(part) for part in command],
            env=inherited | dict(settings) | {"PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, cpus)
    return Server(process, port, log)


def wait(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection((LOCAL, server.port), 1).close()
            return
        except OSError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{server.process.args!r} does not serve:\n{server.log.read_text()[-4000:]}") from None
            time.sleep(0.002)


def stop(server: Server) -> None:
    server.process.terminate()
    try:
        server.process.wait(10)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


class LoadGenerator:
    """The process that runs `load.py`."""

    def __init__(self, python: Path, cpus: list[int]) -> None:
        self._process = subprocess.Popen(
            [str(python), str(HERE / "load.py"), *map(str, cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, **job: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the load generator has ended")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def load_generator(python: Path, cpus: list[int]) -> Iterator[LoadGenerator]:
    generator = LoadGenerator(python, cpus)
    try:
        yield generator
    finally:
        generator.close()


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        model = platform.processor()
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": [round(part, 2) for part in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "runner_python": sys.version.split()[0],
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
