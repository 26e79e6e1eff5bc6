"""Modes of all written files follow the umask, except with `private=true`."""

import os
import stat
import sys
from contextlib import contextmanager

import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import HEADS, TILE, evaluate, predict, train
from tests.pdf_pages import HAS_PANGO

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file modes")


@contextmanager
def with_umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def find_wrong_modes(folder, mask):
    """Return path and mode of every entry of `folder` whose mode differs from the umask's."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~mask:
            found[str(path.relative_to(folder))] = oct(mode)
    return found


@pytest.fixture(scope="module")
def trained_folder(once):
    """Write a dataset, a cache and a run with a PDF under the umask 027."""

    def make(folder):
        with with_umask(0o027):
            write_mri_phantoms(folder / "raw", 6, seed=0, n_test=1, **HEADS)
            steps = [TILE, "trainer.max_steps=2", "report.pdf=true"]
            train(folder / "raw", folder / "runs" / "one", *steps)

    return once("file_modes", make)


def test_dataset_cache_and_run_follow_the_umask(trained_folder):
    assert (trained_folder / "runs" / "cache").is_dir()
    names = ["bundle/weights.safetensors", "checkpoints/last.ckpt", "train.log"]
    for name in [*names, "report.pdf" if HAS_PANGO else "report.html"]:
        assert (trained_folder / "runs" / "one" / name).is_file()
    for name in ("raw", "runs"):
        assert find_wrong_modes(trained_folder / name, 0o027) == {}


# Under umask 027 a file has neither the mode of a temporary file nor that of the usual umask 022
@pytest.mark.parametrize("mask", [pytest.param(0o022, marks=pytest.mark.slow), 0o027])
def test_every_other_command_follows_the_umask(trained_folder, tmp_path, mask):
    model = trained_folder / "runs" / "one"
    raw = trained_folder / "raw"
    scans, labels = raw / "imagesTs", raw / "labelsTs"
    out = tmp_path / "out"
    shown = f"images={scans} reference={labels} prediction={out}/found"
    commands = f"""report scores={out}/scores {shown} output={out}/page
        follow before={labels} after={labels} output={out}/changes replicates=20
        export bundle={model} output={out}/monai format=monai
        prepare data.root={raw} run_dir={out}/check check=true
        prepare data.root={raw} run_dir={out}/plan/one {TILE}"""
    with with_umask(mask):
        predict(model, scans, out / "found", "save_probabilities=true")
        evaluate(labels, out / "found", out / "scores")
        for command in commands.splitlines():
            name, *settings = command.split()
            assert run(name, settings) == 0
    written = """scores/scores.json page/pseudonyms.csv page/report.html changes/changes.csv
        monai/configs/metadata.json check/dataset_report.html plan/one/plan.json"""
    assert [name for name in written.split() if not (out / name).is_file()] == []
    assert list((out / "found").glob("*_probabilities*"))
    assert (out / "page" / "report.pdf").is_file() == HAS_PANGO
    assert (out / "plan" / "cache").is_dir()
    assert find_wrong_modes(out, mask) == {}


@pytest.mark.parametrize("mask", [0o000, pytest.param(0o022, marks=pytest.mark.slow)])
def test_private_results_are_readable_only_by_their_user(trained_folder, tmp_path, mask):
    raw = trained_folder / "raw"
    found, scores, page = (tmp_path / name for name in ("found", "scores", "page"))
    evaluation = [f"reference={raw / 'labelsTs'}", f"prediction={found}", f"output={scores}"]
    with with_umask(mask):
        predict(trained_folder / "runs" / "one", raw / "imagesTs", found, "private=true")
        assert run("evaluate", [*evaluation, "replicates=20", "private=true"]) == 0
        assert run("report", [f"scores={scores}", f"output={page}", "private=true"]) == 0
        assert os.umask(mask) == mask  # the umask of the process is restored
    for folder in (found, scores, page):
        assert find_wrong_modes(folder, 0o077) == {}
