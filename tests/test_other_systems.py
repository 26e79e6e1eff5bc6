"""Windows and macOS: features that only Linux has are not needed or have a substitute."""

import os
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Volume
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from tests.commands import python

WINDOWS = {**os.environ, "USERNAME": "user"}  # Windows always sets it

# Remove them from this Python. torch is imported before, because its Linux build needs some.
WITHOUT = """
import os, sys
import torch
for name in ("resource", "fcntl", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in (
    "fork", "forkpty", "register_at_fork", "sysconf", "getuid", "geteuid", "posix_fallocate",
    "sched_getaffinity", "nice", "getloadavg", "mkfifo", "statvfs",
):
    if hasattr(os, name):
        delattr(os, name)
def kill(pid, sign):
    raise AssertionError("on Windows this ends the process")
os.kill = kill
"""
IMPORTS = """
import importlib, pkgutil
import lesionseg
for module in pkgutil.walk_packages(lesionseg.__path__, "lesionseg."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
COMMANDS = """
from pathlib import Path
from lesionseg.cli import main
from lesionseg.host_memory import peak_memory_mb, physical_bytes
assert main(["predict", "bundle=bundle", "input=scans", "output=out", "device=cpu"]) == 0
assert main(["evaluate", "reference=masks", "prediction=out", "output=scores"]) == 0
sys.platform = "win32"
assert (peak_memory_mb(), physical_bytes()) == (0, 8 * 2**30)
"""


@pytest.mark.slow
def test_every_module_can_be_imported_without_features_of_linux():
    done = python("-W", "ignore", "-c", WITHOUT + IMPORTS, env=WINDOWS)
    assert done.returncode == 0, done.stderr


def test_help_is_printed_in_an_encoding_without_its_characters():
    pipe = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}  # on Windows
    done = python("-m", "lesionseg", "--help", env=pipe, encoding="cp1252")
    assert (done.returncode, done.stderr) == (0, "")
    assert "? and ?" in done.stdout


@pytest.mark.slow
def test_predict_and_evaluate_work_without_features_of_linux(plan, toy_case, tmp_path):
    easy = replace(plan, lesion_fraction=0.7)
    write_bundle(tmp_path / "bundle", build_network(easy), easy, "")
    labels = toy_case.reference.labels[np.newaxis]
    write_volume(tmp_path / "scans" / "toy.nii.gz", toy_case.image)
    write_volume(tmp_path / "masks" / "toy.nii.gz", Volume(labels, toy_case.image.geometry))
    done = python("-W", "ignore", "-c", WITHOUT + COMMANDS, cwd=tmp_path, env=WINDOWS)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores" / "scores.json").is_file()
    assert (tmp_path / "out" / "toy_mask.nii.gz").is_file()
