"""Measure what the production layer costs, and write the figures, a table and a plot.

    python3 with_uv.py run python -m benchmarks            # everything, about half an hour
    python3 with_uv.py run python -m benchmarks --quick    # two minutes: only checks that it runs
    python3 with_uv.py run python -m benchmarks --against COMMIT    # with the servers of another commit than 0.1.0

Every server is a process of its own, all of them pinned to one core, and the load comes from another process on
another one. Servers take turns in short rounds of changing order, and a ratio compares a server with the bare
one of the same round, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import environments, report, targets
from .processes import HERE, LOCAL, LoadGenerator, Server, load_generator, machine, start, stop, wait
from .targets import ALL, ALL_BUT_TELEMETRY, BARE, Cell, Target

PARTS = ("load", "micro", "startup", "growth", "memory")
MINUTE = 60.0
FIRST_RELEASE = "6d82e19"
"""The commit of version 0.1.0."""


class Bench:
    """The environments, the processes that run, and the figures so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.work: Path = options.cache / "run"
        self.work.mkdir(parents=True, exist_ok=True)
        self.interpreters = {
            **{variant: environments.project(options.cache, variant) for variant in environments.VARIANTS},
            "fastmcp": environments.fastmcp(options.cache),
            targets.EARLIER: environments.project(options.cache, "project", options.against),
        }
        node = environments.node(options.cache, HERE / "servers")
        if node:
            self.interpreters["node"] = node
        else:
            say("npm is missing, and with it the peers in TypeScript")
        against = "0.1.0" if options.against == FIRST_RELEASE else options.against
        self.earlier = [target.of_version(against) for target in targets.COMPARED]
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.server_cpus, self.load_cpus = (cpus[:1], cpus[1:]) if len(cpus) > 1 else ([], [])
        self.places: dict[str, object] = {"permissions": HERE / "servers"}
        """What settings name: ports, and the directory of the files that give permissions."""
        self.figures: dict[str, Any] = {
            "machine": machine(),
            "versions": {
                "project": environments.versions(self.interpreters["project"], "mcp", "uvicorn", "uvloop", "httptools"),
                "fastmcp": environments.versions(self.interpreters["fastmcp"], "fastmcp", "mcp", "uvicorn"),
                "node": environments.NODE_PACKAGES if node else {},
            },
            "against": against,
            "options": {"rounds": options.rounds, "seconds": options.seconds, "quick": options.quick},
        }

    def launch(self, target: Target, response: str = "json", **settings: str) -> Server:
        generated = target.script == "production" and target.environment != targets.EARLIER
        mode = "auto" if generated and response == "json" else response  # the default, which 0.1.0 does not have
        wanted = {**target.settings, "RESPONSE_MODE": mode, "PACKAGE": environments.PACKAGE, **settings}
        filled = {name: value.format(**self.places) for name, value in wanted.items()}
        slug = re.sub(r"\W+", "-", f"{target.name} {response}")
        log = self.work / f"{slug}-{time.monotonic_ns()}.log"
        return start(targets.command(target, self.interpreters, HERE), log, filled, self.server_cpus)

    @contextmanager
    def serving(
        self, wanted: Sequence[tuple[Target, str]], **settings: str
    ) -> Iterator[dict[tuple[Target, str], Server]]:
        """Run all of these servers, started at once."""
        servers: dict[tuple[Target, str], Server] = {}
        try:
            for target, response in wanted:
                servers[target, response] = self.launch(target, response, **settings)
            for server in servers.values():
                wait(server)
            yield servers
        finally:
            for server in servers.values():
                stop(server)
                with suppress(OSError):
                    server.log.unlink()

    @contextmanager
    def support(self) -> Iterator[None]:
        """Run Redis and the OTLP receiver, beside the load."""
        python = self.interpreters["redis"]
        running = []
        try:
            for name in ("redis", "otlp"):
                script = HERE / "servers" / f"{'redis_peer' if name == 'redis' else name}.py"
                server = start([python, script], self.work / f"{name}.log", {}, self.load_cpus)
                running.append(server)
                wait(server)
                self.places[name] = server.port
            yield
        finally:
            for server in running:
                stop(server)

    def spans(self) -> int:
        with urllib.request.urlopen(f"http://{LOCAL}:{self.places['otlp']}/", timeout=5) as answer:
            return int(answer.read())


