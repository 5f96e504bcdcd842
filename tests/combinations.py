"""Renders and lints every combination of the switches, and of the choices that decide which files there are.

    python3 with_uv.py run python -m tests.combinations [--part 1/4] [--processes 2]

The test-suite changes one answer at a time and a pairwise cover goes further; this command leaves none out, and takes
minutes. Answers that only fill in a value are drawn, with the same draw each time. Each project is rendered in process,
each of its data files parsed, each import among its modules resolved, and ruff asked for lint and format. Exit status 1
names what is wrong with which answers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest
from copier import run_copy

from .conftest import Rendering
from .support import (
    NEEDS,
    Answers,
    answers,
    choices,
    copier_yml,
    copy_template,
    keep_compiled_sources,
    keep_configurations,
    questions,
    render_only_what_is_a_template,
)
from .test_render import broken_imports, ruff_problems, texts, unreadable

BATCH = 48
"""Projects that are on disk at once, for each process."""

URLS = ["https://api.open-meteo.com", "https://api.example.com/v1"]
"""One for each starter."""


class Result(NamedTuple):
    projects: int
    rendering: float
    checking: float
    problems: list[tuple[str, Answers]]


def axes() -> dict[str, list[Any]]:
    """The values of each switch, and of each choice that the feature manifest reads."""
    manifest = json.dumps([copier_yml()["_exclude"], copier_yml()["features"]])
    found: dict[str, list[Any]] = {}
    for name, question in questions().items():
        if question["type"] == "bool":
            found[name] = [False, True]
        elif choices(question) and name != "profile" and re.search(rf"\b{name}\b", manifest):
            found[name] = choices(question)
    return found


def combinations() -> Iterator[Answers]:
    """Each combination once: what is not asked, because its feature is off, has its first value."""
    values = axes()
    drawn = {name: choices(entry) for name, entry in questions().items() if choices(entry) and name not in values}
    for number, combination in enumerate(product(*values.values())):
        given = dict(zip(values, combination, strict=True))
        if all(given[name] == values[name][0] for name in values if not asked(name, given)):
            draw = random.Random(number)  # noqa: S311 (the same each time)
            other = {name: draw.choice(offered) for name, offered in drawn.items() if name != "profile"}
            yield answers(project_name="Weather Station", upstream_base_url=draw.choice(URLS), **given, **other)


def asked(name: str, given: Answers) -> bool:
    """Whether the switches that a question depends on are on."""
    needed = {*re.findall(r"\b(?:enable|include)_\w+", str(questions()[name].get("ask", ""))), *NEEDS.get(name, {})}
    return all(given[other] for other in needed - {name})


def begin() -> None:
    """Prepares a process: no look-up of git for each file, and each source and configuration read once."""
    os.environ["PATH"] = ""
    monkeypatch = pytest.MonkeyPatch()
    keep_compiled_sources(monkeypatch)
    keep_configurations(monkeypatch)
    render_only_what_is_a_template(monkeypatch)


SEEN: set[tuple[str, bytes]] = set()
"""The Python files that this process has had ruff look at: most combinations share most of theirs."""


def check(template: str, batch: list[Answers]) -> Result:
    """Renders the batch into a folder of its own, looks at it, and takes it away."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        root = Path(folder)
        projects = {str(number): data for number, data in enumerate(batch)}
        for name, data in projects.items():
            run_copy(template, root / name, data=data, defaults=True, skip_tasks=True, quiet=True)
        rendered = time.process_time()
        problems: list[tuple[str, Answers]] = []
        for name, data in projects.items():
            rendering = Rendering(name, data, root / name, root / name)
            problems += [(problem, data) for problem in faults(rendering)]
            for path, content in rendering.files.items():
                # Emptied, not removed: by the modules that are there ruff tells the project's imports from others'.
                if (path, content) in SEEN and path.endswith(".py"):
                    (root / name / path).write_bytes(b"")
                SEEN.add((path, content))
        problems += [(problem, projects[name]) for name, problem in ruff_problems(root)]
        return Result(len(batch), rendered - start, time.process_time() - rendered, problems)


def faults(rendering: Rendering) -> Iterator[str]:
    yield from broken_imports(rendering)
    for path, text in texts(rendering):
        if problem := unreadable(PurePosixPath(path).suffix, text):
            yield f"{path}: {problem}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--part", default="1/1", metavar="N/OF", help="every OF-th combination, beginning with the N-th"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    number, of = (int(word) for word in options.part.split("/"))
    wanted = list(combinations())[number - 1 :: of]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.processes, initializer=begin) as pool:
        copy_template(Path(folder))
        batches = [wanted[first : first + BATCH] for first in range(0, len(wanted), BATCH)]
        results: list[Result] = []
        for result in pool.map(check, [folder] * len(batches), batches):
            results.append(result)
            done = sum(result.projects for result in results)
            print(f"\r{done} of {len(wanted)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    problems: dict[str, list[Answers]] = {}
    for problem, data in (found for result in results for found in result.problems):
        problems.setdefault(problem, []).append(data)
    for problem, where in problems.items():
        print(f"{problem}\n    in {len(where)}, such as {json.dumps(where[0])}")
    rendering, checking = sum(result.rendering for result in results), sum(result.checking for result in results)
    cpu = f"{rendering:.0f} s of CPU to render, {checking:.0f} s to parse and resolve, ruff not counted"
    print(
        f"{sum(result.projects for result in results)} combinations in {time.perf_counter() - start:.0f} s with "
        f"{options.processes} processes: {cpu}; {len(problems)} problems"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
