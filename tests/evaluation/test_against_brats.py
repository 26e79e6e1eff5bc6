"""The preset `brats` compared with the package BraTS-evaluation, which `make brats` installs."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Reference, Volume
from lesionseg.evaluation import PRESETS
from lesionseg.io import write_volume
from lesionseg.ops.components import unscored_prediction
from tests.evaluation.hand_cases import evaluate_case
from tests.grids import unit_grid

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("LESIONSEG_BRATS", ROOT / ".brats")) / "bin" / "python"
SHAPE = (24, 28, 26)
# the regions of the package's settings `mets`, made of the labels of BraTS-METS
REGIONS = {"wt": [1, 2, 3], "tc": [1, 3], "et": [3], "rc": [4]}


def draw(rng, n):
    """Return a mask of the labels 1 to 4: `n` boxes, many of which touch."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    for _ in range(n):
        start = rng.integers(0, np.array(SHAPE) - 6)
        stop = start + rng.integers(1, 8, 3)
        mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = rng.integers(1, 5)
    return mask


def make_masks(seed):
    """Return a reference, and a prediction: the shifted reference with holes and further boxes."""
    rng = np.random.default_rng(seed)
    reference = draw(rng, 14)
    prediction = np.where(rng.random(SHAPE) > 0.2, np.roll(reference, 1, axis=2), 0)
    extra = draw(rng, 4)
    return reference, np.where(extra > 0, extra, prediction).astype(np.uint8)


def score_by_package(folder, geometry, prediction, reference):
    """Return the numbers of each region from the package."""
    paths = []
    for name, mask in (("prediction", prediction), ("reference", reference)):
        paths.append(folder / f"{name}.nii.gz")
        write_volume(paths[-1], Volume(mask[np.newaxis], geometry))
    script = ROOT / "benchmarks" / "peers" / "brats.py"
    done = subprocess.run([PYTHON, script, *paths], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("seed", range(6))
def test_counts_and_dice_are_those_of_the_package(seed, tmp_path):
    if not PYTHON.exists():
        pytest.skip("the package is not installed; make brats")
    geometry = unit_grid(*SHAPE)
    reference, prediction = make_masks(seed)
    expected = score_by_package(tmp_path, geometry, prediction, reference)
    assert set(expected) == set(REGIONS)
    for region, labels in REGIONS.items():
        truth = Reference(geometry, labels=np.isin(reference, labels).astype(np.uint8))
        drawn = np.isin(prediction, labels).astype(np.uint8)
        given = unscored_prediction("a", geometry, drawn, None)
        found = evaluate_case(truth, given, PRESETS["brats"], case="a")
        of_package = expected[region]
        counts = (found.n_detected, found.n_false_positive, found.n_missed)
        assert counts == (of_package["tp"], of_package["fp"], of_package["fn"])
        ious = [lesion.iou for lesion in found.lesions if lesion.detected]
        dice = np.mean([2 * iou / (1 + iou) for iou in ious])
        assert dice == pytest.approx(of_package["sq_dsc"], abs=1e-6)
