"""DICOM results: segmentations and reports lie where the scan does and say what made them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from scipy.spatial.transform import Rotation

from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction
from lesionseg.errors import OutputError
from lesionseg.io.dicom.headers import image_header
from lesionseg.io.dicom.reference import read_dicom_reference
from lesionseg.io.dicom.results import MOST_SEGMENTS, ResultOrigin, write_dicom_results
from lesionseg.io.volumes import read_geometry
from tests.io.dicom_files import DX, LPS, enhanced, lps, save, write_series

hd = pytest.importorskip("highdicom")

PATIENT = {
    "PatientName": "Müller^Äsop",
    "PatientID": "77-1",
    "PatientBirthDate": "19480229",
    "PatientSex": "F",
    "AccessionNumber": "A7",
    "StudyDate": "20240131",
    "StudyTime": "101112",
    "SpecificCharacterSet": "ISO_IR 100",
    "FrameOfReferenceUID": "1.2.9",
}
POINT = OperatingPoint("fp_per_case:1", 0.5, "validation")
ORIGIN = ResultOrigin("1.2.3", "0123456789abcdef", "fedcba9876543210")
LABELS = {1: "lesion", 2: "cyst"}


def grid_of(normal: int, down: int, across: int, angles: tuple[float, ...] = (0, 0, 0)) -> Geometry:
    """A grid of 5 x 4 x 6 whose array axes run along the patient's axes named, then turned."""
    affine = np.eye(4)
    axes = np.zeros((3, 3))
    for column, (axis, spacing) in enumerate(
        zip((normal, down, across), (3.0, 0.75, 0.5), strict=True)
    ):
        axes[abs(axis) - 1, column] = np.sign(axis) * spacing
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ axes
    affine[:3, 3] = (12.5, -40.25, 7.75)
    return Geometry((5, 4, 6), affine)


# RAS axes 1, 2, 3; a minus runs the other way
GRIDS = {
    "axial": grid_of(3, -2, -1),
    "head first": grid_of(-3, -2, -1),
    "coronal": grid_of(2, -3, -1),
    "oblique": grid_of(3, -2, -1, (20, -10, -35)),
    "oblique sagittal": grid_of(1, -3, -2, (-15, 25, 8)),
}


def lesions() -> np.ndarray:
    """Two candidates without any symmetry, and a third that is not accepted."""
    ids = np.zeros((5, 4, 6), np.int32)
    ids[0, 0, 1:5], ids[1, 0, 1], ids[0, 1, 4], ids[2, 0, 1] = 1, 1, 1, 1
    ids[3, 2, 2], ids[4, 2, 2], ids[4, 3, 2] = 2, 2, 2
    ids[4, 0, 5] = 3
    return ids


def predict(geometry: Geometry, ids: np.ndarray | None, **changes: Any) -> Prediction:
    found = [(1, 1, 0.9, True), (2, 2, 0.7, True), (3, 1, 0.3, False)]
    made = []
    for number, label, score, accepted in found:
        inside = np.argwhere((lesions() if geometry.dims == 3 else flat()) == number)
        one = Candidate.from_voxels(number, label, score, inside, geometry)
        ml = 0.25 * number if geometry.dims == 3 else None
        sizes = {"diameter_mm": 1.5 * number, "volume_ml": ml, "probability": score / 2}
        made.append(replace(one, has_mask=ids is not None, accepted=accepted, **sizes))
    values = {"candidates": tuple(made), "instances": ids, "operating_point": POINT}
    return Prediction("A", geometry, **{**values, **changes})


def flat() -> np.ndarray:
    ids = np.zeros((4, 6), np.int32)
    ids[0, 1:5], ids[1, 4], ids[2, 0], ids[3, 5] = 1, 1, 2, 3
    return ids


def series(root: Path, grid: Geometry, **elements: Any) -> Path:
    return write_series(root, grid, {z: {**PATIENT, **elements} for z in range(grid.shape[0])})


