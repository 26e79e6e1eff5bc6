"""Changes as a DICOM structured report in the later visit's study."""

import numpy as np
import pytest

from lesionseg.core import Volume
from lesionseg.io.volumes import read_geometry, write_volume
from tests.commands import follow
from tests.io.test_dicom_results import GRIDS, series

hd = pytest.importorskip("highdicom")


def mask(*boxes):
    array = np.zeros((1, 5, 4, 6), np.uint8)
    for box in boxes:
        array[0][box] = 1
    return array


OLD, GONE = (slice(0, 2), slice(0, 2), slice(0, 2)), (slice(0, 2), slice(2, 4), slice(4, 6))
NEW = (slice(3, 5), slice(1, 4), slice(3, 6))


@pytest.fixture
def visits(tmp_path):
    """A lesion that stays, one that goes, one that comes; both visits are DICOM series."""
    for visit, boxes in {"before": (OLD, GONE), "after": (OLD, NEW)}.items():
        scan = series(tmp_path / f"{visit}_images" / "P1", GRIDS["axial"])
        write_volume(
            tmp_path / visit / f"{scan.name}.nii.gz", Volume(mask(*boxes), read_geometry(scan))
        )
    return tmp_path


def run(root, **settings):
    images = {f"{visit}_images": root / f"{visit}_images" for visit in ("before", "after")}
    given = {**images, **settings}
    follow(root / "before", root / "after", root / "out", **given)
    return root / "out" / "scan_sr.dcm"


def test_states_and_both_volumes_stand_in_the_report(visits):
    report = hd.sr.srread(run(visits))
    groups = report.content.get_volumetric_roi_measurement_groups()
    named = [item for g in groups for item in g.get_qualitative_evaluations()]
    states = [x.value.meaning for x in named if x.name.meaning == "Change since the earlier visit"]
    assert sorted(states) == ["New", "Stable"]
    items = [i for i in report.iterall() if i.keyword in ("CodeMeaning", "TextValue")]
    said = " ".join(str(item.value) for item in items)
    assert said.count("Volume at the earlier visit") == 1
    assert "Score of the model" not in said, "masks have no scores"
    assert "Gone since: 0.009 ml." in said
    assert report.PatientID == "77-1"
