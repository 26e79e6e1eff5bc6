"""Modes of everything that the commands write: the umask decides, `private=true` overrules it."""

import os
import stat
import sys
from contextlib import contextmanager

import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import TILE, evaluate, predict, train

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")
GRID = {"shape": (32, 40, 32), "spacing_mm": (4.0, 4.0, 4.0)}


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def wrong_modes(folder, mask):
    """Return path and mode of every entry of `folder` whose mode is not the one of the umask."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask:
            found[str(path.relative_to(folder))] = oct(mode)
    return found


@pytest.fixture(scope="module")
def trained(once):
    """A dataset, its cache, and a run that was trained with umask 027 and has a PDF."""

    def make(folder):
        with umask(0o027):
            write_mri_phantoms(folder / "raw", 6, seed=0, n_test=1, **GRID)
            steps = [TILE, "trainer.max_steps=2", "report.pdf=true"]
            train(folder / "raw", folder / "runs" / "one", *steps)

    return once("file_modes", make)


def test_dataset_cache_and_run_follow_the_umask(trained):
    assert (trained / "runs" / "cache").is_dir()
    for name in ("bundle/weights.safetensors", "checkpoints/last.ckpt", "report.pdf", "train.log"):
        assert (trained / "runs" / "one" / name).is_file()
    for name in ("raw", "runs"):
        assert wrong_modes(trained / name, 0o027) == {}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_every_other_command_follows_the_umask(trained, tmp_path, mask):
    model, scans, labels = (
        trained / "runs" / "one",
        trained / "raw/imagesTs",
        trained / "raw/labelsTs",
    )
    out = tmp_path / "out"
    with umask(mask):
        predict(model, scans, out / "found", "save_probabilities=true")
        evaluate(labels, out / "found", out / "scores")
        told = [f"scores={out / 'scores'}", f"images={scans}", f"reference={labels}"]
        assert run("report", [*told, f"prediction={out / 'found'}", f"output={out / 'page'}"]) == 0
        visits = [f"before={labels}", f"after={labels}", f"output={out / 'changes'}"]
        assert run("follow", [*visits, "replicates=20"]) == 0
        assert run("export", [f"bundle={model}", f"output={out / 'monai'}", "format=monai"]) == 0
        checked = [f"data.root={trained / 'raw'}", f"run_dir={out / 'check'}", "check=true"]
        assert run("prepare", checked) == 0
        planned = [f"data.root={trained / 'raw'}", f"run_dir={out / 'plan/one'}", TILE]
        assert run("prepare", planned) == 0
    for name in ("found", "scores", "page", "changes", "monai", "check", "plan/cache"):
        assert (out / name).is_dir()
    for name in ("pseudonyms.csv", "report.pdf"):
        assert (out / "page" / name).is_file()
    assert wrong_modes(out, mask) == {}


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_private_results_are_their_user_s_alone(trained, tmp_path, mask):
    model, scans, labels = (
        trained / "runs" / "one",
        trained / "raw/imagesTs",
        trained / "raw/labelsTs",
    )
    found, scores, page = (tmp_path / name for name in ("found", "scores", "page"))
    with umask(mask):
        predict(model, scans, found, "private=true")
        told = [f"reference={labels}", f"prediction={found}", f"output={scores}"]
        assert run("evaluate", [*told, "replicates=20", "private=true"]) == 0
        told = [f"scores={scores}", f"output={page}", "private=true"]
        assert run("report", told) == 0
        assert os.umask(mask) == mask  # what follows in the same process is as before
    for folder in (found, scores, page):
        assert wrong_modes(folder, 0o077) == {}
