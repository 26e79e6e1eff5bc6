"""What a detector, or only another network, can do: refused before anything is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from lesionseg.cli import compose, run
from lesionseg.losses import CrossEntropyLoss, DetectionLoss, DiceFocalLoss, FocalLoss
from lesionseg.pipeline.dataset.capabilities import warn_of_unused_loss


def boxed(root: Path, *, masks: bool = False, box: tuple[float, ...] = (8, 10, 9, 8)) -> Path:
    """Four radiographs of 32 by 32 with a bright square each, as COCO boxes; one is lesion-free."""
    (root / "images").mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    draw = np.random.default_rng(0)
    for number in range(4):
        pixels = draw.normal(90, 12, (32, 32))
        if number:
            x, y, width, height = box
            pixels[10:18, 8:17] += 110
            square = [x, y, x + width, y, x + width, y + height, x, y + height]
            drawn = {"segmentation": [square]} if masks else {}
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [*box], **drawn}
            )
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            root / "images" / f"{number}.png"
        )
    images = [{"id": i, "file_name": f"{i}.png", "width": 32, "height": 32} for i in range(4)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "n"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("model", ["unet", "retina_unet"])
def test_boxes_alone_teach_no_voxels(
    command: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, folder = boxed(tmp_path / "raw"), tmp_path / "run"
    assert run(command, [f"data.root={root}", f"run_dir={folder}", f"model={model}"]) == 1
    told = capsys.readouterr().err
    assert "boxes" in told
    assert "1: lesion 1" in told
    assert "model=retinanet" in told
    assert not folder.exists()


def test_a_box_outside_names_case_and_lesion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = boxed(tmp_path / "raw", box=(40, 40, 5, 5))
    assert run("train", [f"data.root={root}", f"run_dir={tmp_path / 'run'}"]) == 1
    told = capsys.readouterr().err
    assert "box of lesion 1 lies outside its image" in told
    assert all(f"(in {case})" in told for case in "123")


@pytest.mark.parametrize(
    ("model", "loss", "said"),
    [
        ("retinanet", CrossEntropyLoss(), True),
        ("retinanet", FocalLoss(gamma=3.0), True),
        ("retinanet", DiceFocalLoss(alpha=0.5, gamma=0.0), False),  # the default
        ("retina_unet", CrossEntropyLoss(), False),
        ("unet", CrossEntropyLoss(), False),
    ],
)
def test_a_loss_that_teaches_nothing_is_told(
    model: str, loss: nn.Module, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_unused_loss(model, loss, DetectionLoss())
    assert ("detection.gamma=2.0" in caplog.text) == said


def test_the_default_loss_of_the_configuration_was_not_chosen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = compose("train", ["data.root=x", "model=retinanet"])
    loss, detection = (instantiate(cfg[name], _convert_="all") for name in ("loss", "detection"))
    warn_of_unused_loss("retinanet", loss, detection)
    assert caplog.text == ""
    assert (detection.alpha, detection.gamma) == (0.25, 2.0)
