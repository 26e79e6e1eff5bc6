"""DICOM results: segmentations and reports have the position of the scan and state their origin."""

from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmread

from lesionseg.core import Candidate, OperatingPoint, Prediction
from lesionseg.errors import ContentError, GeometryError
from lesionseg.extras.pacs import ResultOrigin, write_dicom_results
from lesionseg.io.dicom.headers import image_header
from lesionseg.io.dicom.reference import read_dicom_reference
from lesionseg.io.volumes import read_geometry
from tests.io.dicom_files import (
    DX,
    ENHANCED_MR,
    GRIDS,
    LPS,
    PATIENT,
    VOXELS,
    make_sequence,
    to_lps,
    write_dicom_file,
    write_enhanced,
    write_frames,
    write_patient_series,
    write_series,
)

hd = pytest.importorskip("highdicom")

POINT = OperatingPoint("fp_per_case:1", 0.5, "validation")
ORIGIN = ResultOrigin("0123456789abcdef", "fedcba9876543210", "1.2.3")
LABELS = {1: "lesion", 2: "cyst"}


def make_instances(dims=3):
    """Make instances of two asymmetric candidates and of a third that is not accepted."""
    ids = np.zeros((5, 4, 6), np.int32)
    ids[0, 0, 1:5] = ids[1:3, 0, 1] = ids[0, 1, 4] = 1
    ids[3:, 2, 2] = ids[4, 3, 2] = 2
    ids[4, 0, 5] = 3
    if dims == 2:
        ids[0, 2, 0] = 2
        ids[0, 3, 5] = 3
    return ids if dims == 3 else ids[0]


def make_prediction(scan, *, drawn=True, **changes):
    """Make a prediction with the candidates of `make_instances`, as boxes unless `drawn`."""
    geometry = read_geometry(scan)
    ids = make_instances(geometry.dims)
    candidates = []
    for number, label, score in ((1, 1, 0.9), (2, 2, 0.7), (3, 1, 0.3)):
        one = Candidate.from_voxels(number, label, score, np.argwhere(ids == number), geometry)
        measured = {"diameter_mm": 1.5 * number, "probability": score / 2, "accepted": number < 3}
        if geometry.dims == 3:
            measured["volume_ml"] = 0.25 * number
        candidates.append(replace(one, has_mask=drawn, **measured))
    prediction = Prediction("A", geometry, tuple(candidates), ids if drawn else None)
    return replace(prediction, operating_point=POINT, **changes)


@pytest.fixture
def axial(tmp_path):
    """Write an axial series of a patient."""
    return write_patient_series(tmp_path, GRIDS["axial"])


def write_results(folder, scan, prediction=None, origin=ORIGIN):
    """Write segmentation and report, and check that the segmentation equals the mask.

    By default, the prediction is that of `make_prediction`.
    """
    prediction = prediction or make_prediction(scan)
    seg = folder / "A_seg.dcm"
    sr = folder / "A_sr.dcm"
    has_segmentation = write_dicom_results(scan, prediction, origin, LABELS, folder=folder)
    assert has_segmentation == seg.exists()
    if seg.exists() and prediction.geometry.dims == 3:
        reference = read_dicom_reference(seg, prediction.geometry, LABELS)
        np.testing.assert_array_equal(reference.labels, prediction.mask())
    return seg, sr


def read_groups(sr):
    return hd.sr.srread(sr).content.get_volumetric_roi_measurement_groups()


def read_planar_groups(sr):
    return hd.sr.srread(sr).content.get_planar_roi_measurement_groups()


def write_radiograph(folder, **elements):
    pixels = np.arange(24, dtype=np.uint16).reshape(4, 6)
    elements = {**PATIENT, "Modality": "DX", **elements}
    return write_dicom_file(folder / "x.dcm", pixels, DX, **elements)


