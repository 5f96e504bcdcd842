"""What the template moves, splits or removes loses nothing of its owner's: migrations in real updates."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest
from post_generate import GO_BACK

from .small_template import SmallTemplate, status, write
from .support import ROOT, copier, files, run
from .template_repository import commit, edit, git

pytestmark = pytest.mark.slow

PACKAGE = "src/{{ package_name }}"
PRODUCTION = f"{PACKAGE}/production"

CLIENT = '''\
"""The client and its errors."""

import json


class UpstreamError(Exception):
    """The base of all."""

    def text(self) -> str:
        return "failed"


class UpstreamStatusError(UpstreamError):
    """A status."""

    def text(self) -> str:
        return "status"


class Upstream:
    """The client."""

    def get(self) -> str:
        value = json.dumps({})
        return value

    def put(self) -> str:
        value = json.dumps({})
        return value
'''
ERRORS = (
    CLIENT[: CLIENT.index("class Upstream:")]
    .replace("The client and its errors", "Errors")
    .replace("import json\n\n\n", "")
)
NEW_CLIENT = '"""The client."""\n\nimport json\n\n\n' + CLIENT[CLIENT.index("class Upstream:") :].replace(
    "json.dumps", "json.loads", 1
)

PAGE = "# Guard\n\nFirst.\n\n## Hosts\n\nSecond.\n\n## Origins\n\nThird.\n"

OLD = {
    "README.md": "See docs/guard.md.\n",
    "pyproject.toml.jinja": '[project]\nname = "{{ package_name }}"\n',
    "docs/guard.md": PAGE,
    "docs/lifecycle.md": "# Lifecycle\n",
    "docs/deleted.md": "# Deleted\n",
    "docs/deleted-too.md": "# Deleted too\n",
    "docs/plain.md": "# Plain\n",
    "docs/extra.md": "# Extra\n",
    f"{PACKAGE}/__init__.py": "",
    f"{PRODUCTION}/__init__.py": "from .guard import get_logger\n",
    f"{PRODUCTION}/guard.py": "import re\n\n\ndef get_logger() -> None:\n    re.compile('')\n",
    f"{PRODUCTION}/client.py": CLIENT,
    f"{PRODUCTION}/extra.py": "EXTRA = 1\n",
    f"{PACKAGE}/tools/weather.py": "from ..production import get_logger\n",
    "tests/production/smoke.py": "SMOKE = 1\n",
    "tests/production/test_guard.py": "GUARD = 1\n",
    "tests/production/test_client.py": "CLIENT = 1\n",
}

NEW = {
    "README.md": "See docs/doorman.md.\n",
    "pyproject.toml.jinja": '[project]\nname = "{{ package_name }}"\nversion = "2"\n',
    "docs/doorman.md": PAGE.replace("Third.", "The third."),
    "docs/moved.md": "# Deleted\n",
    "docs/deleted-too.md": "# Deleted too, and changed\n",
    "docs/plain-now.md": "# Plain, and changed\n",
    "docs/extra.md": "# Extra\n",
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/options.py": "OPTIONS = 1\n",
    f"{PRODUCTION}/__init__.py": "from .inbound.doorman import logger_for\n",
    f"{PRODUCTION}/inbound/__init__.py": "",
    f"{PRODUCTION}/inbound/doorman.py": "import re\n\n\ndef logger_for() -> None:\n    re.compile('')\n",
    f"{PRODUCTION}/upstream/__init__.py": "",
    f"{PRODUCTION}/upstream/client.py": NEW_CLIENT,
    f"{PRODUCTION}/upstream/errors.py": ERRORS,
    f"{PRODUCTION}/extra.py": "EXTRA = 1\n",
    f"{PACKAGE}/tools/weather.py": "from ..production import logger_for\n",
    "tests/production/smoke.py": "SMOKE = 2\n",
}

MIGRATION = """
PRODUCTION = "src/{{ package_name }}/production"
MOVED = {
    f"{PRODUCTION}/guard.py": f"{PRODUCTION}/inbound/doorman.py",
    "docs/guard.md": "docs/doorman.md",
    "docs/deleted.md": "docs/moved.md",
    "docs/plain.md": "docs/plain-now.md",
}
SPLIT = {f"{PRODUCTION}/client.py": (f"{PRODUCTION}/upstream/client.py", f"{PRODUCTION}/upstream/errors.py")}
GONE = {"docs/lifecycle.md": "See docs/health.md.", "tests/production/**": "The template has it."}
SEEDED = ("src/{{ package_name }}/options.py",)
NAMES = {
    "{{ package_name }}.production:get_logger": "{{ package_name }}.production:logger_for",
    "{{ package_name }}.production.client:UpstreamError": "{{ package_name }}.production.upstream.errors:UpstreamError",
}


