"""Sizes measured at the detector are called so wherever they are shown."""

import csv
import json

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.io.predictions import find_predictions, read_prediction, write_prediction
from lesionseg.io.volumes import read_geometry, write_volume
from lesionseg.report.write import write_report
from tests.commands import evaluate
from tests.io.dicom_files import DX, save


@pytest.fixture
def scores(tmp_path):
    """Two radiographs, each with a square that is found; scored into a folder."""
    flat, rows = Geometry.from_spacing((40, 30), (1, 1)), ["case,image,reference"]
    for number in range(2):
        pixels = np.full((40, 30), 500, np.uint16)
        pixels[:, :5] = 0
        facts = {"ImagerPixelSpacing": [0.2, 0.2], "PixelPaddingValue": 0, "Modality": "DX"}
        save(tmp_path / "data" / f"x{number}.dcm", pixels, DX, **facts)
        mask = np.zeros((1, 40, 30), np.uint8)
        mask[0, 10:14, 10:14] = 1
        write_volume(tmp_path / "data" / f"m{number}.png", Volume(mask, flat))
        mask[0, 20:24, 0:4] = 1  # in the padding: neither right nor wrong
        write_volume(tmp_path / "predicted" / f"x{number}_mask.png", Volume(mask, flat))
        rows.append(f"x{number},x{number}.dcm,m{number}.png")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    evaluate(tmp_path / "data", tmp_path / "predicted", tmp_path / "scores", replicates=20)
    return tmp_path / "scores"


def test_scores_say_it_and_padding_is_not_judged(scores):
    told = json.loads((scores / "scores.json").read_text())
    assert told["size_unit"] == "mm at the detector"
    assert (told["n_true_positive"], told["n_false_positive"]) == (2, 0)
    with (scores / "cases.csv").open() as stream:
        assert [row["n_ignored"] for row in csv.DictReader(stream)] == ["1", "1"]


def test_the_report_says_it(scores, tmp_path):
    write_report(scores, tmp_path / "report")
    assert "at the detector" in (tmp_path / "report" / "report.html").read_text()


def test_the_candidates_say_it(scores, tmp_path):
    files = find_predictions(tmp_path / "predicted")["x0"]
    geometry = read_geometry(tmp_path / "data" / "x0.dcm")
    prediction = read_prediction(files, geometry=geometry)
    write_prediction(tmp_path / "again", prediction)
    told = json.loads((tmp_path / "again" / "x0_candidates.json").read_text())
    assert told["size_unit"] == "mm at the detector"
    assert told["candidates"][0]["diameter_mm"] == pytest.approx(0.2 * 4 * 2 / np.sqrt(np.pi))
