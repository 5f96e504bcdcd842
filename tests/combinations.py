"""Render and lint every combination of the switches, and of the choices that select files.

    python3 with_uv.py run python -m tests.combinations [--part 1/4] [--processes 2]

`pytest -m release` runs it; it takes minutes. Answers that only fill in a value are drawn at random, with fixed seeds.
Each project is rendered, its data files are parsed, imports among its modules are resolved, and ruff checks lint and
format. If there are problems, they are printed with the answers that cause them, and the exit status is 1.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from copier import run_copy

from .conftest import Rendering
from .render_many import compile_templates_once
from .support import NEEDS, ROOT, Answers, answers, choices, copy_template, questions
from .test_render import broken_imports, parse_error, ruff_problems, texts

BATCH = 48
"""The number of projects that each process has on disk at once."""

URLS = ["https://api.open-meteo.com", "https://api.example.com/v1"]
"""One for each starter."""


class Result(NamedTuple):
    projects: int
    rendering: float
    checking: float
    problems: list[tuple[str, Answers]]


def axes() -> dict[str, list[Any]]:
    """Return the values of each switch, and of each choice that the feature manifest reads."""
    tables = (ROOT / "interview" / "tables" / f"{name}.yml" for name in ("feature_table", "parts", "paths"))
    manifest = " ".join(table.read_text("utf-8") for table in tables)
    values: dict[str, list[Any]] = {}
    for name, question in questions().items():
        if question["type"] == "bool":
            values[name] = [False, True]
        elif choices(question) and name != "profile" and re.search(rf"\b{name}\b", manifest):
            values[name] = choices(question)
    return values


def combinations() -> Iterator[Answers]:
    """Yield each combination once: a question whose feature is off keeps its first value."""
    values = axes()
    drawn = {name: choices(entry) for name, entry in questions().items() if choices(entry) and name not in values}
    for number, combination in enumerate(product(*values.values())):
        values_given = dict(zip(values, combination, strict=True))
        if all(values_given[name] == values[name][0] for name in values if not asked(name, values_given)):
            draw = random.Random(number)  # noqa: S311 (the same each time)
            other = {name: draw.choice(offered) for name, offered in drawn.items() if name != "profile"}
            yield answers(project_name="Weather Station", upstream_base_url=draw.choice(URLS), **values_given, **other)


def asked(name: str, values_given: Answers) -> bool:
    """Return whether the switches that a question depends on are on."""
    needed = {*re.findall(r"\b(?:enable|include)_\w+", str(questions()[name].get("ask", ""))), *NEEDS.get(name, {})}
    return all(values_given[other] for other in needed - {name})


def prepare_process() -> None:
    """Compile each template once in this process, and hide git, which Copier would start for each file."""
    os.environ["PATH"] = ""
    compile_templates_once()


LINTED: set[tuple[str, bytes]] = set()
"""The Python files that this process has linted; most combinations share most of theirs."""


def check(template: str, batch: Sequence[Answers]) -> Result:
    """Render a batch of projects into a folder of its own, check them and remove them."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        root = Path(folder)
        projects = {str(number): data for number, data in enumerate(batch)}
        for name, data in projects.items():
            run_copy(template, root / name, data=data, defaults=True, skip_tasks=True, quiet=True)
        rendered = time.process_time()
        problems: list[tuple[str, Answers]] = []
        for name, data in projects.items():
            rendering = Rendering(name, data, root / name)
            problems += [(problem, data) for problem in problems_of(rendering)]
            for path, content in rendering.files.items():
                # Emptied, not removed: ruff tells the project's own imports from others by the modules that exist.
                if (path, content) in LINTED and path.endswith(".py"):
                    (root / name / path).write_bytes(b"")
                LINTED.add((path, content))
        problems += [(problem, projects[name]) for name, problem in ruff_problems(root)]
        return Result(len(batch), rendered - start, time.process_time() - rendered, problems)


def problems_of(rendering: Rendering) -> Iterator[str]:
    """Yield the problems of a project, except those of lint and format."""
    yield from broken_imports(rendering)
    for path, text in texts(rendering):
        if problem := parse_error(PurePosixPath(path).suffix, text):
            yield f"{path}: {problem}"


def check_all(selected: Sequence[Answers], processes: int | None = None) -> Iterator[Result]:
    """Check combinations, in as many processes as there are cores unless told; yield the result of each batch."""
    batches = [selected[first : first + BATCH] for first in range(0, len(selected), BATCH)]
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes, initializer=prepare_process) as pool:
        copy_template(Path(folder))
        yield from pool.map(check, [folder] * len(batches), batches)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--part", default="1/1", metavar="N/OF", help="every OF-th combination, beginning with the N-th"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    number, of = (int(word) for word in options.part.split("/"))
    selected = list(combinations())[number - 1 :: of]
    start = time.perf_counter()
    results: list[Result] = []
    for result in check_all(selected, options.processes):
        results.append(result)
        done = sum(result.projects for result in results)
        print(f"\r{done} of {len(selected)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    problems: dict[str, list[Answers]] = {}
    for problem, data in (entry for result in results for entry in result.problems):
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
