"""Detectors from end to end on tiny data: train, predict, evaluate, report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.core import Geometry, Volume
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms import write_xray_phantoms
from tests.flow.test_end_to_end import SMALL

SETTINGS = [
    *SMALL,
    "trainer.max_steps=4",
    "trainer.ema_decay=null",
    "data.validation_fraction=0.34",
    "augment=none",
]


def train(root: Path, folder: Path, *settings: str) -> dict[str, Any]:
    """The scores on the validation cases."""
    assert run("train", [f"data.root={root}", f"run_dir={folder}", *SETTINGS, *settings]) == 0
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text())
    return scores


def without_drawings(root: Path) -> Path:
    """The same COCO folder with boxes alone."""
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        for key in ("segmentation", "mask_label", "area"):
            annotation.pop(key, None)
    for image in content["images"]:
        image.pop("mask_file", None)
    path.write_text(json.dumps(content))
    return root


def test_radiographs_with_boxes_alone_are_detected_and_judged(tmp_path: Path) -> None:
    """Dice is left out, with the reason, in scores and report; evaluation compares boxes."""
    raw = tmp_path / "raw"
    write_xray_phantoms(raw, 4, seed=1, shape=(64, 64), pixel_mm=5.6, n_nodules=(1, 2))
    without_drawings(raw)
    settings = ["model=retinanet", "model.tile_shape=[64,64]", "report.pdf=false"]
    scores = train(raw, tmp_path / "run", *settings)
    assert scores["dice"]["mean"] is None
    assert "masks to compare" in scores["dice"]["reason"]
    assert scores["n_lesions"] > 0
    assert scores["dice"]["reason"] in (tmp_path / "run" / "report.html").read_text()
    where = [f"bundle={tmp_path / 'run'}", f"input={raw / 'images'}", f"output={tmp_path / 'out'}"]
    assert run("predict", where) == 0
    assert not list((tmp_path / "out").glob("*_mask*"))
    scored = [f"reference={raw}", f"prediction={tmp_path / 'out'}", f"output={tmp_path / 'scored'}"]
    assert run("evaluate", [*scored, "replicates=10"]) == 0
    found = json.loads((tmp_path / "scored" / "scores.json").read_text())
    assert found["n_cases"] == 4
    assert found["dice"]["mean"] is None


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scans of 24³ with a block of each of two labels; MONAI's datalist beside has boxes."""
    root = tmp_path_factory.mktemp("volumes")
    draw = np.random.default_rng(0)
    grid = Geometry.from_spacing((24, 24, 24), (2.0, 2.0, 2.0))
    names = {"background": 0, "core": 1, "spot": 2}
    facts = {"channel_names": {"0": "T1"}, "labels": names, "file_ending": ".nii.gz"}
    entries = []
    for number in range(4):
        image, mask = draw.normal(0, 1, grid.shape), np.zeros(grid.shape, np.uint8)
        mask[4:9, 5:10, 6:11] = 1
        mask[14:18, 15:20, 4:8] = 2
        image += 3 * mask
        name = f"case{number}"
        for folder, end, array in (
            ("raw/imagesTr", "_0000", image.astype(np.float32)),
            ("raw/labelsTr", "", mask),
            ("boxes", "", image.astype(np.float32)),
        ):
            file = root / folder / f"{name}{end}.nii.gz"
            file.parent.mkdir(exist_ok=True, parents=True)
            write_volume(file, Volume(array[None], grid))
        # centre and size in mm, x and y as in DICOM
        boxes = [[-16, -14, 12, 10, 10, 10], [-11, -34, 31, 8, 10, 8]]
        entries.append({"image": f"{name}.nii.gz", "box": boxes, "label": [0, 1]})
    (root / "raw" / "dataset.json").write_text(json.dumps(facts))
    content = {"training": entries}
    (root / "boxes" / "datalist.json").write_text(json.dumps(content))
    return root


def test_two_labels_are_detected_and_outlined_in_volumes(volumes: Path, tmp_path: Path) -> None:
    settings = ["model=retina_unet", "model.tile_shape=[16,16,16]", "report.pdf=false"]
    scores = train(volumes / "raw", tmp_path / "run", *settings)
    assert set(scores["per_label"]) == {"core", "spot"}
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["candidate_rule"]["source"] == "both"
    assert plan["anchors"]["mean_iou"] > 0.5


def test_a_datalist_of_boxes_trains_a_detector_which_has_no_probabilities_of_voxels(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["model=retinanet", "model.tile_shape=[16,16,16]", "report.pdf=false"]
    scores = train(volumes / "boxes", tmp_path / "run", *settings)
    assert scores["n_lesions"] > 0
    assert scores["dice"]["mean"] is None
    where = [f"bundle={tmp_path / 'run'}", f"input={volumes / 'boxes'}", f"output={tmp_path / 'o'}"]
    assert run("predict", [*where, "save_probabilities=float16"]) == 2
    assert "save_probabilities" in capsys.readouterr().err
