"""Volumes in any format: the suffix of the file's name decides who reads and writes it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.errors import LesionsegError, OutputError, ReadError
from lesionseg.io.atomic import atomic_path
from lesionseg.io.dicom.headers import SUFFIXES as DICOM_SUFFIXES
from lesionseg.io.dicom.headers import is_dicom
from lesionseg.io.dicom.series import read_dicom, read_dicom_geometry, split_series
from lesionseg.io.dicom.stack import Tilt
from lesionseg.io.formats import itk, nifti, raster
from lesionseg.io.formats.decoder import decode
from lesionseg.io.formats.guard import check_file, reading

SUFFIXES = (*nifti.SUFFIXES, *itk.SUFFIXES, *raster.SUFFIXES, *DICOM_SUFFIXES)


def case_suffix(path: Path) -> str:
    """The suffix that names the format, as written; any other file's last suffix.

    >>> case_suffix(Path("scan.v2.nii.gz")), case_suffix(Path("scan.PNG"))
    ('.nii.gz', '.PNG')
    """
    name = path.name
    known = next((s for s in SUFFIXES if name.lower().endswith(s)), None)
    return path.suffix if known is None else name[len(name) - len(known) :]


def strip_suffix(path: Path) -> str:
    """The file's name without the suffix that names its format.

    >>> strip_suffix(Path("scan.v2.nii.gz"))
    'scan.v2'
    """
    return path.name.removesuffix(case_suffix(path))


def is_image_file(path: Path) -> bool:
    """Whether the name is that of an image we read; hidden files are none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def read_volume(
    path: Path,
    *,
    raster_mm: float | None = None,
    as_labels: bool = False,
    tilt: Tilt = "refuse",
) -> Volume:
    """Read one file as a volume `[1, *spatial]`, voxels as stored, affine to RAS millimetres.

    The dtype is the file's (float32 where a NIfTI header scales). Nothing is reoriented: the array
    axes are the file's, slowest first. Rasters have two spatial axes and pixels of `raster_mm`
    (1 mm when not given); in other formats it is not used. `as_labels` reads a mask: see
    `raster.read_raster`. A folder is a DICOM series; `tilt` says whether one of a tilted gantry is
    resampled. Raises `ReadError` naming the file.
    """
    if _is_dicom(path):
        with reading(path):  # pydicom understands an element when it is asked for
            return read_dicom(path, tilt=tilt)
    suffix = _checked_suffix(path)
    if suffix in nifti.SUFFIXES:
        return nifti.read_nifti(path)
    if suffix in itk.SUFFIXES:
        return decode(itk.read_itk, path)
    return decode(raster.read_raster, path, raster_mm, as_labels=as_labels)


def read_geometry(path: Path, *, raster_mm: float | None = None, tilt: Tilt = "refuse") -> Geometry:
    """Read shape and affine from the header alone; raises as `read_volume` does."""
    if _is_dicom(path):
        with reading(path):
            return read_dicom_geometry(path, tilt=tilt)
    suffix = _checked_suffix(path)
    if suffix in nifti.SUFFIXES:
        return nifti.read_nifti_geometry(path)
    if suffix in itk.SUFFIXES:
        return decode(itk.read_itk_geometry, path)
    return decode(raster.read_raster_geometry, path, raster_mm)


def write_volume(path: Path, volume: Volume, like: Path | None = None) -> None:
    """Write a volume of one channel atomically, with its own affine, in the suffix's format.

    The dtype is kept, but bool becomes uint8, float16 float32 and 64-bit integers int32. `like`
    names a NIfTI file whose form codes are taken over. Rasters lose their pixel size. Raises
    `OutputError` for several channels, an unknown suffix and numbers the format cannot hold.
    """
    suffix = case_suffix(path).lower()
    array = _storable(path, volume.array)
    with atomic_path(path) as temporary:
        try:
            _write(temporary, suffix, array, volume.geometry, like)
        except OutputError as error:
            raise OutputError(
                error.what, where=path, seen=error.seen, expected=error.expected
            ) from error
        except (LesionsegError, OSError):
            raise
        except Exception as error:  # what a format's library says of numbers that do not fit
            raise OutputError(f"Cannot write the volume: {error}.", where=path) from error


def _write(
    path: Path, suffix: str, array: NDArray[Any], geometry: Geometry, like: Path | None
) -> None:
    if suffix in nifti.SUFFIXES:
        nifti.write_nifti(path, array, geometry, like)
    elif suffix in (".nrrd", ".mha"):  # .mhd would be two files, and two renames are not one
        itk.write_itk(path, array, geometry)
    elif suffix in raster.SUFFIXES:
        raster.write_raster(path, array)
    else:
        raise OutputError(
            "Cannot write this format.",
            seen=suffix,
            expected=".nii.gz, .nii, .nrrd, .mha, .png or .tif",
        )


def _is_dicom(path: Path) -> bool:
    """Whether to read it as DICOM: a folder, the suffix or, without one known, first bytes."""
    with reading(path):
        if not path.is_dir() and split_series(path) is None:
            check_file(path)
        return is_dicom_image(path)


def is_dicom_image(path: Path) -> bool:
    """Whether a scan's path is that of DICOM files; False for what is not there."""
    if path.is_dir() or split_series(path) is not None:
        return True
    suffix = case_suffix(path).lower()
    return suffix in DICOM_SUFFIXES or (suffix not in SUFFIXES and is_dicom(path))


def result_suffix(path: Path, dims: int) -> str:
    """The format in which a prediction on the image is written: its own where that is exact.

    >>> result_suffix(Path("a.nrrd"), 3), result_suffix(Path("a.jpg"), 2)
    ('.nrrd', '.png')
    """
    suffix = {".mhd": ".mha", ".nhdr": ".nrrd"}.get(
        case_suffix(path).lower(), case_suffix(path).lower()
    )
    if suffix in (*nifti.SUFFIXES, ".nrrd", ".mha"):
        return suffix
    return ".png" if dims == 2 else ".nii.gz"


def _checked_suffix(path: Path) -> str:
    check_file(path)
    suffix = case_suffix(path).lower()
    if suffix not in SUFFIXES:
        raise ReadError(
            "The file's format is unknown.",
            where=path,
            seen=suffix or "a name without an ending",
            expected=", ".join(SUFFIXES),
        )
    return suffix


def _storable(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """The one channel, in a number type every format knows."""
    if array.shape[0] != 1:
        raise OutputError("A file holds one channel.", where=path, seen=f"{array.shape[0]}")
    values: NDArray[Any] = array[0]
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype in (np.int64, np.uint64):
        if values.size and max(abs(int(values.min())), int(values.max())) > np.iinfo(np.int32).max:
            raise OutputError(
                "The integers do not fit 32 bits.", where=path, seen=int(values.max())
            )
        return values.astype(np.int32)
    return values
