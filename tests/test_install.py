"""The lock files are consistent, and the stated install commands are correct."""

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from lesionseg.errors import pip_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def _read_lock(name="requirements.lock"):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    return {pin.name.lower().replace("_", "-"): pin for pin in pins}


def test_runtime_lock_is_a_part_of_the_complete_lock():
    everything = _read_lock()
    runtime = _read_lock("requirements-runtime.lock")
    for name, pin in runtime.items():
        assert everything[name].specifier == pin.specifier
    assert {Requirement(line).name.lower() for line in PROJECT["dependencies"]} <= runtime.keys()
    assert not runtime.keys() & {"ray", "mypy", "pytest", "onnx", "optuna", "pydicom", "fastapi"}


def test_lock_has_one_exact_version_of_each_dependency():
    pins = _read_lock()
    for pin in pins.values():
        (only,) = pin.specifier
        assert only.operator == "=="
        assert "+" not in only.version  # a local build
    for wanted in map(Requirement, [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["tune"]]):
        (pin,) = pins[wanted.name.lower()].specifier
        assert wanted.specifier.contains(pin.version), wanted


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"test", "docs"}))
def test_install_command_of_an_extra_names_its_packages(extra):
    named = re.findall(r'"([^"]*)"', pip_install(extra))
    assert {Requirement(name) for name in named} == {Requirement(name) for name in EXTRAS[extra]}


@pytest.mark.parametrize("name", ["Dockerfile", "apptainer.def"])
def test_container_has_the_extras_dicom_pdf_and_serve_at_locked_versions(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    (listed,) = re.findall(r"-c requirements\.lock ([\w -]+)", text)
    extras = [*EXTRAS["dicom"], *EXTRAS["pdf"], *EXTRAS["serve"]]
    wanted = {Requirement(line).name for line in extras}
    assert set(listed.split()) == wanted <= _read_lock().keys()
    guide = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for page in (text, guide):
        # WeasyPrint needs two of them now, and all three in future
        assert "libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0" in page


def test_container_gets_all_files_that_its_recipe_copies():
    recipe = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", recipe, flags=re.M):
        *sources, _ = line.split()
        copied.update(sources)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"  # everything else is left out
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert copied == sent
    listed = (ROOT / "apptainer.def").read_text(encoding="utf-8")
    of_apptainer = set(re.findall(r"^    (\S+) /source/\1$", listed, flags=re.M))
    assert copied == of_apptainer
    for name in copied:
        assert (ROOT / name).exists()


@pytest.mark.skipif(shutil.which("sh") is None, reason="Apptainer runs on Linux")
def test_apptainer_caches_are_in_the_home_of_the_user():
    """Its /tmp is that of the machine, where another user may own the folders."""
    recipe = (ROOT / "apptainer.def").read_text(encoding="utf-8")
    (script,) = re.findall(r"^%environment\n(.*?)^%", recipe, flags=re.M | re.S)
    environment = {"HOME": "/home/me", "PATH": os.environ["PATH"]}
    command = ["sh", "-euc", f"{script}\nenv"]
    printed = subprocess.check_output(command, env=environment, text=True)
    caches = re.findall(r"^\w+(?:CACHE_DIR|CONFIGDIR)=(.*)$", printed, flags=re.M)
    assert len(caches) == 4
    assert all(folder.startswith("/home/me/.cache/") for folder in caches)


def test_notice_lists_all_packages_under_a_copyleft_licence():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    found = set()
    for name in _read_lock().keys() - {"pathspec"}:  # only mypy needs it, which is not shipped
        try:
            about = metadata(name)
        except PackageNotFoundError:  # of another system
            continue
        short = (about.get("License") or "")[:60]  # some packages have the whole text here
        stated = [about.get("License-Expression", ""), short, *about.get_all("Classifier", [])]
        if re.search(r"GPL|GNU|MPL|EPL|CDDL", " ".join(stated)):
            found.add(name)
    assert {"connected-components-3d", "tqdm"} <= found
    assert [name for name in sorted(found) if f"- {name}" not in notice] == []


def test_hooks_before_a_commit_run_the_locked_tools():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (repository,) = yaml.safe_load(text)["repos"]
    packages = {"ruff": "ruff", "mypy": "mypy", "lint-imports": "import-linter"}
    for hook in repository["hooks"]:
        program = hook["entry"].split()[0]
        assert hook["language"] == "system"
        assert program.startswith(".venv/bin/")  # of `make setup`, which installs the lock
        assert packages[Path(program).name] in _read_lock()
