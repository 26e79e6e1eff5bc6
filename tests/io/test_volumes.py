"""What holds for every format: round trips on an oblique grid, suffixes and refusals."""

import itertools
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from lesionseg.core import Geometry, Volume
from lesionseg.errors import OutputError, ReadError
from lesionseg.io.volumes import (
    case_suffix,
    is_image_file,
    read_geometry,
    read_volume,
    strip_suffix,
    write_volume,
)

VOLUME_SUFFIXES = [".nii", ".nii.gz", ".nrrd", ".mha"]
NUMBERS = ["uint8", "int16", "uint16", "int32", "float32", "float64"]


def _ramp(geometry: Geometry, dtype: str = "int16") -> Volume:
    return Volume(
        np.arange(np.prod(geometry.shape)).reshape(1, *geometry.shape).astype(dtype), geometry
    )


def _reoriented(geometry: Geometry, axes: tuple[int, ...], signs: tuple[int, ...]) -> Geometry:
    """The same oblique grid with its array axes permuted and turned round."""
    affine = geometry.affine.copy()
    affine[:3, :3] = affine[:3, list(axes)] * np.array(signs)
    return Geometry(tuple(geometry.shape[a] for a in axes), affine)


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_every_orientation_comes_back(
    tmp_path: Path, oblique: Geometry, suffix: str, axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    volume = _ramp(_reoriented(oblique, axes, signs))
    path = tmp_path / f"scan{suffix}"
    write_volume(path, volume)
    back = read_volume(path)
    np.testing.assert_array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.geometry.affine, volume.geometry.affine, atol=1e-5)
    assert read_geometry(path).matches(back.geometry, 0)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SAL", "LAS", "ASR"])
def test_nibabel_reads_and_writes_the_same(tmp_path: Path, oblique: Geometry, axcodes: str) -> None:
    """Voxel (x, y, z) of the file is array[z, y, x] and lies where nibabel says it lies."""
    image = nibabel.Nifti1Image(
        np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([2, 3, 4, 1])
    )
    image = image.as_reoriented(
        nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axcodes)
        )
    )
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.array[0].T, np.asarray(image.dataobj))
    np.testing.assert_allclose(
        volume.geometry.to_mm([[0, 1, 2]])[0],
        image.affine @ [2, 1, 0, 1] @ np.eye(4)[:, :3],
        atol=1e-5,
    )
    write_volume(tmp_path / "b.nii.gz", volume)
    again = nibabel.load(tmp_path / "b.nii.gz")
    assert nibabel.aff2axcodes(again.affine) == tuple(axcodes)
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(image.dataobj))


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
def test_simpleitk_sees_the_same_voxels_at_the_same_place(
    tmp_path: Path, oblique: Geometry, suffix: str
) -> None:
    volume = _ramp(oblique)
    write_volume(tmp_path / f"a{suffix}", volume)
    image = sitk.ReadImage(str(tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.array[0])
    for index in ([0, 0, 0], [2, 1, 3]):
        left, posterior, superior = image.TransformIndexToPhysicalPoint(index[::-1])
        expected = [-left, -posterior, superior]
        np.testing.assert_allclose(oblique.to_mm([index])[0], expected, atol=1e-4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_files_of_simpleitk_are_read_where_it_wrote_them(tmp_path: Path, suffix: str) -> None:
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((10, 20, 30))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), suffix != ".mhd")
    volume = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(volume.array[0], sitk.GetArrayFromImage(image))
    point = image.TransformIndexToPhysicalPoint((3, 2, 1))
    np.testing.assert_allclose(
        volume.geometry.to_mm([[1, 2, 3]])[0], [-point[0], -point[1], point[2]], atol=1e-9
    )
    assert volume.geometry.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("suffix", VOLUME_SUFFIXES)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_number_types_are_kept(tmp_path: Path, oblique: Geometry, suffix: str, dtype: str) -> None:
    volume = _ramp(oblique, dtype)
    write_volume(tmp_path / f"a{suffix}", volume)
    back = read_volume(tmp_path / f"a{suffix}").array
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, volume.array)


@pytest.mark.parametrize(
    ("given", "stored"), [("bool", "uint8"), ("int64", "int32"), ("float16", "float32")]
)
def test_number_types_unknown_to_formats_are_widened(
    tmp_path: Path, oblique: Geometry, given: str, stored: str
) -> None:
    write_volume(tmp_path / "a.nii.gz", Volume(_ramp(oblique).array.astype(given), oblique))
    assert read_volume(tmp_path / "a.nii.gz").array.dtype == stored


