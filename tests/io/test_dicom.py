"""DICOM: sorting and rescaling of series, radiographs, references and damaged files."""

import re
import zlib
from functools import partial

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import config, dcmread, uid
from pydicom.sequence import Sequence

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io.cases import read_case, read_reference
from lesionseg.io.contents import content_files
from lesionseg.io.dicom import headers
from lesionseg.io.dicom.headers import read_acquisition, read_header, read_series_uid
from lesionseg.io.layouts import read_dataset
from lesionseg.io.scans import find_scans
from lesionseg.io.volumes import read_geometry, read_volume, write_volume
from lesionseg.ops.components import lesions_of
from tests.io import dicom_files as dicom
from tests.io.dicom_files import (
    LPS,
    VOXELS,
    check_is_whole,
    check_pixels,
    make_mask,
    slice_elements,
    to_lps,
    write_dicom_file,
)
from tests.io.first_case import read_first_of


def test_slices_are_sorted_by_position_and_rescaled_by_their_own_slope(series, grid, tmp_path):
    expected = VOXELS * np.arange(1, 6)[:, None, None] - 1000.0
    enhanced = dicom.write_enhanced(tmp_path / "mr.dcm", grid)  # the same by per-frame groups
    for path, values in ((series(), expected), (enhanced, expected + 1000)):
        volume = read_volume(path)
        np.testing.assert_array_equal(volume.array[0], values)
        # 3 mm by position, not 5 by thickness
        assert volume.geometry.distance_mm(grid) < 1e-6
        assert read_geometry(path).distance_mm(grid) < 1e-6


def test_series_is_read_like_by_simpleitk(series):
    folder = series(RescaleSlope=2)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (4, 3, 5), (1, 2, 0)):
        theirs = np.array(image.TransformIndexToPhysicalPoint(index[::-1])) * LPS
        np.testing.assert_allclose(volume.geometry.to_mm([index])[0], theirs, atol=1e-6)


UNFIT = [
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, GeometryError, "localiser"),
    ({"SOPClassUID": dicom.SECONDARY_CAPTURE}, GeometryError, "secondary capture"),
    ({"EchoTime": 80.0}, GeometryError, "echo time"),
    ({"DiffusionBValue": 1000.0}, GeometryError, "b-value"),
    ({"ImagePositionPatient": None}, ReadError, "ImagePositionPatient is .*leave the file out"),
    ({"ImagePositionPatient": [1, 2]}, ReadError, "ImagePositionPatient is .*leave the file out"),
    ({"ImageOrientationPatient": [0] * 6}, ReadError, "ImageOrientationPatient is "),
    ({"PixelSpacing": None}, ReadError, "PixelSpacing is .*leave the file out"),
    ({"PixelSpacing": [0, 1]}, ReadError, "PixelSpacing"),
    ({"SeriesInstanceUID": "1.2.3.5"}, GeometryError, "series"),
    ({"SeriesInstanceUID": None}, GeometryError, "series"),
    ({"StudyInstanceUID": "1.2.4"}, GeometryError, "study"),
    ({"PatientID": "P2"}, GeometryError, "patient"),
    ({"PixelSpacing": [0.75, 0.6]}, GeometryError, "pixel size"),
    ({"Rows": 3, "PixelData": b"\0" * 36}, GeometryError, "number of pixels"),
    ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, GeometryError, "direction"),
    ({"SamplesPerPixel": 3}, GeometryError, "in colour"),
    ({"NumberOfFrames": 2}, GeometryError, "2 frames"),
    ({"Rows": 60000, "Columns": 60000}, ReadError, "claims more voxels"),
]


@pytest.mark.parametrize(("change", "error", "named"), UNFIT)
def test_error_names_a_slice_that_does_not_fit_the_volume(series, change, error, named):
    with pytest.raises(error, match=rf"c\.dcm.*{named}"):
        read_volume(series({2: change}))


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localiser"),
        (
            {"SOPClassUID": dicom.SECONDARY_CAPTURE, "ImagePositionPatient": None},
            r"a secondary capture \(a screenshot\)",
        ),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "another direction"),
        ({"PixelSpacing": [1.5, 1.5]}, "another pixel size"),
        ({"Rows": 3, "PixelData": b"\0" * 36}, "another number of pixels"),
    ],
)
def test_images_of_a_series_outside_its_stack_are_left_out_and_named(
    series, grid, caplog, elements, reason
):
    folder = series()
    expected = read_volume(folder)
    for name in ("scout1.dcm", "scout2.dcm"):
        facts = {"Modality": "CT", **slice_elements(grid, 1), **elements}
        write_dicom_file(folder / name, VOXELS[0], dicom.CT, **facts)
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array, expected.array)
    assert volume.geometry.distance_mm(expected.geometry) < 1e-9
    assert read_geometry(folder).distance_mm(expected.geometry) < 1e-9
    assert re.search(rf"scout1\.dcm, scout2\.dcm: {reason}", caplog.text)