def check_reference(seg: Path, prediction: Prediction) -> None:
    reference = read_dicom_reference(seg, prediction.geometry, LABELS)
    np.testing.assert_array_equal(reference.labels, prediction.mask())


def written(
    folder: Path, prediction: Prediction, scan: Path, origin: ResultOrigin = ORIGIN
) -> tuple[Path, Path]:
    seg, sr = folder / "A_seg.dcm", folder / "A_sr.dcm"
    is_segmented = write_dicom_results(
        scan, prediction, origin, LABELS, report=sr, segmentation=seg
    )
    assert seg.exists() == is_segmented
    return seg, sr


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_lies_where_the_scan_has_it(name: str, tmp_path: Path) -> None:
    scan = series(tmp_path, GRIDS[name])
    prediction = predict(read_geometry(scan), lesions())
    seg, _ = written(tmp_path, prediction, scan)
    # the library's reader places the segments as one volume, ours each frame by its elements
    volume = hd.seg.segread(seg).get_volume(combine_segments=True)
    index = np.argwhere(volume.array)
    mm = (np.c_[index, np.ones(len(index))] @ volume.affine.T)[:, :3] * LPS
    expected = prediction.geometry.to_mm(np.argwhere(np.isin(lesions(), (1, 2))))
    assert {tuple(p) for p in np.round(mm, 2) + 0.0} == {tuple(p) for p in np.round(expected, 2)}
    check_reference(seg, prediction)


def test_patient_study_and_source_are_the_scans(tmp_path: Path) -> None:
    uneven = {"ImagePositionPatient": lps(GRIDS["oblique"], (3.04, 0, 0))}  # a bit, as scanners do
    changes = {z: PATIENT | (uneven if z == 3 else {}) for z in range(5)}
    scan = write_series(tmp_path, GRIDS["oblique"], changes)
    prediction = predict(read_geometry(scan), lesions())
    files = [dcmread(f) for f in scan.iterdir()]
    for path in written(tmp_path, prediction, scan):
        made = dcmread(path)
        for name in ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
            assert made[name].value == files[0][name].value
        assert str(made.PatientName) == PATIENT["PatientName"]
        assert made.SeriesInstanceUID not in {f.SeriesInstanceUID for f in files}
        assert (made.ContentDate, made.ContentTime) == ("20240131", "101112")
        assert made.ManufacturerModelName == "lesionseg"
        assert image_header(path) is None
    seg = hd.seg.segread(tmp_path / "A_seg.dcm")
    assert seg.FrameOfReferenceUID == "1.2.9"
    assert {uids[2] for uids in seg.get_source_image_uids()} == {f.SOPInstanceUID for f in files}
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == files[0].SeriesInstanceUID
    one, two = (seg.get_segment_description(n) for n in (1, 2))
    assert [one.segment_label, two.segment_label] == ["lesion", "cyst"]
    assert [one.tracking_id, two.tracking_id] == ["lesion 1", "cyst 2"]
    assert one.segmented_property_type.meaning == "Lesion"
    (made_by,) = one.SegmentationAlgorithmIdentificationSequence
    assert made_by.AlgorithmName == "lesionseg"
    assert ORIGIN.bundle in made_by.AlgorithmParameters
    # each frame names the slice it was drawn on
    position = {f.SOPInstanceUID: list(f.ImagePositionPatient) for f in files}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        image = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(at, position[image], atol=1e-3)


def measured(group: Any) -> dict[str, float]:
    return {m.name.meaning: float(m.value) for m in group.get_measurements()}


def items(group: Any, code: str) -> list[Any]:
    content = group[0].ContentSequence
    return [i for i in content if i.ConceptNameCodeSequence[0].CodeValue == code]


def comments(path: Path) -> str:
    raw = dcmread(path)
    return " ".join(str(i.TextValue) for i in raw.ContentSequence if i.ValueType == "TEXT")


