"""End to end on toy files by the command line: train, resume, predict, evaluate, report."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms

SMALL = [
    "trainer.max_minutes=null",
    "trainer.workers=0",
    "trainer.precision=32-true",
    "model.base_features=4",
    "model.batch_size=2",
    "report.pdf=false",
]


@pytest.fixture(scope="module")
def mri_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 20 steps on seven small phantoms, one of them in the test role."""
    folder = tmp_path_factory.mktemp("end_to_end")
    write_mri_phantoms(
        folder / "raw", 7, seed=0, n_test=1, shape=(32, 40, 32), spacing_mm=(4.0, 4.0, 4.0)
    )
    overrides = [f"data.root={folder / 'raw'}", f"run_dir={folder / 'run'}", *SMALL]
    assert run("train", [*overrides, "trainer.max_steps=20", "model.tile_shape=[16,16,16]"]) == 0
    return folder / "run"


def test_a_run_leaves_everything_that_is_promised(mri_run: Path) -> None:
    promised = """config.yaml fingerprint.json plan.json splits.json checkpoints/last.ckpt
        train.log metrics.csv validation
        scores.json cases.csv lesions.csv candidates.csv report.html
        bundle/weights.safetensors bundle/plan.json bundle/model_card.md
        test/scores.json test/cases.csv test/lesions.csv test/candidates.csv test/report.html"""
    assert [name for name in promised.split() if not (mri_run / name).exists()] == []
    left_over = [p for p in mri_run.rglob("*") if "tmp" in p.name.lower() or "partial" in p.name]
    assert left_over == []
    said = (mri_run / "train.log").read_text()
    for line in ("Tile shape:", "Trained 20 steps", "Operating point", "Finished in"):
        assert line in said


def test_scores_say_what_they_were_computed_on(mri_run: Path) -> None:
    validation = json.loads((mri_run / "scores.json").read_text())
    test = json.loads((mri_run / "test" / "scores.json").read_text())
    assert validation["evaluated_on"] == "validation"
    assert validation["operating_point"]["optimistic"] is True
    assert test["evaluated_on"] == "test"
    assert test["operating_point"]["score"] == validation["operating_point"]["score"]
    assert validation["provenance"]["simulated"] is True
    assert {"seed", "git_commit", "data_sha256", "packages"} <= set(validation["provenance"])
    with (mri_run / "metrics.csv").open() as stream:
        p = [float(row["p/lesion"]) for row in csv.DictReader(stream) if row["p/lesion"]]
    assert p[-1] > p[0]


def test_the_same_command_resumes_and_another_is_refused(
    mri_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [f"data.root={mri_run.parent / 'raw'}", f"run_dir={mri_run}", *SMALL]
    same += ["trainer.max_steps=20", "model.tile_shape=[16,16,16]"]
    weights = (mri_run / "bundle" / "weights.safetensors").read_bytes()
    assert run("train", same) == 0
    assert (mri_run / "bundle" / "weights.safetensors").read_bytes() == weights
    assert run("train", [*same, "loss.gamma=3"]) == 2
    assert "loss.gamma: 0.0 → 3" in capsys.readouterr().err


def test_predict_evaluate_and_report_follow(mri_run: Path, tmp_path: Path) -> None:
    raw = mri_run.parent / "raw"
    scans = [f"bundle={mri_run}", f"input={raw / 'imagesTs'}", f"output={tmp_path / 'p q'}"]
    assert run("predict", scans) == 0
    scan = nib.load(next((raw / "imagesTs").glob("*.nii.gz")))
    mask = nib.load(next((tmp_path / "p q").glob("*_mask.nii.gz")))
    assert mask.shape == scan.shape
    assert np.abs(mask.affine - scan.affine).max() <= 1e-5
    scored = [f"reference={raw / 'labelsTs'}", f"prediction={tmp_path / 'p q'}"]
    assert run("evaluate", [*scored, f"output={tmp_path / 's'}", "replicates=50"]) == 0
    ours = json.loads((mri_run / "test" / "scores.json").read_text())
    again = json.loads((tmp_path / "s" / "scores.json").read_text())
    assert again["dice"]["mean"] == pytest.approx(ours["dice"]["mean"])
    assert again["n_true_positive"] == ours["n_true_positive"]
    pictures = [f"images={raw / 'imagesTs'}", f"reference={raw / 'labelsTs'}"]
    told = [f"scores={tmp_path / 's'}", f"output={tmp_path / 'r'}", *pictures]
    assert run("report", told) == 0
    assert "<html" in (tmp_path / "r" / "report.html").read_text()


def test_scans_are_compared_with_the_training_scans(mri_run: Path, tmp_path: Path) -> None:
    with (mri_run / "test" / "cases.csv").open() as stream:
        (case,) = csv.DictReader(stream)
    assert float(case["input_score"]) > 0
    scan = nib.load(next((mri_run.parent / "raw" / "imagesTs").glob("*.nii.gz")))
    thick = nib.Nifti1Image(
        np.asarray(scan.dataobj)[:, :, ::4], scan.affine @ np.diag([1, 1, 4, 1])
    )
    nib.save(thick, tmp_path / "thick.nii.gz")
    scans = [f"bundle={mri_run}", f"input={tmp_path / 'thick.nii.gz'}", f"output={tmp_path / 'p'}"]
    assert run("predict", scans) == 0
    with (tmp_path / "p" / "predictions.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["warning"].startswith("This scan looks unlike the training scans")
    assert float(row["input_score"]) > 1


def test_the_same_run_in_two_dimensions_on_a_coarser_grid(tmp_path: Path) -> None:
    write_xray_phantoms(tmp_path / "raw", 6, seed=0, shape=(96, 96), pixel_mm=4.0)
    overrides = [f"data.root={tmp_path / 'raw'}", f"run_dir={tmp_path / 'run'}", *SMALL]
    overrides += ["trainer.max_steps=4", "model.tile_shape=[32,32]", "model.spacing_mm=[6,6]"]
    assert run("train", overrides) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    output = tmp_path / "predicted"
    images = tmp_path / "raw" / "images"
    assert (
        run("predict", [f"bundle={tmp_path / 'run'}", f"input={images}", f"output={output}"]) == 0
    )
    assert len(list(output.glob("*_mask.png"))) == 6
    with (output / "predictions.csv").open() as stream:  # as large as in training
        assert [r["case"] for r in csv.DictReader(stream) if "Another grid" in r["warning"]] == []


def test_prepare_checks_and_prepares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mri_phantoms(tmp_path / "raw", 4, seed=0, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0))
    root = f"data.root={tmp_path / 'raw'}"
    assert run("prepare", [root, "check=true", f"run_dir={tmp_path / 'check'}"]) == 0
    assert "4 cases read, 0 cannot be used" in capsys.readouterr().out
    plans = []
    for _ in range(2):
        assert run("prepare", [root, f"run_dir={tmp_path / 'run'}"]) == 0
        plans.append((tmp_path / "run" / "plan.json").read_text())
    assert "no step was tried" in json.loads(plans[0])["reasons"]["memory"]
    assert plans[0] == plans[1]
