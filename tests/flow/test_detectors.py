"""Detectors from end to end on tiny data: train, predict, evaluate, report."""

import numpy as np
import pytest
import yaml

from lesionseg.io.text import read_json, write_json
from lesionseg.phantoms import write_xray_phantoms
from tests.flow.cases import TILE, evaluate, plan_of, predict, scores_of, train, write, write_raw

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
    scores = scores_of(train(raw, tmp_path / "run", *SETTINGS, "model.tile_shape=[64,64]"))
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["architecture"] == "retinanet"  # as `model=auto` chose it
    assert scores["n_lesions"] > 0
    assert scores["dice"]["mean"] is None
    assert scores["dice"]["reason"] in (tmp_path / "run" / "report.html").read_text()
    predict(tmp_path / "run", raw / "images", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*_mask*"))
    found = evaluate(raw, tmp_path / "out", tmp_path / "scored")
    assert (found["n_cases"], found["dice"]["mean"]) == (4, None)


@pytest.fixture
def volumes():
    """Return four scans of 24³ with a block of each of two labels, and boxes in MONAI's format."""
    draw = np.random.default_rng(0)
    cases = {}
    for number in range(4):
        mask = np.zeros((24, 24, 24), np.uint8)
        mask[4:9, 5:10, 6:11] = 1
        mask[14:18, 15:20, 4:8] = 2
        cases[f"case{number}"] = "Tr", draw.normal(0, 1, mask.shape) + 3 * mask, mask
    # centre and size in mm; x and y like in DICOM
    return cases, [[-16, -14, 12, 10, 10, 10], [-11, -34, 31, 8, 10, 8]]


def test_two_labels_are_detected_and_outlined_in_volumes(volumes, tmp_path):
    write_raw(tmp_path / "raw", {"background": 0, "core": 1, "spot": 2}, volumes[0])
    run_dir = train(tmp_path / "raw", tmp_path / "run", *SETTINGS, "model=retina_unet", TILE)
    assert set(scores_of(run_dir)["per_label"]) == {"core", "spot"}
    assert plan_of(run_dir)["candidate_rule"]["source"] == "both"
    assert plan_of(run_dir)["anchors"]["mean_iou"] > 0.5


def test_detector_of_a_datalist_of_boxes_refuses_to_save_probabilities(volumes, tmp_path, capsys):
    (cases, boxes) = volumes
    root = tmp_path / "boxes"
    entries = []
    for name, (_, image, _) in cases.items():
        write(root / f"{name}.nii.gz", image.astype(np.float32))
        entries.append({"image": f"{name}.nii.gz", "box": boxes, "label": [0, 1]})
    write_json(root / "datalist.json", {"training": entries})
    run_dir = train(root, tmp_path / "run", *SETTINGS, TILE)
    scores = scores_of(run_dir)
    assert scores["n_lesions"] > 0
    assert scores["dice"]["mean"] is None
    predict(run_dir, root, tmp_path / "out", "save_probabilities=float16", status=2)
    assert "save_probabilities" in capsys.readouterr().err