def test_the_report_has_a_group_a_candidate_that_names_its_segment(tmp_path: Path) -> None:
    scan = series(tmp_path, GRIDS["oblique"])
    _, sr = written(tmp_path, predict(read_geometry(scan), lesions()), scan)
    report = hd.sr.srread(sr)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == ["lesion 1", "cyst 2"]
    assert measured(groups[1]) == {
        "Score of the model": 0.7,
        "Calibrated probability of a lesion": 0.35,
        "Volume": 0.5,
        "Diameter": 3.0,
    }
    seg = hd.seg.segread(tmp_path / "A_seg.dcm")
    for number, group in enumerate(groups, start=1):
        (segment,) = items(group, "121191")
        (reference,) = segment.ReferencedSOPSequence
        assert reference.ReferencedSegmentNumber == number
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert group.tracking_uid == seg.get_segment_description(number).tracking_uid
    assert "not a medical device" in comments(sr)
    assert "2 of 3 candidates were accepted at the operating point fp_per_case:1" in comments(sr)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = series(tmp_path, GRIDS["oblique"])
    prediction = predict(read_geometry(folder), lesions())
    one = [p.read_bytes() for p in written(tmp_path / "1", prediction, folder)]
    two = [p.read_bytes() for p in written(tmp_path / "2", prediction, folder)]
    assert one == two
    other = replace(ORIGIN, key="0" * 16)
    written(tmp_path / "3", prediction, folder, other)
    made = [dcmread(tmp_path / n / "A_seg.dcm") for n in "13"]
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID


def test_without_an_accepted_candidate_there_is_a_report_alone(tmp_path: Path) -> None:
    scan = series(tmp_path, GRIDS["axial"])
    prediction = predict(read_geometry(scan), lesions())
    refused = tuple(replace(c, accepted=False) for c in prediction.candidates)
    seg, sr = written(tmp_path, replace(prediction, candidates=refused), scan)
    assert not seg.exists()
    report = hd.sr.srread(sr).content
    assert not report.get_volumetric_roi_measurement_groups()
    assert not report.get_planar_roi_measurement_groups()
    (group,) = report.get_image_measurement_groups()
    assert measured(group) == {"Number of accepted candidates": 0}
    assert "0 of 3 candidates were accepted" in comments(sr)


def test_bare_boxes_are_drawn_on_the_slices_they_meet(tmp_path: Path) -> None:
    scan = series(tmp_path, GRIDS["head first"])
    geometry = read_geometry(scan)
    prediction = predict(geometry, None)
    seg, sr = written(tmp_path, prediction, scan)
    assert not seg.exists()
    groups = hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    files = [dcmread(file) for file in scan.iterdir()]
    position = {f.SOPInstanceUID: np.array(f.ImagePositionPatient, float) for f in files}
    for group, candidate in zip(groups, prediction.candidates, strict=False):
        regions = group.roi
        slices = range(int(candidate.start_vox[0]), int(candidate.stop_vox[0]))
        assert len(regions) == len(slices)
        for z, region in zip(slices, regions, strict=True):
            (image,) = (
                i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in region.ContentSequence
            )
            mm = geometry.to_mm([(z, 0, 0)])[0]
            np.testing.assert_allclose(position[image] * LPS, mm, atol=1e-3)
            assert region.value[:, 0].min() == candidate.start_vox[2]
            assert region.value[:, 1].max() == candidate.stop_vox[1]


def test_an_enhanced_file_is_segmented_frame_by_frame(tmp_path: Path) -> None:
    grid = GRIDS["oblique sagittal"]
    path = enhanced(tmp_path / "scan.dcm", grid)
    geometry = read_geometry(path)
    seg, sr = written(tmp_path, predict(geometry, lesions()), path)
    check_reference(seg, predict(geometry, lesions()))
    assert len(hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()) == 2
    _, boxes = written(tmp_path / "b", predict(geometry, None), path)
    groups = hd.sr.srread(boxes).content.get_volumetric_roi_measurement_groups()
    image = groups[0].roi[0].ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedFrameNumber == 5  # slice 0 is stored last


