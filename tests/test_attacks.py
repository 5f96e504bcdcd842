"""One attacker for some seconds: the default server stays small, answers probes, and says what it rejects.

`pytest -m release -n0 -s tests/test_attacks.py` prints the figures. How long a probe takes depends on what else the
machine does; how much CPU time the server uses meanwhile does not, and is the time on a core of its own.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from .attacker import KINDS
from .live_servers import LOCAL, TOKEN, Project, make_project, status
from .support import DEFAULT, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.release,
    pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc"),
]

SECONDS = 10.0
MAX_MEMORY_MB = 300.0
MAX_PROBE_SECONDS = 0.5
MAX_LOG_LINES = 1200
"""The messages that RATE_LIMIT_MESSAGES admits have a line each, and what is rejected a few."""
SERVER_DEFAULTS = {"RATE_LIMIT_REQUESTS": 100}

REJECTED = {
    "head": ("head",),
    "values": ("body",),
    "shares": ("limited",),
    "connections": ("connections",),
}
"""The reasons in `mcp_http_rejections_total` by the kind of attack."""


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(template, tmp_path_factory.mktemp("attacks") / "project", "lists", base=DEFAULT)


@pytest.fixture(autouse=True)
def many_files() -> None:
    """The attacker inherits the limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far (`proc_pid_stat(5)`)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), tuple(KINDS)], ids="+".join)
def test_an_attacker_neither_fills_the_memory_nor_stops_the_probes(
    kinds: tuple[str, ...], project: Project, tmp_path: Path
) -> None:
    with project.serving(tmp_path / "log", **SERVER_DEFAULTS) as server:
        before = server.memory_mb()
        attacker = [sys.executable, "-m", "tests.attacker", str(server.port), str(SECONDS), TOKEN, *kinds]
        memory, times, cpu_times = [before], [], []
        with subprocess.Popen(attacker, cwd=ROOT) as attack:
            while attack.poll() is None:
                started, cpu_before = time.perf_counter(), cpu_seconds(server.process.pid)
                assert status(server.port, "/livez") == 200
                times.append(time.perf_counter() - started)
                cpu_times.append(cpu_seconds(server.process.pid) - cpu_before)
                memory.append(server.memory_mb())
                time.sleep(0.02)
        assert attack.returncode == 0
        sys.stdout.write(
            f"\n{'+'.join(kinds)}: {before:.0f} to {max(memory):.0f} MB, /livez at most {max(times) * 1000:.0f} ms, "
            f"{max(cpu_times) * 1000:.0f} ms of CPU time\n"
        )
        assert max(memory) < MAX_MEMORY_MB
        assert max(cpu_times) < MAX_PROBE_SECONDS
        assert len(server.log().splitlines()) < MAX_LOG_LINES
        connection = HTTPConnection(LOCAL, server.port, timeout=30)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
        counts = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("mcp_http_rejections"))
        for kind in kinds if len(kinds) == 1 else ():
            for reason in REJECTED[kind]:
                assert float(counts[f'mcp_http_rejections_total{{reason="{reason}"}}']) > 0
