"""One attacker for some seconds: the default server stays small, answers probes, and says what it rejects.

`pytest -m release -n0 -s tests/test_attacks.py` prints the figures. The times depend on what else the machine does, so
that only memory, answers and metrics are asserted.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from .attacker import KINDS
from .live_servers import LOCAL, TOKEN, Project, make_project, status
from .support import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.release,
    pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc"),
]

SECONDS = 10.0
MAX_MEMORY_MB = 300.0
MAX_LOG_LINES = 1000
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
    answers = {"auth": "token", "rate_limit_backend": "memory", "telemetry_protocol": "http/protobuf"}
    return make_project(template, tmp_path_factory.mktemp("attacks") / "project", "lists", **answers)


@pytest.fixture(autouse=True)
def many_files() -> None:
    """The attacker inherits the limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), tuple(KINDS)], ids="+".join)
def test_an_attacker_neither_fills_the_memory_nor_stops_the_probes(
    kinds: tuple[str, ...], project: Project, tmp_path: Path
) -> None:
    with project.serving(tmp_path / "log", **SERVER_DEFAULTS) as server:
        before = server.memory_mb()
        attacker = [sys.executable, "-m", "tests.attacker", str(server.port), str(SECONDS), TOKEN, *kinds]
        memory, times = [before], []
        with subprocess.Popen(attacker, cwd=ROOT) as attack:
            while attack.poll() is None:
                started = time.perf_counter()
                assert status(server.port, "/livez") == 200
                times.append(time.perf_counter() - started)
                memory.append(server.memory_mb())
                time.sleep(0.02)
        assert attack.returncode == 0
        sys.stdout.write(
            f"\n{'+'.join(kinds)}: {before:.0f} to {max(memory):.0f} MB, /livez at most {max(times) * 1000:.0f} ms\n"
        )
        assert max(memory) < MAX_MEMORY_MB
        assert len(server.log().splitlines()) < MAX_LOG_LINES
        connection = HTTPConnection(LOCAL, server.port, timeout=30)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
        counts = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("mcp_http_rejections"))
        for kind in kinds if len(kinds) == 1 else ():
            for reason in REJECTED[kind]:
                assert float(counts[f'mcp_http_rejections_total{{reason="{reason}"}}']) > 0
