"""Voxels' probabilities put right on development cases, and only where outlines gain by it."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lesionseg.core import Calibration, Geometry, Reference
from lesionseg.evaluation import PRESETS
from lesionseg.inference.predictor import Predictor
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline.dataset import DataSettings, take_survey
from lesionseg.pipeline.judging.choice import ChoiceSettings, undecided
from lesionseg.pipeline.judging.judge_role import judge_validation
from lesionseg.pipeline.judging.role_steps import Rules
from lesionseg.pipeline.judging.voxel_calibration import (
    LevelCounts,
    choose_voxel_calibration,
    mean_calibration,
)
from lesionseg.pipeline.train.learning import decide
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.settings import TrainerSettings


def counted(p: np.ndarray, lesion: np.ndarray, group: str = "a") -> LevelCounts:
    counts = LevelCounts(group)
    counts.add(p.astype(np.float32), lesion)
    return counts


def drawn(seed: int, a: float = 0.0, b: float = 1.0) -> LevelCounts:
    """Voxels that are lesion as often as logit p = a + b · what is said."""
    rng = np.random.default_rng(seed)
    said = rng.normal(-3, 0.4, 40_000)
    lesion = rng.random(len(said)) < 1 / (1 + np.exp(-(a + b * said)))
    return counted(1 / (1 + np.exp(-said)), lesion, f"p{seed}")


def test_dice_of_all_voxels_by_hand() -> None:
    counts = counted(np.array([0.9, 0.7, 0.2, 0.01]), np.array([True, False, True, False]))
    assert counts.dice(0.0) == pytest.approx(2 / 4)  # from one half: 2 voxels, 1 of 2 hit
    assert counts.dice(-2.0) == pytest.approx(4 / 5)
    assert np.isnan(counted(np.array([0.5]), np.array([False])).dice(0.0))


def test_what_a_decision_is_shown_is_counted_slab_by_slab_without_what_is_ignored(
    plan: Plan,
) -> None:
    labels = np.zeros((4, 3, 2), np.uint8)
    labels[1:3] = plan.label_values[0]
    ignore = np.zeros(labels.shape, np.bool_)
    ignore[2] = True
    counts = LevelCounts("a")
    geometry = Geometry.from_spacing(labels.shape, (1.0,) * 3)
    watch = counts.watch(Reference(geometry, labels=labels, ignore=ignore), plan)
    slabs = [np.full((1, 3, 2), p, np.float32) for p in (0.1, 0.8, 0.8, 0.1)]
    assert list(watch(0, iter(slabs))) == slabs
    assert (counts.voxels.sum(), counts.lesion.sum()) == (18, 6)
    assert counts.dice(0.0) == 1.0


def test_a_network_that_is_far_too_unsure_is_put_right() -> None:
    fit, why = choose_voxel_calibration([drawn(s, 3.0, 0.8) for s in range(3)], 0.4, "validation")
    assert fit is not None
    assert (fit.intercept, fit.slope) == (pytest.approx(3, abs=0.1), pytest.approx(0.8, abs=0.05))
    assert fit.fitted_on == "validation"
    assert fit.n_true + fit.n_false == 120_000
    assert "+0." in why
    alone, _ = choose_voxel_calibration([drawn(0, 3.0, 0.8)], 0.4, "validation")
    assert alone is not None


def test_probabilities_that_are_right_are_left_alone() -> None:
    fit, why = choose_voxel_calibration([drawn(s) for s in range(3)], 0.4, "validation")
    assert fit is None
    assert why.startswith("none")
    free = counted(np.full(9, 0.1), np.zeros(9, np.bool_))
    assert choose_voxel_calibration([free], 0.4, "validation")[0] is None
    assert choose_voxel_calibration([], 0.4, "validation")[0] is None


def test_the_mean_of_several_networks_takes_those_without_a_fit_as_they_are() -> None:
    assert mean_calibration([None, None]) is None
    mean = mean_calibration([Calibration("platt", 2.0, 0.6, n_true=3), None])
    assert mean is not None
    assert (mean.intercept, mean.slope, mean.n_true) == (1.0, 0.8, 3)


class Unsure(nn.Module):
    """Takes what is bright for a lesion, but hardly believes it."""

    def forward(self, image):  # type: ignore[no-untyped-def]
        return [4 * image - 22.0]


def test_validation_cases_are_predicted_again_by_what_their_voxels_are_worth(
    tmp_path: Path,
) -> None:
    write_mri_phantoms(
        tmp_path / "raw", 6, seed=0, shape=(24, 28, 24), spacing_mm=(6.0,) * 3, contrast=3.0
    )
    found = take_survey(DataSettings(str(tmp_path / "raw"), validation_fraction=0.5), 0)
    trainer = TrainerSettings(max_steps=1, accelerator="cpu")
    plan = decide(found, PlanOverrides(tile_shape=(24, 32, 24)), trainer, tmp_path / "run")
    predictor = Predictor.from_network(Unsure(), plan)
    judged = {}
    for name, asked in (("raw", False), ("calibrated", True)):
        wishes = ChoiceSettings(calibration="none", replicates=10, calibrate_voxels=asked)
        rules = Rules(PRESETS["lesionseg"], wishes, {})
        judged[name] = judge_validation(predictor, found, tmp_path / name, rules)
    raw, calibrated = judged["raw"], judged["calibrated"]
    assert raw is not None
    assert calibrated is not None
    assert raw.choice.voxel_calibration is None
    fit = calibrated.choice.voxel_calibration
    assert fit is not None
    assert fit.intercept > 1
    assert calibrated.scores["dice"]["mean"] > raw.scores["dice"]["mean"]
    complete = calibrated.choice.added_to(plan)
    assert complete.voxel_calibration == fit
    assert Plan.from_json(complete.to_json()) == complete
    assert "Dice of all voxels +" in complete.reasons["voxel calibration"]
    assert undecided(complete) == plan
