"""DICOM results: segmentations and reports have the position of the scan and state their origin."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread

from lesionseg.core import Candidate, OperatingPoint, Prediction
from lesionseg.errors import OutputError
from lesionseg.io.dicom.headers import image_header
from lesionseg.io.dicom.reference import read_dicom_reference
from lesionseg.io.dicom.results import MOST_SEGMENTS, ResultOrigin, write_dicom_results
from lesionseg.io.volumes import read_geometry
from tests.io.dicom_files import DX, LPS, enhanced, grid_of, lps, save, write_series

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
GRIDS = {
    "axial": grid_of("SPL"),
    "head first": grid_of("IPL"),
    "coronal": grid_of("AIL"),
    "oblique": grid_of("SPL", angles=(20, -10, -35)),
    "oblique sagittal": grid_of("RIP", angles=(-15, 25, 8)),
}


def lesions(dims=3):
    """Return instances of two asymmetric candidates and of a third that is not accepted."""
    ids = np.zeros((5, 4, 6), np.int32)
    ids[0, 0, 1:5], ids[1, 0, 1], ids[0, 1, 4], ids[2, 0, 1] = 1, 1, 1, 1
    ids[3, 2, 2], ids[4, 2, 2], ids[4, 3, 2], ids[4, 0, 5] = 2, 2, 2, 3
    if dims == 3:
        return ids
    ids[0, 2, 0], ids[0, 3, 5] = 2, 3
    return ids[0]


def predict(scan, *, drawn=True, **changes):
    """Make candidates of the `lesions`, as boxes unless they are drawn."""
    geometry, made = read_geometry(scan), []
    ids = lesions(geometry.dims)
    for number, label, score in ((1, 1, 0.9), (2, 2, 0.7), (3, 1, 0.3)):
        one = Candidate.from_voxels(number, label, score, np.argwhere(ids == number), geometry)
        ml = 0.25 * number if geometry.dims == 3 else None
        sizes = {"diameter_mm": 1.5 * number, "volume_ml": ml, "probability": score / 2}
        made.append(replace(one, has_mask=drawn, accepted=number < 3, **sizes))
    prediction = Prediction("A", geometry, tuple(made), ids if drawn else None)
    return replace(prediction, operating_point=POINT, **changes)


def series(root, grid, **elements):
    return write_series(root, grid, {z: {**PATIENT, **elements} for z in range(grid.shape[0])})


def written(folder, prediction, scan, origin=ORIGIN):
    """Write and read segmentation and report, and check that the former equals the mask."""
    seg, sr = folder / "A_seg.dcm", folder / "A_sr.dcm"
    paths = {"report": sr, "segmentation": seg}
    assert write_dicom_results(scan, prediction, origin, LABELS, **paths) == seg.exists()
    if seg.exists() and prediction.geometry.dims == 3:
        reference = read_dicom_reference(seg, prediction.geometry, LABELS)
        np.testing.assert_array_equal(reference.labels, prediction.mask())
    return seg, sr


def volumetric(sr):
    return hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_has_the_position_of_the_scan(name, tmp_path):
    scan = series(tmp_path, GRIDS[name])
    seg, _ = written(tmp_path, predict(scan), scan)
    # the library's reader places the segments as one volume, ours each frame by its elements
    volume = hd.seg.segread(seg).get_volume(combine_segments=True)
    index = np.argwhere(volume.array)
    mm = (np.c_[index, np.ones(len(index))] @ volume.affine.T)[:, :3] * LPS
    expected = read_geometry(scan).to_mm(np.argwhere(np.isin(lesions(), (1, 2))))
    assert {tuple(p) for p in np.round(mm, 2) + 0.0} == {tuple(p) for p in np.round(expected, 2)}


def test_patient_study_and_source_are_those_of_the_scan(tmp_path):
    uneven = {"ImagePositionPatient": lps(GRIDS["oblique"], (3.04, 0, 0))}  # a bit, as scanners do
    changes = {z: PATIENT | (uneven if z == 3 else {}) for z in range(5)}
    scan = write_series(tmp_path, GRIDS["oblique"], changes)
    files = {(f := dcmread(path)).SOPInstanceUID: f for path in scan.iterdir()}
    source = next(iter(files.values()))
    for path in written(tmp_path, predict(scan), scan):
        made = dcmread(path)
        for name in ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
            assert made[name].value == source[name].value
        assert str(made.PatientName) == PATIENT["PatientName"]
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        assert (made.ContentDate, made.ContentTime) == ("20240131", "101112")
        assert image_header(path) is None
    seg = hd.seg.segread(tmp_path / "A_seg.dcm")
    assert seg.FrameOfReferenceUID == "1.2.9"
    assert {uids[2] for uids in seg.get_source_image_uids()} == files.keys()
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    one, two = (seg.get_segment_description(n) for n in (1, 2))
    assert [one.segment_label, two.segment_label] == ["lesion 1", "cyst 2"]
    (made_by,) = one.SegmentationAlgorithmIdentificationSequence
    assert ORIGIN.bundle in made_by.AlgorithmParameters
    for frame in seg.PerFrameFunctionalGroupsSequence:  # each names the slice it was drawn on
        image = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(at, files[image].ImagePositionPatient, atol=1e-3)


def measured(group):
    return {m.name.meaning: float(m.value) for m in group.get_measurements()}


def items(group, code):
    content = group[0].ContentSequence
    return [i for i in content if i.ConceptNameCodeSequence[0].CodeValue == code]


def comments(path):
    raw = dcmread(path)
    return " ".join(str(i.TextValue) for i in raw.ContentSequence if i.ValueType == "TEXT")


def test_report_has_a_group_per_candidate_that_names_its_segment(tmp_path):
    scan = series(tmp_path, GRIDS["oblique"])
    path, sr = written(tmp_path, predict(scan), scan)
    seg, groups = hd.seg.segread(path), volumetric(sr)
    assert [g.tracking_identifier for g in groups] == ["lesion 1", "cyst 2"]
    assert measured(groups[1]) == {
        "Score of the model": 0.7,
        "Calibrated probability of a lesion": 0.35,
        "Volume": 0.5,
        "Diameter": 3.0,
    }
    for number, group in enumerate(groups, start=1):
        (segment,) = items(group, "121191")
        (reference,) = segment.ReferencedSOPSequence
        assert reference.ReferencedSegmentNumber == number
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        described = seg.get_segment_description(number)
        assert group.tracking_uid == described.tracking_uid
        assert group.tracking_identifier == described.tracking_id == described.segment_label
    assert "not a medical device" in comments(sr)
    assert "2 of 3 candidates" in comments(sr)


def test_segment_name_of_a_long_label_keeps_its_number(tmp_path):
    scan = series(tmp_path, GRIDS["axial"])
    names, seg = {1: "l" * 64, 2: "cyst"}, tmp_path / "A_seg.dcm"
    paths = {"report": tmp_path / "A_sr.dcm", "segmentation": seg}
    assert write_dicom_results(scan, predict(scan), ORIGIN, names, **paths)
    labels = [s.SegmentLabel for s in dcmread(seg).SegmentSequence]
    assert labels == ["l" * 62 + " 1", "cyst 2"]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    scan = series(tmp_path, GRIDS["oblique"])
    one, two = (
        [path.read_bytes() for path in written(tmp_path / n, predict(scan), scan)] for n in "12"
    )
    assert one == two
    written(tmp_path / "3", predict(scan), scan, replace(ORIGIN, key="0" * 16))
    made = [dcmread(tmp_path / n / "A_seg.dcm") for n in "13"]
    assert made[0].SOPInstanceUID != made[1].SOPInstanceUID


def test_without_accepted_candidates_only_a_report_is_written(tmp_path):
    scan = series(tmp_path, GRIDS["axial"])
    none = tuple(replace(c, accepted=False) for c in predict(scan).candidates)
    seg, sr = written(tmp_path, predict(scan, candidates=none), scan)
    assert not seg.exists()
    assert not volumetric(sr)
    (group,) = hd.sr.srread(sr).content.get_image_measurement_groups()
    assert measured(group) == {"Number of accepted candidates": 0}
    assert "0 of 3 candidates" in comments(sr)


def test_boxes_are_drawn_on_the_slices_that_they_cover(tmp_path):
    scan = series(tmp_path, GRIDS["head first"])
    geometry, prediction = read_geometry(scan), predict(scan, drawn=False)
    seg, sr = written(tmp_path, prediction, scan)
    assert not seg.exists()
    files = [dcmread(file) for file in scan.iterdir()]
    position = {f.SOPInstanceUID: np.array(f.ImagePositionPatient, float) for f in files}
    for group, candidate in zip(volumetric(sr), prediction.candidates[:2], strict=True):
        slices = range(int(candidate.start_vox[0]), int(candidate.stop_vox[0]))
        for z, region in zip(slices, group.roi, strict=True):
            (image,) = (i.ReferencedSOPSequence[0] for i in region.ContentSequence)
            mm = geometry.to_mm([(z, 0, 0)])[0]
            np.testing.assert_allclose(position[image.ReferencedSOPInstanceUID] * LPS, mm, 1e-4)
            assert region.value[:, 0].min() == candidate.start_vox[2]
            assert region.value[:, 1].max() == candidate.stop_vox[1]


def test_an_enhanced_file_is_segmented_frame_by_frame(tmp_path):
    scan = enhanced(tmp_path / "scan.dcm", GRIDS["oblique sagittal"])
    _, sr = written(tmp_path, predict(scan), scan)
    assert len(volumetric(sr)) == 2
    _, boxes = written(tmp_path / "b", predict(scan, drawn=False), scan)
    image = volumetric(boxes)[0].roi[0].ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedFrameNumber == 5  # slice 0 is stored last


@pytest.mark.parametrize("located", [True, False])
def test_a_radiograph_has_its_segments_and_regions_on_the_image(located, tmp_path):
    elements = {**PATIENT, "Modality": "DX", "ImagerPixelSpacing": [0.2, 0.2]}
    elements |= {} if located else {"FrameOfReferenceUID": None}
    scan = save(tmp_path / "x.dcm", np.arange(24, dtype=np.uint16).reshape(4, 6), DX, **elements)
    seg, sr = written(tmp_path, predict(scan), scan)
    uid, made = str(dcmread(scan).SOPInstanceUID), hd.seg.segread(seg)
    array = made.get_pixels_by_source_instance([uid], combine_segments=True)[0]
    np.testing.assert_array_equal(array, np.where(lesions(2) < 3, lesions(2), 0))
    groups = hd.sr.srread(sr).content.get_planar_roi_measurement_groups()
    assert [g.tracking_identifier for g in groups] == ["lesion 1", "cyst 2"]
    (diameter,) = (m for m in groups[0].get_measurements() if m.name.meaning == "Diameter")
    assert "at the detector" in diameter.method.meaning
    (frame,) = items(groups[1], "121214")
    assert frame.ReferencedSOPSequence[0].ReferencedSegmentNumber == 2
    _, boxes = written(tmp_path / "b", predict(scan, drawn=False), scan)
    region = hd.sr.srread(boxes).content.get_planar_roi_measurement_groups()[0].roi
    assert region.value.tolist() == [[1, 0], [5, 0], [5, 2], [1, 2], [1, 0]]


def test_many_candidates_or_regions_give_one_segment_per_mask_value(tmp_path):
    scan = series(tmp_path, GRIDS["axial"])
    ids = np.arange(1, 121, dtype=np.int32).reshape(5, 4, 6)
    assert ids.max() > MOST_SEGMENTS
    box = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    made = tuple(Candidate(n, 1 + n % 2, 0.5, *box, 1.0, 0.1) for n in range(1, 121))
    seg, _ = written(tmp_path, predict(scan, candidates=made, instances=ids), scan)
    assert [s.SegmentLabel for s in dcmread(seg).SegmentSequence] == ["lesion", "cyst"]
    values = (lesions() > 0).astype(np.uint8)
    values[0, 0, 2] = 2
    written(tmp_path / "regions", predict(scan, values=values), scan)


@pytest.mark.filterwarnings("ignore:Invalid value")  # pydicom, as the test writes them
@pytest.mark.parametrize(
    "changes",
    [
        {"PatientSex": "W", "PatientBirthDate": "29.2.1948", "StudyDate": "?"},
        dict.fromkeys(PATIENT),
        {"StudyInstanceUID": None, "SeriesNumber": 7},
    ],
)
def test_poor_headers_are_completed(changes, tmp_path):
    scan = series(tmp_path, GRIDS["oblique"], **changes)
    seg, sr = written(tmp_path, predict(scan), scan)
    assert seg.exists()
    assert len(volumetric(sr)) == 2


def test_error_of_the_library_does_not_contain_the_patient(tmp_path):
    scan = series(tmp_path, GRIDS["axial"], PatientName="SECRET", SOPInstanceUID=None)
    with pytest.raises(OutputError, match="dicom_output=false") as caught:
        written(tmp_path, predict(scan), scan)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert list(tmp_path.glob("*.dcm")) == []
