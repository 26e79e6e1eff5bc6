"""Train, resume, predict, evaluate and report on toy files from the command line."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.io.text import read_csv, read_json
from lesionseg.io.volumes import read_geometry, read_volume
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms
from tests.flow.cases import FINE_HEADS, TILE, evaluate, predict, scores_of, train

STEPS = [TILE, "trainer.max_steps=20"]


@pytest.fixture(scope="session")
def folder(once):
    """Train 20 steps on seven small phantoms, one of them in the test role."""

    def make(folder):
        write_mri_phantoms(folder / "raw", 7, seed=0, n_test=1, **FINE_HEADS)
        train(folder / "raw", folder / "run", *STEPS)

    return once("end_to_end", make)


@pytest.fixture
def copy(folder, tmp_path):
    """Copy the finished run."""
    return shutil.copytree(folder / "run", tmp_path / "run")


def test_run_writes_all_documented_files(folder):
    documented = """config.yaml fingerprint.json plan.json selection.json splits.json
        checkpoints/last.ckpt
        train.log metrics.csv validation
        scores.json cases.csv lesions.csv candidates.csv report.html
        bundle/weights.safetensors bundle/plan.json bundle/selection.json bundle/README.md
        test/scores.json test/cases.csv test/lesions.csv test/candidates.csv test/report.html"""
    assert [name for name in documented.split() if not (folder / "run" / name).exists()] == []
    names = [p.name.lower() for p in (folder / "run").rglob("*")]
    assert [name for name in names if "tmp" in name or "partial" in name] == []


def test_scores_state_their_role_and_provenance(folder):
    validation = scores_of(folder / "run")
    test = scores_of(folder / "run" / "test")
    assert (validation["evaluated_on"], test["evaluated_on"]) == ("validation", "test")
    assert test["operating_point"]["score"] == validation["operating_point"]["score"]
    assert validation["provenance"]["simulated"] is True
    assert {"seed", "git_commit", "data_sha256", "packages"} <= set(validation["provenance"])
    assert "On test data (" in (folder / "run" / "bundle" / "README.md").read_text("utf-8")
    rows = read_csv(folder / "run" / "metrics.csv")
    p = [float(row["p/lesion"]) for row in rows if row["p/lesion"]]
    assert p[-1] > p[0]


def change_times(folder):
    """Return the time of change of every file of results except logs."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".log")
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in files}


def test_finished_training_is_stated_and_repeats_nothing(folder, copy, capsys, caplog):
    before = change_times(copy)
    train(folder / "raw", copy, *STEPS)
    assert change_times(copy) == before
    printed = capsys.readouterr().out
    assert re.search(r"Finished at \d{4}-\d\d-\d\d \d\d:\d\d", printed)
    page = copy / "test" / "report.html"
    assert f"Open:    {page}" in printed
    assert "SIM_006" not in page.read_text()
    train(folder / "raw", copy, *STEPS, "report.identifiers=true")
    assert "SIM_006" in page.read_text()
    assert "Predicting" not in caplog.text


def test_finished_training_restores_missing_results(folder, copy, caplog):
    shutil.rmtree(copy / "test")
    weights = (copy / "bundle" / "weights.safetensors").read_bytes()
    train(folder / "raw", copy, *STEPS)
    assert (copy / "bundle" / "weights.safetensors").read_bytes() == weights
    assert (copy / "test" / "report.html").is_file()
    assert caplog.text.count("Predicting 1 validation case.") == 1


def test_finished_training_explains_how_to_continue(folder, copy, tmp_path, capsys, caplog):
    again = f"model.init_from={copy} run_dir=NEW"
    for other, advice in (
        ([TILE, "trainer.max_steps=40"], " trainer.max_steps=40"),
        ([*STEPS, "loss.gamma=3"], " ("),
    ):
        train(folder / "raw", copy, *other, status=2)
        assert again + advice in capsys.readouterr().err
    advised = [TILE, "trainer.max_steps=2", f"model.init_from={copy}"]
    train(folder / "raw", tmp_path / "new", *advised)
    assert "tensors taken" in caplog.text


def test_prediction_and_evaluation_of_a_bundle_equal_those_of_the_run(folder, tmp_path):
    found, scores = tmp_path / "p q", tmp_path / "s"
    scans, labels = folder / "raw" / "imagesTs", folder / "raw" / "labelsTs"
    # the precision of the run: in bf16, the mask may differ by some voxels
    predict(folder / "run", scans, found, "inference.precision=fp32")
    scan = read_geometry(next(scans.iterdir()))
    assert scan.matches(read_geometry(next(found.glob("*_mask.nii.gz"))), 1e-5)
    again = evaluate(labels, found, scores)
    ours = scores_of(folder / "run" / "test")
    assert again["dice"]["mean"] == pytest.approx(ours["dice"]["mean"])
    assert again["n_true_positive"] == ours["n_true_positive"]
    settings = [f"scores={scores}", f"output={tmp_path}", f"images={scans}", "report.pdf=false"]
    assert run("report", [*settings, f"reference={labels}"]) == 0
    assert "<html" in (tmp_path / "report.html").read_text()


def test_scans_are_compared_with_the_training_scans(folder, tmp_path):
    (case,) = read_csv(folder / "run" / "test" / "cases.csv")
    assert float(case["input_score"]) > 0
    scan = nib.load(next((folder / "raw" / "imagesTs").glob("*.nii.gz")))
    slices = np.asarray(scan.dataobj)[:, :, ::4]
    thick = nib.Nifti1Image(slices, scan.affine @ np.diag([1, 1, 4, 1]))
    nib.save(thick, tmp_path / "thick.nii.gz")
    (row,) = predict(folder / "run", tmp_path / "thick.nii.gz", tmp_path / "p").values()
    assert row["warning"]
    assert float(row["input_score"]) > 1


def test_radiographs_are_trained_and_predicted_on_a_coarser_grid(tmp_path):
    raw = tmp_path / "raw"
    write_xray_phantoms(raw, 6, seed=0, shape=(96, 96), pixel_mm=4.0)
    coarser = "model.tile_shape=[32,32]", "model.spacing_mm=[6,6]"
    run_dir = train(raw, tmp_path / "run", *coarser, "trainer.max_steps=4")
    assert read_json(run_dir / "plan.json")["spacing_mm"] == [6.0, 6.0]
    rows = predict(run_dir, raw / "images", tmp_path / "predicted")
    assert not any("grid" in row["warning"] for row in rows.values())
    masks = [read_volume(path) for path in (tmp_path / "predicted").glob("*_mask.png")]
    assert [mask.geometry.shape for mask in masks] == [(96, 96)] * 6
