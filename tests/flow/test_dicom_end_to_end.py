"""From DICOM to DICOM's patients: train on series, SEG and RTSTRUCT, predict a whole study."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.cli import run
from lesionseg.core import Geometry
from tests.flow.test_end_to_end import SMALL
from tests.io.dicom_files import CT, contours, lps, place, save, segmentation

pytestmark = pytest.mark.slow

SHAPE = (20, 24, 28)
SETTINGS = [*SMALL, "trainer.max_steps=4", "model.tile_shape=[16,16,16]"]


def grid() -> Geometry:
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag([-3.0, -3.0, 4.0]))
    affine[:3, 3] = (40, 30, -50)
    return Geometry(SHAPE, affine)


def lesion(seed: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    start = np.random.default_rng(seed).integers(3, 14, 3)
    mask[tuple(slice(a, a + 4) for a in start)] = True
    return mask


def write_scan(folder: Path, seed: int, drift: float = 0.0, **elements: Any) -> Path:
    """A CT series with one bright cube; `drift` rows a slice is a tilted gantry."""
    noise = np.random.default_rng(seed).normal(40, 10, SHAPE)
    noise[:, :2] = -1000  # air
    voxels = (noise + 120 * lesion(seed)).astype(np.int16)
    for z in range(SHAPE[0]):
        where = place(grid(), z) | {"ImagePositionPatient": lps(grid(), (z, drift * z, 0))}
        header = {
            "Modality": "CT",
            "PatientName": "Miller^Jane",
            "SeriesInstanceUID": f"1.2.3.{seed}",
            "SeriesNumber": seed,
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
            **where,
            **elements,
        }
        save(folder / f"s{seed}_{z:02d}.dcm", voxels[z], CT, **header)
    return folder


def write_contours(path: Path, mask: np.ndarray) -> None:
    drawn = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = np.nonzero(mask[z])
        top, bottom = rows.min() - 0.5, rows.max() + 0.5
        left, right = columns.min() - 0.5, columns.max() + 0.5
        corners = ((top, left), (top, right), (bottom, right), (bottom, left))
        drawn.append((float(z), corners))
    contours(path, grid(), *drawn, name="GTV")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on four series, half of them with contours, half with segmentations."""
    root = tmp_path_factory.mktemp("dicom")
    rows = []
    for seed in range(1, 5):
        write_scan(root / "data" / f"scan{seed}", seed)
        reference = root / "data" / f"reference{seed}.dcm"
        if seed % 2:
            write_contours(reference, lesion(seed))
        else:
            segmentation(reference, grid(), {"GTV": lesion(seed)})
        rows.append(f"P{seed},scan{seed},{reference.name}")
    table = "\n".join(["case,image,reference", *rows]) + "\n"
    (root / "data" / "manifest.csv").write_text(table)
    assert run("train", [f"data.root={root / 'data'}", f"run_dir={root / 'run'}", *SETTINGS]) == 0
    return root


def test_training_on_dicom_leaves_scores_and_a_bundle(trained: Path) -> None:
    scores = json.loads((trained / "run" / "scores.json").read_text())
    assert scores["n_lesions"] == scores["n_cases"] == 1
    assert scores["size_unit"] == "mm"
    plan = json.loads((trained / "run" / "bundle" / "plan.json").read_text())
    assert plan["modality"] == "ct"


def status(output: Path) -> dict[str, tuple[str, str]]:
    with (output / "predictions.csv").open() as stream:
        return {row["case"]: (row["status"], row["message"]) for row in csv.DictReader(stream)}


def test_a_study_is_predicted_series_by_series(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = tmp_path / "study"
    write_scan(study, 7)
    write_scan(study, 8)
    write_scan(study / "tilted", 9, drift=0.2)
    scout = {"SeriesInstanceUID": "1.2.3.99", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    save(study / "scout.dcm", np.ones((9, 9), np.uint16), CT, Modality="CT", **scout)
    command = [f"bundle={trained / 'run'}", f"input={study}", "inference=fast"]
    assert run("predict", [*command, f"output={tmp_path / 'out'}"]) == 1
    assert "scout.dcm" in caplog.text
    found = status(tmp_path / "out")
    assert {case: told[0] for case, told in found.items()} == {
        "study_7": "done",
        "study_8": "done",
        "tilted": "failed",
    }
    told = json.loads((tmp_path / "out" / "study_7_candidates.json").read_text())
    assert told["size_unit"] == "mm"