def job(server: Server, target: Target, version: str, concurrency: int, seconds: float, **more: Any) -> dict[str, Any]:
    parts = {name: more.pop(name) for name in ("forwarded_for", "tool", "arguments", "session") if name in more}
    text = targets.request(version, token=target.token, port=server.port, **parts)
    opening = targets.initialize(version, token=target.token, port=server.port) if "session" in parts else ""
    return {
        "host": LOCAL,
        "port": server.port,
        "request": text,
        "opening": opening,
        "expected": '"text":"5"' if "tool" not in parts and target is not targets.NOTHING else '"text"',
        "concurrency": concurrency,
        "seconds": seconds,
        **more,
    }


def measure(generator: LoadGenerator, server: Server, cell: Cell, seconds: float, **more: Any) -> dict[str, Any]:
    before = server.cpu_seconds()
    warm_up = more.pop("warm_up", min(0.3, seconds / 4))
    answer = generator.run(**job(server, cell.target, cell.version, cell.concurrency, seconds, warm_up=warm_up, **more))
    if answer["wrong"]:
        raise SystemExit(f"{cell.key}: wrong answers, such as\n{answer['wrong'][0]}\n{server.log.read_text()[-2000:]}")
    answer["server_us"] = (server.cpu_seconds() - before) / max(1, answer["all_calls"]) * 1e6
    answer["memory_mb"] = server.memory_mb()
    server.forget_log()
    return answer


def load(bench: Bench, generator: LoadGenerator) -> None:
    """Measure throughput and latency of every combination."""
    only = re.compile(bench.options.only)
    cells = [Cell(t, "2026-07-28", "json", c) for t in targets.JSON_TARGETS for c in (1, 32)]
    cells += [Cell(t, "2025-11-25", "json", c) for t in targets.LEGACY for c in (1, 32)]
    cells += [Cell(t, version, "json", c) for t in bench.earlier for version in targets.VERSIONS for c in (1, 32)]
    cells.append(Cell(targets.NOTHING, "2026-07-28", "json", 32))
    cells = [
        cell
        for cell in cells
        if (only.search(cell.key) or cell.target == BARE) and cell.target.environment in bench.interpreters
    ]
    needed = list(dict.fromkeys((cell.target, cell.response) for cell in cells))
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    order = random.Random(1)  # the same on every run
    with bench.serving(needed) as servers:
        for cell in cells:  # what is made at the first calls is made now
            measure(generator, servers[cell.target, cell.response], cell, 0.3)
        for number in range(bench.options.rounds):
            for group in groups(cells, order):
                for cell in group:
                    server = servers[cell.target, cell.response]
                    result = measure(generator, server, cell, bench.options.seconds)
                    result["round"] = number
                    found[cell.key].append(result)
            say(f"round {number + 1} of {bench.options.rounds} done")
        bench.figures["spans_received"] = bench.spans()
    bench.figures["load"] = dict(found)


def groups(cells: Sequence[Cell], order: random.Random) -> Iterator[list[Cell]]:
    """Cells that are compared with one another, near in time; in each the bare server comes first and last."""
    by_kind: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_kind[cell.version, cell.response, cell.concurrency].append(cell)
    for kind in order.sample(list(by_kind.values()), len(by_kind)):
        bare = [cell for cell in kind if cell.target == BARE]
        others = [cell for cell in kind if cell.target != BARE]
        yield [*bare, *order.sample(others, len(others)), *bare]


