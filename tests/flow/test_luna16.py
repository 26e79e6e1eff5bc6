"""A miniature of LUNA16 in the challenge's own files, through `experiment=luna16`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lesionseg.cli import run
from tests.flow.test_end_to_end import SMALL

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import luna16_to_manifest

sitk = pytest.importorskip("SimpleITK")

SHAPE, SPACING, ORIGIN = (24, 32, 32), (1.25, 0.75, 0.75), (-190.0, -12.0, -12.0)  # z, y, x
SETTINGS = [
    *SMALL,
    "trainer.max_steps=40",
    "trainer.ema_decay=null",
    "model.tile_shape=[16,16,16]",
    "optim.lr=0.01",
    "augment=none",
]


@pytest.fixture(scope="module")
def luna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subsets of four scans each: nodules of 6 mm, one excluded finding, one scan without."""
    root = tmp_path_factory.mktemp("luna16")
    draw = np.random.default_rng(0)
    tables = {name: ["seriesuid,coordX,coordY,coordZ,diameter_mm"] for name in ("", "_excluded")}
    grid = np.stack(np.indices(SHAPE), axis=-1) * SPACING + ORIGIN
    for number in range(8):
        scan = f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{100 + number}"
        voxels = draw.normal(-820, 30, SHAPE)
        places = [(-180.0, -3.0, -2.0)] if number < 7 else []  # z, y, x of the world, LPS
        for centre in places:
            centre = tuple(np.add(centre, draw.uniform(-2, 2, 3)))
            voxels[np.linalg.norm(grid - centre, axis=-1) <= 3] = 20
            z, y, x = centre
            tables[""].append(f"{scan},{x},{y},{z},6.0")
        if number == 4:
            voxels[np.linalg.norm(grid - (-170.0, 6.0, 6.0), axis=-1) <= 2] = 0
            tables["_excluded"].append(f"{scan},6.0,6.0,-170.0,-1")
        image = sitk.GetImageFromArray(voxels.astype(np.int16))
        image.SetSpacing(SPACING[::-1])
        image.SetOrigin(ORIGIN[::-1])
        file = root / f"subset{number % 2}" / f"{scan}.mhd"
        file.parent.mkdir(exist_ok=True)
        sitk.WriteImage(image, str(file))
        assert file.with_suffix(".raw").is_file()
    for name, lines in tables.items():
        (root / f"annotations{name}.csv").write_text("\n".join(lines) + "\n")
    luna16_to_manifest.convert(root)
    return root


def test_every_subset_is_predicted_by_a_network_that_never_saw_it(
    luna: Path, tmp_path: Path
) -> None:
    """All scans count, that without a nodule too; the excluded finding is neither hit nor miss."""
    where = ["experiment=luna16", f"data.root={luna}", f"run_dir={tmp_path / 'run'}"]
    assert run("train", [*where, *SETTINGS]) == 0
    scores = json.loads((tmp_path / "run" / "oof" / "scores.json").read_text())
    assert (scores["preset"], scores["n_cases"], scores["n_lesion_free_cases"]) == ("luna16", 8, 1)
    assert scores["n_lesions"] == 7
    assert scores["froc"]["fp_per_case"] == [0.125, 0.25, 0.5, 1, 2, 4, 8]
    assert scores["cpm"]["value"] > 0.5
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["architecture"]["name"] == "retinanet"
    assert plan["anchors"]["mean_iou"] > 0.5
