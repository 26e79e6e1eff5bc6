"""What is peculiar to NIfTI: scaling, units, byte order, form codes, axes and claims."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import GeometryError, ReadError
from lesionseg.io.volumes import read_geometry, read_volume, write_volume

Write = Callable[..., Path]


def test_scaled_files_give_float32(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nibabel.save(image, tmp_path / "a.nii.gz")
    stored = nibabel.load(tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0].T, stored.get_fdata())


def test_a_slope_of_one_keeps_the_dtype(tmp_path: Path, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "a.nii", np.zeros((2, 3, 4), np.int16))
    assert read_volume(path).array.dtype == np.int16


def test_big_endian_files_give_native_numbers(tmp_path: Path, write_nifti: Write) -> None:
    array = np.arange(24).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(array.astype(np.int16), np.eye(4))
    swapped = nibabel.Nifti1Image(array.astype(">i2"), np.eye(4), image.header.as_byteswapped(">"))
    swapped.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array[0].T, array)


def test_the_array_is_writable_and_outlives_its_file(tmp_path: Path, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "a.nii", np.ones((2, 3, 4), np.int16))
    array = read_volume(path).array
    path.unlink()
    array += 1
    assert not isinstance(array, np.memmap)
    assert array.flags.c_contiguous


def test_nifti_2_is_read(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti2Image(array, np.diag([1, 2, 3, 1])), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[0].T, array)
    assert volume.geometry.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize(("unit", "factor"), [("micron", 0.001), ("meter", 1000), ("mm", 1)])
def test_spatial_units_become_millimetres(tmp_path: Path, unit: str, factor: float) -> None:
    stored = np.array([4.0, 5, 6]) / max(factor, 1)  # voxels of metres are refused
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([*stored, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    expected = stored[::-1] * factor
    np.testing.assert_allclose(read_geometry(tmp_path / "a.nii").spacing_mm, expected)


def test_one_slice_stays_three_axes(tmp_path: Path, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((5, 4, 1), np.uint8))
    assert read_volume(path).geometry.shape == (1, 4, 5)


def test_a_file_of_two_axes_has_two_spatial_axes(tmp_path: Path, write_nifti: Write) -> None:
    affine = np.diag([-0.5, 2.0, 1, 1])
    affine[:2, 3] = (7, 8)
    array = np.arange(20, dtype=np.uint8).reshape(5, 4)
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", array, affine))
    assert volume.geometry.shape == (4, 5)
    assert volume.geometry.spacing_mm == (2, 0.5)
    np.testing.assert_array_equal(volume.array[0].T, array)
    np.testing.assert_allclose(volume.geometry.to_mm([[1, 2]]), [[6, 10]])
    write_volume(tmp_path / "b.nii.gz", volume)
    assert read_volume(tmp_path / "b.nii.gz").geometry.matches(volume.geometry, 1e-5)


def test_an_upright_file_of_two_axes_keeps_its_spacing(tmp_path: Path, write_nifti: Write) -> None:
    coronal = np.array([[0.5, 0, 0, 1], [0, 0, 1, 2], [0, 2.0, 0, 3], [0, 0, 0, 1]])
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((5, 4), np.uint8), coronal)
    np.testing.assert_allclose(read_geometry(path).spacing_mm, (2, 0.5))


def test_trailing_axes_of_one_are_dropped(tmp_path: Path, write_nifti: Write) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.zeros((5, 4, 3, 1), np.uint8))
    assert read_volume(path).array.shape == (1, 3, 4, 5)


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 4, 1, 1, 3), (7,)])
def test_other_numbers_of_axes_are_refused(
    tmp_path: Path, write_nifti: Write, shape: tuple[int, ...]
) -> None:
    path = write_nifti(tmp_path / "many.nii.gz", np.zeros(shape, np.uint8))
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match="two or three spatial axes") as refused:
            read(path)
        assert "many.nii.gz" in str(refused.value)
        assert "_0000" in str(refused.value)


def test_colour_is_refused(tmp_path: Path) -> None:
    colour = np.zeros((3, 3, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(ReadError, match=r"not plain numbers.*rgb\.nii"):
        read_volume(tmp_path / "rgb.nii")


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
def test_a_claim_beyond_the_file_is_refused_before_allocating(tmp_path: Path, name: str) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((32000, 32000, 32000))
    content = header.binaryblock + bytes(4) + bytes(100)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=r"claims more voxels.*huge\.nii"):
            read(tmp_path / name)


def test_a_header_without_voxels_is_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((4, 4, 4))
    header["dim"][2] = -4
    (tmp_path / "none.nii").write_bytes(header.binaryblock + bytes(500))
    with pytest.raises(ReadError, match=r"none\.nii"):
        read_volume(tmp_path / "none.nii")


def test_an_affine_that_cannot_be_inverted_is_refused_by_name(
    tmp_path: Path, write_nifti: Write
) -> None:
    path = write_nifti(tmp_path / "flat.nii", np.zeros((2, 2, 2), np.uint8))
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(content))
    with pytest.raises(GeometryError, match=r"flat\.nii"):
        read_volume(path)


def test_written_files_say_millimetres_and_scanner(tmp_path: Path, oblique: Geometry) -> None:
    write_volume(tmp_path / "a.nii.gz", Volume(np.zeros((1, *oblique.shape), np.uint8), oblique))
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert header.get_xyzt_units()[0] == "mm"
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)


@pytest.mark.parametrize(("sform_code", "qform_code"), [(4, 1), (2, 0), (0, 1), (0, 0)])
def test_form_codes_follow_the_scan(
    tmp_path: Path, oblique: Geometry, sform_code: int, qform_code: int
) -> None:
    scan = nibabel.Nifti1Image(np.zeros(oblique.shape[::-1], np.uint8), None)
    scan.set_sform(oblique.affine[:, [2, 1, 0, 3]], sform_code)
    scan.set_qform(oblique.affine[:, [2, 1, 0, 3]], qform_code)
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    write_volume(tmp_path / "mask.nii.gz", volume, like=tmp_path / "scan.nii.gz")
    header = nibabel.load(tmp_path / "mask.nii.gz").header
    expected = (sform_code, qform_code) if sform_code or qform_code else (1, 1)
    assert (header["sform_code"], header["qform_code"]) == expected
    assert read_geometry(tmp_path / "mask.nii.gz").matches(volume.geometry, 1e-4)


def test_two_forms_that_differ_are_both_taken_over(tmp_path: Path, oblique: Geometry) -> None:
    """A scan registered to an atlas by its sform keeps the scanner's frame in its qform."""
    scan = nibabel.Nifti1Image(np.zeros(oblique.shape[::-1], np.uint8), None)
    scan.set_sform(oblique.affine[:, [2, 1, 0, 3]], 4)
    scan.set_qform(np.diag([1.0, 2, 3, 1]), 1)
    nibabel.save(scan, tmp_path / "scan.nii")
    write_volume(tmp_path / "mask.nii", read_volume(tmp_path / "scan.nii"), tmp_path / "scan.nii")
    mask = nibabel.load(tmp_path / "mask.nii")
    np.testing.assert_array_equal(mask.get_sform(), nibabel.load(tmp_path / "scan.nii").get_sform())
    np.testing.assert_allclose(mask.get_qform(), np.diag([1.0, 2, 3, 1]))


