"""Every way to copy and to update that the documentation names: places, with trust and without, from Python."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from copier import run_copy

from .support import ANSWERS_FILE, ROOT, copier, files, interview, questions, run
from .template_repository import TemplateRepository, commit, edit, git, recorded, update
from .test_render import forbidden_by_windows

pytestmark = pytest.mark.slow

PRODUCTION = "template/src/{{ package_name }}/production"
METER = f"{PRODUCTION}/observe/meter.py"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, small_template: Path) -> TemplateRepository:
    """Versions 1.0.0 and 2.0.0, a branch behind both called `next`, and HEAD, a commit beyond; each changes a line."""
    made = TemplateRepository.from_folder(
        small_template, tmp_path_factory.mktemp("usage"), METER, f"{PRODUCTION}/upstream/retry.py"
    )
    meter = made.template / METER
    for version, line in (("2.0.0", "Two. "), ("", "Beyond. ")):
        edit(meter, '"""', f'"""{line}', count=1)
        made.release(version)
    trunk = git("branch", "--show-current", cwd=made.template).strip()
    git("switch", "--quiet", "--create", "next", cwd=made.template)
    edit(meter, '"""', '"""Next. ', count=1)
    made.release()
    git("switch", "--quiet", trunk, cwd=made.template)
    git("clone", "--quiet", "--mirror", made.template, mirror(made), cwd=made.root)
    return made


def mirror(repository: TemplateRepository) -> Path:
    """The template as a server has it. Copier takes a URL for git's by its `.git` at the end."""
    return repository.root / "template.git"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPIER_CACHE_DIR", str(tmp_path / "copier-cache"))


def first_words(project: Path) -> str:
    text = (project / METER.removeprefix("template/").replace("{{ package_name }}", "weather_station")).read_text(
        "utf-8"
    )
    return text.removeprefix('"""')


# --- Where from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "line"),
    [(None, "Two."), ("1.0.0", "The interface"), ("2.0.0", "Two."), ("next", "Next."), ("HEAD", "Beyond.")],
)
def test_a_project_can_be_made_from_a_tag_a_branch_or_head(
    repository: TemplateRepository, tmp_path: Path, reference: str | None, line: str
) -> None:
    run_copy(
        mirror(repository).as_uri(),
        tmp_path / "weather-station",
        vcs_ref=reference,
        defaults=True,
        skip_tasks=True,
        quiet=True,
    )
    assert first_words(tmp_path / "weather-station").startswith(line)
    described = recorded(tmp_path / "weather-station")
    assert described["_src_path"] == mirror(repository).as_uri()
    assert re.fullmatch(r"[12]\.0\.0(-\d+-g[0-9a-f]+)?", described["_commit"])


def test_a_project_can_be_updated_along_a_branch(repository: TemplateRepository, tmp_path: Path) -> None:
    project = tmp_path / "weather-station"
    url = mirror(repository).as_uri()
    run_copy(url, project, vcs_ref="1.0.0", defaults=True, skip_tasks=True, quiet=True)
    git("init", "--quiet", cwd=project)
    commit(project)
    update(project, "next")
    assert first_words(project).startswith("Next")
    assert recorded(project)["_commit"].startswith("2.0.0-2-g")


# --- Where to ------------------------------------------------------------------------------------------------


def test_an_empty_folder_and_one_with_files_of_others(repository: TemplateRepository, tmp_path: Path) -> None:
    new, empty, full = tmp_path / "1/weather-station", tmp_path / "2/weather-station", tmp_path / "3/weather-station"
    empty.mkdir(parents=True)
    (full / "src").mkdir(parents=True)
    (full / "notes.txt").write_text("mine")
    (full / "src" / "mine.py").write_text("MINE = 1\n")
    for target in (new, empty, full):
        run_copy(str(repository.template), target, defaults=True, skip_tasks=True, quiet=True)
    made = files(new)
    assert files(empty) == made
    assert files(full) == made | {"notes.txt": b"mine", "src/mine.py": b"MINE = 1\n"}


def test_a_file_of_the_same_name_is_not_overwritten_unasked(repository: TemplateRepository, tmp_path: Path) -> None:
    """Copier asks on a terminal; without one it ends, and says which option decides."""
    project = tmp_path / "weather-station"
    project.mkdir()
    (project / "README.md").write_text("mine")
    done = copier("copy", "-T", "--defaults", "--quiet", str(repository.template), str(project), cwd=tmp_path)
    assert done.returncode != 0
    assert (project / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    "name", [pytest.param("with space", marks=pytest.mark.release), "Ünïcode 天气", "it's (100 %) & more"]
)
def test_a_project_can_be_made_in_any_folder(repository: TemplateRepository, tmp_path: Path, name: str) -> None:
    parent = tmp_path / name
    parent.mkdir()
    template = TemplateRepository(Path(shutil.copytree(repository.template, parent / "template of mine")), parent)
    project = template.copy("a server", "1.0.0")
    update(project, "2.0.0")
    assert first_words(project).startswith("Two")
    assert git("status", "--porcelain", cwd=project).count("\n") == 2  # the changed line, and the recorded version


