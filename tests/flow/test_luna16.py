"""A miniature of LUNA16 in the challenge's file formats, with `experiment=luna16`."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.flow.cases import TILE, plan_of, scores_of, train

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import luna16_to_manifest

sitk = pytest.importorskip("SimpleITK")

# z, y, x
SHAPE = (24, 32, 32)
SPACING = (1.25, 0.75, 0.75)
ORIGIN = (-190.0, -12.0, -12.0)
SETTINGS = ["experiment=luna16", "trainer.max_steps=40", TILE]
SETTINGS += ["optim.lr=0.01", "augment=none"]


def write_luna(root):
    """Write two subsets of four scans with nodules of 6 mm. One finding is excluded."""
    draw = np.random.default_rng(0)
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    found, excluded = header, header
    grid = np.stack(np.indices(SHAPE), axis=-1) * SPACING + ORIGIN
    for number in range(8):
        scan = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{100 + number}"
        voxels = draw.normal(-820, 30, SHAPE)
        if number < 7:
            z, y, x = np.add((-180.0, -3.0, -2.0), draw.uniform(-2, 2, 3))  # world, LPS
            voxels[np.linalg.norm(grid - (z, y, x), axis=-1) <= 3] = 20
            found += f"{scan},{x},{y},{z},6.0\n"
        if number == 4:
            voxels[np.linalg.norm(grid - (-170.0, 6.0, 6.0), axis=-1) <= 2] = 0
            excluded += f"{scan},6.0,6.0,-170.0,-1\n"
        image = sitk.GetImageFromArray(voxels.astype(np.int16))
        image.SetSpacing(SPACING[::-1])
        image.SetOrigin(ORIGIN[::-1])
        file = root / f"subset{number % 2}" / f"{scan}.mhd"
        file.parent.mkdir(exist_ok=True, parents=True)
        sitk.WriteImage(image, str(file))
    (root / "annotations.csv").write_text(found)
    (root / "annotations_excluded.csv").write_text(excluded)
    luna16_to_manifest.convert(root)


def test_each_subset_is_scored_out_of_fold(tmp_path):
    """All scans count, also without nodules. The excluded finding is neither hit nor miss."""
    write_luna(tmp_path / "luna")
    run_dir = train(tmp_path / "luna", tmp_path / "run", *SETTINGS)
    scores = scores_of(run_dir / "oof")
    assert (scores["preset"], scores["n_cases"], scores["n_lesion_free_cases"]) == ("luna16", 8, 1)
    assert scores["n_lesions"] == 7
    assert scores["froc"]["fp_per_case"] == [0.125, 0.25, 0.5, 1, 2, 4, 8]
    assert scores["cpm"]["value"] > 0.5
    assert plan_of(run_dir)["architecture"]["name"] == "retinanet"
    assert plan_of(run_dir)["anchors"]["mean_iou"] > 0.5
