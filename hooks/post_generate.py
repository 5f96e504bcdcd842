"""Prepare and check a project, once after `copier copy` and once after `copier update`.

    python post_generate.py copy|update [PROJECT] [--openapi SPEC [--operations SELECTION]] [--next TEXT]

On copy it makes the lock file, the environment and .env, and the tools of an OpenAPI document if one is given; on
update it looks for conflicts, renews the first two, and adds to .env the variables it lacks.
Then the project's smoke test starts the server. A line for each step gives its time. A problem of the machine (no uv,
no network) is a warning with the command to run later. A failure of the project prints the output and the command that
repeats it. Both leave the project in place and the exit status 0, since Copier deletes a new project whose task fails;
with CI or MCP_TEMPLATE_STRICT set the status is 1. Standard library only: it runs in the interpreter of Copier.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

STEP_SECONDS = 600
"""Timeout of a step in seconds; enough for a first download of every dependency."""

GO_BACK = "git restore --source=HEAD --staged --worktree . && git clean -fd ."
"""Command that undoes an update of the current folder, and changes nothing outside of it.

Copier requires a clean working tree, so every untracked file is from the update.
"""

REVIEW = """\
    git add --all . && git diff --cached --stat    every file, new ones too
    git diff --cached                              every line
    uv run pytest                                  your tests
    git commit"""

SECRET = re.compile(
    r"^https?://[^/?#]*@|[?&][^=&#]*(token|key|secret|sig|passw|pwd|auth|credential)[^=&#]*=", re.IGNORECASE
)
"""Matches credentials in a URL."""

MACHINE_FAULT = re.compile(
    r"dns error|error sending request|connection (refused|reset)|could not connect|network is unreachable"
    r"|network connectivity is disabled|network was disabled|name resolution|timed out|request failed after"
    r"|no interpreter found|no space left",
    re.IGNORECASE,
)
"""Matches uv's messages on faults of the machine, not of the project."""

GENERATOR_MESSAGE = "openapi-tools: "
"""Start of each message of the OpenAPI tool generator: it ran, so the document is at fault and not the machine."""

ANSWERS_FILE = ".copier-answers.yml"
UNFINISHED_MARK = ".copier-update-unfinished"
"""File that an update writes into a project when it begins, and deletes when it ends; copier.yml has its name too."""

SMOKE_TEST = "tests/test_smoke.py"
TOOL_TESTS = ("tests/test_tools.py", "tests/test_openapi.py")
"""Tests of the tools of a new project; from then on they are user-owned."""


PROJECT_VARIABLES = re.compile(
    r"UV_(FROZEN|LOCKED|DEV|NO_DEV|NO_SYNC|(NO_)?GROUP|(ONLY|NO_DEFAULT|ALL)_\w+|ISOLATED|NO_PROJECT|PROJECT|PACKAGE"
    r"|PROJECT_ENVIRONMENT|WORKING_DIR\w*|NO_EDITABLE|NO_INSTALL_\w+|ENV_FILE|NO_ENV_FILE|RESOLUTION|FORK_STRATEGY"
    r"|NO_SOURCES|SYSTEM_PYTHON)"
    r"|VIRTUAL_ENV|PYTHONPATH|PYTEST_\w+"
)
"""Variables that are removed from uv's environment: they change what is locked, installed and run.

Variables that describe the machine are passed on: indexes, cache, certificates, versions of Python.
"""


class MachineError(Exception):
    """The machine lacks something that a step needs; the message names it."""


class ProjectError(Exception):
    """A step failed on the project; the message has the output and the command to repeat it."""


class SecretError(Exception):
    """The project would record a secret; the message says where."""


class Step(NamedTuple):
    name: str
    action: Callable[[], object]
    wanted: bool = True
    required: bool = True
    """Whether its failure ends the hook, because later steps need its result."""
    prints_result: bool = False
    """Whether its result is printed."""


