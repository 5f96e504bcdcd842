"""The rules of this suite itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .support import ROOT, run

EXAMPLE = """
import pytest

def test_passes():
    pass

@pytest.mark.skip(reason="an example")
def test_left_out():
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["0", "1"])
def test_on_ci_a_skipped_test_fails_the_session_and_is_named(tmp_path: Path, processes: str) -> None:
    (tmp_path / "test_example.py").write_text(EXAMPLE, "utf-8")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        f"--numprocesses={processes}",
        tmp_path,
    ]
    assert run(*command, cwd=ROOT).returncode == 0
    on_ci = run(*command, cwd=ROOT, CI="true")
    assert on_ci.returncode == 1
    *_, heading = (line for line in on_ci.stdout.splitlines() if "which CI does not allow" in line)
    assert "test_left_out" in on_ci.stdout.partition(heading)[2]
    assert "test_passes" not in on_ci.stdout.partition(heading)[2]


@pytest.mark.slow
def test_a_test_belongs_to_one_set(tmp_path: Path) -> None:
    """`-m acceptance` would run one that is marked for a release, too."""
    example = "import pytest\n\n@pytest.mark.acceptance\n@pytest.mark.release\ndef test_of_both(): ...\n"
    (tmp_path / "test_example.py").write_text(example, "utf-8")
    done = run(sys.executable, "-m", "pytest", "-p", "tests.conftest", "--numprocesses=0", tmp_path, cwd=ROOT)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_of_both is marked acceptance and release: a test belongs to one set" in done.stderr + done.stdout