def test_series_without_a_main_stack_is_an_error(series, grid):
    folder = series()
    sagittal = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    for z in range(5):
        elements = {**slice_elements(grid, z), **sagittal}
        write_dicom_file(folder / f"s{z}.dcm", VOXELS[z], dicom.CT, **elements)
    with pytest.raises(GeometryError, match="differ in their direction"):
        read_volume(folder)


def test_duplicate_slices_are_an_error(series, grid):
    with pytest.raises(GeometryError, match="duplicates"):
        read_volume(series({2: slice_elements(grid, 1)}))


@pytest.mark.parametrize("names", ["c", "abcde"])
def test_copies_of_slices_are_left_out_with_one_warning(series, caplog, names):
    folder = series()
    expected = read_volume(folder)
    for name in names:
        (folder / f"{name} (1).dcm").write_bytes((folder / f"{name}.dcm").read_bytes())
    np.testing.assert_array_equal(read_volume(folder).array, expected.array)
    (record,) = caplog.records
    assert "c.dcm" in record.getMessage()
    assert "a copy" in record.getMessage()


MAGNITUDE = ["ORIGINAL", "PRIMARY", "M", "ND"]
PHASE = ["ORIGINAL", "PRIMARY", "P", "ND"]
CONTRADICTIONS = [
    ("FrameOfReferenceUID", "1.2.1", "1.2.2", {}),
    ("ConvolutionKernel", ["Br40d", "3"], ["Br40d", "4"], {}),
    ("ImageType", MAGNITUDE, PHASE, {}),
    ("ImageType", MAGNITUDE, ["DERIVED", "PRIMARY", "DIFFUSION"], {"Modality": "MR"}),
]


@pytest.mark.parametrize(("name", "first", "second", "elements"), CONTRADICTIONS)
def test_images_of_two_kinds_are_never_one_scan(series, name, first, second, elements):
    changes = {z: {name: first if z < 3 else second, **elements} for z in range(5)}
    with pytest.raises(GeometryError, match=f"differ in their {name}.*separate folders"):
        read_volume(series(changes))
    # the elements of a slice that is left out do not matter
    changes[3][name] = first
    changes[4]["ImageOrientationPatient"] = [0, 1, 0, 0, 0, -1]
    assert read_volume(series(changes)).array.shape == (1, 4, 4, 6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("FrameOfReferenceUID", ["1.2.1", None, "1.2.1", "", "1.2.1"]),
        ("ConvolutionKernel", [None, "B30f", "B30f", "", None]),
        ("ConvolutionKernel", [["Br40d", "3"]] * 5),
        ("ImageType", [MAGNITUDE, "", ["ORIGINAL"], ["ORIGINAL", "PRIMARY"], [*MAGNITUDE, "NORM"]]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "AXIAL"], *[["DERIVED", "PRIMARY", "OTHER"]] * 4]),
        ("EchoTime", [90, 90.0001, 89.9999, 90, 90]),
        ("DiffusionBValue", [1000.0, 1000.0001, 1000.0, 1000.0, 1000.0]),
        ("AcquisitionTime", ["100000", "101500", "100000", "101500", "100000"]),
        ("AcquisitionNumber", [1, 2, 3, 4, 5]),  # GE: one rotation for each slice
        ("AcquisitionNumber", [1, None, 1, "", 1]),
    ],
)
def test_elements_that_do_not_contradict_each_other_are_one_scan(series, caplog, name, values):
    folder = series({z: {name: value} for z, value in enumerate(values)})
    check_is_whole(folder)
    assert not caplog.records


@pytest.mark.parametrize("name", ["AcquisitionNumber", "TemporalPositionIdentifier"])
@pytest.mark.parametrize(
    "values",
    [[1, 1, 2, 1, 1], [1, 2, 3, 1, 4], [1, 2, None, 1, 2]],
    ids=str,
)
def test_passes_that_overlap_are_an_error(series, name, values):
    folder = series({z: {name: value} for z, value in enumerate(values)})
    for read in (read_volume, read_geometry):
        with pytest.raises(GeometryError, match=f"{name} overlap.*separate folders"):
            read(folder)


def test_passes_at_equal_places_are_an_error_that_names_the_element(series):
    folder = series(AcquisitionNumber=1)
    rename_all(folder, "first")
    series(AcquisitionNumber=2)
    with pytest.raises(GeometryError, match="AcquisitionNumber overlap"):
        read_volume(folder)


def test_passes_that_follow_each_other_give_a_warning(series, caplog):
    folder = series({4: {"AcquisitionNumber": 2}}, AcquisitionNumber=1)
    check_is_whole(folder)
    (record,) = caplog.records
    assert "AcquisitionNumber has 2 values" in record.getMessage()


