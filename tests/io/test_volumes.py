"""Volumes of every format: round trips of voxels, dtypes and positions, and damaged files."""

import gzip
import itertools
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from lesionseg.core import CaseFiles, Dataset, Geometry, Labels, Volume
from lesionseg.errors import LesionsegError, OutputError, ReadError
from lesionseg.io.cases import content_files, read_image
from lesionseg.io.nifti import states_orientation
from lesionseg.io.volumes import read_geometry, read_volume, write_volume

VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
PLANE = Geometry.from_spacing((3, 4), (1, 1))


def ramp(geometry, dtype="int16"):
    shape = (1, *geometry.shape)
    return Volume(np.arange(np.prod(shape)).astype(dtype).reshape(shape), geometry)


def check_round_trip(path, volume, **settings):
    write_volume(path, volume)
    again = read_volume(path, **settings)
    np.testing.assert_array_equal(again.array, volume.array)
    assert read_geometry(path, **settings).matches(again.geometry)
    return again


@pytest.mark.parametrize("suffix", VOLUMES)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_every_orientation_survives_a_round_trip_and_agrees_with_simpleitk(
    tmp_path, oblique, suffix, axes
):
    affine, path = oblique.affine.copy(), tmp_path / f"a{suffix}"
    affine[:3, :3] = affine[:3, axes] * (-1, 1, -1)
    volume = ramp(Geometry((3, 4, 5), affine))
    assert check_round_trip(path, volume).geometry.distance_mm(volume.geometry) < 1e-4
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.array[0])
    theirs = np.array(image.TransformIndexToPhysicalPoint((4, 3, 2))) * (-1, -1, 1)  # x, y, z
    np.testing.assert_allclose(theirs, volume.geometry.to_mm([[2, 3, 4]])[0], atol=1e-4)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_header_is_read_with_its_voxel_file(tmp_path, suffix):
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.5, 0.75, 3))
    image.SetOrigin((10, -20, 30))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image, str(path), suffix == ".mhd")
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.geometry.to_mm([[1, 1, 1]]), [[-10.5, 19.25, 33]])
    assert len(content_files(path)) == 2


@pytest.mark.parametrize("suffix", VOLUMES)
def test_number_types_are_kept_or_widened(tmp_path, oblique, suffix):
    stored = {t: t for t in ("uint8", "int16", "uint16", "int32", "float32", "float64")}
    for dtype, kept in {**stored, "bool": "uint8", "float16": "float32", "int64": "int32"}.items():
        assert check_round_trip(tmp_path / f"a{suffix}", ramp(oblique, dtype)).array.dtype == kept


@pytest.mark.parametrize("name", ["a.mhd", "a.jpg", "a.xyz", "a.png", "two.nii.gz", "long.nii.gz"])
def test_values_that_a_format_cannot_store_are_an_error(tmp_path, name):
    held = {"t": np.zeros((2, 3, 4), np.uint8), "l": np.full((1, 3, 4), 2**40)}
    array = held.get(name[0], np.zeros((1, 3, 4), np.float32))
    with pytest.raises(OutputError, match=name):
        write_volume(tmp_path / name, Volume(array, PLANE))
    assert not list(tmp_path.iterdir())


def test_nifti_big_endian_version_2_units_and_scaling_are_read(tmp_path):
    array, path = np.arange(24).reshape(2, 3, 4), tmp_path / "a.nii"
    header = nibabel.Nifti2Image(array.astype(np.int16), np.eye(4)).header
    header.set_xyzt_units("micron")
    affine = np.diag([1000.0, 2000, 3000, 1])
    nibabel.Nifti2Image(array.astype(">i2"), affine, header.as_byteswapped(">")).to_filename(path)
    volume = read_volume(path)
    path.unlink()  # the array outlives its file
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array[0].T, array)
    assert volume.geometry.spacing_mm == (3, 2, 1)
    scaled = nibabel.Nifti1Image(array.astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, -10)
    nibabel.save(scaled, path)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0].T, array * 0.5 - 10)