def after(project, package):
    (project / "after").touch()
"""


def owners_work(project: Path) -> None:
    """What an owner does to a project of version 1."""
    production = project / "src/shop/production"
    edit(production / "guard.py", "import re\n", "import re\n\nfrom .client import UpstreamError  # mine\n")
    edit(project / "docs/guard.md", "First.", "First, and mine.")
    edit(project / "docs/lifecycle.md", "# Lifecycle\n", "# Lifecycle\n\nMine.\n")
    edit(project / "tests/production/test_guard.py", "GUARD = 1", "GUARD = 1  # mine")
    edit(project / "pyproject.toml", "[project]", "# Mine.\n[project]")
    for name in ("deleted.md", "deleted-too.md"):
        (project / "docs" / name).unlink()
    client = production / "client.py"
    edit(client, '    """A status."""', '    """A status."""\n\n    mine = 1')
    edit(client, 'return "failed"', 'return "failed, and mine"')
    edit(client, '    """The client."""', '    """The client, and mine."""')
    edit(
        client,
        "    def put(self) -> str:\n        value = json.dumps({})",
        "    def put(self) -> str:\n        from .extra import EXTRA as value",
    )
    edit(client, "import json\n", "import json\nimport mine\n")
    edit(client, "json.dumps({})", "json.dumps({'mine': 1})")
    write(
        project,
        {
            "README.md": "Mine, see docs/guard.md and docs/mine.md.\n",
            "src/shop/tools/mine.py": "from ..production import get_logger\n"
            "from ..production.client import UpstreamError\n",
            "tests/test_mine.py": "from shop.production.client import Upstream, UpstreamError\n\n"
            'PATCHED = "shop.production.client.Upstream"\n',
            "scripts/check": "python -m tests.production.test_guard\n",
        },
    )


class Updated(NamedTuple):
    """A project after an update, and what was printed."""

    template: SmallTemplate
    project: Path
    before: dict[str, bytes]
    output: str

    def text(self, path: str) -> str:
        return (self.project / path).read_text("utf-8")


def update(project: Path, version: str, *options: str) -> CompletedProcess[str]:
    """The real command line, which has to succeed."""
    done = copier("update", "--trust", "--defaults", f"--vcs-ref={version}", *options, cwd=project)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> SmallTemplate:
    """Version 1, version 2 which moves, splits and removes, and version 3 which changes nothing."""
    made = SmallTemplate(tmp_path_factory.mktemp("migrations"))
    made.release("1.0.0", OLD)
    made.release("2.0.0", NEW, MIGRATION)
    made.release("3.0.0", NEW)
    return made


@pytest.fixture(scope="module")
def original(template: SmallTemplate) -> Path:
    """A project of version 1 with its owner's work."""
    project = template.copy("1.0.0", "original")
    owners_work(project)
    commit(project)
    return project


