"""All folds in one command: resumed, gathered out of fold, kept as one ensemble."""

import json
import shutil
from pathlib import Path

import pytest

import lesionseg
from lesionseg.cli import run
from lesionseg.io.predictions import find_predictions
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.plan import Plan
from tests.flow.test_end_to_end import SMALL

SETTINGS = [
    *SMALL,
    "data.n_folds=2",
    "trainer.max_steps=3",
    "trainer.accelerator=cpu",
    "model.tile_shape=[16,16,16]",
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds") / "raw"
    write_mri_phantoms(folder, 5, seed=0, n_test=1, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    return folder


@pytest.fixture(scope="module")
def cv_run(raw: Path) -> Path:
    """Fold 1 trained alone, as on a machine of its own; then all."""
    folder = raw.parent / "cv"
    one = ["data.fold=1", f"run_dir={folder / 'fold_1'}"]
    assert run("train", [f"data.root={raw}", *one, *SETTINGS]) == 0
    shutil.copytree(folder / "fold_1", raw.parent / "alone")
    assert run("train", [f"data.root={raw}", "data.fold=all", f"run_dir={folder}", *SETTINGS]) == 0
    return folder


def test_a_cross_validation_leaves_everything_that_is_promised(cv_run: Path) -> None:
    promised = """config.yaml plan.json splits.json fold_0/bundle fold_1/bundle oof/scores.json
        fold_0/previews/step_000003.png
        oof/cases.csv oof/lesions.csv oof/candidates.csv oof/report.html test/scores.json
        test/report.html bundle/weights.safetensors bundle/weights_1.safetensors
        bundle/plan.json bundle/model_card.md"""
    assert [name for name in promised.split() if not (cv_run / name).exists()] == []


def test_every_development_case_is_predicted_once_by_a_network_that_never_saw_it(
    cv_run: Path,
) -> None:
    folds = json.loads((cv_run / "splits.json").read_text())
    held = [case for fold in folds for case in fold["val"]]
    assert sorted(held) == sorted(find_predictions(cv_run / "oof" / "predictions"))
    assert len(held) == len(set(held)) == 4
    for k, fold in enumerate(folds):
        assert not set(fold["val"]) & set(fold["train"])
        assert set(find_predictions(cv_run / f"fold_{k}" / "validation")) == set(fold["val"])
    scores = json.loads((cv_run / "oof" / "scores.json").read_text())
    assert (scores["evaluated_on"], scores["n_cases"]) == ("validation", 4)
    assert scores["operating_point"]["chosen_on"] == "out-of-fold"
    assert scores["operating_point"]["optimistic"] is True
    assert "expected_false_positives_per_case" in scores["operating_point"]
    assert scores["provenance"]["folds"] == 2


def test_a_fold_that_was_trained_alone_is_kept_as_it_is(cv_run: Path) -> None:
    before = cv_run.parent / "alone"
    files = [p.relative_to(before) for p in before.rglob("*") if p.is_file()]
    assert files
    assert all((before / f).read_bytes() == (cv_run / "fold_1" / f).read_bytes() for f in files)


def test_the_bundle_is_an_ensemble_of_the_folds(cv_run: Path) -> None:
    plan = Plan.from_json((cv_run / "bundle" / "plan.json").read_text())
    assert plan.n_members == 2
    assert {p.chosen_on for p in plan.operating_points} == {"out-of-fold"}
    for k, name in enumerate(("weights", "weights_1")):
        ours = (cv_run / "bundle" / f"{name}.safetensors").read_bytes()
        assert ours == (cv_run / f"fold_{k}" / "bundle" / "weights.safetensors").read_bytes()
    assert lesionseg.Predictor(cv_run).plan == plan


def test_killed_before_the_last_fold_it_goes_on(
    cv_run: Path, raw: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = (cv_run / "bundle" / "weights_1.safetensors").read_bytes()
    shutil.rmtree(cv_run / "bundle")
    shutil.rmtree(cv_run / "fold_1" / "bundle")
    same = [f"data.root={raw}", "data.fold=all", f"run_dir={cv_run}", *SETTINGS]
    assert run("train", same) == 0
    assert "Fold 0 is finished and kept." in caplog.text
    assert "Fold 1 is finished" not in caplog.text
    assert "the plan is kept" in caplog.text
    assert "Plan, spacing_mm" not in caplog.text  # not made again from this machine
    assert (cv_run / "bundle" / "weights_1.safetensors").read_bytes() == bundle
    assert "out of fold" in capsys.readouterr().out


def test_a_fold_of_other_settings_is_refused_by_name(
    cv_run: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cv_run / "fold_1", tmp_path / "cv" / "fold_1")
    other = [f"data.root={raw}", "data.fold=all", f"run_dir={tmp_path / 'cv'}", *SETTINGS]
    assert run("train", [*other, "loss.gamma=3"]) == 2
    printed = capsys.readouterr().err
    assert "fold_1" in printed
    assert "loss.gamma: 0.0 → 3" in printed


@pytest.mark.slow
def test_folds_as_submitted_jobs_are_gathered_afterwards(
    cv_run: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By submitit on this machine, as on a cluster by SLURM."""
    monkeypatch.chdir(raw.parent)  # Hydra's own folder goes here
    root, launcher = f"data.root={raw}", "hydra/launcher=submitit_local"
    jobs = ["data.fold=0,1", "run_dir=submitted/fold_${data.fold}"]
    assert run("train", ["-m", launcher, root, *jobs, *SETTINGS]) == 0
    assert not (raw.parent / "submitted" / "oof").exists()
    assert run("train", [root, "data.fold=all", "run_dir=submitted", *SETTINGS]) == 0
    for k in (0, 1):
        name = Path(f"fold_{k}") / "bundle" / "weights.safetensors"
        ours = (raw.parent / "submitted" / name).read_bytes()
        assert ours == (cv_run / name).read_bytes()
    assert (raw.parent / "submitted" / "oof" / "scores.json").is_file()
