"""NRRD and MetaImage files through SimpleITK, whose axes point left, posterior, superior."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.formats.guard import check_claim, reading

_IMAGE_IO = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
SUFFIXES = tuple(_IMAGE_IO)


def read_itk(path: Path) -> Volume:
    """Read a volume `[1, *spatial]` in the file's own dtype; two-axis files give two axes.

    Raises `ReadError` for truncated, damaged, colour and 4-D files.
    """
    with reading(path):
        reader = _header(path)
        geometry = _geometry(reader)
        return Volume(_array(reader.Execute())[np.newaxis], geometry)


def read_itk_geometry(path: Path) -> Geometry:
    """Read shape and affine from the header alone."""
    with reading(path):
        return _geometry(_header(path))


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write `array` `[*spatial]`, compressed."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    spacing = np.asarray(geometry.spacing_mm)[::-1]
    affine = _flip_left_posterior(geometry.dims) @ _reverse_axes(geometry.affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:-1, -1].tolist())
    image.SetDirection((affine[:-1, :-1] / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path), True)


def _header(path: Path) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_IMAGE_IO[path.suffix.lower()])
    reader.ReadImageInformation()
    n_channels, n_dims = reader.GetNumberOfComponents(), reader.GetDimension()
    if n_dims not in (2, 3) or n_channels != 1:
        raise ReadError(
            "The file holds other than one value a voxel on two or three axes.",
            where=path,
            seen=f"{n_dims} axes, {n_channels} values a voxel",
            remedy="Split it into one file a channel: <case>_0000, <case>_0001, ….",
        )
    n_voxels = int(np.prod(reader.GetSize(), dtype=object))
    check_claim(voxel_file(path), n_voxels * _bytes_per_voxel(reader))
    return reader


def voxel_file(path: Path) -> Path:
    """The file that holds the voxels: a `.mhd` header names it in its last line."""
    if path.suffix.lower() == ".mhd":
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            file = path.parent / value.strip()
            if key.strip() == "ElementDataFile" and file.is_file():
                return file
    return path


def _bytes_per_voxel(reader: Any) -> int:
    import SimpleITK as sitk

    name = sitk.GetPixelIDValueAsString(reader.GetPixelID())  # such as "16-bit unsigned integer"
    return int(name.partition("-bit")[0]) // 8 if name[:1].isdigit() else 1


def _array(image: Any) -> NDArray[Any]:
    import SimpleITK as sitk

    return np.asarray(sitk.GetArrayFromImage(image))


def _geometry(reader: Any) -> Geometry:
    dims = reader.GetDimension()
    affine = np.eye(dims + 1)
    direction = np.asarray(reader.GetDirection()).reshape(dims, dims)
    affine[:-1, :-1] = direction * np.asarray(reader.GetSpacing())
    affine[:-1, -1] = reader.GetOrigin()
    return Geometry(reader.GetSize()[::-1], _flip_left_posterior(dims) @ _reverse_axes(affine))


def _flip_left_posterior(dims: int) -> NDArray[np.float64]:
    """Turns left and posterior into right and anterior, and back."""
    return np.diag([-1.0, -1.0, *[1.0] * (dims - 1)])


def _reverse_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of reversed index order: (x, y, z) for (z, y, x) and back."""
    dims = len(affine) - 1
    return affine[:, [*range(dims)[::-1], dims]]