@pytest.mark.parametrize("z", [0, 2, 4])
@pytest.mark.parametrize("name", ["ImageOrientationPatient", "PixelSpacing"])
def test_plane_that_differs_by_rounding_belongs_to_the_stack(series, grid, caplog, z, name):
    across, down = np.reshape(slice_elements(grid, z)["ImageOrientationPatient"], (2, 3))
    rounded = {
        "ImageOrientationPatient": [*(across + 3e-4 * down), *(down - 3e-4 * across)],
        "PixelSpacing": [0.75 * 1.00025, 0.5],
    }
    volume = read_volume(series({z: {name: rounded[name]}}))
    assert volume.array.shape == (1, 5, 4, 6)
    assert volume.geometry.distance_mm(grid) < 0.01
    assert not caplog.records


ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
ADVICE = [
    (dicom.CT, "CT", {}, "position of each slice.*dcm2niix"),
    (dicom.SECONDARY_CAPTURE, "CT", {}, "dcm2niix"),
    (dicom.ENHANCED_MR, "MR", {"NumberOfFrames": 2}, "2 frames.*position of each slice.*dcm2niix"),
    (ULTRASOUND, "US", {"NumberOfFrames": 2}, "2 frames.*PNG"),
    (ULTRASOUND, "US", {"SamplesPerPixel": 3}, "in colour.*PNG"),
    (ULTRASOUND, "US", {"PhotometricInterpretation": "PALETTE COLOR"}, "PNG"),
    ("1.2.840.10008.5.1.4.1.1.13.1.4", "MG", {}, "PNG"),
]


@pytest.mark.parametrize(("kind", "modality", "elements", "words"), ADVICE)
def test_advice_depends_on_the_modality(tmp_path, kind, modality, elements, words):
    path = write_dicom_file(tmp_path / "a.dcm", VOXELS[0], kind, Modality=modality, **elements)
    with pytest.raises(ReadError, match=rf"a\.dcm: .*{words}") as caught:
        read_volume(path)
    assert ("dcm2niix" in words) != ("PNG" in str(caught.value))


def test_frames_of_one_file_at_one_place_get_advice_that_can_be_followed(grid, tmp_path):
    frames = [(z, VOXELS[z], {}) for z in (0, 1, 2, 0, 1, 2)]
    path = dicom.write_frames(tmp_path / "a.dcm", grid, frames, dicom.ENHANCED_MR, Modality="MR")
    with pytest.raises(GeometryError, match="dcm2niix"):
        read_volume(path)


@pytest.mark.parametrize(
    ("sequence", "name", "values", "words"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", [1, 2], "TemporalPositionIndex overlap"),
        ("FrameContentSequence", "FrameAcquisitionNumber", [1, 2], "FrameAcquisitionNumber over"),
        ("FrameContentSequence", "FrameAcquisitionNumber", [1, 2, 3, 4, 5], None),
        ("MRImageFrameTypeSequence", "FrameType", [MAGNITUDE, PHASE], "differ in their ImageType"),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", ["MAGNITUDE", "PHASE"], "Complex"),
        ("CTReconstructionSequence", "ConvolutionKernel", ["B30f", "B70f"], "ConvolutionKernel"),
    ],
    ids=str,
)
def test_frames_of_two_kinds_are_never_one_scan(grid, tmp_path, sequence, name, values, words):
    frames = [
        (z, VOXELS[z], {sequence: dicom.make_sequence(**{name: values[z % len(values)]})})
        for z in range(5)
    ]
    path = dicom.write_frames(tmp_path / "a.dcm", grid, frames, dicom.ENHANCED_MR, Modality="MR")
    if words is None:
        check_is_whole(path)
        return
    with pytest.raises(GeometryError, match=words):
        read_volume(path)


def test_distances_between_slices_that_differ_by_over_5_percent_are_an_error(series, grid):
    read_volume(series({2: {"ImagePositionPatient": to_lps(grid, (2.04, 0, 0))}}))
    with pytest.raises(GeometryError, match="not evenly spaced"):
        read_volume(series({2: {"ImagePositionPatient": to_lps(grid, (2.06, 0, 0))}}))


def test_missing_slices_are_an_error(series):
    folder = series()
    (folder / "c.dcm").unlink()
    with pytest.raises(GeometryError, match="not evenly spaced"):
        read_volume(folder)
    (folder / "d.dcm").rename(folder.parent / "d.dcm")  # distances of 6 and 3 mm are left
    with pytest.raises(GeometryError, match=r"6 mm between .*, elsewhere 3 mm"):
        read_volume(folder)
    # the thickness of a single slice
    assert read_volume(folder.parent / "d.dcm").geometry.spacing_mm[0] == pytest.approx(5)


@pytest.mark.parametrize(("rows", "is_read"), [(0.12, True), (0.13, False)])
def test_slices_shifted_by_over_half_a_row_in_total_are_an_error(series, grid, rows, is_read):
    folder = series({z: {"ImagePositionPatient": to_lps(grid, (z, rows * z, 0))} for z in range(5)})
    if is_read:
        check_is_whole(folder)
        return
    with pytest.raises(GeometryError, match="dcm2niix"):
        read_volume(folder)


