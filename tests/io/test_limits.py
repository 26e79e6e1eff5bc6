"""Review H3: what a file may cost is known, and refused, before memory is asked for."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.formats import guard
from lesionseg.io.formats.guard import check_grid, limits
from lesionseg.io.volumes import read_geometry, read_volume, write_volume
from tests.io.dicom_files import DX, enhanced, save, write_series


def refused(path: Path, words: str, *, raster_mm: float | None = None) -> None:
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=words) as error:
            read(path, raster_mm=raster_mm)
        assert path.name in str(error.value)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("mm", [300.0, 100.1, 0.0009])
def test_h3_an_impossible_spacing_is_refused(tmp_path: Path, suffix: str, mm: float) -> None:
    path = tmp_path / f"a{suffix}"
    geometry = Geometry.from_spacing((2, 3, 4), (1.0, mm, 1.0))
    write_volume(path, Volume(np.zeros((1, 2, 3, 4), np.uint8), geometry))
    refused(path, r"impossible size.*0\.001 to 100 mm")


def test_h3_spacings_at_the_bounds_are_read(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((2, 3, 4), (100.0, 0.001, 1.0))
    write_volume(tmp_path / "a.nrrd", Volume(np.zeros((1, 2, 3, 4), np.uint8), geometry))
    assert read_volume(tmp_path / "a.nrrd").geometry.matches(geometry)


def test_h3_the_pixel_size_of_a_picture_is_checked_too(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "impossible size", raster_mm=500.0)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".png", ".tif", ".jpg"])
def test_h3_too_many_voxels_are_refused(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shape = tmp_path / f"a{suffix}", (5, 5)
    if suffix == ".jpg":
        Image.new("L", shape).save(path)
    else:
        plane = Geometry.from_spacing(shape, (1, 1))
        write_volume(path, Volume(np.zeros((1, *shape), np.uint8), plane))
    monkeypatch.setattr(guard, "_limits", guard.FileLimits(max_voxels=24))
    refused(path, r"too many voxels.*Seen: 25.*at most 24")
    monkeypatch.setattr(guard, "_limits", guard.FileLimits(max_voxels=25))
    assert read_volume(path).geometry.shape == shape


def test_h3_the_bound_itself(tmp_path: Path) -> None:
    def grid(n: int) -> Geometry:
        return Geometry.from_spacing((1, 1, n), (1, 1, 1))

    assert check_grid(tmp_path, grid(limits().max_voxels)).shape == (1, 1, limits().max_voxels)
    with pytest.raises(ReadError, match="too many voxels"):
        check_grid(tmp_path, grid(limits().max_voxels + 1))


def test_h3_a_compressed_nifti_of_many_voxels_is_refused(tmp_path: Path) -> None:
    """4 MB of zeros may well be 4 GB: the file's size alone does not tell."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((2000, 2000, 1000))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock) + bytes(4_000_000))
    refused(path, "too many voxels")


def test_h3_dicom_rows_and_columns_beyond_the_file_are_refused(
    tmp_path: Path, oblique: Geometry
) -> None:
    huge = {"Rows": 65535, "Columns": 65535}
    folder = write_series(tmp_path, oblique, dict.fromkeys(range(5), huge))
    for read in (read_volume, read_geometry):
        with pytest.raises(ReadError, match=r"claims more voxels.*bytes in the file"):
            read(folder)


def test_h3_dicom_frames_beyond_the_file_are_refused(tmp_path: Path, oblique: Geometry) -> None:
    path = enhanced(tmp_path / "a.dcm", oblique)
    header = pydicom.dcmread(path)
    header.NumberOfFrames = 10**6
    header.save_as(path)
    refused(path, "claims more voxels")


def test_h3_a_radiograph_beyond_its_file_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((4, 5), np.uint16)
    refused(save(tmp_path / "a.dcm", pixels, DX, Rows=60000, Columns=60000), "claims more voxels")
    spacing = {"ImagerPixelSpacing": [500, 500]}
    refused(save(tmp_path / "b.dcm", pixels, DX, **spacing), "impossible size")