def test_scan_with_fewer_slices_than_the_prediction_is_refused(tmp_path, axial):
    prediction = make_prediction(axial)
    (axial / "d.dcm").unlink()  # slice 0
    with pytest.raises(GeometryError, match="shapes differ"):
        write_results(tmp_path, axial, prediction)
    assert not list(tmp_path.glob("*.dcm"))


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_has_the_position_of_the_scan(name, tmp_path):
    scan = write_patient_series(tmp_path, GRIDS[name])
    seg, _ = write_results(tmp_path, scan)
    # highdicom's reader places the segments as one volume, ours places each frame by its elements
    volume = hd.seg.segread(seg).get_volume(combine_segments=True)
    index = np.argwhere(volume.array)
    mm = (np.c_[index, np.ones(len(index))] @ volume.affine.T)[:, :3] * LPS
    expected = read_geometry(scan).to_mm(np.argwhere(np.isin(make_instances(), (1, 2))))
    assert {tuple(p) for p in np.round(mm, 2) + 0.0} == {tuple(p) for p in np.round(expected, 2)}


def test_segments_of_touching_candidates_are_read_as_lesions(tmp_path, axial):
    instances = np.zeros((5, 4, 6), np.int32)
    instances[1:3, :3, 1:3] = [1, 2]
    prediction = make_prediction(axial, instances=instances)
    accepted = tuple(replace(one, label=1, accepted=True) for one in prediction.candidates[:2])
    seg, _ = write_results(tmp_path, axial, replace(prediction, candidates=accepted))
    reference = read_dicom_reference(seg, prediction.geometry, LABELS, [axial])
    np.testing.assert_array_equal(reference.instances, instances)
    assert reference.instance_labels == (1, 1)


def test_patient_study_and_source_are_those_of_the_scan(tmp_path):
    uneven = {
        "ImagePositionPatient": to_lps(GRIDS["oblique"], (3.04, 0, 0))
    }  # slightly uneven, like real scans
    changes = {z: PATIENT | (uneven if z == 3 else {}) for z in range(5)}
    scan = write_series(tmp_path, GRIDS["oblique"], changes)
    headers = [dcmread(path) for path in scan.iterdir()]
    files = {header.SOPInstanceUID: header for header in headers}
    source = headers[0]
    for path in write_results(tmp_path, scan):
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
    (made_by,) = seg.get_segment_description(1).SegmentationAlgorithmIdentificationSequence
    assert ORIGIN.bundle in made_by.AlgorithmParameters
    for frame in seg.PerFrameFunctionalGroupsSequence:  # each names its slice
        image = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        at = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(at, files[image].ImagePositionPatient, atol=1e-3)


def measurements_of(group):
    return {m.name.meaning: float(m.value) for m in group.get_measurements()}


def find_items(group, code):
    content = group[0].ContentSequence
    return [i for i in content if i.ConceptNameCodeSequence[0].CodeValue == code]


def read_comments(path):
    raw = dcmread(path)
    return " ".join(str(i.TextValue) for i in raw.ContentSequence if i.ValueType == "TEXT")


def test_report_has_a_group_per_candidate_that_names_its_segment(tmp_path):
    scan = write_patient_series(tmp_path, GRIDS["oblique"])
    path, sr = write_results(tmp_path, scan)
    seg = hd.seg.segread(path)
    groups = read_groups(sr)
    assert [g.tracking_identifier for g in groups] == ["lesion 1", "cyst 2"]
    assert measurements_of(groups[1]) == {
        "Score of the model": 0.7,
        "Calibrated probability of a lesion": 0.35,
        "Volume": 0.5,
        "Diameter": 3.0,
    }
    for number, group in enumerate(groups, start=1):
        (segment,) = find_items(group, "121191")
        (reference,) = segment.ReferencedSOPSequence
        named = reference.ReferencedSOPInstanceUID, reference.ReferencedSegmentNumber
        assert named == (seg.SOPInstanceUID, number)
        described = seg.get_segment_description(number)
        assert group.tracking_uid == described.tracking_uid
        assert group.tracking_identifier == described.tracking_id == described.segment_label
    comments = read_comments(sr)
    assert "not a medical device" in comments
    assert "2 of 3 candidates" in comments


