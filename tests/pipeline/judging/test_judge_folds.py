"""Out-of-fold predictions, as folds would have written them, gathered and judged."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Candidate, Prediction
from lesionseg.errors import DatasetError
from lesionseg.evaluation import PRESETS
from lesionseg.io.cases import read_case
from lesionseg.io.predictions import write_prediction
from lesionseg.ops.components import lesion_instances
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline.dataset import DataSettings, Survey, divided, folds_of, take_survey
from lesionseg.pipeline.judging.choice import ChoiceSettings, undecided
from lesionseg.pipeline.judging.judge_folds import FoldRun, choose_missing, judge_out_of_fold
from lesionseg.pipeline.judging.role_steps import Rules
from lesionseg.plan.plan import ChannelSet, Plan

RULES = Rules(PRESETS["lesionseg"], ChoiceSettings(replicates=50), {"folds": 3})


class Reader:
    """Stands in for a fold's predictor: marks the reference's lesions, and single voxels."""

    def __init__(self, found: Survey, rng: np.random.Generator) -> None:
        self.found, self.rng = found, rng

    def predict_volume(self, volume, case: str) -> Prediction:  # type: ignore[no-untyped-def]
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
def folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[FoldRun, ...]:
    folder = tmp_path_factory.mktemp("oof")
    raw = folder / "raw"
    write_mri_phantoms(raw, 6, seed=0, shape=(16, 18, 16), spacing_mm=(8.0, 8.0, 8.0))
    data = DataSettings(str(raw), fold="all", n_folds=3)
    found, rng = take_survey(data, 0), np.random.default_rng(0)
    runs = tuple(
        FoldRun(k, divided(found, data, 0, k), folder / f"fold_{k}") for k in folds_of(found, data)
    )
    for fold in runs:
        reader = Reader(found, rng)
        for files in fold.cases:
            image = read_case(files, found.dataset).image
            write_prediction(fold.folder, reader.predict_volume(image, files.case))
    return runs


def test_gathered_predictions_are_accepted_and_calibrated_out_of_fold(
    folds: tuple[FoldRun, ...], tmp_path: Path
) -> None:
    before = {p: p.read_bytes() for fold in folds for p in fold.folder.iterdir()}
    judged = judge_out_of_fold(folds[0].survey, folds, tmp_path, RULES)
    first = judged.choice.points[0]
    assert first.chosen_on == "out-of-fold"
    assert first.lesion_recall == judged.scores["lesion_recall"]["value"]
    assert first.false_positives_per_case == judged.scores["false_positives_per_case"]
    assert list(first.lesion_recall_ci95) == judged.scores["lesion_recall"]["ci95"]
    fit = judged.choice.calibration
    assert fit is not None
    assert fit.fitted_on == "out-of-fold"
    assert len(set(judged.choice.calibration_of.values())) == 3
    assert judged.scores["calibration"]["of"] == "probability"
    assert judged.scores["calibration"]["reliability"]
    written = json.loads((tmp_path / "predictions" / "SIM_001_candidates.json").read_text())
    candidates = written["candidates"]
    fitted = judged.choice.calibration_of["SIM_001"]
    assert [c["probability"] for c in candidates] == pytest.approx(
        fitted.probability([c["score"] for c in candidates]).tolist()
    )
    assert all(c["accepted"] == (c["score"] >= first.score) for c in candidates)
    assert {p: p.read_bytes() for p in before} == before  # the folds stay as they are


def test_a_case_of_two_folds_is_refused(folds: tuple[FoldRun, ...], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="more than one fold"):
        judge_out_of_fold(folds[0].survey, [folds[0], folds[0]], tmp_path, RULES)


def test_what_is_chosen_without_a_channel_follows_the_same_rules(
    folds: tuple[FoldRun, ...], tmp_path: Path, plan: Plan
) -> None:
    """The same predictions stand in for those without FLAIR, without T1 the order is reversed."""
    plan = plan.with_(
        channel_names=("FLAIR", "T1"), channel_sets=(ChannelSet((0,)), ChannelSet((1,)))
    )
    for fold in folds:
        for missing in ((0,), (1,)):
            shutil.copytree(fold.folder, fold.without(missing))
        for path in fold.without((1,)).glob("*_candidates.json"):
            said = json.loads(path.read_text())
            for candidate in said["candidates"]:
                candidate["score"] = 1 - candidate["score"]
            path.write_text(json.dumps(said))
    judged = judge_out_of_fold(folds[0].survey, folds, tmp_path, RULES)
    chosen = choose_missing(plan, folds, RULES)
    same, worse = chosen.channel_sets
    assert same.operating_points == judged.choice.points
    assert same.calibration == judged.choice.calibration
    assert worse.operating_points[0].chosen_on == "out-of-fold"
    recalls = [known.operating_points[0].lesion_recall for known in (worse, same)]
    assert recalls == sorted(recalls)
    assert chosen.reasons["missing channels"].startswith("without FLAIR: fp_per_case:1 accepts")
    assert undecided(chosen) == undecided(plan)
    assert choose_missing(plan.with_(channel_sets=()), folds, RULES).reasons == plan.reasons
