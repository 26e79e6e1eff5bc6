"""Of radiographs, sizes are measured at the detector, and each page and table says so."""

import numpy as np
import pytest

from lesionseg.config import ReportSection
from lesionseg.io.files import read_csv, read_json
from lesionseg.io.layouts import read_dataset
from lesionseg.io.predictions import find_predictions, read_prediction, write_prediction
from lesionseg.io.volumes import read_geometry
from lesionseg.pipeline.check import check_dataset
from lesionseg.reporting.write import write_report
from tests.commands import evaluate
from tests.io.dicom_files import DX, save
from tests.pipeline.cases import boxes, write_array


@pytest.fixture
def study(tmp_path):
    """Two radiographs of 40 x 30 with padding to the left, each with a square that is found."""
    rows = ["case,image,reference"]
    for number, intent in enumerate(("FOR PRESENTATION", "FOR PROCESSING")):
        name = f"Miller_{number}"
        pixels = np.random.default_rng(number).integers(1, 900, (40, 30)).astype(np.uint16)
        pixels[:, :5] = 0
        save(
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
        mask = boxes((40, 30), (10, 10, 4))
        write_array(tmp_path / "data" / f"m{number}.png", mask)
        mask[20:24, 0:4] = 1  # in the padding: neither right nor wrong
        write_array(tmp_path / "predicted" / f"{name}_mask.png", mask)
        rows.append(f"{name},{name}.dcm,m{number}.png")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_scores_report_and_candidates_say_it_and_padding_is_ignored(study):
    evaluate(study / "data", study / "predicted", study / "scores", replicates=20)
    told = read_json(study / "scores" / "scores.json")
    assert told["size_unit"] == "mm at the detector"
    assert (told["n_true_positive"], told["n_false_positive"]) == (2, 0)
    assert [row["n_ignored"] for row in read_csv(study / "scores" / "cases.csv")] == ["1", "1"]
    write_report(study / "scores", study / "report", options=ReportSection.of(pdf=False))
    assert "at the detector" in (study / "report" / "report.html").read_text()
    geometry = read_geometry(study / "data" / "Miller_0.dcm")
    files = find_predictions(study / "predicted")["Miller_0"]
    write_prediction(study / "again", read_prediction(files, geometry=geometry))
    told = read_json(study / "again" / "Miller_0_candidates.json")
    assert told["size_unit"] == "mm at the detector"
    assert told["candidates"][0]["diameter_mm"] == pytest.approx(0.2 * 4 * 2 / np.sqrt(np.pi))


def test_a_check_says_how_they_were_taken_and_what_is_hidden(study):
    checked = check_dataset(read_dataset(study / "data"), study / "page.html")
    page = checked.page.read_text()
    for said in ("for processing", "for presentation", "at the detector"):
        assert said in page
    assert "laterality" not in page  # no file states it
    assert "Miller" not in page
    kinds = [{f.kind for f in checked.findings if f.case == f"Miller_{n}"} for n in (0, 1)]
    assert kinds == [{"detector"}, {"detector", "remark", "burned_in"}]
    assert checked.exit_status == 0
