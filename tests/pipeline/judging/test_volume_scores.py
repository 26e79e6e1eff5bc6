"""Recall and Dice of whole validation volumes while a network is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.phantoms import write_xray_phantoms
from lesionseg.pipeline.dataset import DataSettings, take_survey
from lesionseg.pipeline.judging.role_steps import labelled
from lesionseg.pipeline.judging.volume_scores import VolumeJudge, VolumeScores, overlaps
from lesionseg.pipeline.train.learning import decide
from lesionseg.plan.make import PlanOverrides
from lesionseg.training.settings import TrainerSettings

CPU = TrainerSettings(max_steps=1, accelerator="cpu")
GEOMETRY = Geometry((4, 4), np.eye(3))


def candidate(number: int, score: float) -> Candidate:
    return Candidate(number, 1, score, (0.0, 0.0), (1.0, 1.0), (0.0, 0.0), 1.0, None)


def test_dice_at_any_score_is_that_of_the_masks() -> None:
    labels, instances = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.int32)
    labels[0, :3] = 1
    instances[0, 1:3], instances[3, :2] = 2, 1
    ranked = (candidate(2, 0.8), candidate(1, 0.3))
    table = overlaps(
        Reference(GEOMETRY, labels=labels), Prediction("a", GEOMETRY, ranked, instances)
    )
    assert table is not None
    assert table.dice(0.9) == 0
    assert table.dice(0.5) == pytest.approx(2 * 2 / (2 + 3))
    assert table.dice(0.3) == pytest.approx(2 * 2 / (4 + 3))
    ignored = Reference(GEOMETRY, labels=labels, ignore=np.arange(16).reshape(4, 4) >= 12)
    table = overlaps(ignored, Prediction("a", GEOMETRY, ranked, instances))
    assert table is not None
    assert table.dice(0.3) == pytest.approx(2 * 2 / (2 + 3))
    partly = Reference(GEOMETRY, labels=labels, annotated={1: True, 2: False})
    others = (ranked[0], replace(ranked[1], label=2))  # two voxels of what nobody looked for
    table = overlaps(partly, Prediction("a", GEOMETRY, others, instances))
    assert table is not None
    assert table.dice(0.3) == pytest.approx(2 * 2 / (2 + 3))


def test_boxes_without_masks_have_no_dice() -> None:
    reference = Reference(GEOMETRY, labels=np.zeros((4, 4), np.uint8))
    assert overlaps(reference, Prediction("a", GEOMETRY, (candidate(1, 0.5),), None)) is None


class Brightness(nn.Module):
    """Takes what is bright for a lesion."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, image):  # type: ignore[no-untyped-def]
        return [2 * image - self.shift]


def test_networks_are_scored_on_whole_radiographs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_xray_phantoms(
        tmp_path / "raw", 6, seed=3, shape=(64, 64), pixel_mm=4.0, lesion_free_share=0.0
    )
    found = take_survey(DataSettings(str(tmp_path / "raw")), 0)
    plan = decide(found, PlanOverrides(tile_shape=(64, 64)), CPU, tmp_path / "run")
    cases = labelled(found, "validation")
    shown: list[str] = []
    judge = VolumeJudge(
        found,
        cases,
        plan,
        InferenceSettings(),
        PRESETS["lesionseg"],
        1,
        lambda image, reference, prediction: shown.append(prediction.case),
    )
    scores = VolumeScores(judge)
    seen = scores(Brightness(3.0))
    assert shown == [cases[0].case]
    assert set(seen) == {"recall_1fp", "dice"}
    assert all(0 <= value <= 1 for value in seen.values())
    assert scores(Brightness(999.0)) == {"recall_1fp": 0.0, "dice": 0.0}
    assert "Nothing at all is predicted on 1 validation cases" in caplog.text