@pytest.mark.parametrize("located", [True, False])
def test_a_radiograph_has_its_segments_and_regions_on_the_image(
    located: bool, tmp_path: Path
) -> None:
    pixels = np.arange(24, dtype=np.uint16).reshape(4, 6)
    elements = {**PATIENT, "Modality": "DX", "ImagerPixelSpacing": [0.2, 0.2]}
    elements |= {} if located else {"FrameOfReferenceUID": None}
    path = save(tmp_path / "x.dcm", pixels, DX, **elements)
    geometry, scan = read_geometry(path), path
    seg, sr = written(tmp_path, predict(geometry, flat()), scan)
    made = hd.seg.segread(seg)
    uid = str(dcmread(path).SOPInstanceUID)
    array = made.get_pixels_by_source_instance([uid], combine_segments=True)[0]
    np.testing.assert_array_equal(array, np.where(flat() < 3, flat(), 0))
    groups = hd.sr.srread(sr).content.get_planar_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == ["lesion 1", "cyst 2"]
    (diameter,) = (m for m in groups[0].get_measurements() if m.name.meaning == "Diameter")
    assert "at the detector" in diameter.method.meaning
    (frame,) = items(groups[1], "121214")
    assert frame.ReferencedSOPSequence[0].ReferencedSegmentNumber == 2
    _, boxes = written(tmp_path / "b", predict(geometry, None), scan)
    region = hd.sr.srread(boxes).content.get_planar_roi_measurement_groups()[0].roi
    assert region.value.tolist() == [[1, 0], [5, 0], [5, 2], [1, 2], [1, 0]]


def test_very_many_candidates_are_one_segment_a_label(tmp_path: Path) -> None:
    folder = series(tmp_path, GRIDS["axial"])
    ids = np.arange(1, 121, dtype=np.int32).reshape(5, 4, 6)
    assert ids.max() > MOST_SEGMENTS
    made = tuple(
        Candidate(n, 1 + n % 2, 0.5, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), 1.0, 0.1)
        for n in range(1, 121)
    )
    prediction = Prediction("A", read_geometry(folder), made, instances=ids)
    seg, _ = written(tmp_path, prediction, folder)
    assert [s.SegmentLabel for s in dcmread(seg).SegmentSequence] == ["lesion", "cyst"]
    check_reference(seg, prediction)


def test_regions_are_one_segment_a_mask_value(tmp_path: Path) -> None:
    scan = series(tmp_path, GRIDS["axial"])
    geometry = read_geometry(scan)
    values = np.where(lesions() > 0, 1, 0).astype(np.uint8)
    values[0, 0, 2] = 2
    prediction = predict(geometry, lesions(), values=values)
    seg, _ = written(tmp_path, prediction, scan)
    check_reference(seg, prediction)


@pytest.mark.filterwarnings("ignore:Invalid value")  # pydicom, as the test writes them
@pytest.mark.parametrize(
    "changes",
    [
        {"PatientSex": "W", "PatientBirthDate": "29.2.1948", "StudyDate": "?"},
        dict.fromkeys(PATIENT),
        {"StudyInstanceUID": None, "SeriesNumber": 7},
    ],
)
def test_poor_headers_are_completed(changes: Mapping[str, Any], tmp_path: Path) -> None:
    scan = series(tmp_path, GRIDS["oblique"], **changes)
    prediction = predict(read_geometry(scan), lesions())
    seg, sr = written(tmp_path, prediction, scan)
    check_reference(seg, prediction)
    assert len(hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()) == 2


def test_what_the_library_refuses_is_told_without_the_patient(tmp_path: Path) -> None:
    elements = {"PatientName": "SECRET", "SOPInstanceUID": None}
    scan = series(tmp_path, GRIDS["axial"], **elements)
    with pytest.raises(OutputError, match="dicom_output=false") as caught:
        written(tmp_path, predict(GRIDS["axial"], lesions()), scan)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert list(tmp_path.glob("*.dcm")) == []
