"""What is peculiar to NRRD and MetaImage; places in space are tested in test_volumes."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from lesionseg.errors import ReadError
from lesionseg.io.volumes import read_geometry, read_volume, write_volume


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_two_axes_are_two_spatial_axes(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(np.arange(6, dtype=np.uint16).reshape(2, 3))
    image.SetSpacing((0.5, 2))
    image.SetOrigin((3, 4))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.geometry.shape == (2, 3)
    assert volume.geometry.spacing_mm == (2, 0.5)
    np.testing.assert_allclose(volume.geometry.to_mm([[1, 2]]), [[-4, -6]])
    write_volume(tmp_path / f"b{suffix}", volume)
    assert read_volume(tmp_path / f"b{suffix}").geometry.matches(volume.geometry, 1e-9)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize(
    "image",
    [
        sitk.GetImageFromArray(np.zeros((2, 3, 4, 3), np.uint8), isVector=True),
        sitk.Image([2, 3, 4, 5], sitk.sitkUInt8),
    ],
    ids=["colour", "4-D"],
)
def test_other_than_one_value_a_voxel_is_refused(
    tmp_path: Path, suffix: str, image: sitk.Image
) -> None:
    path = tmp_path / f"many{suffix}"
    sitk.WriteImage(image, str(path))
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=r"one value per voxel.*many"):
            read(path)


MHA = "NDims = 3\nDimSize = {n} {n} {n}\nElementType = MET_SHORT\nElementDataFile = {file}\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: {n} {n} {n}\nendian: little\nencoding: raw\n\n"


def test_a_claim_beyond_the_file_is_refused_before_allocating(tmp_path: Path) -> None:
    (tmp_path / "huge.mha").write_text(MHA.format(n=30000, file="LOCAL") + "x" * 100)
    (tmp_path / "huge.nrrd").write_text(NRRD.format(n=30000) + "x" * 100)
    (tmp_path / "huge.mhd").write_text(MHA.format(n=30000, file="huge.raw"))
    (tmp_path / "huge.raw").write_bytes(bytes(100))
    for suffix in (".mha", ".nrrd", ".mhd"):
        for read in (read_volume, read_geometry):
            with pytest.raises(ReadError, match=r"claims more voxels.*huge"):
                read(tmp_path / f"huge{suffix}")


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".mhd"])
def test_raw_voxels_that_end_early_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"short{suffix}"
    text = NRRD if suffix == ".nrrd" else MHA
    path.write_text(text.format(n=10, file="LOCAL" if suffix == ".mha" else "short.raw"))
    if suffix == ".mhd":
        (tmp_path / "short.raw").write_bytes(bytes(1999))
    else:
        path.write_bytes(path.read_bytes() + bytes(1999))
    with pytest.raises(ReadError, match="short"):
        read_volume(path)


def test_a_header_whose_voxels_are_elsewhere_and_gone(tmp_path: Path) -> None:
    (tmp_path / "lost.mhd").write_text(MHA.format(n=4, file="lost.raw"))
    with pytest.raises(ReadError, match=r"lost\.mhd"):
        read_volume(tmp_path / "lost.mhd")
