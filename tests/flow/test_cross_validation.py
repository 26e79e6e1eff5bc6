"""All folds in one command are resumed, scored out of fold, and kept as one ensemble."""

import re
import shutil
from pathlib import Path

import pytest

import lesionseg
from lesionseg.cli import run
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_json
from lesionseg.phantoms import write_mri_phantoms
from tests.flow.cases import HEADS, SMALL, TILE, plan_of, scores_of, train

SETTINGS = [TILE, "data.n_folds=2", "trainer.max_steps=3", "trainer.accelerator=cpu"]
ALL = [*SETTINGS, "data.fold=all"]
WEIGHTS = Path("bundle") / "weights.safetensors"


def write_data(folder):
    write_mri_phantoms(folder / "raw", 5, seed=0, n_test=1, **HEADS)


@pytest.fixture(scope="session")
def folder(once):
    """Train fold 1 separately, like on another machine, and then all folds."""

    def make(folder):
        write_data(folder)
        train(folder / "raw", folder / "cv" / "fold_1", *SETTINGS, "data.fold=1")
        shutil.copytree(folder / "cv" / "fold_1", folder / "separate")
        train(folder / "raw", folder / "cv", *ALL)

    return once("cross_validation", make)


def test_cross_validation_writes_all_documented_files(folder):
    documented = """config.yaml plan.json selection.json splits.json fold_0/bundle fold_1/bundle
        oof/scores.json
        oof/cases.csv oof/lesions.csv oof/candidates.csv report.html test/scores.json
        test/report.html bundle/weights.safetensors bundle/weights_1.safetensors
        bundle/plan.json bundle/selection.json bundle/README.md"""
    assert [name for name in documented.split() if not (folder / "cv" / name).exists()] == []


def test_finished_cross_validation_repeats_nothing(folder, tmp_path, capsys, caplog):
    run_dir = shutil.copytree(folder / "cv", tmp_path / "cv")
    train(folder / "raw", run_dir, *ALL)
    assert "Finished at " in capsys.readouterr().out
    assert not re.search("Predicting|Fold", caplog.text)


def test_each_development_case_is_predicted_once_out_of_fold(folder):
    run_dir = folder / "cv"
    folds = read_json(run_dir / "splits.json")
    held = [case for fold in folds for case in fold["val"]]
    assert sorted(held) == sorted(find_predictions(run_dir / "oof" / "predictions"))
    assert len(set(held)) == 4
    for k, fold in enumerate(folds):
        assert not set(fold["val"]) & set(fold["train"])
        assert set(find_predictions(run_dir / f"fold_{k}" / "validation")) == set(fold["val"])
    scores = scores_of(run_dir / "oof")
    assert (scores["evaluated_on"], scores["n_cases"]) == ("validation", 4)
    assert scores["operating_point"]["chosen_on"] == "out-of-fold"


def test_separately_trained_fold_is_not_changed(folder):
    before = folder / "separate"
    after = folder / "cv" / "fold_1"
    files = [p.relative_to(before) for p in before.rglob("*") if p.is_file()]
    assert files
    assert all((before / f).read_bytes() == (after / f).read_bytes() for f in files)


def test_the_bundle_is_an_ensemble_of_the_folds(folder):
    run_dir = folder / "cv"
    selection = lesionseg.Predictor(run_dir).selection
    assert selection.n_members == 2
    assert {point.chosen_on for point in selection.operating_points} == {"out-of-fold"}
    for k, name in enumerate(("weights", "weights_1")):
        ours = (run_dir / "bundle" / f"{name}.safetensors").read_bytes()
        assert ours == (run_dir / f"fold_{k}" / WEIGHTS).read_bytes()


def test_cross_validation_killed_before_the_last_fold_continues(folder, tmp_path, caplog):
    run_dir = shutil.copytree(folder / "cv", tmp_path / "cv")
    for name in ("bundle", "fold_1/bundle"):
        shutil.rmtree(run_dir / name)
    train(folder / "raw", run_dir, *ALL)
    assert "Fold 0 is finished and kept." in caplog.text
    assert "Fold 1 is finished" not in caplog.text
    before = folder / "cv"  # the plan is not made again on this machine
    assert plan_of(run_dir) == plan_of(before)
    for k in (0, 1):
        name = Path(f"fold_{k}") / WEIGHTS
        assert (run_dir / name).read_bytes() == (before / name).read_bytes()
    assert scores_of(run_dir / "oof")["dice"] == scores_of(before / "oof")["dice"]


def test_fold_with_other_settings_is_refused_by_name(folder, tmp_path, capsys):
    shutil.copytree(folder / "cv" / "fold_1", tmp_path / "cv" / "fold_1")
    train(folder / "raw", tmp_path / "cv", *ALL, "loss.gamma=3", status=2)
    assert re.search(r"fold_1.*loss\.gamma: 1.0 → 3", capsys.readouterr().err)


@pytest.mark.slow
def test_folds_of_a_multirun_are_combined(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Hydra's own folder goes here
    jobs = ["data.fold=0,1", "run_dir=jobs/fold_${data.fold}", *SMALL, *SETTINGS]
    assert run("train", ["-m", f"data.root={folder / 'raw'}", *jobs]) == 0
    assert not Path("jobs/oof").exists()
    train(folder / "raw", Path("jobs"), *ALL)
    for k in (0, 1):
        name = Path(f"fold_{k}") / WEIGHTS
        assert (Path("jobs") / name).read_bytes() == (folder / "cv" / name).read_bytes()
    assert Path("jobs/oof/scores.json").is_file()