@pytest.mark.parametrize("kind", ["series", "enhanced", "radiograph"])
def test_report_of_a_single_candidate_names_its_segment(kind, tmp_path):
    if kind == "series":
        scan = write_patient_series(tmp_path, GRIDS["axial"])
    elif kind == "enhanced":
        scan = write_enhanced(tmp_path / "scan.dcm", GRIDS["axial"])
    else:
        scan = write_radiograph(tmp_path)
    prediction = make_prediction(scan)
    candidates = tuple(replace(c, accepted=c.id == 1) for c in prediction.candidates)
    _, sr = write_results(tmp_path, scan, replace(prediction, candidates=candidates))
    groups = read_planar_groups(sr) if kind == "radiograph" else read_groups(sr)
    (item,) = find_items(groups[0], "121214" if kind == "radiograph" else "121191")
    assert item.ReferencedSOPSequence[0].ReferencedSegmentNumber == 1


def test_segment_name_of_a_long_label_keeps_its_number(tmp_path, axial):
    names = {1: "l" * 64, 2: "cyst"}
    write_dicom_results(axial, make_prediction(axial), ORIGIN, names, folder=tmp_path)
    labels = [s.SegmentLabel for s in dcmread(tmp_path / "A_seg.dcm").SegmentSequence]
    assert labels == ["l" * 62 + " 1", "cyst 2"]


def test_same_run_gives_the_same_bytes(tmp_path, axial):
    made = [
        write_results(tmp_path / str(n), axial, origin=origin)
        for n, origin in enumerate((ORIGIN, ORIGIN, replace(ORIGIN, key="0" * 16)))
    ]
    contents = [[path.read_bytes() for path in paths] for paths in made]
    assert contents[0] == contents[1]
    first, _, other = (dcmread(seg).SOPInstanceUID for seg, _ in made)
    assert first != other


def test_without_accepted_candidates_only_a_report_is_written(tmp_path, axial):
    seg, sr = write_results(tmp_path, axial, make_prediction(axial).reject_outside_zones([]))
    assert not seg.exists()
    assert not read_groups(sr)
    (group,) = hd.sr.srread(sr).content.get_image_measurement_groups()
    assert measurements_of(group) == {"Number of accepted candidates": 0}
    comments = read_comments(sr)
    assert "0 of 3 candidates" in comments
    assert "2 candidates outside the kept zones" in comments


def test_boxes_are_drawn_on_the_slices_that_they_cover(tmp_path):
    scan = write_patient_series(tmp_path, GRIDS["head first"])
    geometry = read_geometry(scan)
    prediction = make_prediction(scan, drawn=False)
    seg, sr = write_results(tmp_path, scan, prediction)
    assert not seg.exists()
    files = [dcmread(file) for file in scan.iterdir()]
    position = {f.SOPInstanceUID: np.array(f.ImagePositionPatient, float) for f in files}
    for group, candidate in zip(read_groups(sr), prediction.candidates[:2], strict=True):
        slices = range(int(candidate.start_vox[0]), int(candidate.stop_vox[0]))
        for z, region in zip(slices, group.roi, strict=True):
            (image,) = (i.ReferencedSOPSequence[0] for i in region.ContentSequence)
            mm = geometry.to_mm([(z, 0, 0)])[0]
            np.testing.assert_allclose(position[image.ReferencedSOPInstanceUID] * LPS, mm, 1e-4)
            assert region.value[:, 0].min() == candidate.start_vox[2]
            assert region.value[:, 1].max() == candidate.stop_vox[1]


def test_enhanced_file_is_segmented_frame_by_frame(tmp_path):
    scan = write_enhanced(tmp_path / "scan.dcm", GRIDS["oblique sagittal"])
    _, sr = write_results(tmp_path, scan)
    assert len(read_groups(sr)) == 2
    _, boxes = write_results(tmp_path / "b", scan, make_prediction(scan, drawn=False))
    image = read_groups(boxes)[0].roi[0].ContentSequence[0].ReferencedSOPSequence[0]
    assert image.ReferencedFrameNumber == 5  # slice 0 is stored last


