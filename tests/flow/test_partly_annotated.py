"""Two labels, each looked for in some of the cases alone: train to scores, and scores by hand."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lesionseg.cli import run
from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import write_volume
from tests.commands import evaluate
from tests.flow.test_end_to_end import SMALL

SHAPE = (16, 16, 16)
LESION, CYST = 1, 2
SETTINGS = [*SMALL, "trainer.max_steps=6", "trainer.ema_decay=null", "model.tile_shape=[16,16,16]"]
Places = Mapping[tuple[int, int, int], int]  # corner of a cube of 8 voxels: its label


def cubes(places: Places) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    for corner, label in places.items():
        mask[tuple(slice(a, a + 2) for a in corner)] = label
    return mask


def write(file: Path, array: NDArray[np.generic]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_volume(file, Volume(array[np.newaxis], Geometry.from_spacing(SHAPE, (2.0, 2.0, 2.0))))


def dataset(root: Path, cases: Mapping[str, tuple[str, Places]]) -> Path:
    """A manifest of cases: which labels were looked for, and what was found."""
    rows, rng = ["case,image,reference,annotated"], np.random.default_rng(0)
    for case, (annotated, places) in cases.items():
        mask = cubes(places)
        image = rng.normal(size=SHAPE) + 5 * (mask == LESION) - 5 * (mask == CYST)
        write(root / f"{case}.nii.gz", image.astype(np.float32))
        write(root / f"{case}_mask.nii.gz", mask)
        rows.append(f"{case},{case}.nii.gz,{case}_mask.nii.gz,{annotated}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    (root / "labels.json").write_text('{"1": "lesion", "2": "cyst"}')
    return root


def test_scores_of_what_was_looked_for_by_hand(tmp_path: Path) -> None:
    """B alone annotates both; its lesion is a false positive, all others were not looked for."""
    root = dataset(
        tmp_path / "data",
        {
            "A": ("lesion", {(2, 2, 2): LESION}),
            "B": ("", {(2, 2, 2): CYST}),
            "C": ("cyst", {}),
        },
    )
    predicted: dict[str, Places] = {
        "A": {(2, 2, 2): LESION, (8, 8, 8): CYST, (12, 12, 12): CYST},
        "B": {(2, 2, 2): CYST, (8, 8, 8): LESION},
        "C": {(8, 8, 8): LESION},
    }
    for case, places in predicted.items():
        write(tmp_path / "predicted" / f"{case}_mask.nii.gz", cubes(places))
    scores = evaluate(root, tmp_path / "predicted", tmp_path / "scores", replicates=20).scores
    assert (scores["n_lesions"], scores["n_true_positive"], scores["n_false_positive"]) == (2, 2, 1)
    # two halves of a scan and a whole one; nobody knows whether C is free of lesions
    assert scores["false_positives_per_case"]["value"] == 1 / 2
    assert (scores["n_cases"], scores["n_lesion_free_cases"]) == (3, 0)
    assert scores["dice"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    lesion, cyst = scores["per_label"]["lesion"], scores["per_label"]["cyst"]
    assert [part["n_cases"] for part in (lesion, cyst)] == [2, 2]
    assert [part["false_positives_per_case"]["value"] for part in (lesion, cyst)] == [1 / 2, 0]
    assert [part["lesion_recall"]["value"] for part in (lesion, cyst)] == [1, 1]


@pytest.mark.parametrize(
    "options",
    [["loss=dice_focal"], pytest.param(["model=retina_unet"], marks=pytest.mark.slow)],
)
def test_a_training_on_cases_that_annotate_one_label_each(
    tmp_path: Path, options: list[str]
) -> None:
    cases: dict[str, tuple[str, Places]] = {
        f"c{i}": ("lesion" if i % 2 else "cyst", {(4, 4, 4): LESION, (10, 10, 10): CYST})
        for i in range(6)
    }
    root, folder = dataset(tmp_path / "data", cases), tmp_path / "run"
    assert run("train", [f"data.root={root}", f"run_dir={folder}", *SETTINGS, *options]) == 0
    scores = json.loads((folder / "scores.json").read_text())
    parts = scores["per_label"]
    # the masks hold both, one of which was looked for
    assert scores["n_lesions"] == scores["n_cases"]
    assert sum(part["n_cases"] for part in parts.values()) == scores["n_cases"]
