"""Damaged voxels of compressed MetaImage and NRRD files, which ITK reads without an error."""

import re

import numpy as np
import pytest
import SimpleITK as sitk

from lesionseg.errors import ReadError
from lesionseg.io.volumes import read_volume

ARRAY = np.random.default_rng(0).integers(0, 1000, (10, 12, 14)).astype(np.int16)


@pytest.fixture(params=["a.mha", "a.mhd", "a.nrrd", "a.nhdr"])
def compressed(request, tmp_path):
    """Write a compressed file, with its voxels in the same file or next to it."""
    path = tmp_path / request.param
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path), True)
    (voxels,) = (file for file in tmp_path.iterdir() if file.suffix not in (".mhd", ".nhdr"))
    return path, voxels


def test_intact_file_is_read(compressed):
    assert np.array_equal(read_volume(compressed[0]).array[0], ARRAY)


@pytest.mark.parametrize("place", [-1, -40, -600, -1500])
def test_one_wrong_byte_is_an_error(compressed, place):
    path, voxels = compressed
    content = bytearray(voxels.read_bytes())
    content[place] ^= 1
    voxels.write_bytes(content)
    with pytest.raises(ReadError, match="the compressed voxels are damaged"):
        read_volume(path)


def test_lost_end_is_an_error(compressed):
    path, voxels = compressed
    voxels.write_bytes(voxels.read_bytes()[:-2])
    with pytest.raises(ReadError, match="the compressed voxels are damaged"):
        read_volume(path)


def test_header_without_the_length_of_its_voxels_is_an_error(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(path), True)
    path.write_bytes(re.sub(rb"CompressedDataSize = \d+\n", b"", path.read_bytes()))
    with pytest.raises(ReadError, match=r"a\.mha: the header has no CompressedDataSize"):
        read_volume(path)
