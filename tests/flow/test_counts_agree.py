"""Counts from candidates equal counts from the components of the written masks."""

import shutil

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Volume
from lesionseg.inference.candidates import find_candidates
from lesionseg.io.results.case import write_prediction
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.plan.plan import CandidateRule
from tests.flow.cases import FINE_HEADS, TILE, evaluate, predict, train

COUNTS = ("n_true_positive", "n_false_negative", "n_false_positive", "n_lesions")


def counts(scores):
    """Return all counts and rates, and the mean Dice."""
    counted = {name: scores[name] for name in COUNTS if name in scores}
    rates = {name: scores[name]["value"] for name in ("lesion_recall", "false_positives_per_case")}
    return counted | rates | {"dice": scores["dice"]["mean"]}


def copy_bare_masks(predictions, folder):
    """Copy only the masks, like results of another program."""
    folder.mkdir()
    for mask in predictions.glob("*_mask*"):
        shutil.copy(mask, folder / mask.name.replace("_mask", ""))
    return folder


def assert_counts_agree(references, predictions, folder, threshold):
    scores = evaluate(references, predictions, folder / "ours")
    assert scores["operating_point"]["name"] == threshold
    ours = counts(scores)
    bare = counts(
        evaluate(references, copy_bare_masks(predictions, folder / "bare"), folder / "theirs")
    )
    assert ours == pytest.approx(bare)
    return ours


def test_counts_agree_for_an_undertrained_network_on_volumes(tmp_path):
    raw = tmp_path / "raw"
    write_mri_phantoms(raw, 6, seed=3, n_test=2, **FINE_HEADS)
    run_dir = train(raw, tmp_path / "run", TILE, "trainer.max_steps=30", "optim.lr=0.02")
    predict(run_dir, raw / "imagesTs", tmp_path / "out", "operating_point=score:0.1")
    found = assert_counts_agree(raw / "labelsTs", tmp_path / "out", tmp_path, "score:0.1")
    assert found["n_false_positive"] > 0


def test_counts_agree_for_a_thousand_small_lesions(tmp_path):
    shape = (104, 104, 104)
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
    rng = np.random.default_rng(0)
    places = np.stack(np.meshgrid(*[np.arange(4, 100, 9)] * 3, indexing="ij"), -1).reshape(-1, 3)
    rng.shuffle(places)
    lesions = np.zeros(shape, np.uint8)
    p = np.zeros((1, *shape), np.float32)
    for i, (z, y, x) in enumerate(places[:1200]):
        box = slice(z, z + 3), slice(y, y + 3), slice(x, x + 3)
        if i < 1000:
            lesions[box] = 1
        if i >= 100:  # 100 lesions are missed, and 200 objects are not lesions
            p[(0, *box)] = rng.uniform(0.5, 1)
    found = find_candidates(p, geometry, CandidateRule(), (1,), "A")
    write_prediction(tmp_path / "out", found.accept(OperatingPoint("score:0.4", 0.4)))
    (tmp_path / "labels").mkdir()
    write_volume(tmp_path / "labels" / "A.nii.gz", Volume(lesions[None], geometry))
    scores = assert_counts_agree(tmp_path / "labels", tmp_path / "out", tmp_path, "score:0.4")
    assert scores["n_lesions"] == 1000
    assert scores["n_true_positive"] == 900
    assert scores["n_false_positive"] == 200