def test_nifti_of_two_axes_has_two_spatial_axes(tmp_path, write_nifti):
    affine = np.diag([-0.5, 2.0, 1, 1])
    affine[:2, 3] = (7, 8)
    array = np.arange(20, dtype=np.uint8).reshape(5, 4)
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", array, affine))
    np.testing.assert_array_equal(volume.array[0].T, array)
    np.testing.assert_allclose(volume.geometry.to_mm([[1, 2]]), [[6, 10]])
    again = check_round_trip(tmp_path / "b.nii.gz", volume)
    assert again.geometry.matches(volume.geometry, 1e-5)
    for shape in ((5, 4, 3, 2), (7,)):
        path = write_nifti(tmp_path / "many.nii", np.zeros(shape, np.uint8))
        with pytest.raises(ReadError, match=r"many\.nii"):
            read_volume(path)
    for shape, axes in (((5, 4, 1), (1, 1, 4, 5)), ((5, 4, 3, 1), (1, 3, 4, 5))):
        path = write_nifti(tmp_path / "c.nii", np.zeros(shape, np.uint8))
        assert read_volume(path).array.shape == axes


def test_nifti_form_codes_and_matrices_of_the_scan_are_copied(tmp_path, oblique):
    path = tmp_path / "scan.nii.gz"
    write_volume(path, ramp(oblique))
    scan = nibabel.load(path)
    scan.set_sform(scan.affine, code=4)
    scan.set_qform(None, code=0)
    nibabel.save(scan, path)
    write_volume(tmp_path / "mask.nii.gz", ramp(oblique, "uint8"), like=path)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (4, 0)
    np.testing.assert_array_equal(mask.get_sform(), scan.get_sform())


@pytest.mark.parametrize(("unit", "mm"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0)])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (2, 0), (0, 0)])
def test_mask_is_written_in_the_unit_of_length_of_the_scan(tmp_path, unit, mm, codes):
    per_unit = np.diag([1 / mm, 1 / mm, 1 / mm, 1])
    affine = per_unit @ np.array([[-1.5, 0, 0, 9], [0, 2, 0, -8], [0, 0, 3, 7], [0, 0, 0, 1]])
    scan = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), affine)
    scan.header.set_xyzt_units(unit)
    scan.set_sform(affine, codes[0])
    scan.set_qform(affine, codes[1])
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    geometry = read_geometry(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(geometry.spacing_mm, (3, 2, 1.5), rtol=1e-5)
    path = tmp_path / "mask.nii.gz"
    write_volume(path, Volume(np.ones((1, 3, 4, 5), np.uint8), geometry), tmp_path / "scan.nii.gz")
    mask, scan = nibabel.load(path), nibabel.load(tmp_path / "scan.nii.gz")
    assert mask.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(mask.affine, scan.affine, rtol=1e-5)
    np.testing.assert_allclose(mask.header.get_zooms(), scan.header.get_zooms(), rtol=1e-5)
    assert read_geometry(path).matches(geometry, 1e-4)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_is_read_whether_compressed_or_not_whatever_its_suffix(tmp_path, write_nifti, name):
    array = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    path = write_nifti(tmp_path / name, array)
    content = path.read_bytes()
    is_compressed = name.endswith(".gz")
    path.write_bytes(gzip.decompress(content) if is_compressed else gzip.compress(content))
    np.testing.assert_array_equal(read_volume(path).array[0].T, array)
    assert read_geometry(path).shape == (3, 4, 5)
    assert states_orientation(path)
    write_volume(tmp_path / "mask.nii.gz", read_volume(path), like=path)
    np.testing.assert_array_equal(read_volume(tmp_path / "mask.nii.gz").array[0].T, array)
    path.write_bytes(gzip.compress(content)[:40])
    with pytest.raises(ReadError, match=name):
        read_volume(path)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pictures_survive_a_round_trip(tmp_path, name, dtype):
    picture = Volume(GREY.astype(dtype)[np.newaxis], PLANE)
    volume = check_round_trip(tmp_path / name, picture, raster_mm=0.2)
    assert volume.array.dtype == dtype
    assert volume.geometry.spacing_mm == (0.2, 0.2)
    np.testing.assert_allclose(volume.geometry.to_mm([[2, 1]]), [[0.2, 0.4]])  # rows run down


COLOUR = np.stack([GREY, GREY.T.reshape(3, 4), 255 - GREY], axis=-1)
PLANES = np.ascontiguousarray(np.moveaxis(COLOUR, -1, 0))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "planes.tif", "wide.tif", "rgba.png"])
def test_a_colour_picture_has_three_channels(tmp_path, name):
    path, expected = tmp_path / name, PLANES
    if name == "planes.tif":
        tifffile.imwrite(path, PLANES, photometric="rgb", planarconfig="separate")
    elif name == "wide.tif":
        expected = PLANES.astype(np.uint16) * 256
        tifffile.imwrite(path, np.moveaxis(expected, 0, -1), photometric="rgb")
    else:
        Image.fromarray(COLOUR).convert("RGBA" if name == "rgba.png" else "RGB").save(path)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, expected)
    assert volume.geometry.shape == read_geometry(path).shape == (3, 4)
    with pytest.raises(ReadError, match="mask is in colour"):
        read_volume(path, as_labels=True)