@pytest.mark.parametrize("suffix", [".dcm", ""], ids=["dcm", "without suffix"])
def test_error_names_a_truncated_last_slice(series, suffix):
    """Check that a scan of five slices is never read as a scan of four slices."""
    folder = series()
    for file in [*folder.iterdir()]:
        file.rename(file.with_suffix(suffix))
    check_is_whole(folder)
    assert len(content_files(folder)) == 5
    file = folder / f"b{suffix}"  # the last slice by position
    whole = file.read_bytes()
    for n in (0, 50, 131, 132, 140, 300, 500, 650, 745, len(whole) - 1):
        file.write_bytes(whole[:n])
        with pytest.raises(LesionsegError, match=r"\bb(\.dcm)?\b"):
            read_volume(folder)
        # the error follows when it is read
        assert [c.images for c in find_scans(folder, 1).cases()] == [(folder,)]


def test_damaged_element_is_an_error_in_every_reader(series):
    file = series() / "d.dcm"
    content = file.read_bytes()
    # SOPClassUID with an unknown value representation
    file.write_bytes(content.replace(b"\x08\x00\x16\x00UI", b"\x08\x00\x16\x00U\x13"))
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=r"d\.dcm"):
            read(file)


def test_files_that_are_not_scans_are_left_out(series):
    folder = series()
    # a report, a plan, a vendor's own
    for kind in ("1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.481.5", "1.3.12.2.1107"):
        write_dicom_file(folder / f"{kind}.dcm", None, kind, Modality="OT")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README").write_text("Scan of a phantom.")
    check_is_whole(folder)


def rename_all(folder, prefix):
    for file in [*folder.glob("?.dcm")]:
        file.rename(file.with_name(f"{prefix}_{file.name}"))


def test_each_series_of_a_flat_folder_is_a_case(series, tmp_path):
    folder = series(SeriesNumber=4)
    rename_all(folder, "first")
    series(SeriesInstanceUID="1.2.3.5", SeriesNumber=7, RescaleSlope=1)
    first, second = find_scans(folder, 1).cases()
    assert re.fullmatch("scan_4_[0-9a-f]{8}", first.case)
    assert re.fullmatch("scan_7_[0-9a-f]{8}", second.case)
    assert second.images == (folder / "series=7",)
    check_pixels(second.images[0], VOXELS - 1000.0)
    (tmp_path / "manifest.csv").write_text("case,image\nA,scan/series=1.2.3.5\n")
    assert read_first_of(tmp_path).image.array.shape == (1, 5, 4, 6)
    with pytest.raises(ReadError, match="series=7"):
        read_volume(folder / "series=8")


def test_series_without_uid_are_separated_by_patient_and_number(series):
    unknown = {"SeriesInstanceUID": None, "PatientID": "A", "SeriesNumber": 4, "RescaleSlope": 1}
    folder = series(**unknown)
    (single,) = find_scans(folder, 1).cases()
    assert (single.case, single.images) == ("scan", (folder,))
    for n, change in enumerate(({"SeriesNumber": 5}, {"PatientID": "B"})):
        rename_all(folder, n)
        series(**{**unknown, **change})
    found = find_scans(folder, 1).cases()
    assert [one.case[:7] for one in found] == ["scan_4_", "scan_4_", "scan_5_"]
    for one in found:
        check_is_whole(one.images[0])
        assert len(content_files(one.images[0])) == 5
    with pytest.raises(GeometryError, match=r"differ in their series.*separate folders"):
        read_volume(folder)


def to_syntax(path, syntax):
    """Write a file again with another transfer syntax."""
    header = dcmread(path)
    if syntax == uid.RLELossless:
        header.compress(syntax)
    header.file_meta.TransferSyntaxUID = syntax
    header.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.DeflatedExplicitVRLittleEndian])
def test_rle_and_deflated_series_give_the_same_scan(series, syntax):
    folder = series()
    plain = read_volume(folder)
    for file in folder.iterdir():
        to_syntax(file, syntax)
    compressed = read_volume(folder)
    np.testing.assert_array_equal(compressed.array, plain.array)
    assert compressed.geometry.matches(plain.geometry)


