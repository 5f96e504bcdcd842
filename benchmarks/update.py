"""Time that `copier update` takes, with the whole hook and its smoke test: each round is an update of the same project.

    python3 with_uv.py run python -m benchmarks.update [--rounds 5] [--data enable_auth=false] [--directory DIR]

The project has the default answers and those of `--data`. The template is HEAD of this repository, and a further commit
that changes a line of a module and one of a page. The first round, which fills the caches, is not reported.

On ext4 without a journal, as some virtual machines have it, the system time rises from round to round: creating a file
searches past the inodes that were freed in the last minutes (`recently_deleted` in the kernel's fs/ext4/ialloc.c), and
each update deletes thousands of files. A `--directory` in memory, such as /dev/shm, has no such effect.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from .environments import ROOT, uv

CHANGED = {
    "template/src/{{ package_name }}/production/observe/meter.py": "src/benchmark_server/production/observe/meter.py",
    "template/docs/updating.md": "docs/updating.md",
}
"""Files of the template whose last line the further commit changes, and what a project has of them."""

MARK = "of another version"
COPIER = (sys.executable, "-m", "copier")
OPTIONS = ("--quiet", "--trust", "--defaults", "--vcs-ref=HEAD")
ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "Benchmark",
    "GIT_AUTHOR_EMAIL": "benchmark@example.com",
    "GIT_COMMITTER_NAME": "Benchmark",
    "GIT_COMMITTER_EMAIL": "benchmark@example.com",
}


def run(*command: str, cwd: Path) -> None:
    """Run a command, whose output is shown where it fails."""
    environment = {**os.environ, **ENVIRONMENT, "UV": uv()}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an owner's Python keeps what it compiled
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def prepare(directory: Path, data: Sequence[str]) -> Path:
    """Return a project whose template has had a further commit since."""
    template, project = directory / "template", directory / "project"
    run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(template), cwd=directory)
    answers = ["--data=project_name=Benchmark Server", *(f"--data={item}" for item in data)]
    run(*COPIER, "copy", *OPTIONS, *answers, str(template), str(project), cwd=directory)
    run("git", "init", "--quiet", cwd=project)
    for repository in (project, template):
        if repository == template:
            for path in CHANGED:
                file = template / path
                lines = file.read_text("utf-8").splitlines()
                comment = f"# {MARK}" if file.suffix == ".py" else f"<!-- {MARK} -->"
                file.write_text("\n".join([*lines[:-1], f"{lines[-1]}  {comment}", ""]), "utf-8")
        run("git", "add", "--all", cwd=repository)
        run("git", "commit", "--quiet", "--message", "benchmark", cwd=repository)
    return project


def times_of_update(project: Path) -> tuple[float, float, float]:
    """Return the wall, user and system time in seconds of one update of the project as it was committed."""
    run("git", "restore", "--source=HEAD", "--staged", "--worktree", ".", cwd=project)
    run("git", "clean", "--quiet", "--force", "-d", cwd=project)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), perf_counter()
    run(*COPIER, "update", *OPTIONS, cwd=project)
    wall, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if lost := [path for path in CHANGED.values() if MARK not in (project / path).read_text("utf-8")]:
        raise SystemExit(f"the update did not change {', '.join(lost)}")
    return wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", action="append", default=[], metavar="QUESTION=ANSWER")
    parser.add_argument("--directory", type=Path, help="where the repositories and temporary files are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        os.environ["TMPDIR"] = name  # of Copier's clones of the template, too
        project = prepare(Path(name), options.data)
        times_of_update(project)
        rounds = [times_of_update(project) for _ in range(options.rounds)]
    for wall, user, system in rounds:
        print(f"{wall:5.1f} s   user {user:5.1f}   system {system:5.1f}")
    print(f"median {median(wall for wall, *_ in rounds):.1f} s")


if __name__ == "__main__":
    main()
