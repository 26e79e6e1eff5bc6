"""From DICOM to DICOM's patients: train on series, SEG and RTSTRUCT, predict a whole study."""

import json

import numpy as np
import pytest

from lesionseg.core import Geometry
from tests.flow.cases import TILE, plan_of, predict, scores_of, train
from tests.io.dicom_files import (
    CT,
    slice_elements,
    to_lps,
    write_dicom_file,
    write_rtstruct,
    write_seg,
)

pytestmark = pytest.mark.slow

SHAPE = (20, 24, 28)
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.fliplr(np.diag([-3.0, -3.0, 4.0]))
AFFINE[:3, 3] = (40, 30, -50)
GRID = Geometry(SHAPE, AFFINE)


def lesion(seed):
    mask = np.zeros(SHAPE, dtype=bool)
    start = np.random.default_rng(seed).integers(3, 14, 3)
    mask[tuple(slice(a, a + 4) for a in start)] = True
    return mask


def write_scan(folder, seed, drift=0.0):
    """A CT series with one bright cube; `drift` rows a slice is a tilted gantry."""
    noise = np.random.default_rng(seed).normal(40, 10, SHAPE)
    noise[:, :2] = -1000  # air
    voxels = (noise + 120 * lesion(seed)).astype(np.int16)
    header = {"Modality": "CT", "PatientName": "Miller^Jane", "SeriesInstanceUID": f"1.2.3.{seed}"}
    header |= {"SeriesNumber": seed, "RescaleSlope": 1, "RescaleIntercept": 0}
    for z in range(SHAPE[0]):
        where = slice_elements(GRID, z) | {"ImagePositionPatient": to_lps(GRID, (z, drift * z, 0))}
        write_dicom_file(folder / f"s{seed}_{z:02d}.dcm", voxels[z], CT, **header, **where)


def write_contours(path, mask):
    drawn = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = np.nonzero(mask[z])
        top, bottom = rows.min() - 0.5, rows.max() + 0.5
        left, right = columns.min() - 0.5, columns.max() + 0.5
        corners = ((top, left), (top, right), (bottom, right), (bottom, left))
        drawn.append((float(z), corners))
    write_rtstruct(path, GRID, *drawn, name="GTV")


def test_a_network_trained_on_series_predicts_a_study_series_by_series(tmp_path):
    """Trained for four steps on four series, two with contours and two with segmentations."""
    data, study, rows = tmp_path / "data", tmp_path / "study", ["case,image,reference"]
    for seed in range(1, 5):
        write_scan(data / f"scan{seed}", seed)
        reference = data / f"reference{seed}.dcm"
        if seed % 2:
            write_contours(reference, lesion(seed))
        else:
            write_seg(reference, GRID, {"GTV": lesion(seed)})
        rows.append(f"P{seed},scan{seed},{reference.name}")
    (data / "manifest.csv").write_text("\n".join(rows) + "\n")
    run_dir = train(data, tmp_path / "run", "trainer.max_steps=4", TILE)
    scores = scores_of(run_dir)
    assert scores["n_lesions"] == scores["n_cases"] == 1
    assert scores["size_unit"] == "mm"
    assert plan_of(run_dir / "bundle")["modality"] == "ct"

    write_scan(study, 7)
    write_scan(study, 8)
    write_scan(study / "tilted", 9, drift=0.2)
    scout = {"SeriesInstanceUID": "1.2.3.99", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_dicom_file(study / "scout.dcm", np.ones((9, 9), np.uint16), CT, Modality="CT", **scout)
    found = predict(run_dir, study, tmp_path / "out", "inference=fast", status=3)
    by_series = {row["series_uid"]: row for row in found.values()}
    statuses = {uid: row["status"] for uid, row in by_series.items()}
    expected = {"1.2.3.7": "done", "1.2.3.8": "done", "1.2.3.9": "failed", "1.2.3.99": "skipped"}
    assert statuses == expected
    case = by_series["1.2.3.7"]["case"]
    assert case.startswith("study_7_")
    told = json.loads((tmp_path / "out" / f"{case}_candidates.json").read_text())
    assert told["size_unit"] == "mm"
