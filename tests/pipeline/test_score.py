"""Out-of-fold predictions, as folds would have written them, gathered and scored."""

import json
import re

import numpy as np
import pytest
from torch import nn

from lesionseg.config import DataConfig, InferenceConfig, TrainConfig
from lesionseg.core import Candidate, Prediction
from lesionseg.errors import DatasetError
from lesionseg.evaluation import PRESETS
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.predictions import write_prediction
from lesionseg.ops.components import lesion_instances
from lesionseg.phantoms import write_mri_phantoms, write_xray_phantoms
from lesionseg.pipeline.dataset import divided, folds_of, take_survey
from lesionseg.pipeline.prepare import plan_run
from lesionseg.pipeline.score import (
    labelled,
    match_volumes,
    score_folds,
    score_validation,
    validation_scores,
)
from lesionseg.pipeline.select import unselected
from lesionseg.plan.plan import Plan

CFG = TrainConfig.of()


class Reader:
    """Stands in for a fold's predictor: marks the reference's lesions, and single voxels."""

    def __init__(self, found, rng):
        self.found, self.rng = found, rng

    def predict_volume(self, volume, case):
        files = next(c for c in self.found.dataset.cases if c.case == case)
        reference = read_case(files, self.found.dataset).reference
        instances = lesion_instances(reference.labels).instances.copy()
        n_lesions = int(instances.max())
        empty = np.argwhere(instances == 0)
        for k, voxel in enumerate(self.rng.permutation(empty)[:6], start=1):
            instances[tuple(voxel)] = n_lesions + k
        scores = np.r_[self.rng.uniform(0.4, 0.95, n_lesions), self.rng.uniform(0.05, 0.6, 6)]
        candidates = [
            Candidate(
                i, 1, float(s), (0.0,) * 3, (1.0,) * 3, (0.0,) * 3, 9.0 if i <= n_lesions else 1.0,
                None,
            )
            for i, s in enumerate(scores, start=1)
        ]  # fmt: skip
        ranked = tuple(sorted(candidates, key=lambda c: (-c.score, c.id)))
        return Prediction(case, volume.geometry, ranked, instances)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with what three folds predicted of their validation cases."""
    folder = tmp_path_factory.mktemp("run")
    raw = folder / "raw"
    write_mri_phantoms(raw, 6, seed=0, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    found, folds = folds_in(folder)
    reader = Reader(found, np.random.default_rng(0))
    for number, fold in folds.items():
        for files in labelled(fold, "validation"):
            image = read_case(files, found.dataset).image
            prediction = reader.predict_volume(image, files.case)
            write_prediction(folder / f"fold_{number}" / "validation", prediction)
    return folder


def folds_in(run):
    data = DataConfig.of(root=run / "raw", fold="all", n_folds=3)
    found = take_survey(data, 0)
    return found, {k: divided(found, data, 0, k) for k in folds_of(found, data)}


def test_gathered_predictions_are_accepted_and_calibrated_out_of_fold(run, plan):
    found, folds = folds_in(run)
    before = {p: p.read_bytes() for p in run.glob("fold_*/validation/*")}
    choice, scores = score_folds(found, folds, run, plan, CFG, {})
    first = choice.operating_points[0]
    assert first.chosen_on == "out-of-fold"
    assert first.lesion_recall == scores["lesion_recall"]["value"]
    assert first.false_positives_per_case == scores["false_positives_per_case"]["value"]
    assert list(first.lesion_recall_ci95) == scores["lesion_recall"]["ci95"]
    fit = choice.calibration
    assert fit is not None
    assert fit.fitted_on == "out-of-fold"
    assert scores["calibration"]["of"] == "probability"
    assert scores["calibration"]["reliability"]
    written = json.loads((run / "oof" / "predictions" / "SIM_001_candidates.json").read_text())
    candidates = written["candidates"]
    mine = [c["probability"] for c in candidates]
    assert mine == sorted(mine, reverse=True)
    assert mine != pytest.approx(fit.probability([c["score"] for c in candidates]).tolist())
    assert all(c["accepted"] == (c["score"] >= first.score) for c in candidates)
    assert {p: p.read_bytes() for p in before} == before  # the folds stay as they are
    with pytest.raises(DatasetError, match="more than one fold"):
        score_folds(found, {0: folds[0], 1: folds[0]}, run, plan, CFG, {})


# --- whole volumes while a network is trained ---


def config(tile):
    return TrainConfig.of(trainer={"accelerator": "cpu"}, model={"tile_shape": tile})


class Brightness(nn.Module):
    """Takes what is bright for a lesion."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, image):
        return [2 * image - self.shift]


def test_networks_are_scored_on_whole_radiographs(tmp_path, caplog):
    write_xray_phantoms(
        tmp_path / "raw", 6, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0
    )
    found = take_survey(DataConfig.of(root=tmp_path / "raw"), 0)
    plan = plan_run(found, config((64, 64)), tmp_path / "run")
    cases = labelled(found, "validation")

    def scores(network):
        given = found, cases[:1], plan, InferenceConfig.of(), PRESETS["lesionseg"]
        return validation_scores(match_volumes(network, *given))

    seen = scores(Brightness(3.0))
    assert set(seen) == {"recall_1fp", "dice"}
    assert all(0 <= value <= 1 for value in seen.values())
    assert scores(Brightness(999.0)) == {"recall_1fp": 0.0, "dice": 0.0}
    assert "detects nothing on 1 validation case" in caplog.text


# --- voxels calibrated ---


class Unsure(nn.Module):
    """Takes what is bright for a lesion, but hardly believes it."""

    def forward(self, image):
        return [4 * image - 22.0]


def test_validation_cases_are_predicted_again_by_what_their_voxels_are_worth(tmp_path):
    write_mri_phantoms(
        tmp_path / "raw", 6, seed=0, shape=(24, 28, 24), spacing_mm=(6.0,) * 3, contrast=3.0
    )
    found = take_survey(DataConfig.of(root=tmp_path / "raw", validation_fraction=0.5), 0)
    plan = plan_run(found, config((24, 32, 24)), tmp_path / "run")
    predictor = Predictor.from_network(Unsure(), plan)
    complete, scores = score_validation(predictor, found, tmp_path / "run", CFG, {})
    fit = complete.voxel_calibration
    assert fit is not None
    assert fit.intercept > 1
    assert Plan.from_json(complete.to_json()) == complete
    gain = re.search(r"changes Dice by \+(0\.\d+)", complete.reasons["voxel calibration"])
    assert float(gain[1]) > 0.02
    assert scores["dice"]["mean"] > 0.1
    assert unselected(complete) == plan