def test_integers_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((1, 1, 1), (1, 1, 1))
    with pytest.raises(OutputError, match="32 bits"):
        write_volume(tmp_path / "a.nii", Volume(np.full((1, 1, 1, 1), 2**40), geometry))


def test_two_channels_are_not_one_file(tmp_path: Path, oblique: Geometry) -> None:
    with pytest.raises(OutputError, match="one channel"):
        write_volume(tmp_path / "a.nii", Volume(np.zeros((2, *oblique.shape)), oblique))


@pytest.mark.parametrize("name", ["a.mhd", "a.jpg", "a.xyz"])
def test_formats_that_are_not_written(tmp_path: Path, name: str) -> None:
    plane = Geometry.from_spacing((2, 2), (1, 1))
    with pytest.raises(OutputError, match=name):
        write_volume(tmp_path / name, Volume(np.zeros((1, 2, 2), np.uint8), plane))
    assert list(tmp_path.iterdir()) == []


def test_a_volume_too_long_for_nifti_is_refused_by_name(tmp_path: Path) -> None:
    geometry = Geometry.from_spacing((40000, 1, 1), (1, 1, 1))
    with pytest.raises(OutputError, match=r"long\.nii"):
        write_volume(tmp_path / "long.nii", Volume(np.zeros((1, 40000, 1, 1), np.uint8), geometry))


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("a.nii.gz", ".nii.gz", "a"),
        ("a.b.NII.GZ", ".NII.GZ", "a.b"),
        ("a_0000.nrrd", ".nrrd", "a_0000"),
        ("v1.2.png", ".png", "v1.2"),
        ("table.csv", ".csv", "table"),
        ("noend", "", "noend"),
    ],
)
def test_suffixes(name: str, suffix: str, stem: str) -> None:
    assert case_suffix(Path(name)) == suffix
    assert strip_suffix(Path(name)) == stem


def test_hidden_files_are_no_images() -> None:
    assert is_image_file(Path("a.PNG"))
    assert not is_image_file(Path("._a.nii.gz"))
    assert not is_image_file(Path("a.csv"))


@pytest.mark.parametrize("read", [read_volume, read_geometry])
@pytest.mark.parametrize("suffix", [*VOLUME_SUFFIXES, ".mhd", ".png", ".jpg", ".bmp", ".tif"])
@pytest.mark.parametrize("content", [b"", b"no image at all, but some text " * 40])
def test_empty_files_and_wrong_magic_are_refused_by_name(
    tmp_path: Path, read: Callable[[Path], object], suffix: str, content: bytes
) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ReadError, match="broken"):
        read(path)


@pytest.mark.parametrize("read", [read_volume, read_geometry])
def test_what_is_not_there_is_refused_by_name(
    tmp_path: Path, read: Callable[[Path], object]
) -> None:
    with pytest.raises(ReadError, match=r"gone\.nii.*does not exist|does not exist.*gone\.nii"):
        read(tmp_path / "gone.nii")
    with pytest.raises(ReadError, match="A folder stands"):
        read(tmp_path)
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(ReadError, match=r"format is unknown.*\.xyz"):
        read(tmp_path / "a.xyz")


@pytest.mark.parametrize("suffix", [*VOLUME_SUFFIXES, ".png", ".tif"])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, keep: float) -> None:
    shape = (60, 70) if suffix in (".png", ".tif") else (10, 20, 30)
    noise = np.random.default_rng(0).integers(0, 60000, (1, *shape)).astype(np.uint16)
    path = tmp_path / f"short{suffix}"
    write_volume(path, Volume(noise, Geometry.from_spacing(shape, (1,) * len(shape))))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ReadError, match="short"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii.gz", ".png", ".nrrd"])
def test_flipped_bytes_in_compressed_voxels_are_noticed(tmp_path: Path, suffix: str) -> None:
    shape = (60, 70) if suffix == ".png" else (10, 20, 30)
    noise = np.random.default_rng(0).integers(0, 60000, (1, *shape)).astype(np.uint16)
    path = tmp_path / f"flipped{suffix}"
    write_volume(path, Volume(noise, Geometry.from_spacing(shape, (1,) * len(shape))))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(bytes(content))
    with pytest.raises(ReadError, match="flipped"):
        read_volume(path)
