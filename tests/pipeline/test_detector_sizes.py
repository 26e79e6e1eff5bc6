"""Sizes on radiographs are measured at the detector. Each page and table says so."""

import numpy as np
import pytest

from lesionseg.io.results.case import write_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_csv, read_json
from lesionseg.io.volumes import read_geometry
from tests.commands import check, evaluate, report
from tests.io.dicom_files import DX, write_dicom_file
from tests.pipeline.cases import boxes, counts, write_array


@pytest.fixture
def study(tmp_path):
    """Write two radiographs of 40 x 30 with padding on the left and one detected square each."""
    rows = ["case,image,reference"]
    mask = boxes((40, 30), (10, 10, 4))
    found = mask + boxes((40, 30), (20, 0, 4))  # in the padding: neither right nor wrong
    for number, intent in enumerate(("FOR PRESENTATION", "FOR PROCESSING")):
        name = f"Miller_{number}"
        pixels = np.random.default_rng(number).integers(1, 900, (40, 30)).astype(np.uint16)
        pixels[:, :5] = 0
        write_dicom_file(
            tmp_path / "data" / f"{name}.dcm",
            pixels,
            DX,
            Modality="DX",
            PatientID=f"P{number}",
            ImagerPixelSpacing=[0.2, 0.2],
            ViewPosition="PA",
            PixelPaddingValue=0,
            PresentationIntentType=intent,
            BurnedInAnnotation="YES" if number else "NO",
        )
        write_array(tmp_path / "data" / f"m{number}.png", mask)
        write_array(tmp_path / "predicted" / f"{name}_mask.png", found)
        rows.append(f"{name},{name}.dcm,m{number}.png")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_sizes_are_stated_at_the_detector_and_padding_is_ignored(study):
    scores = evaluate(study / "data", study / "predicted", study / "scores").scores
    assert scores.size_unit == "mm at the detector"
    assert counts(scores, "n_true_positive", "n_false_positive") == (2, 0)
    assert [row["n_ignored"] for row in read_csv(study / "scores" / "cases.csv")] == ["1", "1"]
    assert "at the detector" in report(study / "scores", study / "report").page.read_text()
    geometry = read_geometry(study / "data" / "Miller_0.dcm")
    files = find_predictions(study / "predicted")["Miller_0"]
    write_prediction(study / "again", files.read(geometry=geometry))
    content = read_json(study / "again" / "Miller_0_candidates.json")
    assert content["size_unit"] == "mm at the detector"
    assert content["candidates"][0]["diameter_mm"] == pytest.approx(0.2 * 4 * 2 / np.sqrt(np.pi))


def test_check_states_that_sizes_are_at_the_detector_and_hides_patients(study):
    outcome = check(study / "data", study / "page.html")
    page = outcome.page.read_text()
    assert "at the detector" in page
    assert "Miller" not in page
    kinds = [{f.kind for f in outcome.findings if f.case == f"Miller_{n}"} for n in (0, 1)]
    assert kinds == [{"detector"}, {"detector", "remark", "burned_in"}]
    assert outcome.exit_status == 0
