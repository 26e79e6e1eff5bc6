"""The contract of every image format: an intact file is read exactly, any other one is an error.

A new format is a line in `FILES`.
"""

import os
import re

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from lesionseg.core import Geometry, Volume
from lesionseg.errors import OutputError, ReadError
from lesionseg.io.formats import FORMATS
from lesionseg.io.limits import FileLimits, limits, set_limits
from lesionseg.io.volumes import read_geometry, read_volume, result_suffix, write_volume
from tests.io.dicom_files import CT, write_dicom_file

VOLUME = np.random.default_rng(0).integers(0, 255, (5, 30, 31)).astype(np.uint8)
GRID = Geometry.from_spacing(VOLUME.shape, (2.0, 1.0, 1.0))
PLANE = Geometry.from_spacing(VOLUME.shape[1:], (1.0, 1.0))


def write_ours(path):
    write_volume(path, Volume(VOLUME[np.newaxis], GRID))
    return VOLUME


def write_our_picture(path):
    write_volume(path, Volume(VOLUME[:1], PLANE))
    return VOLUME[0]


def write_by_pillow(path):
    Image.fromarray(VOLUME[0]).save(path)
    return np.asarray(Image.open(path))


def write_by_itk(path):
    image = sitk.GetImageFromArray(VOLUME)
    sitk.WriteImage(image, str(path), path.stem == "packed")
    return VOLUME


def write_stack(path):
    tifffile.imwrite(path, VOLUME, photometric="minisblack")
    return VOLUME


def write_slice(path):
    position = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    write_dicom_file(path, VOLUME[0].astype(np.uint16), CT, PixelSpacing=[1, 1], **position)
    return VOLUME[:1]


# name of the file: a function that writes it and returns its values
FILES = {
    "a.nii": write_ours,
    "a.nii.gz": write_ours,
    "a.nrrd": write_ours,
    "plain.nrrd": write_by_itk,
    "a.mha": write_ours,
    "plain.mha": write_by_itk,
    "packed.mhd": write_by_itk,
    "packed.nhdr": write_by_itk,
    "a.png": write_our_picture,
    "a.tif": write_our_picture,
    "a.tiff": write_by_pillow,
    "stack.tif": write_stack,
    "a.jpg": write_by_pillow,
    "a.bmp": write_by_pillow,
    "a.dcm": write_slice,
}
WITH_CHECKSUM = ("a.nii.gz", "a.nrrd", "a.mha", "packed.mhd", "packed.nhdr", "a.png")
WRITTEN = [suffix for form in FORMATS for suffix in form.written]
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha")


def file_of_voxels(path):
    """Return the file that contains the voxels, which may be another one in the folder."""
    return max(path.parent.iterdir(), key=lambda file: file.stat().st_size)


def check_refused(path):
    """Check that both readers refuse a file and name it."""
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=re.escape(path.name)):
            read(path)


@pytest.fixture
def change_limits():
    """Return a function that sets limits for one test."""
    before = limits()
    yield lambda **changes: set_limits(FileLimits(**changes))
    set_limits(before)


def test_every_suffix_belongs_to_one_format():
    suffixes = [suffix for form in FORMATS for suffix in form.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert set(WRITTEN) <= set(suffixes)
    assert all((form.write is None) == (not form.written) for form in FORMATS)


@pytest.mark.parametrize("name", FILES)
def test_intact_file_is_read_exactly(tmp_path, name):
    values = FILES[name](tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, values[np.newaxis])
    assert volume.array.dtype.isnative
    assert volume.geometry.shape == values.shape
    assert read_geometry(tmp_path / name).matches(volume.geometry)
    assert result_suffix(tmp_path / name, values.ndim) in WRITTEN


@pytest.mark.parametrize("name", [*FILES, "a.xyz"])
def test_missing_empty_or_other_file_is_an_error(tmp_path, name):
    path = tmp_path / name
    check_refused(path)
    for content in (b"", b"no image at all, but some text " * 40):
        path.write_bytes(content)
        check_refused(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", [*FILES, "a"])
def test_pipe_is_an_error(tmp_path, name):
    os.mkfifo(tmp_path / name)
    check_refused(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
def test_file_that_was_cut_is_an_error(tmp_path, name):
    path = tmp_path / name
    FILES[name](path)
    voxels = file_of_voxels(path)
    content = voxels.read_bytes()
    lengths = [len(content) // 2, int(0.98 * len(content))]
    if name in WITH_CHECKSUM and name != "a.png":  # a PNG ends with a chunk without pixels
        lengths.append(len(content) - 2)
    for n_bytes in lengths:
        voxels.write_bytes(content[:n_bytes])
        with pytest.raises(ReadError, match=re.escape(name)):
            read_volume(path)


@pytest.mark.parametrize("place", [-40, -60, -600])
@pytest.mark.parametrize("name", WITH_CHECKSUM)
def test_one_wrong_byte_is_an_error(tmp_path, name, place):
    path = tmp_path / name
    FILES[name](path)
    voxels = file_of_voxels(path)
    content = bytearray(voxels.read_bytes())
    content[place] ^= 1
    voxels.write_bytes(content)
    with pytest.raises(ReadError, match=re.escape(name)):
        read_volume(path)


@pytest.mark.parametrize("name", FILES)
def test_more_voxels_than_the_limit_are_an_error(tmp_path, name, change_limits):
    path = tmp_path / name
    n_voxels = FILES[name](path).size
    change_limits(max_voxels=n_voxels - 1)
    check_refused(path)
    change_limits(max_voxels=n_voxels)
    assert read_volume(path).array.size == n_voxels


@pytest.mark.parametrize("suffix", WRITTEN)
def test_number_types_are_kept_or_widened(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    array, grid = (VOLUME, GRID) if suffix in VOLUMES else (VOLUME[0], PLANE)
    types = {"uint8": "uint8", "uint16": "uint16", "bool": "uint8"}
    if suffix != ".png":
        types |= {name: name for name in ("int16", "int32", "float32", "float64")}
        types |= {"float16": "float32", "int64": "int32"}
    for dtype, expected in types.items():
        stored = array.astype(dtype)[np.newaxis]
        write_volume(path, Volume(stored, grid))
        again = read_volume(path).array
        np.testing.assert_array_equal(again, stored)
        assert again.dtype == expected


ONE = VOLUME[:1].astype(np.float32)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("a.mhd", ONE),
        ("a.jpg", ONE),
        ("a.xyz", ONE),
        ("a.png", ONE),
        ("two.nii.gz", VOLUME[:2]),
        ("long.nii.gz", ONE.astype(np.int64) + 2**40),
    ],
)
def test_values_that_a_format_cannot_store_are_an_error(tmp_path, name, array):
    with pytest.raises(OutputError, match=re.escape(name)):
        write_volume(tmp_path / name, Volume(array, PLANE))
    assert not list(tmp_path.iterdir())
