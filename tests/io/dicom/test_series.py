"""DICOM series: sorted, placed and rescaled; what is no slice of one volume is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import GeometryError, LesionsegError, ReadError
from lesionseg.io.dicom.headers import image_header
from lesionseg.io.inspection import inspect_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.local_files import content_files
from lesionseg.io.volumes import read_geometry, read_volume, write_volume
from tests.io.dicom_files import (
    LPS,
    SECONDARY_CAPTURE,
    lps,
    place,
    save,
    voxels,
)

Series = Callable[..., Path]


def test_slices_are_sorted_by_position_and_rescaled_each_by_its_own_slope(
    series: Series, grid: Geometry
) -> None:
    volume = read_volume(series())
    expected = voxels() * np.arange(1, 6)[:, None, None] - 1000.0
    np.testing.assert_array_equal(volume.array[0], expected)
    assert volume.geometry.distance_mm(grid) < 1e-6  # 3 mm by position, not 5 by thickness
    assert read_geometry(series()).distance_mm(grid) < 1e-6


def test_the_same_scan_as_nifti_lies_in_the_same_place(series: Series, tmp_path: Path) -> None:
    volume = read_volume(series())
    write_volume(tmp_path / "scan.nii.gz", volume)
    again = read_volume(tmp_path / "scan.nii.gz")
    assert again.geometry.matches(volume.geometry)
    np.testing.assert_array_equal(again.array, volume.array)


REFUSED: list[tuple[dict[str, Any], type[LesionsegError], str]] = [
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ReadError, r"localiser.*c\.dcm"),
    ({"SOPClassUID": SECONDARY_CAPTURE}, ReadError, r"secondary capture.*c\.dcm"),
    ({"EchoTime": 80.0}, ReadError, "different echo time.*80"),
    ({"EchoNumbers": 2}, ReadError, "different echo"),
    ({"DiffusionBValue": 1000.0}, ReadError, "different b-value.*1000"),
    ({"TemporalPositionIdentifier": 2}, ReadError, "different temporal position"),
    ({"ImagePositionPatient": None}, ReadError, r"where its pixels lie.*c\.dcm"),
    ({"SeriesInstanceUID": "1.2.3.5"}, ReadError, r"2 DICOM series.*c\.dcm"),
    ({"PixelSpacing": [0.75, 0.6]}, GeometryError, r"pixel size.*c\.dcm"),
    ({"Rows": 3, "PixelData": b"\0" * 36}, GeometryError, r"number of pixels.*c\.dcm"),
    ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, GeometryError, "direction"),
    ({"SamplesPerPixel": 3}, ReadError, r"in colour.*c\.dcm"),
    ({"NumberOfFrames": 2}, ReadError, r"2 frames.*c\.dcm"),
]


@pytest.mark.parametrize(
    ("change", "error", "named"), REFUSED, ids=[next(iter(r[0])) for r in REFUSED]
)
def test_what_is_no_slice_of_one_volume_is_refused_by_name(
    series: Series, change: dict[str, Any], error: type[LesionsegError], named: str
) -> None:
    with pytest.raises(error, match=named):
        read_volume(series({2: change}))


def test_a_duplicate_is_refused_and_phases_are_told_from_it(series: Series, grid: Geometry) -> None:
    at_one = place(grid, 1)
    with pytest.raises(ReadError, match=r"duplicates.*(a\.dcm|c\.dcm)"):
        read_volume(series({2: at_one}))
    with pytest.raises(ReadError, match="several phases of one place: acquisition"):
        read_volume(series({2: {**at_one, "AcquisitionNumber": 2}}))


def test_a_gap_over_five_per_cent_is_refused(series: Series, grid: Geometry) -> None:
    moved = {"ImagePositionPatient": lps(grid, (2.04, 0, 0))}
    assert read_volume(series({2: moved})).array.shape == (1, 5, 4, 6)
    moved = {"ImagePositionPatient": lps(grid, (2.06, 0, 0))}
    with pytest.raises(
        GeometryError, match=r"not evenly spaced.*3\.18 mm.*a\.dcm and c\.dcm|2\.82"
    ):
        read_volume(series({2: moved}))


def test_a_missing_slice_is_refused(series: Series) -> None:
    folder = series()
    (folder / "c.dcm").unlink()
    with pytest.raises(GeometryError, match="missing or displaced"):
        read_volume(folder)


def test_a_tilted_gantry_is_refused_or_resampled_upright(series: Series, grid: Geometry) -> None:
    pixels = {z: {"ImagePositionPatient": lps(grid, (z, 0.5 * z, 0))} for z in range(5)}
    folder = series({z: {**place(grid, z), **pixels[z], "RescaleSlope": 1} for z in range(5)})
    with pytest.raises(GeometryError, match=r"tilted.*data\.dicom\.tilt=resample"):
        read_volume(folder)
    upright = read_volume(folder, tilt="resample")
    assert upright.geometry.matches(read_geometry(folder, tilt="resample"))
    assert upright.geometry.shape == (5, 6, 6)
    axes = upright.geometry.affine[:3, :3] / np.array(upright.geometry.spacing_mm)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    # slice 2 lies one row further down than slice 0, and row 1 of it shows voxel row 0
    np.testing.assert_allclose(upright.array[0, 2, 1:5], voxels()[2] - 1000, atol=1e-3)
    np.testing.assert_allclose(upright.array[0, 0, :4], voxels()[0] - 1000, atol=1e-3)
    assert (upright.array[0, 0, 4:] == -1000).all()


def test_a_single_slice_takes_its_thickness(
    series: Series, caplog: pytest.LogCaptureFixture
) -> None:
    volume = read_volume(series() / "d.dcm")
    assert volume.array.shape == (1, 1, 4, 6)
    assert volume.geometry.spacing_mm[0] == pytest.approx(5)
    assert "single slice" in caplog.text


def test_a_file_without_suffix_is_known_by_its_preamble(series: Series) -> None:
    folder = series()
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(""))
    assert read_volume(folder).array.shape == (1, 5, 4, 6)
    assert len(content_files(folder)) == 5


def test_reports_beside_the_images_are_passed_by(series: Series) -> None:
    folder = series()
    save(folder / "report.dcm", None, "1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    (folder / "notes.txt").write_text("x")
    assert read_volume(folder).array.shape == (1, 5, 4, 6)


def test_a_truncated_file_is_refused(series: Series) -> None:
    folder = series()
    file = folder / "c.dcm"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ReadError, match=r"c\.dcm"):
        read_volume(folder)


def _without_suffixes(folder: Path) -> None:
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(""))


@pytest.mark.parametrize("bare", [False, True], ids=["dcm", "without suffix"])
def test_a_last_slice_cut_anywhere_is_refused_by_name(series: Series, bare: bool) -> None:
    """However much of it was copied, the scan is not read as one of four slices."""
    folder = series()
    if bare:
        _without_suffixes(folder)
    file = folder / ("b" if bare else "b.dcm")  # the last in place
    whole = file.read_bytes()
    for n in (0, 50, 131, 132, 140, 200, 300, 400, 500, 600, 650, 700, 745, len(whole) - 1):
        file.write_bytes(whole[:n])
        with pytest.raises(LesionsegError, match=r"\bb(\.dcm)?\b"):
            read_volume(folder)
        assert [c.images for c in find_images(folder, 1)] == [(folder,)]  # told by reading it


def test_inspection_tells_of_a_slice_that_was_cut_short(series: Series, tmp_path: Path) -> None:
    file = series() / "b.dcm"
    whole = file.read_bytes()
    (tmp_path / "manifest.csv").write_text("case,image\nA,scan\n")
    dataset = read_dataset(tmp_path)
    for n in (140, 400, 745):
        file.write_bytes(whole[:n])
        found = inspect_case(dataset.cases[0], dataset)
        assert [kind for kind, _ in found.faults] == ["unreadable"]
        assert "b.dcm" in str(found.faults[0][1])


def test_what_is_no_image_is_left_out_by_name(
    series: Series, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = series()
    others = {
        "plan.dcm": "1.2.840.10008.5.1.4.1.1.481.5",
        "raw.dcm": "1.2.840.10008.5.1.4.1.1.66",
        "state.dcm": "1.2.840.10008.5.1.4.1.1.11.1",
        "vendor.dcm": "1.3.12.2.1107.5.9.1",
    }
    for name, kind in others.items():
        save(folder / name, None, kind, Modality="OT")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "README").write_text("Scan of a phantom.")
    assert read_volume(folder).array.shape == (1, 5, 4, 6)
    for name in (*others, "DICOMDIR", "README"):
        assert f"{name} is left out" in caplog.text


def test_a_damaged_file_alone_is_a_scan_that_cannot_be_read(tmp_path: Path, series: Series) -> None:
    folder = series()
    whole = (folder / "b.dcm").read_bytes()
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "b.dcm").write_bytes(whole[:300])
    (found,) = find_images(tmp_path / "study", 1)
    with pytest.raises(ReadError, match=r"b\.dcm"):
        read_volume(found.images[0])


def test_an_independent_reader_sees_the_same_scan(series: Series) -> None:
    import SimpleITK as sitk

    folder = series({z: {"RescaleSlope": 2} for z in range(5)})
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_volume(folder)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    for index in ((0, 0, 0), (4, 3, 5), (1, 2, 0)):
        theirs = np.array(image.TransformIndexToPhysicalPoint(index[::-1])) * LPS
        np.testing.assert_allclose(volume.geometry.to_mm([index])[0], theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("PixelSpacing", [-1, 1], "pixel size that is not positive"),
        ("PixelSpacing", [1], "where its pixels lie.*2 numbers"),
        ("ImagePositionPatient", [1, 2, 3, 4], "where its pixels lie.*3 numbers"),
        ("Rows", 1, "other pixels than its header states"),
    ],
)
def test_a_slice_whose_header_cannot_be_is_refused_by_name(
    series: Series, name: str, value: object, what: str
) -> None:
    file = next(series({0: {name: value}}).glob("d.dcm"))
    with pytest.raises(ReadError, match=what) as caught:
        read_volume(file)
    assert str(file) in str(caught.value)


def test_an_element_that_is_damaged_is_a_refusal_wherever_it_is_asked_for(series: Series) -> None:
    file = next(series().glob("d.dcm"))
    content = bytearray(file.read_bytes())
    at = content.index(b"\x08\x00\x16\x00UI") + 4  # SOPClassUID, of no known representation
    content[at : at + 2] = b"U\x13"
    file.write_bytes(content)
    for read in (read_volume, read_geometry, image_header):
        with pytest.raises(ReadError, match="Cannot read the file"):
            read(file)