@pytest.fixture(scope="module")
def updated(template: SmallTemplate, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Updated:
    project = Path(shutil.copytree(original, tmp_path_factory.mktemp("updated") / "project"))
    before = files(project)
    return Updated(template, project, before, update(project, "2.0.0").stderr)


def test_edits_move_with_their_files(updated: Updated) -> None:
    assert updated.text("docs/doorman.md") == PAGE.replace("First.", "First, and mine.").replace("Third.", "The third.")
    assert updated.text("src/shop/production/inbound/doorman.py") == (
        "import re\n\nfrom ..upstream.errors import UpstreamError  # mine\n\n\n"
        "def logger_for() -> None:\n    re.compile('')\n"
    )
    assert not (updated.project / "docs/guard.md").exists()
    assert not (updated.project / "src/shop/production/guard.py").exists()
    assert "moved        docs/guard.md is docs/doorman.md now; your edits are in it" in updated.output


def test_shared_files_are_merged_and_the_owners_are_not_touched(updated: Updated) -> None:
    assert updated.text("pyproject.toml") == '# Mine.\n[project]\nname = "shop"\nversion = "2"\n'
    assert updated.text("README.md") == "Mine, see docs/guard.md and docs/mine.md.\n"
    assert "README.md" not in status(updated.project)


def test_edits_of_a_split_file_are_placed_by_their_context(updated: Updated) -> None:
    errors, client = (updated.text(f"src/shop/production/upstream/{name}.py") for name in ("errors", "client"))
    assert errors == ERRORS.replace('"""A status."""', '"""A status."""\n\n    mine = 1').replace(
        'return "failed"', 'return "failed, and mine"'
    )
    put = "def put(self) -> str:\n        value = json.dumps({})"
    conflict = "\n".join(
        (
            "<<<<<<< before updating",
            "        value = json.dumps({'mine': 1})",
            "||||||| last update",
            "        value = json.dumps({})",
            "=======",
            "        value = json.loads({})",
            ">>>>>>> after updating",
        )
    )
    assert client == NEW_CLIENT.replace('    """The client."""', '    """The client, and mine."""').replace(
        put, "def put(self) -> str:\n        from ..extra import EXTRA as value"
    ).replace("        value = json.loads({})", conflict)


def test_edits_that_cannot_be_placed_are_reported_and_retrievable(updated: Updated) -> None:
    path = "src/shop/production/client.py"
    assert (
        f"split        {path} is src/shop/production/upstream/client.py and src/shop/production/upstream/errors.py"
        in (updated.output)
    )
    assert "4 of your 6 edits are in them, 1 in conflicts" in updated.output
    owner_lines = updated.before[path].decode().splitlines()
    number = owner_lines.index("import mine") + 1
    assert f"{path}:{number}: import mine" in updated.output
    assert f"your version: git show HEAD:./{path}" in updated.output
    command = re.search(rf"all of your edits: git (diff \w+ HEAD:\./{re.escape(path)})", updated.output)
    assert command
    diff = git(*command[1].split(), cwd=updated.project)
    assert diff.count("\n+") == 1 + 7
    assert git("show", f"HEAD:./{path}", cwd=updated.project).encode() == updated.before[path]


def test_removed_files_are_reported_if_they_were_edited(updated: Updated) -> None:
    kept = "which you had edited; git still has it: git show HEAD:./"
    assert f"removed      docs/lifecycle.md, {kept}docs/lifecycle.md\n{' ' * 15}See docs/health.md." in updated.output
    test = "tests/production/test_guard.py"
    assert f"removed      {test}, {kept}{test}\n{' ' * 15}The template has it." in updated.output
    assert updated.output.count("removed ") == 2
    assert not (updated.project / "tests/production/test_client.py").exists()
    assert updated.text("tests/production/smoke.py") == "SMOKE = 2\n"


def test_deleted_files_stay_deleted_when_they_move(updated: Updated) -> None:
    assert {path for path in status(updated.project) if "deleted" in path or "moved" in path} == set()
    assert "left out     docs/moved.md, since you had deleted docs/deleted.md, which it was" in updated.output
    assert updated.text("docs/plain-now.md") == "# Plain, and changed\n"


def test_imports_are_rewritten_and_the_rest_is_listed(updated: Updated) -> None:
    assert updated.text("src/shop/tools/mine.py") == (
        "from ..production import logger_for as get_logger\nfrom ..production.upstream.errors import UpstreamError\n"
    )
    assert updated.text("src/shop/tools/weather.py") == "from ..production import logger_for as get_logger\n"
    assert updated.text("tests/test_mine.py") == (
        "from shop.production.client import Upstream\nfrom shop.production.upstream.errors import UpstreamError\n\n"
        'PATCHED = "shop.production.client.Upstream"\n'
    )
    _, _, listed = updated.output.partition("by hand      ")
    lines = [line.strip() for line in listed.splitlines()[1:] if line.startswith(" " * 15)]
    assert lines == [
        "README.md:1: Mine, see docs/guard.md and docs/mine.md.",
        "scripts/check:1: python -m tests.production.test_guard",
        "tests/test_mine.py:1: from shop.production.client import Upstream",
        'tests/test_mine.py:4: PATCHED = "shop.production.client.Upstream"',
    ]


def test_a_file_of_the_owners_that_is_new_is_seeded_once(updated: Updated, original: Path, tmp_path: Path) -> None:
    assert updated.text("src/shop/options.py") == "OPTIONS = 1\n"
    assert "new          src/shop/options.py, which is yours" in updated.output

    project = Path(shutil.copytree(updated.project, tmp_path / "again"))
    commit(project)
    (project / "src/shop/options.py").unlink()
    commit(project)
    assert "options.py" not in update(project, "3.0.0").stderr
    assert not (project / "src/shop/options.py").exists()

    histories: list[list[str | None]] = [["MINE = 1\n"], ["MINE = 1\n", None]]
    for number, history in enumerate(histories):
        project = Path(shutil.copytree(original, tmp_path / f"history {number}"))
        path = project / "src/shop/options.py"
        for content in history:
            path.write_text(content, "utf-8") if content else path.unlink()
            commit(project)
        update(project, "2.0.0")
        assert (path.read_text("utf-8") if path.exists() else None) == history[-1]


def test_a_second_run_and_a_second_update_change_nothing(updated: Updated, tmp_path: Path) -> None:
    """The update to version 3 does not run the migration again: an owner may have made files of the old names."""
    project = Path(shutil.copytree(updated.project, tmp_path / "project"))
    now = files(project)
    program = updated.template.template / "hooks" / "migrate.py"
    done = run(sys.executable, program, "after", updated.template.template, "1.0.0", ".copier-answers.yml", cwd=project)
    assert done.returncode == 0, done.stderr
    assert files(project) == now, "a second run changes something"

    (project / "after").unlink()
    write(project, {"docs/guard.md": "Mine.\n", "src/shop/tools/again.py": "from ..production import get_logger\n"})
    commit(project)
    before = files(project)
    output = update(project, "3.0.0").stderr
    changed = {path for path, content in files(project).items() if before.get(path) != content}
    assert changed == {".copier-answers.yml"}
    assert "moved" not in output


def test_a_project_without_edits_equals_a_new_project_after_an_update(template: SmallTemplate, tmp_path: Path) -> None:
    project = template.copy("1.0.0", tmp_path / "project")
    output = update(project, "2.0.0").stderr
    assert "moved  " not in output
    fresh = files(template.copy("2.0.0", tmp_path / "fresh"))
    now = files(project)
    user_owned = {"README.md", "src/shop/tools/weather.py", "after"}
    assert {path: now[path] for path in now.keys() - user_owned} == {
        path: fresh[path] for path in fresh.keys() - user_owned
    }


def test_edits_that_conflict_are_marked_and_listed(template: SmallTemplate, original: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(original, tmp_path / "project"))
    edit(project / "docs/guard.md", "Third.", "The third of the owner.")
    commit(project)
    output = update(project, "2.0.0").stderr
    text = (project / "docs/doorman.md").read_text("utf-8")
    assert "<<<<<<< before updating\nThe third of the owner.\n=======\nThe third.\n>>>>>>> after updating\n" in text
    assert "conflict     docs/doorman.md: in 1 place\n" in output
    assert status(project)["docs/doorman.md"] == "UU"
    versions = [git("show", f":{stage}:docs/doorman.md", cwd=project) for stage in (1, 2, 3)]
    assert [re.findall("The third.*|Third.", version) for version in versions] == [
        ["Third."],
        ["The third of the owner."],
        ["The third."],
    ]


def test_an_edited_file_whose_feature_is_switched_off_is_named(
    template: SmallTemplate, original: Path, tmp_path: Path
) -> None:
    project = Path(shutil.copytree(original, tmp_path / "project"))
    write(
        project,
        {
            "src/shop/production/extra.py": "EXTRA = 'mine'\n",
            "src/shop/tools/uses.py": "from ..production.extra import EXTRA\n",
        },
    )
    commit(project)
    output = update(project, "1.0.0", "--data=extras=false").stderr
    assert "removed      src/shop/production/extra.py, which you had edited; git still has it" in output
    assert output.count("removed  ") == 1
    assert "src/shop/tools/uses.py:1: from ..production.extra import EXTRA" in output
    assert not (project / "docs/extra.md").exists()


def test_migrations_run_in_the_order_of_their_versions(tmp_path: Path) -> None:
    """0.9.0 before 0.10.0, which a comparison of the names as texts would run first."""
    template = SmallTemplate(tmp_path)
    template.release("0.8.0", OLD)
    for version in ("0.9.0", "0.10.0"):
        append = f"(project / 'order').open('a').write('{version} ')"
        template.release(version, OLD, f"def after(project, package):\n    {append}\n")
    project = template.copy("0.8.0")
    update(project, "0.10.0")
    assert (project / "order").read_text("utf-8") == "0.9.0 0.10.0 "


def test_a_commit_that_the_template_lacks_is_reported(template: SmallTemplate, original: Path) -> None:
    program = template.template / "hooks" / "migrate.py"
    done = run(sys.executable, program, "after", template.template, "0.0.9", ".copier-answers.yml", cwd=original)
    assert done.returncode == 1
    assert "FAILED to migrate: git ls-tree" in done.stderr
    assert "0.0.9" in done.stderr
    assert f"return to it with: {GO_BACK}\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "hooks/migrations/README.md").read_text("utf-8"), re.DOTALL)
    assert code
    made = SmallTemplate(tmp_path)
    settings = made.template / "copier.yml"
    edit(settings, "extras:", "log_level:\n  type: str\n  default: INFO\n\nextras:")
    old = {
        "docs/guard.md": "# Guard\n",
        "docs/lifecycle.md": "# Lifecycle\n",
        "level.txt.jinja": "{{ log_level }}\n",
        f"{PRODUCTION}/guard.py": "GUARD = 1\n",
        f"{PACKAGE}/tools/mine.py": "from ..production import get_logger\n",
    }
    made.release("1.0.0", old)
    edit(settings, "log_level:", "logging_level:")
    new = {
        "docs/doorman.md": "# Doorman\n",
        "level.txt.jinja": "{{ logging_level }}\n",
        f"{PRODUCTION}/doorman.py": "GUARD = 1\n",
    }
    made.release("2.0.0", new, code[1])
    project = made.copy("1.0.0", log_level="DEBUG")
    edit(project / "docs/guard.md", "# Guard\n", "# Guard\n\nMine.\n")
    edit(project / "docs/lifecycle.md", "# Lifecycle\n", "# Lifecycle, and mine\n")
    commit(project)
    output = update(project, "2.0.0").stderr
    now = files(project)
    assert (
        now["docs/doorman.md"]
        == b"<<<<<<< before updating\n# Guard\n\nMine.\n=======\n# Doorman\n>>>>>>> after updating\n"
    )
    assert now["level.txt"] == b"DEBUG\n"
    assert now["src/shop/tools/mine.py"] == b"from ..production import logger_for as get_logger\n"
    assert "See docs/health.md." in output


# --- The package gets another name ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def renamed(template: SmallTemplate, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Updated:
    """A project whose package was renamed in the update that moves files."""
    project = Path(shutil.copytree(original, tmp_path_factory.mktemp("renamed") / "project"))
    write(
        project,
        {
            "src/shop/database/__init__.py": "",
            "src/shop/database/query.sql": "select 'shop'\n",
            "src/shop/production/__pycache__/guard.pyc": "",
            "src/shop/tools/more.py": "import shop.database\nimport shops\n\nshop.database.run()\n",
            "src/store/tools/taken.py": "TAKEN = 1\n",
            "src/shop/tools/taken.py": "from ..database import query\n",
            "tests/test_more.py": "def test_more():\n    from shop import database\n\n    patch('shop.database.run')\n",
        },
    )
    commit(project)
    before = files(project)
    return Updated(template, project, before, update(project, "2.0.0", "--data=package_name=store").stderr)


def test_a_renamed_package_keeps_the_owners_work(renamed: Updated) -> None:
    assert renamed.text("src/store/tools/more.py") == "import store.database\nimport shops\n\nstore.database.run()\n"
    assert renamed.text("src/store/database/query.sql") == "select 'shop'\n"
    assert renamed.text("src/store/tools/mine.py") == (
        "from ..production import logger_for as get_logger\nfrom ..production.upstream.errors import UpstreamError\n"
    )
    assert renamed.text("tests/test_more.py") == (
        "def test_more():\n    from store import database\n\n    patch('shop.database.run')\n"
    )
    assert renamed.text("src/store/production/upstream/errors.py").count("mine") == 2
    assert renamed.text("src/store/options.py") == "OPTIONS = 1\n"
    assert "from ..upstream.errors import UpstreamError" in renamed.text("src/store/production/inbound/doorman.py")
    assert 'name = "store"' in renamed.text("pyproject.toml")
    assert "renamed      src/shop is src/store now, with your files" in renamed.output


def test_a_file_whose_new_path_exists_stays_and_is_reported(renamed: Updated) -> None:
    assert renamed.text("src/store/tools/taken.py") == "TAKEN = 1\n"
    assert [path for path in files(renamed.project) if path.startswith("src/shop/")] == ["src/shop/tools/taken.py"]
    assert renamed.text("src/shop/tools/taken.py") == "from store.database import query\n"
    assert "left         src/shop: src/store has files of the same names" in renamed.output


def test_other_lines_with_the_old_name_are_listed(renamed: Updated) -> None:
    for line in (
        "src/store/database/query.sql:1: select 'shop'",
        "tests/test_more.py:4: patch('shop.database.run')",
        'tests/test_mine.py:4: PATCHED = "shop.production.client.Upstream"',
    ):
        assert line in renamed.output
    assert "more.py:1" not in renamed.output


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="files moved"),
        pytest.param(["--data=package_name=store"], id="package renamed", marks=pytest.mark.release),
    ],
)
def test_the_documented_commands_undo_an_update(original: Path, tmp_path: Path, options: list[str]) -> None:
    project = Path(shutil.copytree(original, tmp_path / "project"))
    before = files(project)
    for _ in range(2):  # Copier would refuse to begin again where something were left
        update(project, "2.0.0", *options)
        assert files(project) != before
        git("reset", "--quiet", "--hard", cwd=project)
        git("clean", "--quiet", "-fd", cwd=project)
        assert files(project) == before


def test_a_project_in_a_larger_repository_is_updated_the_same_way(
    updated: Updated, original: Path, tmp_path: Path
) -> None:
    project = tmp_path / "many" / "servers" / "shop"
    shutil.copytree(original, project, ignore=lambda _, names: {".git"} & set(names))
    git("init", "--quiet", cwd=tmp_path / "many")
    edit(project / "docs/guard.md", "Third.", "The third of the owner.")
    commit(tmp_path / "many")
    update(project, "2.0.0")
    now, expected = files(project), files(updated.project)
    assert now.pop("docs/doorman.md") != expected.pop("docs/doorman.md")
    assert now == expected
    assert {path.name for path in (tmp_path / "many").iterdir()} == {".git", "servers"}
    assert status(tmp_path / "many")["servers/shop/docs/doorman.md"] == "UU"
