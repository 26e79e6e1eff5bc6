"""Detectors from end to end on tiny data: train, predict, evaluate, report."""

import numpy as np
import pytest

from lesionseg.io.text import read_json, write_json
from lesionseg.phantoms import write_xray_phantoms
from tests.flow.cases import TILE, evaluate, plan_of, predict, scores_of, train, write, write_raw
from tests.pipeline.cases import boxes

SETTINGS = ["trainer.max_steps=4", "augment=none"]
SETTINGS += ["data.validation_fraction=0.34"]


def test_radiographs_with_only_boxes_are_detected_and_scored(tmp_path):
    """Dice is missing with a reason in scores and report. The evaluation compares boxes."""
    raw = tmp_path / "raw"
    write_xray_phantoms(raw, 4, seed=1, shape=(64, 64), pixel_mm=5.6, n_nodules=(1, 2))
    content = read_json(raw / "annotations.json")
    for entry in (*content["annotations"], *content["images"]):
        for drawing in ("segmentation", "mask_label", "area", "mask_file"):
            entry.pop(drawing, None)
    write_json(raw / "annotations.json", content)
    run_dir = train(raw, tmp_path / "run", *SETTINGS, "model.tile_shape=[64,64]")
    assert plan_of(run_dir)["architecture"]["name"] == "retinanet"  # as `model=auto` chose it
    scores = scores_of(run_dir)
    assert scores["n_lesions"] > 0
    assert scores["dice"]["reason"] in (run_dir / "report.html").read_text()
    predict(run_dir, raw / "images", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*_mask*"))
    found = evaluate(raw, tmp_path / "out", tmp_path / "scored")
    assert (found["n_cases"], found["dice"]["mean"]) == (4, None)


@pytest.fixture
def volumes():
    """Return four scans of 24³ with a cube of each of two labels."""
    draw = np.random.default_rng(0)
    mask = boxes((24, 24, 24), (4, 5, 6, 5)) + 2 * boxes((24, 24, 24), (14, 15, 4, 4))
    return {f"case{n}": ("Tr", draw.normal(0, 1, mask.shape) + 3 * mask, mask) for n in range(4)}


def test_two_labels_are_detected_and_outlined_in_volumes(volumes, tmp_path):
    write_raw(tmp_path / "raw", {"background": 0, "core": 1, "spot": 2}, volumes)
    run_dir = train(tmp_path / "raw", tmp_path / "run", *SETTINGS, "model=retina_unet", TILE)
    assert set(scores_of(run_dir)["per_label"]) == {"core", "spot"}
    assert plan_of(run_dir)["candidate_rule"]["source"] == "both"
    assert plan_of(run_dir)["anchors"]["mean_iou"] > 0.5


def test_detector_of_a_datalist_of_boxes_refuses_to_save_probabilities(volumes, tmp_path, capsys):
    root = tmp_path / "boxes"
    # MONAI's format: centre and size in mm; x and y like in DICOM
    listed = {"box": [[-16, -14, 12, 10, 10, 10], [-11, -33, 31, 8, 8, 8]], "label": [0, 1]}
    entries = []
    for name, (_, image, _) in volumes.items():
        write(root / f"{name}.nii.gz", image.astype(np.float32))
        entries.append({"image": f"{name}.nii.gz", **listed})
    write_json(root / "datalist.json", {"training": entries})
    run_dir = train(root, tmp_path / "run", *SETTINGS, TILE)
    assert scores_of(run_dir)["n_lesions"] > 0
    predict(run_dir, root, tmp_path / "out", "save_probabilities=float16", status=2)
    assert "save_probabilities" in capsys.readouterr().err
