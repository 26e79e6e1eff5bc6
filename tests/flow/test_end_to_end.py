"""End to end on toy files by the command line: train, resume, predict, evaluate, report."""

import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.io.files import read_csv
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms
from tests.flow.cases import TILE, evaluate, predict, scores_of, train

STEPS = [TILE, "trainer.max_steps=20"]


@pytest.fixture(scope="session")
def folder(once):
    """A finished run of 20 steps on seven small phantoms, one of them in the test role."""

    def make(folder):
        grid = {"shape": (32, 40, 32), "spacing_mm": (4.0, 4.0, 4.0)}
        write_mri_phantoms(folder / "raw", 7, seed=0, n_test=1, **grid)
        train(folder / "raw", folder / "run", *STEPS)

    return once("end_to_end", make)


def test_a_run_leaves_everything_that_is_promised(folder):
    promised = """config.yaml fingerprint.json plan.json selection.json splits.json
        checkpoints/last.ckpt
        train.log metrics.csv validation
        scores.json cases.csv lesions.csv candidates.csv report.html
        bundle/weights.safetensors bundle/plan.json bundle/selection.json bundle/model_card.md
        test/scores.json test/cases.csv test/lesions.csv test/candidates.csv test/report.html"""
    assert [name for name in promised.split() if not (folder / "run" / name).exists()] == []
    names = [p.name.lower() for p in (folder / "run").rglob("*")]
    assert [name for name in names if "tmp" in name or "partial" in name] == []


def test_scores_say_what_they_were_computed_on(folder):
    validation, test = (scores_of(folder / name) for name in ("run", "run/test"))
    assert (validation["evaluated_on"], test["evaluated_on"]) == ("validation", "test")
    assert validation["operating_point"]["optimistic"] is True
    assert test["operating_point"]["score"] == validation["operating_point"]["score"]
    assert validation["provenance"]["simulated"] is True
    assert {"seed", "git_commit", "data_sha256", "packages"} <= set(validation["provenance"])
    rows = read_csv(folder / "run" / "metrics.csv")
    p = [float(row["p/lesion"]) for row in rows if row["p/lesion"]]
    assert p[-1] > p[0]


def states(folder):
    """Return the time of change of every file of results, logs excepted."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".log")
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in files}


def test_a_finished_training_says_so_and_repeats_nothing(folder, tmp_path, capsys, caplog):
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    before = states(copy)
    train(folder / "raw", copy, *STEPS)
    assert states(copy) == before
    printed = capsys.readouterr().out
    assert re.search(r"Finished at \d{4}-\d\d-\d\d \d\d:\d\d", printed)
    assert f"Open:    {copy / 'test' / 'report.html'}" in printed
    assert f"model.init_from={copy} run_dir=NEW" in printed
    assert "Predicting" not in caplog.text


def test_other_settings_of_the_report_draw_it_again_without_predictions(folder, tmp_path, caplog):
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    assert "SIM_006" not in (copy / "test" / "report.html").read_text()
    train(folder / "raw", copy, *STEPS, "report.identifiers=true")
    assert "SIM_006" in (copy / "test" / "report.html").read_text()
    assert "Predicting" not in caplog.text


def test_a_finished_training_is_completed_if_something_is_missing(folder, tmp_path, caplog):
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    shutil.rmtree(copy / "test")
    weights = (copy / "bundle" / "weights.safetensors").read_bytes()
    train(folder / "raw", copy, *STEPS)
    assert (copy / "bundle" / "weights.safetensors").read_bytes() == weights
    assert (copy / "test" / "report.html").is_file()
    assert caplog.text.count("Predicting 1 validation case.") == 1


def test_a_finished_training_explains_how_to_train_further(folder, tmp_path, capsys):
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    train(folder / "raw", copy, TILE, "trainer.max_steps=40", status=2)
    said = capsys.readouterr().err
    assert "trainer.max_steps: 20 → 40" in said
    assert f"model.init_from={copy} run_dir=NEW trainer.max_steps=40" in said
    train(folder / "raw", copy, *STEPS, "loss.gamma=3", status=2)
    said = capsys.readouterr().err
    assert "loss.gamma: 1.0 → 3" in said
    assert f"model.init_from={copy} run_dir=NEW (" in said
    further = [TILE, "trainer.max_steps=2", f"model.init_from={copy}"]  # what was advised works
    train(folder / "raw", tmp_path / "new", *further)


def test_predict_evaluate_and_report_follow(folder, tmp_path):
    scans, labels = folder / "raw" / "imagesTs", folder / "raw" / "labelsTs"
    predict(folder / "run", scans, tmp_path / "p q")
    scan = nib.load(next(scans.glob("*.nii.gz")))
    mask = nib.load(next((tmp_path / "p q").glob("*_mask.nii.gz")))
    assert mask.shape == scan.shape
    assert np.abs(mask.affine - scan.affine).max() <= 1e-5
    again = evaluate(labels, tmp_path / "p q", tmp_path / "s")
    ours = scores_of(folder / "run" / "test")
    assert again["dice"]["mean"] == pytest.approx(ours["dice"]["mean"])
    assert again["n_true_positive"] == ours["n_true_positive"]
    told = [f"scores={tmp_path / 's'}", f"output={tmp_path}", f"images={scans}"]
    assert run("report", [*told, f"reference={labels}"]) == 0
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


def test_the_same_run_in_two_dimensions_on_a_coarser_grid(tmp_path):
    raw, output = tmp_path / "raw", tmp_path / "predicted"
    write_xray_phantoms(raw, 6, seed=0, shape=(96, 96), pixel_mm=4.0)
    coarser = "model.tile_shape=[32,32]", "model.spacing_mm=[6,6]"
    run_dir = train(raw, tmp_path / "run", *coarser, "trainer.max_steps=4")
    assert (run_dir / "report.html").is_file()
    rows = predict(run_dir, raw / "images", output)
    assert len(list(output.glob("*_mask.png"))) == 6
    assert not [row for row in rows.values() if "grid" in row["warning"]]  # as large as in training
