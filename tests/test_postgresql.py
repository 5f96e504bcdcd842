"""The example of docs/dependency.md with a real PostgreSQL, which is killed and started again under load.

Debian's package `postgresql` has the server; its programs are not on PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml
from copier import run_copy

from .live_servers import LOCAL, accepts, free_port, process, status
from .ops import passes, tool
from .support import ROOT, uv, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.release]

NAMES = ("options.py", "tools/_database.py", "tools/orders.py")
"""The files of the page's code blocks, in their order."""

TEXTS = {
    "find_order": re.compile(
        r"item \d+|There is no order \d+\.|database (cannot be reached|failed|did not answer within [\d.]+ s)"
        r"( \(\d attempts\))?\. Trying again later may help\."
        r"|Service temporarily unavailable: database has failed repeatedly\. Try again in \d seconds?\."
    ),
    "add_order": re.compile(
        r"Order \d+ is added\.|database cannot be reached( \(\d attempts\))?\. Trying again later may help\."
        r"|database (failed|did not answer within [\d.]+ s)\. It may have been carried out: check before trying again\."
        r"|Service temporarily unavailable: database has failed repeatedly\. Try again in \d seconds?\."
    ),
}
"""What a model may read before, in and after the outage."""


class Database:
    """A PostgreSQL server of the test."""

    def __init__(self, directory: Path) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        assert programs, "PostgreSQL is not installed: apt-get install postgresql"
        self._programs = programs[-1].parent
        self._data = directory / "data"
        self._log = directory / "postgresql.log"
        self._port = free_port()
        self.url = f"postgresql://postgres@{LOCAL}:{self._port}/postgres"
        # PostgreSQL does not run as root.
        self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        if os.getuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        else:
            self._as_user = []
        options = ("--auth=trust", "--username=postgres", "--no-sync")
        passes(*self._as_user, str(self._programs / "initdb"), *options, str(self._data), cwd=directory)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run the server until the block ends, and kill it then as a crash would end it."""
        options = ["-D", str(self._data), "-p", str(self._port), "-h", LOCAL, "-k", str(self._data)]
        with process([*self._as_user, self._programs / "postgres", *options], self._log, self._data.parent) as started:
            wait_for(lambda: accepts(self._port) and self._answers(), self._log.read_text)
            assert started.poll() is None, self._log.read_text()
            yield
        # Its other processes notice the end of the first one.
        wait_for(lambda: not (self._data / "postmaster.pid").exists() or not accepts(self._port), self._log.read_text)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _answers(self) -> bool:
        with contextlib.suppress(AssertionError):
            return self.query("select 1") == "1"
        return False

    def query(self, text: str) -> str:
        psql = str(self._programs / "psql")
        return passes(psql, self.url, "-tAc", text, cwd=self._data.parent).strip()


def call(port: int, name: str, **arguments: object) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": "2025-11-25",
    }
    with contextlib.closing(HTTPConnection(LOCAL, port, timeout=60)) as connection:
        connection.request("POST", "/mcp", json.dumps(message), headers)
        answer = connection.getresponse().read().decode()
    result: dict[str, Any] = json.loads(answer)["result"]
    return result


def alerts(port: int) -> set[tuple[str, str]]:
    """Return the alerts that fire, each with its host."""
    query = urllib.parse.urlencode({"query": 'ALERTS{alertstate="firing"}'})
    with contextlib.suppress(OSError), contextlib.closing(HTTPConnection(LOCAL, port, timeout=60)) as connection:
        connection.request("GET", f"/api/v1/query?{query}")
        found = json.loads(connection.getresponse().read())["data"]["result"]
        return {(item["metric"]["alertname"], item["metric"].get("host", "")) for item in found}
    return set()


@pytest.fixture(scope="module")
def project(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default project with the code of the page."""
    directory = tmp_path_factory.mktemp("postgresql") / "project"
    data = {"project_name": "Weather Station", "auth": "none"}
    run_copy(str(template), directory, data=data, defaults=True, skip_tasks=True, quiet=True)
    page = (ROOT / "template/docs/dependency.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, code in zip(NAMES, blocks, strict=True):
        (directory / "src/weather_station" / name).write_text(code, "utf-8")
    passes(str(uv()), "add", "--quiet", "asyncpg", cwd=directory, UV_PROJECT_ENVIRONMENT=".venv")
    passes(str(uv()), "add", "--quiet", "--dev", "asyncpg-stubs", cwd=directory, UV_PROJECT_ENVIRONMENT=".venv")
    return directory


def test_the_code_of_the_page_is_clean(project: Path) -> None:
    passes(str(project / ".venv/bin/ruff"), "check", "src", cwd=project)
    passes(str(project / ".venv/bin/mypy"), cwd=project)


def test_the_five_tests_of_the_page_about_tests(project: Path) -> None:
    page = (project / "docs/testing.md").read_text("utf-8")
    tools, tests = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    mine = {
        "src/weather_station/tools/items.py": tools,
        "tests/test_items.py": tests.replace("my_server", "weather_station"),
    }
    hidden = [project / "src/weather_station" / name for name in NAMES]  # these need the database
    kept = {path: path.read_text("utf-8") for path in hidden}
    try:
        for path in hidden:
            path.unlink()
        for name, text in mine.items():
            (project / name).write_text(text, "utf-8")
        passes(str(project / ".venv/bin/ruff"), "check", *mine, cwd=project)
        passes(str(project / ".venv/bin/mypy"), *mine, cwd=project)
        passed = passes(str(project / ".venv/bin/python"), "-m", "pytest", "-q", "tests/test_items.py", cwd=project)
        assert "5 passed" in passed
    finally:
        for path, text in kept.items():
            path.write_text(text, "utf-8")
        for name in mine:
            (project / name).unlink(missing_ok=True)


@pytest.fixture
def database() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as directory:  # pytest's folders are closed to other users
        yield Database(Path(directory))


def test_an_outage_under_load(project: Path, database: Database, tmp_path: Path) -> None:
    port, prometheus_port = free_port(), free_port()
    log = tmp_path / "server.log"
    server = process(
        [project / ".venv/bin/weather-station"],
        log,
        tmp_path,
        PORT=str(port),
        METRICS_PORT="",
        DATABASE_URL=database.url,
        BASE_URL=f"http://{LOCAL}:9",
        RATE_LIMIT_REQUESTS="1000000",
        RETRY_DELAY_SECONDS="0.01",
        RETRY_MAX_DELAY_SECONDS="0.1",
        CIRCUIT_RECOVERY_TIMEOUT="1",
    )
    with contextlib.ExitStack() as running:
        with database.running():
            database.query("create table orders (number integer primary key, item text not null)")
            running.enter_context(server)
            wait_for(lambda: status(port, "/readyz") == 200, log.read_text)
            running.enter_context(prometheus(project, tmp_path, port, prometheus_port))
            load = Load(port)
            running.enter_context(load)
            wait_for(lambda: load.added > 50 and load.found > 50, log.read_text)
            assert load.others == 0
        wait_for(lambda: status(port, "/readyz") == 503, log.read_text)
        wait_for(lambda: ("UpstreamRetriesHigh", "database") in alerts(prometheus_port), log.read_text)
        wait_for(lambda: ("CircuitOpen", "database") in alerts(prometheus_port), log.read_text)
        assert status(port, "/livez") == 200
        with database.running():
            wait_for(lambda: status(port, "/readyz") == 200, log.read_text)
            before = load.added, load.found
            wait_for(lambda: load.added > before[0] + 50 and load.found > before[1] + 50, log.read_text)
            load.stop()
            stored = {int(number) for number in database.query("select number from orders").split()}
    assert load.unexpected == []
    assert load.confirmed <= stored
    assert stored <= load.confirmed | load.doubtful  # what was said not to be stored is not
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    assert {line["logger"] for line in lines if "exception" in line} <= {"asyncpg.pool"}


@contextlib.contextmanager
def prometheus(project: Path, place: Path, server: int, port: int) -> Iterator[None]:
    """Run a Prometheus with the project's rules, which look back seconds in place of minutes."""
    shutil.copytree(project / "ops/prometheus/rules", place / "rules")
    for path in (place / "rules").glob("*.yml"):
        text = re.sub(r"\[\d+m\]", "[10s]", path.read_text("utf-8"))
        path.write_text(re.sub(r"\bfor: \d+m\b", "for: 1s", text), "utf-8")
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [{"job_name": "mcp", "static_configs": [{"targets": [f"{LOCAL}:{server}"]}]}],
    }
    (place / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    options = [
        f"--config.file={place / 'prometheus.yml'}",
        f"--storage.tsdb.path={place / 'series'}",
        f"--web.listen-address={LOCAL}:{port}",
    ]
    with process([tool("prometheus"), *options], place / "prometheus.log", place):
        wait_for(lambda: status(port, "/-/ready") == 200, (place / "prometheus.log").read_text)
        yield


class Load:
    """Callers that add orders and find them, until the block ends."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopped = threading.Event()
        self._numbers = iter(range(1, 1_000_000))
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._add, self._add, self._find, self._find)
        ]
        self.confirmed = set[int]()
        """The orders that were added, as the answers said."""
        self.doubtful = set[int]()
        """Those that may have been."""
        self.found = 0
        self.others = 0
        """Answers that are errors."""
        self.unexpected: list[str] = []

    @property
    def added(self) -> int:
        return len(self.confirmed)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _add(self) -> None:
        while not self._stopped.wait(0.01):
            with self._lock:
                number = next(self._numbers)
            text, failed = self._call("add_order", number=number, item=f"item {number}")
            if not failed:
                self.confirmed.add(number)
            elif "may have been carried out" in text:
                self.doubtful.add(number)

    def _find(self) -> None:
        while not self._stopped.wait(0.01):
            _, failed = self._call("find_order", number=max(self.confirmed, default=1))
            self.found += not failed

    def _call(self, name: str, **arguments: object) -> tuple[str, bool]:
        result = call(self._port, name, **arguments)
        text: str = result["content"][0]["text"]
        if not TEXTS[name].fullmatch(text):
            self.unexpected.append(text)
        failed = bool(result.get("isError")) and not text.startswith("There is no order")
        self.others += failed
        return text, failed