class Hook:
    """The steps of the hook for one project."""

    def __init__(self, project: Path, spec: str = "", operations: str = "") -> None:
        self.project = project
        self.spec = spec
        self.operations = operations
        self.slug, self.package = identity(project)
        production = project / "src" / self.package / "production"
        self.has_secrets = (production / "serve" / "env_file.py").exists()
        """Whether .env.example has secrets to fill in, which the command's --init-env does."""
        self.uv: list[str] = []

    def steps(self, operation: str) -> list[Step]:
        copying = operation == "copy"
        sources = [f"src/{self.package}", "tests"]
        steps = [
            Step("conflicts", self.find_conflicts, wanted=not copying),
            Step("uv", self.find_uv),
            Step("lock file", lambda: self.execute("lock")),
            Step("environment", lambda: self.execute("sync")),
            Step(
                ".env", self.make_env, wanted=self.has_secrets and (copying or self._lacks_variables()), required=False
            ),
            Step("tools", self.generate_tools, wanted=copying and bool(self.spec), required=False, prints_result=True),
            # Not after an update: the sources then have the owner's edits, which may follow other rules.
            Step("lint", lambda: self.ruff("check", *sources), wanted=copying, required=False),
            Step("format", lambda: self.ruff("format", "--check", *sources), wanted=copying, required=False),
            Step(
                "tools",
                self.renew_tools,
                wanted=not copying and self._has_old_tools(),
                required=False,
                prints_result=True,
            ),
            Step("smoke test", lambda: self.execute(*self.smoke(with_starter=copying)), wanted=self._has(SMOKE_TEST)),
        ]
        return [step for step in steps if step.wanted]

    def _lacks_variables(self) -> bool:
        """Return whether an update has changed .env.example, from which .env is made."""
        command = ["git", "diff", "--quiet", "HEAD", "--", ".env.example"]
        changed = subprocess.run(command, cwd=self.project, capture_output=True, check=False).returncode != 0
        return changed and self._has(".env")

    def _has(self, path: str) -> bool:
        return (self.project / path).exists()

    def later(self) -> str:
        """Return the commands to run once the machine has what it lacked."""
        commands = [f"cd {shlex.quote(str(self.project))}", "uv lock", "uv sync"]
        commands += [f"uv run {self.slug} --init-env"] if self.has_secrets else []
        if self.spec:
            commands.append(shlex.join(["uv", *self.generator_command()]))
        commands += [f"uv run pytest {SMOKE_TEST}"] if self._has(SMOKE_TEST) else []
        return " && ".join(commands)

    def find_uv(self) -> None:
        """Find uv: the one that runs Copier, else the one on PATH, else the module beside Copier."""
        for candidate in (os.environ.get("UV"), shutil.which("uv")):
            if candidate and Path(candidate).is_file():
                self.uv = [candidate]
                return
        probe = subprocess.run([sys.executable, "-m", "uv", "--version"], capture_output=True, check=False)
        if probe.returncode != 0:
            raise MachineError("uv is not installed (https://docs.astral.sh/uv/)")
        self.uv = [sys.executable, "-m", "uv"]

    def check_finished(self) -> None:
        """Reject a copy over a project with the mark of an interrupted update: Copier renders only the answers there.

        Raises:
            ProjectError: the mark is there.
        """
        if self._has(UNFINISHED_MARK):
            raise ProjectError(
                f"an update of it was interrupted ({UNFINISHED_MARK}), so only the answers were written. Go back to "
                f"the last commit, then run this again:\n    {GO_BACK}"
            )

    def check_source(self) -> str:
        """Return a hint if the recorded template is a local path that others cannot reach, else an empty text.

        Raises:
            SecretError: the recorded URL has credentials.
        """
        if not self._has(ANSWERS_FILE):
            return ""
        text = (self.project / ANSWERS_FILE).read_text(encoding="utf-8")
        recorded = re.search(r"^_src_path: ['\"]?(.*?)['\"]?$", text, re.MULTILINE)
        source = recorded[1] if recorded else ""
        if SECRET.search(source):
            raise SecretError(
                f"the template's URL has credentials, and {ANSWERS_FILE} would record them for everybody who reads the "
                "project. Use ssh, or a credential helper of git, and the URL without them."
            )
        if not Path(source).is_absolute():
            return ""
        hint = f"{ANSWERS_FILE} has a path of this machine, {source}: others, and CI, cannot update from it."
        origin = subprocess.run(
            ["git", "-C", source, "remote", "get-url", "origin"], capture_output=True, encoding="utf-8", check=False
        ).stdout.strip()
        if not origin or Path(origin).is_absolute() or SECRET.search(origin):
            return f"{hint} Record a URL instead: docs/updating.md, 'The template has moved'."
        program = Path(source, "hooks", "moved.py")
        return f"{hint}\nTo record its origin: {shlex.join(['python3', str(program), origin, str(self.project)])}"

    def execute(self, *arguments: str) -> str:
        """Run uv with these arguments in the project, and return its output.

        Raises:
            MachineError: the machine lacks something.
            ProjectError: the command failed for another reason, or took too long.
        """
        environment = {name: value for name, value in os.environ.items() if not PROJECT_VARIABLES.fullmatch(name)}
        try:
            done = subprocess.run(
                [*self.uv, *arguments],
                cwd=self.project,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=STEP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            output, status = f"{text(error.output)}\nnot finished within {STEP_SECONDS} s", -1
        except OSError as error:
            raise MachineError(f"{self.uv[0]} cannot be run: {error.strerror}") from None
        else:
            output, status = done.stdout.strip(), done.returncode
        if status == 0:
            return output
        fetching = arguments[0] in ("lock", "sync") or ("--script" in arguments and GENERATOR_MESSAGE not in output)
        if fetching and MACHINE_FAULT.search(output):
            raise MachineError(f"uv {arguments[0]} says:\n\n{indented(output)}\n")
        again = f"cd {shlex.quote(str(self.project))} && {shlex.join(['uv', *arguments])}"
        raise ProjectError(f"{indented(output)}\n\nTo repeat it: {again}")

    def generator_command(self) -> list[str]:
        """Return the arguments of uv that run the OpenAPI tool generator; its program names its dependencies."""
        program = Path(__file__).with_name("openapi.py")
        selection = [f"--only={self.operations}"] if self.operations else []
        return ["run", "--script", str(program), *selection, "--", self.spec, str(self.project)]

    def generate_tools(self) -> str:
        return self.execute(*self.generator_command())

    def _has_old_tools(self) -> bool:
        """Return whether the tools of an OpenAPI document were generated before 0.2.0."""
        package = f"src/{self.package}"
        return self._has(f"{package}/tools/_api.py") and self._has(f"{package}/production/openapi.py")

    def renew_tools(self) -> str:
        """Return how to generate the tools of an OpenAPI document once more."""
        answers = self.project / ".copier-answers.yml"
        text = answers.read_text("utf-8") if answers.exists() else ""
        spec = re.search(r"^openapi_spec: *(.+)$", text, re.MULTILINE)
        command = f"uv run --script hooks/openapi.py {spec[1] if spec else 'SPEC'} {shlex.quote(str(self.project))}"
        return (
            "The tools of an OpenAPI document now share production/openapi.py, which updates maintain.\n"
            "Run the generator again: your edits stay, and --diff shows what would change.\n"
            f"In a checkout of the template: {command}"
        )

    def ruff(self, command: str, *arguments: str) -> None:
        self.execute("run", "--no-sync", "ruff", command, "--quiet", "--no-cache", *arguments)

    def make_env(self) -> None:
        if self._has(".env.example"):
            self.execute("run", "--no-sync", self.slug, "--init-env")

    def smoke(self, *, with_starter: bool) -> list[str]:
        """Return the arguments of uv that run the smoke test, and with `with_starter` the tests of the tools."""
        tests = [name for name in TOOL_TESTS if with_starter and self._has(name)]
        return ["run", "--no-sync", "pytest", "--quiet", "--no-header", "-rN", SMOKE_TEST, *tests]

    def find_conflicts(self) -> None:
        """Find the conflicts that the merge has recorded in git's index; Copier's exit status does not show them.

        Raises:
            ProjectError: the update conflicts with the owner's edits; the message names the files.
        """
        listed = subprocess.run(
            ["git", "diff", "--relative", "--name-only", "--diff-filter=U", "-z"],
            cwd=self.project,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        ).stdout
        if conflicting := sorted({*listed.split("\0")} - {""}):
            raise ProjectError(
                "The update conflicts with your edits in:\n\n"
                + indented("\n".join(map(one_line, conflicting)))
                + f"\n\nIn each file, search for <<<<<<< and resolve the conflict. Then:\n    {self.later()}"
            )


def identity(project: Path) -> tuple[str, str]:
    """Return the names of the distribution and of its package.

    Raises:
        ProjectError: no package of this template is in `project`.
    """
    for path in sorted((project / "src").glob("*/production/answers.json")):
        package = path.parents[1].name
        # After an update with conflicts it may contain markers, so it is not parsed as JSON.
        slug = re.search(r'"slug": "([^"]+)"', path.read_text(encoding="utf-8"))
        return slug[1] if slug else package.replace("_", "-"), package
    raise ProjectError(f"{project}: src/*/production/answers.json is missing, so this is not a project of the template")


UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Matches what controls a terminal or reorders its text, except line breaks and tabs."""


def say(message: str, end: str = "\n") -> None:
    """Print a message to stderr, escaped where names or the output of programs would control the terminal."""
    print(escaped(message), end=end, file=sys.stderr, flush=True)


def escaped(message: str) -> str:
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), message)


def one_line(name: str) -> str:
    """Return a name, such as that of a file, without line breaks."""
    return escaped(name).replace("\n", "\\n")


def indented(lines: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in lines.splitlines())


def text(output: bytes | str | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def after_update(commit: str) -> str:
    """Return the last message of an update from a commit of the template: what it changes, and how to review it."""
    from updating.changes import changes

    changes_text = changes(Path(__file__).resolve().parents[1], commit) if commit else ""
    return (f"\nWhat the template's changelog says:\n\n{indented(changes_text)}\n" if changes_text else "") + (
        f"\nReview the update, and commit it:\n{REVIEW}\nOr go back to your last commit: {GO_BACK}"
    )


def perform(steps: Sequence[Step]) -> None:
    """Run the steps and print a line for each.

    Raises:
        MachineError: the machine lacks something that a step needs; later steps were not run.
        ProjectError: steps have failed; the message has the output of all of them.
    """
    failures: list[str] = []
    for step in steps:
        say(f"  {step.name:<12}", end=" ")
        start = time.monotonic()
        state = "failed"
        try:
            result = step.action()
            state = "ok"
        except ProjectError as error:
            failures.append(str(error))
        finally:
            say(f"{time.monotonic() - start:5.1f} s  {state}")
        if state == "ok" and step.prints_result and result:
            say(indented(str(result)))
        if state == "failed" and step.required:
            break
    if failures:
        raise ProjectError("\n\n".join(failures))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operation", choices=("copy", "update"))
    parser.add_argument("project", nargs="?", type=Path, default=Path())
    parser.add_argument("--openapi", default="", metavar="SPEC", help="an OpenAPI document to make tools of")
    parser.add_argument("--operations", default="", metavar="SELECTION", help="which of its operations")
    parser.add_argument("--next", default="", metavar="TEXT", help="what to print at the end of a copy")
    options = parser.parse_args()
    if sys.version_info < (3, 10):
        say(f"post_generate.py: Python 3.10 or later is needed; this is {sys.version.split()[0]}.")
        return 1
    updating = options.operation == "update"
    start = time.monotonic()
    done, hint = False, ""
    try:
        hook = Hook(options.project.resolve(), options.openapi, options.operations)
        if not updating:
            hook.check_finished()
            hint = hook.check_source()
        perform(hook.steps(options.operation))
    except SecretError as error:
        say(f"\nFAILED: {error}\n")
        return 1  # Copier deletes the new project
    except MachineError as error:
        state = "updated" if updating else "complete"
        say(f"\nWARNING: the project is {state} but not checked: {error}\nLater: {hook.later()}\n")
    except ProjectError as error:
        # Copier does not report this, and its exit status is 0.
        state = (
            "the update is in your project, and this remains to be done"
            if updating
            else "and the project stays as it is"
        )
        say(f"\nFAILED, {state}:\n\n{error}\n")
    else:
        done = True
        say(f"  {'in all':<12} {time.monotonic() - start:5.1f} s")
    if hint:
        say(f"\n{hint}\n")
    if updating:
        say(after_update(os.environ.get("VERSION_FROM", "")))
    if options.next:
        say(f"\n{options.next}")
    if done:
        return 0
    return 1 if os.environ.get("CI") or os.environ.get("MCP_TEMPLATE_STRICT") else 0


if __name__ == "__main__":
    sys.exit(main())