def test_a_scan_on_another_grid_lends_only_its_codes(tmp_path: Path, oblique: Geometry) -> None:
    scan = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.diag([9.0, 9, 9, 1]))
    scan.set_sform(scan.affine, 3)
    nibabel.save(scan, tmp_path / "scan.nii")
    volume = Volume(np.zeros((1, *oblique.shape), np.uint8), oblique)
    write_volume(tmp_path / "mask.nii", volume, like=tmp_path / "scan.nii")
    assert nibabel.load(tmp_path / "mask.nii").header["sform_code"] == 3
    assert read_geometry(tmp_path / "mask.nii").matches(oblique, 1e-4)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path, oblique: Geometry) -> None:
    volume = Volume(np.ones((1, *oblique.shape), np.uint8), oblique)
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(tmp_path / name, volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(("off_mm", "said"), [(0.9, False), (1.1, True)])
def test_a_place_stated_twice_is_said(
    tmp_path: Path, off_mm: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), affine)
    image.set_sform(affine, code=1)
    affine[0, 3] = off_mm
    image.set_qform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").geometry.affine[0, 3] == 0
    assert ("sform and qform lie 1.1 mm apart" in caplog.text) == said


@pytest.mark.parametrize("offset", [1e12, -1.0, float("nan")])
def test_h3_voxels_far_behind_the_header_are_refused_before_inflating(
    tmp_path: Path, offset: float
) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[108:112] = np.float32(offset).tobytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(ReadError, match="header is too long"):
        read_volume(tmp_path / "a.nii.gz")


def test_h3_what_goes_on_behind_the_voxels_is_not_inflated_for_ever(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    long = gzip.compress(image.to_bytes() + bytes(2**26 + 2**20), compresslevel=1)
    (tmp_path / "a.nii.gz").write_bytes(long)
    with pytest.raises(ReadError, match="goes on behind its voxels"):
        read_volume(tmp_path / "a.nii.gz")
