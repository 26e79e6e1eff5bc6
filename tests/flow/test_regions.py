"""A dataset whose labels are regions, with ignored voxels: train, predict, evaluate."""

import shutil

import numpy as np
import pytest

from lesionseg.io.text import read_csv
from lesionseg.io.volumes import read_volume
from tests.flow.cases import TILE, evaluate, plan_of, predict, scores_of, train, write_raw

SHAPE = (24, 24, 24)
LABELS = {"background": 0, "whole tumor": [1, 2], "core": 2, "ignore": 3}
SETTINGS = [TILE, "trainer.max_steps=60", "optim.lr=0.02"]
SETTINGS += ["augment=none", "operating_point=score:0.3"]


def draw_ball(centre, radius):
    grid = np.stack(np.indices(SHAPE), axis=-1)
    return np.linalg.norm(grid - centre, axis=-1) <= radius


def write_regions(root):
    """Write bright balls with a brighter core, and ignored bright balls in a corner."""
    rng = np.random.default_rng(0)
    cases = {}
    unsure = draw_ball((20, 20, 20), 3)
    for number in range(5):
        centre = rng.integers(7, 12, size=3)
        whole = draw_ball(centre, 5)
        core = draw_ball(centre + 1, 2.5)
        image = rng.normal(size=SHAPE) + 4 * whole + 4 * core + 8 * unsure + 10
        mask = np.where(unsure, 3, whole.astype(np.uint8) + core)
        cases[f"case{number}"] = "Ts" if number == 4 else "Tr", image, mask
    write_raw(root, LABELS, cases, regions_class_order=[1, 2])


@pytest.fixture(scope="session")
def folder(once):
    def make(folder):
        write_regions(folder / "raw")
        train(folder / "raw", folder / "run", *SETTINGS)
        predict(folder / "run", folder / "raw" / "imagesTs", folder / "predicted")

    return once("regions", make)


def test_regions_are_planned_and_scored_by_name(folder):
    plan = plan_of(folder / "run" / "bundle")
    assert (plan["regions"], plan["label_values"]) == ([[1, 2], [2]], [1, 2])
    for found in (scores_of(folder / "run"), scores_of(folder / "run" / "test")):
        assert found["n_lesions"] == found["n_cases"] == found["n_true_positive"] == 1
        assert list(found["per_label"]) == plan["label_names"] == ["whole tumor", "core"]
        assert found["dice"]["mean"] > 0.3
        assert found["per_label"]["whole tumor"]["dice"]["mean"] == found["dice"]["mean"]
        # the ignored ball is brighter than any lesion, but no false positive
        assert found["n_false_positive"] == 0
        assert found["operating_point"]["score"] == 0.3
    (row,) = read_csv(folder / "run" / "cases.csv")
    assert row["n_lesions_whole_tumor"] == "1"


def test_mask_has_the_values_of_the_dataset(folder):
    mask = read_volume(folder / "predicted" / "case4_mask.nii.gz").array[0]
    truth = read_volume(folder / "raw" / "labelsTs" / "case4.nii.gz").array[0]
    assert set(np.unique(mask)) <= {0, 1, 2}
    assert (mask == 1).any()
    core = (mask == 2) & (truth != 3)
    dice = 2 * (core & (truth == 2)).sum() / (core.sum() + (truth == 2).sum())
    ours = scores_of(folder / "run" / "test")
    assert ours["per_label"]["core"]["dice"]["mean"] == pytest.approx(dice)


@pytest.mark.parametrize("pattern", ["*", "*_mask.nii.gz"], ids=["all files", "bare mask"])
def test_regions_of_a_prediction_and_of_its_bare_mask_are_scored_by_name(folder, tmp_path, pattern):
    (tmp_path / "found").mkdir()
    for file in (folder / "predicted").glob(pattern):
        shutil.copy(file, tmp_path / "found")
    scores = evaluate(folder / "raw", tmp_path / "found", tmp_path / "scores")
    assert scores["per_label"]["core"]["n_cases"] == scores["n_cases"] == scores["n_lesions"]
