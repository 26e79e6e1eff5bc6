"""Photographs in colour in nnU-Net's layout: a picture is a case of three channels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.cli import run
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures of 64 by 48 with a red square each, two of them named by channel."""
    root, rng = tmp_path / "skin", np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for i in range(5):
        pixels, mask = rng.integers(60, 90, (64, 48, 3)), np.zeros((64, 48), np.uint8)
        where = slice(8 * i, 8 * i + 12), slice(10, 24)
        pixels[where], mask[where] = (220, 40 + i, 30), 1
        suffix = "_0000.png" if i < 2 else ".png"
        Image.fromarray(pixels.astype(np.uint8)).save(root / "imagesTr" / f"c{i}{suffix}")
        Image.fromarray(mask).save(root / "labelsTr" / f"c{i}.png")
    names = {"0": "R", "1": "G", "2": "B"}
    content = {"channel_names": names, "labels": {"background": 0, "lesion": 1}}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_pictures_in_colour_are_checked(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"data.root={pictures}", f"run_dir={tmp_path / 'run'}"]
    assert run("prepare", [*where, "check=true", "identifiers=true"]) == 0
    assert "5 cases read, 0 cannot be used" in capsys.readouterr().out
    assert (tmp_path / "run" / "dataset_report.html").is_file()
    dataset = read_dataset(pictures)
    case = read_case(dataset.cases[3], dataset)
    assert case.image.array.shape == (3, 64, 48)
    assert case.image.array[:, 30, 12].tolist() == [220, 43, 30]
    assert case.reference is not None
    assert case.reference.labels is not None
    assert case.reference.labels.sum() == 12 * 14


def test_pictures_in_colour_are_prepared(pictures: Path, tmp_path: Path) -> None:
    where = [f"data.root={pictures}", f"run_dir={tmp_path / 'run'}"]
    assert run("prepare", [*where, "trainer.accelerator=cpu"]) == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert list(plan["channel_names"]) == ["R", "G", "B"]
