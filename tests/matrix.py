"""Check projects of many combinations of answers, each in its own environment: lint, types, tests and start.

    python3 with_uv.py run python -m tests.matrix outbound     # all 32 combinations of the upstream client's features
    python3 with_uv.py run python -m tests.matrix structure    # every pair of answers that bring or remove a file
    python3 with_uv.py run python -m tests.matrix questions    # every pair of answers
    python3 with_uv.py run python -m tests.matrix kinds --from 0.1.0

With `--from`, a release or "previous commit", each project is made of that version, edited as owners do
(`tests/owner_projects.py`) and updated to the working tree; the checks run on the result. A project takes about a
minute on two cores. `pytest -m release` runs all of these.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from copier import run_copy

from .environments import compile_modules, make_environment, shared_files
from .owner_projects import ANSWER_SETS, NOW, ORIGINS, TemplateHistory, edit_as_owner
from .support import (
    DEADLINE_SECONDS,
    DEFAULT,
    EVERYTHING,
    MINIMAL,
    NEEDS,
    OTHER_VALUES,
    ROOT,
    Answers,
    answers,
    choices,
    clean_environment,
    copy_template,
    evaluate,
    questions,
    run,
    uv,
)

OUTBOUND = ("enable_retries", "enable_circuit_breaker", "enable_metrics", "enable_telemetry", "enable_logging")
STRUCTURAL = (
    "rate_limit_backend",
    "telemetry_protocol",
    "telemetry_signals",
    "auth",
    "upstream_auth",
    "session_mode",
    "response_mode",
    "upstream_base_url",
    "upstream_api_key_env",
)
"""Questions other than switches whose answers bring or remove a file, or decide how the server serves."""

LAYER = ROOT / "tests" / "layer"
"""The tests of the production layer."""

CHECKS: Mapping[str, Sequence[str | Path]] = {
    "lint": ("ruff", "check", "."),
    "format": ("ruff", "format", "--check", "."),
    "types": ("mypy",),
    "tests": ("pytest", "-q", "-p", "no:cacheprovider"),
    "start": ("python", LAYER / "smoke.py"),
}
"""Checks that owners and the hook run, as arguments of `uv run`."""

QUICK = ("-m", "not pure")
"""Leaves out those tests of the layer that have the same result in every project."""

TRIES = 40
"""The number of covers that are computed, each from its own random seed; the shortest is used."""

RENDERING = threading.Lock()
"""One rendering at a time: Copier changes the working directory of its process."""

Factors = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Project:
    """A project with its environment; nothing in it needs a network."""

    path: Path

    @classmethod
    def build(cls, template: Path, path: Path, data: Answers) -> Project:
        render(template, data, path)
        return cls.of(path)

    @classmethod
    def of(cls, path: Path) -> Project:
        """Make the environment of a rendered project."""
        make_environment(path)
        return cls(path)

    def uv(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(uv(), *arguments, cwd=self.path, UV_OFFLINE="1", **environment)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the interpreter of the project's environment."""
        return self.uv("run", "--no-sync", "python", *arguments)

    def check(self, name: str, **environment: str) -> str:
        """Run one of `CHECKS`, with more variables, and return the last line of its output.

        Raises:
            AssertionError: it failed, or skipped a test.
        """
        if name == "types":
            return self.check_types()
        # The system's certificates, which no test needs, are half of what starting a server costs.
        certificates = {"SSL_CERT_FILE": "", "SSL_CERT_DIR": str(self.path)} if name == "tests" else {}
        done = self.uv("run", "--no-sync", *CHECKS[name], **certificates, **environment)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        last = (done.stdout.strip().splitlines() or [""])[-1]
        if name == "tests":
            assert re.search(r"\d+ passed", last), done.stdout
            assert "skipped" not in last, done.stdout
        return last

    def check_types(self, *arguments: str | Path) -> str:
        """Run mypy and return the last line of its output.

        mypy reuses what it found out about libraries in another project of this session; it compares their content.

        Raises:
            AssertionError: it found a mistake.
        """
        shared, own = shared_files() / "mypy", self.path / ".mypy_cache"
        if shared.exists() and not own.exists():
            shutil.copytree(shared, own)
        done = self.uv("run", "--no-sync", "mypy", "--cache-dir", own, *arguments)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        if not shared.exists():
            with tempfile.TemporaryDirectory(dir=shared.parent) as folder, contextlib.suppress(OSError):
                shutil.copytree(own, Path(folder) / "mypy").rename(shared)  # fails if another worker was faster
        return (done.stdout.strip().splitlines() or [""])[-1]

    def prepare_layer(self) -> None:
        """Install what the tests of the production layer need into the project's environment."""
        done = run(uv(), "pip", "install", "--quiet", "--requirements", LAYER / "requirements.txt", cwd=self.path)
        assert done.returncode == 0, done.stderr
        compile_modules(self.path / ".venv")

    def check_layer(self, *selection: str, processes: int = 0, forks: bool = True, **environment: str) -> str:
        """Run tests of the production layer in the project's environment, and return the last line of their output.

        Args:
            selection: options of pytest and names of modules; all tests unless given.
            processes: number of workers, each of which takes some seconds to start; 0 for none.
            forks: whether servers in processes of their own may be forks, whose libraries are imported already.
            environment: more variables.

        Raises:
            AssertionError: a test failed or was skipped.
        """
        done = subprocess.run(
            [
                uv(),
                "run",
                "--no-sync",
                "--project",
                self.path,
                "pytest",
                "-q",
                f"--numprocesses={processes}",
                *selection,
            ],
            cwd=LAYER,
            env=clean_environment(UV_OFFLINE="1", **environment, **({} if forks else {"LAYER_FRESH_PROCESSES": "1"})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=3 * DEADLINE_SECONDS,
            check=False,
        )
        last = (done.stdout.strip().splitlines() or [""])[-1]
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
        assert "skipped" not in last, done.stdout
        return last


def pairwise(
    factors: Factors, covered: Iterable[Answers], order: random.Random, needed: Iterable[str] | None = None
) -> Iterator[Answers]:
    """Yield rows of answers in which every allowed pair of values occurs that `covered` lacks.

    Greedy: each row starts with a missing pair and takes for every other question the value that adds the most pairs.

    Args:
        factors: the values of each question.
        covered: rows whose pairs need no further row.
        order: decides between values that add the same number of pairs.
        needed: the questions whose pairs have to occur; all of `factors` unless given.
    """
    wanted = set(factors if needed is None else needed)
    missing = {
        frozenset(((one, a), (other, b)))
        for one, other in itertools.combinations(factors, 2)
        for a, b in itertools.product(factors[one], factors[other])
        if allowed({one: a, other: b})
    }
    for covered_rows in covered:
        missing -= _pairs(covered_rows)

    def gain(row: Answers, name: str, value: Any) -> int:
        return sum(frozenset((item, (name, value))) in missing for item in row.items())

    while pending := [pair for pair in missing if {name for name, _ in pair} <= wanted]:
        row: Answers = dict(order.choice(sorted(pending, key=lambda pair: sorted(map(repr, pair)))))
        for name in order.sample([*factors], len(factors)):
            if name not in row:
                values = [value for value in factors[name] if allowed(row | {name: value})]
                row[name] = max(order.sample(values, len(values)), key=partial(gain, row, name))
        missing -= _pairs(row)
        yield row


def _pairs(row: Answers) -> set[frozenset[tuple[str, Any]]]:
    return {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}


def allowed(row: Answers) -> bool:
    """Return whether the validators accept these answers together."""
    return all(
        row.get(needed, value) == value
        for name, needs in NEEDS.items()
        if row.get(name)
        for needed, value in needs.items()
    )


def outbound() -> dict[str, Answers]:
    """Return all combinations of the features around the upstream client, with defaults for the rest."""
    rows = {}
    for values in itertools.product((True, False), repeat=len(OUTBOUND)):
        row = dict(zip(OUTBOUND, values, strict=True))
        on = [name.removeprefix("enable_") for name, value in row.items() if value]
        rows["+".join(on) or "nothing"] = answers(**(DEFAULT | row))
    return rows


def structure() -> dict[str, Answers]:
    """Return the rows that cover every pair of answers that decide which files there are."""
    return _cover(_structure())


@cache
def outbound_pairs() -> dict[str, Answers]:
    """Return rows that cover the pairs of the upstream client's features, the other answers as varied as possible."""
    return _cover(_structure(), OUTBOUND)


def _structure() -> Factors:
    switches = [name for name, question in questions().items() if question["type"] == "bool"]
    return {name: values_of(name) for name in (*switches, *STRUCTURAL)}


def all_questions() -> dict[str, Answers]:
    """Return the rows that cover every pair of answers, without the names of the project, which the tests need."""
    names = ("project_name", "project_slug", "package_name")
    return _cover({name: values_of(name) for name in questions() if name not in names})


def _cover(factors: Factors, needed: Iterable[str] | None = None) -> dict[str, Answers]:
    """Return a short cover beside the default, minimal and everything variants, which are tested anyway."""
    covered_rows = [complete(data, factors) for data in (DEFAULT, MINIMAL, EVERYTHING)]
    tries = ([*pairwise(factors, covered_rows, random.Random(seed), needed)] for seed in range(TRIES))  # noqa: S311 (no secret)
    rows = min(tries, key=len)
    return {f"pairwise-{number}": answers(**(DEFAULT | row)) for number, row in enumerate(rows, start=1)}


def values_of(name: str) -> Sequence[Any]:
    """Return the values of a question that a cover varies."""
    question = questions()[name]
    if question["type"] == "bool":
        return (True, False)
    return choices(question) or (question["default"], OTHER_VALUES[name])


def complete(data: Answers, names: Iterable[str]) -> Answers:
    """Return the answers to these questions, with the defaults of `data` for what it does not answer."""
    values = evaluate(data)
    return {name: values[name] for name in names}


MATRICES: Mapping[str, Callable[[], dict[str, Answers]]] = {
    "kinds": lambda: dict(ANSWER_SETS),
    "outbound": outbound,
    "structure": structure,
    "questions": all_questions,
}


def render(template: Path, data: Answers, path: Path) -> None:
    """Render a project without an environment."""
    run_copy(str(template), path, data=data, defaults=True, skip_tasks=True, quiet=True)


def update(history: TemplateHistory, origin: str, data: Answers, path: Path) -> None:
    """Render a project of an older version, edit it as owners do, and update it to the working tree."""
    history.copy(origin, path, data)
    edit_as_owner(path, starter=True)
    history.update(path, NOW)


def check_project(make: Callable[[Path], None]) -> str:
    """Make a project, and run its checks and the tests of the production layer in its environment.

    Returns:
        The last lines of its own tests and of those of the layer.

    Raises:
        AssertionError: a check failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "project"
        with RENDERING:
            make(path)
        project = Project.of(path)
        last = {check: project.check(check) for check in CHECKS}["tests"]
        project.prepare_layer()
        return f"{last}; production layer: {project.check_layer(*QUICK, processes=3, forks=False)}"


def check_projects(
    rows: Mapping[str, Answers], origin: str | None = None, jobs: int = 2
) -> Iterator[tuple[str, str, bool]]:
    """Check each project; yield its name, the result or the problem, and whether it passed."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as executor:
        make: Callable[[Answers, Path], None]
        if origin:
            make = partial(update, TemplateHistory(Path(folder)), origin)
        else:
            copy_template(Path(folder))
            make = partial(render, Path(folder))
        running = {executor.submit(check_project, partial(make, data)): name for name, data in rows.items()}
        for done in as_completed(running):
            name = running[done]
            try:
                yield name, done.result(), True
            except Exception as error:  # a problem in one project must not stop the checks of the others
                yield name, f"FAILED {rows[name]}\n{type(error).__name__}: {error}", False


def main() -> int:
    """Check every project of one matrix, print a line for each, and return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("matrix", choices=MATRICES)
    parser.add_argument("--only", default="", metavar="REGEX", help="only the projects whose name matches")
    parser.add_argument("--from", dest="origin", choices=ORIGINS, help="the version that the projects are updated from")
    parser.add_argument("--jobs", type=int, default=2, help="how many projects at once (default: 2)")
    parser.add_argument("--list", action="store_true", help="show the answers, build nothing")
    options = parser.parse_args()
    rows = {name: data for name, data in MATRICES[options.matrix]().items() if re.search(options.only, name)}
    if options.list:
        for name, data in rows.items():
            print(name, data)
        return 0
    start, failed = time.monotonic(), 0
    for name, result, passed in check_projects(rows, options.origin, options.jobs):
        failed += not passed
        print(f"{time.monotonic() - start:.0f} s {name}: {result}", flush=True)
    print(f"{len(rows) - failed} of {len(rows)} projects")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
