"""The check of radiographs: what is hidden, how they were taken, what a millimetre is."""

from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.check import CheckOutcome, check_dataset
from tests.io.dicom_files import DX, save


@pytest.fixture
def checked(tmp_path: Path) -> CheckOutcome:
    rows = ["case,image,reference"]
    for number, intent in enumerate(("FOR PRESENTATION", "FOR PROCESSING")):
        pixels = np.random.default_rng(number).integers(1, 900, (40, 30)).astype(np.uint16)
        pixels[:, :5] = 0
        save(
            tmp_path / "data" / f"Miller_{number}.dcm",
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
        mask = np.zeros((1, 40, 30), np.uint8)
        mask[0, 10:14, 10:14] = 1
        place = tmp_path / "data" / f"m{number}.png"
        write_volume(place, Volume(mask, Geometry.from_spacing((40, 30), (1, 1))))
        rows.append(f"Miller_{number},Miller_{number}.dcm,m{number}.png")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(rows) + "\n")
    return check_dataset(read_dataset(tmp_path / "data"), tmp_path / "page.html")


def test_the_page_says_how_they_were_taken_and_what_a_millimetre_is(checked: CheckOutcome) -> None:
    page = checked.page.read_text()
    for said in ("for processing", "for presentation", "at the detector"):
        assert said in page
    assert "laterality" not in page  # no file states it
    assert "Miller" not in page


def test_raw_values_burned_in_letters_and_detector_sizes_are_found(checked: CheckOutcome) -> None:
    found = {(f.case, f.kind) for f in checked.findings}
    assert found >= {
        ("Miller_0", "detector"),
        ("Miller_1", "detector"),
        ("Miller_1", "remark"),
        ("Miller_1", "burned_in"),
    }
    assert ("Miller_0", "burned_in") not in found
    assert checked.exit_status == 0
    assert "Miller" not in "\n".join(checked.summary())