def micro(bench: Bench, generator: LoadGenerator) -> None:
    """Measure the microseconds of each middleware."""
    python = bench.interpreters["redis"]
    url = targets.REDIS["REDIS_URL"].format(**bench.places)
    done = subprocess.run(
        [str(python), str(HERE / "micro.py"), environments.PACKAGE, url],
        env=os.environ | {"PYTHONPATH": str(HERE / "servers")},  # for the project's tools
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    bench.figures["micro_us"] = json.loads(done.stdout)


def startup(bench: Bench, generator: LoadGenerator) -> None:
    """Measure the seconds from the start of a process to its first response, and its memory then."""
    chosen = (
        BARE,
        targets.EVERYTHING_OFF,
        ALL_BUT_TELEMETRY,
        ALL,
        targets.EVERY_FEATURE,
        targets.FASTMCP,
        targets.FASTMCP_ALL,
        targets.SAMPLE,
        *bench.earlier,
    )
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(bench.options.starts + 1):
        for target in chosen:
            began = time.perf_counter()
            server = bench.launch(target)
            try:
                wait(server)
                generator.run(**job(server, target, "2026-07-28", 1, 10.0, calls=1))
                seconds = time.perf_counter() - began
                if number:  # the first one filled the caches
                    cpu = server.cpu_seconds()
                    found[target.name].append({"seconds": seconds, "cpu": cpu, "memory_mb": server.memory_mb()})
            finally:
                stop(server)
    bench.figures["startup"] = dict(found)


def growth(bench: Bench, generator: LoadGenerator) -> None:
    """Measure whether the cost of a call grows with tools, clients, connections, and bytes of arguments and results."""
    seconds, rounds = bench.options.seconds, max(1, bench.options.rounds // 2)
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    chosen = (BARE, ALL_BUT_TELEMETRY, targets.FASTMCP_LAYER)
    tools = {t.with_settings(TOOLS=str(n)): n for t in chosen for n in (1, 10, 100, 1000)}
    with bench.serving([(target, "json") for target in tools]) as servers:
        for target in tools:  # what is made at the first call is made now
            generator.run(**job(servers[target, "json"], target, "2026-07-28", 1, 30.0, calls=20))
        for _ in range(rounds):
            for target, n in tools.items():
                cell = Cell(target, "2026-07-28", "json", 1)
                result = measure(generator, servers[target, "json"], cell, seconds)
                keep(found["tools"], f"{target.name} | {n}", result)
    limited = replace(
        ALL_BUT_TELEMETRY.with_settings(TRUSTED_PROXIES=LOCAL, AUTH_TOKENS="", MAX_REQUESTS_PER_CALLER="2000"),
        token=False,
    )
    unlimited = {"MAX_RESULT_BYTES": "0"}
    stateful = {"SESSION_MODE": "stateful", "MAX_SESSIONS_PER_CALLER": "2000"}
    with (
        bench.serving([(limited, "json"), (limited, "sse"), (BARE, "json"), (BARE, "sse")], **unlimited) as servers,
        bench.serving([(limited, "json"), (BARE, "json")], **stateful) as with_sessions,
    ):
        for _ in range(rounds):
            for label, address in (("one client", "1.2.3.4"), ("each call a new client", "255.255.255.255")):
                cell = Cell(limited, "2026-07-28", "json", 32)
                result = measure(generator, servers[limited, "json"], cell, seconds, forwarded_for=address)
                keep(found["clients"], label, result)
            for target in (BARE, limited):
                server = servers[target, "json"]
                for connections in (1, 10, 100, 1000):
                    cell = Cell(target, "2026-07-28", "json", connections)
                    keep(
                        found["connections"],
                        f"{target.name} | {connections}",
                        measure(generator, server, cell, seconds),
                    )
                for size in (10, 1_000, 10_000, 100_000, 1_000_000):
                    for part, arguments in (
                        ("arguments", {"text": "x" * size, "characters": 1}),
                        ("results", {"text": "x", "characters": size}),
                    ):
                        cell = Cell(target, "2026-07-28", "json", 1)
                        more = {"tool": "measure", "arguments": arguments}
                        keep(found[part], f"{target.name} | {size}", measure(generator, server, cell, seconds, **more))
                for version in targets.VERSIONS:
                    for response in targets.RESPONSES:
                        cell = Cell(target, version, response, 32)
                        result = measure(generator, servers[target, response], cell, seconds)
                        keep(found["modes"], f"{target.name} | {version}, {response}", result)
                cell = Cell(target, "2025-11-25", "json", 32)
                result = measure(generator, with_sessions[target, "json"], cell, seconds, session="{session}")
                keep(found["modes"], f"{target.name} | 2025-11-25, json, stateful", result)
    bench.figures["growth"] = dict(found)


def keep(where: dict[str, list[dict[str, Any]]], key: str, result: dict[str, Any]) -> None:
    where.setdefault(key, []).append(result)


def memory(bench: Bench, generator: LoadGenerator) -> None:
    """Measure the memory of servers after 10,000 calls, and of one with everything on over up to a million."""
    deadline = time.monotonic() + bench.options.memory_minutes * MINUTE
    found: dict[str, list[dict[str, float]]] = {}
    for target in (BARE, ALL_BUT_TELEMETRY, ALL):
        cell = Cell(target, "2026-07-28", "json", 32)
        with bench.serving([(target, "json")]) as servers:
            server = servers[target, "json"]

            def answer(calls: int, server: Server = server, cell: Cell = cell) -> dict[str, float]:
                done = measure(generator, server, cell, 600.0, warm_up=0.0, calls=calls)["all_calls"]
                return {"calls": done, "memory_mb": server.memory_mb()}

            samples = [{"calls": 0.0, "memory_mb": server.memory_mb()}, answer(10_000)]
            while target is ALL and samples[-1]["calls"] < bench.options.memory_calls and time.monotonic() < deadline:
                more = answer(50_000)
                samples.append(more | {"calls": samples[-1]["calls"] + more["calls"]})
        found[target.name] = samples
    bench.figures["memory"] = found


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--rounds", type=int, default=7, help="how often every server takes its turn (default: 7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn (default: 1)")
    parser.add_argument("--only", default="", metavar="REGEX", help="of the load part only these servers, beside bare")
    parser.add_argument(
        "--against", default=FIRST_RELEASE, metavar="COMMIT", help="compare with the servers of that commit (0.1.0)"
    )
    parser.add_argument("--starts", type=int, default=5, help="how often every server starts (default: 5)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--memory-calls", type=int, default=1_000_000, help="calls of the memory part")
    parser.add_argument("--memory-minutes", type=float, default=15.0, help="its limit in minutes")
    parser.add_argument(
        "--cache", type=Path, default=environments.cache_directory(), help="where environments are kept"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="where the figures go")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the servers stop with it
    if options.quick:
        options.rounds, options.seconds, options.memory_calls, options.starts = 1, 0.3, 1, 1
    say("making the environments")
    bench = Bench(options)
    parts = {"load": load, "micro": micro, "startup": startup, "growth": growth, "memory": memory}
    options.out.mkdir(parents=True, exist_ok=True)
    raw = options.out / "figures.json"
    if set(options.parts) != set(PARTS) and raw.exists():  # the other parts stay as they were measured
        bench.figures = json.loads(raw.read_text("utf-8")) | bench.figures
    busiest = 0.0
    with bench.support(), load_generator(bench.interpreters["project"], bench.load_cpus) as generator:
        for name in options.parts:
            say(f"measuring: {name}")
            parts[name](bench, generator)
            busiest = max(busiest, *os.getloadavg()[:2]) if hasattr(os, "getloadavg") else 0.0
            bench.figures["machine"]["busiest_load_average"] = round(busiest, 1)
            raw.write_text(json.dumps(bench.figures, indent=1) + "\n", "utf-8")
    report.write(bench.figures, options.out)
    print((options.out / "table.md").read_text("utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