def test_a_folder_of_a_larger_repository(repository: TemplateRepository, tmp_path: Path) -> None:
    """Copied into it, updated there, with the owner's edits kept, and nothing beside it touched."""
    repository_root = tmp_path / "many"
    project = repository_root / "servers" / "weather"
    run_copy(
        str(repository.template),
        project,
        data={"project_name": "Weather Station"},
        vcs_ref="1.0.0",
        defaults=True,
        skip_tasks=True,
        quiet=True,
    )
    (repository_root / "README.md").write_text("Of all.\n")
    (repository_root / "pyproject.toml").write_text("[tool.all]\n")
    edit(project / "pyproject.toml", 'version = "0.1.0"', 'version = "1.0.0"')
    git("init", "--quiet", cwd=repository_root)
    commit(repository_root)
    beside = {path: content for path, content in files(repository_root).items() if not path.startswith("servers/")}

    update(project, "2.0.0", enable_retries=False)

    now = files(repository_root)
    assert first_words(project).startswith("Two")
    assert 'version = "1.0.0"' in now["servers/weather/pyproject.toml"].decode()
    assert "servers/weather/src/weather_station/production/upstream/retry.py" not in now
    assert {path: content for path, content in now.items() if not path.startswith("servers/")} == beside


# --- Trust ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(repository: TemplateRepository, tmp_path: Path) -> Path:
    made = tmp_path / "weather-station"
    run_copy(str(repository.template), made, vcs_ref="1.0.0", defaults=True, skip_tasks=True, quiet=True)
    git("init", "--quiet", cwd=made)
    commit(made)
    return made


@pytest.mark.parametrize("options", [[], ["--skip-tasks"]])
def test_an_update_without_trust_is_refused_and_changes_nothing(project: Path, options: list[str]) -> None:
    """Migrations are code, and no option leaves them out."""
    before = files(project)
    done = copier("update", "--defaults", *options, cwd=project)
    assert done.returncode == 4
    assert "unsafe features: migrations, tasks" in done.stderr
    assert "--trust" in done.stderr
    assert files(project) == before


def test_trusted_urls_in_settings_are_compared_literally(
    repository: TemplateRepository, project: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yml"
    for trusted, status in ((repository.template.as_uri(), 4), (str(repository.template), 0)):
        settings.write_text(yaml.safe_dump({"trust": [trusted]}), "utf-8")
        done = copier("update", "--defaults", "--quiet", cwd=project, COPIER_SETTINGS_PATH=str(settings))
        assert done.returncode == status, done.stderr


def test_tasks_and_migrations_are_lists_that_run_python() -> None:
    """A string would go to the platform's shell, and `python` is missing on many machines."""
    config = interview()
    commands = [entry["command"] for entry in [*config["_tasks"], *config["_migrations"]]]
    assert [command for command in commands if not isinstance(command, list)] == []
    assert {command[0] for command in commands} == {"{{ _copier_python }}"}
    assert [path.name for path in (ROOT / "hooks").rglob("*") if path.suffix not in (".py", ".md", ".pyc", "")] == []
    scripts = [path for path in files(ROOT / "template") if path.endswith((".sh", ".bash", ".bat", ".ps1"))]
    assert scripts == []


def test_windows_can_check_out_this_repository() -> None:
    tracked = git("ls-files", "-z", cwd=ROOT).rstrip("\0").split("\0")
    assert list(forbidden_by_windows(dict.fromkeys(tracked, b""))) == []


# --- From Python ---------------------------------------------------------------------------------------------


def test_the_example_of_the_page_on_use_from_python_runs(repository: TemplateRepository, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python-use.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(from copier import run_copy.*?)```", page, re.DOTALL)
    program = f"TEMPLATE = {mirror(repository).as_uri()!r}\n{example}"
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (project,) = (path.parent for path in tmp_path.glob(f"*/{ANSWERS_FILE}"))
    (data,) = (
        node.value for node in ast.walk(ast.parse(example)) if isinstance(node, ast.keyword) and node.arg == "data"
    )
    given = ast.literal_eval(data)
    assert given.keys() <= questions().keys()
    assert {name: recorded(project)[name] for name in given} == given