def test_colour_fills_three_named_channels_or_becomes_brightness(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    Image.fromarray(GREY).convert("RGBA").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_volume(tmp_path / "grey.png").array, GREY[np.newaxis])

    def read(name, *channels):
        dataset = Dataset("x", tmp_path, "nnunet", 2, channels, Labels.of({1: "lesion"}), ())
        return read_image(CaseFiles("a", (tmp_path / name,)), dataset).array

    np.testing.assert_array_equal(read("a.png", "R", "G", "B"), PLANES)
    np.testing.assert_array_equal(read("grey.png", "R", "G", "B"), np.stack([GREY] * 3))
    luma = np.rint(COLOUR @ [0.299, 0.587, 0.114])
    np.testing.assert_array_equal(read("a.png", "photo"), luma[np.newaxis])
    with pytest.raises(LesionsegError, match="one file per channel"):
        read("a.png", "R", "G")


def test_palettes_few_bits_white_is_zero_and_pages_are_read(tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8))
    image.putpalette([0, 0, 0, 128, 128, 128, 255, 255, 255])
    image.save(path)
    assert read_volume(path).array.tolist() == [[[0, 128], [255, 255]]]
    assert read_volume(path, as_labels=True).array.tolist() == [[[0, 1], [2, 2]]]
    Image.fromarray(np.array([[True, False]])).save(path)
    assert read_volume(path, as_labels=True).array.tolist() == [[[1, 0]]]
    path = tmp_path / "a.tif"
    image.save(path)
    assert read_volume(path).array[0].tolist() == [[0, 128], [255, 255]]
    tifffile.imwrite(path, GREY, photometric="miniswhite")
    np.testing.assert_array_equal(read_volume(path).array[0], 255 - GREY)
    Image.fromarray(GREY).save(path, compression="tiff_lzw")
    np.testing.assert_array_equal(read_volume(path).array[0], GREY)
    tifffile.imwrite(path, np.zeros((2, 8, 9), np.uint8), photometric="minisblack")
    assert read_volume(path).array.shape == (1, 2, 8, 9)  # a stack of slices
    tifffile.imwrite(path, np.zeros((2, 8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(ReadError, match=r"a\.tif: the pages"):
        read_volume(path)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_stated_orientation_is_applied(tmp_path, suffix, turn):
    picture = np.zeros((16, 24), np.uint8)  # bright at the upper left, dim at the upper right
    picture[:8, :8], picture[:8, 16:] = 200, 100
    path = tmp_path / f"a{suffix}"
    stored = picture[:, ::-1] if turn in (2, 3, 6, 7) else picture
    stored = stored[::-1] if turn in (3, 4, 7, 8) else stored
    stored = np.ascontiguousarray(stored.T if turn > 4 else stored)
    if suffix == ".tif":
        tifffile.imwrite(path, stored, extratags=[(274, "H", 1, turn, True)])
    else:
        exif = Image.Exif()
        exif[274] = turn
        Image.fromarray(stored).save(path, exif=exif, quality=100)
    volume = read_volume(path)
    assert np.abs(volume.array[0].astype(int) - picture).max() < 8
    assert read_geometry(path).matches(volume.geometry)


@pytest.mark.parametrize("suffix", [*VOLUMES, ".mhd", ".png", ".jpg", ".bmp", ".tif", ".xyz"])
def test_error_names_a_file_that_is_not_an_image(tmp_path, suffix):
    path = tmp_path / f"bad{suffix}"
    for content in (None, b"", b"no image at all, but some text " * 40):
        if content is not None:
            path.write_bytes(content)
        for read in (read_volume, read_geometry):
            with pytest.raises(ReadError, match=re.escape(path.name)):
                read(path)


@pytest.mark.parametrize("suffix", [*VOLUMES, ".png", ".tif"])
def test_truncated_or_damaged_voxels_are_an_error(tmp_path, suffix, rng):
    path = tmp_path / f"cut{suffix}"
    noise = rng.integers(0, 255, (1, 30, 31)).astype(np.uint8)
    write_volume(path, Volume(noise, Geometry.from_spacing((30, 31), (1, 1))))
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], whole[: int(0.98 * len(whole))]]
    if suffix in (".nii.gz", ".png", ".nrrd"):  # with a checksum
        damaged.append(whole[:-60] + bytes([whole[-60] ^ 0xFF]) + whole[-59:])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ReadError, match="cut"):
            read_volume(path)
