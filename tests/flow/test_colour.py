"""Colour photographs in nnU-Net's layout: a picture is a case of three channels."""

import numpy as np
from PIL import Image

from tests.flow.cases import plan_of, predict, train
from tests.inference.nnunet.probability_files import write_labels
from tests.pipeline.cases import boxes, write_array


def write_pictures(root):
    """Write five pictures of 64 by 48 with a red square each. Two are named by channel."""
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(60, 90, (64, 48, 3)).astype(np.uint8)
        mask = boxes((64, 48), (8 * i, 10, 12))
        pixels[mask > 0] = (220, 40 + i, 30)
        write_array(root / "labelsTr" / f"c{i}.png", mask)
        (root / "imagesTr").mkdir(exist_ok=True)
        suffix = "_0000.png" if i < 2 else ".png"
        Image.fromarray(pixels).save(root / "imagesTr" / f"c{i}{suffix}")
    names = {"0": "R", "1": "G", "2": "B"}
    write_labels(root, {"background": 0, "lesion": 1}, channel_names=names, file_ending=".png")


def test_colour_pictures_are_trained_on_and_predicted(tmp_path):
    raw = tmp_path / "skin"
    write_pictures(raw)
    run_dir = train(raw, tmp_path / "run", "model.tile_shape=[32,32]", "trainer.max_steps=2")
    assert plan_of(run_dir)["channel_names"] == ["R", "G", "B"]
    rows = predict(run_dir, raw / "imagesTr", tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["done"] * 5