def test_enhanced_file_is_segmented_without_the_frames_of_another_direction(tmp_path):
    """The file begins with two coronal frames, which are left out of the stack."""
    coronal = make_sequence(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    frames = [(0, VOXELS[0], {"PlaneOrientationSequence": coronal})] * 2
    frames += [(z, VOXELS[z], {}) for z in range(5)]
    scan = write_frames(tmp_path / "scan.dcm", GRIDS["axial"], frames, ENHANCED_MR, Modality="MR")
    seg, sr = write_results(tmp_path, scan)
    assert seg.exists()
    assert len(read_groups(sr)) == 2


@pytest.mark.parametrize(
    ("stated_mm", "assumed_mm", "unit", "method"),
    [
        (None, None, "{pixels}", "equal area"),
        (None, 0.2, "mm", "assumed pixel size"),
        (0.2, None, "mm", "at the detector"),
    ],
)
def test_report_states_where_a_pixel_size_is_from(tmp_path, stated_mm, assumed_mm, unit, method):
    stated = {} if stated_mm is None else {"ImagerPixelSpacing": [stated_mm] * 2}
    scan = write_radiograph(tmp_path, **stated)
    geometry = read_geometry(scan, pixel_mm=assumed_mm)
    _, sr = write_results(tmp_path, scan, make_prediction(scan, geometry=geometry))
    measured = read_planar_groups(sr)[0].get_measurements()
    (diameter,) = (m for m in measured if m.name.meaning == "Diameter")
    assert diameter.unit.value == unit
    assert method in diameter.method.meaning


@pytest.mark.parametrize("located", [True, False])
def test_radiograph_has_its_segments_and_regions_on_the_image(located, tmp_path):
    elements = {} if located else {"FrameOfReferenceUID": None}
    scan = write_radiograph(tmp_path, ImagerPixelSpacing=[0.2, 0.2], **elements)
    seg, sr = write_results(tmp_path, scan)
    uid = str(dcmread(scan).SOPInstanceUID)
    array = hd.seg.segread(seg).get_pixels_by_source_instance([uid], combine_segments=True)[0]
    np.testing.assert_array_equal(array, np.where(make_instances(2) < 3, make_instances(2), 0))
    groups = read_planar_groups(sr)
    assert [g.tracking_identifier for g in groups] == ["lesion 1", "cyst 2"]
    (frame,) = find_items(groups[1], "121214")
    assert frame.ReferencedSOPSequence[0].ReferencedSegmentNumber == 2
    _, boxes = write_results(tmp_path / "b", scan, make_prediction(scan, drawn=False))
    region = read_planar_groups(boxes)[0].roi
    assert region.value.tolist() == [[1, 0], [5, 0], [5, 2], [1, 2], [1, 0]]


def test_many_candidates_or_regions_give_one_segment_per_mask_value(tmp_path, axial, monkeypatch):
    monkeypatch.setattr("lesionseg.extras.pacs.result_objects.MAX_SEGMENTS", 3)
    ids = np.arange(120, dtype=np.int32).reshape(5, 4, 6) % 5
    box = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    made = tuple(Candidate(n, 1 + n % 2, 0.5, *box, 1.0, 0.1) for n in range(1, 5))
    values = (make_instances() > 0).astype(np.uint8)
    values[0, 0, 2] = 2
    for name, changes in (
        ("many", {"candidates": made, "instances": ids}),
        ("regions", {"values": values}),
    ):
        seg, _ = write_results(tmp_path / name, axial, make_prediction(axial, **changes))
        assert [s.SegmentLabel for s in dcmread(seg).SegmentSequence] == ["lesion", "cyst"]


@pytest.mark.filterwarnings("ignore:Invalid value")  # pydicom warns when the test writes them
@pytest.mark.parametrize(
    "changes",
    [
        {"PatientSex": "W", "PatientBirthDate": "29.2.1948", "StudyDate": "?"},
        dict.fromkeys(PATIENT),
        {"StudyInstanceUID": None, "SeriesNumber": 7},
        {"SeriesNumber": -3},
        {"StudyInstanceUID": None, "SeriesInstanceUID": None},
    ],
)
def test_poor_headers_are_completed(changes, tmp_path):
    scan = write_patient_series(tmp_path, GRIDS["oblique"], **changes)
    seg, sr = write_results(tmp_path, scan)
    assert seg.exists()
    assert len(read_groups(sr)) == 2


def test_error_of_the_library_does_not_contain_the_patient(tmp_path):
    scan = write_patient_series(tmp_path, GRIDS["axial"], PatientName="SECRET", SOPInstanceUID=None)
    with pytest.raises(ContentError, match="dicom_output=false") as caught:
        write_results(tmp_path, scan)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert list(tmp_path.glob("*.dcm")) == []
