"""The core finds an extra by name, and an extra takes what it needs from doors of packages."""

import ast
import os
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

import lesionseg
from lesionseg.cli import main
from lesionseg.config import COMMANDS
from lesionseg.extra import WITHOUT_COMMAND
from tests.commands import python

ROOT = Path(lesionseg.__file__).parents[1]
EXTRAS = [path.parent.name for path in sorted(ROOT.glob("lesionseg/extras/*/__init__.py"))]
MAX_NAMES = {"follow": 40}  # that an extra takes from outside; the others 30
EXTRA_COMMANDS = [extra for extra in EXTRAS if extra not in WITHOUT_COMMAND]
# every extra may use them; the settings of an extra may use all of `config`
FREE = {"lesionseg.errors", "lesionseg.lazy", "lesionseg.version"}


def names_from_outside(extra):
    """Return the names of the library that the modules of an extra import, by their homes."""
    taken = defaultdict(set)
    for path in (ROOT / "lesionseg/extras" / extra).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("lesionseg") for alias in node.names), path
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("lesionseg"):
                is_own = f"{node.module}.".startswith(f"lesionseg.extras.{extra}.")
                is_setting = path.name == "settings.py" and node.module == "lesionseg.config"
                if not is_own and not is_setting and node.module not in FREE:
                    taken[node.module] |= {alias.name for alias in node.names}
    return taken


def test_extras_are_commands_unless_settings_ask_for_them():
    assert {*EXTRA_COMMANDS} <= {name for name, kind in COMMANDS.kinds.items() if kind is None}
    assert not {*WITHOUT_COMMAND} & {*COMMANDS.kinds}


@pytest.mark.parametrize("extra", EXTRAS)
def test_extra_takes_few_names_and_none_from_a_module_of_a_package(extra):
    taken = names_from_outside(extra)
    for home in taken:
        place = ROOT.joinpath(*home.split("."))
        is_door = (place / "__init__.py").is_file() or len(home.split(".")) == 2
        assert is_door, f"{extra} imports {sorted(taken[home])} from {home}, not from its package"
    names = sorted(f"{home}.{name}" for home in taken for name in taken[home])
    print(f"{extra} takes {len(names)} names from outside")  # noqa: T201
    assert len(names) <= MAX_NAMES.get(extra, 30), names


@pytest.mark.parametrize("extra", EXTRA_COMMANDS)
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg"], ["bundle=x"]])
def test_command_of_a_missing_extra_is_one_sentence(extra, arguments, monkeypatch, capsys):
    monkeypatch.setattr("lesionseg.extra.find_spec", lambda _: None)
    assert main([extra, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"lesionseg/extras/{extra}" in error


def test_help_lists_missing_extras(monkeypatch, capsys):
    monkeypatch.setattr("lesionseg.extra.find_spec", lambda _: None)
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for extra in EXTRAS:
        (line,) = [line for line in lines if line.startswith(f"  {extra} ")]
        assert "missing" in line
    assert not {*EXTRAS} & {*COMMANDS}
    assert "train" in COMMANDS


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """Copy the files of the repository that tests need."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("lesionseg", "conf", "scripts", "tests", "docs", "examples", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*ROOT.glob("*.toml"), *ROOT.glob("*.md"), *ROOT.glob("*.lock")]:
        shutil.copy(file, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_rest_works_without_an_extra(extra, clone, tmp_path):
    linter = "import importlinter.cli as c; c.lint_imports_command(['--no-cache'])"
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    commands = [
        ("-c", linter),
        ("-m", "lesionseg", "--help"),
        (*pytest_, "--collect-only"),
        (*pytest_, "tests/flow/test_end_to_end.py"),
    ]
    removed = [f"lesionseg/extras/{extra}", f"tests/extras/{extra}"]
    if extra not in WITHOUT_COMMAND:
        removed += [f"conf/{extra}.yaml", f"scripts/{extra}.py"]
    for name in removed:
        shutil.move(clone / name, tmp_path / name.replace("/", "-"))
    try:
        for arguments in commands:
            done = python(*arguments, cwd=clone, env={**os.environ, "PYTHONPATH": str(clone)})
            assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
            if "--help" in arguments:
                assert f"  {extra:<9} is missing" in done.stdout
    finally:
        for name in removed:
            shutil.move(tmp_path / name.replace("/", "-"), clone / name)
