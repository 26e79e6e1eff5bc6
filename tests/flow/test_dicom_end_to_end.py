"""Train on DICOM series with SEG and RTSTRUCT references, then predict all series of a study."""

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.io.text import read_json
from tests.flow.cases import TILE, plan_of, predict, scores_of, train
from tests.io.dicom_files import (
    CT,
    slice_elements,
    to_lps,
    write_dicom_file,
    write_rtstruct,
    write_seg,
)
from tests.pipeline.cases import boxes

pytestmark = pytest.mark.slow

SHAPE = (20, 24, 28)
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.fliplr(np.diag([-3.0, -3.0, 4.0]))
AFFINE[:3, 3] = (40, 30, -50)
GRID = Geometry(SHAPE, AFFINE)


def find_corner(seed):
    """Return the first voxel of the lesion, a cube of 4 voxels."""
    return np.random.default_rng(seed).integers(3, 14, 3)


def make_lesion(seed):
    return boxes(SHAPE, (*find_corner(seed), 4)) > 0


def write_series(folder, seed, rows_per_slice=0.0):
    """Write a CT series with one bright cube.

    The position of each slice is moved by `rows_per_slice` relative to the slice before. A shift
    other than 0 means a tilted gantry.
    """
    noise = np.random.default_rng(seed).normal(40, 10, SHAPE)
    noise[:, :2] = -1000  # air
    voxels = (noise + 120 * make_lesion(seed)).astype(np.int16)
    for z in range(SHAPE[0]):
        elements = slice_elements(GRID, z)
        elements["ImagePositionPatient"] = to_lps(GRID, (z, rows_per_slice * z, 0))
        write_dicom_file(
            folder / f"s{seed}_{z:02d}.dcm",
            voxels[z],
            CT,
            Modality="CT",
            PatientName="Miller^Jane",
            SeriesInstanceUID=f"1.2.3.{seed}",
            SeriesNumber=seed,
            RescaleSlope=1,
            RescaleIntercept=0,
            **elements,
        )


def write_localiser(path):
    """Write a series of one localiser image."""
    write_dicom_file(
        path,
        np.ones((9, 9), np.uint16),
        CT,
        Modality="CT",
        SeriesInstanceUID="1.2.3.99",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )


def write_dataset(root):
    """Write four series with a manifest: two references are contours, two are segmentations."""
    rows = ["case,image,reference"]
    for seed in range(1, 5):
        write_series(root / f"scan{seed}", seed)
        reference = root / f"reference{seed}.dcm"
        if seed % 2:
            z, top, left = find_corner(seed)
            corners = (top, left), (top, left + 4), (top + 4, left + 4), (top + 4, left)
            square = np.array(corners) - 0.5
            write_rtstruct(reference, GRID, *((z + i, square) for i in range(4)), name="GTV")
        else:
            write_seg(reference, GRID, {"GTV": make_lesion(seed)})
        rows.append(f"P{seed},scan{seed},{reference.name}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")


def test_model_trained_on_dicom_predicts_only_the_valid_series_of_a_study(tmp_path):
    data = tmp_path / "data"
    write_dataset(data)
    run_dir = train(data, tmp_path / "run", "trainer.max_steps=4", TILE)
    scores = scores_of(run_dir)
    assert scores["n_lesions"] == scores["n_cases"] == 1
    assert scores["size_unit"] == "mm"
    assert plan_of(run_dir / "bundle")["modality"] == "ct"

    study = tmp_path / "study"
    write_series(study, 7)
    write_series(study, 8)
    write_series(study / "tilted", 9, rows_per_slice=0.2)
    write_localiser(study / "scout.dcm")
    rows = predict(run_dir, study, tmp_path / "out", status=3)
    statuses = {row["series_uid"].removeprefix("1.2.3."): row["status"] for row in rows.values()}
    assert statuses == {"7": "done", "8": "done", "9": "failed", "99": "skipped"}
    (case,) = (name for name in rows if name.startswith("study_7_"))
    assert read_json(tmp_path / "out" / f"{case}_candidates.json")["size_unit"] == "mm"
