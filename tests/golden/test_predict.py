"""Predictions of a small network for oblique files, damaged files and a DICOM series."""

import json

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread

from lesionseg.config import InferenceConfig
from lesionseg.core import Geometry, Volume
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from tests.golden.common import check, gist, read_table, run_command
from tests.golden.small_network import (
    SPACING,
    make_phantom,
    make_plan_and_network,
    oblique_affine,
    write_bundle,
    write_nifti,
)
from tests.io.dicom_files import write_dicom_file

MR = "1.2.840.10008.5.1.4.1.1.4"
POINT = "score:0.5"


def probabilities_of(image, affine, **settings):
    """Return probabilities `[z, y, x]` of an image `[z, y, x]` on its own grid."""
    plan, network = make_plan_and_network()
    config = InferenceConfig.of(precision="fp32", **settings)
    reversed_axes = np.eye(4)
    reversed_axes[:3, :3] = np.eye(3)[::-1]  # array index (z, y, x) to (x, y, z)
    volume = Volume(image[None], Geometry(image.shape, affine @ reversed_axes))
    return Predictor(Bundle((network,), plan), settings=config).probabilities(volume)[0]


def describe_results(folder, case):
    """Return the first candidates, the mask's voxels and the geometry from a case's files."""
    mask = nib.load(folder / f"{case}_mask.nii.gz")
    ids = nib.load(folder / f"{case}_instances.nii.gz")
    candidates = json.loads((folder / f"{case}_candidates.json").read_text())["candidates"]
    keys = ("id", "score", "start_vox", "stop_vox", "centre_mm", "diameter_mm", "accepted")
    return {
        "shape": mask.shape,
        "affine": mask.affine,
        "mask voxels": int(np.asarray(mask.dataobj).sum()),
        "voxels of candidates": np.bincount(np.asarray(ids.dataobj).ravel())[1:],
        "candidates": [[c[key] for key in keys] for c in candidates[:12]],
    }


def predict(bundle, scans, output):
    return run_command(
        "predict",
        bundle=bundle,
        input=scans,
        output=output,
        operating_point=POINT,
        device="cpu",
        inference__precision="fp32",
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("golden") / "bundle")


def test_probabilities_of_an_oblique_volume_equal_the_golden_values(monkeypatch):
    found = {}
    for name, settings in {
        "plain": {"overlap": 0.5},
        "little overlap": {"overlap": 0.25},
        "flips": {"overlap": 0.5, "flips": True},
    }.items():
        with monkeypatch.context() as patch:
            # no compression of log-odds beyond 8, which tests/inference/test_window.py tests
            patch.setattr("lesionseg.inference.probabilities.SURE", float("inf"))
            if name == "little overlap":  # no voxel is left out
                patch.setattr("lesionseg.inference.predictor.find_body", lambda *_: None)
            found[name] = gist(probabilities_of(make_phantom(0), oblique_affine(), **settings), 40)
    check("probabilities", found, rtol=1e-4, atol=1e-5)


def test_predictions_of_good_and_damaged_files_equal_the_golden_values(bundle, tmp_path):
    scans = tmp_path / "scans"
    output = tmp_path / "output"
    scans.mkdir()
    for seed, name in enumerate(("good1", "good2", "cut")):
        write_nifti(scans / f"{name}.nii.gz", make_phantom(seed))
    whole = (scans / "cut.nii.gz").read_bytes()
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "text.nii.gz").write_text("no image")
    broken = make_phantom(3)
    broken[3, 4, 5:9] = np.nan
    write_nifti(scans / "nan.nii.gz", broken)
    status = predict(bundle, scans, output)
    found = {
        "exit status": status,
        "status": {row["case"]: row["status"] for row in read_table(output / "predictions.csv")},
        "good1": describe_results(output, "good1"),
        "good2": describe_results(output, "good2"),
        "written": sorted(f.name.split("_")[0] for f in output.glob("*_mask.nii.gz")),
    }
    check("predictions", found, rtol=1e-4, atol=1e-5)


def test_dicom_segmentation_equals_the_golden_values(bundle, tmp_path):
    """Read voxels per segment with pydicom, and compare the file also as a reference."""
    write_series(tmp_path / "scan", make_phantom(1))
    output = tmp_path / "output"
    scores = tmp_path / "scores"
    assert predict(bundle, tmp_path / "scan", output) == 0
    (path,) = (f for f in output.rglob("*.dcm") if dcmread(f).Modality == "SEG")
    (case,) = (row["case"] for row in read_table(output / "predictions.csv"))
    (tmp_path / "manifest.csv").write_text(
        f"case,image,reference\n{case},scan,{path.relative_to(tmp_path)}\n"
    )
    assert run_command("evaluate", reference=tmp_path, prediction=output, output=scores) == 0
    (row,) = read_table(scores / "cases.csv")
    found = {
        "voxels": read_segments(path),
        "files": describe_results(output, case),
        "as reference": {key: float(row[key]) for key in ("dice", "n_lesions", "reference_ml")},
    }
    check("dicom_segmentation", found, rtol=1e-4, atol=1e-5)


def read_segments(path):
    """Return the number of voxels and the mean place (patient mm) of each segment."""
    raw = dcmread(path)
    shared = raw.SharedFunctionalGroupsSequence[0]
    across, down = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    down_mm, across_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points = {}
    frames = raw.pixel_array.reshape(-1, raw.Rows, raw.Columns)
    for pixels, group in zip(frames, raw.PerFrameFunctionalGroupsSequence, strict=True):
        named = group if "SegmentIdentificationSequence" in group else shared
        number = int(named.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(pixels)
        places = origin + np.outer(columns * across_mm, across) + np.outer(rows * down_mm, down)
        points.setdefault(number, []).extend(places.tolist())
    return {n: [len(p), *np.mean(p, axis=0)] for n, p in sorted(points.items())}


def write_series(folder, image):
    """Write an axial MR series of an image `[z, y, x]`."""
    empty = ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber")
    elements = {
        "FrameOfReferenceUID": "1.2.3.9",
        "Modality": "MR",
        "PatientID": "P1",
        "PatientName": "Phantom",
        "StudyDate": "20240131",
        "StudyTime": "101112",
        **dict.fromkeys((*empty, "ReferringPhysicianName"), ""),
        "SeriesNumber": 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": list(SPACING[1:]),
        "SliceThickness": SPACING[0],
    }
    for z, pixels in enumerate(image.round().astype(np.uint16)):
        write_dicom_file(
            folder / f"{z:02d}.dcm",
            pixels,
            MR,
            InstanceNumber=z + 1,
            ImagePositionPatient=[-12.0, 7.5, 3.0 * z],
            **elements,
        )
