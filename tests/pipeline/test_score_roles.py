"""Out-of-fold predictions are gathered and scored as if the folds had written them."""

import re

import numpy as np
import pytest
from torch import nn

from lesionseg.config import DataConfig, TrainConfig
from lesionseg.core import Selection
from lesionseg.evaluation import SummarySettings
from lesionseg.evaluation.curves import froc
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.results.case import write_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_json
from lesionseg.ops.components import lesion_instances
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms
from lesionseg.pipeline.dataset_inspection import (
    folds_of,
    inspect_dataset,
    labelled_cases,
    with_fold,
)
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import plan_run
from lesionseg.pipeline.score_cases import score_cases
from lesionseg.pipeline.score_roles import (
    _score_error,
    score_folds,
    score_role,
    score_validation,
    validation_scores,
)
from tests.evaluation.hand_cases import prediction_of, result, tables_of
from tests.flow.cases import HEADS

CFG = TrainConfig.of()


def make_prediction(files, dataset, rng):
    """Return a case's reference lesions and six single voxels with lower scores."""
    case = read_case(files, dataset)
    instances = lesion_instances(case.reference.labels)[0].copy()
    n_lesions = int(instances.max())
    for k, voxel in enumerate(rng.permutation(np.argwhere(instances == 0))[:6], start=1):
        instances[tuple(voxel)] = n_lesions + k
    scores = np.r_[rng.uniform(0.4, 0.95, n_lesions), rng.uniform(0.05, 0.6, 6)].tolist()
    return prediction_of(instances, scores, case.image.geometry, case=files.case)


def test_gathered_predictions_are_accepted_and_calibrated_out_of_fold(tmp_path, rng):
    """Write the predictions of three folds for their validation cases."""
    run = tmp_path / "run"
    write_mri_phantoms(tmp_path / "raw", 6, seed=0, **HEADS)
    data = DataConfig.of(root=tmp_path / "raw", fold="all", n_folds=3)
    found = inspect_dataset(data, 0)
    of_fold = {k: data.model_copy(update={"fold": k}) for k in folds_of(found, data)}
    folds = {k: with_fold(found, settings, 0) for k, settings in of_fold.items()}
    for number, fold in folds.items():
        for files in labelled_cases(fold, "validation"):
            prediction = make_prediction(files, found.dataset, rng)
            write_prediction(run / f"fold_{number}" / "validation", prediction)
    before = {p: p.read_bytes() for p in run.glob("fold_*/validation/*")}
    choice, scores = score_folds(Experiment(CFG, found, run), folds, Selection())
    first = choice.operating_points[0]
    assert first.chosen_on == "out-of-fold"
    assert first.lesion_recall == scores["lesion_recall"].value
    assert first.false_positives_per_case == scores["false_positives_per_case"].value
    assert first.lesion_recall_ci95 == scores["lesion_recall"].ci95
    fit = choice.calibration
    assert fit is not None
    assert fit.fitted_on == "out-of-fold"
    assert {point.subset for point in scores.curve("true_share")} == {"probability"}
    written = read_json(run / "oof" / "predictions" / "SIM_001_candidates.json")
    candidates = written["candidates"]
    mine = [c["probability"] for c in candidates]
    assert mine == sorted(mine, reverse=True)
    assert mine != pytest.approx(fit.probability([c["score"] for c in candidates]).tolist())
    assert all(c["accepted"] == (c["score"] >= first.score) for c in candidates)
    assert {p: p.read_bytes() for p in before} == before  # the folders of the folds are unchanged


# --- whole volumes ---


class Brightness(nn.Module):
    """A network that detects bright voxels. Its logit is `gain` times the image minus `shift`."""

    def __init__(self, gain, shift):
        super().__init__()
        self.gain = gain
        self.shift = shift

    def forward(self, image):
        return [self.gain * image - self.shift]


def make_experiment(found, tile, run):
    """Return an experiment on the CPU and its plan."""
    cfg = TrainConfig.of(trainer={"accelerator": "cpu"}, model={"tile_shape": tile})
    experiment = Experiment(cfg, found, run)
    return experiment, plan_run(experiment)


@pytest.fixture
def radiographs(tmp_path):
    """Return an experiment on the CPU with simulated radiographs, and its plan."""
    raw = tmp_path / "raw"
    write_xray_phantoms(raw, 6, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0)
    return make_experiment(inspect_dataset(DataConfig.of(root=raw), 0), (64, 64), tmp_path / "run")


def test_networks_are_scored_on_whole_radiographs(radiographs, caplog):
    experiment, plan = radiographs
    cases = experiment.cases("validation")[:1]

    def scores(shift):
        return validation_scores(Brightness(2, shift), experiment, cases, plan)

    seen = scores(3.0)
    assert np.isnan(seen.pop("score_error"))  # of a single patient
    assert seen.pop("score") == seen["recall_1fp"] + seen["dice"]
    assert all(0 <= value <= 1 for value in seen.values())
    nothing = scores(999.0)
    del nothing["score_error"]
    assert nothing == {"recall_1fp": 0.0, "dice": 0.0, "score": 0.0}
    assert "detects nothing on 1 validation case" in caplog.text


def test_predictions_of_a_network_are_scored_like_their_files(radiographs, tmp_path):
    experiment, plan = radiographs
    score_role(Predictor(Bundle((Brightness(2, 3.0),), plan)), experiment, "validation")
    folder = experiment.run / "validation"
    predictions = find_predictions(folder / "predictions")
    cases = experiment.cases("validation")
    scored = score_cases(cases, predictions, experiment.match_options)
    labels = experiment.inspection.dataset.labels.lesion_names
    settings = SummarySettings(evaluated_on="validation", labels=labels)
    scored.evaluate(settings).write(tmp_path / "again")
    for table in ("lesions.csv", "candidates.csv"):
        again = (tmp_path / "again" / table).read_text()
        assert again.count("\n") > 1
        assert again == (folder / table).read_text()


def test_score_error_is_that_of_the_sum_of_recall_and_dice():
    """Ten patients with one lesion each. Dice equals 1 if it is found, otherwise 0."""

    def error_of(found_dice, missed_dice):
        found = [result(f"c{i}", detected_at=[0.9], dice=found_dice) for i in range(5)]
        missed = [result(f"c{i}", detected_at=[None], dice=missed_dice) for i in range(5, 10)]
        tables = tables_of([*found, *missed])
        return _score_error(tables, froc(tables, [1.0]))

    error = error_of(1.0, 0.0)
    assert error == pytest.approx(2 * (0.25 / 10) ** 0.5, rel=0.15)
    assert error_of(None, None) == pytest.approx(error / 2)


def test_voxel_calibration_is_fitted_and_improves_dice(tmp_path):
    write_mri_phantoms(
        tmp_path / "raw", 6, seed=0, shape=(24, 28, 24), spacing_mm=(6.0,) * 3, contrast=3.0
    )
    found = inspect_dataset(DataConfig.of(root=tmp_path / "raw", validation_fraction=0.5), 0)
    experiment, plan = make_experiment(found, (24, 32, 24), tmp_path / "run")
    unsure = Predictor(Bundle((Brightness(4, 22.0),), plan))  # low probabilities in lesions
    complete, scores = score_validation(unsure, experiment)
    fit = complete.voxel_calibration
    assert fit is not None
    assert fit.intercept > 1
    assert Selection.from_json(complete.to_json()) == complete
    gain = re.search(r"changes Dice by \+(0\.\d+)", complete.reasons["voxel calibration"])
    assert float(gain[1]) > 0.02
    assert scores["dice"].value > 0.1