def write_deflated(path):
    """Write a deflated file. Return the bytes before its deflated stream, and the inflated ones."""
    write_dicom_file(path, np.zeros((4, 4), np.uint16), dicom.CT)
    to_syntax(path, uid.DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    return content[:start], zlib.decompress(content[start:], -zlib.MAX_WBITS)


def deflate(*contents):
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(map(packer.compress, contents)) + packer.flush()


def lengthen_group_2(head):
    """Make the value of an element before the transfer syntax 2000 bytes long."""
    version = b"\2\0\1\0OB\0\0"
    before, after = head.split(version + b"\2\0\0\0\0\1")
    return before + version + (2000).to_bytes(4, "little") + bytes(2000) + after


HEADS = {
    "usual": lambda head: head,
    "without preamble": lambda head: head[132:],
    "long group 2": lengthen_group_2,
    "both": lambda head: lengthen_group_2(head)[132:],
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_limit_of_deflated_files_does_not_depend_on_their_start(tmp_path, monkeypatch, change):
    path = tmp_path / "a.dcm"
    head, content = write_deflated(path)
    path.write_bytes(change(head) + deflate(content))
    assert read_header(path, pixels=True).pixel_array.shape == (4, 4)
    assert read_series_uid(path) == dicom.SERIES
    monkeypatch.setattr(headers, "_MAX_INFLATED_BYTES", len(content) - 1)
    with pytest.raises(ReadError, match=r"a\.dcm: .* inflates to more than 256 MiB"):
        read_header(path)
    assert read_series_uid(path) == ""


def test_file_that_is_deflated_twice_is_an_error(tmp_path):
    """The size of the inner stream is not limited, so it may not be inflated."""
    path = tmp_path / "a.dcm"
    head, content = write_deflated(path)
    path.write_bytes(head + deflate(head[132:], deflate(content)))
    with pytest.raises(ReadError, match=r"a\.dcm: .*no pixels"):
        read_volume(path)


PIXELS = np.array([[0, 100, 200], [300, 400, 500]], dtype=np.uint16)


@pytest.fixture
def xray(tmp_path):
    """Write the radiograph `a.dcm` with the given elements."""
    return partial(dicom.write_xray, tmp_path / "a.dcm", PIXELS)


def test_dense_tissue_is_bright_for_both_photometric_interpretations(xray):
    check_pixels(xray(), PIXELS)
    for shape in (None, "INVERSE"):
        path = xray(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape=shape)
        check_pixels(path, 500.0 - PIXELS)


def test_window_maps_its_ends_to_0_and_4095(xray):
    seen = read_volume(xray(WindowCenter=250, WindowWidth=200)).array.ravel()
    assert (*seen[:2], *seen[4:]) == (0, 0, 4095, 4095)
    assert 0 < seen[2] < seen[3] < 4095


def test_padding_has_the_lowest_value_and_is_invalid(xray):
    volume = read_volume(xray(PixelPaddingValue=0, PixelPaddingRangeLimit=150))
    np.testing.assert_array_equal(volume.array[0], [[200, 200, 200], [300, 400, 500]])
    np.testing.assert_array_equal(volume.valid, [[0, 0, 1], [1, 1, 1]])


def test_padding_is_ignored_except_for_lesions(tmp_path, xray):
    xray(PixelPaddingValue=0, PixelPaddingRangeLimit=150)
    mask = np.array([[[0, 1, 0], [0, 0, 1]]], np.uint8)
    write_volume(tmp_path / "m.png", Volume(mask, Geometry.from_spacing((2, 3), (1, 1))))
    dataset = read_dataset(dicom.write_manifest(tmp_path, "a.dcm", "m.png"))
    (files,) = dataset.cases
    for reference in (read_case(files, dataset).reference, read_reference(files, dataset)):
        np.testing.assert_array_equal(reference.ignore, [[1, 0, 0], [0, 0, 0]])


def test_padding_written_as_unsigned_number_is_found_in_signed_pixels(tmp_path):
    pixels = PIXELS.astype(np.int16)
    pixels[0, 0] = -2000
    path = write_dicom_file(tmp_path / "a.dcm", pixels, dicom.DX, Modality="DX")
    header = dcmread(path)
    header.add_new("PixelPaddingValue", "US", 63536)
    header.save_as(path)
    np.testing.assert_array_equal(read_volume(path).valid, [[0, 1, 1], [1, 1, 1]])


def test_padding_of_the_whole_image_is_not_used(xray):
    path = xray(PixelPaddingValue=0, PixelPaddingRangeLimit=500)
    assert read_volume(path).valid is None


AT_DETECTOR = "mm at the detector"
IMAGER = {"ImagerPixelSpacing": [0.2, 0.2]}
FACTOR = "EstimatedRadiographicMagnificationFactor"
DISTANCES = {"DistanceSourceToDetector": 1800, "DistanceSourceToPatient": 1500}
SIZES = [
    ({"PixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"}, 0.1, "mm"),
    ({"PixelSpacing": [0.16, 0.16], **IMAGER}, 0.16, "mm"),  # it differs from IMAGER
    ({"PixelSpacing": [0.20001, 0.2], **IMAGER}, 0.2, AT_DETECTOR),
    ({"PixelSpacing": [0.16, 0.16], **IMAGER, FACTOR: 1.1}, 0.16, "mm"),
    ({"PixelSpacing": [0.2, 0.2], **IMAGER, FACTOR: 1.25}, 0.16, "mm"),
    ({"PixelSpacing": [0.1, 0.1], "NominalScannedPixelSpacing": [0.2, 0.2]}, 0.1, "mm"),
    ({"NominalScannedPixelSpacing": [0.2, 0.2]}, 0.2, AT_DETECTOR),
    ({**IMAGER, FACTOR: 0}, 0.2, AT_DETECTOR),
    ({**IMAGER, **DISTANCES, "DistanceSourceToPatient": 0}, 0.2, AT_DETECTOR),
    ({**IMAGER, "PixelSpacing": ""}, 0.2, AT_DETECTOR),
    ({**IMAGER, **DISTANCES}, 0.2 / 1.2, "mm"),
    ({"PixelSpacing": [0.1, 0.1]}, 0.1, AT_DETECTOR),
    ({"PixelSpacing": [-1, 1]}, 1.0, "px"),
    ({}, 1.0, "px"),
]


@pytest.mark.parametrize(("elements", "mm", "unit"), SIZES)
def test_pixel_size_and_its_unit_follow_from_the_elements(xray, elements, mm, unit):
    path = xray(**elements)
    assert read_volume(path).geometry.spacing_mm == pytest.approx((mm, mm))
    assert read_geometry(path).size_unit == unit


@pytest.mark.parametrize(
    ("elements", "mm", "unit"),
    [
        ({}, 0.3, "mm"),
        ({"PixelSpacing": [-1, 1]}, 0.3, "mm"),
        ({"PixelSpacing": [0.1, 0.1]}, 0.1, "mm at the detector"),  # the file's own has priority
    ],
)
def test_radiograph_without_a_pixel_size_has_that_of_the_table(tmp_path, xray, elements, mm, unit):
    path = xray(**elements)
    (tmp_path / "manifest.csv").write_text("case,image,pixel_mm\na,a.dcm,0.3\n")
    for geometry in (
        read_geometry(path, pixel_mm=0.3),
        read_volume(path, pixel_mm=0.3).geometry,
        read_first_of(tmp_path).image.geometry,
    ):
        assert geometry.spacing_mm == pytest.approx((mm, mm))
        assert geometry.size_unit == unit
    with pytest.raises(ReadError, match="mm"):
        read_volume(xray(), pixel_mm=1e9)


def test_folder_of_several_radiographs_is_an_error(tmp_path, xray):
    path = xray()
    assert read_volume(tmp_path).geometry.dims == 2
    (tmp_path / "b.dcm").write_bytes(path.read_bytes())
    assert {c.case for c in find_scans(tmp_path, 1).cases()} == {"a", "b"}
    with pytest.raises(ReadError, match="several images"):
        read_volume(tmp_path)


def read_found(root, reference, labels=None, **rules):
    """Read the reference of the only case."""
    dicom.write_manifest(root, "scan", reference, labels)
    return read_first_of(root, **rules).reference


def read_labels(root, reference, labels=None):
    return read_found(root, reference, labels).labels


@pytest.fixture
def read_drawn(series, grid, tmp_path):
    """Write the series and a reference by a function. Read the reference of the only case."""

    def read(write, *content, labels=None, **rules):
        series()
        write(tmp_path / "ref.dcm", grid, *content)
        return read_found(tmp_path, "ref.dcm", labels, **rules)

    return read


LABELS = '{"1": "lesion", "2": "cyst"}'
NUMBERED = ("lesion 1", "lesion 2", "cyst")


def test_seg_is_read_as_label_values(read_drawn):
    masks = {
        "Lung": make_mask((0, 0, 0)),
        "LESION": make_mask((1, 2, 3), (3, 1, 0)),
        "cyst": make_mask((4, 3, 5)),
        "Ignore": make_mask((2, 2, 2)),
    }
    names = '{"1": "lesion", "2": "cyst", "9": "ignore"}'
    found = read_drawn(dicom.write_seg, masks, labels=names)
    np.testing.assert_array_equal(found.labels, masks["LESION"] + 2 * masks["cyst"])
    np.testing.assert_array_equal(found.ignore, masks["Ignore"])


@pytest.mark.parametrize("kind", ["MONOCHROME2", "PALETTE COLOR"])
def test_pixels_of_a_label_map_are_numbers_of_segments(series, grid, tmp_path, kind):
    series()
    drawn = make_mask((1, 2, 3)) + 2 * make_mask((4, 3, 5)).astype(np.uint16)
    segments = [
        dicom.make_item(SegmentNumber=n, SegmentLabel=name)
        for n, name in enumerate(("Background", "lesion", "cyst"))
    ]
    dicom.write_frames(
        tmp_path / "seg.dcm",
        grid,
        [(z, plane, {}) for z, plane in enumerate(drawn)],
        "1.2.840.10008.5.1.4.1.1.66.7",
        SegmentSequence=Sequence(segments),
        SegmentationType="LABELMAP",
        PhotometricInterpretation=kind,
        Modality="SEG",
    )
    labels = read_labels(tmp_path, "seg.dcm", '{"1": "cyst", "2": "lesion"}')
    np.testing.assert_array_equal(labels, np.array([0, 2, 1])[drawn])


def test_seg_without_a_known_label_is_an_error(read_drawn):
    masks = {"a": make_mask((1, 2, 3)), "b": make_mask((1, 1, 1))}
    with pytest.raises(LesionsegError, match=r"ref\.dcm: no segment or contour set is called"):
        read_drawn(dicom.write_seg, masks)


def test_seg_on_another_grid_is_an_error(series, grid, tmp_path):
    series()
    affine = grid.affine.copy()
    affine[:3, 3] += 1.0
    mask = make_mask((1, 2, 3))
    dicom.write_seg(tmp_path / "seg.dcm", Geometry(grid.shape, affine), {"lesion": mask})
    with pytest.raises(GeometryError, match=r"seg\.dcm"):
        read_labels(tmp_path, "seg.dcm")


OUTER = (2.0, ((-0.5, -0.5), (-0.5, 4.5), (3.5, 4.5), (3.5, -0.5)))
INNER = (2.0, ((0.5, 0.5), (0.5, 2.5), (2.5, 2.5), (2.5, 0.5)))
SMALL = (2.0, ((1.7, 2.1), (1.7, 2.3), (1.9, 2.2)))


@pytest.mark.parametrize(
    ("drawn", "hole"),
    [((OUTER, INNER), slice(1, 3)), ((SMALL, OUTER), slice(0)), ((OUTER, OUTER), slice(0))],
    ids=["inner contour is a hole", "hole without a pixel", "repeated contour"],
)
def test_contours_are_filled_except_for_holes(read_drawn, drawn, hole):
    expected = np.zeros((5, 4, 6), dtype=np.uint8)
    expected[2, :, :5] = 1
    expected[2, hole, hole] = 0
    np.testing.assert_array_equal(read_drawn(dicom.write_rtstruct, *drawn).labels, expected)


def test_segments_of_other_names_are_named(read_drawn, caplog):
    masks = {name: make_mask((z, 0, 0)) for z, name in enumerate(("GTV-1", "gtv2", "Tumour"))}
    labels = read_drawn(dicom.write_seg, masks, labels='{"1": "GTV"}').labels
    assert labels.any(axis=(1, 2)).tolist() == [True, True, False, False, False]
    assert "names of no label are left out: Tumour." in caplog.text


def touch(*slices):
    """Make masks that touch each other: columns of three pixels, one next to the other."""
    masks = []
    for x in slices:
        mask = np.zeros((5, 4, 6), dtype=bool)
        mask[1:3, :3, x] = True
        masks.append(mask)
    return masks


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("names", "types", "are_lesions"),
    [
        (("lesion 1", "lesion 2", "cyst"), (), True),
        (("lesion-1", "LESION 07", "cyst"), ("a", "a", "b"), True),
        (("lesion 1", "lesion 2", "cyst"), ("a", "b", "b"), False),
        (("lesion 1", "organ", "cyst"), (), False),
    ],
)
def test_numbered_segments_are_lesions(read_drawn, names, types, are_lesions, merged):
    masks = dict(zip(names, touch(1, 2, slice(4, 5)), strict=True))
    masks[names[0]][4, [3, 0], [5, 0]] = True  # two other parts of the same lesion
    reference = read_drawn(dicom.write_seg, masks, types, labels=LABELS, merge_labels=merged)
    lesions = lesions_of(reference)
    assert len(lesions.ids) == (3 if are_lesions else 4)
    assert sum(lesions.n_voxels) == np.count_nonzero(reference.labels)
    assert set(lesions.labels.tolist()) == ({1} if merged else {1, 2})


def test_later_segment_keeps_the_voxels_of_a_numbered_one(read_drawn):
    masks = dict(zip(NUMBERED, touch(1, slice(2, 4), 3), strict=True))
    lesions = lesions_of(read_drawn(dicom.write_seg, masks, labels=LABELS))
    assert sorted(zip(lesions.labels, lesions.n_voxels, strict=True)) == [(1, 6), (1, 6), (2, 6)]


def test_numbered_segments_of_a_label_that_is_not_annotated_are_background(read_drawn, tmp_path):
    masks = dict(zip(NUMBERED, touch(1, 2, slice(4, 5)), strict=True))
    read_drawn(dicom.write_seg, masks, labels=LABELS)
    table = "case,image,reference,annotated\nA,scan,ref.dcm,cyst\n"
    (tmp_path / "manifest.csv").write_text(table)
    reference = read_first_of(tmp_path).reference
    assert reference.unannotated == (1,)
    assert lesions_of(reference).labels.tolist() == [2]


@pytest.mark.parametrize(
    ("names", "sizes"), [(("lesion 1", "lesion 2"), [6, 6]), (("lesion 1", "lesion"), [12])]
)
def test_numbered_contour_sets_are_lesions(series, grid, tmp_path, names, sizes):
    series()
    path = tmp_path / "rt.dcm"
    headers = []
    for number, (name, x) in enumerate(zip(names, (0, 2), strict=True), start=1):
        corners = ((0, x), (0, x + 1), (2, x + 1), (2, x))
        headers.append(dcmread(dicom.write_rtstruct(path, grid, (1.0, corners), name=name)))
        headers[-1].StructureSetROISequence[0].ROINumber = number
        headers[-1].ROIContourSequence[0].ReferencedROINumber = number
    for sequence in ("StructureSetROISequence", "ROIContourSequence"):
        headers[0][sequence].value.extend(headers[1][sequence].value)
    headers[0].save_as(path)
    assert lesions_of(read_found(tmp_path, "rt.dcm")).n_voxels.tolist() == sizes


SCAN = {"FrameOfReferenceUID": "1.5", "StudyInstanceUID": "1.6", "PatientID": "P"}


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (SCAN, ""),
        ({"FrameOfReferenceUID": "1.9"}, "another frame of reference"),
        ({"ReferencedSeriesSequence": [dicom.SERIES]}, ""),
        ({"ReferencedSeriesSequence": ["1.9", dicom.SERIES]}, ""),
        ({"ReferencedSeriesSequence": ["1.9"]}, "another series"),
        ({"StudyInstanceUID": "1.9"}, "another study"),
        ({"PatientID": "Q"}, "another patient"),
        ({"PatientID": ""}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_reference_of_another_scan_is_noticed(
    series, grid, tmp_path, caplog, kind, elements, words
):
    series(**SCAN)
    path = tmp_path / "ref.dcm"
    if kind == "seg":
        dicom.write_seg(path, grid, {"lesion": make_mask((1, 2, 3))})
    else:
        dicom.write_rtstruct(path, grid, OUTER)
    header = dcmread(path)
    elements = {"SeriesInstanceUID": "1.7", **SCAN, **elements}
    named = elements.pop("ReferencedSeriesSequence", None)
    if named is not None:
        items = [dicom.make_item(SeriesInstanceUID=series_uid) for series_uid in named]
        header.ReferencedSeriesSequence = Sequence(items)
    for name, value in elements.items():
        setattr(header, name, value)
    header.save_as(path)
    if words in ("another frame of reference", "another series"):
        with pytest.raises(GeometryError, match=rf"ref\.dcm: .* {words}"):
            read_labels(tmp_path, "ref.dcm")
        return
    assert read_labels(tmp_path, "ref.dcm").any()
    warned = " ".join(row.getMessage() for row in caplog.records if row.levelname == "WARNING")
    assert ("another" in warned) == bool(words)
    assert words in warned


@pytest.mark.parametrize(("frame", "is_read"), [("1.5", True), ("1.9", False)])
def test_contours_may_refer_to_another_series_in_the_frame_of_the_scan(
    series, grid, tmp_path, frame, is_read
):
    series(**SCAN)
    path = dicom.write_rtstruct(tmp_path / "rt.dcm", grid, OUTER)
    header = dcmread(path)
    of_series = dicom.make_sequence(SeriesInstanceUID="1.9")
    of_study = dicom.make_sequence(RTReferencedSeriesSequence=of_series)
    header.ReferencedFrameOfReferenceSequence = dicom.make_sequence(
        FrameOfReferenceUID=frame, RTReferencedStudySequence=of_study
    )
    header.save_as(path)
    if is_read:
        assert read_labels(tmp_path, "rt.dcm").any()
        return
    with pytest.raises(GeometryError, match="another frame of reference"):
        read_labels(tmp_path, "rt.dcm")


def shift(contour, slices, pixels=0):
    """Return a contour on another slice, moved along x."""
    return (contour[0] + slices, [(y, x + pixels) for y, x in contour[1]])


@pytest.mark.parametrize(
    ("drawn", "n_empty"),
    [
        ([INNER, shift(INNER, 1), shift(INNER, 2)], 0),
        ([shift(INNER, -2), INNER, shift(INNER, 2)], 2),
        ([shift(INNER, -2, -0.5), shift(INNER, 2, 2.5)], 0),  # two lesions
        # another lesion on the empty slice
        ([shift(INNER, -1), shift(INNER, 1), *[shift(INNER, n, 3) for n in (-1, 0, 1)]], 1),
    ],
)
def test_empty_slices_between_contours_are_a_warning(read_drawn, caplog, drawn, n_empty):
    read_drawn(dicom.write_rtstruct, *drawn)
    assert re.findall(r"(\d+) empty slices", caplog.text) == [str(n_empty)] * bool(n_empty)


def test_contour_set_without_contours_is_named(read_drawn, caplog):
    assert not read_drawn(dicom.write_rtstruct).labels.any()
    assert "nothing is drawn for 1 contour set" in caplog.text


def test_contour_between_two_slices_is_an_error(read_drawn):
    with pytest.raises(GeometryError, match=r"ref\.dcm"):
        read_drawn(dicom.write_rtstruct, (2.4, ((0, 0), (0, 2), (2, 2))))


@pytest.mark.parametrize(
    ("elements", "acquired", "scanner"),
    [
        ({"StudyDate": "20260107", "Manufacturer": "M"}, "2026-01-07", "M"),
        ({"StudyDate": "2026.01.07", "StationName": "MR1"}, "2026-01-07", "MR1"),  # ACR-NEMA
        (
            {"Manufacturer": "M", "ManufacturerModelName": "X 3T", "StationName": "MR1"},
            "",
            "M, X 3T, MR1",
        ),
        ({"StudyDate": "202601", "Manufacturer": " ", "StationName": "a\x07b"}, "", "a\\x07b"),
    ],
)
def test_date_and_scanner_are_those_of_the_header(tmp_path, elements, acquired, scanner):
    file = tmp_path / "a.dcm"
    with config.disable_value_validation():
        write_dicom_file(file, VOXELS[0], dicom.CT, **elements)
    assert read_acquisition(file) == {"acquired": acquired, "scanner": scanner}
