# /// script
# requires-python = ">=3.11"
# dependencies = ["pyyaml==6.0.3", "pydantic==2.14.3", "pydantic-core==2.50.4"]
# ///
"""Generate a project's tools from an OpenAPI document of version 2 or 3.

    uv run --script hooks/openapi.py SPEC PROJECT [OPTION ...]

Finds the project's package and runs the generator of `packages/openapi-tools` with it: see its README for the options.
uv installs the generator's dependencies from the lines above, so that the generator itself need not be built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).resolve().parents[1]
GENERATOR = TEMPLATE / "packages" / "openapi-tools" / "src"
PRODUCTION = TEMPLATE / "template" / "src" / "{{ package_name }}" / "production"
RUN_TIME_PART = ("openapi_schema.py", "openapi_document.py", "openapi.py")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("spec", metavar="SPEC")
    parser.add_argument("project", metavar="PROJECT", type=Path)
    parser.add_argument("--only", metavar="SELECTION", default="")
    options, more = parser.parse_known_args()
    project = options.project.resolve()
    package = package_of(project)
    if package is None:
        print(
            f"openapi-tools: {options.spec}: no tools were generated.\n"
            f"{project} has no src/*/production/answers.json, so it is not a project of this template.",
            file=sys.stderr,
        )
        return 1
    bring_run_time_part(project, package)
    answers = answers_of(project, package)
    generator = [sys.executable, "-m", "openapi_tools", f"--package={package}", f"--output={project}", "--format"]
    return subprocess.run(
        [*generator, *options_of(answers), f"--only={options.only}", *more, "--", options.spec],
        env={**os.environ, "PYTHONPATH": str(GENERATOR)},
        check=False,
    ).returncode


def bring_run_time_part(project: Path, package: str) -> None:
    """Copy `production/openapi*.py` into a project that was generated without a document, and say how to keep them."""
    folder = project / "src" / package / "production"
    missing = [name for name in RUN_TIME_PART if not (folder / name).exists() and (PRODUCTION / name).exists()]
    for name in missing:
        (folder / name).write_bytes((PRODUCTION / name).read_bytes())
    if missing:
        print(
            f"openapi-tools: {', '.join(missing)} in {folder}: new. Updates repair them once the answer is recorded: "
            "copier update --trust --defaults --vcs-ref=:current: --data openapi_spec=<the document>",
            file=sys.stderr,
        )


def options_of(answers: Mapping[str, Any]) -> list[str]:
    """Return the options that a project's answers decide: the URL of the API, and whether tools need scopes."""
    url = answers.get("upstream_base_url")
    options = [f"--base-url={url}"] if isinstance(url, str) else []
    return [*options, "--scopes"] if answers.get("enable_authorization") is True else options


def answers_of(project: Path, package: str) -> dict[str, Any]:
    """Return the answers that the project is configured with, an empty dictionary where they cannot be read."""
    try:
        answers = json.loads((project / "src" / package / "production" / "answers.json").read_text("utf-8"))
        return dict(answers["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def package_of(project: Path) -> str | None:
    """Return the name of the project's package, or None where the project has none of this template."""
    return next((path.parents[1].name for path in sorted((project / "src").glob("*/production/answers.json"))), None)


if __name__ == "__main__":
    sys.exit(main())
