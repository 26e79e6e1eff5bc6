"""NRRD and MetaImage files through SimpleITK, whose axes point left, posterior, superior."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.formats.guard import check_claim, check_grid, check_voxels, reading
from lesionseg.io.formats.header_fields import MOST_HEADER_BYTES, ItkHeader, other_axes
from lesionseg.io.formats.itk_headers import read_metaimage_header, read_nrrd_header

_NRRD = (".nrrd", ".nhdr")
SUFFIXES = (*_NRRD, ".mha", ".mhd")


def read_itk(path: Path) -> Volume:
    """Read a volume `[1, *spatial]` in the file's own dtype; two-axis files give two axes.

    Raises `ReadError` for truncated, damaged, colour and 4-D files.
    """
    with reading(path):
        reader = _header(path)
        geometry = _geometry(path, reader)
        return Volume(_array(reader.Execute())[np.newaxis], geometry)


def read_itk_geometry(path: Path) -> Geometry:
    """Read shape and affine from the header alone."""
    with reading(path):
        return _geometry(path, _header(path))


def write_itk(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Write `array` `[*spatial]`, compressed."""
    import SimpleITK as sitk

    sitk.WriteImage(itk_image(array, geometry), str(path), True)


def itk_image(array: NDArray[Any], geometry: Geometry) -> Any:
    """An array `[*spatial]` as SimpleITK's image, at its place in the patient."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    spacing = np.asarray(geometry.spacing_mm)[::-1]
    affine = _flip_left_posterior(geometry.dims) @ _reverse_axes(geometry.affine)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:-1, -1].tolist())
    image.SetDirection((affine[:-1, :-1] / spacing).ravel().tolist())
    return image


def voxel_file(path: Path) -> Path:
    """The file that holds the voxels; the header's own where the header is no good."""
    try:
        return _own_header(path).voxel_file
    except (ReadError, OSError):
        return path


def _header(path: Path) -> Any:
    import SimpleITK as sitk

    header = _own_header(path)
    _check_voxels(path, header)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if path.suffix.lower() in _NRRD else "MetaImageIO")
    reader.ReadImageInformation()
    n_channels, n_dims = reader.GetNumberOfComponents(), reader.GetDimension()
    if n_dims not in (2, 3) or n_channels != 1:
        raise other_axes(path, n_dims, n_channels)
    if int(np.prod(reader.GetSize(), dtype=object)) != header.n_values:
        raise ReadError(
            "The header can be read in two ways.",
            where=path,
            seen=f"sizes {reader.GetSize()}",
            expected=f"{header.n_values} voxels",
            remedy="Write the image again.",
        )
    return reader


def _own_header(path: Path) -> ItkHeader:
    header = (read_nrrd_header if path.suffix.lower() in _NRRD else read_metaimage_header)(path)
    if header.voxel_file != path and path.stat().st_size > MOST_HEADER_BYTES:
        raise ReadError(
            "A header whose voxels lie in another file is too long.",
            where=path,
            seen=f"{path.stat().st_size} bytes",
            expected=f"at most {MOST_HEADER_BYTES}",
            remedy="Write the image again as one file: .nii.gz, .nrrd or .mha.",
        )
    return header


def _check_voxels(path: Path, header: ItkHeader) -> None:
    """Refuse, before ITK makes room for them, voxels that the file cannot hold."""
    n_bytes = header.n_values * header.value_bytes
    # as text a value takes a digit and a space, the last one no space; in hex a byte two digits
    least = {"text": 2 * header.n_values - 1, "hex": 2 * n_bytes}.get(header.packing, n_bytes)
    check_claim(header.voxel_file, least, compressed=header.packing == "compressed")
    check_claim(header.voxel_file, header.stored_bytes, compressed=False)
    check_voxels(path, header.n_values)


def _array(image: Any) -> NDArray[Any]:
    import SimpleITK as sitk

    return np.asarray(sitk.GetArrayFromImage(image))


def _geometry(path: Path, reader: Any) -> Geometry:
    dims = reader.GetDimension()
    affine = np.eye(dims + 1)
    direction = np.asarray(reader.GetDirection()).reshape(dims, dims)
    affine[:-1, :-1] = direction * np.asarray(reader.GetSpacing())
    affine[:-1, -1] = reader.GetOrigin()
    affine = _flip_left_posterior(dims) @ _reverse_axes(affine)
    return check_grid(path, Geometry(reader.GetSize()[::-1], affine))


def _flip_left_posterior(dims: int) -> NDArray[np.float64]:
    """Turns left and posterior into right and anterior, and back."""
    return np.diag([-1.0, -1.0, *[1.0] * (dims - 1)])


def _reverse_axes(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine of reversed index order: (x, y, z) for (z, y, x) and back."""
    dims = len(affine) - 1
    return affine[:, [*range(dims)[::-1], dims]]
